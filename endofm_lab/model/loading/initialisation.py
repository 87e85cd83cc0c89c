"""Start a backbone from weights, and record the origin of every tensor."""

import copy
import math
from collections.abc import Collection
from pathlib import Path
from typing import Literal, cast

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from endofm_lab.errors import CheckpointError, UserError
from endofm_lab.model.card import SCRATCH, InitialisationRecord, Resized, collapse
from endofm_lab.model.encoder import Encoder
from endofm_lab.model.loading.formats import LAYOUTS, Checkpoint, grid_of, is_temporal, load_state
from endofm_lab.model.loading.image_weights import spatial_part
from endofm_lab.model.loading.locate import locate
from endofm_lab.model.transformer import VideoTransformer
from endofm_lab.model.weight_files import check_fit

BackbonePart = Literal["all", "spatial"]


def initialise(backbone: Encoder, source: str | Path | Checkpoint, part: BackbonePart = "all") -> InitialisationRecord:
    """Fill a backbone from weights, in place, and record which tensors were taken, left new and resized.

    All other tensors are initialised at random; a new temporal part adds nothing (``temporal_fc`` and the time
    embedding are zero). Image models give the spatial part. Embeddings of video models are resized by nearest
    neighbour if their size differs: the backbone then gives the same results as the source for clips of that size.
    Sizes that cannot be resized (width, depth, MLP) are errors. Encoders of another kind than the video transformer
    take all weights of a model folder of their own kind.

    Args:
        backbone: takes the weights.
        source: "scratch", or weights as `load_model` takes them: a file, a model folder, "demo", a hub id; or a
            checkpoint that was read already.
        part: "spatial" leaves the temporal part of a video model behind.

    Raises:
        CheckpointError: the source cannot be read, or does not fit; the message names the tensor. The backbone is then
            unchanged.
        UserError: ``part`` is unknown.
    """
    if part not in ("all", "spatial"):
        raise UserError(f"part is {part!r}; choose 'all' or 'spatial'.")
    if source == "scratch":
        backbone.reset_parameters()
        return copy.copy(SCRATCH)
    checkpoint = source if isinstance(source, Checkpoint) else load_state(locate(source))
    source = checkpoint.path if isinstance(source, Checkpoint) else source
    if not backbone.takes_image_weights:
        return _of_its_kind(backbone, checkpoint, public_name(source, checkpoint))
    tensors, resized, folded = _fitting(checkpoint, cast(VideoTransformer, backbone), part)
    target = backbone.state_dict()
    may_be_new = {name for name in target if name == "mask_token"}
    if checkpoint.is_image or part == "spatial":
        may_be_new |= {name for name in target if is_temporal(name)}
    if checkpoint.layout == "segmenter":  # has a ResNet in place of the patch embedding
        may_be_new |= {name for name in target if name.startswith(("patch_embed.", "pos_embed", "time_embed"))}
    check_fit(backbone, tensors, checkpoint.path, may_be_new)
    if tensors.keys() != target.keys():
        backbone.reset_parameters()
        if "time_embed" in target and "time_embed" not in tensors:
            nn.init.zeros_(cast(VideoTransformer, backbone).time_embed)
    backbone.load_state_dict(tensors, strict=False)
    return record_of(checkpoint, public_name(source, checkpoint), list(tensors), list(target), resized, folded)


def _of_its_kind(backbone: Encoder, checkpoint: Checkpoint, name: str) -> InitialisationRecord:
    """Fill an encoder from a model folder whose encoder is of the same kind."""
    kind = checkpoint.card.backbone["kind"] if checkpoint.card else "unknown"
    if kind != backbone.kind:
        raise CheckpointError(
            f"{checkpoint.path} holds a backbone of kind {kind}, but one of kind {backbone.kind!r} is needed; give a "
            "model folder with such a backbone."
        )
    tensors = backbone.fitted(checkpoint.backbone)
    check_fit(backbone, tensors, checkpoint.path)
    resized: list[Resized] = [
        {"key": key, "before": [*before.shape], "after": [*tensors[key].shape], "how": "as the backbone resizes"}
        for key, before in checkpoint.backbone.items()
        if key in tensors and before.shape != tensors[key].shape
    ]
    backbone.load_state_dict(tensors)
    return record_of(checkpoint, name, list(tensors), list(tensors), resized, [])


