"""How fast the phantom is drawn at the size of the lessons: frames per second are printed, equal masks asserted."""

import time
import zlib

import pytest
from joblib import Parallel, delayed, parallel_config

from endofm_lab.data.phantom_set import PRESETS, clips_of
from endofm_lab.video.phantom import render


def drawn(spec):
    """Frames of a clip and a checksum of its masks: what is measured is the drawing, not the way back."""
    clip = render(spec)
    return len(clip.frames), zlib.crc32(clip.masks.tobytes())


@pytest.mark.benchmark
def test_clips_of_the_lessons_drawn_by_two_processes():
    specs = [spec for _, _, spec in clips_of(PRESETS["tutorial"], seed=7)[:24]]
    with parallel_config(backend="loky", inner_max_num_threads=1), Parallel(n_jobs=2) as parallel:
        parallel(delayed(drawn)(spec) for spec in specs[:2])  # processes start, and import
        start = time.perf_counter()
        clips = parallel(delayed(drawn)(spec) for spec in specs)
        seconds = time.perf_counter() - start
    frames = sum(n for n, _ in clips)
    print(f"\nphantom: {frames} frames of 256 px in {seconds:.1f} s, {frames / seconds:.0f} per second (goal 100)")
    assert [drawn(spec) for spec in specs[:2]] == clips[:2]
