"""`endofm-lab evaluate`."""

import json as json_format
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
    json: bool = False,
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
        json: print the run's report as JSON.
    """
    from endofm_lab.cli.finetune import print_run
    from endofm_lab.files import read_json
    from endofm_lab.finetuning.evaluate import evaluate as run
    from endofm_lab.runs.run import REPORT

    run(model, manifest, out, head, label, clips, split_name)
    if json:
        print(json_format.dumps({"out": str(out), **read_json(out / REPORT)}, indent=2, ensure_ascii=False))
    else:
        print_run(out)
