"""Fitting of one model to a task, by gradient or by a probe on frozen features, with a choice on validation."""

import math
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from timm.optim import AdaBelief
from torch import Tensor, nn

from endofm_lab.brief import Brief
from endofm_lab.errors import UserError
from endofm_lab.files import atomic_path, read_json, write_json
from endofm_lab.finetuning.config import FinetuneConfig
from endofm_lab.metrics.measure import Measure, with_measures
from endofm_lab.metrics.probes import L2, NEIGHBOURS, fit_linear, knn_scores, linear_scores
from endofm_lab.model.adapters import is_adapter
from endofm_lab.model.card import HeadSpec
from endofm_lab.model.head import Batch
from endofm_lab.model.heads import ClipClassifier
from endofm_lab.model.precision import dtype_of
from endofm_lab.model.video_model import VideoModel
from endofm_lab.model.weight_files import write_weights
from endofm_lab.tasks import Task
from endofm_lab.tasks.clips import ClipData
from endofm_lab.tasks.examples import Example
from endofm_lab.tasks.labels import balanced
from endofm_lab.tasks.scoring import class_table, clip_features, targets_of, with_temperature
from endofm_lab.tasks.task import Loss
from endofm_lab.training.checkpoints import Checkpoints
from endofm_lab.training.loop import CHECKPOINTS, LoopConfig, Record, Trainable, train
from endofm_lab.training.optimiser import parameter_groups
from endofm_lab.training.schedules import cosine

POWER = 0.9  # exponent of the polynomial schedule


@dataclass(frozen=True)
class Choice:
    """The choice of validation by name (a step, a penalty or a number of neighbours), and its score."""

    chosen: dict[str, float]
    validation: float


