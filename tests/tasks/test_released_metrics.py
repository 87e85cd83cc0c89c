import numpy as np
import pytest

from endofm_lab.errors import UserError
from endofm_lab.tasks.released_metrics import (
    FrameBoxes,
    centre_localisation,
    centre_localisation_counts,
    frame_presence,
    frame_presence_counts,
    released_dice,
)
from tests.tasks.released_goldens import golden_json

TOY = golden_json("metrics_toy")
FRAMES = [
    FrameBoxes(np.array(true).reshape(-1, 4), np.array(found).reshape(-1, 4), np.array(scores))
    for true, _labels, found, scores in TOY["frames"]
]


def test_frame_presence_equals_the_released_detection_metric_in_total_and_frame_by_frame():
    assert [list(frame_presence_counts(frame)) for frame in FRAMES] == TOY["detection_per_frame_tp_fp_tn_fn"]
    assert frame_presence(FRAMES) == pytest.approx(TOY["detection"], rel=1e-12)


def test_centre_localisation_equals_the_released_one_in_total_and_frame_by_frame():
    assert [list(centre_localisation_counts(frame)) for frame in FRAMES] == TOY["localization_per_frame_tp_fp_fn"]
    assert centre_localisation(FRAMES) == pytest.approx(TOY["localization_center"], rel=1e-12)


def test_a_box_in_the_wrong_place_is_right_by_presence_and_wrong_by_centre():
    frame = FrameBoxes(np.array([[0, 0, 10, 10]]), np.array([[80, 80, 90, 90]]), np.array([0.9]))
    assert frame_presence([frame])["f1"] == pytest.approx(100, abs=1e-4)
    assert centre_localisation([frame])["f1"] == 0


def test_only_scores_of_at_least_a_half_count_and_a_centre_on_the_border_is_outside():
    true = np.array([[0, 0, 10, 10]])
    for score, expected in ((0.5, (1, 0, 0)), (0.4999, (0, 0, 1))):
        assert centre_localisation_counts(FrameBoxes(true, np.array([[2, 2, 6, 6]]), np.array([score]))) == expected
    on_the_border = FrameBoxes(true, np.array([[5, 0, 15, 10]]), np.array([0.9]))
    assert centre_localisation_counts(on_the_border) == (0, 1, 1)


def test_without_any_case_a_ratio_is_zero_and_without_frames_it_is_refused():
    normal = FrameBoxes(np.zeros((0, 4)), np.zeros((0, 4)), np.zeros(0))
    presence = frame_presence([normal])
    assert (presence["precision"], presence["recall"], presence["f1"]) == (0, 0, 0)
    assert presence["specificity"] == pytest.approx(100, abs=1e-4)
    with pytest.raises(UserError, match="no frames"):
        frame_presence([])


def test_the_released_dice_is_backwards_where_the_truth_is_empty():
    empty, some = np.zeros((4, 4), bool), np.eye(4, dtype=bool)
    assert released_dice(some, empty) == 1
    assert released_dice(empty, empty) == 0
    assert released_dice(empty, some) == 0
    assert released_dice(some, some) == 1
    half = some.copy()
    half[2:] = False
    assert released_dice(half, some) == pytest.approx(2 * 2 / (2 + 4))
