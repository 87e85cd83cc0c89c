"""Random crops, flips and colours: the draws of a seed never change, and a mask moves with its picture."""

import numpy as np
import pytest
import torch

from endofm_lab.pretraining.views import MultiView, ViewSpec
from endofm_lab.video.augment import augmented, draw_view, grid_distorted, square_view


def test_the_draws_of_a_seed_are_what_they_always_were():
    """Runs that were stopped before an update go on after it with the same samples."""
    view = draw_view(np.random.default_rng(0), 60, 80)
    assert (view.top, view.left, view.height, view.width) == (0, 0, 58, 68)
    assert not view.mirrored and not view.overturned
    assert view.colour == pytest.approx((0.7582638177642645, 1.156635119600136, 1.206377788638861), rel=1e-12)
    views = MultiView(ViewSpec(blur=(1.0, 0.1, 0.5), solarise=(0.0, 0.2, 0.3))).draw(150, (256, 320), seed=7)
    assert (views[0].crop_xyxy, views[0].flip, views[0].grey) == ((30, 18, 312, 243), True, False)
    factors = [views[0].brightness, views[0].contrast, views[0].saturation, views[0].blur_sigma_px]
    assert factors == pytest.approx([1.298842756317, 0.604212243652, 1.128491367353, 0.675761610957], rel=1e-9)
    assert (views[-1].crop_xyxy, views[-1].window) == ((113, 71, 307, 235), (116, 134))


def test_a_mask_moves_with_its_picture():
    random = torch.Generator().manual_seed(0)
    clip = torch.rand(2, 1, 32, 32, generator=random).round().expand(2, 3, 32, 32)
    for _ in range(20):
        view, mask = square_view(clip, clip[:, :1], random)
        assert view.shape == clip.shape and mask.shape == (2, 1, 32, 32)
        inside = (mask > 0.99) | (mask < 0.01)
        bright = view.mean(dim=1, keepdim=True)
        assert bright[inside & (mask > 0.5)].min() > bright[inside & (mask < 0.5)].max()


def test_grid_distortion_moves_little_and_keeps_the_corners():
    ramp = torch.arange(101, dtype=torch.uint8).expand(1, 3, 101, 101).contiguous()
    torch.manual_seed(0)
    moved = grid_distorted(ramp, 0.09)
    shift = (moved.float() - ramp.float()).abs()
    assert 0.5 < shift.max() <= 0.09 * 2 / 5 * 101 * 1.5
    assert torch.equal(moved[..., [0, -1]], ramp[..., [0, -1]])
    assert torch.equal(grid_distorted(ramp, 0.0), ramp)


def test_augmented_pictures_keep_their_kind():
    frames = np.random.default_rng(0).integers(0, 255, (1, 60, 90, 3)).astype(np.uint8).repeat(2, axis=0)
    out = augmented(frames, 48, 5)
    assert out.shape == (2, 48, 48, 3) and out.dtype == np.uint8 and np.array_equal(out, augmented(frames, 48, 5))
    assert np.array_equal(out[0], out[1]), "all frames of a clip are changed alike"
