"""The patient-level bootstrap against its restatement with explicit draws, and its coverage."""

import numpy as np
import pytest
from sklearn.metrics import f1_score, roc_auc_score

from endofm_lab.metrics import classification as metrics
from endofm_lab.metrics import intervals
from endofm_lab.metrics.classification import MetricError
from endofm_lab.metrics.intervals import (
    MIN_UNITS_FOR_INTERVAL,
    MIN_UNITS_FOR_RANK,
    bootstrap_difference,
    bootstrap_interval,
    bootstrap_samples,
    caution,
    on_repeated_rows,
)


@pytest.fixture
def cohort():
    """40 rows of 12 patients, names of unequal length; scores that follow the target."""
    draw = np.random.default_rng(3)
    groups = np.array([f"patient-{k}" for k in draw.integers(0, 12, 40)])
    target = draw.random(40) < 0.5
    return groups, target, np.round(draw.random(40) + 0.4 * target, 2)


def test_intervals_by_weights_equal_intervals_by_repeating_rows(cohort):
    groups, target, score = cohort
    assert bootstrap_interval(metrics.auc, groups, target, score, n=60) == bootstrap_interval(
        on_repeated_rows(lambda t, s: metrics.auc(t, s)), groups, target, score, n=60
    )
    interval = bootstrap_interval(metrics.auc, groups, target, score, n=60)
    library = bootstrap_interval(on_repeated_rows(roc_auc_score), groups, target, score, n=60)
    assert (interval.value, interval.low, interval.high) == pytest.approx((library.value, library.low, library.high))


def test_the_interval_is_the_percentiles_over_drawn_patients(cohort):
    groups, target, score = cohort
    patients = np.unique(groups)
    draw = np.random.default_rng(7)
    values = []
    for counts in draw.multinomial(len(patients), np.full(len(patients), 1 / len(patients)), 200):
        rows = [i for k, c in enumerate(counts) for _ in range(c) for i in np.flatnonzero(groups == patients[k])]
        values.append(f1_score(target[rows], score[rows] > 0.5))
    interval = bootstrap_interval(metrics.f1, groups, target, score > 0.5, n=200, seed=7, level=0.9)
    assert (interval.low, interval.high) == pytest.approx(tuple(np.quantile(values, [0.05, 0.95])))
    assert (interval.value, interval.units, interval.undefined) == (f1_score(target, score > 0.5), len(patients), 0)


def test_memory_blocks_do_not_change_the_draw(cohort, monkeypatch):
    groups, target, score = cohort
    whole = bootstrap_interval(metrics.auc, groups, target, score, n=50)
    monkeypatch.setattr(intervals, "_CELLS", 3 * len(groups))
    assert bootstrap_interval(metrics.auc, groups, target, score, n=50) == whole


def test_resamples_that_are_alike_are_measured_once():
    groups, rows = list("aabbb"), np.array([0.1, 0.5, 0.7, 0.2, 0.4])
    measured = []

    def mean(weights):
        measured.append(len(weights))
        return {"mean": (weights * rows).sum(1) / weights.sum(1)}

    samples = bootstrap_samples(mean, groups, n=100, seed=3)
    assert measured == [1, 3], "two units are drawn as two of the one, two of the other, or one of each"
    drawn = np.concatenate(list(intervals.unit_weights(groups, 100, 3)))
    np.testing.assert_array_equal(samples.samples["mean"], mean(drawn)["mean"])


def test_resamples_without_both_classes_are_left_out_and_counted():
    groups, target = np.arange(5), np.array([True, False, False, False, False])
    interval = bootstrap_interval(metrics.auc, groups, target, np.array([0.9, 0.1, 0.2, 0.1, 0.2]), n=2000)
    # all five draws negative: (4/5)^5; all five the positive patient: (1/5)^5
    assert interval.undefined / interval.n == pytest.approx((4 / 5) ** 5 + (1 / 5) ** 5, abs=0.03)
    assert (interval.low, interval.value, interval.high) == (1, 1, 1)


def test_one_patient_has_no_interval():
    interval = bootstrap_interval(metrics.accuracy, ["a"] * 4, [0, 1, 1, 0], [0, 1, 0, 0], n=10)
    assert interval.value == 0.75
    assert np.isnan(interval.low)
    assert np.isnan(interval.high)


def test_below_five_units_there_is_no_interval_and_below_ten_no_p_value():
    values, draw = np.random.default_rng(0).random((2, 300)), np.random.default_rng(1)
    for units in range(1, 13):
        groups = draw.permutation(np.arange(300) % units)
        difference = bootstrap_difference(metrics.weighted_mean, groups, (values[0],), (values[1],), n=100)
        assert np.isnan(difference.low) == np.isnan(difference.high) == (units < MIN_UNITS_FOR_INTERVAL)
        assert np.isnan(difference.p_value) == (units < MIN_UNITS_FOR_RANK)
        assert difference.units == units and difference.value == pytest.approx(values[1].mean() - values[0].mean())


def test_a_value_without_an_interval_says_how_many_units_are_needed():
    interval = bootstrap_interval(metrics.accuracy, ["a", "b"], [0, 1], [0, 0], n=10)
    assert str(interval) == "0.500 (no interval: 2 units, at least 5 are needed)"
    assert str(bootstrap_interval(metrics.accuracy, np.arange(5), np.ones(5), np.ones(5))) == "1.000 [1.000, 1.000]"


