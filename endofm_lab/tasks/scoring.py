"""Scores of a class head and features of a backbone on clips spread over rows, and the table of classes."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from endofm_lab.metrics.calibration import fit_temperature
from endofm_lab.model.card import HeadSpec
from endofm_lab.model.video_model import VideoModel, check_finite
from endofm_lab.tasks.clips import EvaluationClip, in_batches, spread_clips
from endofm_lab.tasks.examples import Example

BATCH = 8  # clips that go through the model together


def answers(model: VideoModel, head: str, clips: Sequence[EvaluationClip]) -> Tensor:
    """The output of a head for a batch of clips, as `VideoModel.predict` returns it.

    Raises:
        UserError: an output is NaN or infinite.
    """
    return model.predict(torch.stack([item.clip for item in clips]), [item.name for item in clips])[head]


def clip_scores(
    model: VideoModel, head: str, examples: Sequence[Example], n_clips: int, crops: int = 1
) -> NDArray[np.float64]:
    """Scores (N, n_clips * crops, K) of evenly spread clips of every row, each clip in ``crops`` crops."""
    clips = spread_clips(examples, model.card.clip, model.card.input, n_clips, crops)
    scores = [answers(model, head, batch) for batch in in_batches(clips, BATCH)]
    return torch.cat(scores).double().unflatten(0, (len(examples), n_clips * crops)).numpy()


@torch.inference_mode()
def clip_features(model: VideoModel, examples: Sequence[Example], n_clips: int, batch: int = 8) -> Tensor:
    """Pooled features (N, n_clips, D) float32 of evenly spread clips of every row; ``model`` is in evaluation mode."""
    device = next(model.parameters()).device
    clips = spread_clips(examples, model.card.clip, model.card.input, n_clips)
    batches = []
    for items in in_batches(clips, batch):
        features = model.backbone(torch.stack([item.clip for item in items]).to(device)).pooled()
        check_finite(features, f"The backbone of {model.card.name}", [item.name for item in items])
        batches.append(features.float().cpu())
    return torch.cat(batches).unflatten(0, (len(examples), n_clips))


def targets_of(examples: Sequence[Example]) -> NDArray[np.int64]:
    """Class numbers (N,), or (N, K) of 0 and 1, of examples whose truth is a label."""
    return np.array([example.target for example in examples], dtype=np.int64)


def class_table(examples: Sequence[Example], scores: NDArray[np.float64], head: HeadSpec) -> pd.DataFrame:
    """One row per example: ``row``, ``patient``, ``target`` (or ``target_<class>``) and ``score_<class>``."""
    table = pd.DataFrame({"row": [e.row for e in examples], "patient": [e.patient for e in examples]})
    targets = targets_of(examples)
    if targets.ndim == 1:
        table["target"] = targets
    else:
        table[[f"target_{name}" for name in head.classes]] = targets
    table[[f"score_{name}" for name in head.classes]] = scores
    return table


def has_temperature(spec: HeadSpec) -> bool:
    """Whether a head answers with exclusive classes whose scores can be calibrated."""
    return spec.kind == "multiclass" and "temperature" in spec.head_class.options


def with_temperature(spec: HeadSpec, scores: NDArray[np.float64], examples: Sequence[Example]) -> HeadSpec:
    """The description of a head with the temperature that fits its scores (N, clips, K) on validation rows best.

    Heads for several labels stay as they are.
    """
    if not has_temperature(spec):
        return spec
    target = targets_of(examples).repeat(scores.shape[1])
    scaling = fit_temperature(target, np.log(np.clip(scores, 1e-12, 1)).reshape(len(target), -1))
    return replace(spec, temperature=scaling.temperature)
