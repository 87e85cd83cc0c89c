"""Image transformers as the spatial part of a video transformer.

If patch size and grid agree, the features of the image model are kept exactly: a new temporal part adds nothing
(``temporal_fc`` and the time embedding are zero), so the video transformer starts as the image model of every frame.
"""

import re
from pathlib import Path

import torch
from timm.layers import resample_abs_pos_embed, resample_patch_embed
from torch import Tensor

from endofm_lab.errors import CheckpointError
from endofm_lab.model.card import Resized
from endofm_lab.model.loading.formats import Checkpoint, grid_of
from endofm_lab.model.transformer import BackboneConfig
from endofm_lab.model.weight_files import first_of

_LAYER_SCALE = re.compile(r"(blocks\.\d+)\.ls([12])\.gamma$")
_TAKEN = re.compile(r"blocks\.\d+\.(norm1|norm2|attn\.qkv|attn\.proj|mlp\.fc1|mlp\.fc2)\.(weight|bias)$")
_AFTERWARDS = re.compile(r"(heads?|head_dist|fc_norm|pre_logits|decoder_\w+|mask_token)\b")  # no part in the features


def spatial_part(checkpoint: Checkpoint, config: BackboneConfig) -> tuple[dict[str, Tensor], list[Resized], list[str]]:
    """The tensors of an image transformer as those of a video transformer, in float32.

    LayerScale (CaiT, arXiv 2103.17239) is folded into the linear map before it, ``g * (W x + b) = (g W) x + g b``:
    exact. Patch embeddings are resized by the pseudo-inverse of bicubic resizing (FlexiViT, arXiv 2212.08013, section
    3.4), position embeddings by bicubic interpolation, CLS apart.

    Returns:
        tensors by their names in `VideoTransformer`, what was resized, and the names of tensors that were folded.

    Raises:
        CheckpointError: the image model has parts that a plain vision transformer lacks (its features would differ).
    """
    source = dict(checkpoint.backbone)
    scales = {name: gamma for name, gamma in source.items() if _LAYER_SCALE.match(name)}
    top_level = {
        "cls_token",
        "pos_embed",
        "patch_embed.proj.weight",
        "patch_embed.proj.bias",
        "norm.weight",
        "norm.bias",
    }
    foreign = [n for n in source if n not in top_level | scales.keys() and not _TAKEN.match(n) and n != "mask_token"]
    foreign += [name for name in checkpoint.rest if not _AFTERWARDS.match(name)]
    if foreign:
        raise CheckpointError(
            f"{checkpoint.path} is not a plain vision transformer: it has {first_of(foreign)}, which a video "
            "transformer has no place for, and its features would change without them. Use a plain ViT (DINO, DINOv2 "
            "without registers, MAE, timm's vit_*)."
        )
    tensors = {name: t.float() for name, t in source.items() if name not in scales and name != "mask_token"}
    for name, gamma in scales.items():
        block, number = _LAYER_SCALE.match(name).groups()  # type: ignore[union-attr]
        linear = f"{block}.{'attn.proj' if number == '1' else 'mlp.fc2'}"
        for part in ("weight", "bias"):
            key = f"{linear}.{part}"
            if key in tensors and gamma.shape == tensors[key].shape[:1]:
                tensors[key] = tensors[key] * gamma.float().reshape(-1, *[1] * (tensors[key].ndim - 1))
            elif key in tensors:
                raise CheckpointError(
                    f"{checkpoint.path}: {name} has shape {tuple(gamma.shape)}, but {key} has "
                    f"{tuple(tensors[key].shape)}; one number per output channel is needed."
                )
    resized = []
    if (change := _resize_patches(tensors, config.patch_px)) is not None:
        resized.append(change)
    if (change := _resize_positions(tensors, config, checkpoint.path)) is not None:
        resized.append(change)
    return tensors, resized, list(scales)


def _resize_patches(tensors: dict[str, Tensor], patch_px: int) -> Resized | None:
    key = "patch_embed.proj.weight"
    before = tensors.get(key)
    if before is None or before.ndim != 4 or before.shape[2:] == (patch_px, patch_px):
        return None
    tensors[key] = resample_patch_embed(before, [patch_px, patch_px])
    return _change(key, before, tensors[key], "pseudo-inverse of bicubic resizing")


def _resize_positions(tensors: dict[str, Tensor], config: BackboneConfig, path: Path) -> Resized | None:
    key = "pos_embed"
    before = tensors.get(key)
    if before is None or before.ndim != 3:
        return None
    old, has_cls = grid_of(before, path)
    new = config.image_px // config.patch_px
    embedding = before
    if not has_cls:  # CLS has no place: it gets zeros, which is the same
        embedding = torch.cat([torch.zeros(1, 1, before.shape[2]), before], dim=1)
    if old != new:
        embedding = resample_abs_pos_embed(embedding, [new, new], [old, old], num_prefix_tokens=1)
    tensors[key] = embedding
    if embedding.shape == before.shape:
        return None
    return _change(key, before, embedding, "bicubic" if old != new else "zeros for CLS")


def _change(key: str, before: Tensor, after: Tensor, method: str) -> Resized:
    return {"key": key, "before": list(before.shape), "after": list(after.shape), "how": method}
