"""Files that are whole or absent, what a killed write leaves, fingerprints, and tables that spreadsheets open."""

import hashlib
import json
import os
import re
import secrets
import shutil
import socket
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin, get_type_hints, is_typeddict
from zipfile import BadZipFile

import psutil

from endofm_lab.errors import UserError, shortened

if TYPE_CHECKING:
    import pandas as pd

# A spreadsheet takes text that begins like this for a formula; apostrophes before it are our own marks.
_FORMULA = re.compile(r"'*[=+\-@\t\r]")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")

SAMPLE_BYTES = 64 * 1024  # read at the beginning, in the middle and at the end of a file for its fingerprint
SAMPLED_FILES = 256  # of a folder, evenly spaced in the order of their names
# What readers of JSON, tables, arrays and archives raise for content that they did not write.
_DAMAGE: tuple[type[Exception], ...] = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError)
_DAMAGE += (RecursionError, MemoryError, OSError, EOFError, BadZipFile, zlib.error, struct.error, SyntaxError)
_DAMAGE += (NotImplementedError,)
_HOST = hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]
LEFTOVER = re.compile(r"\..+\.([0-9a-f]{8})-(\d+)-[0-9a-f]{8}\.part(\..*)?")  # host, process, a number per write
_UMASK = os.umask(0)
os.umask(_UMASK)


@contextmanager
def atomic_path(target: str | Path) -> Iterator[Path]:
    """A temporary path beside ``target`` that becomes ``target`` when the block ends well, and vanishes otherwise.

    The block may create a file or a folder there. Ending (``.mp4``) and folder are kept, so that writers which look at
    the name work and the rename stays on one file system. An existing file is replaced; an existing folder too. No two
    writers share a temporary path. The content is on disk before it gets its name, and may be read by whom the
    process's umask allows (safetensors would write for the owner alone).

    Raises:
        OSError: as the block raises it, with ``target`` as its file name where it names none or the temporary path.
    """
    target = Path(target)
    writer = f"{_HOST}-{os.getpid()}-{secrets.token_hex(4)}"
    temporary = target.with_name(f".{target.stem}.{writer}.part{target.suffix}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        _settle(temporary)
        if temporary.is_dir() and target.is_dir():
            shutil.rmtree(target)
        temporary.replace(target)
    except OSError as error:
        if error.errno is not None and (error.filename is None or str(error.filename).startswith(str(temporary))):
            error.filename, error.filename2 = str(target), None
        raise
    finally:
        _remove(temporary)


def _settle(path: Path) -> None:
    """Give a finished file, or all those of a folder, the usual permissions, and wait until they are on disk."""
    for file in path.rglob("*") if path.is_dir() else [path]:
        if not file.is_file():
            continue
        mode = file.stat().st_mode
        file.chmod(mode | (0o666 & ~_UMASK))
        with file.open("r+b") as opened:  # Windows flushes only what may be written
            os.fsync(opened.fileno())


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def sweep(folder: Path) -> None:
    """Remove what killed writers of this machine left in a folder and below; a living writer's files stay."""
    for path in list(folder.rglob(".*.part*")):
        leftover = LEFTOVER.fullmatch(path.name)
        if leftover and leftover[1] == _HOST and not _writes(int(leftover[2]), path):
            with suppress(PermissionError):  # another user's
                _remove(path)


def _writes(pid: int, path: Path) -> bool:
    """Whether a process that can have begun a temporary file or folder is alive."""
    try:
        process = psutil.Process(pid)
        alive = process.is_running() and process.status() != psutil.STATUS_ZOMBIE
        return alive and process.create_time() <= path.stat().st_mtime + 1
    except (psutil.NoSuchProcess, FileNotFoundError):
        return False
    except psutil.AccessDenied:
        return True


def write_json(path: str | Path, value: Any) -> None:
    """Write ``value`` as indented JSON, atomically. NaN and infinity are refused: they are not JSON."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")


def read_json(path: str | Path) -> Any:
    """The value stored in a JSON file.

    Raises:
        UserError: the file is damaged, or holds NaN or infinity, which are not JSON.
        OSError: there is no such file, or it cannot be read.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:  # malformed, no text, or nested without end
        raise UserError(f"{path} is not JSON that can be read ({error}); write it anew, or copy it again.") from error


def read_object(path: str | Path, keys: Mapping[str, Any], remedy: str) -> dict[str, Any]:
    """The object in a JSON file, whose entries are what is expected; further entries may stand beside them.

    Args:
        path: the file.
        keys: name of every entry that must be there -> its type, as `fits` takes it.
        remedy: what to do about a file that was altered, as a sentence.

    Raises:
        UserError: the file is damaged, or an entry is missing or of another type; the message names it.
        OSError: there is no such file, or it cannot be read.
    """
    try:
        value = read_json(path)
    except UserError as error:
        raise UserError(f"{path} is damaged. {remedy}") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} holds no object. {remedy}")
    for name, kind in keys.items():
        if name not in value:
            raise UserError(f"{path} lacks {name!r}. {remedy}")
        if not fits(value[name], kind):
            raise UserError(f"{path}: {name} is {shortened(repr(value[name]), 60)}, which it cannot be. {remedy}")
    return value


