"""A small random model with one head of each kind, and a clip for it."""

import torch
from torch import nn

from endofm_lab.model.card import HeadSpec, ModelCard
from endofm_lab.model.heads import BoxHead, ClipClassifier, MaskHead
from endofm_lab.model.video_model import VideoModel
from endofm_lab.video.clips import ClipSpec
from endofm_lab.video.transforms import InputSpec
from tests.builders import lively


def small_model(**overrides):
    backbone = lively(image_px=32, **overrides)
    torch.manual_seed(1)
    heads = {
        "finding": ClipClassifier(32, 3),
        "motion": ClipClassifier(32, 2),
        "mask": MaskHead(32),
        "box": BoxHead(32),
    }
    for parameter in nn.ModuleDict(heads).parameters():
        nn.init.normal_(parameter, std=0.2)
    card = ModelCard(
        name="small",
        backbone={},
        input=InputSpec(size_px=32),
        clip=ClipSpec(n_frames=4, fps=6.0),
        heads={
            "finding": HeadSpec("multiclass", ("normal", "polyp", "ulcer")),
            "motion": HeadSpec("multiclass", ("advancing", "withdrawing")),
            "mask": HeadSpec("mask", ("finding",)),
            "box": HeadSpec("box", ("finding",)),
        },
    )
    return VideoModel(backbone, nn.ModuleDict(heads), card).eval()


def small_clip(T=4, size=32, seed=2):
    return torch.randn(1, 3, T, size, size, generator=torch.Generator().manual_seed(seed))
