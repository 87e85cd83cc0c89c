"""Clips that cover every frame of a row, for validation and test."""

import numpy as np
import pytest

from endofm_lab.data.manifest import read_manifest
from endofm_lab.tasks import clips
from endofm_lab.tasks.segmentation import Segmentation
from endofm_lab.video.clips import ClipSpec
from endofm_lab.video.reader import VideoReader
from endofm_lab.video.transforms import InputSpec


@pytest.fixture
def rows(phantom):
    manifest = read_manifest(phantom)
    return Segmentation().examples(manifest, "test", Segmentation().head(manifest))[:2]


def test_a_row_that_fits_in_memory_is_decoded_once_and_gives_the_clips_of_a_row_that_does_not(rows, monkeypatch):
    reads = []
    read = VideoReader.read
    monkeypatch.setattr(
        VideoReader, "read", lambda reader, numbers: reads.append(len(numbers)) or read(reader, numbers)
    )
    spec = ClipSpec(n_frames=3, stride=2), InputSpec(size_px=32)
    at_once = list(clips.covering_clips(rows, *spec))
    assert len(reads) == len(rows)
    monkeypatch.setattr(clips, "ROW_BYTES", 0)
    one_by_one = list(clips.covering_clips(rows, *spec))
    assert len(reads) == len(rows) + len(one_by_one) and set(reads[len(rows) :]) == {3}
    for first, second in zip(at_once, one_by_one, strict=True):
        assert first.frame_hw == second.frame_hw and first.name == second.name
        np.testing.assert_array_equal(first.indices, second.indices)
        np.testing.assert_array_equal(first.clip, second.clip)
    for row in rows:
        shown = {number for clip in at_once if clip.example is row for number in clip.indices.tolist()}
        assert len(shown) == reads[0], "every frame"
