"""The health of a self-supervised run: measures of collapse, a verdict in words, and a probe with labels."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from endofm_lab.brief import Brief
from endofm_lab.data.manifest import Manifest
from endofm_lab.data.rows import Row
from endofm_lab.data.units import Units, units
from endofm_lab.errors import ManifestError
from endofm_lab.metrics.classification import balanced_accuracy
from endofm_lab.metrics.intervals import bootstrap_interval
from endofm_lab.metrics.probes import NEIGHBOURS, knn_scores, linear_answers
from endofm_lab.pretraining.objective import Signs
from endofm_lab.video.transforms import InputSpec, to_input

Record = dict[str, Any]
State = Literal["too early to say", "healthy", "collapsing to one prototype", "collapsed to uniform", "diverging"]

_EARLY = 20  # records that a verdict needs
_RECENT = 20  # last records that the verdict rests on


def feature_std(features: Tensor) -> float:
    """Spread of features (N, D): mean over dimensions of the standard deviation of the L2-normalised features, times
    sqrt(D). It is 1 for uniformly distributed directions and 0 for constant features (SimSiam, arXiv 2011.10566,
    section 4.1).
    """
    unit = nn.functional.normalize(features.float(), dim=-1)
    return float(unit.std(dim=0).mean() * math.sqrt(features.shape[1]))


def rankme(features: Tensor) -> float:
    """Effective rank of features (N, D), from 1 to min(N, D): exp of the entropy of the normalised singular values.

    Source:
        RankMe, arXiv 2210.02885, equation 2.
    """
    values = torch.linalg.svdvals(features.float())
    p = values / values.sum() + 1e-7
    return float((-(p * p.log()).sum()).exp())


def feature_measures(features: Tensor) -> dict[str, float]:
    """``feature_std`` and ``rankme`` of the last clips' features (N, D); nothing for fewer than two."""
    if len(features) < 2:
        return {}
    return {"feature_std": feature_std(features), "rankme": rankme(features)}


@dataclass(frozen=True)
class Health:
    """A verdict: ``state``, its reasons in ``words``, and remedies to try in ``advice`` (empty if healthy)."""

    state: State
    words: str
    advice: str = ""

    def __str__(self) -> str:
        return f"{self.state}: {self.words}" + (f" Try: {self.advice}" if self.advice else "")


def verdict(records: Sequence[Record], signs: Signs) -> Health:
    """A verdict on a run from its records.

    Args:
        records: records of the log, oldest first.
        signs: signs of health in the log of the objective. Objectives without prototypes cannot collapse onto one; the
            verdict then rests on the loss and the spread of the features alone.
    """
    losses = [_number(record.get(signs.loss, record["loss"])) for record in records]
    if not all(map(math.isfinite, losses[-_RECENT:])):
        return Health("diverging", "the loss is not a number.", _LESS)
    if len(records) < _EARLY:
        return Health("too early to say", f"{len(records)} steps; the verdict needs {_EARLY}.")
    loss, first, recent = _mean(losses[-_RECENT:]), _mean(losses[:5]), records[-_RECENT:]
    if (prototypes := signs.prototypes) is not None:
        uniform = math.log(prototypes)
        entropy = _mean([record["teacher_entropy"] for record in recent]) / uniform
        used = _mean([record["prototypes_used"] for record in recent])
        if loss > max(1.3 * first, 1.2 * uniform):
            return Health("diverging", f"the loss went from {first:.2f} to {loss:.2f}; ln K is {uniform:.2f}.", _LESS)
        # In both forms of collapse all clips get the same distribution: one prototype alone, or all of them equally.
        if used < 1.5 and entropy < 0.2:
            words = f"every clip gets the same prototype (used: {used:.2f} of {prototypes}), with a loss of {loss:.3f}."
            return Health("collapsing to one prototype", words, _SPREAD)
        if entropy > 0.98 and loss > 0.98 * uniform:
            words = (
                f"the teacher's targets stay uniform: entropy {entropy:.1%} of ln K, loss {loss:.2f} of {uniform:.2f}."
            )
            return Health("collapsed to uniform", words, signs.advice)
        words = f"the teacher is {'decided' if entropy < 0.9 else 'still undecided'} (entropy {entropy:.0%} of ln K), "
        words += f"uses {used:.1f} prototypes in a batch, loss {first:.2f} -> {loss:.2f}"
    else:
        # While a queue fills, each clip is compared with more clips, so the loss of a healthy run grows.
        negatives = records[-1].get("others")
        comparable = [value for value, record in zip(losses, records, strict=True) if record.get("others") == negatives]
        if loss > 1.3 * (first := _mean(comparable[:5])):
            return Health("diverging", f"the loss went from {first:.2f} to {loss:.2f}.", _LESS)
        words = f"loss {first:.2f} -> {loss:.2f}"
    for name, least in signs.least.items():
        if (spread := _last(records, name)) is not None and spread < least:
            words = f"all clips have nearly the same feature ({name} {spread:.3f}, but at least {least} is expected)."
            return Health("collapsed to uniform", words, signs.advice)
    rank = _last(records, "rankme")
    return Health("healthy", words + (f", features of rank {rank:.1f}." if rank is not None else "."))


_LESS = "a lower learning rate, a longer warm-up, gradient clipping, bfloat16 or float32 in place of float16."
_SPREAD = (
    "centring switched on, a higher teacher temperature (0.04 -> 0.07), a larger batch, fewer prototypes, prototypes "
    "frozen for longer."
)


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values))


