"""Models arranged for inference against the readable ones."""

from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy

import pytest
import torch

from endofm_lab.model.inference import PackedBlock, for_inference
from endofm_lab.model.transformer import ATTENTION_KINDS, build_backbone


def lively(**overrides):
    """A backbone in which no weight is zero and attention is far from uniform."""
    torch.manual_seed(0)
    backbone = build_backbone("micro", **overrides).eval()
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.add_(torch.randn_like(parameter) * (0.05 if parameter.ndim == 1 else 0.3))
    return backbone


def clip_of(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


@torch.inference_mode()
@pytest.mark.parametrize("attention", ATTENTION_KINDS)
@pytest.mark.parametrize("maps", [False, True], ids=["tokens", "maps"])
def test_the_arranged_model_gives_the_tokens_and_maps_of_the_readable_one(attention, maps):
    backbone = lively(attention=attention)
    clip = clip_of(2, 3, 3, 48, 32)
    actual, expected = for_inference(backbone, torch.float32)(clip, attention=maps), backbone(clip, attention=maps)
    for name in ("cls", "patches", "spatial", "temporal", "joint"):
        torch.testing.assert_close(getattr(actual, name), getattr(expected, name), rtol=0, atol=2e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_clips_of_changing_sizes_from_several_threads_are_answered_as_alone(dtype):
    backbone = lively()
    quick = for_inference(backbone, dtype)
    clips = [clip_of(n, 3, 2, 32, 32).to(dtype) for n in (1, 2, 3)] * 10
    with torch.inference_mode():
        expected = [for_inference(backbone, dtype)(clip).cls for clip in clips[:3]]

    @torch.inference_mode()
    def answer(clip):
        return quick(clip).cls

    with ThreadPoolExecutor(4) as pool:
        for nth, cls in enumerate(pool.map(answer, clips)):
            torch.testing.assert_close(cls, expected[nth % 3], rtol=0, atol=1e-5 if dtype == torch.float32 else 0.02)


@torch.inference_mode()
def test_in_bfloat16_it_is_as_near_to_float32_as_the_readable_model_is():
    backbone, clip = lively(), clip_of(4, 3, 4, 64, 64)
    exact = backbone(clip).patches
    error = (for_inference(backbone, torch.bfloat16)(clip).patches.float() - exact).abs().mean()
    plain = (deepcopy(backbone).bfloat16()(clip).patches.float() - exact).abs().mean()
    assert 0 < error < 1.3 * plain


@torch.inference_mode()
def test_the_model_itself_stays_as_it_is_and_the_input_too():
    backbone, clip = lively(), clip_of(1, 3, 4, 64, 64)
    before, clip_before = deepcopy(backbone.state_dict()), clip.clone()
    for_inference(backbone, torch.bfloat16)(clip)
    assert torch.equal(clip, clip_before)
    assert not any(isinstance(module, PackedBlock) for module in backbone.modules())
    for key, tensor in backbone.state_dict().items():
        assert tensor.dtype == torch.float32 and torch.equal(tensor, before[key])


@torch.inference_mode()
def test_a_model_with_adapters_answers_as_before():
    backbone, clip = lively(attention="space_only", adapter=8), clip_of(1, 3, 4, 64, 64)
    assert torch.equal(for_inference(backbone, torch.float32)(clip).cls, backbone(clip).cls)
