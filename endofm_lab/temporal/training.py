"""The training of a network over time on whole recordings: its loss, its data, and its choice on validation."""

from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor

from endofm_lab.errors import UserError
from endofm_lab.finetuning.fitting import Choice, Validations
from endofm_lab.metrics.phases import true_runs
from endofm_lab.metrics.probes import fit_linear
from endofm_lab.metrics.smoothing import transition_from_labels
from endofm_lab.tasks.task import Task
from endofm_lab.temporal.config import TemporalConfig
from endofm_lab.temporal.model import TemporalModel
from endofm_lab.temporal.networks import Linear
from endofm_lab.temporal.recordings import Recording
from endofm_lab.training.checkpoints import Checkpoints
from endofm_lab.training.loop import CHECKPOINTS, LoopConfig, Record, Trainable, train
from endofm_lab.training.optimiser import parameter_groups
from endofm_lab.training.schedules import cosine

LARGEST_CHANGE = 4.0  # tau of the loss between neighbouring instants


class RecordingData:
    """Recordings as training data (`training.draws.Data`): a sample is a whole recording, read from disk."""

    def __init__(self, recordings: Sequence[Recording]) -> None:
        self.recordings, self.n_files = recordings, len(recordings)

    def __len__(self) -> int:
        return len(self.recordings)

    def name(self, index: int) -> str:
        """The name of a recording."""
        return self.recordings[index].name

    def sample(self, index: int, seed: int) -> dict[str, Tensor]:
        """Vectors (T, D), times (T,) and targets (T,) or (T, K) of a recording."""
        recording = self.recordings[index]
        return {
            "vectors": torch.from_numpy(recording.vectors()),
            "times_s": torch.from_numpy(recording.times_s).float(),
            "target": torch.from_numpy(recording.target),
        }

    def collate(self, samples: list[Any]) -> list[Any]:
        """The recordings of a batch, which differ in length."""
        return samples


class TemporalTraining(Trainable):
    """A model of time in training; the recordings of a batch are computed one after the other.

    The loss is the sum over stages of the cross-entropy of labelled instants and ``steady`` times the truncated squared
    change of log-probabilities between neighbouring instants, as in MS-TCN (arXiv 1903.01945), equations 8 to 11.
    """

    def __init__(self, model: TemporalModel, steady: float) -> None:
        super().__init__()
        self.model, self.steady = model, steady

    def parts(self, batch: Any) -> list[int]:
        """One part per recording."""
        return list(range(len(batch)))

    def forward(self, batch: Any, part: int, step: int) -> dict[str, Tensor]:
        """The share of one recording in the loss of the batch."""
        recording = batch[part]
        logits = self.model(recording["vectors"], recording["times_s"])
        return {"loss": temporal_loss(logits, recording["target"], self.steady) / len(batch)}


def temporal_loss(logits: Tensor, target: Tensor, steady: float) -> Tensor:
    """The loss of stages (S, T, K): targets are (T,) classes or (T, K) of 0 and 1, and -1 where there is no label."""
    several = target.ndim == 2
    is_labelled = (target[:, 0] if several else target) >= 0
    total = logits.new_zeros(())
    for stage in logits:
        if bool(is_labelled.any()):
            labelled, truth = stage[is_labelled], target[is_labelled]
            total = total + (
                F.binary_cross_entropy_with_logits(labelled, truth.to(labelled.dtype))
                if several
                else F.cross_entropy(labelled, truth)
            )
        log_p = F.logsigmoid(stage) if several else F.log_softmax(stage, dim=-1)
        if steady and len(stage) > 1:
            change = (log_p[1:] - log_p[:-1].detach()).abs().clamp(max=LARGEST_CHANGE)
            total = total + steady * change.square().mean()
    return total


def prepare(model: TemporalModel, training: Sequence[Recording]) -> None:
    """Learn the inputs' statistics and the smoother's transitions from the training recordings.

    Raises:
        UserError: no training recording has readable vectors.
    """
    vectors = torch.from_numpy(np.concatenate([recording.vectors() for recording in training]))
    model.inputs.fit(vectors, max(float(recording.times_s[-1]) for recording in training))
    if model.card.several:
        return
    # Instants on both sides of a gap in the labels are more than one step apart.
    stretches = [
        recording.target[start:stop] for recording in training for start, stop in true_runs(recording.labelled)
    ]
    counts = np.bincount(np.concatenate(stretches), minlength=len(model.card.classes))
    model.transition.copy_(torch.from_numpy(transition_from_labels(stretches, len(model.card.classes))))
    model.prior.copy_(torch.from_numpy(counts / counts.sum()))


