"""Sanity checks that measure how far an attribution map can be trusted."""

from collections.abc import Generator
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike
from scipy.stats import spearmanr
from torch import Tensor

from endofm_lab.brief import Brief
from endofm_lab.errors import UserError
from endofm_lab.explain.attribution import Baseline, Method, baseline_of
from endofm_lab.explain.targets import Target, target_of
from endofm_lab.metrics.classification import weighted_mean
from endofm_lab.metrics.intervals import Interval, bootstrap_interval
from endofm_lab.model.video_model import VideoModel

_CURVES = 5  # deletion, insertion, and deletion in three random orders
Result = TypeVar("Result")


def randomised(model: VideoModel, seed: int = 0) -> VideoModel:
    """A copy of a model with the numbers of every tensor shuffled: the same sizes and scales, but nothing learned."""
    copy, draw = deepcopy(model).eval(), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in copy.parameters():
            order = torch.randperm(parameter.numel(), generator=draw).to(parameter.device)
            parameter.copy_(parameter.flatten()[order].view_as(parameter))
    return copy


def randomisation_test(model: VideoModel, clip: Tensor, head: str, label: str, method: Method, seeds: int = 3) -> float:
    """Mean rank correlation of a method's map with its maps for models with shuffled weights (Adebayo et al. 2018).

    Near 0, the map depends on what the model has learned. Near 1, it would look the same for any weights.
    """
    trained = method(model, clip, target_of(model, head, label)).values
    return _returned(_randomisation_steps(model, clip, head, label, method, trained, seeds))


def _randomisation_steps(
    model: VideoModel, clip: Tensor, head: str, label: str, method: Method, values: Tensor, seeds: int
) -> Generator[None, None, float]:
    """`randomisation_test` of a map (T, h, w), with a step for every seed."""
    trained, results = values.flatten(), []
    for seed in range(seeds):
        shuffled = randomised(model, seed)
        random = method(shuffled, clip, target_of(shuffled, head, label)).values.flatten()
        constant = trained.std() == 0 or random.std() == 0  # a constant map has no ranks
        results.append(0.0 if constant else float(spearmanr(trained, random).statistic))
        yield
    return float(np.mean(results))


@dataclass(frozen=True, eq=False, repr=False)
class Curves(Brief):
    """Scores while patches are replaced by or restored from the baseline, most important first (Petsiuk et al. 2018).

    Attributes:
        share: (S,) share of the patches that are changed, 0 to 1.
        deletion: (S,) score with that share replaced by the baseline; it falls early if the map is right.
        insertion: (S,) score with only that share of the clip visible; it rises early if the map is right.
        random_deletion: (S,) the deletion curve for patches in random order (mean of three).
    """

    share: np.ndarray
    deletion: np.ndarray
    insertion: np.ndarray
    random_deletion: np.ndarray

    @property
    def gap(self) -> float:
        """Area between insertion and deletion, divided by the score's difference from the baseline.

        Larger is better; a map that is no better than chance has at most about 0.
        """
        span = abs(self.deletion[0] - self.deletion[-1])
        return float(np.trapezoid(self.insertion - self.deletion, self.share) / max(span, 1e-12))


def deletion_insertion(
    model: VideoModel,
    clip: Tensor,
    target: Target,
    values: Tensor,
    baseline: Baseline = "blur",
    steps: int = 12,
    batch_clips: int = 8,
    seed: int = 0,
) -> Curves:
    """Deletion and insertion curves of a map (T, h, w) over a clip (1, 3, T, H, W)."""
    return _returned(_curve_steps(model, clip, target, values, baseline, steps, batch_clips, seed))


@torch.inference_mode()
def _curve_steps(
    model: VideoModel,
    clip: Tensor,
    target: Target,
    values: Tensor,
    baseline: Baseline = "blur",
    steps: int = 12,
    batch_clips: int = 8,
    seed: int = 0,
) -> Generator[None, None, Curves]:
    """`deletion_insertion` with a step for each of `_CURVES` curves."""
    start = baseline_of(clip, model.card.input, baseline)
    share = np.linspace(0, 1, steps + 1)
    draw = np.random.default_rng(seed)
    order = np.argsort(-values.numpy().ravel(), kind="stable")
    patch = clip.shape[-1] // values.shape[-1]

    def scores(order: np.ndarray, keep: bool) -> np.ndarray:
        """Scores with the first patches replaced (``keep`` False), or with only these patches visible (True)."""
        results = []
        for first in range(0, len(share), batch_clips):
            clips = []
            for fraction in share[first : first + batch_clips]:
                chosen = torch.zeros(values.numel(), dtype=torch.bool)
                chosen[torch.from_numpy(order[: round(fraction * len(order))].copy())] = True
                pixels = chosen.view(values.shape).repeat_interleave(patch, 1).repeat_interleave(patch, 2)
                clips.append(torch.where(pixels[None, None].to(clip.device) == keep, clip, start))
            results.append(target.score(torch.cat(clips)).cpu().numpy())
        return np.concatenate(results)

    random = []
    for _ in range(_CURVES - 2):
        random.append(scores(draw.permutation(len(order)), False))
        yield
    deletion = scores(order, False)
    yield
    insertion = scores(order, True)
    yield
    return Curves(share, deletion, insertion, np.mean(random, axis=0))


