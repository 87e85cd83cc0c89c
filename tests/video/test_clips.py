"""Clips against hand-computed indices and brute force."""

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from endofm_lab.errors import UserError
from endofm_lab.video.clips import ClipSpec, clip_indices, read_clip, sliding_clips
from endofm_lab.video.reader import VideoInfo
from tests.video.recordings import encode, numbers_in


def info(n_frames: int, fps: Fraction | int, duration_s: float | None = None) -> VideoInfo:
    fps = Fraction(fps)
    duration_s = float(n_frames / fps) if duration_s is None else duration_s
    return VideoInfo(Path("video.mp4"), n_frames, fps, 128, 96, duration_s, "h264", "pyav")


def nearest(times_s: np.ndarray, instant_s: float) -> int:
    """Brute force: the frame with the smallest distance; of two equally near, the earlier."""
    distances = [round(abs(time_s - instant_s), 7) for time_s in times_s]
    return distances.index(min(distances))


VARIABLE_S = np.cumsum([0] + [0.02, 0.04, 0.16, 0.03, 0.01] * 12)[:60]


@pytest.mark.parametrize(
    ("spec", "start_s", "expected"),
    [
        (ClipSpec(4, stride=1), 0.0, [0, 1, 2, 3]),
        (ClipSpec(4, stride=5), 0.4, [10, 15, 20, 25]),
        (ClipSpec(4, stride=5), 0.41, [10, 15, 20, 25]),  # frame 10 lies at 0.40 s
        (ClipSpec(4, fps=5), 0.0, [0, 5, 10, 15]),
        (ClipSpec(4, fps=10), 0.0, [0, 2, 5, 7]),  # 0.1 s lies between frames 2 and 3: the earlier
        (ClipSpec(4, fps=50), 1.0, [25, 25, 26, 26]),  # faster than the video: frames repeat
        (ClipSpec(4, duration_s=2), 0.0, [0, 12, 25, 37]),
        (ClipSpec(1, duration_s=2), 1.0, [25]),
        (ClipSpec(4, stride=10), 1.0, [25, 35, 45, 49]),  # past the end: the last frame repeats
        (ClipSpec(4, fps=1), 0.0, [0, 25, 49, 49]),
        (ClipSpec(4, duration_s=0.8), "centre", [15, 20, 25, 30]),
        (ClipSpec(5, stride=2), "centre", [20, 22, 24, 26, 28]),
        (ClipSpec(4, duration_s=8), "centre", [0, 49, 49, 49]),
    ],
)
def test_indices_of_two_seconds_at_25_frames_per_second(spec: ClipSpec, start_s: float, expected: list[int]) -> None:
    indices = clip_indices(spec, info(50, 25), start_s)
    assert indices.tolist() == expected and indices.dtype == np.int64


@pytest.mark.parametrize("spec", [ClipSpec(7, fps=12.5), ClipSpec(8, fps=3), ClipSpec(8, duration_s=1.7)])
@pytest.mark.parametrize("start_s", [0.0, 0.3, 1.234])
@pytest.mark.parametrize("variable", [True, False])
def test_indices_are_the_nearest_frames_in_time(spec: ClipSpec, start_s: float, variable: bool) -> None:
    fps = Fraction(30000, 1001)
    times_s = VARIABLE_S if variable else np.arange(60) / float(fps)
    step_s = 1 / spec.fps if spec.fps else spec.duration_s / spec.n_frames  # type: ignore[operator]
    expected = [nearest(times_s, start_s + k * step_s) for k in range(spec.n_frames)]
    video = info(60, fps, duration_s=float(times_s[-1]) + 0.04)
    assert clip_indices(spec, video, start_s, times_s).tolist() == expected
    if not variable:
        assert clip_indices(spec, video, start_s).tolist() == expected


def test_a_duration_is_a_rate() -> None:
    for start_s in (0.0, 0.7):
        by_rate = clip_indices(ClipSpec(8, fps=4), info(100, 25), start_s)
        np.testing.assert_array_equal(by_rate, clip_indices(ClipSpec(8, duration_s=2), info(100, 25), start_s))


