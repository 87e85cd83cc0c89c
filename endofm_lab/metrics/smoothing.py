"""Scores of neighbouring frames speak of the same finding: smoothing in time by a median or a hidden Markov model.

Causal methods use the past only and can run beside the scope; offline methods see the whole video. All take scores
(T, K) that sum to one, of one video, at equal steps in time; a row of NaN (a frame that could not be read) is an
instant without observation to the Markov model and refused by the median.

The model: hidden states are the classes, ``transition[i, j]`` is the chance of class j one step after class i, and a
frame speaks for class k by p(k | frame) / ``prior[k]``: the classifier's score without what it learned from how common
the class is in training (Bourlard and Morgan 1994). Recursions are those of Rabiner 1989.
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

    Centred; ``causal`` takes the last ``width`` steps instead and so answers (width - 1) / 2 steps late. Beyond the
    ends the first and last frame repeat. Where all medians are 0 the classes are equal.
    """
    scores = _checked(scores, allow_gaps=False)
    if width < 1 or width % 2 == 0:
        raise MetricError(f"The median's width is {width}; it must be odd and at least 1.")
    smooth = median_filter(scores, size=(width, 1), mode="nearest", origin=(width // 2 if causal else 0, 0))
    total = smooth.sum(1, keepdims=True)
    return np.divide(smooth, total, out=np.full_like(smooth, 1 / scores.shape[1]), where=total > 0)


def stay_transition(n_classes: int, stay: float) -> NDArray[np.float64]:
    """Transition matrix (K, K) that stays in its class with chance ``stay`` and goes to each other one equally often.

    A class lasts 1 / (1 - stay) steps on average.
    """
    if not 0 < stay < 1 or n_classes < 2:
        raise MetricError(
            f"stay is {stay} for {n_classes} classes; it must lie between 0 and 1, for at least 2 classes."
        )
    matrix = np.full((n_classes, n_classes), (1 - stay) / (n_classes - 1))
    np.fill_diagonal(matrix, stay)
    return matrix


def transition_from_labels(videos: Iterable[ArrayLike], n_classes: int) -> NDArray[np.float64]:
    """Transition matrix (K, K) counted in label sequences (T,) of training videos, at the step it will be used at.

    One is added to every count (Laplace), so that nothing unseen becomes impossible.
    """
    counts = np.ones((n_classes, n_classes))
    for labels in map(np.asarray, videos):
        if len(labels) == 0:
            continue
        if labels.min() < 0 or labels.max() >= n_classes:
            raise MetricError(f"Labels run from {labels.min()} to {labels.max()}; there are {n_classes} classes.")
        np.add.at(counts, (labels[:-1], labels[1:]), 1)
    return counts / counts.sum(1, keepdims=True)


def hmm_filter(scores: ArrayLike, transition: ArrayLike, prior: ArrayLike | None = None) -> NDArray[np.float64]:
    """p(class at t | frames up to t), (T, K): the forward recursion, causal.

    Args:
        scores: (T, K) of one video.
        transition: (K, K), rows sum to one.
        prior: (K,) share of each class in what the classifier was trained on; None: equal. Also the first instant's.
    """
    speaks, transition, start = _model(scores, transition, prior)
    filtered = np.empty_like(speaks)
    for t, frame in enumerate(speaks):
        expected = start if t == 0 else filtered[t - 1] @ transition
        filtered[t] = _normalised(expected * frame, t)
    return filtered


def hmm_smooth(scores: ArrayLike, transition: ArrayLike, prior: ArrayLike | None = None) -> NDArray[np.float64]:
    """p(class at t | all frames), (T, K): forward and backward recursion, offline; arguments as in hmm_filter."""
    speaks, transition, _ = _model(scores, transition, prior)
    smoothed = hmm_filter(scores, transition, prior)
    later = np.ones(speaks.shape[1])  # what the frames after t say of the class at t
    for t in range(len(speaks) - 2, -1, -1):
        later = transition @ (speaks[t + 1] * later)
        later /= later.max()
        smoothed[t] = _normalised(smoothed[t] * later, t)
    return smoothed


def viterbi(scores: ArrayLike, transition: ArrayLike, prior: ArrayLike | None = None) -> NDArray[np.int64]:
    """The most probable sequence of classes given all frames, (T,), offline; arguments as in hmm_filter."""
    speaks, transition, start = _model(scores, transition, prior)
    with np.errstate(divide="ignore"):
        speaks, transition, best = np.log(speaks), np.log(transition), np.log(start)
    came_from = np.zeros(speaks.shape, dtype=np.int64)
    for t, frame in enumerate(speaks):
        if t > 0:
            ways = best[:, None] + transition  # (from, to)
            came_from[t] = ways.argmax(0)
            best = ways.max(0)
        best = best + frame
        if np.isneginf(best).all():
            raise MetricError(_impossible(t))
    path = np.zeros(len(speaks), dtype=np.int64)
    if len(path):
        path[-1] = best.argmax()
    for t in range(len(path) - 1, 0, -1):
        path[t - 1] = came_from[t, path[t]]
    return path


def smoothing_effect(
    videos: ArrayLike,
    target: ArrayLike,
    scores: ArrayLike,
    transition: ArrayLike,
    width: int,
    prior: ArrayLike | None = None,
) -> pd.DataFrame:
    """What smoothing does to a test set: ``causal``, ``accuracy``, ``jaccard``, ``segment_f1`` of every method.

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
    """What each frame says of each class (T, K), transition (K, K), chances at the first instant (K,)."""
    scores, transition = _checked(scores, allow_gaps=True), np.asarray(transition, dtype=np.float64)
    n_classes = scores.shape[1]
    start = np.full(n_classes, 1 / n_classes) if prior is None else np.asarray(prior, dtype=np.float64)
    if transition.shape != (n_classes, n_classes) or np.any(transition < 0) or not np.allclose(transition.sum(1), 1):
        raise MetricError(f"The transition matrix must be ({n_classes}, {n_classes}) with rows that sum to one.")
    if start.shape != (n_classes,) or np.any(start <= 0):
        raise MetricError(f"The prior must give each of the {n_classes} classes a share above 0.")
    return np.where(np.isnan(scores), 1.0, scores / start), transition, start / start.sum()


def _normalised(chances: NDArray, t: int) -> NDArray[np.float64]:
    total = chances.sum()
    if not total > 0:
        raise MetricError(_impossible(t))
    return chances / total


def _impossible(t: int) -> str:
    return f"at step {t} no class is possible after what came before; use transitions and scores above 0."


def _checked(scores: ArrayLike, allow_gaps: bool) -> NDArray[np.float64]:
    scores = np.asarray(scores, dtype=np.float64)
    if scores.ndim != 2:
        raise MetricError(f"Scores have shape {scores.shape}; (T, K) is needed, one column per class.")
    gaps = np.isnan(scores)
    if np.any(scores < 0) or np.isinf(scores).any():
        raise MetricError("Scores must be probabilities; apply softmax to logits first.")
    if gaps.any() and not (allow_gaps and (gaps.all(1) == gaps.any(1)).all()):
        raise MetricError(
            f"{int(gaps.any(1).sum())} rows hold NaN; only the Markov model takes gaps, as whole rows of NaN."
        )
    return scores
