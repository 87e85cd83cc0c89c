from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from endofm_lab.figures.comparison import classes, intervals, reliability_of, ribbons
from endofm_lab.runs.by_class import by_class
from endofm_lab.runs.compare import compare
from tests.builders import made_run


def value(table, name, metric):
    return table.set_index(["class", "metric"]).loc[(name, metric), "value"]


def test_recall_and_precision_of_every_class_are_those_of_a_hand_count():
    scores = np.array([[0.9, 0.1], [0.4, 0.6], [0.2, 0.8], [0.3, 0.7], [0.6, 0.4]])
    table = pd.DataFrame({"seed": 0, "row": list("abcde"), "patient": list("ppqqr"), "target": [0, 0, 1, 1, 1]})
    table[["score_normal", "score_polyp"]] = scores
    result = by_class(made_run("a", predictions=table), n=50)
    assert value(result, "normal", "recall") == 1 / 2 and value(result, "normal", "precision") == 1 / 2
    assert value(result, "polyp", "recall") == pytest.approx(2 / 3)
    assert value(result, "polyp", "precision") == pytest.approx(2 / 3)
    assert result.groupby("class")["items"].first().to_dict() == {"normal": 2, "polyp": 3}
    assert result["low"].isna().all(), "three patients have no interval"
    patients = by_class(made_run("b"), n=50)
    assert ((patients["low"] <= patients["value"]) & (patients["value"] <= patients["high"])).all()


def test_a_class_of_few_patients_has_no_interval_although_the_test_set_has_many():
    run = made_run("a")
    target = (run.predictions["patient"].isin(["p03", "p07"])).astype(int)
    result = by_class(replace(run, predictions=run.predictions.assign(target=target)), n=50).set_index(
        ["class", "metric"]
    )
    assert result.loc[("polyp", "recall"), "units"] == 2 and np.isnan(result.loc[("polyp", "recall"), "low"])
    assert result.loc[("normal", "recall"), "units"] == 18 and not np.isnan(result.loc[("normal", "recall"), "low"])


def test_boxes_have_the_ap_of_their_class_and_masks_have_no_classes():
    table = pd.DataFrame(
        {
            "seed": 0,
            "row": ["a", "b"],
            "patient": ["p", "q"],
            "true_boxes": [[[0, 0, 10, 10]], [[0, 0, 10, 10]]],
            "true_labels": [[0], [1]],
            "boxes": [[[0, 0, 10, 10]], [[50, 50, 60, 60]]],
            "scores": [[0.9], [0.9]],
            "labels": [[0], [1]],
        }
    )
    protocol = {"dataset": "made", "chosen_on": "validation", "classes": "polyp, ulcer"}
    result = by_class(made_run("a", "detection", predictions=table, protocol=protocol), n=20)
    assert value(result, "polyp", "ap50") == 1 and value(result, "ulcer", "ap50") == 0
    assert by_class(made_run("b", "segmentation"), n=20).empty


def test_phases_are_counted_in_time_steps():
    run = made_run("a", "phases", skill=0.5)
    result = by_class(run, n=20)
    target, predicted = run.predictions["target"], run.predictions["predicted"]
    assert value(result, "class 1", "recall") == pytest.approx((predicted[target == 1] == 1).mean())


def test_figures_draw_the_numbers_of_the_runs():
    runs = [made_run("weak", skill=0.5), made_run("strong", skill=3.0)]
    compared = compare(runs, n=50)
    dots = intervals(compared).data[0]
    assert list(dots.y) == ["strong", "weak"] and list(dots.x) == [line.metrics["f1"].value for line in compared.lines]
    tables = {run.run: by_class(run, n=20) for run in runs}
    figure = classes(tables)
    assert len(figure.data) == 4 and [trace.name for trace in figure.data if trace.showlegend] == ["weak", "strong"]
    assert [trace.name for trace in reliability_of(runs).data] == ["calibrated", "weak", "strong"]
    assert reliability_of([made_run("a", "phases")]) is None


def test_ribbons_join_equal_steps_and_leave_out_those_without_an_answer():
    figure = ribbons([0, 1, 2, 3, 4, 5], {"truth": [0, 0, 1, 1, -1]}, ["in", "out"])
    assert [(bar.name, bar.base[0], bar.x[0]) for bar in figure.data] == [("in", 0, 2), ("out", 2, 2)]
