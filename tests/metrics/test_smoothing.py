"""Smoothing against every possible class sequence of tiny videos."""

from itertools import product

import numpy as np
import pytest

from endofm_lab.metrics.classification import MetricError
from endofm_lab.metrics.smoothing import (
    hmm_filter,
    hmm_filter_step,
    hmm_smooth,
    median_smooth,
    smoothing_effect,
    stay_transition,
    transition_from_labels,
    viterbi,
)


@pytest.fixture(params=[(1, 2), (4, 2), (5, 3)])
def model(request):
    n_steps, n_classes = request.param
    draw = np.random.default_rng(n_steps)
    scores = draw.dirichlet(np.ones(n_classes), n_steps)
    return scores, draw.dirichlet(np.ones(n_classes), n_classes), draw.dirichlet(np.ones(n_classes))


def chances(scores, transition, prior, steps):
    """Every class sequence of the first ``steps`` instants and its unnormalised chance."""
    for path in product(range(scores.shape[1]), repeat=steps):
        chance = prior[path[0]]
        for t, k in enumerate(path):
            chance *= scores[t, k] / prior[k] * (transition[path[t - 1], k] if t else 1)
        yield path, chance


def marginal(scores, transition, prior, steps, at):
    total = np.zeros(scores.shape[1])
    for path, chance in chances(scores, transition, prior, steps):
        total[path[at]] += chance
    return total / total.sum()


def test_the_filter_sums_over_every_past(model):
    scores, transition, prior = model
    expected = [marginal(scores, transition, prior, t + 1, t) for t in range(len(scores))]
    np.testing.assert_allclose(hmm_filter(scores, transition, prior), expected, atol=1e-12)


def test_frames_that_arrive_one_by_one_get_the_answers_of_the_whole_video(model):
    scores, transition, prior = model
    for start in (prior, None):
        beliefs = [None]
        for frame in scores:
            beliefs.append(hmm_filter_step(beliefs[-1], frame, transition, start))
        np.testing.assert_array_equal(beliefs[1:], hmm_filter(scores, transition, start))


def test_the_smoother_sums_over_every_sequence(model):
    scores, transition, prior = model
    expected = [marginal(scores, transition, prior, len(scores), t) for t in range(len(scores))]
    np.testing.assert_allclose(hmm_smooth(scores, transition, prior), expected, atol=1e-12)


def test_viterbi_finds_the_best_of_all_sequences(model):
    scores, transition, prior = model
    best = max(chances(scores, transition, prior, len(scores)), key=lambda pair: pair[1])[0]
    assert tuple(viterbi(scores, transition, prior)) == best


def test_the_filter_is_causal_and_the_smoother_ends_where_it_ends(model):
    scores, transition, prior = model
    whole = hmm_filter(scores, transition, prior)
    for stop in range(1, len(scores) + 1):
        np.testing.assert_allclose(hmm_filter(scores[:stop], transition, prior), whole[:stop], atol=1e-15)
    np.testing.assert_allclose(hmm_smooth(scores, transition, prior)[-1], whole[-1], atol=1e-15)


def test_an_instant_without_observation_is_one_without_opinion(model):
    scores, transition, prior = model
    gap, no_opinion = scores.copy(), scores.copy()
    gap[-1], no_opinion[-1] = np.nan, prior
    for method in (hmm_filter, hmm_smooth, viterbi):
        np.testing.assert_allclose(method(gap, transition, prior), method(no_opinion, transition, prior))


