"""The released recipes of fine-tuning as presets, with their deliberate differences.

Source: Endo-FM (arXiv 2306.16741), paper and released settings. Tests compare each preset with the released values.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from endofm_lab.data.manifest import read_manifest
from endofm_lab.errors import UserError
from endofm_lab.finetuning.config import FinetuneConfig
from endofm_lab.finetuning.start import Start

_EVERYWHERE = {
    "chosen on": "Validation chooses the step and test is reported once; the released code chooses on the test set.",
    "input": "Normalisation and fitting of the pictures stay those of the start; the released code has its own.",
    "clip": "Gradients are clipped at a norm of 1 for each tensor.",
}


@dataclass(frozen=True)
class Preset:
    """A function from manifest, folder and start to a configuration, with its differences from the released recipe."""

    build: Callable[[Path, Path, str], FinetuneConfig]
    about: str
    differences: Mapping[str, str]

    def explained(self, name: str) -> list[str]:
        """A description of the preset, and a line for each deliberate difference."""
        head = f"{name}: {self.about}"
        return [head, *(f"- {setting}: {words}" for setting, words in (_EVERYWHERE | dict(self.differences)).items())]


def polypdiag(manifest: Path, out: Path, start: str) -> FinetuneConfig:
    """PolypDiag: full fine-tuning, 8 frames 32 apart, SGD, cosine per epoch without warm-up, 20 epochs of batches of 4.

    The learning rate is 1e-3 x batch / 256. Training uses scale jitter and mirroring; test averages three square crops
    of each clip.
    """
    epoch = _epoch(manifest, batch=4)
    return FinetuneConfig(
        manifest,
        out,
        start=Start(start, n_frames=8, stride=32),
        augmentation="scale jitter",
        crops=3,
        steps=20 * epoch,
        batch=4,
        lr=1e-3 * 4 / 256,
        warmup=0.0,
        floor=0.0,
        per_epoch=True,
        weight_decay=0.0,
        layer_decay=1.0,
        optimiser="sgd",
        validate_every=epoch,
    )


def cvc_12k(manifest: Path, out: Path, start: str) -> FinetuneConfig:
    """CVC-12k: a TransUNet, AdamW with 1e-4 and decay 0.05, polynomial schedule, 150 epochs of batches of 1."""
    epoch = _epoch(manifest, batch=1)
    return FinetuneConfig(
        manifest,
        out,
        task="segmentation",
        head="transunet",
        start=Start(start, image_px=224),
        steps=150 * epoch,
        batch=1,
        lr=1e-4,
        schedule="poly",
        warmup=0.0,
        floor=0.0,
        weight_decay=0.05,
        layer_decay=1.0,
        validate_every=epoch,
    )


def kumc(manifest: Path, out: Path, start: str) -> FinetuneConfig:
    """KUMC: FCOS with STFT, SGD with 0.0025, 96,000 steps, 8,000 of warm-up, halved after 64,000, 80,000 and 88,000."""
    return FinetuneConfig(
        manifest,
        out,
        task="detection",
        head="stft",
        start=Start(start, image_px=640, n_frames=3, stride=4),
        steps=96_000,
        batch=1,
        lr=0.0025,
        schedule="halved",
        warmup=8_000 / 96_000,
        milestones=(64_000, 80_000, 88_000),
        weight_decay=0.0,
        layer_decay=1.0,
        optimiser="sgd",
        validate_every=2_000,
    )


PRESETS = {
    "polypdiag": Preset(
        polypdiag,
        "the released recipe of PolypDiag, with these differences:",
        {"clips": "The scores of three clips per row are averaged at test; --clips sets another number."},
    ),
    "cvc-12k": Preset(
        cvc_12k,
        "the released recipe of CVC-12k, with these differences:",
        {
            "clips": "The model sees clips as long as those of the start; the released code reads whole sequences.",
            "augmentation": "Training clips are cropped, mirrored, flipped vertically and changed in colour (light).",
        },
    ),
    "kumc": Preset(
        kumc,
        "the released recipe of KUMC, with these differences:",
        {
            "pictures": "Pictures are squares of 640 px; the released code has a short side of 600 px.",
            "frames": "A frame has two support frames four frames apart, in training and test; at test, the released "
            "code has ten, drawn from nine frames around the frame.",
            "batch": "One clip per step.",
            "augmentation": "Training clips are cropped, mirrored, flipped vertically and changed in colour (light).",
        },
    ),
}


def preset_named(name: str) -> Preset:
    """The preset of a name.

    Raises:
        UserError: the preset does not exist.
    """
    if name not in PRESETS:
        raise UserError(f"There is no preset {name!r}; choose one of {', '.join(PRESETS)}.")
    return PRESETS[name]


def _epoch(manifest: Path, batch: int) -> int:
    """Number of steps in which every training row is seen once."""
    return max(1, math.ceil(len(read_manifest(manifest).rows("train")) / batch))
