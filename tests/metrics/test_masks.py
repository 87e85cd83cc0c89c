"""Segmentation metrics against hand cases, torchmetrics and every pair of pixels."""

import numpy as np
import pytest
import torch

from endofm_lab.metrics import masks as metrics_masks
from endofm_lab.metrics.classification import MetricError, weighted_mean
from endofm_lab.metrics.masks import mask_metrics


def box(y0, y1, x0, x1, size=(20, 30)):
    mask = np.zeros(size, bool)
    mask[y0:y1, x0:x1] = True
    return mask


def random_masks(seed):
    draw = np.random.default_rng(seed)
    y, x = np.mgrid[:24, :30]
    blobs = [np.hypot(y - draw.uniform(4, 20), x - draw.uniform(4, 26)) < draw.uniform(2, 7) for _ in range(2)]
    return [blob | (draw.random((24, 30)) < 0.01) for blob in blobs]


def outline(mask):
    """Pixels of the mask with a 4-neighbour that is outside the mask or the frame."""
    height, width = mask.shape
    return [
        (y, x)
        for y, x in np.argwhere(mask)
        for neighbours in [[(y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)]]
        if any(not (0 <= b < height and 0 <= a < width and mask[b, a]) for b, a in neighbours)
    ]


def test_hand_cases():
    truth, predicted = box(2, 6, 2, 6), box(2, 6, 4, 8)  # 16 pixels each, 8 shared
    assert metrics_masks.dice(truth, predicted) == 0.5
    assert metrics_masks.iou(truth, predicted) == 8 / 24
    assert metrics_masks.hd95_px(truth, truth) == 0
    assert metrics_masks.hd95_px(box(5, 6, 5, 6), box(8, 9, 9, 10)) == 5  # one pixel each, 3 down and 4 across
    # The outline of a 1 x 21 line against one pixel at its end: distances 0..20 one way, 0 the other; 95 % of 20 is 19.
    assert metrics_masks.hd95_px(box(3, 4, 5, 26), box(3, 4, 5, 6)) == pytest.approx(19)
    # A hole of one pixel in the middle is an outline too.
    holed = box(2, 7, 2, 7)
    holed[4, 4] = False
    assert metrics_masks.hd95_px(box(2, 7, 2, 7), holed) > 0


@pytest.mark.parametrize("seed", range(6))
def test_hd95_equals_all_pairs_of_outline_pixels(seed):
    truth, predicted = random_masks(seed)
    a, b = np.array(outline(truth)), np.array(outline(predicted))
    distances = np.linalg.norm(a[:, None] - b[None], axis=2)
    expected = max(np.percentile(distances.min(1), 95), np.percentile(distances.min(0), 95))
    assert metrics_masks.hd95_px(truth, predicted) == pytest.approx(expected)
    assert metrics_masks.hd95_px(predicted, truth) == pytest.approx(expected)


@pytest.mark.parametrize("seed", range(4))
def test_dice_equals_torchmetrics_and_its_hausdorff_bounds_ours(seed):
    from torchmetrics.segmentation import DiceScore, HausdorffDistance  # takes more than a second to load

    truth, predicted = random_masks(seed)
    as_classes = [torch.from_numpy(m.astype(int))[None] for m in (predicted, truth)]
    library = DiceScore(2, include_background=False, input_format="index")(*as_classes)
    assert metrics_masks.dice(truth, predicted) == pytest.approx(library.item(), abs=1e-6)
    largest = HausdorffDistance(2, include_background=False, input_format="index")(*as_classes)
    assert metrics_masks.hd95_px(truth, predicted) <= largest.item() + 1e-4


def test_iou_and_dice_are_the_same_order():
    for seed in range(10):
        truth, predicted = random_masks(seed)
        d, i = metrics_masks.dice(truth, predicted), metrics_masks.iou(truth, predicted)
        assert i == pytest.approx(d / (2 - d))


def test_the_four_empty_cases_are_as_the_table_says():
    lesion, empty = box(2, 6, 2, 6), np.zeros((20, 30), bool)
    table = mask_metrics([lesion, lesion, empty, empty], [lesion, empty, lesion, empty])
    assert table["lesion"].tolist() == [True, True, False, False]
    np.testing.assert_array_equal(table["dice"], [1, 0, np.nan, np.nan])
    np.testing.assert_array_equal(table["iou"], [1, 0, np.nan, np.nan])
    np.testing.assert_array_equal(table["hd95_px"], [0, np.hypot(20, 30), np.nan, np.nan])
    np.testing.assert_array_equal(table["false_positive"], [np.nan, np.nan, 1, 0])
    assert weighted_mean(table["dice"]) == 0.5
    assert weighted_mean(table["false_positive"]) == 0.5


def test_no_distance_is_above_that_of_a_missed_lesion():
    corner, far = box(0, 1, 0, 1), box(19, 20, 29, 30)
    assert metrics_masks.hd95_px(corner, far) < metrics_masks.hd95_px(corner, np.zeros_like(corner))


def test_frames_of_different_size_and_masks_of_0_and_1_are_taken():
    truth = [box(2, 6, 2, 6), box(1, 3, 1, 3, (8, 9))]
    table = mask_metrics(truth, [mask.astype(np.uint8) for mask in truth])
    assert table["dice"].tolist() == [1, 1]


def test_bad_masks_are_named():
    with pytest.raises(MetricError, match=r"Frame 1: The true mask has shape \(20, 30\), the predicted one \(10, 10\)"):
        mask_metrics([box(1, 2, 1, 2)] * 2, [box(1, 2, 1, 2), box(1, 2, 1, 2, (10, 10))])
    with pytest.raises(MetricError, match="Frame 0: The true mask has values up to 255"):
        mask_metrics([box(1, 2, 1, 2) * np.uint8(255)], [box(1, 2, 1, 2)])
    with pytest.raises(MetricError, match="numbers of predicted and true masks differ"):
        mask_metrics([box(1, 2, 1, 2)], [])