class HeadTraining(Trainable):
    """A model in training for one task: all its weights, or with ``frozen`` only the head and the adapters.

    ``loss`` is a function of logits and a batch; by default the head's own loss. ``average`` is the share that the
    running mean of the weights keeps in each step, less in the first steps; None keeps no mean.
    """

    def __init__(
        self, model: VideoModel, head: str, frozen: bool, loss: Loss | None = None, average: float | None = None
    ) -> None:
        super().__init__()
        self.model, self.head, self.frozen = model, head, frozen
        self.loss = loss or model.head(head).loss
        for name, parameter in model.backbone.named_parameters():
            parameter.requires_grad_(not frozen or is_adapter(name))
        self.average = average
        self.mean = None if average is None else deepcopy(model).requires_grad_(False)

    @torch.no_grad()
    def after_step(self, step: int) -> dict[str, float]:
        """Move the mean of the weights towards them; it forgets the start first: its share is (1 + step) / (10 + step).

        Source: ExponentialMovingAverage of TensorFlow (``num_updates``).
        """
        if self.mean is not None and self.average is not None:
            share = min(self.average, (1 + step) / (10 + step))
            new = self.model.state_dict()
            for name, old in self.mean.state_dict().items():
                old.lerp_(new[name], 1 - share) if old.is_floating_point() else old.copy_(new[name])
        return {}

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Within this context the model has the mean of its weights, if one is kept."""
        if self.mean is None:
            yield
            return
        backup = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}
        self.model.load_state_dict(self.mean.state_dict())
        try:
            yield
        finally:
            self.model.load_state_dict(backup)

    def train(self, mode: bool = True) -> "HeadTraining":
        """Set the mode of the head; a frozen backbone stays in evaluation mode, without drop path."""
        super().train(mode)
        if self.frozen:
            self.model.backbone.eval()
        return self

    def forward(self, batch: Batch, part: Any, step: int) -> dict[str, Tensor]:
        """The loss of a batch from ``ClipData.collate``."""
        logits = self.model(batch["clip"]).logits[self.head]
        return {"loss": self.loss(logits, batch)}


def layer_groups(model: VideoModel, decay: float) -> list[dict[str, Any]]:
    """Groups for the optimiser: ``lr_scale`` is 1 for heads and the encoder's last layer, ``decay`` for the layer
    below it, ``decay`` ** 2 for the next, and so on down to the embeddings.
    """
    *below, last = model.backbone.layers()
    layers = [nn.ModuleList([model.heads, last]), *reversed(below)]
    return [
        {**group, "lr_scale": decay**depth}
        for depth, layer in enumerate(layers)
        for group in parameter_groups(layer)
        if group["params"]
    ]


def learning_rate(config: FinetuneConfig, step: int, steps_per_epoch: int) -> float:
    """The learning rate at a step, counted from 0."""
    if config.lr_decay is not None:
        return config.lr * config.lr_decay ** (step // steps_per_epoch)
    if config.per_epoch:
        step -= step % steps_per_epoch
    warmup = int(config.warmup * config.steps + 1e-6)
    if config.schedule == "cosine" or step < warmup:
        return cosine(step, config.lr, config.floor * config.lr, config.steps, warmup)
    if config.schedule == "poly":
        return config.lr * (1 - step / config.steps) ** POWER
    return config.lr * 0.5 ** sum(step >= milestone for milestone in config.milestones)


@dataclass(frozen=True, eq=False, repr=False)
class Fit(Brief):
    """The fitting of one model with one seed.

    Attributes:
        config: configuration of the fine-tuning.
        seed: seed of every random generator.
        task: the task with its options; it names the head that is trained.
        model: the model, which is fitted in place.
        examples: rows by split.
        folder: folder of this seed: log, checkpoints, validations, chosen weights.
        measures: metrics from outside the library, in addition to those of the task.
        stored: split -> features (N, clips, D) of a probe that were computed before; None computes them.
    """

    config: FinetuneConfig
    seed: int
    task: Task
    model: VideoModel
    examples: dict[str, list[Example]]
    folder: Path
    measures: tuple[type[Measure], ...] = ()
    stored: Mapping[str, Tensor] | None = None

    @property
    def head(self) -> str:
        """The name of the head that is trained."""
        return self.task.head_name

    def table(self, split: str) -> pd.DataFrame:
        """Labels and predictions of the model on a split; see ``runs.run``."""
        if self.stored is not None:
            head = self.model.card.heads[self.head]
            return class_table(self.examples[split], self._probe_scores(split).mean(1), head)
        return self.task.table(self.model, self.head, self.examples[split], self.examples["train"])

    def calibrated(self) -> HeadSpec:
        """The description of the head after its scores were calibrated on the validation rows."""
        spec, rows = self.model.card.heads[self.head], self.examples["val"]
        if self.stored is not None:
            return with_temperature(spec, self._probe_scores("val"), rows)
        return self.task.calibrated(self.model, self.head, rows)

    def _features(self, split: str) -> Tensor:
        """The features (N, clips, D) of a probe on the rows of a split."""
        if self.stored is not None:
            return self.stored[split]
        return clip_features(self.model, self.examples[split], self.config.clips)

    def _probe_scores(self, split: str) -> NDArray[np.float64]:
        """Scores (N, clips, K) of the linear head on stored features."""
        classifier = self.model.head(self.head)
        assert isinstance(classifier, ClipClassifier)
        with torch.inference_mode():
            logits = classifier.linear(self._features(split).to(classifier.linear.weight.device))
            return classifier.scores(logits, self.model.card.heads[self.head]).double().cpu().numpy()

    def metrics(self, table: pd.DataFrame) -> dict[str, float]:
        """The task's metrics on all rows of a table, and those from outside."""
        patients, metrics = self.task.measured(table)
        metrics = with_measures(metrics, self.measures, table)
        return {name: float(np.ravel(value)[0]) for name, value in metrics(np.ones((1, len(patients)))).items()}

    def score(self, table: pd.DataFrame) -> float:
        """The metric that chooses, for a table of validation rows.

        Raises:
            UserError: the metric does not exist, is better if lower, or is not defined on these rows.
        """
        name, metrics = self.config.chosen_by or self.task.chosen_by, self.metrics(table)
        lower = self.task.lower_is_better | {measure.name for measure in self.measures if measure.lower_is_better}
        if name not in metrics or name in lower:
            possible = [metric for metric in metrics if metric not in lower]
            raise UserError(f"chosen_by is {name!r}; choose one of {', '.join(possible)}.")
        if math.isnan(metrics[name]):
            raise UserError(
                f"{name} is not defined on the validation rows, because they lack a class or all findings. Move "
                "patients between the splits."
            )
        return metrics[name]

    def train(self) -> Generator[Record, None, Choice]:
        """Train by gradient with regular validations, and end with the weights of the best validation."""
        config, model = self.config, self.model
        rows = balanced(self.examples["train"]) if config.balanced else self.examples["train"]
        loss = self.task.criterion(model.head(self.head), rows)
        training = HeadTraining(model, self.head, config.method != "full", loss, config.average)
        optimiser, validations = self._optimiser(), Validations(self.folder)
        data = ClipData(rows, model.card.clip, model.card.input, self.task, config.augmentation)

        def validate(n_steps: int) -> Record:
            if n_steps % config.validate_every and n_steps != config.steps:
                return {}
            training.eval()
            device = next(model.parameters()).device.type
            dtype = dtype_of(config.precision, device)
            with training.averaged():
                with torch.autocast(device, dtype, enabled=dtype != torch.float32):
                    score = self.score(self.table("val"))
                validations.add(n_steps, score, model)
            training.train()
            return {"validation": score}

        def schedule(step: int) -> dict[str, float]:
            lr = learning_rate(config, step, math.ceil(len(data) / config.batch))
            return {"lr": lr, "weight_decay": config.weight_decay}

        # A run can be stopped between a step and its validation; a missing validation is computed first.
        state = Checkpoints(self.folder / CHECKPOINTS).load(training, optimiser)
        if state and state["step"] not in validations.scores:
            validate(state["step"])
        loop = LoopConfig(
            steps=config.steps,
            batch=config.batch,
            precision=config.precision,
            clip=1.0,
            seed=self.seed,
            save_every=config.validate_every,
            workers=config.workers,
        )
        for record in train(training, optimiser, schedule, data, loop, self.folder, lambda step: validate(step + 1)):
            yield {"seed": self.seed, **record}
        model.load_state_dict(load_file(self.folder / Validations.WEIGHTS))
        model.eval()
        return validations.best

    def _optimiser(self) -> torch.optim.Optimizer:
        config, groups = self.config, layer_groups(self.model, self.config.layer_decay)
        if config.optimiser == "sgd":
            return torch.optim.SGD(groups, lr=config.lr, momentum=0.9)
        if config.optimiser == "adabelief":
            return AdaBelief(groups, lr=config.lr, eps=1e-16)
        return torch.optim.AdamW(groups, lr=config.lr)

    def linear_probe(self) -> Generator[Record, None, Choice]:
        """Logistic regression on CLS with the penalty that validation chooses; it is deterministic."""
        head = self.model.card.heads[self.head]
        features = {split: self._features(split) for split in ("train", "val")}
        target = torch.from_numpy(targets_of(self.examples["train"])).repeat_interleave(self.config.clips, dim=0)
        best, solution = Choice({}, -math.inf), None
        for l2 in L2:
            weight, bias = fit_linear(features["train"].flatten(0, 1), target, len(head.classes), l2)
            scores = linear_scores(features["val"], weight, bias, head)
            validation = self.score(class_table(self.examples["val"], scores, head))
            yield {"seed": self.seed, "l2": l2, "validation": validation}
            if validation > best.validation:
                best, solution = Choice({"l2": l2}, validation), (weight, bias)
        assert solution is not None
        classifier = self.model.head(self.head)
        assert isinstance(classifier, ClipClassifier)
        classifier.set_linear(*solution)
        return best

    def knn(self) -> Generator[Record, None, tuple[Choice, pd.DataFrame]]:
        """Nearest neighbours of CLS; validation chooses their number. Also returns the table of the test rows."""
        head = self.model.card.heads[self.head]
        features = {split: self._features(split) for split in self.examples}
        target = targets_of(self.examples["train"])

        def predictions(split: str, k: int) -> pd.DataFrame:
            scores = knn_scores(features["train"], target, features[split], len(head.classes), k)
            return class_table(self.examples[split], scores, head)

        best = Choice({}, -math.inf)
        for k in NEIGHBOURS:
            validation = self.score(predictions("val", k))
            yield {"seed": self.seed, "k": k, "validation": validation}
            if validation > best.validation:
                best = Choice({"k": k}, validation)
        return best, predictions("test", int(best.chosen["k"]))


class Validations:
    """The validations of a training by step, and the weights of the best one."""

    WEIGHTS, SCORES = "chosen.safetensors", "validation.json"

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        path = folder / self.SCORES
        self.scores: dict[int, float] = {int(s): v for s, v in read_json(path).items()} if path.is_file() else {}

    def add(self, step: int, score: float, model: nn.Module) -> None:
        """Record a validation, and save the weights if no earlier validation was as good."""
        if score > max((v for s, v in self.scores.items() if s < step), default=-math.inf):
            later_scores = [v for s, v in self.scores.items() if s > step]
            if score >= max(later_scores, default=-math.inf):  # a resumed run repeats validations
                with atomic_path(self.folder / self.WEIGHTS) as temporary:
                    write_weights(model.state_dict(), temporary)
        self.scores[step] = score
        write_json(self.folder / self.SCORES, {str(s): v for s, v in sorted(self.scores.items())})

    @property
    def best(self) -> Choice:
        """The chosen step and its score; the earliest of equal scores."""
        step = min(self.scores, key=lambda s: (-self.scores[s], s))
        return Choice({"step": step}, self.scores[step])
