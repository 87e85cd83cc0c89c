"""Model input and back: round trips, known numbers, geometry."""

import numpy as np
import pytest
import torch

from endofm_lab.errors import UserError
from endofm_lab.video.transforms import (
    HALF,
    IMAGENET,
    TIMESFORMER,
    InputSpec,
    boxes_to_frame,
    from_input,
    masks_to_frame,
    to_input,
)

SPECS = [IMAGENET, HALF, TIMESFORMER]


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize("spec", SPECS)
def test_the_way_there_and_back_keeps_every_level(spec: InputSpec) -> None:
    frames = noise(2, 3, 224, 224, 3)
    x = to_input(frames, spec)
    assert x.shape == (2, 3, 3, 224, 224) and x.dtype == torch.float32 and x.is_contiguous()
    back = from_input(x, spec)
    assert back.dtype == np.uint8
    assert np.abs(back.astype(int) - frames).max() <= 1


@pytest.mark.parametrize("spec", SPECS)
def test_normalisation_is_the_formula(spec: InputSpec) -> None:
    frames = noise(2, 224, 224, 3, seed=1)
    naive = (frames / 255 - np.array(spec.mean)) / np.array(spec.std)
    np.testing.assert_allclose(to_input(frames, spec)[0].permute(1, 2, 3, 0).numpy(), naive, atol=2e-6)


def test_the_three_specifications_are_those_of_their_papers() -> None:
    assert IMAGENET.mean == (0.485, 0.456, 0.406) and IMAGENET.std == (0.229, 0.224, 0.225)
    assert set(HALF.mean + HALF.std) == {0.5}
    assert set(TIMESFORMER.mean) == {0.45} and set(TIMESFORMER.std) == {0.225}
    assert {spec.size_px for spec in SPECS} == {224}


def test_one_clip_is_a_batch_of_one_and_tensors_are_taken_too() -> None:
    frames = noise(4, 60, 80, 3)
    single = to_input(frames, HALF)
    assert single.shape == (1, 3, 4, 224, 224)
    torch.testing.assert_close(single, to_input(frames[None], HALF), rtol=0, atol=0)
    torch.testing.assert_close(single, to_input(torch.from_numpy(frames), HALF), rtol=0, atol=0)
    torch.testing.assert_close(single, to_input(frames[:, ::-1], HALF).flip(3), rtol=0, atol=0.01)
    before = frames.copy()
    to_input(frames, InputSpec(60))
    np.testing.assert_array_equal(frames, before)


def test_a_batch_is_its_clips() -> None:
    frames = noise(3, 2, 50, 70, 3)
    batch = to_input(frames, IMAGENET)
    for clip, x in zip(frames, batch, strict=True):
        torch.testing.assert_close(to_input(clip, IMAGENET)[0], x, rtol=0, atol=0)


def test_shrinking_is_the_mean_over_triangles() -> None:
    """Antialiased bilinear halving weighs four neighbours 1 3 3 1; without antialiasing it would be 0 1 1 0."""
    row = noise(16, seed=2)
    frames = np.broadcast_to(row[None, None, :, None], (1, 16, 16, 3))
    out = from_input(to_input(frames, InputSpec(8)), InputSpec(8))[0, 0, 3, :, 0]
    padded = row.astype(float)
    expected = [(np.array([1, 3, 3, 1]) / 8) @ padded[2 * k - 1 : 2 * k + 3] for k in range(1, 7)]
    np.testing.assert_allclose(out[1:7], expected, atol=1)


@pytest.mark.parametrize("height_width", [(288, 512), (720, 576), (101, 57), (64, 64), (20, 30)])
@pytest.mark.parametrize("fit", ["stretch", "centre_crop"])
def test_resizing_agrees_with_float_interpolation(height_width: tuple[int, int], fit: str) -> None:
    H, W = height_width
    frames = noise(2, H, W, 3, seed=3)
    part = torch.from_numpy(frames).permute(0, 3, 1, 2).double()
    if fit == "centre_crop":
        side = min(H, W)
        top, left = (H - side) // 2, (W - side) // 2
        part = part[..., top : top + side, left : left + side]
    exact = torch.nn.functional.interpolate(part, size=(64, 64), mode="bilinear", antialias=True)
    spec = InputSpec(64)
    resized = torch.from_numpy(from_input(to_input(frames, spec, fit), spec)[0]).permute(0, 3, 1, 2)  # type: ignore[arg-type]
    assert (resized - exact).abs().max() <= 1.5  # the uint8 kernel rounds after each axis


