"""Write tables of runs as files: a comparison, and the published results beside own runs.

Markdown and LaTeX name their provenance in a line below the table. CSV stays a plain table for programs, so that the
provenance is in the JSON file beside it.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from endofm_lab.files import atomic_path, write_json
from endofm_lab.folders.provenance import provenance
from endofm_lab.reports.html import bullets, report_page
from endofm_lab.runs.compare import Comparison
from endofm_lab.runs.paper_table import paper_table, paper_values
from endofm_lab.runs.run import Run
from endofm_lab.runs.tables import TableFormat, with_provenance

_ENDINGS: dict[TableFormat, str] = {"markdown": "md", "csv": "csv", "latex": "tex"}


def comparison_page(comparison: Comparison) -> str:
    """A stand-alone HTML page with the table and its notes."""
    head, rows = comparison.cells()
    items = [pd.DataFrame(rows, columns=head), bullets(comparison.notes())]
    return report_page(f"Comparison of {len(rows)} runs: {comparison.task}", [("", items)])


def write_comparison(comparison: Comparison, folder: str | Path) -> list[Path]:
    """Write ``comparison.md``, ``.csv``, ``.tex``, ``.html`` and ``.json`` into a folder; returns their paths."""
    page = Path(folder) / "comparison.html"
    tables = _write_tables(Path(folder), "comparison", {form: comparison.text(form) for form in _ENDINGS})
    with atomic_path(page) as temporary:
        temporary.write_text(comparison_page(comparison), encoding="utf-8")
    runs = [line.run for line in comparison.lines]
    facts = {**summary(comparison), "runs": rows(comparison.table()), "sources": _sources(runs)}
    return [*tables, page, _write_facts(Path(folder), "comparison", facts)]


def write_paper_table(runs: Sequence[Run], folder: str | Path) -> list[Path]:
    """Write ``paper_table.md``, ``.csv``, ``.tex`` and ``.json`` into a folder; returns their paths."""
    tables = _write_tables(Path(folder), "paper_table", {form: paper_table(runs, form) for form in _ENDINGS})
    facts = {"values": rows(paper_values(runs)), "sources": _sources(runs)}
    return [*tables, _write_facts(Path(folder), "paper_table", facts)]


def summary(comparison: Comparison) -> dict[str, Any]:
    """Task, ranking metric, reasons against a ranking, and notes, as JSON."""
    return {
        "task": comparison.task,
        "by": comparison.by,
        "ranked": comparison.ranked,
        "reasons": list(comparison.reasons),
        "notes": comparison.notes(),
    }


def rows(table: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows of a table as JSON; undefined values are None."""
    plain = table.astype(object).where(table.notna(), None)
    return [dict(zip(map(str, plain.columns), row, strict=True)) for row in plain.to_numpy().tolist()]


def _sources(runs: Sequence[Run]) -> dict[str, Any]:
    """The provenance of every run in a table."""
    return {run.run: dict(run.provenance) for run in runs}


def _write_tables(folder: Path, name: str, texts: Mapping[TableFormat, str]) -> list[Path]:
    paths = []
    for form, text in texts.items():
        paths.append(folder / f"{name}.{_ENDINGS[form]}")
        with atomic_path(paths[-1]) as temporary:
            temporary.write_text(with_provenance(text, form), encoding="utf-8")
    return paths


def _write_facts(folder: Path, name: str, facts: Mapping[str, Any]) -> Path:
    write_json(folder / f"{name}.json", {**facts, "provenance": provenance()})
    return folder / f"{name}.json"
