"""`endofm-lab phantom`."""

from pathlib import Path
from typing import Annotated, Literal

import tyro


def phantom(
    out: Annotated[Path, tyro.conf.Positional],
    preset: Literal["tiny", "tutorial", "demo"] = "tutorial",
    seed: int = 0,
) -> None:
    """Write a data set of generated endoscopy: videos, masks, boxes and a manifest, split by patient.

    Args:
        out: a new folder; a run that was stopped goes on when it is given again.
        preset: tiny (10 patients of 32 frames at 64 px), tutorial (40 of 48 at 256 px), demo (68 of 48 at 160 px).
        seed: other seeds give other patients.
    """
    from endofm_lab.data.manifest import read_manifest
    from endofm_lab.data.phantom_set import write_phantom

    path = write_phantom(out, preset, seed)
    table = read_manifest(path).table
    counts = table.pivot_table(index="split", columns="label", values="video", aggfunc="count", margins=True)
    print(counts.to_string())
    print(table.groupby("split")["patient"].nunique().rename("patients").to_string())
    print(f"\nWritten to {path}. Every picture is generated; none shows a patient.")
