"""The model that a fine-tuning starts from: a backbone by the name of its initialisation, with a fresh head."""

from dataclasses import dataclass, replace

import torch
from torch import nn

from endofm_lab.errors import UserError
from endofm_lab.model.card import HeadSpec, InitialisationRecord, ModelCard
from endofm_lab.model.encoder import Encoder
from endofm_lab.model.loading.formats import sizes_of
from endofm_lab.model.loading.load import initialise, load_state
from endofm_lab.model.loading.locate import locate
from endofm_lab.model.loading.released import KNOWN, card_of
from endofm_lab.model.paper.hybrid import HybridTransformer
from endofm_lab.model.transformer import PRESETS, BackboneConfig, VideoTransformer
from endofm_lab.model.video_model import VideoModel, build_head, encoder_of
from endofm_lab.video.clips import ClipSpec
from endofm_lab.video.transforms import IMAGENET, InputSpec

# Backbones from this width on get heads as in the paper.
PAPER_WIDTH = 384
LIGHT_STEM, LIGHT_CHANNELS = {"stem_width": 32, "stem_units": (1, 1, 1)}, 64


@dataclass(frozen=True)
class Start:
    """Where a training starts.

    Attributes:
        source: "scratch", or weights as `load_model` takes them: a file, a model folder, "demo", a hub id. Image
            weights (DINO, DINOv2, timm's ViTs) give the spatial part; the temporal part then adds nothing at first.
        size: backbone preset; needed by "scratch" alone, other sources bring their own.
        image_px: side of the pictures; None: as the source (or preset) has it.
        n_frames: frames per clip; None: as the source has it, 8 for images and the preset's for scratch.
        stride: frames apart; None: the spacing of the source's clips, 2 for scratch and images.
    """

    source: str = "demo"
    size: str | None = None
    image_px: int | None = None
    n_frames: int | None = None
    stride: int | None = None

    def build(self, head_name: str, head: HeadSpec, seed: int, adapters: bool = False) -> VideoModel:
        """The model before training; ``seed`` draws whatever is new in it.

        With ``adapters`` it is the spatial part of the source alone, with ST-Adapters half as wide as the model. A
        start from scratch or from images with clips of one frame has no attention in time. A "transunet" head puts a
        new convolutional stem before the source's blocks. Its stem is R50's and an "stft" head as wide as the paper's;
        backbones narrower than ViT-S get lighter ones, for laptops.

        Raises:
            UserError: a size with a source that brings its own, or none for scratch; a source with a convolutional
                stem.
            CheckpointError: the source cannot be read or does not fit.
        """
        config, spec, clip = self._described()
        config = replace(config, image_px=self.image_px or config.image_px, frames=self.n_frames or config.frames)
        if adapters:
            config = replace(config, attention="space_only", adapter=config.width // 2)
        clip = replace(clip, n_frames=config.frames)
        if self.stride is not None:
            clip = ClipSpec(n_frames=config.frames, stride=self.stride)
        torch.manual_seed(seed)
        transformer = VideoTransformer(config)
        record = initialise(transformer, self.source, "spatial" if adapters else "all")
        backbone: Encoder = transformer
        if head.form == "transunet":
            backbone, record = _with_stem(transformer, record)
        if head.form == "stft" and config.width < PAPER_WIDTH:
            head = replace(head, channels=LIGHT_CHANNELS)
        card = ModelCard(
            name=f"{head_name} head on {config.width}-wide transformer",
            backbone={},
            input=replace(spec, size_px=config.image_px),
            clip=clip,
            heads={head_name: head},
            initialisation=record,
        )
        return VideoModel(backbone, nn.ModuleDict({head_name: build_head(head, backbone, config.image_px)}), card)

    def _described(self) -> tuple[BackboneConfig, InputSpec, ClipSpec]:
        if self.source == "scratch":
            if self.size not in PRESETS:
                raise UserError(f"Scratch needs a backbone's size, not {self.size!r}: one of {', '.join(PRESETS)}.")
            config = PRESETS[self.size]
            if self.n_frames == 1:
                config = replace(config, attention="space_only")
            return config, IMAGENET, ClipSpec(n_frames=config.frames, stride=2)
        if self.size is not None:
            raise UserError(
                f"The size of the backbone is {self.size!r}, but {self.source} brings its own: leave it out."
            )
        checkpoint = load_state(locate(self.source))
        card = checkpoint.card
        if card is None and not checkpoint.is_image and KNOWN[checkpoint.layout].input is not None:
            card = card_of(checkpoint, {"words": ""})
        if card is not None:
            encoder, config = encoder_of(card)
            if not encoder.takes_image_weights:
                raise UserError(
                    f"{self.source} is a model of kind {encoder.kind!r}; fine-tuning starts from video transformers."
                )
            return config, card.input, card.clip
        sizes = sizes_of(checkpoint) | {"attention": "space_only" if self.n_frames == 1 else "divided", "frames": 8}
        return BackboneConfig(**sizes), IMAGENET, ClipSpec(n_frames=8, stride=2)


def _with_stem(
    transformer: VideoTransformer, record: InitialisationRecord
) -> tuple[HybridTransformer, InitialisationRecord]:
    """The transformer behind a fresh stem, and what its record says then."""
    hybrid = HybridTransformer.around(transformer, **({} if transformer.config.width >= PAPER_WIDTH else LIGHT_STEM))
    words = record["words"].rstrip(".")
    words += "; of the backbone its blocks, last norm and CLS stay, behind a new convolutional stem."
    return hybrid, {**record, "words": words}
