"""The health of a self-supervised run: numbers that show collapse, a verdict in words, and a probe with labels."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

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

_EARLY = 20  # records; before them the verdict waits
_RECENT = 20  # records that the verdict looks at


def feature_std(features: Tensor) -> float:
    """Spread of features (N, D): mean over dimensions of the standard deviation of the L2-normalised features, times
    sqrt(D). 1 for features that point everywhere alike, 0 for constant ones (SimSiam, arXiv 2011.10566, section 4.1).
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
    """A verdict: ``state``, the numbers it rests on in ``words``, and what to try in ``advice`` (empty if healthy)."""

    state: State
    words: str
    advice: str = ""

    def __str__(self) -> str:
        return f"{self.state}: {self.words}" + (f" Try: {self.advice}" if self.advice else "")


def verdict(records: Sequence[Record], signs: Signs) -> Health:
    """The verdict on a run from its records.

    Args:
        records: of the log, oldest first.
        signs: how the objective's log is to be read. Objectives without prototypes cannot collapse onto one and are
            judged by their loss and the spread of their features alone.
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
        # Both collapses give every clip the same answer. Certain: one prototype. Undecided: all of them.
        if used < 1.5 and entropy < 0.2:
            words = f"every clip gets the same prototype (used: {used:.2f} of {prototypes}), with a loss of {loss:.3f}."
            return Health("collapsing to one prototype", words, _ONE)
        if entropy > 0.98 and loss > 0.98 * uniform:
            words = (
                f"the teacher's answers stay uniform: entropy {entropy:.1%} of ln K, loss {loss:.2f} of {uniform:.2f}."
            )
            return Health("collapsed to uniform", words, signs.advice)
        words = f"the teacher is {'decided' if entropy < 0.9 else 'still undecided'} (entropy {entropy:.0%} of ln K), "
        words += f"uses {used:.1f} prototypes in a batch, loss {first:.2f} -> {loss:.2f}"
    else:
        # While a queue fills, a clip is compared with more and more others, and the loss grows although all is well.
        others = records[-1].get("others")
        full = [value for value, record in zip(losses, records, strict=True) if record.get("others") == others]
        if loss > 1.3 * (first := _mean(full[:5])):
            return Health("diverging", f"the loss went from {first:.2f} to {loss:.2f}.", _LESS)
        words = f"loss {first:.2f} -> {loss:.2f}"
    for name, least in signs.least.items():
        if (spread := _last(records, name)) is not None and spread < least:
            words = f"all clips have nearly the same feature ({name} {spread:.3f}, at least {least} is expected)."
            return Health("collapsed to uniform", words, signs.advice)
    rank = _last(records, "rankme")
    return Health("healthy", words + (f", features of rank {rank:.1f}." if rank is not None else "."))


_LESS = "a lower learning rate, a longer warm-up, gradient clipping, bfloat16 or float32 in place of float16."
_ONE = (
    "centring switched on, a higher teacher temperature (0.04 -> 0.07), a larger batch, fewer prototypes, prototypes "
    "frozen for longer."
)


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values))


def _number(value: float | None) -> float:
    """The log writes NaN and infinity as null."""
    return math.nan if value is None else value


def _last(records: Sequence[Record], name: str) -> float | None:
    return next((record[name] for record in reversed(records) if record.get(name) is not None), None)


@dataclass(frozen=True)
class ProbeData:
    """Clips with labels: uint8 frames (N, T, px, px, 3), label numbers (N,), units of N rows, asked rows (N,) bool."""

    frames: np.ndarray
    labels: np.ndarray
    units: Units
    asked: np.ndarray
    classes: tuple[str, ...]


def load_probe(
    manifest: Manifest,
    n_frames: int,
    size_px: int,
    label: str = "label",
    held_out: tuple[str, str] = ("val", "test"),
) -> ProbeData:
    """The labelled rows of a manifest, one clip over the whole of each. Rows of the first split of ``held_out`` that
    there is are asked, and "train" rows answer.

    Raises:
        ManifestError: no labelled rows of "train", none to ask, or a patient or recording that is in both.
        VideoError: a video cannot be read.
    """
    if label not in manifest.table:
        raise ManifestError(
            f"{manifest.path}: No column {label!r} to probe; it has {', '.join(map(str, manifest.table.columns))}."
        )
    table = manifest.table[manifest.table[label].fillna("") != ""]
    asked = next((split for split in held_out if (table["split"] == split).any()), held_out[0])
    table = table[table["split"].isin(["train", asked])]
    if table["split"].nunique() != 2:
        raise ManifestError(f"{manifest.path}: A probe needs labelled rows of 'train' and of 'val' or 'test'.")
    of_row, here = units(table), (table["split"] == asked).to_numpy()
    if both := set(of_row.ids[here]) & set(of_row.ids[~here]):
        raise ManifestError(
            f"{manifest.path}: {len(both)} patients or recordings are in 'train' and in '{asked}', for example "
            f"{min(both)}. A probe would recognise them; split by patient (`endofm-lab data split`)."
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
        here,
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
    """Balanced accuracy of "knn" and "linear" on the asked rows, from features (N, D) of all rows, and "chance".

    Both probes are those of fine-tuning (`endofm_lab.metrics.probes`), at a fixed setting: there are no further rows to
    choose one on. With ``n_resamples``, also "knn_low", "knn_high", ...: 95 % intervals over resampled units, None
    where there are too few of them, and "tested_on", the units of the asked rows in words.
    """
    bank, asked = (torch.from_numpy(features[rows]).float() for rows in (~data.asked, data.asked))
    known, truth, tested = data.labels[~data.asked], data.labels[data.asked], data.units.take(data.asked)
    answers = {
        "knn": knn_scores(bank[:, None], known, asked[:, None], len(data.classes), NEIGHBOURS[0]).argmax(axis=1),
        "linear": linear_answers(bank, known, asked),
    }
    numbers: dict[str, Any] = {"chance": 1 / len(set(truth))} | ({"tested_on": tested.words} if n_resamples else {})
    for name, answer in answers.items():
        numbers[name] = float(balanced_accuracy(truth, answer))
        if n_resamples:
            interval = bootstrap_interval(balanced_accuracy, tested.ids, truth, answer, n=n_resamples, seed=seed)
            bounds = {f"{name}_low": interval.low, f"{name}_high": interval.high}
            numbers |= {key: None if math.isnan(value) else value for key, value in bounds.items()}
    return numbers


def with_interval(numbers: dict[str, Any], name: str) -> str:
    """The number of a probe that was given intervals, in words: "0.531 [0.437, 0.641]"."""
    low, high = numbers[f"{name}_low"], numbers[f"{name}_high"]
    return f"{numbers[name]:.3f} " + ("(no interval: too few units)" if low is None else f"[{low:.3f}, {high:.3f}]")
