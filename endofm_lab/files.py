"""Files that are either whole or absent, their fingerprints, and tables that spreadsheets open."""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

# A spreadsheet takes text that begins like this for a formula; apostrophes before it are our own marks.
_FORMULA = re.compile(r"'*[=+\-@\t\r]")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


@contextmanager
def atomic_path(target: str | Path) -> Iterator[Path]:
    """A temporary path beside ``target`` that becomes ``target`` when the block ends well, and vanishes otherwise.

    The block may create a file or a folder there. Ending (``.mp4``) and folder are kept, so that writers which look at
    the name work and the rename stays on one file system. An existing file is replaced; an existing folder too.
    """
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.stem}.{os.getpid()}.part{target.suffix}")
    _remove(temporary)
    try:
        yield temporary
        if temporary.is_dir() and target.is_dir():
            shutil.rmtree(target)
        temporary.replace(target)
    finally:
        _remove(temporary)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_json(path: str | Path, value: Any) -> None:
    """Write ``value`` as indented JSON, atomically. NaN and infinity are refused: they are not JSON."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")


def read_json(path: str | Path) -> Any:
    """The value stored in a JSON file."""
    return json.loads(Path(path).read_text(encoding="utf-8"))


def sha256_of(path: str | Path) -> str:
    """The SHA-256 of a file's bytes as 64 hexadecimal digits, read in pieces of 1 MB."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def cache_folder(*names: str) -> Path:
    """A folder for things that can be made again (samples, predictions of the app), created if absent.

    It lies in ``ENDOFM_LAB_CACHE`` if that is set, else in ``.cache/endofm_lab`` of the user's home.
    """
    root = Path(os.environ.get("ENDOFM_LAB_CACHE") or Path.home() / ".cache" / "endofm_lab")
    folder = root.joinpath(*names)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def formulas_as_text(table: "pd.DataFrame") -> "pd.DataFrame":
    """A table for a CSV file that spreadsheets open: text that begins like a formula has an apostrophe before it.

    Spreadsheets run cells that begin with ``=``, ``+``, ``-``, ``@``, a tab or a carriage return; names of files,
    classes and runs can. Column names are treated alike; numbers stay numbers. `text_from_cells` takes the
    apostrophes back.
    """
    marked = _mapped(table, _marked)
    marked.columns = [_marked(name) for name in table.columns]
    return marked


def text_from_cells(table: "pd.DataFrame") -> "pd.DataFrame":
    """The cells as they were before `formulas_as_text`."""
    return _mapped(table, lambda cell: cell[1:] if isinstance(cell, str) and _marked(cell[1:]) == cell else cell)


def _mapped(table: "pd.DataFrame", change: Callable[[Any], Any]) -> "pd.DataFrame":
    """A copy with a function applied to the cells of its columns of text."""
    return table.apply(lambda column: column.map(change) if column.dtype.kind == "O" else column)


def _marked(cell: Any) -> Any:
    if isinstance(cell, str) and _FORMULA.match(cell) and not _NUMBER.fullmatch(cell):
        return f"'{cell}"
    return cell
