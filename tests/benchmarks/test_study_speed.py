"""A study against the plain loop: decode, transform and infer one frame at a time. Prints a ratio of medians."""

import os
import statistics
import time
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from endofm_lab.model.card import HeadSpec
from endofm_lab.model.video_model import build_frame_model
from endofm_lab.study.study import run_study
from endofm_lab.video.phantom import PhantomSpec, render
from endofm_lab.video.reader import open_video, write_video
from endofm_lab.video.transforms import to_input

N_FRAMES = 5000  # so that start and end hardly count, as in a real study
REPEATS = 5


@pytest.mark.benchmark
@pytest.mark.parametrize("kind", ["video", "folder"])
def test_a_study_beats_the_plain_loop(kind, tmp_path):
    source = _made_study(tmp_path, kind)
    torch.manual_seed(0)
    model = build_frame_model("eva02_micro", {"finding": HeadSpec("multiclass", ("a", "b", "c"))}).eval()

    def plain() -> np.ndarray:
        with open_video(source) as reader:
            scores = [model.predict(to_input(reader.read([i]), model.card.input)) for i in range(reader.info.n_frames)]
        return torch.cat([score["finding"] for score in scores]).numpy()

    def study(run: int) -> np.ndarray:
        return run_study(source, model, tmp_path / f"out{run}", progress=False).scores["finding"]

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
        f"\n{kind}, OMP_WAIT_POLICY={os.environ.get('OMP_WAIT_POLICY', 'not set')}: plain loop "
        f"{N_FRAMES / plain_s:.0f} frames/s, study {N_FRAMES / study_s:.0f}: {plain_s / study_s:.1f} times as many"
    )


def _made_study(folder: Path, kind: str) -> Path:
    """A phantom recording of `N_FRAMES` frames of 336 px, two seconds over and over."""
    frames = render(PhantomSpec(seed=0, finding="polyp", size_px=336, n_frames=48)).frames
    if kind == "video":
        write_video(folder / "v.mp4", (frames[at % 48] for at in range(N_FRAMES)), Fraction(25))
        return folder / "v.mp4"
    (folder / "frames").mkdir()
    for at in range(N_FRAMES):
        Image.fromarray(frames[at % 48]).save(folder / "frames" / f"{at:04d}.jpg", quality=90)
    return folder / "frames"
