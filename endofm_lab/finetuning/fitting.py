"""How one model is fitted to a task: trained step by step, or solved on frozen features; validation chooses."""

import math
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_file
from timm.optim import AdaBelief
from torch import Tensor, nn

from endofm_lab.errors import UserError
from endofm_lab.files import atomic_path, read_json, write_json
from endofm_lab.finetuning.config import FinetuneConfig
from endofm_lab.metrics.measure import Measure, with_measures
from endofm_lab.metrics.probes import L2, NEIGHBOURS, fit_linear, knn_scores, linear_scores
from endofm_lab.model.adapters import is_adapter
from endofm_lab.model.head import Batch
from endofm_lab.model.heads import ClipClassifier
from endofm_lab.model.precision import dtype_of
from endofm_lab.model.video_model import VideoModel
from endofm_lab.model.weight_files import write_weights
from endofm_lab.tasks import Task
from endofm_lab.tasks.clips import ClipData
from endofm_lab.tasks.examples import Example
from endofm_lab.tasks.labels import balanced
from endofm_lab.tasks.scoring import class_table, clip_features, targets_of
from endofm_lab.tasks.task import Loss
from endofm_lab.training.checkpoints import Checkpoints
from endofm_lab.training.loop import CHECKPOINTS, LoopConfig, Record, Trainable, train
from endofm_lab.training.optimiser import parameter_groups
from endofm_lab.training.schedules import cosine

POWER = 0.9  # of the polynomial schedule


@dataclass(frozen=True)
class Choice:
    """What validation chose (by name: a step, a penalty, a number of neighbours), and its score."""

    chosen: dict[str, float]
    validation: float


class HeadTraining(Trainable):
    """A model of which everything learns one task, or with ``frozen`` the head alone, and adapters where it has them.

    ``loss``: of logits and a batch; by default the head's own.
    """

    def __init__(self, model: VideoModel, head: str, frozen: bool, loss: Loss | None = None) -> None:
        super().__init__()
        self.model, self.head, self.frozen = model, head, frozen
        self.loss = loss or model.head(head).loss
        for name, parameter in model.backbone.named_parameters():
            parameter.requires_grad_(not frozen or is_adapter(name))

    def train(self, mode: bool = True) -> "HeadTraining":
        """A frozen backbone stays as it is in evaluation: no drop path."""
        super().train(mode)
        if self.frozen:
            self.model.backbone.eval()
        return self

    def forward(self, batch: Batch, part: Any, step: int) -> dict[str, Tensor]:
        """The loss of a batch as ``ClipData.collate`` makes it."""
        logits = self.model(batch["clip"]).logits[self.head]
        return {"loss": self.loss(logits, batch)}


