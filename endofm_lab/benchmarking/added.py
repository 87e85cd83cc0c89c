"""Rows that others add to a benchmark: finished runs and other benchmarks, checked and copied into its folder."""

import hashlib
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from endofm_lab.benchmarking.plan import ADDED
from endofm_lab.benchmarking.table import OTHER, Row
from endofm_lab.errors import UserError
from endofm_lab.files import atomic_path, read_object, write_json
from endofm_lab.folders.hashes import changes, write_hashes
from endofm_lab.outside import Allowed
from endofm_lab.runs.compare import same_test_items
from endofm_lab.runs.run import PREDICTIONS, REPORT, Run, read_run

RESULT = "benchmark.json"
_ABOUT = "added.json"
_COSTS = ("parameters", "trained", "seconds", "features_s", "peak_mb", "interrupted")


def add_folders(
    folders: Sequence[str | Path], out: Path, tests: Mapping[str, Mapping[str, Run]], allow: Allowed = ()
) -> None:
    """Check finished runs and copy their results into a benchmark.

    Args:
        folders: of finished runs, or of other benchmarks, of which all own runs are taken.
        out: folder of the benchmark.
        tests: task -> budget -> a run of the benchmark.
        allow: classes from outside the library that the runs name.

    Raises:
        UserError: a folder is none of these, is not whole, or was tested on other rows; nothing is copied then.
    """
    entries = [entry for folder in folders for entry in _entries(Path(folder))]
    checked = []
    for folder, about in entries:
        run = read_run(folder, allow)
        task = _task_of(run, folder, {name: next(iter(of_task.values())) for name, of_task in tests.items()})
        checked.append((folder, {"task": task, "encoder": run.start, "method": run.method, "facts": {}, **about}))
    for folder, about in checked:
        digest = hashlib.sha256((folder / REPORT).read_bytes()).hexdigest()[:12]
        with atomic_path(out / ADDED / digest) as copy:
            copy.mkdir()
            for name in (REPORT, PREDICTIONS):
                shutil.copyfile(folder / name, copy / name)
            write_json(copy / _ABOUT, about)
            write_hashes(copy)


def added_rows(out: Path, tests: Mapping[str, Mapping[str, Run]], allow: Allowed = ()) -> list[Row]:
    """The rows that were added to a benchmark, each with the budget whose training rows it has."""
    rows = []
    for folder in sorted((out / ADDED).iterdir()) if (out / ADDED).is_dir() else []:
        if not (folder / _ABOUT).is_file():
            continue
        about = read_object(folder / _ABOUT, {"task": str, "encoder": str}, "Delete this folder and add it again.")
        run = read_run(folder, allow)
        training = {budget: first.protocol.get("train") for budget, first in tests[about["task"]].items()}
        budget = next((name for name, print_ in training.items() if print_ == run.protocol.get("train", "")), OTHER)
        texts = (about["encoder"], about["method"], about["source"])
        rows.append(Row(about["task"], budget, *texts, run, about["facts"], {}))
    return rows


def _entries(folder: Path) -> list[tuple[Path, dict[str, Any]]]:
    """The runs in a folder, each with what its benchmark says about it."""
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; give the folder of a finished run or of a benchmark.")
    if (folder / RESULT).is_file():
        _refuse_changes(folder)
        result = read_object(folder / RESULT, {"rows": list[dict[str, Any]]}, "Run the benchmark again.")
        entries = []
        for row in result["rows"]:
            if not row.get("source") and isinstance(row.get("folder"), str):
                facts = {name: row[name] for name in _COSTS if name in row}
                path = folder / row["folder"]
                _refuse_changes(path)
                about = {"encoder": row["encoder"], "method": row["method"], "facts": facts, "source": folder.name}
                entries.append((path, about))
        return entries
    if not (folder / REPORT).is_file():
        raise UserError(f"{folder} holds neither a finished run nor a finished benchmark; give such a folder.")
    _refuse_changes(folder)
    return [(folder, {"source": folder.name})]


def _refuse_changes(folder: Path) -> None:
    """Refuse a folder whose files are not those that its job wrote."""
    differing = changes(folder) if folder.is_dir() else None
    if differing is None:
        raise UserError(f"{folder} has no hashes, so that its results cannot be checked. Copy the whole folder again.")
    if names := (*differing.changed, *differing.missing):
        raise UserError(f"{folder} is not whole: {names[0]} was changed or is missing. Copy the whole folder again.")


def _task_of(run: Run, folder: Path, tests: Mapping[str, Run]) -> str:
    """The task of the benchmark whose test rows a run was tested on."""
    same_kind = {name: first for name, first in tests.items() if first.task == run.task}
    if not same_kind:
        kinds = ", ".join(dict.fromkeys(first.task for first in tests.values()))
        raise UserError(f"{folder}: the task of the run is {run.task}, but this benchmark has {kinds}. Leave it out.")
    same_rows = [n for n, first in same_kind.items() if first.test["fingerprint"] == run.test["fingerprint"]]
    for name in same_rows:
        if same_test_items(same_kind[name], run):
            return name
    remedy = "Test its model with `endofm-lab evaluate` on the manifest of the benchmark's task."
    if same_rows:
        raise UserError(f"{folder}: the run has other truths or units than {same_rows[0]} on the same rows. {remedy}")
    raise UserError(
        f"{folder}: the run was tested on other rows ({run.units_in_words}, split {run.test['split']}) than "
        f"{', '.join(same_kind)} of this benchmark. {remedy}"
    )
