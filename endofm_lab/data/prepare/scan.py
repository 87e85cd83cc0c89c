"""List the files below a folder, check that each can be read, and keep a journal so that none is read twice."""

import hashlib
import io
import json
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from PIL import Image, UnidentifiedImageError

from endofm_lab.data.prepare.names import normal
from endofm_lab.errors import VideoError
from endofm_lab.files import sha256_of
from endofm_lab.messages import progress_bar
from endofm_lab.video.reader import open_video

IMAGE_FORMATS = {
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".png": "PNG",
    ".bmp": "BMP",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".webp": "WEBP",
}
VIDEO_FORMATS = {
    ".avi": "AVI",
    ".mp4": "MP4",
    ".m4v": "MP4",
    ".mov": "MP4",
    ".mpg": "MPEG",
    ".mpeg": "MPEG",
    ".mkv": "Matroska",
    ".webm": "Matroska",
    ".wmv": "ASF",
}
ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".7z", ".rar", ".part", ".crdownload")
_RUBBISH = ("__MACOSX/", ".DS_Store", "Thumbs.db", "desktop.ini", "._")
_SIGNATURES = [(b"\x1aE\xdf\xa3", 0, "Matroska"), (b"ftyp", 4, "MP4"), (b"moov", 4, "MP4"), (b"mdat", 4, "MP4")]
_SIGNATURES += ((b"AVI ", 8, "AVI"), (b"\0\0\1\xba", 0, "MPEG"), (b"\0\0\1\xb3", 0, "MPEG"), (b"0&\xb2u", 0, "ASF"))


Item = TypeVar("Item")


@dataclass(frozen=True)
class Problem:
    """A problem with a file on disk; ``left_out`` is true if the file is therefore not in the manifest."""

    kind: str
    path: str
    message: str
    left_out: bool


@dataclass(frozen=True)
class FileFacts:
    """Facts from reading one file; ``error`` is empty if the file is readable. A picture has one frame and no fps."""

    path: str
    size_bytes: int
    modified_ns: int
    sha256: str = ""
    format: str = ""
    width_px: int = 0
    height_px: int = 0
    n_frames: int = 0
    fps: float = 0.0
    duration_s: float = 0.0
    error: str = ""


def walk(root: Path) -> tuple[list[str], list[Problem]]:
    """All files below ``root`` as sorted relative POSIX paths, and a problem for every refused path.

    Links that lead out of the root are refused by name, links to folders inside it are not followed (their files are
    found at their real place), and names that are not Unicode cannot be written into a manifest. Files that operating
    systems create (``.DS_Store``, ``__MACOSX``) are ignored.
    """
    files, problems, real_root = [], [], root.resolve()
    for folder, folders, names in os.walk(root, onerror=lambda error: problems.append(_unreadable(error))):
        parent = Path(folder)
        for name in [*folders, *names]:
            path = parent / name
            relative = path.relative_to(root).as_posix()
            printable = relative.encode("utf-8", "backslashreplace").decode()
            if any(normal(f"/{relative}").find(f"/{rubbish}") >= 0 for rubbish in _RUBBISH):
                continue
            if path.is_symlink():
                try:
                    target = path.resolve()
                except RuntimeError:  # a link to itself
                    problems.append(Problem("broken link", printable, "leads nowhere", True))
                    continue
                if not target.is_relative_to(real_root):
                    message = "is a symbolic link out of the root: copy the file in, or start at the folder it is in"
                    problems.append(Problem("link out of the root", printable, message, True))
                    continue
                if target.is_dir():
                    problems.append(Problem("link to a folder", printable, "is not followed", False))
                    continue
                if not target.exists():
                    problems.append(Problem("broken link", printable, "leads nowhere", True))
                    continue
            if name in folders:
                continue
            if not path.is_file():  # a reader would wait for a pipe
                problems.append(Problem("not a file", printable, "is a pipe or a device", True))
                continue
            if printable != relative:
                problems.append(Problem("name is not Unicode", printable, "unpack with the right code page", True))
                continue
            files.append(relative)
        folders[:] = [name for name in folders if f"{name}/" not in _RUBBISH and not (parent / name).is_symlink()]
    return sorted(files), problems


def _unreadable(error: OSError) -> Problem:
    return Problem("folder cannot be read", str(error.filename), str(error.strerror), True)


def is_media(path: str) -> bool:
    """Whether the ending belongs to a picture or a video."""
    ending = Path(path).suffix.lower()
    return ending in IMAGE_FORMATS or ending in VIDEO_FORMATS