def fit_exactly(model: TemporalModel, training: Sequence[Recording], l2: float) -> None:
    """Fit the network "linear" on all labelled instants, by the logistic regression of the linear probe."""
    inputs, targets = [], []
    for sample in map(RecordingData(training).sample, range(len(training)), [0] * len(training)):
        is_labelled = (sample["target"] if sample["target"].ndim == 1 else sample["target"][:, 0]) >= 0
        inputs.append(model.inputs(sample["vectors"], sample["times_s"])[is_labelled])
        targets.append(sample["target"][is_labelled])
    weight, bias = fit_linear(torch.cat(inputs), torch.cat(targets), len(model.card.classes), l2)
    assert isinstance(model.network, Linear)
    with torch.no_grad():
        model.network.layer.weight.copy_(weight)
        model.network.layer.bias.copy_(bias)


def answers(model: TemporalModel, recordings: Sequence[Recording]) -> pd.DataFrame:
    """The table of answers at labelled instants, with the columns of the tasks phases or classification."""
    tables = []
    for recording in recordings:
        scores, is_labelled = model.scores(recording.vectors(), recording.times_s), recording.labelled
        table = pd.DataFrame({"row": [f"{recording.name}@{at:.3f}" for at in recording.times_s[is_labelled]]})
        table["patient"], table["video"] = recording.patient, recording.name
        target: NDArray[np.int64] = recording.target[is_labelled]
        if model.card.several:
            table[[f"target_{name}" for name in model.card.classes]] = target
        else:
            table["target"], table["predicted"] = target, scores[is_labelled].argmax(1)
        table[[f"score_{name}" for name in model.card.classes]] = scores[is_labelled]
        tables.append(table)
    return pd.concat(tables, ignore_index=True)


def measured(task: Task, table: pd.DataFrame) -> dict[str, float]:
    """The task's metrics of a table of answers."""
    patients, metrics = task.measured(table)
    return {name: float(np.ravel(value)[0]) for name, value in metrics(np.ones((1, len(patients)))).items()}


def fit_network(
    config: TemporalConfig,
    seed: int,
    task: Task,
    model: TemporalModel,
    recordings: dict[str, list[Recording]],
    folder: Path,
) -> Generator[Record, None, Choice | None]:
    """Train by gradient, and end with the weights of the best validation, or of the last step without validation rows.

    Raises:
        UserError: the validation rows do not define the metric that chooses.
    """
    training, validations = TemporalTraining(model, config.steady), Validations(folder)
    optimiser = torch.optim.AdamW(parameter_groups(model), lr=config.lr)

    def validate(n_steps: int) -> Record:
        if not recordings["val"] or (n_steps % config.validate_every and n_steps != config.steps):
            return {}
        score = measured(task, answers(model, recordings["val"]))[task.chosen_by]
        if np.isnan(score):
            raise UserError(
                f"{task.chosen_by} is not defined on the validation rows. Move patients between the splits."
            )
        validations.add(n_steps, score, model)
        training.train()
        return {"validation": score}

    def schedule(step: int) -> dict[str, float]:
        return {"lr": cosine(step, config.lr, 0.0, config.steps), "weight_decay": config.weight_decay}

    # A run can be stopped between a step and its validation; a missing validation is computed first.
    state = Checkpoints(folder / CHECKPOINTS).load(training, optimiser)
    if state and state["step"] not in validations.scores:
        validate(state["step"])
    loop = LoopConfig(
        steps=config.steps,
        batch=config.batch,
        clip=1.0,
        seed=seed,
        save_every=config.validate_every,
        precision="float32",
    )
    data = RecordingData(recordings["train"])
    for record in train(training, optimiser, schedule, data, loop, folder, lambda step: validate(step + 1)):
        yield {"seed": seed, **record}
    model.eval()
    if not recordings["val"]:
        return None
    model.load_state_dict(load_file(folder / Validations.WEIGHTS))
    return validations.best
