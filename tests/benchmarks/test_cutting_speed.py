"""How many seconds of video are cut into Endo-FM's kind of clips per second of computing."""

import time
from fractions import Fraction

import numpy as np
import pytest

from endofm_lab.data.manifest import read_manifest
from endofm_lab.data.prepare.prepare import prepare
from endofm_lab.video.reader import write_video

SECONDS, FPS, WIDTH, HEIGHT = 60, 25, 720, 576  # the size of HyperKvasir's videos


@pytest.mark.benchmark
@pytest.mark.timeout(1200)
def test_clips_are_cut_faster_than_the_video_plays(tmp_path):
    rng = np.random.default_rng(0)
    texture = rng.integers(60, 200, (HEIGHT // 8, WIDTH // 8, 3), dtype=np.uint8).repeat(8, axis=0).repeat(8, axis=1)
    moving = (np.roll(texture, (3 * i, 2 * i), axis=(0, 1)) for i in range(SECONDS * FPS))
    still = (texture for _ in range(SECONDS * FPS))
    for name, frames in (("a", moving), ("b", still)):
        write_video(tmp_path / "disk" / f"{name}.mp4", frames, Fraction(FPS))
    start, start_cpu = time.perf_counter(), time.process_time()
    done = prepare("private-folder", tmp_path / "disk", tmp_path / "out", cut="encode")
    took_s, cpu_s = time.perf_counter() - start, time.process_time() - start_cpu
    print(f"\n{2 * SECONDS} s of {WIDTH}x{HEIGHT} video cut in {took_s:.1f} s: {2 * SECONDS / took_s:.1f} x real time")
    print(f"computing alone: {cpu_s:.1f} s, the rest is waiting for other programs")
    assert read_manifest(done.manifest).table["end_s"].sum() == 2 * SECONDS
