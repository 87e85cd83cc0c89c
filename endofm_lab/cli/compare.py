"""``endofm-lab compare`` and ``endofm-lab paper-table``."""

import json as json_format
from pathlib import Path
from typing import Annotated

import tyro


def compare(
    runs: Annotated[tuple[Path, ...], tyro.conf.Positional],
    out: Path | None = None,
    by: str | None = None,
    json: bool = False,
) -> None:
    """One table of finished runs with patient-level intervals and a paired test; ranked only if that is fair.

    Runs whose test sets or protocols differ are shown in the given order without ranks, and the reasons are printed.

    Args:
        runs: folders with report.json and predictions.parquet.
        out: folder for comparison.md, comparison.csv and comparison.html; by default nothing is written.
        by: metric to rank by; by default f1, dice, ap50 or jaccard, by task.
        json: print the table's numbers, reasons against a ranking and notes as JSON.
    """
    from endofm_lab.reports.comparison import write_comparison
    from endofm_lab.runs.compare import compare as compare_runs
    from endofm_lab.runs.run import read_run

    comparison = compare_runs([read_run(folder) for folder in runs], by)
    written = [str(path) for path in write_comparison(comparison, out)] if out is not None else []
    if json:
        rows = json_format.loads(comparison.table().to_json(orient="records"))  # what is not defined becomes null
        told = {"task": comparison.task, "by": comparison.by, "ranked": comparison.ranked, "runs": rows}
        told |= {"reasons": comparison.reasons, "notes": comparison.notes(), "written": written}
        print(json_format.dumps(told, indent=2, ensure_ascii=False))
        return
    print(comparison.to_markdown())
    if written:
        print("Written: " + ", ".join(written))


def paper_table(runs: Path = Path("runs")) -> None:
    """The published results beside the runs at hand, with differences of protocol marked.

    Args:
        runs: folder below which finished runs are looked for.
    """
    from endofm_lab.runs.paper_table import paper_table as table_of
    from endofm_lab.runs.run import find_runs

    found, problems = find_runs(runs)
    print(table_of(found))
    for problem in problems:
        print(f"Left out: {problem}")
