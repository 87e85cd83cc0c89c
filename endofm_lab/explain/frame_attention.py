"""The same attention maps for timm's image transformers (ViT, DINOv2, EVA-02), frame by frame."""

import torch
from torch import Tensor, nn

from endofm_lab.errors import UserError
from endofm_lab.explain.attention import AttentionMaps


@torch.inference_mode()
def look_at_frames(network: nn.Module, frames: Tensor) -> AttentionMaps:
    """The attention of a timm transformer over frames (T, 3, H, W), as of a model that sees space only.

    The softmax is read where the network applies dropout to it: after rotary positions (EVA-02) and normalised queries
    and keys, so it is what the network really uses. The fused kernel, which never forms the softmax, is switched off
    for the one pass and on again.

    Raises:
        UserError: no blocks with attention, other special tokens than one CLS, or frames of another shape.
    """
    blocks = getattr(network, "blocks", None)
    attentions = [block.attn for block in blocks if hasattr(block, "attn")] if blocks is not None else []
    if not attentions or not all(hasattr(a, "attn_drop") and hasattr(a, "fused_attn") for a in attentions):
        raise UserError(f"{type(network).__name__} has no blocks with attention; give a ViT, DINOv2 or EVA-02 of timm.")
    special = getattr(network, "num_prefix_tokens", 1)
    if special != 1:
        raise UserError(f"The network has {special} special tokens; attention maps need exactly one, CLS.")
    if frames.ndim != 4 or frames.shape[1] != 3:
        raise UserError(f"The frames have shape {tuple(frames.shape)}; give (T, 3, H, W).")
    found: list[Tensor] = []
    hooks = [
        a.attn_drop.register_forward_hook(lambda _, inputs, __: found.append(inputs[0].detach().float().cpu()))
        for a in attentions
    ]
    fused = [a.fused_attn for a in attentions]
    training = network.training
    try:
        for attention in attentions:
            attention.fused_attn = False
        network.eval()
        network.forward_features(frames)  # type: ignore[operator]
    finally:
        network.train(training)
        for hook in hooks:
            hook.remove()
        for attention, was in zip(attentions, fused, strict=True):
            attention.fused_attn = was
    patch_h, patch_w = network.patch_embed.patch_size  # type: ignore[union-attr, misc]
    grid = (len(frames), frames.shape[2] // int(patch_h), frames.shape[3] // int(patch_w))
    return AttentionMaps(space=tuple(found), time=(), grid=grid, kind="space_only")