def _number(value: float | None) -> float:
    """A number of the log, which writes NaN and infinity as null."""
    return math.nan if value is None else value


def _last(records: Sequence[Record], name: str) -> float | None:
    return next((record[name] for record in reversed(records) if record.get(name) is not None), None)


@dataclass(frozen=True, eq=False, repr=False)
class ProbeData(Brief):
    """Clips with labels: uint8 frames (N, T, px, px, 3), labels (N,), units of N rows, held-out rows (N,) bool."""

    frames: np.ndarray
    labels: np.ndarray
    units: Units
    held_out: np.ndarray
    classes: tuple[str, ...]


def load_probe(
    manifest: Manifest,
    n_frames: int,
    size_px: int,
    label: str = "label",
    held_out: tuple[str, str] = ("val", "test"),
) -> ProbeData:
    """The labelled rows of a manifest, one clip over the whole of each row.

    Probes learn from "train" rows and are tested on the rows of the first split in ``held_out`` that exists.

    Raises:
        ManifestError: there are no labelled rows to learn from or to test on, or a patient or recording is in both.
        VideoError: a video cannot be read.
    """
    if label not in manifest.table:
        raise ManifestError(
            f"{manifest.path} has no column {label!r}; choose one of {', '.join(map(str, manifest.table.columns))}."
        )
    table = manifest.table[manifest.table[label].fillna("") != ""]
    tested = next((split for split in held_out if (table["split"] == split).any()), held_out[0])
    table = table[table["split"].isin(["train", tested])]
    if table["split"].nunique() != 2:
        raise ManifestError(f"{manifest.path}: A probe needs labelled rows of 'train' and of 'val' or 'test'.")
    of_row, is_tested = units(table), (table["split"] == tested).to_numpy()
    if shared := set(of_row.ids[is_tested]) & set(of_row.ids[~is_tested]):
        raise ManifestError(
            f"{manifest.path}: {len(shared)} patients or recordings are in 'train' and in '{tested}', for example "
            f"{min(shared)}. A probe would recognise them: split by patient (`endofm-lab data split`)."
        )
    spec = InputSpec(size_px, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    frames = []
    for cells in table.to_dict("records"):
        frames.append(_clip(Row.of(manifest, cells), n_frames, spec))
    classes = tuple(sorted(set(table[label])))
    return ProbeData(
        np.stack(frames),
        np.array([classes.index(name) for name in table[label]]),
        of_row,
        is_tested,
        classes,
    )


def _clip(row: Row, n_frames: int, spec: InputSpec) -> np.ndarray:
    with row.open() as video:
        frames = video.read(row.whole(video, n_frames))
    pixels = to_input(frames, spec)[0].permute(1, 2, 3, 0)  # (T, px, px, 3) in 0..1
    return (pixels * 255).round().clamp(0, 255).byte().numpy()


@torch.no_grad()
def encode(backbone: nn.Module, frames: np.ndarray, spec: InputSpec, batch: int = 8) -> np.ndarray:
    """Features (N, D) float32 of clips, uint8 (N, T, px, px, 3), by a backbone in evaluation mode.

    They are CLS, or the mean over patches of a backbone without one.
    """
    device, training = next(backbone.parameters()).device, backbone.training
    backbone.eval()
    batches = [
        backbone(to_input(frames[i : i + batch], spec).to(device)).pooled().float().cpu()
        for i in range(0, len(frames), batch)
    ]
    backbone.train(training)
    return torch.cat(batches).numpy()


def probe(features: np.ndarray, data: ProbeData, n_resamples: int = 0, seed: int = 0) -> dict[str, Any]:
    """Balanced accuracy of "knn" and "linear" on the held-out rows, from features (N, D) of all rows, and "chance".

    Both probes are those of fine-tuning (`endofm_lab.metrics.probes`) with fixed settings, because there are no further
    rows to choose settings on. With ``n_resamples``, the result also has "knn_low", "knn_high", ..., the bounds of 95 %
    intervals over resampled units (None if there are too few units), and "tested_on", the held-out units in words.
    """
    bank, query = (torch.from_numpy(features[rows]).float() for rows in (~data.held_out, data.held_out))
    labels, truth, tested = data.labels[~data.held_out], data.labels[data.held_out], data.units.take(data.held_out)
    predictions = {
        "knn": knn_scores(bank[:, None], labels, query[:, None], len(data.classes), NEIGHBOURS[0]).argmax(axis=1),
        "linear": linear_answers(bank, labels, query),
    }
    numbers: dict[str, Any] = {"chance": 1 / len(set(truth))} | ({"tested_on": tested.words} if n_resamples else {})
    for name, predicted in predictions.items():
        numbers[name] = float(balanced_accuracy(truth, predicted))
        if n_resamples:
            interval = bootstrap_interval(balanced_accuracy, tested.ids, truth, predicted, n=n_resamples, seed=seed)
            bounds = {f"{name}_low": interval.low, f"{name}_high": interval.high}
            numbers |= {key: None if math.isnan(value) else value for key, value in bounds.items()}
    return numbers


def with_interval(numbers: dict[str, Any], name: str) -> str:
    """The accuracy of a probe with its interval as text: "0.531 [0.437, 0.641]"."""
    low, high = numbers[f"{name}_low"], numbers[f"{name}_high"]
    return f"{numbers[name]:.3f} " + ("(no interval: too few units)" if low is None else f"[{low:.3f}, {high:.3f}]")
