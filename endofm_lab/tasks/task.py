"""The contract of a task: a question about video, from the rows of a manifest to the metrics of a finished run."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Self

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from endofm_lab.data.manifest import Manifest
from endofm_lab.metrics.classification import Values
from endofm_lab.metrics.intervals import MetricSet
from endofm_lab.model.card import HeadSpec
from endofm_lab.model.head import Batch, Head
from endofm_lab.model.video_model import VideoModel
from endofm_lab.tasks.clips import TrainingClip
from endofm_lab.tasks.examples import Example, examples_of

Loss = Callable[[Tensor, Batch], Tensor]
ClassMetrics = Callable[[NDArray[np.float64]], dict[str, Values]]


@dataclass(frozen=True)
class Task:
    """The definition of a task; ``tasks.TASKS`` lists all tasks. The fields of a subclass are its options.

    Attributes:
        name: name in configurations, on the command line and in ``report.json``.
        head_name: name of the head that fine-tuning gives a model.
        kinds: kinds of heads (`HeadSpec.kind`) that answer the task.
        forms: forms of heads (`HeadSpec.form`) that a user may choose besides the light one.
        methods: methods of fine-tuning that suit the task.
        files: columns of a manifest that name files of truth; a run notices when these files change.
        columns: columns of the table of answers besides ``row`` and ``patient`` (the unit); see `runs.run`.
        truth: those of these columns that hold the truth.
        primary: metric by which runs are ranked.
        chosen_by: metric whose highest value chooses on validation; the earliest of equal values wins.
        lower_is_better: metrics whose lowest value is the best.
    """

    name: ClassVar[str]
    head_name: ClassVar[str]
    kinds: ClassVar[tuple[str, ...]]
    forms: ClassVar[tuple[str, ...]] = ()
    methods: ClassVar[tuple[str, ...]] = ("full", "frozen", "ST-Adapter", "LoRA")
    files: ClassVar[tuple[str, ...]] = ()
    columns: ClassVar[tuple[str, ...]]
    truth: ClassVar[tuple[str, ...]]
    primary: ClassVar[str]
    chosen_by: ClassVar[str]
    lower_is_better: ClassVar[frozenset[str]] = frozenset()

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Self:
        """The task with those of ``options`` that it has; the remaining ones belong to other tasks."""
        return cls(**{field.name: options[field.name] for field in fields(cls) if field.name in options})

    # Rows, targets and batches.

    def head(self, manifest: Manifest) -> HeadSpec:
        """The head that answers the task, with the classes that occur among the rows of the split "train".

        Raises:
            UserError: a column is missing, or there are too few classes.
        """
        raise NotImplementedError

    def targets(self, manifest: Manifest, split: str, head: HeadSpec) -> Sequence[Any]:
        """The truth of every row of a split, after a check; it becomes `Example.target`.

        Raises:
            UserError: the truth is missing, does not fit its video, or has a class that the head lacks.
        """
        raise NotImplementedError

    def examples(self, manifest: Manifest, split: str, head: HeadSpec) -> list[Example]:
        """The rows of a split with their targets.

        Raises:
            UserError: as ``targets``.
        """
        return examples_of(manifest, split, self.targets(manifest, split, head))

    def sample(self, example: Example, clip: TrainingClip) -> dict[str, Any]:
        """The truth of one training clip in its random view: the entries that `Head.loss` reads."""
        raise NotImplementedError

    def collate(self, samples: list[dict[str, Any]]) -> dict[str, Tensor]:
        """A batch of samples, each with ``clip`` (3, T, S, S) and the entries from ``sample``."""
        return {name: torch.stack([sample[name] for sample in samples]) for name in samples[0]}

    def criterion(self, head: Head, training: Sequence[Example]) -> Loss:
        """The loss of logits and a batch; ``training`` gives the frequencies of the classes."""
        return head.loss

    # Answers.

    def table(
        self, model: VideoModel, head: str, examples: Sequence[Example], training: Sequence[Example]
    ) -> pd.DataFrame:
        """Truth and answers of one head on some rows: ``row``, ``patient`` and the task's columns.

        ``training`` holds the rows that the model was trained on, for tasks whose answers depend on them.
        """
        raise NotImplementedError

    def calibrated(self, model: VideoModel, head: str, validation: Sequence[Example]) -> HeadSpec:
        """The description of the head after its scores were calibrated on validation rows, if the task does so."""
        return model.card.heads[head]

    def protocol(self) -> dict[str, Any]:
        """The options that must be equal in runs that are ranked together."""
        return {}

    def contents(self) -> dict[str, str]:
        """Fingerprints of the files that the options name, by option; a run notices when they change."""
        return {}

    def words(self) -> str:
        """An addition to the name of a run's method, such as the smoother; empty if there is none."""
        return ""

    # Metrics of a table that is read back from a run; the options of the task are no longer known then.

    @classmethod
    def problem(cls, table: pd.DataFrame) -> str | None:
        """The reason why a table does not belong to this task, as a sentence; None if it does."""
        missing = [name for name in ("seed", "row", "patient", *cls.columns) if name not in table]
        missing = ["unit" if name == "patient" else name for name in missing]  # its name in the file
        return f"The predictions lack the columns {', '.join(missing)}." if missing else None

    @classmethod
    def truth_columns(cls, table: pd.DataFrame) -> list[str]:
        """The columns of a table that hold the truth, which are equal in runs on the same test rows."""
        return list(cls.truth)

    @classmethod
    def measured(cls, rows: pd.DataFrame) -> tuple[NDArray, MetricSet]:
        """The unit of independence of every item (N,), and the metrics as a function of the items' weights (R, N).

        Items are the rows of one training seed unless the task says otherwise. Empty cases are those of
        ``metrics.classification`` and its neighbours.
        """
        raise NotImplementedError

    @classmethod
    def by_class(cls, rows: pd.DataFrame, protocol: Mapping[str, Any]) -> list[tuple[str, int, ClassMetrics]]:
        """Name, number of true items and metrics (of weights of the rows) of every class; empty without classes."""
        return []

    @classmethod
    def probabilities(cls, rows: pd.DataFrame) -> tuple[NDArray, NDArray] | None:
        """Class numbers (N,) and probabilities (N, K) for a reliability diagram; None for other kinds of answers."""
        return None
