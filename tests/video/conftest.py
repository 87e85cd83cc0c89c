"""Numbered videos in every encoding."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.video.recordings import ENCODINGS, encode


@pytest.fixture(scope="session")
def video_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Sixty numbered frames in the encoding with the given name, made once per session."""
    folder = tmp_path_factory.mktemp("videos")

    def path_of(name: str) -> Path:
        path = folder / name
        return path if path.exists() else encode(path, **ENCODINGS[name])

    return path_of