def test_a_long_video_does_not_underflow_and_one_odd_frame_is_overruled():
    scores = np.tile([[0.9, 0.1]], (1000, 1))
    scores[500] = [0.1, 0.9]
    smoothed = hmm_smooth(scores, stay_transition(2, 0.99))
    assert np.isfinite(smoothed).all()
    np.testing.assert_allclose(smoothed.sum(1), 1)
    assert (viterbi(scores, stay_transition(2, 0.99)) == 0).all()
    assert smoothed[500, 0] > 0.9


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("width", [1, 3, 7])
def test_the_median_equals_a_sorted_window_with_repeated_ends(width, causal):
    scores = np.random.default_rng(width).dirichlet(np.ones(3), 12)
    offsets = range(-width + 1, 1) if causal else range(-(width // 2), width // 2 + 1)
    expected = []
    for t in range(12):
        window = np.array([scores[min(max(t + k, 0), 11)] for k in offsets])
        middle = np.sort(window, axis=0)[width // 2]
        expected.append(middle / middle.sum())
    np.testing.assert_allclose(median_smooth(scores, width, causal), expected)


def test_the_median_where_nothing_is_left_is_undecided():
    scores = np.eye(3)[[0, 1, 2]]
    np.testing.assert_allclose(median_smooth(scores, 3)[1], [1 / 3] * 3)


def test_transitions_are_counts_plus_one():
    matrix = transition_from_labels([[0, 0, 1], [1, 1], [], [0]], 3)
    np.testing.assert_allclose(matrix, [[2 / 5, 2 / 5, 1 / 5], [1 / 4, 2 / 4, 1 / 4], [1 / 3, 1 / 3, 1 / 3]])
    np.testing.assert_allclose(stay_transition(3, 0.8), [[0.8, 0.1, 0.1], [0.1, 0.8, 0.1], [0.1, 0.1, 0.8]])


def test_smoothing_helps_where_phases_last_and_its_effect_is_shown():
    draw = np.random.default_rng(0)
    target = np.tile(np.repeat([0, 1, 2], 60), 4)
    videos = np.repeat(["a", "b", "c", "d"], 180)
    scores = np.exp(draw.normal(0, 1, (720, 3)) + 1.2 * np.eye(3)[target])
    scores /= scores.sum(1, keepdims=True)
    table = smoothing_effect(videos, target, scores, stay_transition(3, 0.98), width=9)
    assert list(table.index) == ["raw", "causal median 9", "hmm filter", "median 9", "hmm smooth", "viterbi"]
    assert table["causal"].tolist() == [True, True, True, False, False, False]
    for method in ("hmm filter", "median 9", "hmm smooth", "viterbi"):
        assert table.loc[method, "accuracy"] > table.loc["raw", "accuracy"] + 0.05, method
        assert table.loc[method, "segment_f1"] > table.loc["raw", "segment_f1"] + 0.1, method
    assert table.loc["hmm smooth", "accuracy"] >= table.loc["hmm filter", "accuracy"]


def test_the_memory_of_one_video_does_not_reach_the_next():
    scores = np.array([[0.9, 0.1], [0.9, 0.1], [0.45, 0.55]])
    table = smoothing_effect(["a", "a", "b"], [0, 0, 1], scores, stay_transition(2, 0.99), width=3)
    assert (table["accuracy"] == 1).all()


def test_bad_input_is_named():
    good = np.full((4, 2), 0.5)
    with pytest.raises(MetricError, match="width of the median is 4"):
        median_smooth(good, 4)
    with pytest.raises(MetricError, match="1 rows hold NaN"):
        median_smooth(np.array([[np.nan, np.nan], [0.5, 0.5]]), 3)
    with pytest.raises(MetricError, match="whole rows of NaN"):
        hmm_filter(np.array([[np.nan, 0.5]]), stay_transition(2, 0.9))
    with pytest.raises(MetricError, match="softmax"):
        hmm_filter(np.array([[-1.0, 2.0]]), stay_transition(2, 0.9))
    with pytest.raises(MetricError, match=r"shape \(2, 2\) whose rows sum to one"):
        hmm_filter(good, np.ones((2, 2)))
    with pytest.raises(MetricError, match=r"stay is 1\.0"):
        stay_transition(2, 1.0)
    with pytest.raises(MetricError, match="No class is possible at step 1"):
        hmm_filter(np.eye(2), np.eye(2))
    with pytest.raises(MetricError, match="No class is possible at step 1"):
        viterbi(np.eye(2), np.eye(2))
    with pytest.raises(MetricError, match="numbers below 2"):
        transition_from_labels([[0, 2]], 2)
