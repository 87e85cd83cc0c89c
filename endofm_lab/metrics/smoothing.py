"""Smoothing of scores over time by a median or a hidden Markov model, since neighbouring frames show the same finding.

Causal methods use the past only and can run during an examination; offline methods see the whole video. All take scores
(T, K) of one video at equal time steps, which sum to one. A row of NaN (a frame that could not be read) is an instant
without an observation for the Markov model; the median refuses it.

In the model, hidden states are the classes, ``transition[i, j]`` is the probability of class j one step after class i,
and the likelihood of a frame under class k is proportional to p(k | frame) / ``prior[k]``: the division removes the
frequency of the class in training from the classifier's score (Bourlard and Morgan 1994). The recursions are those of
Rabiner 1989.
"""

from collections.abc import Iterable

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import median_filter

from endofm_lab.metrics.classification import MetricError
from endofm_lab.metrics.phases import phase_metrics


def median_smooth(scores: ArrayLike, width: int, causal: bool = False) -> NDArray[np.float64]:
    """Running median of every class over ``width`` steps (odd), scaled to sum to one again: (T, K).

    The window is centred; ``causal`` takes the last ``width`` steps instead and so answers (width - 1) / 2 steps late.
    The first and the last frame are repeated beyond the ends. If all medians are 0, the classes get equal scores.
    """
    scores = _checked(scores, allow_gaps=False)
    if width < 1 or width % 2 == 0:
        raise MetricError(f"The width of the median is {width}; give an odd number of at least 1.")
    smooth = median_filter(scores, size=(width, 1), mode="nearest", origin=(width // 2 if causal else 0, 0))
    total = smooth.sum(1, keepdims=True)
    return np.divide(smooth, total, out=np.full_like(smooth, 1 / scores.shape[1]), where=total > 0)


def stay_transition(n_classes: int, stay: float) -> NDArray[np.float64]:
    """Transition matrix (K, K) that stays in a class with probability ``stay`` and changes to each other class equally.

    A class lasts 1 / (1 - stay) steps on average.
    """
    if not 0 < stay < 1 or n_classes < 2:
        raise MetricError(
            f"stay is {stay} for {n_classes} classes; give a number between 0 and 1, and at least 2 classes."
        )
    matrix = np.full((n_classes, n_classes), (1 - stay) / (n_classes - 1))
    np.fill_diagonal(matrix, stay)
    return matrix


def transition_from_labels(videos: Iterable[ArrayLike], n_classes: int) -> NDArray[np.float64]:
    """Transition matrix (K, K) counted in label sequences (T,) of training videos, at the step of its later use.

    One is added to every count (Laplace), so that a transition that was not seen is not impossible.
    """
    counts = np.ones((n_classes, n_classes))
    for labels in map(np.asarray, videos):
        if len(labels) == 0:
            continue
        if labels.min() < 0 or labels.max() >= n_classes:
            raise MetricError(f"Labels run from {labels.min()} to {labels.max()}; give numbers below {n_classes}.")
        np.add.at(counts, (labels[:-1], labels[1:]), 1)
    return counts / counts.sum(1, keepdims=True)


def hmm_filter(scores: ArrayLike, transition: ArrayLike, prior: ArrayLike | None = None) -> NDArray[np.float64]:
    """p(class at t | frames up to t), (T, K): the forward recursion, causal.

    Args:
        scores: (T, K) of one video.
        transition: (K, K), rows sum to one.
        prior: (K,) share of each class in the classifier's training, also used for the first instant; None for equal.
    """
    likelihood, transition, start = _model(scores, transition, prior)
    filtered, belief = np.empty_like(likelihood), None
    for t, frame in enumerate(likelihood):
        belief = filtered[t] = _filtered(belief, frame, transition, start, t)
    return filtered


def hmm_filter_step(
    belief: NDArray | None, scores: ArrayLike, transition: ArrayLike, prior: ArrayLike | None = None
) -> NDArray[np.float64]:
    """p(class | frames up to this one), (K,), from that of the frame before: `hmm_filter` as frames arrive.

    Args:
        belief: (K,), the result for the frame before; None for the first frame.
        scores: (K,) of this frame.
        transition: as in `hmm_filter`.
        prior: as in `hmm_filter`.
    """
    likelihood, transition, start = _model(np.asarray(scores)[None], transition, prior)
    return _filtered(belief, likelihood[0], transition, start, 0)


def _filtered(
    belief: NDArray | None, likelihood: NDArray, transition: NDArray, start: NDArray, t: int
) -> NDArray[np.float64]:
    """One step of the forward recursion."""
    return _normalised((start if belief is None else belief @ transition) * likelihood, t)


def hmm_smooth(scores: ArrayLike, transition: ArrayLike, prior: ArrayLike | None = None) -> NDArray[np.float64]:
    """p(class at t | all frames), (T, K): forward and backward recursion, offline; arguments as in hmm_filter."""
    likelihood, transition, _ = _model(scores, transition, prior)
    smoothed = hmm_filter(scores, transition, prior)
    backward = np.ones(likelihood.shape[1])  # likelihood of the frames after t given the class at t
    for t in range(len(likelihood) - 2, -1, -1):
        backward = transition @ (likelihood[t + 1] * backward)
        backward /= backward.max()
        smoothed[t] = _normalised(smoothed[t] * backward, t)
    return smoothed


def viterbi(scores: ArrayLike, transition: ArrayLike, prior: ArrayLike | None = None) -> NDArray[np.int64]:
    """The most probable sequence of classes given all frames, (T,), offline; arguments as in hmm_filter."""
    likelihood, transition, start = _model(scores, transition, prior)
    with np.errstate(divide="ignore"):
        likelihood, transition, best = np.log(likelihood), np.log(transition), np.log(start)
    previous = np.zeros(likelihood.shape, dtype=np.int64)
    for t, frame in enumerate(likelihood):
        if t > 0:
            paths = best[:, None] + transition  # (from, to)
            previous[t] = paths.argmax(0)
            best = paths.max(0)
        best = best + frame
        if np.isneginf(best).all():
            raise MetricError(_impossible(t))
    path = np.zeros(len(likelihood), dtype=np.int64)
    if len(path):
        path[-1] = best.argmax()
    for t in range(len(path) - 1, 0, -1):
        path[t - 1] = previous[t, path[t]]
    return path


def smoothing_effect(
    videos: ArrayLike,
    target: ArrayLike,
    scores: ArrayLike,
    transition: ArrayLike,
    width: int,
    prior: ArrayLike | None = None,
) -> pd.DataFrame:
    """The effect of smoothing on a test set: ``causal`` and the means of `phase_metrics` of every method.

    Rows: raw, median (causal and centred), hmm filter (causal), hmm smooth, viterbi. Metrics are means over videos of
    ``metrics.phases``. ``videos`` (N,), ``target`` (N,), ``scores`` (N, K), each video's steps in temporal order.
    """
    videos, target, scores = np.asarray(videos), np.asarray(target), np.asarray(scores, dtype=np.float64)
    methods = {
        "raw": (True, lambda s: s.argmax(1)),
        f"causal median {width}": (True, lambda s: median_smooth(s, width, causal=True).argmax(1)),
        "hmm filter": (True, lambda s: hmm_filter(s, transition, prior).argmax(1)),
        f"median {width}": (False, lambda s: median_smooth(s, width).argmax(1)),
        "hmm smooth": (False, lambda s: hmm_smooth(s, transition, prior).argmax(1)),
        "viterbi": (False, lambda s: viterbi(s, transition, prior)),
    }
    table = {}
    for name, (causal, method) in methods.items():
        predicted = np.empty(len(target), dtype=np.int64)
        for video in pd.unique(videos):
            rows = videos == video
            predicted[rows] = method(scores[rows])
        table[name] = {"causal": causal, **phase_metrics(videos, target, predicted).mean().to_dict()}
    return pd.DataFrame.from_dict(table, orient="index")


def _model(scores: ArrayLike, transition: ArrayLike, prior: ArrayLike | None) -> tuple[NDArray, NDArray, NDArray]:
    """The likelihood of each frame under each class (T, K), transition (K, K), class probabilities at first (K,)."""
    scores, transition = _checked(scores, allow_gaps=True), np.asarray(transition, dtype=np.float64)
    n_classes = scores.shape[1]
    start = np.full(n_classes, 1 / n_classes) if prior is None else np.asarray(prior, dtype=np.float64)
    if transition.shape != (n_classes, n_classes) or np.any(transition < 0) or not np.allclose(transition.sum(1), 1):
        raise MetricError(f"Give a transition matrix of shape ({n_classes}, {n_classes}) whose rows sum to one.")
    if start.shape != (n_classes,) or np.any(start <= 0):
        raise MetricError(f"Give a prior with a share above 0 for each of the {n_classes} classes.")
    return np.where(np.isnan(scores), 1.0, scores / start), transition, start / start.sum()


def _normalised(probabilities: NDArray, t: int) -> NDArray[np.float64]:
    total = probabilities.sum()
    if not total > 0:
        raise MetricError(_impossible(t))
    return probabilities / total


def _impossible(t: int) -> str:
    return f"No class is possible at step {t} after the steps before; use transitions and scores above 0."


def _checked(scores: ArrayLike, allow_gaps: bool) -> NDArray[np.float64]:
    scores = np.asarray(scores, dtype=np.float64)
    if scores.ndim != 2:
        raise MetricError(f"Scores have shape {scores.shape}; give (T, K), one column per class.")
    gaps = np.isnan(scores)
    if np.any(scores < 0) or np.isinf(scores).any():
        raise MetricError("Scores must be probabilities. Apply softmax to logits first.")
    if gaps.any() and not (allow_gaps and (gaps.all(1) == gaps.any(1)).all()):
        raise MetricError(
            f"{int(gaps.any(1).sum())} rows hold NaN, but only the Markov model takes gaps, as whole rows of NaN."
        )
    return scores
