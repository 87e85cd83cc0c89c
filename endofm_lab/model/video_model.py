"""A model: a backbone with its heads and its card, which is trained, saved, loaded and used for predictions."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils._pytree import register_pytree_node

from endofm_lab.brief import Brief, brief, cut
from endofm_lab.errors import CheckpointError, UserError
from endofm_lab.familiarity.statistics import Familiarity
from endofm_lab.model import frame
from endofm_lab.model.card import SCRATCH, HeadSpec, InitialisationRecord, ModelCard
from endofm_lab.model.encoder import Encoder, VideoTokens, watching
from endofm_lab.model.frame import FrameBackbone
from endofm_lab.model.head import Head
from endofm_lab.model.others.hugging_face import HuggingFaceVideo
from endofm_lab.model.others.torchvision_video import TorchvisionVideo
from endofm_lab.model.paper.hybrid import HybridTransformer
from endofm_lab.model.transformer import VideoTransformer
from endofm_lab.outside import Allowed, class_named, name_of

# The kinds of encoder that a card may name without permission of the reader; see `endofm_lab.outside` for others.
ENCODERS: dict[str, type[Encoder]] = {
    encoder.kind: encoder
    for encoder in (VideoTransformer, HybridTransformer, FrameBackbone, HuggingFaceVideo, TorchvisionVideo)
}
CLASS = "class"  # in a card's description of the backbone: the importable name of a class from outside the library


@dataclass(frozen=True, eq=False, repr=False)
class VideoOutput(Brief):
    """Tokens of the backbone, and the ``logits`` of each head by its name, with shapes as in heads.py."""

    tokens: VideoTokens
    logits: dict[str, Tensor]


register_pytree_node(
    VideoOutput,
    lambda output: ([output.tokens, output.logits], None),
    lambda children, _: VideoOutput(*children),
    serialized_type_name="endofm_lab.VideoOutput",
)


class VideoModel(nn.Module):
    """One backbone and any number of heads on its tokens.

    ``card`` defines the meaning of each head; its description of the backbone is taken from the backbone itself.
    ``familiarity`` holds the statistics of the training features, for a model that has them; they belong to the weights
    they were fitted with.

    Raises:
        CheckpointError: heads and card name different heads.
    """

    def __init__(self, backbone: Encoder, heads: nn.ModuleDict, card: ModelCard) -> None:
        super().__init__()
        if set(heads) != set(card.heads):
            raise CheckpointError(
                f"The model has the heads {sorted(heads)}, its card {sorted(card.heads)}; they must be the same."
            )
        self.backbone = backbone
        self.heads = heads
        self.familiarity: Familiarity | None = None
        self.card = replace(card, backbone=described(type(backbone), backbone.config))

    def forward(self, clip: Tensor, attention: bool = False) -> VideoOutput:
        """Tokens and logits of clips (B, 3, T, H, W) float, normalised by ``card.input``; attention maps on request."""
        tokens = self.backbone(clip, attention=attention)
        return VideoOutput(tokens, {name: head(tokens) for name, head in self.heads.items()})

    @torch.inference_mode()
    def predict(self, clip: Tensor, shown: Sequence[str] = ()) -> dict[str, Tensor]:
        """Scores by head name for clips (B, 3, T, H, W), float32 on the CPU; the clip is moved to the model's device.

        Class heads: (B, K) in 0..1, softmax or sigmoid of logits over the card's temperature. Mask heads: probabilities
        (B, K, T, 4h, 4w), of a TransUNet in the picture's size. Box heads: raw outputs (B, C, T, h, w), for their
        ``decode``.

        Args:
            clip: the clips.
            shown: a description of each clip for messages: "the clip at 2.50 s".

        Raises:
            UserError: an output is NaN or infinite; the message names model, head and clip.
        """
        return self.answer(clip, shown)[0]

    @torch.inference_mode()
    def answer(self, clip: Tensor, shown: Sequence[str] = ()) -> tuple[dict[str, Tensor], Tensor]:
        """The scores of clips as `predict` returns them, and their features, (B, D) float32 on the CPU.

        Raises:
            UserError: as `predict`, also for features (see `endofm_lab.model.encoder.watching`).
        """
        with watching(self.backbone) as features_of:
            output = self(clip.to(next(self.parameters()).device))
            features = features_of(output.tokens).float()
        scores_by_head = {}
        for name, logits in output.logits.items():
            scores = self.head(name).scores(logits.float(), self.card.heads[name])
            for values in (logits, scores):
                check_finite(values, f"The head {name!r} of {self.card.name}", shown)
            scores_by_head[name] = scores.cpu()
        check_finite(features, f"The backbone of {self.card.name}", shown)
        return scores_by_head, features.cpu()

    @classmethod
    def from_pretrained(cls, name: str | Path, *, allow: Allowed = (), device: str = "cpu") -> "VideoModel":
        """A model as `endofm_lab.load_model` reads it, by the name that users of Hugging Face's libraries expect.

        Raises:
            UserError: as `endofm_lab.load_model`.
        """
        from endofm_lab.model.loading.load import load_model

        return load_model(name, allow, device)

    def __repr__(self) -> str:
        heads = ", ".join(f"{name}: {spec.kind} of {len(spec.classes)}" for name, spec in self.card.heads.items())
        return f"VideoModel({brief(self.card.name)}, {self.backbone!r}, heads {{{cut(heads, 200)}}})"

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write the model's folder, as `endofm_lab.save_model` does.

        Raises:
            CheckpointError: the folder cannot be written.
        """
        from endofm_lab.model.loading.load import save_model

        return save_model(self, folder)

    def push_to_hub(self, name: str, *, private: bool = True, token: str | None = None) -> str:
        """Upload the model to the Hugging Face Hub: weights, card, and a page made from the card; returns its address.

        Args:
            name: "owner/name"; the repository is made if it is not there.
            private: who may see a repository that is made: you and those you name, or everybody.
            token: of the Hub; None takes the one that ``hf auth login`` stored.

        Raises:
            UserError: the Hub refuses, or cannot be reached.
        """
        from endofm_lab.model.loading.hub import push

        return push(self, name, private, token)

    def head(self, name: str) -> Head:
        """The head of that name."""
        return cast(Head, self.heads[name])