@contextmanager
def reading(path: str | Path, remedy: str, error: type[UserError] = UserError) -> Iterator[None]:
    """Whatever a damaged or altered file makes its reader raise becomes one sentence with the file and the remedy.

    Args:
        path: the file or folder.
        remedy: what to do, as a sentence.
        error: the kind of error to raise.
    """
    try:
        yield
    except UserError:
        raise
    except FileNotFoundError as missing:
        raise error(f"{missing.filename or path} is missing. {remedy}") from missing
    except _DAMAGE as damage:
        if isinstance(damage, OSError) and damage.errno is not None:
            raise
        reason = shortened(f"{type(damage).__name__}: {damage}", 150)
        raise error(f"{path} is damaged or was altered ({reason}). {remedy}") from damage


def fits(value: Any, kind: Any) -> bool:
    """Whether a value read from JSON is of a type, given as an annotation; numbers must be finite.

    >>> fits({"a": [1, 2.5]}, dict[str, list[float]]), fits("abc", tuple[str, ...]), fits(True, int)
    (True, False, False)
    """
    origin, inside = get_origin(kind), get_args(kind)
    if kind is Any:
        return True
    if kind in (int, float):
        return isinstance(value, int if kind is int else int | float) and type(value) is not bool and abs(value) < 1e300
    if origin in (Union, UnionType):
        return any(fits(value, item) for item in inside)
    if origin is Literal:
        return isinstance(value, str | int | None) and value in inside
    if origin is list or (origin is tuple and inside[-1] is ...):
        return isinstance(value, list) and all(fits(item, inside[0]) for item in value)
    if origin is tuple:
        return isinstance(value, list) and len(value) == len(inside) and all(map(fits, value, inside))
    if origin is dict:
        return isinstance(value, dict) and all(fits(item, inside[1]) for item in value.values())
    if is_typeddict(kind):
        known = get_type_hints(kind)
        return (
            isinstance(value, dict)
            and kind.__required_keys__ <= value.keys() <= known.keys()
            and all(fits(item, known[name]) for name, item in value.items())
        )
    return isinstance(value, kind)


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"it holds {name}")


def write_parquet(path: str | Path, table: "pd.DataFrame") -> None:
    """Write a table atomically, with a checksum of every page, which `read_parquet` verifies."""
    with atomic_path(path) as temporary:
        table.to_parquet(temporary, index=False, write_page_checksum=True)


def read_parquet(path: str | Path) -> "pd.DataFrame":
    """The table in a Parquet file.

    Raises:
        ValueError: it is damaged, or no Parquet table.
    """
    import pandas as pd

    try:
        return pd.read_parquet(path, page_checksum_verification=True)
    except FileNotFoundError:
        raise
    except Exception as error:  # a damaged file can break the reader anywhere
        said = str(error).strip().splitlines() or [type(error).__name__]
        raise ValueError(f"{Path(path).name} is damaged or no Parquet table ({said[0][:200]})") from error


def sha256_of(path: str | Path) -> str:
    """The SHA-256 of a file's bytes as 64 hexadecimal digits, read in pieces of 1 MB."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def fingerprint_of(path: str | Path) -> str:
    """32 hexadecimal digits that change when a file or a folder of files does, without reading all of it.

    Of a file: its size, the time of its last change, and `SAMPLE_BYTES` from its beginning, middle and end. Of a
    folder: names, sizes and times of all files in it and below, and the samples of at most `SAMPLED_FILES` of them.

    Raises:
        FileNotFoundError: there is nothing at the path.
    """
    path = Path(path)
    digest = hashlib.sha256()
    if not path.is_dir():
        _add_facts(digest, path, "")
        _add_samples(digest, path)
        return digest.hexdigest()[:32]
    files = sorted(file for file in path.rglob("*") if file.is_file())
    for file in files:
        _add_facts(digest, file, file.relative_to(path).as_posix())
    for file in files[:: max(1, -(-len(files) // SAMPLED_FILES))]:
        _add_samples(digest, file)
    return digest.hexdigest()[:32]


def _add_facts(digest: "hashlib._Hash", file: Path, name: str) -> None:
    stat = file.stat()
    digest.update(f"{name}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())


def _add_samples(digest: "hashlib._Hash", file: Path) -> None:
    size = file.stat().st_size
    with file.open("rb") as opened:
        for start in sorted({0, max(0, (size - SAMPLE_BYTES) // 2), max(0, size - SAMPLE_BYTES)}):
            opened.seek(start)
            digest.update(opened.read(SAMPLE_BYTES))


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


def bundled(name: str) -> Path:
    """A folder that comes with the project: inside the package as a wheel has it, or beside it as the source tree has.

    Raises:
        UserError: it is in neither place.
    """
    package = Path(__file__).resolve().parent
    for folder in (package / name, package.parent / name):
        if folder.is_dir():
            return folder
    raise UserError(f"The folder {name}/ is missing from this installation of endofm-lab: install it again.")
