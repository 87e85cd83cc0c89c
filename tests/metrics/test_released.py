import numpy as np
import pytest

from endofm_lab.metrics.boxes import frame_boxes
from endofm_lab.metrics.classification import MetricError
from endofm_lab.metrics.released import (
    released_centre_counts,
    released_centre_localisation,
    released_dice,
    released_frame_presence,
    released_presence_counts,
)
from tests.model.released_goldens import golden_json

TOY = golden_json("metrics_toy")
FRAMES = [frame_boxes(true, predictions, scores) for true, _labels, predictions, scores in TOY["frames"]]


def test_frame_presence_equals_the_released_detection_metric_in_total_and_frame_by_frame():
    assert [list(released_presence_counts(frame)) for frame in FRAMES] == TOY["detection_per_frame_tp_fp_tn_fn"]
    assert released_frame_presence(FRAMES) == pytest.approx(TOY["detection"], rel=1e-12)


def test_centre_localisation_equals_the_released_one_in_total_and_frame_by_frame():
    assert [list(released_centre_counts(frame)) for frame in FRAMES] == TOY["localization_per_frame_tp_fp_fn"]
    assert released_centre_localisation(FRAMES) == pytest.approx(TOY["localization_center"], rel=1e-12)


def test_a_box_in_the_wrong_place_is_right_by_presence_and_wrong_by_centre():
    frame = frame_boxes([[0, 0, 10, 10]], [[80, 80, 90, 90]], [0.9])
    assert released_frame_presence([frame])["f1"] == pytest.approx(100, abs=1e-4)
    assert released_centre_localisation([frame])["f1"] == 0


def test_only_scores_of_at_least_a_half_count_and_a_centre_on_the_border_is_outside():
    true = [[0, 0, 10, 10]]
    for score, expected in ((0.5, (1, 0, 0)), (0.4999, (0, 0, 1))):
        assert released_centre_counts(frame_boxes(true, [[2, 2, 6, 6]], [score])) == expected
    on_the_border = frame_boxes(true, [[5, 0, 15, 10]], [0.9])
    assert released_centre_counts(on_the_border) == (0, 1, 1)


def test_without_any_case_a_ratio_is_zero_and_without_frames_it_is_refused():
    normal = frame_boxes([], [], [])
    presence = released_frame_presence([normal])
    assert (presence["precision"], presence["recall"], presence["f1"]) == (0, 0, 0)
    assert presence["specificity"] == pytest.approx(100, abs=1e-4)
    with pytest.raises(MetricError, match="no frames"):
        released_frame_presence([])


def test_the_released_dice_is_backwards_where_the_truth_is_empty():
    empty, mask = np.zeros((4, 4), bool), np.eye(4, dtype=bool)
    assert released_dice(empty, mask) == 1
    assert released_dice(empty, empty) == 0
    assert released_dice(mask, empty) == 0
    assert released_dice(mask, mask) == 1
    half = mask.copy()
    half[2:] = False
    assert released_dice(mask, half) == pytest.approx(2 * 2 / (2 + 4))
