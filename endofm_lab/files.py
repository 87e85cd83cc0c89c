"""Files that are either complete or absent, leftovers of killed writes, fingerprints, and tables for spreadsheets."""

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

# Spreadsheets treat text that begins like this as a formula; the apostrophes before it are marks of this library.
_FORMULA = re.compile(r"'*[=+\-@\t\r]")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")

SAMPLE_BYTES = 64 * 1024  # read at the beginning, in the middle and at the end of a file for its fingerprint
SAMPLED_FILES = 256  # files of a folder, evenly spaced in the order of their names
# The errors that readers of JSON, tables, arrays and archives raise for damaged or foreign content.
_DAMAGE: tuple[type[Exception], ...] = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError)
_DAMAGE += (RecursionError, MemoryError, OSError, EOFError, BadZipFile, zlib.error, struct.error, SyntaxError)
_DAMAGE += (NotImplementedError,)
_HOST = hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]
LEFTOVER = re.compile(r"\..+\.([0-9a-f]{8})-(\d+)-[0-9a-f]{8}\.part(\..*)?")  # host, process, random number
_UMASK = os.umask(0)
os.umask(_UMASK)


@contextmanager
def atomic_path(target: str | Path) -> Iterator[Path]:
    """A temporary path beside ``target`` that becomes ``target`` when the block succeeds, and is removed otherwise.

    The block may create a file or a folder there. The path has the suffix and the folder of ``target``, because some
    writers choose the format by the suffix and the rename must stay on one file system. An existing file or folder is
    replaced. No two writers share a temporary path. The content is flushed to disk before it is renamed, and its
    permissions follow the process's umask (safetensors would give them to the owner alone).

    Raises:
        OSError: the error of the block; its file name is ``target`` if it was missing or the temporary path.
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
    """Give a finished file, or all files in a folder, the usual permissions, and wait until they are on disk."""
    for file in path.rglob("*") if path.is_dir() else [path]:
        if not file.is_file():
            continue
        mode = file.stat().st_mode
        file.chmod(mode | (0o666 & ~_UMASK))
        with file.open("r+b") as stream:  # Windows flushes only files that are open for writing
            os.fsync(stream.fileno())


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def sweep(folder: Path) -> None:
    """Remove the leftovers of killed writers on this machine from a folder and below; files of live writers stay."""
    for path in list(folder.rglob(".*.part*")):
        leftover = LEFTOVER.fullmatch(path.name)
        if leftover and leftover[1] == _HOST and not _writes(int(leftover[2]), path):
            with suppress(PermissionError):  # the leftover of another user
                _remove(path)


def _writes(pid: int, path: Path) -> bool:
    """Whether the process that may have created a temporary file or folder is alive."""
    try:
        process = psutil.Process(pid)
        alive = process.is_running() and process.status() != psutil.STATUS_ZOMBIE
        return alive and process.create_time() <= path.stat().st_mtime + 1
    except (psutil.NoSuchProcess, FileNotFoundError):
        return False
    except psutil.AccessDenied:
        return True


def write_json(path: str | Path, value: Any) -> None:
    """Write ``value`` as indented JSON, atomically. NaN and infinity are refused because they are not valid JSON."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")


def read_json(path: str | Path) -> Any:
    """The value stored in a JSON file.

    Raises:
        UserError: the file is damaged, is a pipe or a device, has an entry twice, or holds NaN or infinity, which are
            not valid JSON.
        OSError: there is no such file, or it cannot be read.
    """
    try:
        return json.loads(
            read_text(path), parse_constant=_refuse_constant, parse_float=_finite, object_pairs_hook=_each_once
        )
    except (ValueError, RecursionError) as error:  # malformed, not text, or nested too deeply
        raise UserError(f"{path} is not readable JSON ({error}). Write the file again, or copy it again.") from error


def read_text(path: str | Path) -> str:
    """The text of a file in UTF-8.

    Raises:
        UserError: it is a pipe or a device, which may never end.
        OSError: there is no such file, or it cannot be read.
        UnicodeDecodeError: it is not text.
    """
    path = Path(path)
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise UserError(f"{path} is a pipe or a device; give a file.")
    return path.read_text(encoding="utf-8")


def read_object(path: str | Path, keys: Mapping[str, Any], remedy: str) -> dict[str, Any]:
    """The object in a JSON file, with its entries checked; further entries are allowed.

    Args:
        path: the file.
        keys: name of every required entry -> its type, as `fits` takes it.
        remedy: what to do if the file was altered, as a sentence.

    Raises:
        UserError: the file is damaged, or an entry is missing or of another type; the message names it.
        OSError: there is no such file, or it cannot be read.
    """
    try:
        value = read_json(path)
    except UserError as error:
        raise UserError(f"{path} is damaged. {remedy}") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} does not hold a JSON object. {remedy}")
    for name, kind in keys.items():
        if name not in value:
            raise UserError(f"{path} lacks {name!r}. {remedy}")
        if not fits(value[name], kind):
            raise UserError(f"{path}: {name} has the wrong value {shortened(repr(value[name]), 60)}. {remedy}")
    return value