def test_the_caution_names_the_units_and_the_limits():
    assert caution(10) == ""
    assert "4 videos; patients unknown: no interval is given below 5 units" in caution(4, "4 videos; patients unknown")
    assert "no rank and no p-value is given below 10 units" in caution(9)


def test_merging_units_does_not_make_intervals_narrower_on_average():
    draw, widths = np.random.default_rng(11), []
    for trial in range(60):
        values = np.repeat(draw.normal(0, 1, 20), 3) + draw.normal(0, 0.3, 60)  # 20 recordings of three rows
        fine, coarse = (np.arange(60) // rows for rows in (3, 6))
        pair = [bootstrap_interval(metrics.weighted_mean, g, values, n=300, seed=trial) for g in (fine, coarse)]
        widths.append([interval.high - interval.low for interval in pair])
    rows = [
        bootstrap_interval(metrics.weighted_mean, np.arange(60), np.repeat(draw.normal(0, 1, 20), 3), n=300)
        for _ in range(60)
    ]
    fine_width, coarse_width = np.mean(widths, axis=0)
    assert coarse_width > 0.93 * fine_width, "independent recordings in pairs: equal but for the smaller sample"
    assert np.mean([row.high - row.low for row in rows]) < 0.7 * fine_width, "rows taken as units pretend to more"


@pytest.mark.parametrize(("units", "expected"), [(5, 0.846), (10, 0.904), (20, 0.929)])
def test_the_coverage_that_the_limits_rest_on(units, expected):
    draw, covered = np.random.default_rng(units), 0
    for trial in range(400):
        interval = bootstrap_interval(
            metrics.weighted_mean, np.arange(units), draw.normal(0, 1, units), n=300, seed=trial
        )
        covered += interval.low <= 0 <= interval.high
    assert covered / 400 == pytest.approx(expected, abs=0.055)


def test_frames_of_few_patients_give_a_wider_interval_than_the_same_frames_taken_as_patients():
    draw = np.random.default_rng(0)
    groups = np.repeat(np.arange(10), 30)
    values = np.repeat(draw.random(10), 30)
    by_patient = bootstrap_interval(metrics.weighted_mean, groups, values)
    by_frame = bootstrap_interval(metrics.weighted_mean, np.arange(300), values)
    assert by_patient.high - by_patient.low > 3 * (by_frame.high - by_frame.low)


def test_the_interval_covers_the_true_value_about_as_often_as_it_says():
    draw = np.random.default_rng(5)
    covered = 0
    for trial in range(200):
        values = np.repeat(draw.normal(0.0, 1.0, 40), 3)
        interval = bootstrap_interval(metrics.weighted_mean, np.repeat(np.arange(40), 3), values, n=300, seed=trial)
        covered += interval.low <= 0 <= interval.high
    assert 0.88 <= covered / 200 <= 0.98  # 0.95 less the small-sample loss, plus or minus 3 standard errors


def test_several_metrics_share_one_draw(cohort):
    groups, target, score = cohort
    samples = bootstrap_samples(
        lambda w: {"auc": metrics.auc(target, score, w), "f1": metrics.f1(target, score > 0.5, w)}, groups, n=40
    )
    assert samples.interval("auc") == bootstrap_interval(metrics.auc, groups, target, score, n=40)
    assert samples.interval("f1") == bootstrap_interval(metrics.f1, groups, target, score > 0.5, n=40)


def test_a_model_does_not_differ_from_itself(cohort):
    groups, target, score = cohort
    difference = bootstrap_difference(metrics.auc, groups, (target, score), (target, score), n=100)
    assert (difference.value, difference.low, difference.high, difference.p_value) == (0, 0, 0, 1)


def test_a_paired_difference_is_narrower_than_two_separate_intervals_suggest():
    draw = np.random.default_rng(1)
    hard = draw.normal(0, 1, 50)  # what makes a patient hard is common to both models
    first, second = hard + draw.normal(0, 0.1, 50), hard + 0.2 + draw.normal(0, 0.1, 50)
    groups = np.arange(50)
    difference = bootstrap_difference(metrics.weighted_mean, groups, (first,), (second,))
    interval = bootstrap_interval(metrics.weighted_mean, groups, first)
    assert difference.low > 0
    assert difference.p_value == pytest.approx(
        2 / 1001
    )  # no resample on the other side: the smallest p that 1000 can give
    assert interval.high - interval.low > 4 * (difference.high - difference.low)


def test_the_p_value_is_uniform_when_there_is_no_difference():
    draw = np.random.default_rng(2)
    p = []
    for trial in range(150):
        first, second = draw.normal(0, 1, (2, 40))
        difference = bootstrap_difference(metrics.weighted_mean, np.arange(40), (first,), (second,), n=200, seed=trial)
        p.append(difference.p_value)
    assert 0.02 <= np.mean(np.array(p) < 0.1) <= 0.2


def test_runs_on_different_patients_have_no_paired_difference():
    first, second = (
        bootstrap_samples(lambda w: {"mean": w.mean(1)}, groups, n=5) for groups in (list("abc"), list("abd"))
    )
    with pytest.raises(MetricError, match="differ in units or draws"):
        first.minus(second, "mean")


def test_bad_input_is_named():
    with pytest.raises(MetricError, match="level is 95"):
        bootstrap_interval(metrics.accuracy, [0, 1], [0, 1], [0, 1], level=95)
    with pytest.raises(MetricError, match="test set is empty"):
        bootstrap_interval(metrics.accuracy, [], [], [])
    with pytest.raises(MetricError, match="n is 0"):
        bootstrap_interval(metrics.accuracy, [0, 1], [0, 1], [0, 1], n=0)
