import numpy as np
import pytest
import torch
from torch import nn

from endofm_lab.errors import CheckpointError, UserError
from endofm_lab.model.transformer import build_backbone
from endofm_lab.tasks.released import cvc12k_input, load_released_segmenter, released_segmenter
from endofm_lab.tasks.segmenter import VideoSegmenter, segmentation_loss
from tests.tasks.released_goldens import golden, parity, segmenter_state


@pytest.fixture(scope="module")
def state():
    return segmenter_state()


def small(n_classes=2, seed=0):
    torch.manual_seed(seed)
    return VideoSegmenter(build_backbone("micro"), n_classes, stem_width=32, stem_units=(1, 1, 1))


def test_the_released_segmenter_gives_the_released_logits_within_a_thousandth_of_their_deviation(state):
    model = released_segmenter(state, "parity weights")
    frames = parity.input_for("seg_3x224", (3, 3, 224, 224))  # the frames of one clip
    with torch.inference_mode():
        logits = model(frames.permute(1, 0, 2, 3)[None])[0].transpose(0, 1)  # (T, K, H, W)
    wanted = golden("segmenter_seg_3x224")
    deviation = logits.std()
    at_points = (logits[:, :, ::4, ::4] - wanted["logits"]).abs().max() / deviation
    of_means = (logits.mean((2, 3)) - wanted["logits_mean"]).abs().max() / deviation
    print(f"segmenter: error {at_points:.1e} of the deviation {deviation:.4f}, of the means {of_means:.1e}")
    assert deviation == pytest.approx(0.0076, abs=1e-4)
    assert at_points < 1e-3
    assert of_means < 1e-3


def test_a_released_file_loads_strictly_and_a_missing_or_foreign_tensor_is_named(state, tmp_path):
    torch.save(state, tmp_path / "cvc.pth")
    model = load_released_segmenter(tmp_path / "cvc.pth")
    assert not model.training
    n_numbers = sum(x.numel() for x in state.values())
    assert sum(x.numel() for x in model.state_dict().values()) == n_numbers
    torch.testing.assert_close(model.head.weight, state["segmentation_head.0.weight"], rtol=0, atol=0)

    with pytest.raises(CheckpointError, match=r"norm\.bias"):
        released_segmenter({k: v for k, v in state.items() if k != "transformer.encoder.encoder_norm.bias"}, "a file")
    with pytest.raises(CheckpointError, match=r"extra\.weight"):
        released_segmenter(state | {"extra.weight": torch.zeros(1)}, "a file")
    with pytest.raises(CheckpointError, match=r"a file.*segmentation_head"):
        released_segmenter({"other": torch.zeros(1)}, "a file")


def test_every_frame_has_a_mask_and_a_single_image_is_a_clip_of_one_frame():
    model = small(n_classes=3).eval()
    for T in (1, 5):
        assert model(torch.randn(2, 3, T, 64, 64)).shape == (2, 3, T, 64, 64)


def test_the_masks_of_a_frame_depend_on_the_other_frames_but_not_on_their_order():
    model = small().eval()
    for parameter in (*model.blocks.parameters(), model.project.weight, model.decoder.enter[0].weight):
        nn.init.normal_(parameter, std=0.3)  # temporal_fc is zero at the start: time would be ignored
    clip = torch.randn(1, 3, 3, 64, 64)
    order = [0, 2, 1]
    with torch.inference_mode():
        together, alone = model(clip), model(clip[:, :, :1])
        assert (together[:, :, :1] - alone).abs().max() > 1e-3 * together.std()
        torch.testing.assert_close(model(clip[:, :, order]), together[:, :, order], rtol=0, atol=1e-6)


def test_the_segmenter_takes_over_the_blocks_of_its_backbone():
    backbone = build_backbone("micro")
    model = VideoSegmenter(backbone, stem_width=32, stem_units=(1, 1, 1))
    assert model.blocks is backbone.blocks
    assert model.cls_token is backbone.cls_token
    kept = {name for name, _ in model.named_parameters()}
    assert not kept & {"time_embed", "patch_embed.proj.weight"}


def test_frames_of_another_size_and_backbones_without_divided_attention_are_refused():
    with pytest.raises(UserError, match="96 x 64 px; this segmenter takes 64 x 64"):
        small()(torch.zeros(1, 3, 1, 96, 64))
    with pytest.raises(UserError, match="space_only"):
        VideoSegmenter(build_backbone("micro", attention="space_only"))
    with pytest.raises(UserError, match="multiple of 16"):
        VideoSegmenter(build_backbone("micro", image_px=56, patch_px=14))


def test_gradients_reach_every_parameter_and_a_few_steps_learn_a_square():
    model = small()
    x = torch.zeros(1, 3, 2, 64, 64)
    x[..., 16:48, 8:40] = 1.0
    masks = x[:, 0].long()
    optimiser = torch.optim.AdamW(model.parameters(), 3e-3)
    losses = []
    for _ in range(20):
        loss = segmentation_loss(model(x), masks)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    without = [name for name, p in model.named_parameters() if p.grad is None]
    assert without == []
    print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f}")
    assert losses[-1] < 0.3 * losses[0]


def test_the_loss_is_half_cross_entropy_and_half_dice_as_computed_by_hand():
    # two pixels, probabilities of class 1: 0.8 on the pixel of class 1, 0.4 on the one of class 0
    logits = torch.tensor([[0.0, np.log(0.8 / 0.2)], [0.0, np.log(0.4 / 0.6)]]).T.reshape(1, 2, 1, 1, 2)
    masks = torch.tensor([1, 0]).reshape(1, 1, 1, 2)
    cross_entropy = -(np.log(0.8) + np.log(0.6)) / 2
    dice_0 = 1 - 2 * 0.6 / (0.2**2 + 0.6**2 + 1)
    dice_1 = 1 - 2 * 0.8 / (0.8**2 + 0.4**2 + 1)
    expected = 0.5 * cross_entropy + 0.5 * (dice_0 + dice_1) / 2
    assert segmentation_loss(logits, masks).item() == pytest.approx(expected, abs=1e-5)


def test_a_perfect_prediction_costs_nothing_even_where_a_class_is_absent():
    for masks in (torch.zeros(1, 2, 4, 4, dtype=torch.long), torch.eye(4, dtype=torch.long).repeat(1, 2, 1, 1)):
        logits = 50.0 * torch.nn.functional.one_hot(masks, 2).permute(0, 4, 1, 2, 3)
        assert segmentation_loss(logits, masks).item() == pytest.approx(0, abs=1e-6)


def test_the_official_input_stretches_every_frame_to_its_own_range():
    generator = np.random.default_rng(0)
    frames = generator.integers(40, 90, (3, 288, 384, 3), dtype=np.uint8)
    frames[2] = 7
    x = cvc12k_input(frames)
    assert x.shape == (1, 3, 3, 224, 224)
    for t in (0, 1):
        assert (x[0, :, t].min().item(), x[0, :, t].max().item()) == (-1, 1)
    assert (x[0, :, 2] == -1).all()
    brighter = cvc12k_input(frames + 50)
    torch.testing.assert_close(brighter, x, rtol=0, atol=1e-6)
