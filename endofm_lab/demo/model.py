"""The demo model before training, and the card that it gets after training.

Its heads give the finding (normal, polyp, ulcer, bleeding), the motion (advancing, withdrawing), and the mask and the
box of the finding.
"""

import math
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from endofm_lab.data.manifest import Manifest
from endofm_lab.demo.config import DemoConfig
from endofm_lab.metrics.intervals import Interval
from endofm_lab.model.card import HeadSpec, Metric, ModelCard
from endofm_lab.model.heads import BoxHead, ClipClassifier, MaskHead
from endofm_lab.model.loading.load import initialise, load_model
from endofm_lab.model.transformer import Block, VideoTransformer, build_backbone
from endofm_lab.model.video_model import VideoModel
from endofm_lab.video.clips import ClipSpec
from endofm_lab.video.phantom import FINDINGS, MOTIONS
from endofm_lab.video.transforms import IMAGENET


def build_demo_model(n_frames: int = 8, seed: int = 0, pretrained: str | Path = "scratch") -> VideoModel:
    """The demo model before training, with the spatial weights and the normalisation of a pre-trained `tiny` model.

    The temporal weights are always new, drawn so that frames can be told apart from the first step (`_notice_time`).

    Args:
        n_frames: number of frames in a clip.
        seed: seed of all new weights.
        pretrained: source of the spatial weights, as in `initialise`; "scratch" uses ImageNet's normalisation.

    Raises:
        CheckpointError: the weights cannot be loaded, see `initialise`.
    """
    torch.manual_seed(seed)
    backbone = build_backbone("tiny", frames=n_frames)
    record = initialise(backbone, pretrained, part="spatial")
    input_spec = IMAGENET if pretrained == "scratch" else load_model(pretrained).card.input
    _notice_time(backbone)
    width = backbone.config.width
    heads: dict[str, nn.Module] = {
        "finding": ClipClassifier(width, len(FINDINGS)),
        "motion": ClipClassifier(width, len(MOTIONS)),
        "mask": MaskHead(width),
        "box": BoxHead(width),
    }
    card = ModelCard(
        name="demo (tiny, trained on generated video)",
        backbone={},
        input=replace(input_spec, size_px=backbone.config.image_px),
        clip=ClipSpec(n_frames=n_frames, fps=6.0),
        initialisation={**record, "words": f"{record['words']} {_NOTICED}"},
        heads={
            "finding": HeadSpec("multiclass", FINDINGS),
            "motion": HeadSpec("multiclass", MOTIONS),
            "mask": HeadSpec("mask", ("finding",)),
            "box": HeadSpec("box", ("finding",)),
        },
    )
    return VideoModel(backbone, nn.ModuleDict(heads), card)


_NOTICED = (
    "Then the time embedding and the temporal attention were drawn with larger weights, to tell frames apart from the "
    "first step on."
)


def _notice_time(backbone: VideoTransformer) -> None:
    """Initialise the temporal attention in place so that it tells frames apart from the first step on.

    With the usual initialisation (embeddings and weights with a standard deviation of 0.02, ``temporal_fc`` of zeros)
    temporal attention is uniform. Its output then does not depend on the order of the frames, so a label that depends
    on this order alone has no gradient at the start. Larger time embeddings, queries and keys give every head
    different weights over the frames.
    """
    nn.init.normal_(backbone.time_embed, std=0.7)
    width = backbone.config.width
    for block in backbone.blocks:
        assert isinstance(block, Block)
        with torch.no_grad():
            block.temporal_attn.qkv.weight[: 2 * width].normal_(std=0.12)  # queries and keys
        nn.init.xavier_uniform_(block.temporal_attn.qkv.weight[2 * width :])
        nn.init.xavier_uniform_(block.temporal_attn.proj.weight)
        nn.init.xavier_uniform_(block.temporal_fc.weight)


def carded(model: VideoModel, manifest: Manifest, config: DemoConfig, metrics: dict[str, Interval]) -> VideoModel:
    """The model with a card that describes its training data and its metrics."""
    card = replace(
        model.card,
        data={
            "description": "Phantom, preset demo: generated endoscopy-like video",
            "fingerprint": manifest.fingerprint,
            "generated": True,
            "split": "by patient: train, val, test; pre-trained without labels and trained on train, measured "
            "on test, whose results were known when the length of the training was chosen",
        },
        metrics=tuple(
            _metric(name, interval, config.seed) for name, interval in metrics.items() if not math.isnan(interval.value)
        ),
    )
    return VideoModel(model.backbone, model.heads, card)


def _metric(name: str, interval: Interval, seed: int) -> Metric:
    """One number of the card; its interval is left out where there were too few patients for one."""
    metric = Metric(
        name=name,
        value=interval.value,
        data="phantom, preset demo (generated)",
        split="test",
        seed=seed,
        command=f"endofm-lab demo evaluate --seed {seed}",
    )
    return metric if math.isnan(interval.low) else {**metric, "interval": [interval.low, interval.high]}