def layer_groups(model: VideoModel, decay: float) -> list[dict[str, Any]]:
    """Groups for the optimiser: ``lr_scale`` is 1 for heads and the encoder's last layer, ``decay`` for the one below,
    ``decay`` ** 2 for the next, and so on down to the embeddings.
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


@dataclass(frozen=True)
class Fit:
    """One model on its way.

    Attributes:
        config: what was asked for.
        seed: of everything random.
        task: what is asked.
        model: fitted in place; the task names the head that learns.
        examples: rows by split.
        folder: of this seed: log, checkpoints, validations, chosen weights.
        measures: metrics from outside the library, beside those of the task.
    """

    config: FinetuneConfig
    seed: int
    task: Task
    model: VideoModel
    examples: dict[str, list[Example]]
    folder: Path
    measures: tuple[type[Measure], ...] = ()

    @property
    def head(self) -> str:
        """The name of the head that learns."""
        return self.task.head_name

    def table(self, split: str) -> pd.DataFrame:
        """Truth and answers of the model on a split; see ``runs.run``."""
        return self.task.table(self.model, self.head, self.examples[split], self.examples["train"])

    def metrics(self, table: pd.DataFrame) -> dict[str, float]:
        """The task's metrics on all rows of a table, and those from outside."""
        patients, metrics = self.task.measured(table)
        metrics = with_measures(metrics, self.measures, table)
        return {name: float(np.ravel(value)[0]) for name, value in metrics(np.ones((1, len(patients)))).items()}

    def score(self, table: pd.DataFrame) -> float:
        """The metric that chooses, of a table of the validation rows.

        Raises:
            UserError: there is no such metric, smaller values of it are better, or it is not defined on these rows.
        """
        name, metrics = self.config.chosen_by or self.task.chosen_by, self.metrics(table)
        lower = self.task.lower_is_better | {measure.name for measure in self.measures if measure.lower_is_better}
        if name not in metrics or name in lower:
            possible = [metric for metric in metrics if metric not in lower]
            raise UserError(f"chosen_by is {name!r}; validation can choose by {', '.join(possible)}.")
        if math.isnan(metrics[name]):
            raise UserError(
                f"{name} is not defined on the validation rows, so they can choose nothing: they lack a class, or "
                "every finding. Move patients between the splits."
            )
        return metrics[name]

    def train(self) -> Generator[Record, None, Choice]:
        """Train by gradient, validate every so often, and end with the weights of the best validation."""
        config, model = self.config, self.model
        rows = balanced(self.examples["train"]) if config.balanced else self.examples["train"]
        loss = self.task.criterion(model.head(self.head), rows)
        training = HeadTraining(model, self.head, config.method != "full", loss)
        optimiser, kept = self._optimiser(), _Kept(self.folder)
        data = ClipData(rows, model.card.clip, model.card.input, self.task, config.augmentation)

        def validate(done: int) -> Record:
            if done % config.validate_every and done != config.steps:
                return {}
            training.eval()
            device = next(model.parameters()).device.type
            dtype = dtype_of(config.precision, device)
            with torch.autocast(device, dtype, enabled=dtype != torch.float32):
                score = self.score(self.table("val"))
            training.train()
            kept.add(done, score, model)
            return {"validation": score}

        def schedule(step: int) -> dict[str, float]:
            lr = learning_rate(config, step, math.ceil(len(data) / config.batch))
            return {"lr": lr, "weight_decay": config.weight_decay}

        # A run can be stopped after a step and before its validation: what is missing is measured first.
        state = Checkpoints(self.folder / CHECKPOINTS).load(training, optimiser)
        if state and state["step"] not in kept.scores:
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
        model.load_state_dict(load_file(self.folder / _Kept.WEIGHTS))
        model.eval()
        return kept.best

    def _optimiser(self) -> torch.optim.Optimizer:
        config, groups = self.config, layer_groups(self.model, self.config.layer_decay)
        if config.optimiser == "sgd":
            return torch.optim.SGD(groups, lr=config.lr, momentum=0.9)
        if config.optimiser == "adabelief":
            return AdaBelief(groups, lr=config.lr, eps=1e-16)
        return torch.optim.AdamW(groups, lr=config.lr)

    def linear_probe(self) -> Generator[Record, None, Choice]:
        """Logistic regression on CLS, its penalty chosen; no random choice."""
        head = self.model.card.heads[self.head]
        features = {
            split: clip_features(self.model, self.examples[split], self.config.clips) for split in ("train", "val")
        }
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
        """Nearest neighbours of CLS, their number chosen; also returns the table of the test, as no head holds it."""
        head = self.model.card.heads[self.head]
        features = {split: clip_features(self.model, rows, self.config.clips) for split, rows in self.examples.items()}
        target = targets_of(self.examples["train"])

        def answers(split: str, k: int) -> pd.DataFrame:
            scores = knn_scores(features["train"], target, features[split], len(head.classes), k)
            return class_table(self.examples[split], scores, head)

        best = Choice({}, -math.inf)
        for k in NEIGHBOURS:
            validation = self.score(answers("val", k))
            yield {"seed": self.seed, "k": k, "validation": validation}
            if validation > best.validation:
                best = Choice({"k": k}, validation)
        return best, answers("test", int(best.chosen["k"]))


class _Kept:
    """The validations of a training by step, and the weights of the best one."""

    WEIGHTS, SCORES = "chosen.safetensors", "validation.json"

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        path = folder / self.SCORES
        self.scores: dict[int, float] = {int(s): v for s, v in read_json(path).items()} if path.is_file() else {}

    def add(self, step: int, score: float, model: nn.Module) -> None:
        """Note a validation; the weights are kept if no earlier one was as good."""
        if score > max((v for s, v in self.scores.items() if s < step), default=-math.inf):
            later = [v for s, v in self.scores.items() if s > step]
            if score >= max(later, default=-math.inf):  # a resumed run measures again what it had measured
                with atomic_path(self.folder / self.WEIGHTS) as temporary:
                    write_weights(model.state_dict(), temporary)
        self.scores[step] = score
        write_json(self.folder / self.SCORES, {str(s): v for s, v in sorted(self.scores.items())})

    @property
    def best(self) -> Choice:
        """The chosen step, and its validation; the earliest of equals."""
        step = min(self.scores, key=lambda s: (-self.scores[s], s))
        return Choice({"step": step}, self.scores[step])
