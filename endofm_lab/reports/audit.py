"""The audit report as one stand-alone page: verdict, findings, and pictures of the affected rows side by side."""

from pathlib import Path

import numpy as np
import pandas as pd

from endofm_lab.data.audit.audit import Audit
from endofm_lab.data.audit.checks import N_EXAMPLES, Example, Finding
from endofm_lab.figures.pictures import with_mark
from endofm_lab.reports.html import Markup, Section, bullets, escape, picture, verdict, write_report
from endofm_lab.video.reader import open_video

_GENERATED = " The pictures of the data set phantom are <b>generated</b>: they show no patient."


def write_audit_html(audit: Audit, path: Path) -> Path:
    """Write the page and return its path; a sentence replaces every picture that cannot be opened."""
    state = "bad" if audit.leaks else "unsure" if audit.unchecked or len(audit.parts) < 2 else "good"
    generated = _GENERATED if "phantom" in audit.datasets else ""
    datasets = Markup(
        f"<p>Data sets: {escape(', '.join(audit.datasets)) or 'not named'}; {escape(audit.units)}.{generated}</p>"
    )
    parts = pd.DataFrame([(name, f"{rows:,}") for name, rows in audit.parts.items()], columns=["part", "rows"])
    sections: list[Section] = [
        ("", [verdict(audit.verdict, state), datasets, parts]),
        *(_finding(finding) for finding in audit.findings),
        ("What was compared", [bullets(audit.compared)]),
        ("What could not be checked", [bullets(audit.unchecked or ["nothing"])]),
        ("Manifests (SHA-256)", [bullets(audit.fingerprints)]),
    ]
    return write_report(path, "Audit of the data", sections)


def _finding(finding: Finding) -> Section:
    note = f" The first {N_EXAMPLES} pairs:" if len(finding.examples) == N_EXAMPLES else ""
    pairs = "".join(_pair(example) for example in finding.examples)
    heading = f"{finding.severity.capitalize()}: {finding.check}"
    return heading, [finding.message + note, Markup(f'<div class="pairs">{pairs}</div>')]


def _pair(example: Example) -> str:
    sides = [
        _side(example.path, example.start_s, example.split, example.label),
        _side(example.other_path, example.other_start_s, example.other_split, example.other_label),
    ]
    return f'<div class="pair"><div class="sides">{"".join(sides)}</div>{escape(example.why)}</div>'


def _side(path: str, start_s: float, split: str, label: str) -> str:
    name = Path(path).name
    moment = f" at {start_s:.2f} s" if start_s else ""
    caption = f"<b>{escape(split or 'no split')}</b> {escape(label)}<br>{escape(name)}{moment}"
    return f"<figure>{picture(picture_at(path, start_s), name)}<figcaption>{caption}</figcaption></figure>"


def picture_at(path: str | Path, start_s: float) -> np.ndarray | None:
    """An image, or the frame of a video nearest to ``start_s``, as uint8 (H, W, 3); None if it cannot be opened.

    A picture of a generated video carries the mark.
    """
    try:
        with open_video(path) as reader:
            frame = reader.read([int(np.abs(reader.times_s - start_s).argmin())])[0]
            return with_mark(frame) if reader.info.generated else frame
    except (OSError, ValueError):  # includes UserError; the page says that the picture is missing
        return None
