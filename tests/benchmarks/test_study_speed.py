"""A study against the plain loop: decode, transform and infer one frame at a time. Prints a ratio of medians."""

import statistics
import time
from fractions import Fraction

import numpy as np
import pytest
import torch

from endofm_lab.model.card import HeadSpec
from endofm_lab.model.video_model import build_frame_model
from endofm_lab.study import run_study
from endofm_lab.video.phantom import PhantomSpec, render
from endofm_lab.video.reader import open_video, write_video
from endofm_lab.video.transforms import to_input

REPEATS = 7


@pytest.mark.benchmark
def test_a_study_beats_the_plain_loop(tmp_path):
    frames = render(PhantomSpec(seed=0, finding="polyp", size_px=336, n_frames=48)).frames
    write_video(tmp_path / "v.mp4", (frames[at % 48] for at in range(960)), Fraction(25))
    torch.manual_seed(0)
    model = build_frame_model("eva02_micro", {"finding": HeadSpec("multiclass", ("a", "b", "c"))}).eval()

    def plain() -> np.ndarray:
        with open_video(tmp_path / "v.mp4") as reader:
            scores = [model.predict(to_input(reader.read([i]), model.card.input)) for i in range(reader.info.n_frames)]
        return torch.cat([score["finding"] for score in scores]).numpy()

    def study(run: int) -> np.ndarray:
        return run_study(tmp_path / "v.mp4", model, tmp_path / f"out{run}", progress=False).scores["finding"]

    times: dict[str, list[float]] = {"plain": [], "study": []}
    for run in range(REPEATS):
        begun = time.perf_counter()
        expected = plain()
        middle = time.perf_counter()
        scores = study(run)
        times["plain"].append(middle - begun)
        times["study"].append(time.perf_counter() - middle)
        np.testing.assert_allclose(scores, expected, atol=1e-5)
    plain_s, study_s = (statistics.median(times[name]) for name in ("plain", "study"))
    print(
        f"\nplain loop {960 / plain_s:.0f} frames/s, study {960 / study_s:.0f}: {plain_s / study_s:.1f} times as many"
    )
