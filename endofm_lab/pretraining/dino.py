"""Self-distillation between views: the objective of Endo-FM.

Written from DINO (arXiv 2104.14294, section 3 and algorithm 1), SVT (2112.01514) and Endo-FM (2306.16741, section 2).
Letters: V student views, G global (teacher) views, B clips, K prototypes, D width.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from endofm_lab.errors import UserError
from endofm_lab.model.encoder import Encoder
from endofm_lab.pretraining.objective import Objective, Signs, StudentTeacher, follow
from endofm_lab.training.schedules import cosine, linear

if TYPE_CHECKING:
    from endofm_lab.pretraining.config import PretrainConfig

CURVES = {
    "Loss": ("loss", "L_dm", "L_cv"),
    "Teacher (nats)": ("teacher_entropy", "kl_to_uniform"),
    "Prototypes used in a batch": ("prototypes_used",),
    "Centre norm": ("centre_norm",),
}
_ADVICE = (
    "a lower teacher temperature (0.04), a teacher momentum nearer to 1 (0.996), a lower learning rate with a longer "
    "warm-up, fewer prototypes for little data; in the first epochs this can also be just the start."
)


@dataclass(frozen=True)
class DinoConfig(Objective):
    """The settings of the objective; the defaults are those of Endo-FM.

    Attributes:
        prototypes: number of outputs K of the projection head.
        hidden: width of the head's hidden layers.
        bottleneck: width of the normalised vector that is compared with the prototypes.
        student_temperature: divisor of the student's logits.
        teacher_temperature: divisor of the teacher's centred logits; a lower value gives sharper targets.
        teacher_temperature_start: teacher temperature at step 0 of the warm-up.
        teacher_temperature_epochs: epochs of the linear warm-up of the teacher temperature; 0 for none.
        centre_momentum: share of the old centre in the new one at each step.
        momentum: share of the old teacher in the new one at step 0; it grows to 1 along a cosine.
        frozen_epochs: epochs in which the prototypes are frozen.
        centring: False leaves the centre at zero, to observe the collapse that centring prevents.
    """

    name: ClassVar[str] = "dino"
    words: ClassVar[str] = "self-distillation between views, with prototypes (Endo-FM)"
    depends_on_length: ClassVar[str] = "the momentum of its teacher"

    prototypes: int = 65_536
    hidden: int = 2048
    bottleneck: int = 256
    student_temperature: float = 0.1
    teacher_temperature: float = 0.04
    teacher_temperature_start: float = 0.04
    teacher_temperature_epochs: float = 0
    centre_momentum: float = 0.9
    momentum: float = 0.996
    frozen_epochs: float = 1
    centring: bool = True

    def __post_init__(self) -> None:
        for name in ("student_temperature", "teacher_temperature", "teacher_temperature_start"):
            if not getattr(self, name) > 0:
                raise UserError(f"{name} is {getattr(self, name)}; a temperature must be above 0.")
        for name in ("centre_momentum", "momentum"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"{name} is {getattr(self, name)}; give a number from 0 to 1.")
        if self.hidden < 1 or self.bottleneck < 1:
            raise UserError(f"hidden is {self.hidden}, bottleneck {self.bottleneck}; give widths of at least 1.")
        if self.prototypes < 2:
            raise UserError(f"prototypes is {self.prototypes}; at least 2 are needed to tell anything apart.")

    def signs(self, config: "PretrainConfig") -> Signs:
        """Health is read from the loss between two global views, because its upper limit is ln K."""
        return Signs(CURVES, prototypes=self.prototypes, loss="L_dm", advice=_ADVICE)

    def build(self, backbone: Encoder, config: "PretrainConfig", steps: int, steps_per_epoch: int) -> "Dino":
        """Student and teacher with their heads."""
        return Dino(backbone, self, steps, steps_per_epoch)


class ProjectionHead(nn.Module):
    """Features (..., D) -> logits (..., K): cosines between a bottleneck of the feature and K prototypes.

    Three linear maps with GELU between, L2 normalisation, and a linear map without bias whose rows have length 1: the
    weight normalisation of the paper with its norm fixed at 1.
    """

    def __init__(self, width: int, prototypes: int, hidden: int = 2048, bottleneck: int = 256) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU(), nn.Linear(hidden, bottleneck)
        )
        self.last_layer = nn.Linear(bottleneck, prototypes, bias=False)  # only the directions of its rows matter
        for layer in self.mlp[::2]:
            assert isinstance(layer, nn.Linear)
            nn.init.trunc_normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Features (..., D) -> logits over the prototypes (..., K)."""
        prototypes = self.last_layer.weight
        # Dividing K products is cheaper than dividing the K x 256 weights.
        return F.linear(F.normalize(self.mlp(x), dim=-1), prototypes) / prototypes.norm(dim=-1)


