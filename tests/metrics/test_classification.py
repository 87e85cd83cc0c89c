"""Classification metrics against scikit-learn and hand cases, for one weighting and for many."""

import numpy as np
import pytest
import sklearn.metrics as sk

from endofm_lab.metrics import classification as metrics
from endofm_lab.metrics.classification import MetricError


@pytest.fixture(params=range(5))
def binary(request):
    """Targets, tied scores and integer weights with some zeros."""
    draw = np.random.default_rng(request.param)
    target = draw.random(60) < 0.4
    return target, np.round(draw.random(60) + 0.3 * target, 1), draw.multinomial(60, np.full(60, 1 / 60), 7)


@pytest.fixture(params=range(5))
def several(request):
    draw = np.random.default_rng(100 + request.param)
    target = draw.integers(0, 4, 80)
    scores = draw.dirichlet(np.ones(4), 80) + np.eye(4)[target] * 0.2
    return target, scores / scores.sum(1, keepdims=True), draw.multinomial(80, np.full(80, 1 / 80), 6)


def test_binary_metrics_equal_scikit_learn_for_every_weighting(binary):
    target, score, weights = binary
    predicted = score >= 0.5
    pairs = [
        (metrics.accuracy, sk.accuracy_score, predicted),
        (metrics.f1, sk.f1_score, predicted),
        (metrics.balanced_accuracy, sk.balanced_accuracy_score, predicted),
        (metrics.auc, sk.roc_auc_score, score),
        (metrics.average_precision, sk.average_precision_score, score),
    ]
    for metric, reference, values in pairs:
        assert metric(target, values) == pytest.approx(reference(target, values), abs=1e-12)
        expected = [reference(target, values, sample_weight=row) for row in weights]
        assert metric(target, values, weights) == pytest.approx(expected, abs=1e-12)


def test_several_class_metrics_equal_scikit_learn_on_repeated_rows(several):
    target, scores, weights = several
    predicted = scores.argmax(1)
    assert metrics.macro_f1(target, predicted) == pytest.approx(sk.f1_score(target, predicted, average="macro"))
    for row, f1, auc, ap in zip(
        weights,
        metrics.macro_f1(target, predicted, weights),
        metrics.macro_auc(target, scores, weights),
        metrics.macro_average_precision(target, scores, weights),
        strict=True,
    ):
        rows = np.repeat(np.arange(80), row)
        t, s = target[rows], scores[rows]
        assert f1 == pytest.approx(sk.f1_score(t, predicted[rows], average="macro", zero_division=0))
        assert auc == pytest.approx(np.mean([sk.roc_auc_score(t == k, s[:, k]) for k in range(4)]))
        assert ap == pytest.approx(np.mean([sk.average_precision_score(t == k, s[:, k]) for k in range(4)]))


def test_hand_cases():
    target = np.array([1, 1, 0, 0], bool)
    assert metrics.f1(target, [True, False, True, False]) == 0.5  # TP 1, FP 1, FN 1
    assert metrics.auc(target, [0.9, 0.4, 0.4, 0.1]) == 0.875  # pairs: 1, 1, tie 0.5, 1
    assert metrics.average_precision(target, [0.9, 0.3, 0.4, 0.1]) == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)
    assert metrics.balanced_accuracy([0, 0, 0, 1], [0, 0, 0, 0]) == 0.5


def test_what_is_not_defined_is_nan_and_never_a_number():
    negatives = np.zeros(3, bool)
    assert np.isnan(metrics.f1(negatives, negatives))
    assert metrics.f1(negatives, ~negatives) == 0
    assert np.isnan(metrics.auc(negatives, [0.1, 0.2, 0.3]))
    assert np.isnan(metrics.auc(~negatives, [0.1, 0.2, 0.3]))
    assert np.isnan(metrics.average_precision(negatives, [0.1, 0.2, 0.3]))
    for metric in (metrics.f1, metrics.accuracy, metrics.auc, metrics.average_precision, metrics.balanced_accuracy):
        assert np.isnan(metric(np.zeros(0, bool), np.zeros(0)))


def test_a_class_without_rows_is_left_out_of_the_mean():
    target, scores = (
        np.array([0, 0, 1, 1]),
        np.array([[0.8, 0.1, 0.1], [0.6, 0.3, 0.1], [0.2, 0.7, 0.1], [0.5, 0.4, 0.1]]),
    )
    assert metrics.macro_auc(target, scores) == 1.0
    assert metrics.balanced_accuracy(target, scores.argmax(1)) == 0.75
    assert metrics.macro_f1(target, [0, 0, 1, 2]) == pytest.approx(
        (1 + 2 / 3 + 0) / 3
    )  # predicted class 2 counts, as 0


def test_a_resample_without_a_class_is_nan_only_for_that_resample():
    values = metrics.auc([True, False], [0.9, 0.1], [[1, 1], [2, 0]])
    assert values[0] == 1
    assert np.isnan(values[1])


def test_a_monotone_change_of_score_changes_neither_auc_nor_ap(binary):
    target, score, weights = binary
    for metric in (metrics.auc, metrics.average_precision):
        assert metric(target, np.exp(3 * score), weights) == pytest.approx(metric(target, score, weights), abs=1e-12)


def test_all_metrics_of_a_binary_task_are_those_of_class_one(binary):
    target, score, weights = binary
    score = score / 2
    result = metrics.classification_metrics(target.astype(int), np.stack([1 - score, score], 1), weights)
    assert result["f1"] == pytest.approx(metrics.f1(target, score > 0.5, weights))
    assert result["auc"] == pytest.approx(metrics.auc(target, score, weights), nan_ok=True)
    assert result["average_precision"] == pytest.approx(metrics.average_precision(target, score, weights))


def test_labels_that_exclude_nothing_are_scored_one_by_one():
    draw = np.random.default_rng(4)
    target, scores = draw.random((50, 3)) < 0.3, draw.random((50, 3))
    result = metrics.classification_metrics(target, scores)
    guess = scores >= 0.5
    assert result["f1"] == pytest.approx(sk.f1_score(target, guess, average="macro"))
    assert result["auc"] == pytest.approx(sk.roc_auc_score(target, scores, average="macro"))
    assert result["accuracy"] == pytest.approx((guess == target).mean())
    expected = np.mean([sk.balanced_accuracy_score(target[:, k], guess[:, k]) for k in range(3)])
    assert result["balanced_accuracy"] == pytest.approx(expected)


def test_the_mean_of_values_leaves_out_what_is_not_defined():
    assert metrics.weighted_mean([1.0, np.nan, 3.0]) == 2
    assert metrics.weighted_mean([1.0, np.nan, 3.0], [[3, 5, 1]]) == pytest.approx([1.5])
    assert np.isnan(metrics.weighted_mean([np.nan]))


def test_bad_input_is_named():
    with pytest.raises(MetricError, match="2 targets but 3"):
        metrics.f1([1, 0], [1, 0, 1])
    with pytest.raises(MetricError, match="1 of 2 scores are NaN"):
        metrics.auc([1, 0], [0.1, np.nan])
    with pytest.raises(MetricError, match="run from 0 to 2, but scores have 2 columns"):
        metrics.classification_metrics([0, 1, 2], np.full((3, 2), 0.5))
    with pytest.raises(MetricError, match="There are weights for 3 rows, but 2 targets"):
        metrics.f1([1, 0], [1, 0], [1, 1, 1])
    with pytest.raises(MetricError, match="one column per class"):
        metrics.classification_metrics([0, 1], [[0.5], [0.5]])
