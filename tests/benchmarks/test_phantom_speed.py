"""How fast the phantom is drawn at the size of the lessons: frames per second are printed, equal frames asserted."""

import time

import numpy as np
import pytest
from joblib import Parallel, delayed, parallel_config

from endofm_lab.data.phantom_set import PRESETS, clips_of
from endofm_lab.video.phantom import render


@pytest.mark.benchmark
def test_clips_of_the_lessons_drawn_by_two_processes():
    specs = [spec for _, _, spec in clips_of(PRESETS["tutorial"], seed=7)[:24]]
    with parallel_config(backend="loky", inner_max_num_threads=1), Parallel(n_jobs=2) as parallel:
        parallel(delayed(render)(spec) for spec in specs[:2])  # processes start, and import
        start = time.perf_counter()
        clips = parallel(delayed(render)(spec) for spec in specs)
        seconds = time.perf_counter() - start
    frames = sum(len(clip.frames) for clip in clips)
    print(f"\nphantom: {frames} frames of 256 px in {seconds:.1f} s, {frames / seconds:.0f} per second (goal 100)")
    for spec, clip in zip(specs[:2], clips, strict=False):
        assert np.array_equal(render(spec).masks, clip.masks)
