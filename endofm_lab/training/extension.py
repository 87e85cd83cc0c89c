"""A run that gets more steps: only if the steps that it has made are those of the longer run.

Most schedules fall over the whole run, so that the first steps of a longer run have other values; such a run is refused
instead of continued. With values that do not depend on the number of steps, an extended run has the numbers of a run
that had the larger number of steps from its beginning.
"""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from endofm_lab.errors import UserError
from endofm_lab.files import read_json, write_json
from endofm_lab.folders.provenance import provenance
from endofm_lab.folders.run_folder import Completion, agrees, unseal
from endofm_lab.messages import messages
from endofm_lab.training.checkpoints import Checkpoints
from endofm_lab.training.loop import CHECKPOINTS

Schedule = Callable[[int, int], Mapping[str, float]]  # step, number of steps of the run -> values by name


def steps_done(folder: Path) -> int:
    """The number of steps in the newest checkpoint of a run folder."""
    checkpoints = Checkpoints(folder / CHECKPOINTS).all()
    return int(checkpoints[-1].name.removeprefix("step-")) if checkpoints else 0


def shorter_run(
    folder: Path,
    request: Mapping[str, Any],
    steps: int,
    schedule: Schedule,
    own_values: str,
    record: str,
    completed: Completion,
) -> dict[str, Any] | None:
    """The request of the run in a folder if ``request`` only adds steps to it, otherwise None.

    Args:
        folder: the run folder.
        request: the request for the longer run, as for `claim`; its entry "config" has "steps" and "epochs".
        steps: number of steps of the longer run.
        schedule: the values of the training at a step.
        own_values: further values that depend on the number of steps, in words; "" if there are none.
        record: name of the file with the request.
        completed: adds entries that an older version did not record.

    Raises:
        UserError: the steps that were made would have had other values in the longer run; the message names one.
    """
    try:
        entries = read_json(folder / record)
        n_before, length = entries["steps"], {name: entries["config"][name] for name in ("epochs", "steps")}
    except (OSError, ValueError, LookupError, TypeError):  # no run, or a damaged record, which `claim` refuses
        return None
    request_there = {**request, "config": {**request["config"], **length}}
    if n_before >= steps or not agrees(folder, request_there, record, completed):
        return None
    if n_done := steps_done(folder):
        reason = own_values and f"{own_values} in every step depends on the number of steps"
        if reason := reason or _first_difference(schedule, n_before, steps, n_done):
            raise UserError(
                f"{folder} holds a run with other settings: config.steps is {n_before} there, {steps} here. It cannot "
                f"be extended, because {reason}. Choose another folder, and go on from the model "
                "of this run with --start."
            )
    return request_there


def _first_difference(schedule: Schedule, n_before: int, n_after: int, n_done: int) -> str:
    """The first of the ``n_done`` steps that has another value in the longer run, in words; "" if there is none."""
    for step in range(n_done):
        values_there = schedule(step, n_after)
        for name, value in schedule(step, n_before).items():
            if not math.isclose(value, values_there[name], rel_tol=1e-9):
                words = {"lr": "learning rate"}.get(name, name.replace("_", " "))
                value_there = f"{values_there[name]:.3g} in the longer run"
                return f"the {words} of step {step} was {value:.3g} and would be {value_there}"
    return ""


def extend(folder: Path, config: Mapping[str, Any], steps: int, device: object, record: str) -> None:
    """Write a larger number of steps into the record of a run folder that is held; its steps stay as they are."""
    entries, n_done = read_json(folder / record), steps_done(folder)
    words = (
        f"Extended from {entries['steps']} to {steps} steps when {n_done} were done. Learning rate and weight decay of "
        f"these {n_done} steps are those of a run of {steps} steps."
    )
    messages.info("%s", words)
    unseal(folder, folder)
    extensions = [*entries.get("extensions", []), {"words": words, "provenance": provenance(device)}]
    write_json(folder / record, {**entries, "config": config, "steps": steps, "extensions": extensions})