@contextmanager
def reading(path: str | Path, remedy: str, error: type[UserError] = UserError) -> Iterator[None]:
    """Turn the errors that a reader raises for a damaged or altered file into a message with the file and the remedy.

    Args:
        path: the file or folder.
        remedy: what to do, as a sentence.
        error: the class of the error to raise.
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
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is Any:
        return True
    if kind in (int, float):
        return isinstance(value, int if kind is int else int | float) and type(value) is not bool and abs(value) < 1e300
    if origin in (Union, UnionType):
        return any(fits(value, item) for item in arguments)
    if origin is Literal:
        return isinstance(value, str | int | None) and value in arguments
    if origin is list or (origin is tuple and arguments[-1] is ...):
        return isinstance(value, list) and all(fits(item, arguments[0]) for item in value)
    if origin is tuple:
        return isinstance(value, list) and len(value) == len(arguments) and all(map(fits, value, arguments))
    if origin is dict:
        return isinstance(value, dict) and all(fits(item, arguments[1]) for item in value.values())
    if is_typeddict(kind):
        entries = get_type_hints(kind)
        return (
            isinstance(value, dict)
            and kind.__required_keys__ <= value.keys() <= entries.keys()
            and all(fits(item, entries[name]) for name, item in value.items())
        )
    return isinstance(value, kind)


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"it holds {name}")


def _finite(text: str) -> float:
    """The number that a text stands for; 1e999 is too large for one."""
    return number if (number := float(text)) - number == 0 else _refuse_constant(text)


def _each_once(entries: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of which no entry stands twice; readers disagree on which one counts."""
    value = dict(entries)
    if len(value) < len(entries):
        names = [name for name, _ in entries]
        raise ValueError(f"it holds {next(name for name in names if names.count(name) > 1)[:60]!r} twice")
    return value


def write_parquet(path: str | Path, table: "pd.DataFrame") -> None:
    """Write a table atomically, with a checksum of every page, which `read_parquet` verifies."""
    with atomic_path(path) as temporary:
        table.to_parquet(temporary, index=False, write_page_checksum=True)


def read_parquet(path: str | Path) -> "pd.DataFrame":
    """The table in a Parquet file.

    Raises:
        ValueError: the file is damaged, or not a Parquet table.
    """
    import pandas as pd

    try:
        return pd.read_parquet(path, page_checksum_verification=True)
    except FileNotFoundError:
        raise
    except Exception as error:  # a damaged file can break the reader anywhere
        message = str(error).strip().splitlines() or [type(error).__name__]
        raise ValueError(f"{Path(path).name} is damaged or not a Parquet table ({message[0][:200]})") from error


def sha256_of(path: str | Path) -> str:
    """The SHA-256 of a file's bytes as 64 hexadecimal digits; the file is read in blocks of 1 MB."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def fingerprint_of(path: str | Path) -> str:
    """32 hexadecimal digits that change with a file or a folder of files, computed without reading all of it.

    For a file, they depend on its size, the time of its last change, and `SAMPLE_BYTES` from its beginning, middle and
    end. For a folder, they depend on the names, sizes and times of all files in it and below, and on the samples of at
    most `SAMPLED_FILES` of them.

    Raises:
        FileNotFoundError: the path does not exist.
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
    with file.open("rb") as stream:
        for start in sorted({0, max(0, (size - SAMPLE_BYTES) // 2), max(0, size - SAMPLE_BYTES)}):
            stream.seek(start)
            digest.update(stream.read(SAMPLE_BYTES))


def cache_folder(*names: str) -> Path:
    """A folder for files that can be computed again (samples, predictions of the app), created if absent.

    It is in ``ENDOFM_LAB_CACHE`` if that is set, otherwise in ``.cache/endofm_lab`` in the user's home.
    """
    root = Path(os.environ.get("ENDOFM_LAB_CACHE") or Path.home() / ".cache" / "endofm_lab")
    folder = root.joinpath(*names)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def formulas_as_text(table: "pd.DataFrame") -> "pd.DataFrame":
    """A table for a CSV file that spreadsheets open: an apostrophe precedes text that begins like a formula.

    Spreadsheets execute cells that begin with ``=``, ``+``, ``-``, ``@``, a tab or a carriage return, and names of
    files, classes and runs can begin so. Column names are treated alike; numbers stay numbers. `text_from_cells`
    removes the apostrophes.
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
    """A folder that comes with the project: inside the package in a wheel, or beside it in the source tree.

    Raises:
        UserError: the folder is in neither place.
    """
    package = Path(__file__).resolve().parent
    for folder in (package / name, package.parent / name):
        if folder.is_dir():
            return folder
    raise UserError(f"The folder {name}/ is missing from this installation of endofm-lab. Install endofm-lab again.")