@pytest.mark.parametrize(
    "frames",
    [
        np.zeros((2, 8, 8, 3), np.float32),
        np.zeros((8, 8, 3), np.uint8),
        np.zeros((2, 3, 8, 8), np.uint8),
        np.zeros((0, 8, 8, 3), np.uint8),
        np.zeros((1, 1, 2, 8, 8, 3), np.uint8),
        torch.zeros(1, 3, 2, 8, 8),
    ],
)
def test_other_kinds_of_frames_are_refused(frames: np.ndarray | torch.Tensor) -> None:
    with pytest.raises(UserError, match=r"\(T, H, W, 3\)"):
        to_input(frames, HALF)


def test_an_unknown_fit_and_impossible_specifications_are_refused() -> None:
    with pytest.raises(UserError, match="stretch or centre_crop"):
        to_input(noise(1, 8, 8, 3), HALF, "pad")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="from 1 to 4096"):
        InputSpec(0)
    with pytest.raises(UserError, match="above 0"):
        InputSpec(std=(1, 0, 1))


def test_boxes_by_hand() -> None:
    boxes = np.array([[0, 0, 100, 100], [10, 20, 30, 40], [np.nan] * 4, [-5, 90, 50, 110]], np.float32)
    spec = InputSpec(100)
    stretched = boxes_to_frame(boxes, (200, 400), spec)
    assert stretched.dtype == np.float32
    np.testing.assert_allclose(
        stretched, [[0, 0, 400, 200], [40, 40, 120, 80], [np.nan] * 4, [0, 180, 200, 200]], rtol=1e-6
    )
    cropped = boxes_to_frame(torch.from_numpy(boxes), (200, 400), spec, "centre_crop")
    np.testing.assert_allclose(
        cropped, [[100, 0, 300, 200], [120, 40, 160, 80], [np.nan] * 4, [90, 180, 200, 200]], rtol=1e-6
    )
    assert boxes_to_frame(np.zeros((2, 5, 4)), (20, 30), spec).shape == (2, 5, 4)


@pytest.mark.parametrize("frame_hw", [(288, 512), (500, 300), (224, 224)])
@pytest.mark.parametrize("fit", ["stretch", "centre_crop"])
def test_what_the_model_sees_comes_back_to_its_place(frame_hw: tuple[int, int], fit: str) -> None:
    """A bright rectangle, seen through the model's eyes and brought back as a mask and as a box."""
    H, W = frame_hw
    top, left, bottom, right = H // 2 - 40, W // 2 - 60, H // 2 + 30, W // 2 + 50
    frames = np.zeros((1, H, W, 3), np.uint8)
    frames[:, top:bottom, left:right] = 255
    mask = from_input(to_input(frames, HALF, fit), HALF)[0, ..., 0] > 127  # type: ignore[arg-type]  # (1, 224, 224)
    back = masks_to_frame(mask, frame_hw, HALF, fit)  # type: ignore[arg-type]
    truth = frames[..., 0] > 0
    assert back.shape == (1, H, W) and back.dtype == bool
    assert (back & truth).sum() / (back | truth).sum() > 0.95
    rows, columns = np.nonzero(mask[0])
    box = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
    np.testing.assert_allclose(
        boxes_to_frame(box, frame_hw, HALF, fit),  # type: ignore[arg-type]
        [left, top, right, bottom],
        atol=max(frame_hw) / 224,
    )


def test_scores_stay_scores_and_are_zero_outside_a_crop() -> None:
    scores = torch.full((2, 3, 16, 16), 0.25, requires_grad=True)
    whole = masks_to_frame(scores, (32, 64), InputSpec(16), "centre_crop")
    assert whole.shape == (2, 3, 32, 64) and whole.dtype == np.float32
    np.testing.assert_allclose(whole[..., 16:48], 0.25)
    assert not whole[..., :16].any() and not whole[..., 48:].any()


def test_masks_of_another_size_are_refused() -> None:
    with pytest.raises(UserError, match="224 x 224"):
        masks_to_frame(np.zeros((2, 16, 16), bool), (32, 64), HALF)
