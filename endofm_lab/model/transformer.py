"""The video transformer: it turns a clip into one CLS token and one token per patch and frame.

Written from TimeSformer (arXiv 2102.05095, section 3), ViT (2010.11929) and the shapes of Endo-FM (2306.16741).
Letters: B clips, T frames, H W pixels, h w patches, N = h w patches of a frame, D width.

Tokens have the shape ``(B, T, 1 + N, D)``: every frame begins with its own copy of CLS, so that attention in space
needs no rearrangement. In the divided model the copies are always equal, because the sum that a block adds to them is
averaged over the frames. The cost is one extra row in 197.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torchvision.ops import StochasticDepth

from endofm_lab.errors import UserError
from endofm_lab.model.adapters import STAdapter
from endofm_lab.model.encoder import Encoder, VideoTokens, check_sizes

AttentionKind = Literal["divided", "space_only", "joint"]
ATTENTION_KINDS: tuple[str, ...] = get_args(AttentionKind)
Axis = Literal["space", "time"]


@dataclass(frozen=True)
class BackboneConfig:
    """Everything that fixes the shapes of a ``VideoTransformer``; a value out of its range is a `UserError`.

    Attributes:
        width: length of a token.
        depth: number of blocks.
        heads: attention heads in a block.
        patch_px: side of a patch.
        image_px: side of the pictures that positions are stored for; other multiples of ``patch_px`` are accepted too.
        frames: frames per clip that times are stored for; other lengths are accepted too.
        mlp_ratio: width of the hidden layer of an MLP, in widths of a token.
        drop_path: probability of leaving out the last block; it grows linearly from 0 at the first.
        attention: "divided" in time and space, "space_only", or "joint" over all tokens.
        checkpointing: recompute blocks in the backward pass, which saves memory and takes more time.
        adapter: width of the bottleneck of ST-Adapters before attention and MLP; 0 for none.
        mask_token: add a learned token for masked modelling; the released models have none.
        frames_alone: treat every frame as a separate clip, as the released detector does.
    """

    width: int = 768
    depth: int = 12
    heads: int = 12
    patch_px: int = 16
    image_px: int = 224
    frames: int = 8
    mlp_ratio: float = 4.0
    drop_path: float = 0.1
    attention: AttentionKind = "divided"
    checkpointing: bool = False
    adapter: int = 0
    mask_token: bool = False
    frames_alone: bool = False

    def __post_init__(self) -> None:
        check_sizes(self)
        if self.adapter < 0 or (self.adapter and self.attention != "space_only"):
            raise UserError(
                f"adapter is {self.adapter} with attention {self.attention!r}; it is the width of a bottleneck in "
                "'space_only' models, or 0 for none."
            )
        if not 0 <= self.drop_path < 1:
            raise UserError(f"drop_path is {self.drop_path}; give a probability from 0 to below 1.")
        if self.width % self.heads:
            raise UserError(f"width is {self.width}; give a multiple of heads, of which there are {self.heads}.")
        if self.image_px % self.patch_px:
            raise UserError(f"image_px is {self.image_px}; give a multiple of patch_px, which is {self.patch_px}.")
        if self.attention not in ATTENTION_KINDS:
            raise UserError(f"attention is {self.attention!r}; choose one of {', '.join(ATTENTION_KINDS)}.")


PRESETS = {
    # tests: 0.06 M parameters
    "micro": BackboneConfig(width=32, depth=2, heads=2, image_px=64, frames=4, drop_path=0.0),
    # lessons and demo weights: 3.3 M parameters, 13 MB in float32
    "tiny": BackboneConfig(width=192, depth=5, heads=3, image_px=128, drop_path=0.0),
    # ViT-S/16 with time: 30.5 M parameters
    "small": BackboneConfig(width=384, depth=12, heads=6),
    # Endo-FM as released, ViT-B/16 with time: 121.3 M parameters
    "base": BackboneConfig(),
}


def build_backbone(name: str, **overrides: int | float | str) -> "VideoTransformer":
    """A freshly initialised backbone of a preset, with any field of ``BackboneConfig`` overridden.

    Args:
        name: ``micro``, ``tiny``, ``small`` or ``base`` (the released Endo-FM).
        overrides: fields of ``BackboneConfig``, for example ``frames=16`` or ``attention="joint"``.

    Raises:
        UserError: unknown preset, unknown field or a value outside its range.
    """
    if name not in PRESETS:
        raise UserError(f"There is no backbone preset {name!r}; choose one of {', '.join(PRESETS)}.")
    possible = [field.name for field in fields(BackboneConfig)]
    for unknown in overrides.keys() - set(possible):
        raise UserError(f"A backbone has no setting {unknown!r}; choose among {', '.join(possible)}.")
    changes: dict[str, Any] = dict(overrides)
    return VideoTransformer(replace(PRESETS[name], **changes))


class Attention(nn.Module):
    """Multi-head self-attention along one axis of tokens ``(B, T, N, D)``: space (N) or time (T)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, axis: Axis, maps: bool, fc: nn.Linear | None = None) -> tuple[Tensor, Tensor | None]:
        """Tokens ``(B, T, N, D)``, and the softmax of `attend` if ``maps``. ``fc`` is a linear map that follows."""
        y, softmax = attend(self.qkv(x), self.heads, axis, maps)
        return F.linear(y, *self.output(fc)), softmax

    def output(self, fc: nn.Linear | None = None) -> tuple[Tensor, Tensor]:
        """Weight and bias of the output, merged with those of the linear map ``fc`` that follows.

        Two consecutive linear maps are one map. Merging them costs D^3 multiplications and saves B T N D^2.
        """
        weight: Tensor = self.proj.weight
        bias: Tensor = self.proj.bias
        if fc is None:
            return weight, bias
        return fc.weight @ weight, F.linear(bias, fc.weight, fc.bias)


