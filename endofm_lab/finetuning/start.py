"""The start of a fine-tuning: an encoder with the named initialisation and a fresh head."""

from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import nn

from endofm_lab.errors import UserError
from endofm_lab.files import fingerprint_of
from endofm_lab.model.card import HANDED_OVER, SCRATCH, HeadSpec, InitialisationRecord, ModelCard
from endofm_lab.model.encoder import Encoder
from endofm_lab.model.frame import HUB, FrameBackbone, frame_config, frame_input, load_frame_weights
from endofm_lab.model.loading.formats import Checkpoint, sizes_of
from endofm_lab.model.loading.initialisation import BackbonePart
from endofm_lab.model.loading.load import initialise, load_state
from endofm_lab.model.loading.locate import locate
from endofm_lab.model.loading.released import NETWORKS, card_of
from endofm_lab.model.others.torchvision_video import ARCHITECTURES, TORCHVISION, TorchvisionConfig, TorchvisionVideo
from endofm_lab.model.paper.hybrid import HybridTransformer
from endofm_lab.model.transformer import PRESETS, BackboneConfig, VideoTransformer
from endofm_lab.model.video_model import VideoModel, build_head, encoder_of
from endofm_lab.video.clips import ClipSpec
from endofm_lab.video.transforms import IMAGENET, InputSpec

# Backbones of at least this width get heads with the paper's sizes.
PAPER_WIDTH = 384
LIGHT_STEM, LIGHT_CHANNELS = {"stem_width": 32, "stem_units": (1, 1, 1)}, 64
TIMM = "timm:"  # before the name of an image model
Description = tuple[type[Encoder], Any, InputSpec, ClipSpec]  # class of the encoder, configuration, its input and clips


