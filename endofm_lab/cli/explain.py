"""`endofm-lab explain`."""

from pathlib import Path
from typing import Annotated

import tyro

from endofm_lab import NOTICE


def explain(
    video: Annotated[Path, tyro.conf.Positional],
    out: Path,
    model: str = "demo",
    start_s: float | None = None,
    head: str | None = None,
    label: str | None = None,
) -> None:
    """Attention and attribution of one clip: report.html (stand-alone) and maps.npz (the numbers).

    Args:
        video: a video file, a folder of frames, or one image.
        out: folder for the two files.
        model: "demo", a model's folder, or a released checkpoint.
        start_s: where the clip starts; by default it is the one in the middle.
        head: which head to explain; by default the first.
        label: which class of it; by default the one with the highest score.
    """
    from endofm_lab.reports.explanation import explain as run
    from endofm_lab.reports.explanation import write_explanation

    for path in write_explanation(run(video, model, start_s, head, label), out):
        print(path)
    print(NOTICE)