def trust_steps(
    model: VideoModel, clip: Tensor, head: str, label: str, method: Method, values: Tensor, seeds: int = 2
) -> Generator[tuple[int, int], None, tuple[Curves, float]]:
    """Both tests of a method's map (T, h, w) in steps, for callers with a progress bar of their own.

    Yields (steps done, steps in all); returns `deletion_insertion` and `randomisation_test`.
    """
    done, total = 0, _CURVES + seeds
    yield done, total
    curves = _curve_steps(model, clip, target_of(model, head, label), values)
    shuffled = _randomisation_steps(model, clip, head, label, method, values, seeds)
    results: list[Any] = []
    for steps in (curves, shuffled):
        while True:
            try:
                next(steps)  # type: ignore[call-overload]
            except StopIteration as finished:
                results.append(finished.value)
                break
            done += 1
            yield done, total
    return results[0], results[1]


def in_words(curves: Curves, randomised: float, completeness: float | None) -> list[str]:
    """The meaning of a map's trust figures, a sentence each.

    ``randomised`` is the result of `randomisation_test`, ``completeness`` that of `Attribution`. The thresholds of
    the sentences are conventions of this project.
    """
    degree, correlation = "somewhat" if curves.gap < 0.3 else "clearly", abs(randomised)
    sentences = [
        f"The patches that this map marks determine the score {degree} better than random patches."
        if curves.gap >= 0.05
        else "The patches that this map marks determine the score no better than random patches.",
        "The map depends on what the model has learned: with shuffled weights it looks different."
        if correlation < 0.3
        else "The map depends only partly on what the model has learned: it resembles maps of shuffled weights."
        if correlation < 0.7
        else "The map says little about the model: it looks nearly the same with shuffled weights.",
    ]
    if completeness is not None and completeness > 0.1:
        sentences.append("The map does not sum to the score that it distributes: use it only to rank patches.")
    return sentences


def _returned(steps: Generator[Any, None, Result]) -> Result:
    """The return value of a generator."""
    while True:
        try:
            next(steps)
        except StopIteration as finished:
            return finished.value


def patches_of(masks: ArrayLike, grid: tuple[int, int], share: float = 0.25) -> Tensor:
    """(T, h, w) bool: whether a mask (T, H, W) covers at least ``share`` of a patch."""
    pixels = torch.as_tensor(np.asarray(masks)).float()[:, None]
    return F.interpolate(pixels, size=grid, mode="area")[:, 0] >= share


@dataclass(frozen=True, eq=False, repr=False)
class Pointing(Brief):
    """Results of the pointing game, (n,) in 0..1 each, for the frames with a visible finding.

    ``hits`` says whether the map's highest patch is on the finding; ``centre`` is the expected result of pointing at
    the middle of the frame, and ``random`` of pointing at a random patch.
    """

    hits: np.ndarray
    centre: np.ndarray
    random: np.ndarray


def pointing_game(values: Tensor, masks: ArrayLike) -> Pointing:
    """The pointing game (Zhang et al. 2016, arXiv 1608.00507) of a map (T, h, w) against masks (T, H, W).

    A patch is on the finding if the mask covers a quarter of the patch. Frames without such a patch do not count. If
    several patches share the highest value, the result is the share of them that are on the finding.

    Raises:
        UserError: map and masks have different numbers of frames.
    """
    if len(values) != len(np.asarray(masks)):
        raise UserError(
            f"The map has {len(values)} frames, but there are {len(np.asarray(masks))} masks; give one mask per frame."
        )
    _, h, w = values.shape
    finding = patches_of(masks, (h, w))
    visible = finding.flatten(1).any(dim=1)
    top = (values == values.flatten(1).amax(dim=1)[:, None, None]).float()
    middle = torch.zeros(h, w)
    middle[(h - 1) // 2 : h // 2 + 1, (w - 1) // 2 : w // 2 + 1] = 1.0
    truth = finding.float()

    def shared(points: Tensor) -> np.ndarray:
        return ((points * truth).sum(dim=(1, 2)) / points.sum(dim=(-2, -1)))[visible].numpy()

    return Pointing(shared(top), shared(middle.expand_as(truth)), truth.mean(dim=(1, 2))[visible].numpy())


def pointing_intervals(games: list[tuple[str, Pointing]], seed: int = 0) -> dict[str, Interval]:
    """``map``, ``centre`` and ``random`` over all frames of (unit, game) pairs, with 95 % intervals over units.

    The unit is the patient, or the recording if patients are unknown (see `data.units`). There is no interval for fewer
    than five units.

    Raises:
        UserError: no frame shows a finding.
    """
    units = [unit for unit, game in games for _ in game.hits]
    if not units:
        raise UserError("No frame shows a finding that covers a quarter of a patch. Give masks with a larger finding.")
    columns = {"map": "hits", "centre": "centre", "random": "random"}
    return {
        name: bootstrap_interval(
            weighted_mean, units, np.concatenate([getattr(game, column) for _, game in games]), seed=seed
        )
        for name, column in columns.items()
    }