def teacher_targets(logits: Tensor, centre: Tensor, temperature: float) -> Tensor:
    """The targets of the teacher: softmax((logits - centre) / temperature) in float32, (..., K), without gradient."""
    return ((logits.detach().float() - centre) / temperature).softmax(dim=-1)


def cross_entropies(student: Tensor, targets: Tensor, temperature: float) -> Tensor:
    """Mean over clips of H(targets_g, softmax(student_v / temperature)), every pair: (V, B, K), (G, B, K) -> (V, G).

    H(p, q) = -sum_k p_k log q_k = logsumexp(s) - sum_k p_k s_k, with s the student's logits over their temperature.
    This form needs no tensor of log-probabilities, which at 65,536 prototypes takes most of the head's memory.
    """
    s = student.float() / temperature
    return s.logsumexp(dim=-1).mean(dim=1)[:, None] - torch.einsum("vbk,gbk->vg", s, targets) / s.shape[1]


def dino_loss(
    student: Tensor, teacher: Tensor, centre: Tensor, student_temperature: float, teacher_temperature: float
) -> dict[str, Tensor]:
    """The loss of one batch, L = mean over pairs v != g of H(teacher_g, student_v), and its two parts.

    Args:
        student: logits (V, B, K) of all views; the first G are the teacher's global views.
        teacher: logits (G, B, K); no gradient flows into them.
        centre: (K,), subtracted from the teacher's logits.
        student_temperature: temperature of the student's softmax.
        teacher_temperature: temperature of the teacher's softmax.

    Returns:
        "loss"; "L_dm", its mean over pairs of two global views (dynamic motion matching); "L_cv", its mean over pairs
        of a local and a global view (cross-view matching), 0 without local views.

    Source:
        Endo-FM, equations 1 and 2; 18 terms for ten views.
    """
    targets = teacher_targets(teacher, centre, teacher_temperature)
    return matching_losses(student, targets, range(len(student)), len(student), student_temperature)


def matching_losses(
    student: Tensor, targets: Tensor, views: Sequence[int], n_views: int, temperature: float
) -> dict[str, Tensor]:
    """The share of some student views (V', B, K) in the losses of `dino_loss`; the shares of all views add up to them.

    ``views`` are the positions of the student's views among the ``n_views``; the first G are the teacher's views.
    """
    G = len(targets)
    terms = cross_entropies(student, targets, temperature)  # (V', G)
    position = torch.as_tensor(list(views), device=terms.device)
    different = position[:, None] != torch.arange(G, device=terms.device)  # a view is not compared with itself
    terms = torch.where(different, terms, 0.0)
    dm, cv = terms[position < G].sum(), terms[position >= G].sum()
    n_dm, n_cv = G * (G - 1), (n_views - G) * G
    return {
        "loss": (dm + cv) / (n_dm + n_cv),
        "L_dm": (dm / max(n_dm, 1)).detach(),
        "L_cv": (cv / max(n_cv, 1)).detach(),
    }


class Centre(nn.Module):
    """Running mean (K,) of the teacher's logits over the clips of all processes; the same in each of them."""

    value: Tensor
    total: Tensor
    count: Tensor

    def __init__(self, prototypes: int, momentum: float) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("value", torch.zeros(prototypes))
        self.register_buffer("total", torch.zeros(prototypes), persistent=False)  # since the last step
        self.register_buffer("count", torch.zeros(1), persistent=False)

    def reset(self) -> None:
        """Discard the sums collected since the last step."""
        self.total.zero_()
        self.count.zero_()

    @torch.no_grad()
    def collect(self, logits: Tensor) -> None:
        """Add the logits (..., K) of a micro-batch to the sums."""
        rows = logits.detach().float().flatten(0, -2)
        self.total += rows.sum(dim=0)
        self.count += len(rows)

    @torch.no_grad()
    def update(self) -> None:
        """Move towards the mean of the logits of all processes since the last step: c <- m c + (1 - m) mean."""
        total, count = self.total, self.count
        if dist.is_available() and dist.is_initialized():
            sums = torch.cat([total, count])
            dist.all_reduce(sums)
            total, count = sums[:-1], sums[-1:]
        if count > 0:
            self.value.lerp_(total / count, 1 - self.momentum)
        self.reset()