@dataclass(frozen=True)
class Start:
    """The origin of the weights of a training.

    Attributes:
        source: "scratch", or weights as `load_model` takes them: a file, a model folder, "demo", a hub id, an image
            model of timm (``timm:eva02_base_patch14_224.mim_in22k``). Other image weights (DINO, DINOv2, timm's ViTs)
            give the spatial part of a video transformer; the temporal part then has no effect at first.
        size: backbone preset, ``timm:NAME`` for an image model of timm, frame by frame, or ``torchvision:NAME`` for a
            video model of torchvision with random weights (its files are sources). "scratch" needs one; a file
            of timm's weights may have ``timm:NAME`` to become that image model; other sources have their own.
        image_px: side of the pictures; None for that of the source or preset.
        n_frames: frames per clip; None for those of the source, 8 for images, the preset's for scratch, and 1 for image
            models.
        stride: spacing of a clip's frames; None for that of the source's clips, 2 for scratch and images.
    """

    source: str = "demo"
    size: str | None = None
    image_px: int | None = None
    n_frames: int | None = None
    stride: int | None = None

    def build(
        self, head_name: str, head: HeadSpec, seed: int, adapters: bool = False, checkpoint: Checkpoint | None = None
    ) -> VideoModel:
        """The model before training. ``seed`` initialises its new weights; ``checkpoint`` replaces the source.

        With ``adapters``, the backbone is the spatial part of the source with ST-Adapters half as wide as the model. A
        start from scratch or from images with clips of one frame has no attention in time. A "transunet" head puts a
        new convolutional stem before the source's blocks: the stem of R50. An "stft" head is as wide as in the paper.
        Backbones narrower than ViT-S get a lighter stem or head, for laptops.

        Raises:
            UserError: a size is given although the source has its own, or no size is given for scratch; the encoder is
                no plain video transformer, which adapters and a transunet head need; or the number of frames is not a
                multiple of the frames in a token.
            CheckpointError: the source cannot be read or does not fit.
        """
        encoder, config, spec, clip = self._described(checkpoint)
        source = self.source if checkpoint is None or checkpoint.card is None else checkpoint.card.name
        if (adapters or head.form == "transunet") and not encoder.takes_image_weights:
            raise UserError(
                f"{source} has a backbone of kind {encoder.kind!r}, but adapters and a transunet's stem need one of "
                f"kind {VideoTransformer.kind!r}. Start from such a model, or choose another method."
            )
        config = encoder.resized(config, self.image_px, self.n_frames)
        if adapters:
            config = replace(config, attention="space_only", adapter=config.width // 2)
        n_frames = self.n_frames or clip.n_frames
        clip = replace(clip, n_frames=n_frames) if self.stride is None else ClipSpec(n_frames, stride=self.stride)
        torch.manual_seed(seed)
        backbone = encoder(config)
        if n_frames % backbone.frames_per_token:
            raise UserError(
                f"Clips have {n_frames} frames, but a token of {source} shows {backbone.frames_per_token}; give a "
                "multiple of that as n_frames."
            )
        record = self._fill(backbone, "spatial" if adapters else "all", checkpoint)
        if head.form == "transunet":
            backbone, record = _with_stem(cast(VideoTransformer, backbone), record)
        if head.form == "stft" and backbone.width < PAPER_WIDTH:
            head = replace(head, channels=LIGHT_CHANNELS)
        card = ModelCard(
            name=f"{head_name} head on {backbone.width}-wide {'transformer' if backbone.takes_video else encoder.kind}",
            backbone={},
            input=replace(spec, size_px=backbone.image_px),
            clip=clip,
            heads={head_name: head},
            initialisation=record,
        )
        return VideoModel(backbone, nn.ModuleDict({head_name: build_head(head, backbone, backbone.image_px)}), card)

    @property
    def _image_model(self) -> str | None:
        """The name of the image model of timm, if the size or the source names one."""
        sources = [text for text in (self.source, self.size or "") if text.startswith(TIMM)]
        return sources[0].removeprefix(TIMM) if sources else None

    def content(self) -> str:
        """`fingerprint_of` the source's file or folder; "" for a start from scratch and for models of timm's Hub.

        Raises:
            CheckpointError: the source does not exist.
        """
        if self.source == "scratch" or self.source.startswith(TIMM):
            return ""
        return fingerprint_of(locate(self.source))

    def _described(self, checkpoint: Checkpoint | None) -> Description:
        """Encoder class, configuration, input and clips of the source, before any change."""
        if checkpoint is not None:
            return self._of_checkpoint(checkpoint)
        if (name := self._image_model) is not None:
            config = frame_config(name, self.image_px)
            return FrameBackbone, config, frame_input(config), ClipSpec(n_frames=1, stride=1)
        if self.source == "scratch":
            if (self.size or "").startswith(TORCHVISION):
                video = TorchvisionConfig(
                    str(self.size).removeprefix(TORCHVISION), self.image_px or 0, self.n_frames or 0
                )
                spec = replace(ARCHITECTURES[video.architecture].input, size_px=video.image_px)
                return TorchvisionVideo, video, spec, ClipSpec(n_frames=video.frames, stride=2)
            if self.size not in PRESETS:
                raise UserError(
                    f"The size is {self.size!r}; for a start from scratch, choose {', '.join(PRESETS)}, timm:NAME or "
                    "torchvision:NAME."
                )
            preset = PRESETS[self.size]
            if self.n_frames == 1:
                preset = replace(preset, attention="space_only")
            return VideoTransformer, preset, IMAGENET, ClipSpec(n_frames=preset.frames, stride=2)
        if self.size is not None:
            raise UserError(
                f"The size of the backbone is {self.size!r}, but {self.source} has its own: leave the size out."
            )
        return self._of_checkpoint(load_state(locate(self.source)))

    def _of_checkpoint(self, checkpoint: Checkpoint) -> Description:
        card = checkpoint.card
        if card is None and not checkpoint.is_image and NETWORKS[checkpoint.layout].input is not None:
            card = card_of(checkpoint, {"words": ""})
        if card is None:
            sizes = sizes_of(checkpoint) | {"attention": "space_only" if self.n_frames == 1 else "divided", "frames": 8}
            return VideoTransformer, BackboneConfig(**sizes), IMAGENET, ClipSpec(n_frames=8, stride=2)
        in_memory = checkpoint.encoder
        encoder, config = encoder_of(card) if in_memory is None else (type(in_memory), in_memory.config)
        # A video transformer has as many time embeddings as the clips it was trained on have frames.
        clip = replace(card.clip, n_frames=config.frames) if encoder.takes_image_weights else card.clip
        return encoder, config, card.input, clip

    def _fill(self, backbone: Encoder, part: BackbonePart, checkpoint: Checkpoint | None) -> InitialisationRecord:
        """Read the source into a fresh encoder."""
        if checkpoint is not None:
            record = initialise(backbone, checkpoint, part)
            card = checkpoint.card
            if card is not None and not card.data and card.initialisation["words"] != HANDED_OVER["words"]:
                origin = card.initialisation["words"]  # of weights that were not trained since
                record["words"] = f"{record['words'].rstrip('.')}; the origin of {card.name}: {origin}"
            return record
        if self._image_model is None:
            return initialise(backbone, self.source, part)
        if self.source == "scratch":
            return SCRATCH.copy()
        return load_frame_weights(cast(FrameBackbone, backbone), HUB if self.source.startswith(TIMM) else self.source)


def _with_stem(
    transformer: VideoTransformer, record: InitialisationRecord
) -> tuple[HybridTransformer, InitialisationRecord]:
    """The transformer behind a fresh stem, and its record with the stem."""
    hybrid = HybridTransformer.around(transformer, **({} if transformer.config.width >= PAPER_WIDTH else LIGHT_STEM))
    words = record["words"].rstrip(".")
    words += "; the backbone keeps its blocks, last norm and CLS behind a new convolutional stem."
    return hybrid, {**record, "words": words}
