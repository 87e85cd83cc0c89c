"""Lessons that are executed in copies, each in a kernel and a folder of its own, and kept for the next time."""

import hashlib
import json
import os
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from endofm_lab import __version__
from endofm_lab.errors import UserError, shortened
from endofm_lab.files import atomic_path
from endofm_lab.folders.provenance import provenance

EXECUTED = "executed"  # folder of the executed lessons in a site
_CELL_LIMIT_S = 900


def lessons_in(folder: Path, only: Sequence[str] = ()) -> list[Path]:
    """The lessons in a folder, in the order of their names.

    Args:
        folder: holds the notebooks.
        only: the numbers ("01") or names of the lessons; by default all.

    Raises:
        UserError: there is no lesson with such a number, or none at all.
    """
    lessons = sorted(folder.glob("*.ipynb"))
    if not lessons:
        raise UserError(f"{folder} contains no lessons (files ending in .ipynb).")
    for name in only:
        if not any(_is(lesson, name) for lesson in lessons):
            numbers = ", ".join(lesson.stem.split("_")[0] for lesson in lessons)
            raise UserError(f"There is no lesson {name!r}. The lessons are {numbers}.")
    return [lesson for lesson in lessons if not only or any(_is(lesson, name) for name in only)]


def _is(lesson: Path, name: str) -> bool:
    return lesson.stem == name or lesson.stem.split("_")[0] == name.zfill(2)


def executed(lesson: Path, site: Path) -> Any | None:
    """The executed lesson that a site keeps, if neither the lesson nor the library changed since; otherwise None.

    Raises:
        UserError: the kept lesson is damaged.
    """
    import nbformat  # with it nbclient: together six seconds

    path = site / EXECUTED / lesson.name
    if not path.exists():
        return None
    try:
        notebook = nbformat.read(path, as_version=4)
    except ValueError as error:
        raise UserError(f"{path} is damaged. Delete this file; the lesson is then executed again.") from error
    return notebook if notebook.metadata.get("endofm_lab") == _state(lesson) else None


def execute(lesson: Path, site: Path) -> Any:
    """Execute a lesson from a clean kernel and keep the result in a site; the lesson itself stays as it is.

    Figures are kept as data and not as pages with scripts; addresses of folders of this machine are shortened.

    Raises:
        UserError: a cell fails; the message names the lesson and the cell, and nothing is kept.
    """
    import nbformat
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

    notebook, state = nbformat.read(lesson, as_version=4), _state(lesson)
    places = [place for place, cell in enumerate(notebook.cells) if cell.cell_type == "code"]
    reached = [0]
    with TemporaryDirectory(prefix="endofm_lab_lesson_") as folder:
        client = NotebookClient(
            notebook,
            timeout=_CELL_LIMIT_S,
            coalesce_streams=True,
            resources={"metadata": {"path": folder}},
            on_cell_execute=lambda cell, cell_index: reached.append(cell_index),
        )
        try:
            client.execute(env={**os.environ, "PLOTLY_RENDERER": "plotly_mimetype"}, stderr=subprocess.DEVNULL)
        except Exception as error:
            if getattr(client, "_async_cleanup_kernel_future", None) is not None:  # nbclient ended the kernel at Ctrl-C
                raise KeyboardInterrupt from error
            if not isinstance(error, CellExecutionError | CellTimeoutError | DeadKernelError):
                raise
            number = places.index(reached[-1]) + 1 if reached[-1] in places else 1
            raise UserError(
                f"Lesson {lesson.stem} stopped in code cell {number} of {len(places)}: {_reason(error)} "
                "It has no page; the finished lessons are kept. Run the lesson in JupyterLab to see why."
            ) from error
        notebook.metadata.pop("widgets", None)  # the state of widgets: megabytes that only a kernel can use
        notebook.metadata["endofm_lab"] = state
        text = _without_folders(nbformat.writes(notebook), Path(folder))
    with atomic_path(site / EXECUTED / lesson.name) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return nbformat.reads(text, as_version=4)


def _state(lesson: Path) -> dict[str, str]:
    """What the outputs of a lesson follow from: its source, and the version and commit of the library."""
    commit = provenance()["git"] or ""
    return {"source": hashlib.sha256(lesson.read_bytes()).hexdigest(), "library": f"{__version__} {commit}".strip()}


def _reason(error: Exception) -> str:
    """Name and message of the error in a cell, without the traceback and its colours."""
    name = getattr(error, "ename", None)  # of nbclient's CellExecutionError
    if name is None:
        return (
            "It took too long." if isinstance(error, TimeoutError) else "Its kernel died, perhaps for lack of memory."
        )
    text = re.sub(r"\x1b\[[0-9;]*m", "", f"{name}: {getattr(error, 'evalue', '')}".rstrip(": "))
    return shortened(text, 150).rstrip(".") + "."


def _without_folders(text: str, folder: Path) -> str:
    """A notebook as text in which the folder of the run is "." and the user's home is "~"."""
    for path, short in ((folder.resolve(), "."), (folder, "."), (Path.home(), "~")):
        if len(path.parts) > 1:
            text = re.sub(re.escape(json.dumps(str(path))[1:-1]) + r"(?![\w-])", short, text)
    return text