def attend(qkv: Tensor, heads: int, axis: Axis, maps: bool) -> tuple[Tensor, Tensor | None]:
    """Softmax attention along one axis, for queries, keys and values ``(B, T, N, 3 D)``.

    Returns:
        Mixed values ``(B, T, N, D)``, and if ``maps`` the softmax, at least float32, rows summing to 1:
        ``(B, T, heads, N, N)`` over space, ``(B, N, heads, T, T)`` over time.
    """
    batch, sequence = ("b t", "n") if axis == "space" else ("b n", "t")
    q, k, v = rearrange(qkv, f"b t n (three k d) -> three ({batch}) k {sequence} d", three=3, k=heads)
    # The fused kernel reads q, k and v without copies, which is faster on CPUs too, except for bfloat16 over time and
    # in its backward pass.
    slow = q.device.type == "cpu" and (q.requires_grad or (axis == "time" and q.dtype == torch.bfloat16))
    if maps or slow:
        scores = q * q.shape[-1] ** -0.5 @ k.transpose(-2, -1)
        # The kernel sums in float32 in any case; autocast would write the result in float32 and copy it.
        with torch.autocast(q.device.type, enabled=False):
            softmax = scores.softmax(dim=-1, dtype=torch.promote_types(q.dtype, torch.float32) if maps else None)
        y = softmax.to(v.dtype) @ v
    else:
        y = F.scaled_dot_product_attention(q, k, v)
    y = rearrange(y, f"({batch}) k {sequence} d -> b t n (k d)", b=qkv.shape[0])
    return y, rearrange(softmax, "(b s) k i j -> b s k i j", b=qkv.shape[0]) if maps else None


