"""A few small phantom videos."""

from pathlib import Path

import pytest

from tests.pretraining.runs import write_clips


@pytest.fixture(scope="session")
def manifest(tmp_path_factory) -> Path:
    return write_clips(tmp_path_factory.mktemp("phantom"))
