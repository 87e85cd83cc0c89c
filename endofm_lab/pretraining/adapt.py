"""Domain-adaptive pre-training of image models without labels, towards a frozen teacher's features.

Masked image modelling of a teacher's features, as EVA-02 was made (arXiv 2303.11331). With labels an image model is
adapted by `finetuning.finetune`, which has the options of Roth et al., arXiv 2410.21302.
"""

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from timm.optim import AdaBelief
from torch import Tensor, nn

from endofm_lab.errors import UserError
from endofm_lab.model.frame import FrameBackbone
from endofm_lab.pretraining.frames import FrameCorpus
from endofm_lab.run_folder import claim
from endofm_lab.training.loop import LoopConfig, Record, Trainable, parameter_groups, train
from endofm_lab.video.transforms import InputSpec

CONFIG = "config.json"


@dataclass(frozen=True)
class AdaptConfig:
    """How an image model is adapted.

    ``lr`` is multiplied by ``lr_decay`` after every epoch; gradients are clipped to ``clip``, tensor by tensor (the
    paper: all together). ``precision`` is that of `LoopConfig`: bfloat16 and float16 compute under autocast.
    """

    epochs: int = 50
    batch: int = 64
    lr: float = 1e-6
    lr_decay: float = 0.95
    weight_decay: float = 2e-4
    clip: float = 0.5
    seed: int = 0
    workers: int = 0
    precision: Literal["float32", "bfloat16", "float16"] = "float32"

    def __post_init__(self) -> None:
        if self.epochs < 1 or not self.lr > 0 or not 0 < self.lr_decay <= 1:
            raise UserError(
                f"epochs is {self.epochs}, lr {self.lr}, lr_decay {self.lr_decay}; give at least one epoch, a rate "
                "above 0, and a decay above 0 and at most 1."
            )


class MaskedFeatures(Trainable):
    """A student that predicts a frozen teacher's patch features where its own picture is masked.

    Blocks that cover ``mask_share`` of the patches are replaced by a learned patch of pixels (through the linear patch
    embedding that is a learned mask token). The loss is one minus the cosine between the student's projected feature
    and the teacher's layer-normalised one, at masked patches only.

    Args:
        student: learns; tells its frames apart from ``student_input``.
        teacher: any frame model with a grid of patches; it sees the whole picture.
        student_input: normalisation of the frames in the batch, (B, 3, 1, S, S).
        teacher_input: what the teacher wants to see.
        mask_share: of the patches; EVA-02 masks 0.4.
    """

    def __init__(
        self,
        student: FrameBackbone,
        teacher: FrameBackbone,
        student_input: InputSpec,
        teacher_input: InputSpec,
        mask_share: float = 0.4,
    ) -> None:
        super().__init__()
        if not 0 < mask_share < 1:
            raise UserError(f"mask_share is {mask_share}; give a share between 0 and 1.")
        self.student, self.teacher = student, teacher.requires_grad_(False)
        self.student_input, self.teacher_input, self.mask_share = student_input, teacher_input, mask_share
        self.project = nn.Linear(student.config.width, teacher.config.width)
        patch = student.config.patch_px
        self.mask_pixels = nn.Parameter(torch.zeros(3, patch, patch))

    def train(self, mode: bool = True) -> "MaskedFeatures":
        """Set the student's mode; the teacher never drops anything."""
        super().train(mode)
        self.teacher.eval()
        return self

    def forward(self, batch: tuple[Tensor, Tensor], part: object, step: int) -> dict[str, Tensor]:
        """The loss at masked patches; targets in the batch are not read."""
        frames = batch[0]
        config = self.student.config
        side = config.image_px // config.patch_px
        mask = block_mask(len(frames), side, self.mask_share).to(frames.device)
        pixels = mask.repeat_interleave(config.patch_px, 1).repeat_interleave(config.patch_px, 2)
        hidden = self.mask_pixels.repeat(1, side, side).to(frames.dtype)
        shown = torch.where(pixels[:, None, None], hidden[:, None], frames)
        predicted = self.project(self.student(shown).patches[:, 0])  # (B, h, w, D of the teacher)
        cosine = F.cosine_similarity(predicted.float(), self.targets(frames, side), dim=-1)
        return {"loss": 1 - cosine[mask].mean()}

    @torch.no_grad()
    def targets(self, frames: Tensor, side: int) -> Tensor:
        """The teacher's features (B, side, side, D), layer-normalised without weights."""
        spec, wanted = self.student_input, self.teacher_input
        mean, std, to_mean, to_std = (
            frames.new_tensor(v)[:, None, None] for v in (spec.mean, spec.std, wanted.mean, wanted.std)
        )
        pictures = (frames[:, :, 0] * std + mean - to_mean) / to_std
        if pictures.shape[-1] != wanted.size_px:
            pictures = F.interpolate(pictures, size=(wanted.size_px,) * 2, mode="bilinear", antialias=True)
        features = self.teacher(pictures[:, :, None]).patches[:, 0].float()
        if features.shape[1] != side:
            features = F.interpolate(features.permute(0, 3, 1, 2), size=(side, side), mode="bilinear")
            features = features.permute(0, 2, 3, 1)
        return F.layer_norm(features, features.shape[-1:])


