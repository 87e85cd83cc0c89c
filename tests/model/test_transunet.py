import numpy as np
import pytest
import torch
from torch import nn

from endofm_lab.errors import CheckpointError, UserError
from endofm_lab.model.card import HeadSpec
from endofm_lab.model.loading.downstream import CVC12K_INPUT
from endofm_lab.model.loading.load import load_model
from endofm_lab.model.paper.hybrid import HybridTransformer
from endofm_lab.model.paper.transunet import TransUNetHead, segmentation_loss
from endofm_lab.model.transformer import build_backbone
from endofm_lab.video.transforms import to_input
from tests.model.released_goldens import golden, parity, segmenter_state, small_segmenter_state


@pytest.fixture(scope="module")
def state():
    return segmenter_state()


class Small(nn.Module):
    """Backbone and head of a small segmenter."""

    def __init__(self, n_classes=1, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.backbone = HybridTransformer.around(build_backbone("micro"), stem_width=32, stem_units=(1, 1, 1))
        self.head = TransUNetHead(32, self.backbone.stem.skip_channels, n_classes)

    def forward(self, clip):
        return self.head(self.backbone(clip))


def small(n_classes=1, seed=0):
    return Small(n_classes, seed)


def test_the_released_file_loads_strictly_and_gives_the_released_logits(state, tmp_path):
    """Within a thousandth of their standard deviation."""
    torch.save(state, tmp_path / "cvc.pth")
    model = load_model(tmp_path / "cvc.pth")
    assert not model.training and model.card.heads["mask"].classes == ("polyp",)
    assert sum(x.numel() for x in model.state_dict().values()) == sum(x.numel() for x in state.values())
    assert torch.equal(model.heads["mask"].out.weight, state["segmentation_head.0.weight"])
    words = model.card.initialisation["words"]
    assert words.startswith(f"All {len(state)} tensors come from cvc.pth") and str(tmp_path) not in words
    frames = parity.input_for("seg_3x224", (3, 3, 224, 224))  # the frames of one clip
    clip = frames.permute(1, 0, 2, 3)[None]
    with torch.inference_mode():
        logits = model.heads["mask"].class_logits(model.backbone(clip))[0].transpose(0, 1)  # (T, K, H, W)
    expected = golden("segmenter_seg_3x224")
    deviation = logits.std()
    at_points = (logits[:, :, ::4, ::4] - expected["logits"]).abs().max() / deviation
    of_means = (logits.mean((2, 3)) - expected["logits_mean"]).abs().max() / deviation
    print(f"segmenter: error {at_points:.1e} of the deviation {deviation:.4f}, of the means {of_means:.1e}")
    assert deviation == pytest.approx(0.0076, abs=1e-4)
    assert at_points < 1e-3
    assert of_means < 1e-3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("transformer.encoder.encoder_norm.bias"), r"lacks backbone\.norm\.bias"),
        (lambda s: s.pop("segmentation_head.0.bias"), r"no tensor segmentation_head\.0\.bias"),
        (lambda s: s.update({"extra.weight": torch.zeros(1)}), r"also has extra\.weight"),
    ],
)
def test_a_missing_or_foreign_tensor_of_a_released_file_is_named(change, message, tmp_path):
    state = dict(small_segmenter_state())
    change(state)
    torch.save(state, tmp_path / "cvc.pth")
    with pytest.raises(CheckpointError, match=message):
        load_model(tmp_path / "cvc.pth")


def test_probabilities_are_those_of_a_softmax_over_background_and_classes():
    model = small(n_classes=2).eval()
    clip = torch.randn(1, 3, 2, 64, 64)
    with torch.inference_mode():
        tokens = model.backbone(clip)
        expected = model.head.class_logits(tokens).softmax(dim=1)[:, 1:]
        torch.testing.assert_close(
            model.head.scores(model.head(tokens), HeadSpec("mask", ("a", "b"), form="transunet")),
            expected,
            rtol=0,
            atol=1e-6,
        )


