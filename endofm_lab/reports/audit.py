"""The audit as one stand-alone page: verdict, findings, and the pictures side by side."""

import base64
import html
import io
from pathlib import Path

import numpy as np
from PIL import Image

from endofm_lab import __version__
from endofm_lab.data.audit.audit import Audit
from endofm_lab.data.audit.checks import N_EXAMPLES, Example, Finding
from endofm_lab.files import atomic_path
from endofm_lab.video.reader import open_video

_PICTURE_PX = 220
_GENERATED = " The pictures of the data set phantom are <b>generated</b>: they show no patient."
_STYLE = """
body { font: 16px/1.5 'Source Sans 3', 'Segoe UI', Helvetica, Arial, sans-serif; color: #1c1c1c; background: #fff;
       max-width: 1100px; margin: 2rem auto; padding: 0 1.2rem; }
h1 { font-size: 1.7rem; margin-bottom: .3rem; } h2 { font-size: 1.15rem; margin: 2.2rem 0 .3rem; }
.verdict { padding: .8rem 1rem; border-left: 6px solid; font-weight: 600; }
.leaks { border-color: #b3261e; background: #fbeceb; } .clean { border-color: #2e6b34; background: #edf5ee; }
.unsure { border-color: #8a5a00; background: #fcf4e4; }
.tag { font-size: .8rem; font-weight: 600; padding: .1rem .5rem; border-radius: .7rem; color: #fff; }
.leak { background: #b3261e; } .warning { background: #8a5a00; } .note { background: #4a5568; }
.pairs { display: grid; grid-template-columns: repeat(auto-fill, minmax(440px, 1fr)); gap: 1rem; }
.pair { border: 1px solid #ddd; padding: .5rem; }
.sides { display: grid; grid-template-columns: 1fr 1fr; gap: .5rem; }
figure { margin: 0; font-size: .78rem; overflow-wrap: anywhere; }
img { width: 100%; height: 220px; object-fit: contain; background: #000; } .why { font-size: .85rem; color: #444; }
.absent { height: 60px; display: grid; place-items: center; background: #eee; color: #444; }
table { border-collapse: collapse; } th, td { padding: .2rem .8rem; border-bottom: 1px solid #ddd; text-align: right; }
th:first-child, td:first-child { text-align: left; } footer { margin-top: 3rem; color: #666; font-size: .85rem; }
"""


def write_audit_html(audit: Audit, path: Path) -> None:
    """Write the page; pictures that cannot be opened are replaced by a sentence. Everything from outside is escaped."""
    state = "leaks" if audit.leaks else "unsure" if audit.unchecked or len(audit.parts) < 2 else "clean"
    generated = "phantom" in audit.datasets
    parts = "".join(f"<tr><td>{html.escape(name)}</td><td>{rows:,}</td></tr>" for name, rows in audit.parts.items())
    unchecked = "".join(f"<li>{html.escape(sentence)}</li>" for sentence in audit.unchecked)
    compared = "".join(f"<li>{html.escape(sentence)}</li>" for sentence in audit.compared)
    body = [
        "<h1>Audit of the data</h1>",
        f'<p class="verdict {state}">{html.escape(audit.verdict)}</p>',
        f"<p>Data sets: {html.escape(', '.join(audit.datasets)) or 'not named'}.{_GENERATED * generated}</p>",
        f"<table><tr><th>part</th><th>rows</th></tr>{parts}</table>",
        *(_finding(finding) for finding in audit.findings),
        f"<h2>What was compared</h2><ul>{compared}</ul>",
        f"<h2>What could not be checked</h2><ul>{unchecked or '<li>nothing</li>'}</ul>",
        f"<footer>endofm_lab {__version__}. For research only. Manifests (SHA-256): "
        f"{html.escape(', '.join(audit.fingerprints))}</footer>",
    ]
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Audit of the data</title>'
        f"<style>{_STYLE}</style></head><body>{''.join(body)}</body></html>"
    )
    with atomic_path(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


def _finding(finding: Finding) -> str:
    pairs = "".join(_pair(example) for example in finding.examples)
    shown = f" The first {N_EXAMPLES} pairs:" if len(finding.examples) == N_EXAMPLES else ""
    return (
        f'<h2><span class="tag {finding.severity}">{finding.severity}</span> {html.escape(finding.check)}</h2>'
        f'<p>{html.escape(finding.message)}{shown}</p><div class="pairs">{pairs}</div>'
    )


def _pair(example: Example) -> str:
    sides = [
        _side(example.path, example.start_s, example.split, example.label),
        _side(example.other_path, example.other_start_s, example.other_split, example.other_label),
    ]
    why = f'<div class="why">{html.escape(example.why)}</div>'
    return f'<div class="pair"><div class="sides">{"".join(sides)}</div>{why}</div>'


def _side(path: str, start_s: float, split: str, label: str) -> str:
    picture = _address(Path(path), start_s)
    name = html.escape(Path(path).name)
    shown = f'<img alt="{name}" src="{picture}">' if picture else '<div class="absent">the picture is not here</div>'
    caption = f"<b>{html.escape(split or 'no split')}</b> {html.escape(label)}<br>{name}"
    return f"<figure>{shown}<figcaption>{caption}{f' at {start_s:.2f} s' if start_s else ''}</figcaption></figure>"


def _address(path: Path, start_s: float) -> str | None:
    """A small JPEG of the picture as a data address, None when it cannot be opened."""
    frame = picture_at(path, start_s)
    if frame is None:
        return None
    picture = Image.fromarray(frame)
    picture.thumbnail((_PICTURE_PX, _PICTURE_PX))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def picture_at(path: str | Path, start_s: float) -> np.ndarray | None:
    """An image, or a video's frame nearest to a moment, as uint8 (H, W, 3); None when it cannot be opened."""
    try:
        with open_video(path) as reader:
            return reader.read([int(np.abs(reader.times_s - start_s).argmin())])[0]
    except (OSError, ValueError):  # UserError is a ValueError; the caller says that the picture is missing
        return None