def block_mask(batch: int, side: int, share: float) -> Tensor:
    """Masks (B, side, side) bool of rectangles that together cover exactly ``share`` of the patches, rounded.

    Rectangles have 1/16 to 1/4 of the patches and sides in the ratio 0.3 to 3.3 (BEiT, arXiv 2106.08254, algorithm 1);
    the last one is as small as it must be for the exact number. Draws come from torch's generator.
    """
    wanted = max(1, round(share * side * side))
    masks = torch.zeros(batch, side, side, dtype=torch.bool)
    for mask in masks:
        while (missing := wanted - int(mask.sum())) > 0:
            area = min(missing, side * side * float(torch.empty(()).uniform_(1 / 16, 1 / 4)))
            ratio = math.exp(float(torch.empty(()).uniform_(math.log(0.3), -math.log(0.3))))
            h, w = (min(side, max(1, round(math.sqrt(area * r)))) for r in (ratio, 1 / ratio))
            top, left = (int(torch.randint(side - n + 1, ())) for n in (h, w))
            new = torch.zeros_like(mask)
            new[top : top + h, left : left + w] = True
            places = (new & ~mask).nonzero()[:missing]
            mask[places[:, 0], places[:, 1]] = True
    return masks


def adapt_masked(module: MaskedFeatures, data: FrameCorpus, config: AdaptConfig, out: str | Path) -> Iterator[Record]:
    """Train the student of ``module`` without labels, in place; yields a record per step.

    Raises:
        UserError: the folder holds a run with other settings or other data; also as `endofm_lab.training.loop.train`.
    """
    per_epoch = math.ceil(len(data) / config.batch)
    optimiser = AdaBelief(parameter_groups(module), lr=config.lr, eps=1e-16, weight_decay=config.weight_decay)

    def schedule(step: int) -> dict[str, float]:
        return {"lr": config.lr * config.lr_decay ** (step // per_epoch), "weight_decay": config.weight_decay}

    loop = LoopConfig(
        steps=config.epochs * per_epoch,
        batch=config.batch,
        clip=config.clip,
        seed=config.seed,
        save_every=per_epoch,
        workers=config.workers,
        precision=config.precision,
    )
    with claim(out, _request(module, data, config), "a run", record=CONFIG):
        yield from train(module, optimiser, schedule, data, loop, out)


def _request(module: Trainable, data: FrameCorpus, config: AdaptConfig) -> dict[str, Any]:
    """What the run's numbers depend on."""
    return {
        "stage": type(module).__name__,
        **{name: value for name, value in asdict(config).items() if name != "workers"},
        "data": data.manifest.fingerprint,
        "split": data.split,
        "classes": list(data.classes),
        "balanced": data.balanced,
        "augmented": data.augment,
    }
