"""Calibration against naive restatements, scikit-learn, torchmetrics, and models whose true temperature is known."""

import numpy as np
import pytest
import torch
from scipy.special import softmax
from sklearn.metrics import brier_score_loss, log_loss

from endofm_lab.metrics import calibration
from endofm_lab.metrics.calibration import (
    brier,
    confident_errors,
    ece,
    fit_temperature,
    fit_vector_scaling,
    logits_of,
    negative_log_likelihood,
    reliability_curve,
    selective_curve,
)
from endofm_lab.metrics.classification import MetricError
from endofm_lab.metrics.intervals import bootstrap_interval, on_repeated_rows


def over_confident(n, temperature=3.0, n_classes=4, seed=0):
    """Targets drawn from softmax(z), and logits ``temperature * z`` that claim too much."""
    draw = np.random.default_rng(seed)
    true_logits = draw.normal(0, 1.5, (n, n_classes))
    chances = softmax(true_logits, axis=1).cumsum(1)
    target = (draw.random((n, 1)) > chances[:, :-1]).sum(1)
    return target, temperature * true_logits


def naive_ece(target, probabilities, n_bins=15):
    total = 0.0
    for k in range(n_bins):
        rows = [
            (max(p), int(np.argmax(p)) == t)
            for t, p in zip(target, probabilities, strict=True)
            if k / n_bins < max(p) <= (k + 1) / n_bins
        ]
        if rows:
            total += abs(sum(hit for _, hit in rows) - sum(c for c, _ in rows)) / len(target)
    return total


@pytest.mark.parametrize("seed", range(4))
def test_ece_equals_the_restatement_and_torchmetrics(seed):
    from torchmetrics.functional.classification import multiclass_calibration_error  # takes more than a second to load

    target, logits = over_confident(300, seed=seed)
    probabilities = softmax(logits, axis=1)
    value = ece(target, probabilities)
    assert value == pytest.approx(naive_ece(target, probabilities), abs=1e-12)
    library = multiclass_calibration_error(torch.from_numpy(probabilities), torch.from_numpy(target), 4, n_bins=15)
    assert value == pytest.approx(library.item(), abs=1e-5)


def test_hand_cases_of_ece():
    sure_and_right = np.array([[1.0, 0.0], [0.0, 1.0]])
    assert ece([0, 1], sure_and_right) == 0
    assert ece([1, 0], sure_and_right) == 1
    # Four rows with confidence 0.8 of which two are right, one row with confidence 0.6 that is right.
    probabilities = [[0.8, 0.2]] * 4 + [[0.6, 0.4]]
    assert ece([0, 0, 1, 1, 0], probabilities) == pytest.approx(0.8 * 0.3 + 0.2 * 0.4)
    assert np.isnan(ece([], np.zeros((0, 2))))


def test_a_confidence_on_a_border_belongs_to_the_lower_bin():
    table = reliability_curve([0, 0, 0], [[0.75, 0.25], [0.7501, 0.2499], [1.0, 0.0]], n_bins=4)
    assert table["n"].tolist() == [0, 0, 1, 2]


def test_the_reliability_curve_holds_what_ece_sums():
    target, logits = over_confident(500)
    probabilities = softmax(logits, axis=1)
    table = reliability_curve(target, probabilities)
    assert table["n"].sum() == 500
    assert table.loc[table["n"] == 0, ["confidence", "accuracy"]].isna().all().all()
    gaps = (table["n"] * (table["accuracy"] - table["confidence"]).abs()).sum() / 500
    assert gaps == pytest.approx(ece(target, probabilities))
    filled = table.dropna()
    assert ((filled["low"] < filled["confidence"]) & (filled["confidence"] <= filled["high"])).all()


def test_brier_and_likelihood_equal_scikit_learn():
    target, logits = over_confident(200)
    probabilities = softmax(logits, axis=1)
    assert brier(target, probabilities) == pytest.approx(np.mean(np.sum((probabilities - np.eye(4)[target]) ** 2, 1)))
    assert negative_log_likelihood(target, probabilities) == pytest.approx(log_loss(target, probabilities))
    scores = softmax(logits[:, :2], axis=1)
    positive = (target > 1).astype(int)
    assert brier(positive, scores) == pytest.approx(2 * brier_score_loss(positive, scores[:, 1]))
    assert brier([0], [[0.0, 1.0]]) == 2


def test_weighted_rows_count_as_repeated_rows():
    target, logits = over_confident(60)
    probabilities, groups = softmax(logits, axis=1), np.arange(60) // 5
    for metric in (ece, brier, negative_log_likelihood):
        interval = bootstrap_interval(metric, groups, target, probabilities, n=30)
        repeated = bootstrap_interval(on_repeated_rows(metric), groups, target, probabilities, n=30)
        assert (interval.value, interval.low, interval.high) == pytest.approx(
            (repeated.value, repeated.low, repeated.high)
        )


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_the_true_temperature_is_found(temperature):
    target, logits = over_confident(20_000, temperature)
    assert fit_temperature(target, logits).temperature == pytest.approx(temperature, rel=0.03)


