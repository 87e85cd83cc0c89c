"""Generated sample videos for the app, the demo and the lessons, drawn when first needed and kept in the cache."""

from pathlib import Path

import numpy as np

from endofm_lab import __version__
from endofm_lab.errors import UserError
from endofm_lab.files import cache_folder, sweep
from endofm_lab.video.phantom import PhantomSpec, render
from endofm_lab.video.reader import write_video

# Name -> (patient, the scenes in order: finding and motion). Patients 9000 and up are in no data set.
SAMPLES: dict[str, tuple[int, list[tuple[str, str]]]] = {
    "A walk with a polyp and a bleeding": (
        9001,
        [
            ("normal", "advancing"),
            ("polyp", "advancing"),
            ("normal", "withdrawing"),
            ("bleeding", "withdrawing"),
        ],
    ),
    "Polyp, advancing": (9002, [("polyp", "advancing")]),
    "Ulcer, withdrawing": (9003, [("ulcer", "withdrawing")]),
    "Nothing to find": (9004, [("normal", "advancing"), ("normal", "withdrawing")]),
}


def sample_video(name: str) -> Path:
    """The path of a generated sample (H.264, 256 px, 24 frames per second), drawn if it is not in the cache yet.

    Raises:
        UserError: there is no such sample.
    """
    if name not in SAMPLES:
        raise UserError(f"There is no sample {name!r}. Choose one of {', '.join(SAMPLES)}.")
    patient, scenes = SAMPLES[name]
    path = cache_folder("samples") / f"{name.lower().replace(' ', '_').replace(',', '')}_{__version__}.mp4"
    if not path.exists():
        sweep(path.parent)
        clips = [
            render(PhantomSpec(seed=patient + at, patient=patient, device=patient % 3, finding=finding, motion=motion))
            for at, (finding, motion) in enumerate(scenes)
        ]
        write_video(path, np.concatenate([clip.frames for clip in clips]), clips[0].spec.fps, generated=True)
    return path
