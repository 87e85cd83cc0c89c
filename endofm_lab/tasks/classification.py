"""Classification: one class, or any number of labels, for a row of a manifest from the clips spread over it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from endofm_lab.data.labels import read_mapping
from endofm_lab.data.manifest import Manifest
from endofm_lab.errors import UserError
from endofm_lab.metrics.calibration import brier, ece
from endofm_lab.metrics.classification import classification_metrics
from endofm_lab.metrics.intervals import MetricSet
from endofm_lab.model.card import HeadSpec
from endofm_lab.model.head import Head
from endofm_lab.model.video_model import VideoModel
from endofm_lab.tasks.clips import TrainingClip
from endofm_lab.tasks.examples import Example, examples_of
from endofm_lab.tasks.labels import (
    class_head,
    class_targets,
    compatible_rows,
    mapped_manifest,
    recall_and_precision,
    score_names,
)
from endofm_lab.tasks.losses import class_balanced_loss, coarse_cross_entropy, focal_loss, logit_adjusted_loss
from endofm_lab.tasks.scoring import class_table, clip_scores, has_temperature, targets_of, with_temperature
from endofm_lab.tasks.task import ClassMetrics, Loss, Task

LossName = Literal["cross-entropy", "focal", "class-balanced", "logit-adjusted", "coarse"]


@dataclass(frozen=True)
class Classification(Task):
    """Classes of rows. Its table has ``target`` (or ``target_<class>`` for several labels) and ``score_<class>``.

    Attributes:
        label: column of the manifest that holds the class.
        several_labels: cells of that column hold any number of labels, joined by ``|``.
        clips: number of clips per row, whose scores are averaged.
        crops: number of square crops of the picture for each of these clips; 1 is the whole picture.
        mapping: name or path of a file that maps the labels of each data set to common classes (see ``data.labels``);
            rows that do not stand for exactly one class are left out. None takes labels as they are.
        loss: the loss that training minimises (see ``tasks.losses``). With "coarse", training rows whose label stands
            for several of the classes are kept: the loss does not distinguish between these classes.
    """

    label: str = "label"
    several_labels: bool = False
    clips: int = 3
    crops: int = 1
    mapping: str | None = None
    loss: LossName = "cross-entropy"

    name = "classification"
    head_name = "label"
    kinds = ("multiclass", "multilabel")
    methods = ("full", "frozen", "ST-Adapter", "LoRA", "attentive probe", "linear probe", "knn")
    columns = ()
    truth = ()
    primary = "f1"
    chosen_by = "auc"  # changes in smaller steps than F1 if there are few patients
    lower_is_better = frozenset({"ece", "brier"})

    def __post_init__(self) -> None:
        if self.clips < 1 or self.crops < 1:
            raise UserError(f"clips is {self.clips} and crops {self.crops}; give at least one of each per row.")
        if self.loss not in get_args(LossName):
            raise UserError(f"The loss is {self.loss!r}; choose one of {', '.join(get_args(LossName))}.")
        if self.loss != "cross-entropy" and self.several_labels:
            raise UserError(f"The loss is {self.loss!r}, which needs one class per row: leave out several_labels.")
        if self.loss == "coarse" and self.mapping is None:
            raise UserError(
                "The loss is 'coarse', which needs to know for which classes a label stands. Name a mapping."
            )

    def head(self, manifest: Manifest) -> HeadSpec:
        """The head for the classes of the training rows, in the order of the mapping if there is one."""
        head = class_head(self._mapped(manifest), self.label, self.several_labels)
        if self.mapping is None:
            return head
        return replace(head, classes=tuple(c for c in read_mapping(self.mapping).leaves if c in head.classes))

    def targets(self, manifest: Manifest, split: str, head: HeadSpec) -> Sequence[Any]:
        """Class numbers, or tuples (K,) of 0 and 1."""
        return class_targets(self._mapped(manifest), split, head, self.label)

    def examples(self, manifest: Manifest, split: str, head: HeadSpec) -> list[Example]:
        """The rows of a split that have a class; for the coarse loss, targets of training rows are (K,) of 0 and 1."""
        if self.loss == "coarse" and split == "train":
            assert self.mapping is not None
            rows, allowed = compatible_rows(manifest, split, head, self.mapping, self.label)
            return examples_of(rows, split, allowed)
        return examples_of(self._mapped(manifest), split, self.targets(manifest, split, head))

    def _mapped(self, manifest: Manifest) -> Manifest:
        return manifest if self.mapping is None else mapped_manifest(manifest, self.mapping, self.label)

    def sample(self, example: Example, clip: TrainingClip) -> dict[str, Any]:
        """``target``: a class number, or (K,) of 0 and 1."""
        return {"target": torch.tensor(example.target)}

    def criterion(self, head: Head, training: Sequence[Example]) -> Loss:
        """The chosen loss."""
        if self.loss == "cross-entropy":
            return head.loss
        if self.loss == "coarse":
            return lambda logits, batch: coarse_cross_entropy(logits.float(), batch["target"])
        if self.loss == "focal":
            return lambda logits, batch: focal_loss(logits, batch["target"])
        counts = np.bincount(targets_of(training)).tolist()
        weighted = class_balanced_loss if self.loss == "class-balanced" else logit_adjusted_loss
        return lambda logits, batch: weighted(logits, batch["target"], counts)

    def table(
        self, model: VideoModel, head: str, examples: Sequence[Example], training: Sequence[Example]
    ) -> pd.DataFrame:
        """One row per example, with the mean of the scores of its clips."""
        scores = clip_scores(model, head, examples, self.clips, self.crops).mean(1)
        return class_table(examples, scores, model.card.heads[head])

    def calibrated(self, model: VideoModel, head: str, validation: Sequence[Example]) -> HeadSpec:
        """Temperature scaling of exclusive classes; it changes no ranking within a clip."""
        spec = model.card.heads[head]
        if not has_temperature(spec):
            return spec
        return with_temperature(spec, clip_scores(model, head, validation, self.clips, self.crops), validation)

    def protocol(self) -> dict[str, Any]:
        """The column, the clips and the mapping."""
        mapping = {} if self.mapping is None else {"mapping": read_mapping(self.mapping).name, **self.contents()}
        crops = {} if self.crops == 1 else {"crops": self.crops}
        return {"label": self.label, "clips": self.clips, **crops, **mapping}

    def contents(self) -> dict[str, str]:
        """What the mapping says, whatever its file is called."""
        return {} if self.mapping is None else {"mapping_fingerprint": read_mapping(self.mapping).fingerprint}

    def words(self) -> str:
        """The mapping of the classes, and the loss if it is not the default."""
        classes = "" if self.mapping is None else f"classes of {read_mapping(self.mapping).name}"
        return ", ".join(filter(None, [classes, "" if self.loss == "cross-entropy" else f"{self.loss} loss"]))

    @classmethod
    def problem(cls, table: pd.DataFrame) -> str | None:
        """What is missing in a table whose columns of truth and scores are named after the classes."""
        if "target" not in table and not any(str(name).startswith("target_") for name in table):
            return super().problem(table) or "The predictions lack the columns target."
        if not score_names(table):
            return super().problem(table) or "The predictions lack score_<class> columns."
        return super().problem(table)

    @classmethod
    def truth_columns(cls, table: pd.DataFrame) -> list[str]:
        """``target``, or ``target_<class>``."""
        return [name for name in map(str, table) if name.startswith("target")]

    @classmethod
    def measured(cls, rows: pd.DataFrame) -> tuple[NDArray, MetricSet]:
        """Units are rows; exclusive classes also have ``ece`` and ``brier``."""
        patients, exclusive = rows["patient"].to_numpy(), cls.probabilities(rows)
        if exclusive is None:
            labels, scores = _several(rows)
            return patients, lambda weights: classification_metrics(labels, scores, weights)
        target, probabilities = exclusive
        return patients, lambda weights: {
            **classification_metrics(target, probabilities, weights),
            "ece": ece(target, probabilities, weights),
            "brier": brier(target, probabilities, weights),
        }

    @classmethod
    def by_class(cls, rows: pd.DataFrame, protocol: Mapping[str, Any]) -> list[tuple[str, int, ClassMetrics]]:
        """``recall`` and ``precision`` over rows, of the most probable class or of labels that score at least 0.5."""
        names, exclusive = score_names(rows), cls.probabilities(rows)
        if exclusive is None:
            truth, scores = _several(rows)
            return recall_and_precision(names, truth, scores >= 0.5)
        target, probabilities = exclusive
        truth, predicted = (v[:, None] == np.arange(len(names)) for v in (target, probabilities.argmax(1)))
        return recall_and_precision(names, truth, predicted)

    @classmethod
    def probabilities(cls, rows: pd.DataFrame) -> tuple[NDArray, NDArray] | None:
        """Class numbers and scores of exclusive classes; None for several labels."""
        if "target" not in rows:
            return None
        scores = rows[[f"score_{name}" for name in score_names(rows)]].to_numpy(np.float64)
        return rows["target"].to_numpy(), scores


def _several(rows: pd.DataFrame) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Truth and scores (N, K) of several labels per row."""
    names = score_names(rows)
    truth = rows[[f"target_{name}" for name in names]].to_numpy(bool)
    return truth, rows[[f"score_{name}" for name in names]].to_numpy(np.float64)
