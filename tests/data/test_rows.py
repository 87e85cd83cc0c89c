"""A row as a stretch of video: half-open, at least one frame, and never a frame outside it, wherever it is used."""

from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from endofm_lab.data.manifest import read_manifest, write_manifest
from endofm_lab.data.rows import Row
from endofm_lab.errors import VideoError
from endofm_lab.pretraining.corpus import Corpus
from endofm_lab.pretraining.health import load_probe
from endofm_lab.pretraining.views import MultiView, ViewSpec
from endofm_lab.tasks.examples import examples_of
from endofm_lab.video.clips import ClipSpec
from endofm_lab.video.reader import VideoInfo, write_video
from endofm_lab.video.transforms import InputSpec

BLACK = InputSpec(8, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


@dataclass
class Times:
    """Twelve frames at four per second, or at given times."""

    times_s: np.ndarray
    duration_s: float = 3.0

    @property
    def info(self):
        return VideoInfo(Path("a.mp4"), len(self.times_s), Fraction(4), 8, 8, self.duration_s, "h264", "pyav")


REGULAR = Times(np.arange(12) / 4)


def row(start_s=0.0, end_s=np.inf):
    return Row(video=Path("a.mp4"), name="a.mp4", start_s=start_s, end_s=end_s)


@pytest.mark.parametrize(
    ("start_s", "end_s", "first", "after"),
    [
        (0.0, np.inf, 0, 12),
        (0.0, 3.0, 0, 12),
        (0.0, 99.0, 0, 12),
        (0.5, 1.0, 2, 4),  # frame 4 is at 1.0 s: half-open
        (0.5, 1.01, 2, 5),
        (0.49, 0.99, 2, 4),
        (0.5 + 1e-9, 1.0 - 1e-9, 2, 4),  # rounding of a file's decimals
        (0.55, 0.6, 2, 3),  # between two frames: the one that is shown
        (0.75, 0.75, 3, 4),
        (0.0, 0.0, 0, 1),
        (2.9, 3.0, 11, 12),
    ],
)
def test_a_row_is_half_open_and_has_at_least_one_frame(start_s, end_s, first, after):
    assert row(start_s, end_s).frame_range(REGULAR) == (first, after)


def test_rows_that_follow_each_other_share_no_frame_and_leave_none_out():
    edges = [0.0, 0.3, 1.0, 1.75, 2.6, 3.0]
    ranges = [row(*pair).frame_range(REGULAR) for pair in pairwise(edges)]
    assert [first for first, _ in ranges[1:]] == [after for _, after in ranges[:-1]]
    assert ranges[0][0] == 0 and ranges[-1][1] == 12


def test_a_row_behind_the_end_of_its_video_is_an_error_with_both_times():
    with pytest.raises(VideoError, match=r"starts at 3\.0 s, but the video ends at 3\.0 s"):
        row(3.0, 4.0).frame_range(REGULAR)


@pytest.mark.parametrize("clip", [ClipSpec(4, stride=2), ClipSpec(4, fps=3.0), ClipSpec(4, duration_s=2.0)])
@pytest.mark.parametrize("times", [REGULAR, Times(np.array([0.0, 0.1, 0.2, 0.9, 1.0, 1.7, 2.5]))])
def test_no_clip_shows_a_frame_outside_its_row(clip, times):
    for start_s, end_s in [(0.0, np.inf), (0.5, 1.0), (0.55, 0.6), (1.0, 2.5), (2.5, 3.0)]:
        part = row(start_s, end_s)
        first, after = part.frame_range(times)
        earliest, latest = part.starts(times, clip)
        for indices in (
            part.clip_at(times, clip, earliest),
            part.clip_at(times, clip, latest),
            part.middle(times, clip),
        ):
            assert indices.shape == (4,) and (np.diff(indices) >= 0).all()
            assert first <= indices[0] and indices[-1] < after
        whole = part.whole(times, 3)
        assert first <= whole[0] and whole[-1] < after


def test_the_middle_clip_of_a_whole_video_is_in_its_middle():
    assert row().middle(REGULAR, ClipSpec(4, stride=2)).tolist() == [2, 4, 6, 8]
    assert row().whole(REGULAR, 4).tolist() == [0, 3, 6, 9]


@pytest.fixture
def manifest(tmp_path):
    """Frames of grey 20 n at four per second: a file, a folder and an image, with rows cut as they may be."""
    pictures = [np.full((8, 8, 3), 20 * n, np.uint8) for n in range(12)]
    for name in ("a.mkv", "d.mkv"):
        write_video(tmp_path / name, pictures, Fraction(4), codec="ffv1")
    (tmp_path / "b").mkdir()
    for n, picture in enumerate(pictures):
        Image.fromarray(picture).save(tmp_path / "b" / f"{n:02d}.png")
    Image.fromarray(pictures[5]).save(tmp_path / "c.png")
    cells = [("a.mkv", 0.5, 1.0), ("a.mkv", 0.55, 0.6), ("a.mkv", 2.0, np.nan), ("b", 0.5, 1.0), ("c.png", 0, 0)]
    table = pd.DataFrame(cells, columns=["video", "start_s", "end_s"])
    table = table.assign(label=["x", "y", "x", "y", "x"], patient="p", dataset="d", split="train", fps=4)
    held_out = table.iloc[:1].assign(video="d.mkv", patient="q", split="val")
    table = pd.concat([table, held_out], ignore_index=True)
    return write_manifest(table, tmp_path / "manifest.csv")


EXPECTED = [[2, 3], [2], [8, 9, 10, 11], [2, 3], [5]]  # by grey / 20


def test_every_reader_of_a_manifest_sees_the_same_frames_of_its_rows(manifest):
    manifest = read_manifest(manifest.path)
    train = manifest.rows("train")
    for cells, example, expected in zip(
        train.to_dict("records"), examples_of(manifest, "train", [0] * 5), EXPECTED, strict=True
    ):
        row = Row.of(manifest, cells)
        with row.open() as reader:
            assert (reader.read(np.arange(*row.frame_range(reader)))[:, 0, 0, 0] // 20).tolist() == expected
            assert example.frame_range(reader) == row.frame_range(reader)
    single = ViewSpec(
        global_frames=(1, 1), local_frames=(), global_shift=0, global_px=8, jitter=0.0, grey=0.0, input=BLACK
    )
    frames = Corpus(manifest, MultiView(single), "train")
    for number, expected in enumerate(EXPECTED):
        shown = [frames.sample(number, seed)[0].mean() * 255 / 20 for seed in range(3)]
        assert {round(float(grey)) for grey in shown} <= set(expected)
    probed = load_probe(manifest, 2, 8).frames[:5, :, 0, 0, 0]
    for shown, expected in zip((probed / 20).round().astype(int), EXPECTED, strict=True):
        assert set(shown.tolist()) <= set(expected)


def test_views_of_a_row_stay_within_it_and_each_row_has_its_own_frame_rate(manifest):
    spec = ViewSpec(clip_s=1.0, global_frames=(2, 2), local_frames=(), global_shift=0, global_px=8, short_side_px=8)
    table = manifest.rows("train").iloc[[0, 3, 3]].assign(fps=[4, 4, 2], end_s=[1.0, 1.0, 2.0])
    corpus = Corpus(write_manifest(table, manifest.root / "slow.csv"), MultiView(spec))
    times = [corpus.views.of_row(row, seed=1).times_s.tolist() for row in corpus.rows]
    assert times[:2] == [[0.5, 0.75], [0.5, 0.75]]
    assert times[2] == pytest.approx([0.5, 1.0], abs=0.51) and np.diff(times[2]) == pytest.approx([0.5])
    assert all(isinstance(view, torch.Tensor) for view in corpus.sample(0, seed=0))
