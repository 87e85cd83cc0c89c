"""Tasks that a model can solve on videos. The contract is in ``tasks.task``; each task has a file of its own.

Fine-tuning, evaluation, runs, figures, the app and the command line use the contract and no task by its name. To add
a task, write ``tasks/<name>.py`` with a subclass of `Task` and add it to ``TASKS``. A task from outside this package is
passed as an object, ``finetune(config, task=MyTask())``, and its head by ``HeadSpec(..., by=MyHead)``.
"""

from endofm_lab.errors import UserError
from endofm_lab.tasks.classification import Classification
from endofm_lab.tasks.detection import Detection
from endofm_lab.tasks.phases import Phases
from endofm_lab.tasks.segmentation import Segmentation
from endofm_lab.tasks.task import Task

__all__ = ["TASKS", "Task", "task_answered_by", "task_named"]

# A model is evaluated by the first task that its kind of head answers.
TASKS: dict[str, type[Task]] = {task.name: task for task in (Classification, Segmentation, Detection, Phases)}


def task_named(name: str) -> type[Task]:
    """The task of this name.

    Raises:
        UserError: there is none.
    """
    if name not in TASKS:
        raise UserError(f"There is no task {name!r}. Choose one of {', '.join(TASKS)}.")
    return TASKS[name]


def task_answered_by(kind: str) -> type[Task]:
    """The first task that a kind of head (`HeadSpec.kind`) answers.

    Raises:
        UserError: there is none.
    """
    for task in TASKS.values():
        if kind in task.kinds:
            return task
    raise UserError(f"No task is answered by {kind!r} heads. The tasks are {', '.join(TASKS)}.")
