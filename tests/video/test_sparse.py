"""Frames that are read again come from decord, bit for bit as before, and only where it can be held to that."""

from pathlib import Path

import numpy as np
import pytest

from endofm_lab.video import sparse
from endofm_lab.video.reader import open_video
from tests.video.recordings import encode, number_in

decord = pytest.importorskip("decord")
NUMBERS = [40, 75, 150]


@pytest.fixture
def readings(monkeypatch) -> list[str]:
    """The files that decord is asked to open."""
    opened: list[str] = []
    true = decord.VideoReader

    def counted(path: str, **options):
        opened.append(path)
        return true(path, **options)

    monkeypatch.setattr(sparse.decord, "VideoReader", counted)
    return opened


@pytest.fixture
def far(tmp_path) -> Path:
    """A video with one key frame."""
    return encode(tmp_path / "far.mp4", 160, g="250")


def test_a_second_reading_is_decords_and_the_same(far, readings):
    with open_video(far) as video:
        first = video.read(NUMBERS)
        assert not readings, "nothing was decoded before"
        second = video.read(list(reversed(NUMBERS)))
    assert readings == [str(far)]
    np.testing.assert_array_equal(second, first[::-1])
    assert [number_in(frame) for frame in first] == NUMBERS


def test_a_frame_that_was_never_decoded_is_pyavs(far, readings):
    with open_video(far) as video:
        video.read(NUMBERS)
        video.read([*NUMBERS, 151])
    assert not readings


def test_where_a_key_frame_is_near_decord_is_not_asked(tmp_path, readings):
    with open_video(encode(tmp_path / "near.mp4", 160, g="10")) as video:
        np.testing.assert_array_equal(video.read(NUMBERS), video.read(NUMBERS))
    assert not readings


def test_an_answer_with_another_checksum_is_not_used_and_decord_is_not_asked_again(far, readings, monkeypatch):
    with open_video(far) as video:
        first = video.read(NUMBERS)
        video._source.second_reading._checksums[75] += 1  # as if decord had drawn something else
        np.testing.assert_array_equal(video.read(NUMBERS), first)
        np.testing.assert_array_equal(video.read(NUMBERS), first)
    assert len(readings) == 1


def test_a_file_that_decord_cannot_open_is_read_by_pyav(far, monkeypatch):
    def broken(path: str, **options):
        raise decord.DECORDError("no")

    monkeypatch.setattr(sparse.decord, "VideoReader", broken)
    with open_video(far) as video:
        np.testing.assert_array_equal(video.read(NUMBERS), video.read(NUMBERS))


def test_without_decord_pyav_reads_everything(far, monkeypatch):
    monkeypatch.setattr(sparse, "decord", None)
    with open_video(far) as video:
        np.testing.assert_array_equal(video.read(NUMBERS), video.read(NUMBERS))
