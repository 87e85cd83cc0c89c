"""Image models of timm as backbones: they process each frame separately and return tokens like the video transformer.

EVA-02 (arXiv 2303.11331), ViT, DINOv2 and DINOv3, ConvNeXt and others, by their names in timm. A clip's CLS is the mean
of its frames' features, so a clip of one frame is that frame.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from einops import rearrange
from timm.data import resolve_data_config
from timm.models import PretrainedCfg, get_pretrained_cfg, group_parameters, is_model
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from endofm_lab.errors import CheckpointError, UserError
from endofm_lab.files import sha256_of
from endofm_lab.model.card import SCRATCH, InitialisationRecord, collapse
from endofm_lab.model.encoder import Encoder, VideoTokens
from endofm_lab.model.weight_files import check_fit, read_weights
from endofm_lab.video.clips import ClipSpec
from endofm_lab.video.transforms import InputSpec

HUB = "hub"  # as source of weights: the weights that timm knows for the architecture, fetched from the Hub

# The sizes of an architecture that may be set. A card comes with a model folder, possibly from an unknown author, and
# timm also accepts names of files to load and addresses to fetch from. Therefore no other settings are passed on.
MOST = 16384  # upper bound of widths and other settings
SETTINGS = ("embed_dim", "depth", "num_heads", "mlp_ratio", "patch_size", "depths", "dims", "drop_path_rate")

# timm puts the last norm into the layer of the last block by this number; a larger one makes a layer of it.
_WITH_THE_ONE_BEFORE, _LAST = 99999, 100000

# Small variants for tests and lessons: architecture, side of its pictures in pixels, sizes.
TINY: dict[str, tuple[str, int, dict[str, Any]]] = {
    "eva02_micro": ("eva02_tiny_patch14_224", 56, {"embed_dim": 32, "depth": 2, "num_heads": 2}),
    "vit_micro": ("vit_tiny_patch16_224", 64, {"embed_dim": 32, "depth": 2, "num_heads": 2}),
    "dinov2_micro": ("vit_small_patch14_dinov2", 56, {"embed_dim": 32, "depth": 2, "num_heads": 2}),
    "dinov3_micro": ("vit_small_patch16_dinov3", 64, {"embed_dim": 32, "depth": 2, "num_heads": 2}),
    "convnext_micro": ("convnext_atto", 64, {"depths": [1, 1, 2, 1], "dims": [8, 16, 32, 64]}),
    "eva02_mini": ("eva02_tiny_patch14_224", 112, {"embed_dim": 128, "depth": 4, "num_heads": 4}),
}


@dataclass(frozen=True)
class FrameConfig:
    """Everything that fixes the shapes of a `FrameBackbone`; `frame_config` fills in what timm knows.

    Attributes:
        architecture: name in timm, with the tag of its weights if they matter: ``eva02_base_patch14_224.mim_in22k``.
        image_px: side of its square pictures.
        width: D of its tokens.
        patch_px: pixels from one token to the next.
        settings: sizes that differ from the architecture's own, names among `SETTINGS`.

    Raises:
        UserError: timm has no such architecture, or a setting is unknown or not a number.
    """

    architecture: str
    image_px: int
    width: int
    patch_px: int
    settings: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "settings", _checked_settings(self.architecture, self.settings))
        for name in ("image_px", "width", "patch_px"):
            if not isinstance(getattr(self, name), int) or not 1 <= getattr(self, name) <= MOST:
                raise UserError(
                    f"{name} of {self.architecture} is {getattr(self, name)!r}; give a whole number from 1 to {MOST}."
                )


def frame_config(name: str, image_px: int | None = None, **settings: Any) -> FrameConfig:
    """The configuration of a timm image model, or of a name in `TINY`.

    Args:
        name: architecture in timm, with or without the tag of its weights.
        image_px: side of the pictures; by default the one it was trained with.
        settings: sizes among `SETTINGS`.

    Raises:
        UserError: unknown name or setting, or sizes that timm cannot build.
    """
    if name in TINY:
        name, tiny_px, sizes = TINY[name]
        image_px, settings = image_px or tiny_px, sizes | settings
    settings = _checked_settings(name, settings)
    size = image_px or resolve_data_config(pretrained_cfg=_known(name).to_dict())["input_size"][1]
    config = FrameConfig(name, size, width=1, patch_px=1, settings=settings)
    with torch.device("meta"):  # shapes alone
        net = _create(config)
    reduction = net.feature_info[-1]["reduction"]
    return replace(config, width=net.num_features, patch_px=int(reduction))


def frame_input(config: FrameConfig) -> InputSpec:
    """Size, mean and standard deviation of the model's pictures, from its timm data configuration.

    timm's evaluation crops the centre and resizes bicubically; here the whole frame is shown, resized bilinearly.
    """
    data = resolve_data_config(pretrained_cfg=_known(config.architecture).to_dict())
    return InputSpec(config.image_px, tuple(data["mean"]), tuple(data["std"]))


class FrameBackbone(Encoder):
    """A timm image model as an encoder of clips: every frame is a separate picture.

    Raises:
        UserError: timm cannot build it, or its tokens are not of the configuration's width.
    """

    kind = "timm"
    Config = FrameConfig
    takes_video = False

    def __init__(self, config: FrameConfig) -> None:
        super().__init__(config)
        self.net: Any = _create(config)
        if self.net.num_features != config.width:
            raise UserError(
                f"{config.architecture} has tokens of width {self.net.num_features}, not {config.width}. "
                "Make its configuration with frame_config."
            )

    @property
    def attention_kind(self) -> str | None:
        """Maps within frames where a class token attends to patches, as in ViT, DINOv2, DINOv3 and EVA-02."""
        has_maps = getattr(self.net, "cls_token", None) is not None and bool(self.attention_blocks())
        return "space_only" if has_maps else None

    def layers(self) -> list[nn.Module]:
        """Layers in timm's numbering for layer-wise learning rates, with the last norm as a layer of its own."""
        matcher = {
            name: [(pattern, (_LAST,) if place == (_WITH_THE_ONE_BEFORE,) else place) for pattern, place in patterns]
            if isinstance(patterns, list)
            else patterns
            for name, patterns in self.net.group_matcher(coarse=False).items()
        }
        groups = group_parameters(self.net, matcher, return_values=True)
        return [nn.ParameterList(groups[number]) for number in sorted(groups)]

    def attention_blocks(self) -> Sequence[nn.Module]:
        """The blocks of vision transformers; convolutional models have none."""
        blocks = list(getattr(self.net, "blocks", ()))
        return blocks if all(hasattr(block, "norm1") for block in blocks) else ()

    def default_input(self) -> InputSpec:
        """Size and normalisation from timm's configuration of the model."""
        return frame_input(self.config)

    def default_clip(self) -> ClipSpec:
        """Single frames."""
        return ClipSpec(n_frames=1, stride=1)

    def fitted(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Positions and patches at this model's sizes, as timm resizes them."""
        convert = getattr(sys.modules[type(self.net).__module__], "checkpoint_filter_fn", None)
        of_net = {name.removeprefix("net."): tensor for name, tensor in tensors.items()}
        return {f"net.{name}": t for name, t in (convert(of_net, self.net) if convert else of_net).items()}

    def forward(self, clip: Tensor, attention: bool = False) -> VideoTokens:
        """Tokens of a clip, each frame on its own, and the attention maps if asked for.

        CLS is the mean over frames of what timm's model would hand to its classifier (its class token or its pooled
        patches, as it was trained). ``spatial`` holds one map per block as in `VideoTokens`: the exact softmax, rotary
        positions included. Register tokens (DINOv3) have no place in it; the rest of a row, up to 1, went to them.

        Args:
            clip: ``(B, 3, T, S, S)`` float, S the configuration's ``image_px``.
            attention: also return the maps; the model then multiplies queries and keys explicitly.

        Raises:
            UserError: the clip has another shape or type, or the model has no such maps.
        """
        S = self.config.image_px
        if clip.ndim != 5 or clip.shape[1] != 3 or 0 in clip.shape or clip.shape[3:] != (S, S):
            raise UserError(
                f"The clip has shape {tuple(clip.shape)}; {self.config.architecture} takes (B, 3, T, {S}, {S})."
            )
        if not clip.is_floating_point():
            raise UserError(f"The clip holds {clip.dtype}; the backbone takes normalised floats: use to_input.")
        B = clip.shape[0]
        frames = rearrange(clip, "b c t h w -> (b t) c h w")
        if attention:
            with ExplicitAttention() as explicit:
                features = self.net.forward_features(frames)
        else:
            features = self.net.forward_features(frames)
        cls = rearrange(self.net.forward_head(features, pre_logits=True), "(b t) d -> b t d", b=B).mean(dim=1)
        grid = _grid(self.net, features)
        patches = rearrange(grid, "(b t) h w d -> b t h w d", b=B)
        if not attention:
            return VideoTokens(cls, patches)
        n_tokens = grid.shape[1] * grid.shape[2]
        return VideoTokens(
            cls, patches, spatial=tuple(self._map(m, B, n_tokens) for m in self._maps(explicit, n_tokens))
        )

    def _maps(self, explicit: "ExplicitAttention", n_tokens: int) -> list[Tensor]:
        prefix = getattr(self.net, "num_prefix_tokens", 0)
        square = (prefix + n_tokens, prefix + n_tokens)
        if getattr(self.net, "cls_token", None) is None or not explicit.maps:
            reason = "has no attention from a class token to patches"
        elif any(m.shape[-2:] != square for m in explicit.maps):
            reason = "attends within windows or at several sizes"
        else:
            return explicit.maps
        raise UserError(
            f"{self.config.architecture} {reason}, so it has no attention maps; ViT, DINOv2, DINOv3 and EVA-02 have "
            "them. Attribution by gradients or occlusion works for every model."
        )

    def _map(self, softmax: Tensor, B: int, n_tokens: int) -> Tensor:
        """(B T, heads, P + N, P + N) -> (B, T, heads, 1 + N, 1 + N): of the P prefix tokens, CLS alone."""
        keep = torch.tensor([0, *range(softmax.shape[-1] - n_tokens, softmax.shape[-1])], device=softmax.device)
        return rearrange(softmax[..., keep, :][..., keep], "(b t) k i j -> b t k i j", b=B)


class ExplicitAttention(TorchFunctionMode):
    """Within this context, in this thread, fused attention is computed step by step, and its softmax is kept.

    Queries and keys arrive as the model computed them, including rotary positions. The model does not change.
    """

    def __init__(self) -> None:
        super().__init__()
        self.maps: list[Tensor] = []  # per call (B, heads, N, N) float32

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if func is not F.scaled_dot_product_attention:
            return func(*args, **kwargs)
        assert not kwargs.get("is_causal") and not kwargs.get("enable_gqa"), "no image model of timm does this"
        q, k, v = args
        scores = q @ k.transpose(-2, -1) * (kwargs.get("scale") or q.shape[-1] ** -0.5)
        if (mask := kwargs.get("attn_mask")) is not None:
            scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
        softmax = scores.softmax(dim=-1, dtype=torch.promote_types(q.dtype, torch.float32))
        self.maps.append(softmax)
        return F.dropout(softmax.to(v.dtype), kwargs.get("dropout_p", 0.0)) @ v


def load_frame_weights(backbone: FrameBackbone, source: str | Path) -> InitialisationRecord:
    """Fill a frame backbone from weights, in place and strictly; positions and patches are resized as timm does.

    Args:
        backbone: takes the weights.
        source: a safetensors or ``.pth`` file of that architecture (timm's, or the original authors' where timm knows
            their names), or "hub": the weights that timm knows for the architecture, fetched from the Hugging Face Hub.

    Raises:
        CheckpointError: the weights cannot be read or fetched, or do not fit; the backbone is then as it was.
    """
    settings = _known(backbone.config.architecture)
    path = _fetch(backbone.config.architecture, settings) if source == HUB else Path(source).expanduser()
    content = read_weights(path)
    convert = getattr(sys.modules[type(backbone.net).__module__], "checkpoint_filter_fn", None)
    try:
        tensors = convert(content, backbone.net) if convert else content
    except Exception as error:  # timm's conversion of a foreign file can break anywhere
        raise CheckpointError(
            f"{path} is not a file of {backbone.config.architecture} that timm can read ({error})."
        ) from error
    classifiers = [settings.classifier] if isinstance(settings.classifier, str) else list(settings.classifier or ())
    head = [name for name in tensors if any(name.startswith(f"{classifier}.") for classifier in classifiers)]
    tensors = {name: tensor for name, tensor in tensors.items() if name not in head and isinstance(tensor, Tensor)}
    check_fit(backbone.net, tensors, path)
    resized = [
        {"key": name, "before": list(content[name].shape), "after": list(tensor.shape), "how": "bicubic, by timm"}
        for name, tensor in tensors.items()
        if isinstance(content.get(name), Tensor) and content[name].shape != tensor.shape
    ]
    backbone.net.load_state_dict(tensors)
    name = f"{settings.hf_hub_id}" if source == HUB else path.name
    return {
        "words": f"{name}: all {len(tensors)} tensors of {backbone.config.architecture}"
        + (f", {len(resized)} of them resized" if resized else "")
        + ".",
        "source": name,
        "sha256": sha256_of(path),
        "layout": "image",
        "network": "model",
        "taken": collapse(tensors),
        "new": [],
        "resized": resized,  # type: ignore[typeddict-item]
        "folded": [],
        "not_taken": collapse(head),
    }


def build_frame_backbone(
    name: str, weights: str | Path | None = None, image_px: int | None = None, **settings: Any
) -> tuple[FrameBackbone, InitialisationRecord]:
    """A frame backbone and the record of its start: random, or from ``weights`` as in `load_frame_weights`.

    Raises:
        UserError: as `frame_config`.
        CheckpointError: as `load_frame_weights`.
    """
    backbone = FrameBackbone(frame_config(name, image_px, **settings))
    return backbone, SCRATCH.copy() if weights is None else load_frame_weights(backbone, weights)


def _known(architecture: str) -> PretrainedCfg:
    """What timm knows of an architecture with weights: input, classifier, where the weights lie."""
    settings = get_pretrained_cfg(architecture)
    return PretrainedCfg() if settings is None else settings


def _create(config: FrameConfig) -> Any:
    """The timm model without a classifier, with random weights."""
    sizes = dict(config.settings)
    if _known(config.architecture).fixed_input_size:
        sizes["img_size"] = config.image_px
    try:
        net = timm.create_model(config.architecture, pretrained=False, num_classes=0, **sizes)
    except (TypeError, ValueError, AssertionError, RuntimeError, ZeroDivisionError) as error:
        raise UserError(f"timm cannot build {config.architecture} with {sizes} ({error}).") from error
    if getattr(net, "head_hidden_size", net.num_features) != net.num_features:
        raise UserError(
            f"{config.architecture} widens its features behind the patches ({net.num_features} to "
            f"{net.head_hidden_size}), which frame models here do not; choose a ViT, EVA-02, DINO or ConvNeXt."
        )
    return net


def _grid(net: Any, features: Tensor) -> Tensor:
    """Patches (B, h, w, D) of the features that a timm model returns."""
    if features.ndim == 3:  # (B, P + N, D)
        patches = features[:, getattr(net, "num_prefix_tokens", 0) :]
        side = round(patches.shape[1] ** 0.5)
        return rearrange(patches, "b (h w) d -> b h w d", h=side)
    return features if getattr(net, "output_fmt", "NCHW") == "NHWC" else rearrange(features, "b d h w -> b h w d")


def _checked_settings(architecture: str, settings: dict[str, Any]) -> dict[str, Any]:
    """The settings with tuples as lists, as JSON will have them."""
    if not isinstance(architecture, str) or not is_model(architecture):
        raise UserError(
            f"timm has no image model {architecture!r}; timm.list_models('*eva02*') lists those with a name like it."
        )
    if unknown := [name for name in settings if name not in SETTINGS]:
        raise UserError(f"{architecture} has the setting {', '.join(unknown)}; possible are {', '.join(SETTINGS)}.")
    settings = {name: list(value) if isinstance(value, tuple) else value for name, value in settings.items()}
    for name, value in settings.items():
        numbers = value if isinstance(value, list) else [value]
        if not all(isinstance(n, int | float) and not isinstance(n, bool) and 0 <= n <= MOST for n in numbers):
            raise UserError(f"{architecture}: {name} is {value!r}; give a number or a list of numbers up to {MOST}.")
        if name in ("depth", "depths") and sum(numbers) > 256:
            raise UserError(f"{architecture}: {name} is {value!r}; give 256 blocks at most.")
    return settings


def _fetch(architecture: str, settings: Any) -> Path:
    """The weights file of an architecture, from the Hub or its cache."""
    if not settings.hf_hub_id:
        raise CheckpointError(f"timm knows no weights of {architecture} on the Hub. Give a local file.")
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(settings.hf_hub_id, settings.hf_hub_filename or "model.safetensors"))
    except Exception as error:  # without a network, of many kinds
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(
            f"The weights of {architecture} could not be fetched ({reason[:200]}). Without a network, download "
            f"model.safetensors of https://huggingface.co/{settings.hf_hub_id} elsewhere and give its local path."
        ) from error