def check_finite(values: Tensor, source: str, shown: Sequence[str] = ()) -> None:
    """Check that the outputs of a model for clips, (B, ...), are finite.

    Args:
        values: the outputs.
        source: the model or head that computed them, for the message.
        shown: a description of each of the B clips.

    Raises:
        UserError: a value is NaN or infinite.
    """
    finite = values.isfinite().flatten(1).all(dim=1)
    if not bool(finite.all()):
        at = int(finite.logical_not().nonzero()[0])
        raise UserError(
            f"{source} gives NaN or infinity for {shown[at] if shown else f'clip {at + 1} of {len(values)}'}, which is "
            "no result. The weights are damaged or too large, or the card's mean and std are not those of the model: "
            "use another model, or train this one again with a smaller learning rate."
        )


def build_model(card: ModelCard) -> VideoModel:
    """The freshly initialised model that a card describes.

    Raises:
        CheckpointError: as `encoder_of`, or a head's name cannot be used.
    """
    encoder, config = encoder_of(card)
    specs = {name: spec.resolved(card.name) for name, spec in card.heads.items()}
    backbone = encoder(config)
    heads = nn.ModuleDict()
    for name, spec in specs.items():
        if not name.isidentifier() or hasattr(heads, name):
            raise CheckpointError(f"{card.name}: A head cannot be called {name!r}. Use a name of letters and digits.")
        heads[name] = build_head(spec, backbone, card.input.size_px)
    return VideoModel(backbone, heads, replace(card, heads=specs))


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
    return model_on(backbone, heads or {}, backbone.config.architecture, record)


def model_on(
    backbone: Encoder, heads: dict[str, HeadSpec], name: str, record: InitialisationRecord | None = None
) -> VideoModel:
    """A model of an encoder and fresh heads; input and clips are the encoder's defaults.

    Args:
        backbone: the encoder.
        heads: name -> what it answers.
        name: of the model.
        record: of the encoder's start; None for a random one.

    Raises:
        CheckpointError: a head does not go with the encoder.
    """
    card = ModelCard(
        name=name,
        backbone={},
        input=backbone.default_input(),
        clip=backbone.default_clip(),
        heads=heads,
        initialisation=record or SCRATCH.copy(),
    )
    built = nn.ModuleDict({name: build_head(spec, backbone, card.input.size_px) for name, spec in heads.items()})
    return VideoModel(backbone, built, card)


def build_head(spec: HeadSpec, backbone: Encoder, image_px: int) -> Head:
    """The freshly initialised head that answers ``spec`` from a backbone's tokens of pictures of ``image_px``.

    Raises:
        CheckpointError: the head does not go with the backbone.
    """
    return spec.head_class.build(spec, backbone, image_px)


def described(encoder: type[Encoder], config: Any) -> dict[str, Any]:
    """An encoder in a card; of a class from outside the library also its importable name."""
    name = name_of(encoder)
    return encoder.describe(config) | ({} if name is None else {CLASS: name})


def encoder_of(card: ModelCard) -> tuple[type[Encoder], Any]:
    """The class and the configuration of the encoder that a card describes.

    A card is data and cannot contain code: it names a kind in `ENCODERS`, or a class that the reader has to allow.

    Raises:
        CheckpointError: the encoder is of a kind or class that is not known, not allowed or not there, or has unknown
            or impossible settings.
    """
    settings = dict(card.backbone)
    kind, name = settings.get("kind"), settings.pop(CLASS, None)
    if name is not None:
        encoder = class_named(name, Encoder, card.name, CheckpointError)  # type: ignore[type-abstract]
    elif kind in ENCODERS:
        encoder = ENCODERS[kind]
    else:
        raise CheckpointError(
            f"{card.name}: The backbone is of kind {kind!r}; this version knows {', '.join(map(repr, ENCODERS))}. "
            "Update endofm_lab, or choose another model."
        )
    return encoder, encoder.read_config(settings, card.name)
