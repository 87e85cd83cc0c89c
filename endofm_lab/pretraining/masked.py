"""Masked token modelling in addition to self-distillation: the objective of EndoFM-LV.

Written from iBOT (arXiv 2111.07832, section 3): the student sees global views with blocks of patches replaced by a mask
token, and at those patches it predicts the teacher's output for the whole view. One head serves CLS and patches.
"""

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from endofm_lab.errors import UserError
from endofm_lab.model.encoder import Encoder, VideoTokens
from endofm_lab.model.transformer import BackboneConfig
from endofm_lab.pretraining.dino import CURVES, Centre, Dino, DinoConfig, teacher_targets
from endofm_lab.pretraining.objective import Objective, Signs

if TYPE_CHECKING:
    from endofm_lab.pretraining.config import PretrainConfig


@dataclass(frozen=True)
class MaskConfig(Objective):
    """The share of masked patches and the weight of their loss, in addition to the settings of `DinoConfig`.

    Attributes:
        weight: weight of the patch loss relative to the DINO loss.
        share: smallest and largest share of masked patches in a frame; drawn once per clip.
        probability: probability that a clip is masked at all.
    """

    name: ClassVar[str] = "masked"
    words: ClassVar[str] = "self-distillation and masked tokens (EndoFM-LV)"
    depends_on_length: ClassVar[str] = "the momentum of its teacher"

    weight: float = 1.0
    share: tuple[float, float] = (0.1, 0.5)
    probability: float = 0.5

    def __post_init__(self) -> None:
        if not (0 < self.share[0] <= self.share[1] < 1 and 0 <= self.probability <= 1 and self.weight >= 0):
            raise UserError(
                f"share is {self.share}, probability {self.probability}, weight {self.weight}; give shares between 0 "
                "and 1, a probability from 0 to 1 and a weight of 0 or more."
            )

    def backbone(self, config: Any) -> Any:
        """The backbone with a mask token.

        Raises:
            UserError: the backbone is not a video transformer.
        """
        if not isinstance(config, BackboneConfig):
            raise UserError(
                "The objective masked needs the mask token of a video transformer. For image models, choose the "
                "objective features."
            )
        return replace(config, mask_token=True)

    def signs(self, config: "PretrainConfig") -> Signs:
        """The signs of `DinoConfig`, with the patch loss."""
        curves = CURVES | {"Loss": (*CURVES["Loss"], "L_patch")}
        return replace(config.dino.signs(config), curves=curves)

    def build(self, backbone: Encoder, config: "PretrainConfig", steps: int, steps_per_epoch: int) -> "Masked":
        """Student and teacher with their heads."""
        return Masked(backbone, config.dino, self, steps, steps_per_epoch)


class Masked(Dino):
    """`Dino` on masked global views, plus the patch loss ``L_patch``; the backbone needs a mask token.

    A mask covers the same patches in all frames of a view, because neighbouring frames would reveal the target.
    """

    def __init__(
        self, backbone: Encoder, config: DinoConfig, masking: MaskConfig, steps: int, steps_per_epoch: int
    ) -> None:
        super().__init__(backbone, config, steps, steps_per_epoch)
        self.masking = masking
        self.patch_centre = Centre(config.prototypes, config.centre_momentum)
        self._masks: list[Tensor] = []  # per global view (B, T, h, w) bool
        self._patches: list[Tensor] = []  # per global view, the teacher's features of the masked patches (M, D)

    def parts(self, batch: Any) -> list[list[int]]:
        """One part of all local views, with equal shapes side by side, and a part for each global view and its mask."""
        local = sorted(range(2, len(batch)), key=lambda view: batch[view].shape)
        return ([local] if local else []) + [[0], [1]]

    def forward(self, batch: Any, part: int, step: int) -> dict[str, Tensor]:
        """As `Dino.forward`, with ``L_patch``, the mean cross-entropy at masked patches."""
        views = self.parts(batch)[part]
        if views[0] >= 2:
            return super().forward(batch, part, step)
        measures = self._compute_targets(batch, step) if part == 0 else {}
        view = views[0]
        tokens = self.student["backbone"](batch[view], mask=self._masks[view])
        losses = self._match(tokens.pooled(), views, len(batch))
        patch_loss = self._patch_loss(tokens, view, step) / 2  # the mean over two views
        losses["loss"] = losses["loss"] + self.masking.weight * patch_loss
        return losses | {"L_patch": patch_loss.detach()} | measures

    @torch.no_grad()
    def _compute_targets(self, batch: Any, step: int) -> dict[str, Tensor]:
        tokens = [self.teacher["backbone"](view) for view in batch[:2]]
        self._masks = [self._draw_mask(t.patches) for t in tokens]
        self._patches = [t.patches[mask] for t, mask in zip(tokens, self._masks, strict=True)]
        return self._set_targets([t.pooled() for t in tokens], step)

    def _draw_mask(self, patches: Tensor) -> Tensor:
        B, T, h, w, _ = patches.shape
        masks = torch.zeros(B, h, w, dtype=torch.bool)
        low, high = self.masking.share
        for clip in masks:
            if torch.rand(()) < self.masking.probability:
                clip.copy_(block_mask(1, h, float(low + (high - low) * torch.rand(())))[0])
        return masks[:, None].expand(B, T, h, w).to(patches.device)

    def _patch_loss(self, tokens: VideoTokens, view: int, step: int) -> Tensor:
        """Mean over the masked patches of H(teacher, student)."""
        student = self.student["head"](tokens.patches[self._masks[view]]).float()  # (M, K)
        if not len(student):
            return student.sum()  # 0, which still has a gradient for every weight
        with torch.no_grad():
            teacher = self.teacher["head"](self._patches[view])
            targets = teacher_targets(teacher, self.patch_centre.value, self.temperature(step))
            self.patch_centre.collect(teacher)
        s = student / self.config.student_temperature
        return (s.logsumexp(dim=-1) - (targets * s).sum(dim=-1)).mean()

    def before_step(self, step: int) -> None:
        """Discard the sums of a step that was interrupted."""
        super().before_step(step)
        self.patch_centre.reset()

    def after_step(self, step: int) -> dict[str, float]:
        """Update both centres and the teacher."""
        if self.config.centring:
            self.patch_centre.update()
        return super().after_step(step)


def block_mask(batch: int, side: int, share: float) -> Tensor:
    """Masks (B, side, side) bool of rectangles that together cover exactly ``share`` of the patches, rounded.

    Rectangles have 1/16 to 1/4 of the patches and sides in the ratio 0.3 to 3.3 (BEiT, arXiv 2106.08254, algorithm 1);
    the last one is cut to reach the exact number. Draws come from torch's generator.
    """
    n_masked = max(1, round(share * side * side))
    masks = torch.zeros(batch, side, side, dtype=torch.bool)
    for mask in masks:
        while (missing := n_masked - int(mask.sum())) > 0:
            area = min(missing, side * side * float(torch.empty(()).uniform_(1 / 16, 1 / 4)))
            ratio = math.exp(float(torch.empty(()).uniform_(math.log(0.3), -math.log(0.3))))
            h, w = (min(side, max(1, round(math.sqrt(area * r)))) for r in (ratio, 1 / ratio))
            top, left = (int(torch.randint(side - n + 1, ())) for n in (h, w))
            new = torch.zeros_like(mask)
            new[top : top + h, left : left + w] = True
            places = (new & ~mask).nonzero()[:missing]
            mask[places[:, 0], places[:, 1]] = True
    return masks
