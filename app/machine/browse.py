"""The files and folders that the app shows to choose from: those below a few allowed folders only."""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from endofm_lab.errors import UserError
from endofm_lab.files import cache_folder

FOLDERS = "ENDOFM_LAB_FOLDERS"  # further allowed folders, separated as in PATH
MOST = 5000  # entries of a folder that are read


@dataclass(frozen=True)
class Entry:
    """A file or folder in a folder.

    Attributes:
        path: where it is.
        is_folder: whether it is a folder.
        size_mb: size of a file; 0 for a folder.
        time_s: when it was changed, in seconds since 1970.
    """

    path: Path
    is_folder: bool
    size_mb: float
    time_s: float


def roots() -> list[Path]:
    """The allowed folders: those named in ``ENDOFM_LAB_FOLDERS``, the current one, and those of the app's results."""
    listed = [Path(name).expanduser() for name in os.environ.get(FOLDERS, "").split(os.pathsep) if name.strip()]
    results = [cache_folder(name) for name in ("uploads", "runs", "stores", "samples")]
    return list(dict.fromkeys(path.resolve() for path in (*listed, Path.cwd(), *results) if path.is_dir()))


def allowed(path: Path) -> Path:
    """The path without symbolic links and "..".

    Raises:
        UserError: the path is in none of the allowed folders, or does not exist.
    """
    try:
        resolved = path.resolve(strict=True)
    except (OSError, ValueError, RuntimeError) as error:  # gone, not permitted, or a link in a circle
        raise UserError(f"{path.name or path} can no longer be opened. Choose another entry.") from error
    if not any(resolved.is_relative_to(root) for root in roots()):
        raise UserError(
            f"{path} is in none of the folders that can be shown here. Type its path, or name its folder in {FOLDERS} "
            "before the app is started."
        )
    return resolved


def entries(folder: Path, endings: tuple[str, ...] = ()) -> list[Entry]:
    """Folders, and files with one of the endings, in natural order, folders first.

    Hidden entries are left out, and so are symbolic links that lead out of the allowed folders.

    Raises:
        UserError: the folder is not allowed or cannot be read.
    """
    folder = allowed(folder)
    shown = []
    try:
        with os.scandir(folder) as listing:
            for number, item in enumerate(listing):
                if number == MOST:
                    break
                if (entry := _entry(item, endings)) is not None:
                    shown.append(entry)
    except OSError as error:
        raise UserError(f"{folder} cannot be read: {error.strerror}. Choose another folder.") from error
    return sorted(shown, key=lambda entry: (not entry.is_folder, _natural(entry.path.name)))


def _entry(item: os.DirEntry, endings: tuple[str, ...]) -> Entry | None:
    if item.name.startswith("."):
        return None
    path = Path(item.path)
    try:
        if item.is_symlink():
            allowed(path)
        facts, is_folder = item.stat(), item.is_dir()
    except (OSError, UserError):
        return None
    if not is_folder and not item.name.lower().endswith(endings or ("",)):
        return None
    return Entry(path, is_folder, 0.0 if is_folder else facts.st_size / 1e6, facts.st_mtime)


def _natural(name: str) -> list[tuple[int, str]]:
    """Sorts "frame 10" behind "frame 9"."""
    return [(int(part), "") if part.isdecimal() else (-1, part.lower()) for part in re.split(r"(\d+)", name)]
