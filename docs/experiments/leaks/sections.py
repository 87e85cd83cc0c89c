"""The sections of the page: a manifest in memory, its audit as rows of a table, and lists in Markdown."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from endofm_lab.data.audit.audit import Audit
from endofm_lab.data.audit.checks import percent
from endofm_lab.data.manifest import Manifest, checked

FOLDED = 12  # longer lists are folded


@dataclass(frozen=True)
class Section:
    """A data set on the page: its rows of the table at the top, and what is said about it."""

    title: str
    rows: list[tuple[str, str, str, str]]
    text: list[str]


def manifest_of(table: pd.DataFrame, dataset: str = "", root: Path = Path()) -> Manifest:
    """A manifest of pictures in memory: ``table`` has the column ``video``, and any others of a manifest."""
    empty = {"label": "", "patient": "", "split": "", "start_s": 0.0, "end_s": 0.0, "dataset": dataset}
    table = table.assign(**{name: value for name, value in empty.items() if name not in table})
    return Manifest(checked(table.reset_index(drop=True), dataset), root)


def summary(split: str, result: Audit) -> list[tuple[str, str, str, str]]:
    """Rows of the table at the top: split, rows evaluated, rows that are not independent, and what they share."""
    rows = []
    for (learned, evaluated), (touched, total) in result.leaking.items():
        findings = [f for f in result.findings if (f.learned, f.evaluated) == (learned, evaluated)]
        kinds = ", ".join(dict.fromkeys(finding.check for finding in findings)).replace("same video", "same file")
        silent = "cannot be said" if any("cannot be seen" in text for text in result.unchecked) else "none"
        count = f"{touched:,} ({percent(touched, total)})" if touched else silent
        rows.append((f"{split}: {learned}, {evaluated}", f"{total:,}", count, kinds or "-"))
    return rows


def table_of(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def folded(names: Sequence[str], heading: str) -> str:
    """A list of names behind a heading that opens it, or the list in a line if it is short."""
    names = [f"`{name}`" for name in names]
    if len(names) <= FOLDED:
        return f"{heading}: {', '.join(names)}."
    return f"<details><summary>{heading} ({len(names):,})</summary>\n\n{', '.join(names)}\n\n</details>"
