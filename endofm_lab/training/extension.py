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
        recorded = read_json(folder / record)
        before, length = recorded["steps"], {name: recorded["config"][name] for name in ("epochs", "steps")}
    except (OSError, ValueError, LookupError, TypeError):  # no run, or a damaged record, which `claim` refuses
        return None
    shorter = {**request, "config": {**request["config"], **length}}
    if before >= steps or not agrees(folder, shorter, record, completed):
        return None
    if done := steps_done(folder):
        reason = own_values and f"{own_values} in every step depends on the number of steps"
        if reason := reason or _first_difference(schedule, before, steps, done):
            raise UserError(
                f"{folder} holds a run with other settings: config.steps is {before} there, {steps} here. It cannot be "
                f"extended, because {reason}. Choose another folder, and go on from the model of this run with --start."
            )
    return shorter


def _first_difference(schedule: Schedule, before: int, after: int, done: int) -> str:
    """The first of the ``done`` steps that has another value in the longer run, in words; "" if there is none."""
    for step in range(done):
        longer = schedule(step, after)
        for name, value in schedule(step, before).items():
            if not math.isclose(value, longer[name], rel_tol=1e-9):
                words = {"lr": "learning rate"}.get(name, name.replace("_", " "))
                return f"the {words} of step {step} was {value:.3g} and would be {longer[name]:.3g} in the longer run"
    return ""


def extend(folder: Path, config: Mapping[str, Any], steps: int, device: object, record: str) -> None:
    """Write a larger number of steps into the record of a run folder that is held; its steps stay as they are."""
    recorded, done = read_json(folder / record), steps_done(folder)
    words = (
        f"Extended from {recorded['steps']} to {steps} steps when {done} were done. Learning rate and weight decay of "
        f"these {done} steps are those of a run of {steps} steps."
    )
    messages.info("%s", words)
    unseal(folder, folder)
    extensions = [*recorded.get("extensions", []), {"words": words, "provenance": provenance(device)}]
    write_json(folder / record, {**recorded, "config": config, "steps": steps, "extensions": extensions})
