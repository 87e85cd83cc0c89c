"""Models, pictures, clips and runs that several tests build."""

from functools import cache

import numpy as np
import pandas as pd
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter
from torch import nn

from endofm_lab.metrics.masks import mask_metrics
from endofm_lab.model.card import HeadSpec
from endofm_lab.model.transformer import build_backbone
from endofm_lab.model.video_model import build_frame_model
from endofm_lab.runs.run import Run
from endofm_lab.video.transforms import to_input

EVIL = "<img src=x onerror=alert(1)> **polyp**"  # a class with HTML and Markdown in its name


def lively(name="micro", seed=0, **overrides):
    """A backbone in eval mode in which no weight is zero (a new one ignores time) and attention is far from uniform."""
    torch.manual_seed(seed)
    backbone = build_backbone(name, **overrides).eval()
    with torch.no_grad():
        for key, parameter in backbone.named_parameters():
            parameter.add_(torch.randn_like(parameter) * (0.05 if parameter.ndim == 1 else 0.3))
            if "qkv.weight" in key:
                parameter.mul_(1.5)
    return backbone


def clip_of(*shape, seed=1):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def frame_model(frames):
    """Untrained, but sure of itself and undecided on the whole: every class wins on some of the frames."""
    torch.manual_seed(0)
    heads = {
        "finding": HeadSpec("multiclass", ("normal", EVIL), temperature=1.5),
        "signs": HeadSpec("multilabel", ("blood", "bubbles")),
    }
    model = build_frame_model("vit_micro", heads)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    model.eval()
    with torch.no_grad():
        logits = model(to_input(frames[:, None], model.card.input)).logits
        for name, values in logits.items():
            linear, scale = model.heads[name].linear, 3 / values.std(0)
            linear.weight *= scale[:, None]
            linear.bias.copy_((linear.bias - values.mean(0)) * scale)
    return model


def made_run(name, task="classification", skill=1.0, seeds=(0,), n_patients=20, **changes):
    """A run whose test items and truths depend on the task only, and whose predictions on name, skill and seed."""
    truth, draw = np.random.default_rng(0), np.random.default_rng([len(name), int(100 * skill)])
    n = 3 * n_patients
    patients = [f"p{k // 3:02d}" for k in range(n)]
    target = truth.integers(0, 2, n)
    boxes = truth.uniform(0, 50, (n, 2))
    boxes = np.concatenate([boxes, boxes + 30], 1)
    parts = []
    for seed in seeds:
        part = pd.DataFrame({"seed": seed, "row": [f"item-{k:02d}" for k in range(n)], "patient": patients})
        if task == "classification":
            score = 1 / (1 + np.exp(-skill * (2 * target - 1) - draw.normal(0, 1, n)))
            part = part.assign(target=target, score_normal=1 - score, score_polyp=score)
        elif task == "segmentation":
            masks = [np.pad(np.ones((10, 10), bool), 5) & bool(t) for t in target]
            predictions = [np.roll(m, int(draw.integers(0, 8) / skill), axis=1) for m in masks]
            part = pd.concat([part, mask_metrics(masks, predictions)], axis=1)
        elif task == "detection":
            part["true_boxes"] = [[list(b)] if t else [] for b, t in zip(boxes, target, strict=True)]
            part["true_labels"] = [[0] if t else [] for t in target]
            part["boxes"] = [[list(b + draw.normal(0, 6 / skill, 4))] for b in boxes]
            part["scores"] = [[float(s)] for s in draw.uniform(0.3, 1, n) * (0.4 + 0.6 * target)]
            part["labels"] = [[0]] * n
        else:
            wrong = draw.random(n) > 0.5 + 0.4 * skill
            part = part.assign(video=patients, target=target, predicted=np.where(wrong, 1 - target, target))
        parts.append(part)
    fields = {
        "run": name,
        "task": task,
        "method": "linear probe",
        "initialisation": "scratch",
        "seeds": tuple(seeds),
        "protocol": {"dataset": "made", "chosen_on": "validation", "input": {"frames": 8}},
        "test": {"fingerprint": "abc", "split": "patient-wise"},
        "audit": {"findings": []},
        "predictions": pd.concat(parts, ignore_index=True),
    }
    return Run(**{**fields, **changes})


@cache
def mucosa(seed: int, size: int = 240) -> Image.Image:
    """A generated picture in the manner of a colonoscope: octagon, dark lumen, folds, fine texture."""
    rng = np.random.default_rng(seed)
    noise = sum(gaussian_filter(rng.normal(size=(size, size)), s) * s * g for s, g in ((2, 1.0), (6, 1.2), (20, 1.5)))
    y, x = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j]
    lumen = 1 - 0.8 * np.exp(-((x - rng.uniform(-0.5, 0.5)) ** 2 + (y - rng.uniform(-0.5, 0.5)) ** 2) / 0.1)
    grey = (150 + 30 * noise) * lumen * (np.abs(x) + np.abs(y) < 1.6)
    return Image.fromarray(np.clip(np.stack([grey * 1.1, grey * 0.6, grey * 0.5], -1), 0, 255).astype(np.uint8))