class Dino(StudentTeacher):
    """Student and teacher with their heads and the centre; the teacher is the moving average of the student.

    A batch is a list of views, each (B, 3, T, H, W): first the G = 2 global ones, then the local. The loss is a sum
    over student views, so it is computed in two parts, and the activations of the first part are freed before the
    second is computed. Part 0 also computes the teacher's targets.
    """

    def __init__(self, backbone: Encoder, config: DinoConfig, steps: int, steps_per_epoch: int) -> None:
        head = ProjectionHead(backbone.config.width, config.prototypes, config.hidden, config.bottleneck)
        super().__init__(backbone, head)
        self.config, self.steps, self.steps_per_epoch = config, steps, steps_per_epoch
        self.centre = Centre(config.prototypes, config.centre_momentum)
        self._targets: Tensor | None = None  # (G, B, K) of the batch whose parts are being computed

    def parts(self, batch: Any) -> list[list[int]]:
        """Positions of the views of each part: two parts of about as many pixels, with equal shapes side by side.

        A part costs a gradient of every weight, so two parts take less time than more; one part takes twice the memory.
        """
        parts: list[list[int]] = [[], []]
        for view in sorted(range(len(batch)), key=lambda view: batch[view].numel(), reverse=True):
            min(parts, key=lambda part: sum(batch[index].numel() for index in part)).append(view)
        return [sorted(part, key=lambda view: batch[view].shape) for part in parts]

    def forward(self, batch: Any, part: int, step: int) -> dict[str, Tensor]:
        """Shares of the losses (see `matching_losses`); part 0 adds the measures of the teacher."""
        measures = self._compute_targets(batch, step) if part == 0 else {}
        assert self._targets is not None
        views = self.parts(batch)[part]
        groups = [list(group) for _, group in groupby(views, key=lambda view: batch[view].shape)]
        cls = [self.student["backbone"](torch.cat([batch[view] for view in group])).pooled() for group in groups]
        return self._match(torch.cat(cls), views, len(batch)) | measures  # of (V' B, D)

    def _match(self, features: Tensor, views: list[int], n_views: int) -> dict[str, Tensor]:
        """Shares of the losses from the student's features (V' B, D) of these views."""
        assert self._targets is not None
        logits = self.student["head"](features).unflatten(0, (len(views), -1))  # (V', B, K)
        return matching_losses(logits, self._targets, views, n_views, self.config.student_temperature)

    @torch.no_grad()
    def _compute_targets(self, batch: Any, step: int) -> dict[str, Tensor]:
        """Compute the targets of a batch; returns their measures."""
        return self._set_targets([self.teacher["backbone"](view).pooled() for view in batch[:2]], step)

    def _set_targets(self, features: list[Tensor], step: int) -> dict[str, Tensor]:
        logits = self.teacher["head"](torch.stack(features))  # (G, B, K)
        self._targets = teacher_targets(logits, self.centre.value, self.temperature(step))
        self.centre.collect(logits)
        self.recent.push(features[0].float())
        return teacher_measures(self._targets)

    def temperature(self, step: int) -> float:
        """The teacher's temperature at a step."""
        c = self.config
        warmup = round(c.teacher_temperature_epochs * self.steps_per_epoch)
        return linear(step, c.teacher_temperature_start, c.teacher_temperature, warmup)

    def before_step(self, step: int) -> None:
        """Discard the sums of a step that was interrupted."""
        self.centre.reset()

    def after_backward(self, step: int) -> None:
        """Freeze the prototypes during the first epochs."""
        if step < self.config.frozen_epochs * self.steps_per_epoch:
            self.student["head"].last_layer.weight.grad = None  # type: ignore[union-attr]

    def after_step(self, step: int) -> dict[str, float]:
        """Update centre and teacher; returns the momentum and the norm of the centre."""
        if self.config.centring:
            self.centre.update()
        momentum = cosine(step, self.config.momentum, 1.0, self.steps)
        follow(self.teacher, self.student, momentum)
        return {"momentum": momentum, "centre_norm": float(self.centre.value.norm())}


def teacher_measures(targets: Tensor) -> dict[str, Tensor]:
    """Measures of the teacher's probabilities (..., K) for a batch, in nats.

    ``teacher_entropy`` is the mean entropy of the distributions: 0 if certain, ln K if undecided. ``kl_to_uniform`` is
    ln K minus that, their mean divergence from the uniform distribution. ``prototypes_used`` is exp of the entropy of
    the mean distribution, the effective number of prototypes; 1 means that all clips get the same prototype.
    """
    p = targets.flatten(0, -2)
    entropy = -torch.special.xlogy(p, p).sum(dim=-1).mean()
    mean = p.mean(dim=0)
    return {
        "teacher_entropy": entropy,
        "kl_to_uniform": math.log(p.shape[-1]) - entropy,
        "prototypes_used": (-torch.special.xlogy(mean, mean).sum()).exp(),
    }
