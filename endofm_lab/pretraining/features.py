"""Features of a frozen teacher: the student predicts them at hidden blocks of a picture.

This is masked image modelling as in EVA-02 (arXiv 2303.11331), for image models that continue from other weights and
for any backbone with a grid of patches.
"""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from endofm_lab.errors import UserError
from endofm_lab.model.encoder import Encoder
from endofm_lab.model.frame import build_frame_backbone, frame_config, frame_input
from endofm_lab.model.loading.load import load_model
from endofm_lab.pretraining.masked import block_mask
from endofm_lab.pretraining.objective import RECENT, Learner, Objective, Queue, Signs
from endofm_lab.pretraining.views import ViewSpec
from endofm_lab.video.transforms import InputSpec

if TYPE_CHECKING:
    from endofm_lab.pretraining.config import PretrainConfig


@dataclass(frozen=True)
class FeatureConfig(Objective):
    """The teacher whose features are predicted, and the share of hidden patches.

    Attributes:
        teacher: folder of a model, or a file of weights of the image model ``teacher_model``; "hub" fetches them.
        teacher_model: name in timm of the architecture of such weights.
        share: share of a picture's patches that are hidden; EVA-02 hides 0.4.
    """

    name: ClassVar[str] = "features"
    words: ClassVar[str] = "features of a frozen teacher at hidden patches (EVA-02)"
    depends_on_length: ClassVar[str] = ""

    teacher: str = ""
    teacher_model: str | None = None
    share: float = 0.4

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise UserError(f"share is {self.share}; give a share between 0 and 1.")

    def views(self, spec: ViewSpec) -> ViewSpec:
        """The two global views, without local views."""
        return replace(spec, local_frames=())

    def signs(self, config: "PretrainConfig") -> Signs:
        """The loss lies between 0 and 2; a collapse shows in the features."""
        return Signs()

    def sources(self) -> dict[str, str]:
        """The teacher's weights."""
        return {"teacher_weights": self.teacher}

    def check(self) -> None:
        """Refuse a configuration without a teacher."""
        if not self.teacher:
            raise UserError(
                "The objective features has no teacher: set features.teacher to a model's folder, or to a file of "
                "weights or 'hub' with features.teacher_model."
            )

    def build(self, backbone: Encoder, config: "PretrainConfig", steps: int, steps_per_epoch: int) -> "Features":
        """The student and its teacher.

        Raises:
            CheckpointError: the teacher cannot be read.
        """
        teacher, teacher_input = self._teacher(config.views.global_px // backbone.patch_px)
        return Features(backbone, teacher, config.views.input, teacher_input, self.share)

    def _teacher(self, side: int) -> tuple[Encoder, InputSpec]:
        """The teacher and its input: for an image model, pictures with ``side`` x ``side`` patches."""
        if self.teacher_model is None:
            model = load_model(self.teacher)
            return model.backbone, model.card.input
        px = side * frame_config(self.teacher_model).patch_px
        teacher, _ = build_frame_backbone(self.teacher_model, self.teacher, px)
        return teacher, frame_input(teacher.config)


class Features(Learner):
    """A student that predicts a frozen teacher's features of hidden patches; the run saves the student.

    Hidden patches are replaced by a learned patch of pixels, which through a linear patch embedding is a learned mask
    token; the same patches are hidden in all frames of a view. The loss is one minus the cosine between the student's
    projected feature and the teacher's layer-normalised one, at hidden patches only.

    Args:
        student: the encoder that learns.
        teacher: any encoder with a grid of patches; it sees whole pictures.
        student_input: normalisation of the views.
        teacher_input: size and normalisation of the teacher's pictures.
        share: share of the patches that are hidden.
    """

    def __init__(
        self, student: Encoder, teacher: Encoder, student_input: InputSpec, teacher_input: InputSpec, share: float
    ) -> None:
        super().__init__()
        self.student, self.teacher = student, teacher.requires_grad_(False)
        self.student_input, self.teacher_input, self.share = student_input, teacher_input, share
        self.project = nn.Linear(student.width, teacher.width)
        self.mask_pixels = nn.Parameter(torch.zeros(3, student.patch_px, student.patch_px))
        self.recent = Queue(RECENT, student.width)

    def train(self, mode: bool = True) -> "Features":
        """Set the student's mode; the teacher stays in evaluation mode."""
        super().train(mode)
        self.teacher.eval()
        return self

    def kept(self) -> Encoder:
        """The student."""
        return self.student

    def backbones(self) -> list[Encoder]:
        """The student."""
        return [self.student]

    def parts(self, batch: Any) -> list[int]:
        """One part per view."""
        return list(range(len(batch)))

    def forward(self, batch: Any, part: int, step: int) -> dict[str, Tensor]:
        """The share of one view (B, 3, T, S, S) in the mean loss of all views, at its hidden patches."""
        frames, patch = batch[part], self.student.patch_px
        side = frames.shape[-1] // patch
        mask = block_mask(len(frames), side, self.share).to(frames.device)  # (B, h, w)
        pixels = mask.repeat_interleave(patch, 1).repeat_interleave(patch, 2)
        hidden = self.mask_pixels.repeat(1, side, side).to(frames.dtype)
        tokens = self.student(torch.where(pixels[:, None, None], hidden[:, None], frames))
        predicted = self.project(tokens.per_frame())  # (B, T, h, w, D of the teacher)
        cosine = F.cosine_similarity(predicted.float(), self.targets(frames, side), dim=-1)
        if part == 0:
            self.recent.push(tokens.patches.detach().float().mean(dim=(1, 2, 3)))
        # Processes wait for the gradient of every tensor, including those that only the clip's feature depends on.
        loss = 1 - cosine[mask[:, None].expand_as(cosine)].mean() + 0 * tokens.pooled().sum()
        return {"loss": loss / len(batch)}

    @torch.no_grad()
    def targets(self, frames: Tensor, side: int) -> Tensor:
        """The teacher's features (B, T, side, side, D) of views (B, 3, T, S, S), layer-normalised without weights."""
        spec, target_spec = self.student_input, self.teacher_input
        mean, std, to_mean, to_std = (
            frames.new_tensor(v)[:, None, None, None] for v in (spec.mean, spec.std, target_spec.mean, target_spec.std)
        )
        clip = (frames * std + mean - to_mean) / to_std
        B, _, T, S, _ = clip.shape
        if target_spec.size_px != S:
            pictures = clip.transpose(1, 2).flatten(0, 1)  # (B T, 3, S, S)
            pictures = F.interpolate(pictures, size=(target_spec.size_px,) * 2, mode="bilinear", antialias=True)
            clip = pictures.unflatten(0, (B, T)).transpose(1, 2)
        features = self.teacher(clip).per_frame().float()
        if features.shape[2] != side:
            grids = features.flatten(0, 1).permute(0, 3, 1, 2)
            grids = F.interpolate(grids, size=(side, side), mode="bilinear")
            features = grids.permute(0, 2, 3, 1).unflatten(0, (B, T))
        return F.layer_norm(features, features.shape[-1:])
