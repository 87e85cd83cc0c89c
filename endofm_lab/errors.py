"""Errors that a user can put right. Everything else is a defect of ours."""

from pathlib import Path


class UserError(ValueError):
    """Something the caller can put right; one sentence that names the value, the limit and the remedy.

    The command line prints it and exits with 2, the app shows it in a red box.
    """


class VideoError(UserError):
    """A video that cannot be read: ``path`` and ``reason`` say which and why."""

    def __init__(self, path: str | Path, reason: str) -> None:
        self.path = str(path)
        self.reason = reason
        super().__init__(f"{self.path}: {reason}")

    def __reduce__(self) -> tuple[type, tuple[str, str]]:
        """Survive the trip back from a worker process (the default would call ``__init__`` with one argument)."""
        return type(self), (self.path, self.reason)


class CheckpointError(UserError):
    """Weights that cannot be read, are unsafe, or do not fit the model."""


class ManifestError(UserError):
    """A manifest that is malformed or names files that are not there."""