@pytest.mark.parametrize("n_frames", [1, 2, 7, 8, 9, 50, 123])
@pytest.mark.parametrize(
    "spec", [ClipSpec(8, stride=1), ClipSpec(4, stride=3), ClipSpec(8, fps=10), ClipSpec(8, duration_s=1.5)]
)
@pytest.mark.parametrize("part", [0.1, 0.5, 1.0])
@pytest.mark.parametrize("variable", [True, False])
def test_sliding_clips_cover_every_instant_and_end_with_the_video(
    n_frames: int, spec: ClipSpec, part: float, variable: bool
) -> None:
    video = info(n_frames, 25)
    times_s = np.arange(n_frames) / 25
    if variable:  # frames anywhere, same duration
        times_s = np.sort(np.random.default_rng(n_frames).uniform(0, video.duration_s, n_frames))
        times_s[0] = 0
    step_s = part * spec.span_s(video)
    clips = sliding_clips(spec, video, step_s, times_s)
    starts, ends = np.array([start for start, _, _ in clips]), np.array([end for _, end, _ in clips])
    assert starts[0] == 0 and ends[-1] == pytest.approx(video.duration_s)
    assert (ends <= video.duration_s + 1e-9).all() and (starts < ends).all()
    assert (np.diff(starts) > 0).all()
    assert (starts[1:] <= ends[:-1] + 1e-9).all()  # no gap between one clip and the next
    for start_s, end_s, indices in clips:
        assert indices.shape == (spec.n_frames,) and (np.diff(indices) >= 0).all()
        assert indices[0] >= 0 and indices[-1] < n_frames
        if spec.stride is None:
            np.testing.assert_array_equal(indices, clip_indices(spec, video, start_s, times_s))
        else:
            assert times_s[indices[0]] == start_s and (times_s[indices] <= end_s).all()


def test_sliding_clips_by_hand() -> None:
    def rounded(spec: ClipSpec, step_s: float) -> list[tuple[float, float, list[int]]]:
        clips = sliding_clips(spec, info(50, 25), step_s)
        return [(round(start, 6), round(end, 6), indices.tolist()) for start, end, indices in clips]

    assert rounded(ClipSpec(2, fps=2.5), 0.8) == [
        (0.0, 0.8, [0, 10]),
        (0.8, 1.6, [20, 30]),
        (1.2, 2.0, [30, 40]),  # moved back to end with the video
    ]
    assert rounded(ClipSpec(2, stride=10), 0.8) == [
        (0.0, 0.8, [0, 10]),
        (0.8, 1.6, [20, 30]),
        (1.2, 2.0, [30, 40]),
    ]
    assert rounded(ClipSpec(4, duration_s=1), 1.0) == [(0.0, 1.0, [0, 6, 12, 19]), (1.0, 2.0, [25, 31, 37, 44])]
    assert rounded(ClipSpec(3, duration_s=3), 1.0) == [(0.0, 2.0, [0, 25, 49])]


def test_a_step_that_leaves_instants_out_is_refused() -> None:
    for spec in (ClipSpec(8, stride=1), ClipSpec(8, fps=25), ClipSpec(8, duration_s=0.32)):
        for step_s in (0.5, 0.0, -1.0, float("nan")):
            with pytest.raises(UserError, match=r"0\.320 s"):
                sliding_clips(spec, info(100, 25), step_s)


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"stride": 2, "fps": 5.0},
        {"fps": 5.0, "duration_s": 1.0},
        {"stride": 1, "fps": 1.0, "duration_s": 1.0},
        {"stride": 0},
        {"stride": 1.5},
        {"fps": -1.0},
        {"duration_s": float("nan")},
        {"duration_s": float("inf")},
        {"n_frames": 0, "stride": 1},
    ],
)
def test_a_clip_needs_one_sampling_that_is_above_zero(arguments: dict) -> None:
    with pytest.raises(UserError, match=r"exactly one|above 0"):
        ClipSpec(**arguments)


@pytest.mark.parametrize("start_s", [-0.1, 2.0, 100.0, float("nan")])
def test_a_start_outside_the_video_is_refused(start_s: float) -> None:
    with pytest.raises(UserError, match=r"2\.000 s"):
        clip_indices(ClipSpec(stride=1), info(50, 25), start_s)


def test_a_clip_is_read_by_presentation_time(tmp_path: Path) -> None:
    path = encode(tmp_path / "variable.mp4", 60, times_ms=np.round(VARIABLE_S * 1000).astype(int).tolist())
    clip = read_clip(path, ClipSpec(6, fps=8), start_s=0.5)
    expected = [nearest(VARIABLE_S, 0.5 + k / 8) for k in range(6)]
    assert clip.indices.tolist() == expected == numbers_in(clip.frames)
    np.testing.assert_allclose(clip.times_s, VARIABLE_S[expected], atol=1e-6)
    assert clip.frames.shape == (6, 96, 128, 3) and clip.frames.dtype == np.uint8


def test_a_single_image_gives_a_clip_that_repeats_it(tmp_path: Path) -> None:
    from PIL import Image

    Image.new("RGB", (20, 10), "red").save(tmp_path / "still.png")
    clip = read_clip(tmp_path / "still.png", ClipSpec(8, stride=4))
    assert clip.indices.tolist() == [0] * 8 and clip.frames.shape == (8, 10, 20, 3)
