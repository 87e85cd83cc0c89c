"""A build in a process of its own: started, watched, stopped and continued from a page or a notebook."""

from dataclasses import dataclass
from pathlib import Path

from endofm_lab.errors import UserError
from endofm_lab.files import read_json, read_object
from endofm_lab.folders import background
from endofm_lab.models.building import RUN, WORK
from endofm_lab.models.recipe import load_model_recipe
from endofm_lab.models.rows import AUDIT, PREPARED, SPLIT, Incomplete
from endofm_lab.models.shelf import BUILT, folder_of
from endofm_lab.runs.run import REPORT
from endofm_lab.training.loop import LOG, read_log

JOB = "job.json"  # the request of a build, as `claim` writes it


@dataclass(frozen=True)
class Progress:
    """How far a build is.

    Attributes:
        stage: what is being done, or was to be done next, in words.
        done: training steps that are finished.
        steps: training steps in all; 0 if the training has not begun.
        state: "waiting", "running", "stopped", "failed", "lost" or "finished", see `folders.background.Job`.
        last: the last line that the process printed.
    """

    stage: str
    done: int
    steps: int
    state: str
    last: str

    @property
    def share(self) -> float:
        """The share of the training that is done, between 0 and 1."""
        return 1.0 if self.state == background.FINISHED else min(self.done / self.steps, 1.0) if self.steps else 0.0


def start_build(
    recipe: str,
    data: str | Path,
    start: str | None = None,
    dataset: str | None = None,
    incomplete: Incomplete = "refuse",
    seed: int = 0,
) -> str:
    """Start `endofm-lab models build RECIPE --data DATA` in a process of its own; the arguments are those of `build`.

    Returns:
        The name of the model.

    Raises:
        UserError: there is no such recipe or no such folder, or another process builds this model.
    """
    name = load_model_recipe(recipe).name
    if not Path(data).is_dir():
        raise UserError(f"{data} is not a folder. Give the folder of the unpacked data set.")
    recipe = str(Path(recipe).resolve()) if recipe.endswith(".yaml") else recipe
    settings = {"data": str(Path(data).resolve()), "incomplete": incomplete, "seed": seed}
    settings |= {key: value for key, value in (("start", start), ("dataset", dataset)) if value}
    options = [word for key, value in settings.items() for word in (f"--{key}", str(value))]
    background.start(["models", "build", recipe, *options], folder_of(name), f"Model {name}")
    return name


def resume_build(name: str) -> None:
    """Continue a stopped build in a process of its own, also one that was begun in a terminal.

    Raises:
        UserError: there is no build of this name, or it was begun in a terminal by a recipe of the user's own.
    """
    folder = folder_of(name)
    if background.job_of(folder) is not None:
        background.resume(folder)
        return
    if not (folder / JOB).is_file():
        raise UserError(f"There is no build of {name} to continue. Start one.")
    job = read_object(folder / JOB, {"recipe": str, "data": str, "start": str, "seed": int}, "Start the build again.")
    recipe, incomplete = job["recipe"].partition("@")[0], job.get("incomplete", "refuse")
    start_build(recipe, job["data"], job["start"], job.get("dataset"), incomplete, job["seed"])


def stop_build(name: str) -> None:
    """Tell a build to save a checkpoint and end; one that is not running is left alone.

    Raises:
        UserError: the build belongs to another machine, to another user, or to the calling process.
    """
    background.stop(folder_of(name))


def progress(name: str) -> Progress:
    """How far the build of a model is, from the files that it has written."""
    folder = folder_of(name)
    run, job = folder / WORK / RUN, background.job_of(folder)
    if (folder / BUILT).is_file() and not background.is_running(folder):
        state = background.FINISHED
    elif job is not None:
        state = job.state
    else:
        state = background.RUNNING if background.is_running(folder) else background.STOPPED
    steps = int(read_json(run / "config.json").get("steps", 0)) if (run / "config.json").is_file() else 0
    done = max((len(read_log(log)) for log in run.glob(f"seed-*/{LOG}")), default=0)
    return Progress(_stage(folder, done, steps), done, steps, state, background.printed(folder, 1))


def _stage(folder: Path, done: int, steps: int) -> str:
    work = folder / WORK
    prepared, run = work / PREPARED, work / RUN
    if (folder / BUILT).is_file():
        return "built"
    if (run / REPORT).is_file():
        return "the features of the training clips are measured"
    if steps and done >= steps:
        return "calibration, and the test on the held-out part"
    if steps:
        return "training"
    if (prepared / SPLIT).is_file():
        return "the audit of the split" if not (work / AUDIT).is_file() else "the pictures are read"
    return "near-duplicates are searched and the data is split" if prepared.is_dir() else "the data is prepared"