def test_the_fitted_temperature_is_the_best_of_a_grid():
    target, logits = over_confident(150)
    scaling = fit_temperature(target, logits)
    best = negative_log_likelihood(target, scaling(logits))
    for temperature in np.geomspace(0.1, 15, 200):
        assert best <= negative_log_likelihood(target, softmax(logits / temperature, axis=1)) + 1e-12


def test_scaling_halves_the_calibration_error_on_rows_it_was_not_fitted_on_and_changes_no_decision():
    target, logits = over_confident(3000)
    validation, test = slice(0, 1500), slice(1500, 3000)
    scaling = fit_temperature(target[validation], logits[validation])
    before, after = softmax(logits[test], axis=1), scaling(logits[test])
    assert ece(target[test], after) <= 0.5 * ece(target[test], before)
    np.testing.assert_array_equal(before.argmax(1), after.argmax(1))


def test_vector_scaling_finds_a_weight_and_a_bias_per_class():
    target, logits = over_confident(20_000, temperature=1.0)
    weight, bias = np.array([2.0, 0.5, 1.0, 1.5]), np.array([1.0, -1.0, 0.5, -0.5])
    distorted = (logits - bias) / weight
    scaling = fit_vector_scaling(target, distorted)
    np.testing.assert_allclose(scaling.weight, weight, rtol=0.1)
    np.testing.assert_allclose(scaling.bias, bias, atol=0.1)
    temperature = fit_temperature(target, distorted)
    assert negative_log_likelihood(target, scaling(distorted)) < negative_log_likelihood(target, temperature(distorted))


def test_without_a_validation_error_the_temperature_stops_at_its_limit():
    scaling = fit_temperature([0, 1, 0, 1], [[1, 0], [0, 1], [1, 0], [0, 1]])
    assert scaling.temperature == pytest.approx(calibration.TEMPERATURE_RANGE[0])
    assert np.isfinite(scaling([[1.0, 0.0]])).all()


def test_logits_of_probabilities_give_the_probabilities_back():
    probabilities = softmax(np.random.default_rng(0).normal(0, 3, (50, 4)), axis=1)
    np.testing.assert_allclose(softmax(logits_of(probabilities), axis=1), probabilities, atol=1e-12)
    assert np.isfinite(logits_of([[1.0, 0.0]])).all()


def test_the_selective_curve_equals_counting_at_every_threshold():
    target, logits = over_confident(80)
    probabilities = np.round(softmax(logits, axis=1), 1)
    probabilities[:, 0] += 1 - probabilities.sum(1)
    probabilities = np.abs(probabilities) / np.abs(probabilities).sum(1, keepdims=True)
    table = selective_curve(target, probabilities)
    confidence, right = probabilities.max(1), probabilities.argmax(1) == target
    assert table["threshold"].tolist() == sorted(set(confidence), reverse=True)
    for row in table.itertuples():
        answered = confidence >= row.threshold
        assert row.coverage == pytest.approx(answered.mean())
        assert row.accuracy == pytest.approx(right[answered].mean())
    assert table["coverage"].iloc[-1] == 1
    assert len(selective_curve([], np.zeros((0, 2)))) == 0


def test_confident_errors_come_with_the_most_confident_first():
    probabilities = [[0.95, 0.05], [0.99, 0.01], [0.6, 0.4], [0.98, 0.02], [0.9, 0.1]]
    assert confident_errors([1, 1, 1, 0, 1], probabilities).tolist() == [1, 0]


def test_bad_input_is_named():
    with pytest.raises(MetricError, match="1 of 2 rows do not sum to one"):
        ece([0, 1], [[0.5, 0.5], [2.0, 3.0]])
    with pytest.raises(MetricError, match=r"1 of 1 rows hold NaN or infinity"):
        fit_temperature([0], [[np.nan, 1.0]])
    with pytest.raises(MetricError, match=r"1 - p and p"):
        ece([0, 1], [0.2, 0.7])
    with pytest.raises(MetricError, match=r"Classes \[2\] have no validation row"):
        fit_vector_scaling([0, 1], [[1, 0, 0], [0, 1, 0]])
    with pytest.raises(MetricError, match="run from 0 to 2"):
        ece([0, 2], [[0.5, 0.5], [0.5, 0.5]])
    with pytest.raises(MetricError, match="validation set is empty"):
        fit_temperature([], np.zeros((0, 2)))
