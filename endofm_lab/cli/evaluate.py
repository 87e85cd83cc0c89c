"""`endofm-lab evaluate`."""

from pathlib import Path
from typing import Annotated

import tyro


def evaluate(
    model: Annotated[str, tyro.conf.Positional],
    manifest: Annotated[Path, tyro.conf.Positional],
    out: Path,
    head: str | None = None,
    label: str = "label",
    clips: int = 3,
    split_name: str = "manifest",
) -> None:
    """Test a model on the rows of a manifest whose split is "test", and write a run for `endofm-lab compare`.

    Args:
        model: "demo", a model's folder, or a released checkpoint with a head.
        manifest: table of clips.
        out: folder of the run.
        head: which of the model's heads, if it has several.
        label: column that holds the class.
        clips: per row, their scores averaged, for classes.
        split_name: "manifest" for the column `split`, or NAME for `split_NAME`.
    """
    from endofm_lab.cli.finetune import print_run
    from endofm_lab.tasks.evaluate import evaluate as run

    run(model, manifest, out, head, label, clips, split_name)
    print_run(out)
