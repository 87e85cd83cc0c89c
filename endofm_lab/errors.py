"""Errors that a user can correct. Any other error is a defect in the library."""

import errno
from pathlib import Path

LONGEST_MESSAGE = 500  # letters


def shortened(text: str, letters: int = LONGEST_MESSAGE) -> str:
    r"""A text on one line; the middle is left out if it is longer than ``letters``.

    >>> shortened("one line\nof many " + "x" * 100 + " ends here.", 30)
    'one line of m ... x ends here.'
    """
    text = " ".join(text.split())
    if len(text) <= letters:
        return text
    n_end = (letters - 5) // 2
    return f"{text[: letters - 5 - n_end].rstrip()} ... {text[-n_end:].lstrip()}"


class UserError(ValueError):
    """An error that the caller can correct; one or two sentences that name the value, the limit and the remedy.

    The command line prints the message and exits with 2; the app shows it in a red box. It is one line of at most
    `LONGEST_MESSAGE` letters: the middle of a longer message is cut, so that its beginning and the remedy at its end
    stay.
    """

    def __str__(self) -> str:
        return shortened(super().__str__())


class VideoError(UserError):
    """A video that cannot be read, with its ``path`` and the ``reason``."""

    def __init__(self, path: str | Path, reason: str) -> None:
        self.path = str(path)
        self.reason = reason
        super().__init__(f"{self.path}: {reason}")

    def __reduce__(self) -> tuple[type, tuple[str, str]]:
        """Pickle both arguments, so that a worker process can return the error (the default would pass only one)."""
        return type(self), (self.path, self.reason)


class CheckpointError(UserError):
    """Weights that cannot be read, are unsafe, or do not fit the model."""


class ManifestError(UserError):
    """A manifest that is malformed or names files that do not exist."""


_REMEDIES = {
    errno.ENOSPC: "The disk is full. Free some space or choose a folder on another disk, then run the same again.",
    errno.EDQUOT: "Your share of the disk is used up. Free some space or choose another disk, then run the same again.",
    errno.EFBIG: "The file is larger than this disk or your limit (`ulimit -f`) allows. Choose another disk.",
    errno.EROFS: "This place is read-only. Choose a folder that you may write to.",
    errno.EACCES: "Permission is denied. Ask the owner for permission, or choose another place.",
    errno.EPERM: "Permission is denied. Ask the owner for permission, or choose another place.",
    errno.ENOENT: "There is no such file or folder. Check the path.",
    errno.ENOTDIR: "A part of this path is a file, not a folder. Check the path, or choose another one.",
    errno.EISDIR: "This is a folder, but a file is needed. Name a file.",
    errno.EEXIST: "Something with this name exists already. Choose another name.",
    errno.ENOTEMPTY: "This folder is not empty. Choose another one.",
    errno.ENAMETOOLONG: "The name is too long for this disk. Choose a shorter one.",
    errno.ELOOP: "This link leads back to itself. Name the file or folder itself.",
    errno.EMFILE: "Too many files are open. Allow more with `ulimit -n 4096`, then run the same again.",
    errno.ENFILE: "Too many files are open on this machine. Close other programs, then run the same again.",
    errno.EIO: "The disk reports an error. Check the disk or the network drive, then run the same again.",
    errno.ESTALE: "The network drive has lost this file. Connect it again, then run the same again.",
}


def storage_sentence(error: OSError) -> str | None:
    """A sentence with the file, the cause and the remedy for an error of the disk; None for other system errors.

    >>> storage_sentence(PermissionError(errno.EACCES, "Permission denied", "/data/run"))
    '/data/run: Permission is denied. Ask the owner for permission, or choose another place.'
    """
    short_write = error.errno is None and "requested and" in str(error)  # numpy's message for a full disk
    remedy = _REMEDIES.get(errno.ENOSPC if short_write else error.errno or 0)
    if remedy is None:
        return None
    name = str(error.filename or "A file could not be written or read")
    return f"{name if len(name) <= 200 else name[:197] + '...'}: {remedy}"