def is_video(path: str) -> bool:
    """Whether the ending belongs to a video file."""
    return Path(path).suffix.lower() in VIDEO_FORMATS


def read_facts(root: Path, path: str) -> FileFacts:
    """Read one picture or video far enough to know that it is readable, and compute its fingerprint.

    A picture is decoded completely. Of a video the index is read, and the first and last frame are decoded.
    """
    full = root / path
    stat = full.stat()
    facts = FileFacts(path, stat.st_size, stat.st_mtime_ns)
    if stat.st_size == 0:
        return _with(facts, error="is empty (0 bytes)")
    try:
        return _video_facts(full, facts) if is_video(path) else _image_facts(full, facts)
    except OSError as error:
        return _with(facts, error=str(error))


def _image_facts(full: Path, facts: FileFacts) -> FileFacts:
    data = full.read_bytes()
    facts = _with(facts, sha256=hashlib.sha256(data).hexdigest())
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            form, (width, height) = image.format or "", image.size
    except (OSError, UnidentifiedImageError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        return _with(facts, error=_plain(error))
    return _with(facts, format=form, width_px=width, height_px=height, n_frames=1)


def _video_facts(full: Path, facts: FileFacts) -> FileFacts:
    with full.open("rb") as file:
        head = file.read(16)
    formats = [form for signature, at, form in _SIGNATURES if head[at : at + 4] == signature]
    facts = _with(facts, sha256=sha256_of(full), format=formats[0] if formats else "")
    try:
        with open_video(full) as video:
            info = video.info
            video.read([0, info.n_frames - 1])
    except VideoError as error:
        return _with(facts, error=error.reason)
    return _with(
        facts,
        width_px=info.width_px,
        height_px=info.height_px,
        n_frames=info.n_frames,
        fps=float(info.fps),
        duration_s=info.duration_s,
    )


def _plain(error: Exception) -> str:
    """Pillow's message without the memory address that it contains."""
    return "is not a picture" if isinstance(error, UnidentifiedImageError) else str(error)


def _with(facts: FileFacts, **changes: Any) -> FileFacts:
    return FileFacts(**(asdict(facts) | changes))


def wrong_ending(facts: FileFacts) -> str:
    """A sentence if the content has another format than the ending says, otherwise an empty text."""
    expected = (IMAGE_FORMATS | VIDEO_FORMATS).get(Path(facts.path).suffix.lower(), "")
    if facts.error or not facts.format or facts.format == expected:
        return ""
    return f"is {facts.format} although its ending says {expected}; read as {facts.format}"


class Journal:
    """One JSON object per line, appended as work is done; a line cut short by a crash is ignored.

    Args:
        path: The file; its entries are in ``results`` by ``key``, and the last line with a key counts.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.results: dict[str, dict[str, Any]] = {}
        complete = True
        if path.is_file():
            text = path.read_bytes()
            complete = text.endswith(b"\n") or not text
            for line in text.splitlines():
                try:
                    entry = json.loads(line)
                    self.results[entry["key"]] = entry["value"]
                except (ValueError, KeyError, TypeError):
                    continue
        self._file = path.open("a", encoding="utf-8")
        if not complete:
            self._file.write("\n")

    def add(self, key: str, value: dict[str, Any]) -> None:
        """Record that ``key`` is done; the record is on disk when this method returns."""
        self.results[key] = value
        self._file.write(json.dumps({"key": key, "value": value}) + "\n")
        self._file.flush()

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._file.close()


def stamp(full: Path) -> str:
    """Size and time of the last change; a file is assumed unchanged while both stay the same."""
    stat = full.stat()
    return f"{stat.st_size}:{stat.st_mtime_ns}"


def in_parallel(
    work: Callable[[Item], dict[str, Any]],
    items: Iterable[tuple[str, Item]],
    journal: Journal,
    workers: int,
    description: str,
) -> Iterator[tuple[str, dict[str, Any]]]:
    """(key, result) of ``work`` for every (key, item), from the journal if it has the key, otherwise from threads.

    Decoding, hashing and encoding release Python's global lock, so that threads keep all cores busy.
    """
    todo = []
    for key, item in items:
        if key in journal.results:
            yield key, journal.results[key]
        else:
            todo.append((key, item))
    with ThreadPoolExecutor(max_workers=workers) as pool:
        futures = {pool.submit(work, item): key for key, item in todo}
        try:
            for future in progress_bar(
                as_completed(futures), shown=None, total=len(futures), desc=description, leave=False
            ):
                key = futures[future]
                journal.add(key, future.result())
                yield key, journal.results[key]
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
