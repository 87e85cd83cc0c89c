from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from endofm_lab.errors import UserError
from endofm_lab.video.phantom import FINDINGS, PhantomSpec, boxes_of, render

SMALL = PhantomSpec(seed=3, patient=5, finding="polyp", n_frames=12, size_px=96)


def test_the_same_specification_gives_the_same_bits():
    first, second = render(SMALL), render(SMALL)
    np.testing.assert_array_equal(first.frames, second.frames)
    np.testing.assert_array_equal(first.masks, second.masks)
    assert (render(replace(SMALL, seed=4)).frames != first.frames).mean() > 0.5


@pytest.mark.parametrize("finding", FINDINGS)
def test_a_withdrawing_clip_is_an_advancing_one_backwards(finding):
    advancing = render(replace(SMALL, finding=finding, motion="advancing"))
    withdrawing = render(replace(SMALL, finding=finding, motion="withdrawing"))
    np.testing.assert_array_equal(advancing.frames[::-1], withdrawing.frames)
    np.testing.assert_array_equal(advancing.masks[::-1], withdrawing.masks)


def test_shapes_and_types_are_what_the_contract_says():
    clip = render(SMALL)
    assert clip.frames.shape == (12, 96, 96, 3) and clip.frames.dtype == np.uint8
    assert clip.masks.shape == (12, 96, 96) and clip.masks.dtype == bool
    assert clip.boxes_xyxy.shape == (12, 4) and clip.boxes_xyxy.dtype == np.float32


def test_only_a_clip_with_a_finding_has_masks_and_boxes():
    normal = render(replace(SMALL, finding="normal"))
    assert not normal.masks.any()
    assert np.isnan(normal.boxes_xyxy).all()


@pytest.mark.parametrize("finding", FINDINGS[1:])
@pytest.mark.parametrize("seed", range(4))
def test_a_finding_is_seen_in_most_frames_and_is_neither_a_speck_nor_the_whole_picture(finding, seed):
    spec = PhantomSpec(seed=seed, patient=seed, device=seed % 3, finding=finding, size_px=64)
    area = render(spec).masks.mean(axis=(1, 2))
    assert (area > 0.002).mean() > 0.8
    assert 0.008 < area.mean() < 0.25


def test_the_finding_changes_the_picture_where_its_mask_is_and_nowhere_far_from_it():
    polyp, normal = render(SMALL), render(replace(SMALL, finding="normal"))
    difference = np.abs(polyp.frames.astype(int) - normal.frames).max(axis=-1)
    assert difference[polyp.masks].mean() > 10
    far = ~boxes_grown(polyp.boxes_xyxy, 96, by=24)
    assert difference[far].mean() < 0.5


def boxes_grown(boxes, size, by):
    rows, columns = np.mgrid[:size, :size]
    return np.stack(
        [(columns > x1 - by) & (columns < x2 + by) & (rows > y1 - by) & (rows < y2 + by) for x1, y1, x2, y2 in boxes]
    )


def test_boxes_fit_hand_drawn_masks():
    masks = np.zeros((2, 10, 12), dtype=bool)
    masks[0, 2:5, 3:9] = True
    np.testing.assert_array_equal(boxes_of(masks)[0], [3, 2, 9, 5])
    assert np.isnan(boxes_of(masks)[1]).all()


def test_folds_grow_outwards_when_the_camera_advances():
    """The mean motion of the picture away from its centre is positive: what one frame cannot show, two can."""
    clip = render(PhantomSpec(seed=1, patient=2, n_frames=24, size_px=96))
    grey = clip.frames.mean(axis=-1)
    rows, columns = np.mgrid[:96, :96] - 47.5
    radius = np.hypot(rows, columns) + 1e-6
    outward = []
    for before, after in pairwise(grey):
        by_row, by_column = np.gradient(before)
        slope = (by_row * rows + by_column * columns) / radius  # brightness per pixel outwards
        ring = (radius > 12) & (radius < 40) & (np.abs(slope) > 2)
        outward.append(-(slope * (after - before))[ring].sum() / (slope**2)[ring].sum())  # pixels per frame
    assert np.median(outward) > 0.1


def test_patients_differ_in_colour_and_devices_in_the_shape_of_the_picture():
    colours = [
        render(replace(SMALL, patient=p, finding="normal")).frames[:, 30:66, 30:66].mean((0, 1, 2)) for p in range(5)
    ]
    assert np.std(colours, axis=0).max() > 4
    black = [(render(replace(SMALL, device=d)).frames[0].max(-1) < 12) for d in range(3)]
    corners = [mask[:14, :14].mean() for mask in black]
    assert corners[0] > corners[1] > corners[2] > 0


def test_unknown_values_are_refused_with_the_possible_ones():
    with pytest.raises(UserError, match="normal, polyp, ulcer, bleeding"):
        PhantomSpec(seed=0, finding="tumour")
    with pytest.raises(UserError, match="device is 7"):
        PhantomSpec(seed=0, device=7)
