"""Phase metrics against hand cases and plain restatements."""

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, balanced_accuracy_score, jaccard_score

from endofm_lab.metrics.classification import MetricError
from endofm_lab.metrics.phases import cholec80_relaxed, edit_score, jaccard, phase_metrics, segment_f1, segments


def test_segments_are_runs_of_equal_phase():
    assert segments([2, 2, 0, 0, 0, 2]) == [(2, 0, 2), (0, 2, 5), (2, 5, 6)]
    assert segments([]) == []


def test_a_shifted_border_is_forgiven_and_a_torn_segment_is_not():
    truth = [0] * 10 + [1] * 10
    assert segment_f1(truth, truth) == 1
    assert segment_f1(truth, [0] * 12 + [1] * 8) == 1  # overlaps 10/12 and 8/10
    torn = [0] * 3 + [1] * 1 + [0] * 6 + [1] * 10  # five wrong pieces: 0-3 (3/10), 1, 0 (6/10), 1
    assert segment_f1(truth, torn) == pytest.approx(2 * 2 / (2 + 4))
    assert segment_f1(truth, [1] * 20) == pytest.approx(2 * 1 / (2 + 1))  # overlap of exactly one half counts
    assert segment_f1(truth, [2] * 20) == 0
    assert np.isnan(segment_f1([], []))


def test_a_true_segment_is_found_once():
    truth = [0] * 4 + [1] * 2 + [0] * 4
    assert segment_f1(truth, [0] * 4 + [1] * 2 + [0] * 4) == 1
    # Two pieces overlap the one true segment by 4/10 and 5/10; at a demand of 1/4 the second finds it taken.
    assert segment_f1([0] * 10, [0] * 4 + [1] + [0] * 5, overlap=0.25) == pytest.approx(2 * 1 / (1 + 3))


def test_jaccard_equals_scikit_learn_over_the_classes_that_occur():
    draw = np.random.default_rng(0)
    for _ in range(10):
        truth, predicted = draw.integers(0, 4, 50), draw.integers(0, 5, 50)
        labels = np.union1d(truth, predicted)
        expected = jaccard_score(truth, predicted, labels=labels, average="macro", zero_division=0)
        assert jaccard(truth, predicted) == pytest.approx(expected)
    assert jaccard([0, 0, 1, 1], [0, 0, 1, 2]) == pytest.approx((1 + 0.5 + 0) / 3)
    assert np.isnan(jaccard([], []))


def test_every_video_is_measured_alone_and_in_its_own_order():
    videos = np.array(["b", "a", "b", "a", "b", "a"])
    truth, predicted = np.array([0, 1, 0, 1, 1, 1]), np.array([0, 1, 1, 1, 1, 0])
    table = phase_metrics(videos, truth, predicted)
    assert list(table.index) == ["b", "a"]
    for video in "ab":
        rows = videos == video
        assert table.loc[video, "accuracy"] == accuracy_score(truth[rows], predicted[rows])
        assert table.loc[video, "jaccard"] == jaccard(truth[rows], predicted[rows])
        assert table.loc[video, "segment_f1"] == segment_f1(truth[rows], predicted[rows])
        assert table.loc[video, "segment_f1_10"] == segment_f1(truth[rows], predicted[rows], 0.1)
        assert table.loc[video, "edit_score"] == edit_score(truth[rows], predicted[rows])
        assert table.loc[video, "balanced_accuracy"] == balanced_accuracy_score(truth[rows], predicted[rows])


def test_the_edit_score_counts_wrong_segments_and_not_their_lengths():
    truth = [0] * 5 + [1] * 5 + [2] * 5
    assert edit_score(truth, [0] * 1 + [1] * 1 + [2] * 13) == 1
    assert edit_score(truth, [0] * 15) == pytest.approx(1 - 2 / 3)  # two of three segments are missing
    assert edit_score(truth, [0, 1] * 7 + [2]) == pytest.approx(1 - 12 / 15)  # twelve superfluous ones
    assert edit_score(truth, [2] * 5 + [1] * 5 + [0] * 5) == pytest.approx(1 - 2 / 3)  # two are exchanged
    assert np.isnan(edit_score([], []))


def test_the_relaxed_metrics_of_cholec80_forgive_neighbours_near_transitions_only():
    truth = [0] * 20 + [1] * 20
    late = [0] * 25 + [1] * 15  # five steps late, within the ten that are forgiven
    relaxed = cholec80_relaxed(truth, late)
    assert relaxed["cholec80_relaxed_accuracy"] == 1 and relaxed["cholec80_relaxed_jaccard"] == 1
    assert cholec80_relaxed(truth, late, 3)["cholec80_relaxed_accuracy"] == pytest.approx(38 / 40)
    early = [0] * 8 + [1] * 32  # twelve steps early: two are wrong
    relaxed = cholec80_relaxed(truth, early)
    assert relaxed["cholec80_relaxed_accuracy"] == pytest.approx(38 / 40)
    # Phase 0: predicted 8, true 20, together 20, of which 18 count. Phase 1: 32, 20, 32, of which 30 count.
    assert relaxed["cholec80_relaxed_jaccard"] == pytest.approx((18 / 20 + 30 / 32) / 2)
    assert relaxed["cholec80_relaxed_recall"] == pytest.approx((18 / 20 + 1) / 2)
    assert relaxed["cholec80_relaxed_precision"] == pytest.approx((1 + 30 / 32) / 2)
    # The next but one phase is forgiven at the end of phase 4 (number 3) and not at the end of phase 1.
    assert cholec80_relaxed([3] * 20, [3] * 15 + [5] * 5)["cholec80_relaxed_accuracy"] == 1
    assert cholec80_relaxed([0] * 20, [0] * 15 + [2] * 5)["cholec80_relaxed_accuracy"] == pytest.approx(15 / 20)
    assert cholec80_relaxed([5] * 20, [3] * 5 + [5] * 15)["cholec80_relaxed_accuracy"] == 1
    assert cholec80_relaxed([4] * 20, [2] * 5 + [4] * 15)["cholec80_relaxed_accuracy"] == pytest.approx(15 / 20)


def test_phases_of_unequal_length_are_refused():
    with pytest.raises(MetricError, match=r"shape \(3,\), predicted \(2,\)"):
        segment_f1([0, 1, 1], [0, 1])
