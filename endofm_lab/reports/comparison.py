"""Write a comparison of runs as Markdown, CSV, LaTeX and a stand-alone HTML page."""

from pathlib import Path

import pandas as pd

from endofm_lab.files import atomic_path
from endofm_lab.reports.html import bullets, report_page
from endofm_lab.runs.compare import Comparison


def comparison_page(comparison: Comparison) -> str:
    """A stand-alone HTML page with the table and its notes."""
    head, rows = comparison.cells()
    items = [pd.DataFrame(rows, columns=head), bullets(comparison.notes())]
    return report_page(f"Comparison of {len(rows)} runs: {comparison.task}", [("", items)])


def write_comparison(comparison: Comparison, folder: str | Path) -> list[Path]:
    """Write ``comparison.md``, ``.csv``, ``.tex`` and ``.html`` into a folder; returns their paths."""
    texts = {"md": comparison.to_markdown(), "csv": comparison.to_csv(), "tex": comparison.to_latex()}
    texts["html"] = comparison_page(comparison)
    paths = [Path(folder) / f"comparison.{ending}" for ending in texts]
    for path, text in zip(paths, texts.values(), strict=True):
        with atomic_path(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return paths