def test_shares_of_classes_become_the_class_of_every_pixel_in_the_loss():
    logits = torch.randn(1, 2, 1, 2, 2)  # of two classes, relative to the background
    shares = torch.zeros(1, 2, 1, 2, 2)
    shares[0, 1, 0, 0, 0], shares[0, 0, 0, 1, 1], shares[0, 0, 0, 0, 1] = 0.9, 0.6, 0.4
    masks = torch.tensor([[[[2, 0], [0, 1]]]])
    full = torch.cat([torch.zeros(1, 1, 1, 2, 2), logits], dim=1)
    assert small(n_classes=2).head.loss(logits, {"mask": shares}).item() == pytest.approx(
        segmentation_loss(full, masks).item()
    )


def test_every_frame_has_a_mask_and_a_single_image_is_a_clip_of_one_frame():
    model = small(n_classes=3).eval()
    for T in (1, 5):
        assert model(torch.randn(2, 3, T, 64, 64)).shape == (2, 3, T, 64, 64)


def test_the_masks_of_a_frame_depend_on_the_other_frames_but_not_on_their_order():
    model = small().eval()
    first = (model.backbone.project.weight, model.head.decoder.enter[0].weight)
    for parameter in (*model.backbone.blocks.parameters(), *first):
        nn.init.normal_(parameter, std=0.3)  # temporal_fc is zero at the start: time would be ignored
    clip = torch.randn(1, 3, 3, 64, 64)
    order = [0, 2, 1]
    with torch.inference_mode():
        together, single = model(clip), model(clip[:, :, :1])
        assert (together[:, :, :1] - single).abs().max() > 1e-3 * together.std()
        torch.testing.assert_close(model(clip[:, :, order]), together[:, :, order], rtol=0, atol=1e-6)


def test_the_segmenter_takes_over_the_blocks_of_its_backbone():
    backbone = build_backbone("micro")
    hybrid = HybridTransformer.around(backbone, stem_width=32, stem_units=(1, 1, 1))
    assert hybrid.blocks is backbone.blocks and hybrid.norm is backbone.norm
    assert hybrid.cls_token is backbone.cls_token
    kept = {name for name, _ in hybrid.named_parameters()}
    assert not kept & {"time_embed", "patch_embed.proj.weight"}


def test_attention_on_request_changes_no_token():
    hybrid = small().backbone.eval()
    clip = torch.randn(1, 3, 2, 64, 64)
    with torch.inference_mode():
        plain, with_maps = hybrid(clip), hybrid(clip, attention=True)
    torch.testing.assert_close(plain.patches, with_maps.patches, rtol=0, atol=1e-5)
    assert with_maps.spatial[0].shape == (1, 2, 2, 17, 17) and with_maps.temporal[0].shape == (1, 4, 4, 2, 2, 2)


def test_frames_of_another_size_and_joint_attention_are_refused():
    with pytest.raises(UserError, match="96 x 64 px, but this backbone takes 64 x 64"):
        small()(torch.zeros(1, 3, 1, 96, 64))
    with pytest.raises(UserError, match="divided or spatial attention"):
        HybridTransformer.around(build_backbone("micro", attention="joint"))
    with pytest.raises(UserError, match="multiple of 16"):
        HybridTransformer.around(build_backbone("micro", image_px=56, patch_px=14))


def test_gradients_reach_every_parameter_and_a_few_steps_learn_a_square():
    model = small()
    x = torch.zeros(1, 3, 2, 64, 64)
    x[..., 16:48, 8:40] = 1.0
    masks = x[:, 0].long()
    optimiser = torch.optim.AdamW(model.parameters(), 3e-3)
    losses = []
    for _ in range(20):
        loss = model.head.loss(model(x), {"mask": masks[:, None].float()})
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
    x = to_input(frames, CVC12K_INPUT)
    assert x.shape == (1, 3, 3, 224, 224)
    for t in (0, 1):
        assert (x[0, :, t].min().item(), x[0, :, t].max().item()) == pytest.approx((-1, 1), abs=1e-6)
    assert (x[0, :, 2] == -1).all()
    brighter = to_input(frames + 50, CVC12K_INPUT)
    torch.testing.assert_close(brighter, x, rtol=0, atol=1e-6)
