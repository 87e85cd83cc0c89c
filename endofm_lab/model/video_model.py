"""A backbone with its heads and its card: the thing that is trained, saved, loaded and asked for predictions."""

from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from endofm_lab.errors import CheckpointError
from endofm_lab.model import frame
from endofm_lab.model.card import HeadSpec, ModelCard
from endofm_lab.model.frame import FrameBackbone, FrameConfig
from endofm_lab.model.head import Head
from endofm_lab.model.heads import HEADS
from endofm_lab.model.paper import hybrid
from endofm_lab.model.paper.hybrid import HybridConfig, HybridTransformer
from endofm_lab.model.transformer import BackboneConfig, VideoTokens, VideoTransformer
from endofm_lab.video.clips import ClipSpec

KIND = "video_transformer"  # of backbone, in the card
Backbone = VideoTransformer | HybridTransformer | FrameBackbone
Config = BackboneConfig | FrameConfig  # a HybridConfig is a BackboneConfig
_KINDS: dict[str, type[Config]] = {KIND: BackboneConfig, hybrid.KIND: HybridConfig, frame.KIND: FrameConfig}


@dataclass(frozen=True)
class VideoOutput:
    """Tokens of the backbone, and what each head made of them: ``logits`` by head name, shapes as in heads.py."""

    tokens: VideoTokens
    logits: dict[str, Tensor]


class VideoModel(nn.Module):
    """One backbone and any number of heads on its tokens.

    ``card`` says what each head means; its description of the backbone is taken from the backbone itself.

    Raises:
        CheckpointError: heads and card name different heads.
    """

    def __init__(self, backbone: Backbone, heads: nn.ModuleDict, card: ModelCard) -> None:
        super().__init__()
        if set(heads) != set(card.heads):
            raise CheckpointError(
                f"The model has the heads {sorted(heads)}, its card {sorted(card.heads)}; they must be the same."
            )
        self.backbone = backbone
        self.heads = heads
        self.card = replace(card, backbone=describe(backbone.config))

    def forward(self, clip: Tensor, attention: bool = False) -> VideoOutput:
        """Tokens and logits of clips (B, 3, T, H, W) float, normalised by ``card.input``; attention maps on request."""
        tokens = self.backbone(clip, attention=attention)
        return VideoOutput(tokens, {name: head(tokens) for name, head in self.heads.items()})

    @torch.inference_mode()
    def predict(self, clip: Tensor) -> dict[str, Tensor]:
        """Scores by head name for clips (B, 3, T, H, W), float32 on the CPU; the clip is moved to the model's device.

        Class heads: (B, K) in 0..1, softmax or sigmoid of logits over the card's temperature. Mask heads: probabilities
        (B, K, T, 4h, 4w), of a TransUNet in the picture's size. Box heads: raw outputs (B, C, T, h, w), for their
        ``decode``.
        """
        output = self(clip.to(next(self.parameters()).device))
        specs = self.card.heads
        return {n: self.head(n).scores(x.float(), specs[n]).cpu() for n, x in output.logits.items()}

    def head(self, name: str) -> Head:
        """The head of that name."""
        return cast(Head, self.heads[name])


def build_model(card: ModelCard) -> VideoModel:
    """The freshly initialised model that a card describes.

    Raises:
        CheckpointError: as `backbone_config`, or a head's name cannot be used.
    """
    config = backbone_config(card)
    backbone: Backbone
    if isinstance(config, FrameConfig):
        backbone = FrameBackbone(config)
    else:
        backbone = HybridTransformer(config) if isinstance(config, HybridConfig) else VideoTransformer(config)
    heads = nn.ModuleDict()
    for name, spec in card.heads.items():
        if not name.isidentifier() or hasattr(heads, name):
            raise CheckpointError(f"{card.name}: a head cannot be called {name!r}; use another name, without signs.")
        heads[name] = build_head(spec, backbone, card.input.size_px)
    return VideoModel(backbone, heads, card)


def build_frame_model(
    name: str,
    heads: dict[str, HeadSpec] | None = None,
    weights: str | Path | None = None,
    image_px: int | None = None,
    **settings: Any,
) -> VideoModel:
    """An image model of timm with fresh heads; its clips are single frames, normalised as timm says.

    Args:
        name: architecture in timm, or a name in `frame.TINY`.
        heads: name -> what it answers.
        weights: a local file, "hub", or None for a random start, as in `frame.load_frame_weights`.
        image_px: side of the pictures; by default the one it was trained with.
        settings: sizes among `frame.SETTINGS`.

    Raises:
        UserError: unknown name or setting.
        CheckpointError: the weights cannot be read or do not fit.
    """
    backbone, record = frame.build_frame_backbone(name, weights, image_px, **settings)
    config, heads = backbone.config, heads or {}
    card = ModelCard(
        name=config.architecture,
        backbone=describe(config),
        input=frame.frame_input(config),
        clip=ClipSpec(n_frames=1, stride=1),
        heads=heads,
        initialisation=record,
    )
    built = nn.ModuleDict({name: build_head(spec, backbone, card.input.size_px) for name, spec in heads.items()})
    return VideoModel(backbone, built, card)


def build_head(spec: HeadSpec, backbone: Backbone, image_px: int) -> Head:
    """The freshly initialised head that answers ``spec`` from a backbone's tokens of pictures of ``image_px``.

    Raises:
        CheckpointError: the head does not go with the backbone.
    """
    return HEADS[spec.kind, spec.variant].build(spec, backbone, image_px)


def describe(config: Config) -> dict[str, Any]:
    """What a card says about a backbone; `backbone_config` reads it back."""
    kind = next(kind for kind, of_kind in _KINDS.items() if type(config) is of_kind)
    settings = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(config).items()}
    return {"kind": kind, **settings}


def backbone_config(card: ModelCard) -> Config:
    """The configuration of the backbone that a card describes: a video transformer (also with a convolutional stem), or
    an image model of timm.

    Raises:
        CheckpointError: the backbone is of another kind, or has unknown or impossible settings.
    """
    settings = dict(card.backbone)
    kind = settings.pop("kind", None)
    config = _KINDS.get(str(kind))
    if config is None:
        raise CheckpointError(
            f"{card.name}: the backbone is of kind {kind!r}; this version knows {', '.join(map(repr, _KINDS))}."
        )
    known = [field.name for field in fields(config)]
    if unknown := [name for name in settings if name not in known]:
        raise CheckpointError(
            f"{card.name}: the backbone has the unknown setting {', '.join(unknown)}; known are {', '.join(known)}. "
            "The card may come from a newer version of endofm_lab: update it."
        )
    try:
        return config(**settings)
    except TypeError as error:
        raise CheckpointError(f"{card.name}: a setting of the backbone has the wrong type ({error}).") from error