class MLP(nn.Module):
    """Two linear maps with an exact GELU between them."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """``(..., D)`` -> ``(..., D)``."""
        hidden = self.fc1(x)
        # in place where no gradient needs the input: a tenth less time, as the hidden layer is too large for the cache
        hidden = F.gelu(hidden) if hidden.requires_grad else torch.ops.aten.gelu_(hidden)
        return self.fc2(hidden)


class Block(nn.Module):
    """One block, pre-norm with residuals: attention in time (divided model only), attention in space, MLP."""

    def __init__(self, config: BackboneConfig, drop_path: float) -> None:
        super().__init__()
        D = config.width
        self.divided = config.attention == "divided"
        self.norm1 = nn.LayerNorm(D, eps=1e-6)
        self.attn = Attention(D, config.heads)
        if self.divided:
            self.temporal_norm1 = nn.LayerNorm(D, eps=1e-6)
            self.temporal_attn = Attention(D, config.heads)
            self.temporal_fc = nn.Linear(D, D)
        self.adapted = config.adapter > 0
        if self.adapted:
            self.temporal_adapter1 = STAdapter(D, config.adapter)
            self.temporal_adapter2 = STAdapter(D, config.adapter)
        self.norm2 = nn.LayerNorm(D, eps=1e-6)
        self.mlp = MLP(D, round(D * config.mlp_ratio))
        self.drop_path = StochasticDepth(drop_path, mode="row")  # drops a residual of whole clips

    def forward(self, x: Tensor, maps: bool) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """``(B, T, 1 + N, D)`` -> the same shape, and the maps over space ``(B, T, heads, 1 + N, 1 + N)`` and time
        ``(B, N, heads, T, T)`` if asked for.
        """
        temporal = None
        if self.divided:
            cls, patches = x[:, :, :1], x[:, :, 1:]  # CLS is not part of attention in time
            y, temporal = self.temporal_attn(self.temporal_norm1(patches), "time", maps, fc=self.temporal_fc)
            x = torch.cat([cls, patches + self.drop_path(y)], dim=2)
        if self.adapted:
            x = self.temporal_adapter1(x)
        y, spatial = self.attn(self.norm1(x), "space", maps)
        if self.divided:  # one CLS per clip: every frame's copy receives the mean over the frames
            y[:, :, 0] = y[:, :, 0].mean(dim=1, keepdim=True)
        x = x + self.drop_path(y)
        if self.adapted:
            x = self.temporal_adapter2(x)
        x = x + self.drop_path(self.mlp(self.norm2(x)))
        return x, spatial, temporal


class PatchEmbed(nn.Module):
    """A ``patch_px`` x ``patch_px`` convolution with the same stride: pixels of each frame -> patch tokens."""

    def __init__(self, width: int, patch_px: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, kernel_size=patch_px, stride=patch_px)

    def forward(self, clip: Tensor) -> Tensor:
        """``(B, 3, T, H, W)`` -> ``(B, T, h, w, D)``."""
        frames = rearrange(clip.to(self.proj.weight.dtype), "b c t y x -> (b t) c y x")
        return rearrange(self.proj(frames), "(b t) d h w -> b t h w d", b=clip.shape[0])


class VideoTransformer(Encoder):
    """A vision transformer over clips.

    ``config.attention`` chooses how frames exchange information:

    - ``divided``: attention in time and in space alternate in every block (TimeSformer, Endo-FM). One CLS for the clip.
    - ``space_only``: frames exchange no information. CLS is the mean of the CLS tokens of all frames.
    - ``joint``: every token attends to every token of the clip.

    The state-dict keys of ``divided`` are those of the released weights.
    """

    kind = "video_transformer"
    Config = BackboneConfig
    has_video_blocks = takes_image_weights = state_is_whole = True

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__(config)
        D, grid = config.width, config.image_px // config.patch_px
        self.cls_token = nn.Parameter(torch.zeros(1, 1, D))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + grid * grid, D))
        if config.attention != "space_only":
            self.time_embed = nn.Parameter(torch.zeros(1, config.frames, D))
        if config.mask_token:
            self.mask_token = nn.Parameter(torch.zeros(1, 1, D))
        self.patch_embed = PatchEmbed(D, config.patch_px)
        drop_path = torch.linspace(0, config.drop_path, config.depth, device="cpu").tolist()
        self.blocks = nn.ModuleList(Block(config, p) for p in drop_path)
        self.norm = nn.LayerNorm(D, eps=1e-6)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Truncated normal of 0.02 for weights and embeddings, zero biases, and a ``temporal_fc`` of zeros in every
        block: the divided model starts as an image model that ignores time.
        """
        for name, parameter in self.named_parameters():
            if "norm" in name:
                nn.init.constant_(parameter, 1.0 if name.endswith("weight") else 0.0)
            elif name.endswith("bias") or "temporal_fc" in name:
                nn.init.zeros_(parameter)
            else:
                nn.init.trunc_normal_(parameter, std=0.02)
        for module in self.modules():
            if isinstance(module, STAdapter):
                module.reset_parameters()

    def layers(self) -> list[nn.Module]:
        """Embeddings, blocks, last norm."""
        embeddings = nn.ParameterList(
            p for name, p in self.named_parameters() if not name.startswith(("blocks.", "norm."))
        )
        return [embeddings, *self.blocks, self.norm]

    def pack(self, packed: Callable[[Any], nn.Module]) -> None:
        """Replace the blocks, unless there are adapters in them."""
        if not self.config.adapter:
            for i, block in enumerate(self.blocks):
                self.blocks[i] = packed(block)

    def forward(self, clip: Tensor, attention: bool = False, mask: Tensor | None = None) -> VideoTokens:
        """Tokens of a clip, and its attention maps if asked for.

        Args:
            clip: ``(B, 3, T, H, W)`` of any float type, normalised as the model's card says; H and W are multiples
                of the patch.
            attention: also return the maps of every block, computed without the fused kernel.
            mask: ``(B, T, h, w)`` bool; patches where it is True are replaced by the mask token before the position
                and time embeddings are added (needs ``mask_token=True``).

        Raises:
            UserError: the clip or the mask has a wrong shape or type.
        """
        self._check(clip, mask)
        if self.config.frames_alone and clip.shape[2] > 1:
            return self._frame_by_frame(clip, attention, mask)
        x, h, w = self._embed(clip, mask)
        spatial, temporal = [], []
        for block in self.blocks:
            if self.config.checkpointing and torch.is_grad_enabled():
                x, in_space, in_time = checkpoint(block, x, attention, use_reentrant=False)
            else:
                x, in_space, in_time = block(x, attention)
            spatial.append(in_space)
            temporal.append(in_time)
        x = self.norm(x)
        kind = self.config.attention
        cls = x[:, :, 0].mean(dim=1)  # over equal copies (divided), the frames (space_only) or the single copy (joint)
        patches = rearrange(x[:, :, 1:], "b s (t h w) d -> b (s t) h w d", h=h, w=w)
        if not attention:
            return VideoTokens(cls, patches)
        if kind == "joint":
            return VideoTokens(cls, patches, joint=tuple(m.squeeze(1) for m in spatial))
        if kind == "space_only":
            return VideoTokens(cls, patches, spatial=tuple(spatial))
        over_time = tuple(rearrange(m, "b (h w) k i j -> b h w k i j", h=h) for m in temporal)
        return VideoTokens(cls, patches, spatial=tuple(spatial), temporal=over_time)

    def _frame_by_frame(self, clip: Tensor, attention: bool, mask: Tensor | None) -> VideoTokens:
        """Tokens of every frame as a clip of one frame; CLS is the mean over the frames."""
        if attention or mask is not None:
            raise UserError(
                "This backbone processes every frame alone: attention maps and masks need clips of one frame."
            )
        B = clip.shape[0]
        tokens = self(rearrange(clip, "b c t h w -> (b t) c 1 h w"))
        patches = rearrange(tokens.patches, "(b t) 1 h w d -> b t h w d", b=B)
        return VideoTokens(tokens.cls.unflatten(0, (B, -1)).mean(dim=1), patches)

    def _embed(self, clip: Tensor, mask: Tensor | None) -> tuple[Tensor, int, int]:
        """Clip -> tokens ``(B, T, 1 + N, D)`` with their position and time, and the grid's h and w."""
        x = self.patch_embed(clip)
        B, T, h, w, D = x.shape
        if mask is not None:
            x = torch.where(mask[..., None], self.mask_token.to(x.dtype), x)
        x = rearrange(x, "b t h w d -> b t (h w) d") + self._position(h, w)
        if self.config.attention != "space_only":
            x = x + self._time(T)
        if self.config.attention == "joint":  # one long frame
            x = rearrange(x, "b t n d -> b 1 (t n) d")
        cls = (self.cls_token + self.pos_embed[:, :1]).expand(B, x.shape[1], 1, D)
        return torch.cat([cls.to(x.dtype), x], dim=2), h, w

    def _position(self, h: int, w: int) -> Tensor:
        """Position embedding of the patches, ``(1, 1, h*w, D)``, resized by nearest neighbour.

        The released weights were trained and used with *nearest*, and were resized only if the number of patches
        differs: a grid of another form with the same number of patches keeps the embedding in its order. Both are
            reproduced.
        """
        position = self.pos_embed[:, 1:]
        if position.shape[1] != h * w:
            grid = rearrange(position, "b (g f) d -> b d g f", g=self.config.image_px // self.config.patch_px)
            position = rearrange(F.interpolate(grid, size=(h, w), mode="nearest"), "b d h w -> b (h w) d")
        return position[:, None]

    def _time(self, T: int) -> Tensor:
        """Time embedding, ``(1, T, 1, D)``, resized by nearest neighbour (3 of 8: entries 0, 2, 5)."""
        time: Tensor = self.time_embed
        if torch.compiler.is_compiling() or time.shape[1] != T:  # an exported model takes clips of any length
            time = rearrange(F.interpolate(rearrange(time, "b t d -> b d t"), size=T, mode="nearest"), "b d t -> b t d")
        return time[:, :, None]

    def _check(self, clip: Tensor, mask: Tensor | None) -> None:
        patch = self.config.patch_px
        if clip.ndim != 5 or clip.shape[1] != 3 or 0 in clip.shape:
            raise UserError(
                f"The clip has shape {tuple(clip.shape)}; the backbone takes (B, 3, T, H, W). Make it with to_input."
            )
        if not clip.is_floating_point():
            raise UserError(f"The clip holds {clip.dtype}; the backbone takes normalised floats: use to_input.")
        H, W = clip.shape[3:]
        if H % patch or W % patch:
            near = [max(patch, round(side / patch) * patch) for side in (H, W)]
            raise UserError(
                f"Frames of {H} x {W} px do not divide into patches of {patch} px; "
                f"resize them, for example to {near[0]} x {near[1]} px."
            )
        if mask is None:
            return
        if not self.config.mask_token:
            raise UserError("This backbone has no mask token; build it with mask_token=True to use a mask.")
        expected = (clip.shape[0], clip.shape[2], H // patch, W // patch)
        if mask.dtype != torch.bool or tuple(mask.shape) != expected:
            raise UserError(
                f"The mask is {mask.dtype} of shape {tuple(mask.shape)}; give a bool mask of shape {expected}."
            )
