"""Phase metrics against hand cases and plain restatements."""

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, jaccard_score

from endofm_lab.metrics.classification import MetricError
from endofm_lab.metrics.phases import jaccard, phase_metrics, segment_f1, segments


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


def test_phases_of_unequal_length_are_refused():
    with pytest.raises(MetricError, match=r"shape \(3,\), predicted \(2,\)"):
        segment_f1([0, 1, 1], [0, 1])
