"""`endofm-lab inspect`: what a weights file holds."""

import json as json_format
from typing import Annotated

import tyro


def inspect(file: Annotated[str, tyro.conf.Positional], json: bool = False) -> None:
    """Say what a weights file holds: kind, architecture, parameters, teacher or student, missing and unexpected
    tensors, the normalisation that belongs to it, SHA-256. Nothing in the file is executed.

    Args:
        file: a weights file, a model folder, "demo", or a Hugging Face Hub id as hf:owner/name.
        json: print the report as JSON.
    """
    from endofm_lab.model.loading.load import inspect_checkpoint

    report = inspect_checkpoint(file)
    print(json_format.dumps(report.to_json(), indent=2, ensure_ascii=False) if json else report)