def record_of(
    checkpoint: Checkpoint,
    source: str,
    taken: Collection[str],
    backbone_keys: Collection[str],
    resized: list[Resized],
    folded: list[str],
) -> InitialisationRecord:
    """The record of a backbone with ``backbone_keys`` that was filled from a checkpoint.

    ``source`` is shown to the reader: a file name or hub id, not a local path.
    """
    new = [key for key in backbone_keys if key not in taken]
    used_ids = {id(checkpoint.backbone[key]) for key in checkpoint.backbone if key in taken or key in folded}
    not_taken = [name for name, tensor in checkpoint.tensors.items() if id(tensor) not in used_ids]
    description = f"{LAYOUTS[checkpoint.layout]}{', ' + checkpoint.network if checkpoint.network != 'model' else ''}"
    sentences = [f"{len(taken)} of the backbone's {len(backbone_keys)} tensors come from {source} ({description})"]
    sentences += [f"{r['key']} went from {_by(r['before'])} to {_by(r['after'])} ({r['how']})" for r in resized]
    if folded:
        sentences.append(f"{len(folded)} LayerScale tensors were folded into the linear maps before them")
    if new and all(map(is_temporal, new)):
        sentences.append(f"the temporal part ({len(new)} tensors) is new and adds nothing yet")
    elif new:
        sentences.append(f"{len(new)} tensors are new: {', '.join(collapse(new))}")
    if not_taken and all(is_temporal(name.rpartition("backbone.")[2]) for name in not_taken):
        sentences.append(f"the temporal part of the file's network ({len(not_taken)} tensors) was not taken")
    elif not_taken:
        sentences.append(
            f"{len(not_taken)} tensors of the file's network were not taken: {', '.join(collapse(not_taken))}"
        )
    return {
        "words": "; ".join(sentences) + ".",
        "source": source,
        "sha256": checkpoint.sha256,
        "layout": checkpoint.layout,
        "network": checkpoint.network,
        "taken": collapse(key for key in backbone_keys if key in taken),
        "new": collapse(new),
        "resized": resized,
        "folded": collapse(folded),
        "not_taken": collapse(not_taken),
    }


def public_name(source: str | Path, checkpoint: Checkpoint) -> str:
    """The name of a source in a report: the hub id as given, or the last part of a local path."""
    if checkpoint.card:
        return checkpoint.card.name
    return str(source) if not Path(source).expanduser().exists() else checkpoint.path.name


def _by(shape: list[int]) -> str:
    return " x ".join(map(str, shape))


def _fitting(
    checkpoint: Checkpoint, backbone: VideoTransformer, part: BackbonePart
) -> tuple[dict[str, Tensor], list[Resized], list[str]]:
    """The checkpoint's backbone at the sizes of ours: tensors, what was resized, names of folded tensors."""
    if checkpoint.is_image:
        return spatial_part(checkpoint, backbone.config)
    target = backbone.state_dict()
    tensors = {
        name: tensor
        for name, tensor in checkpoint.backbone.items()
        if not (is_temporal(name) and (part == "spatial" or name not in target))
        and not (name == "mask_token" and name not in target)
    }
    resized: list[Resized] = []
    for key, resize in (("pos_embed", _nearest_positions), ("time_embed", _nearest_times)):
        if key in tensors and key in target and tensors[key].shape[1] != target[key].shape[1]:
            before = tensors[key]
            tensors[key] = resize(before, target[key].shape[1], checkpoint)
            resized.append({"key": key, "before": [*before.shape], "after": [*tensors[key].shape], "how": "nearest"})
    return tensors, resized, []


def _nearest_positions(embedding: Tensor, tokens: int, checkpoint: Checkpoint) -> Tensor:
    """(1, 1 + N, D) to (1, tokens, D), CLS kept."""
    old, _ = grid_of(embedding, checkpoint.path)
    new = math.isqrt(tokens - 1)
    grid = rearrange(embedding[:, 1:], "b (h w) d -> b d h w", h=old)
    grid = F.interpolate(grid.float(), size=(new, new), mode="nearest")
    return torch.cat([embedding[:, :1].float(), rearrange(grid, "b d h w -> b (h w) d")], dim=1)


def _nearest_times(embedding: Tensor, frames: int, checkpoint: Checkpoint) -> Tensor:
    """(1, T, D) to (1, frames, D)."""
    line = F.interpolate(rearrange(embedding.float(), "b t d -> b d t"), size=frames, mode="nearest")
    return rearrange(line, "b d t -> b t d")
