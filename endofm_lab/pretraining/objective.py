"""The contract of an objective, and what objectives share: a student and a teacher that follows it.

An objective is one file: a frozen dataclass of settings, which answers questions before any network exists
(`Objective`), and the networks that learn by it (`Learner`). `endofm_lab.pretraining.config.OBJECTIVES` is the table of
those that a configuration can name; any other object with this contract goes to ``pretrain(config, objective=...)``.
"""

import copy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, cast

import torch
from torch import Tensor, nn

from endofm_lab.model.encoder import Encoder
from endofm_lab.pretraining.views import ViewSpec
from endofm_lab.training.loop import Trainable

if TYPE_CHECKING:
    from endofm_lab.pretraining.config import PretrainConfig

RECENT = 512  # clips whose features are kept for the run's health


@dataclass(frozen=True)
class Signs:
    """The meaning of an objective's log in plain values, which the run folder keeps for reports and the app.

    Attributes:
        curves: title of a figure -> the numbers of the log that it shows.
        prototypes: outputs K of a head whose answers are probabilities; None for an objective without one. The log then
            holds "teacher_entropy" and "prototypes_used".
        loss: number of the log that shows divergence; with prototypes it is a cross-entropy, at most ln K on average.
        least: numbers of the log that fall to 0 when all clips get the same answer -> below which value the run counts
            as collapsed.
        advice: what to try when a run has collapsed like that.
    """

    curves: dict[str, tuple[str, ...]] = field(default_factory=lambda: {"Loss": ("loss",)})
    prototypes: int | None = None
    loss: str = "loss"
    least: dict[str, float] = field(default_factory=lambda: {"feature_std": 0.03})
    advice: str = "a larger batch, a lower learning rate with a longer warm-up."


@dataclass(frozen=True)
class Objective:
    """The settings of an objective; a subclass adds its own as fields.

    Attributes:
        name: its name in the configuration and on the command line.
        words: its description in one line.
    """

    name: ClassVar[str]
    words: ClassVar[str]

    def backbone(self, config: Any) -> Any:
        """The configuration of the backbone (`BackboneConfig`, `FrameConfig`, ...) with what the objective needs of it.

        Raises:
            UserError: the objective cannot work with this backbone.
        """
        return config

    def views(self, spec: ViewSpec) -> ViewSpec:
        """The views with what the objective needs of them; those that it does not use are left out."""
        return spec

    def signs(self, config: "PretrainConfig") -> Signs:
        """How the log of a run with this configuration is to be read."""
        return Signs()

    def sources(self) -> dict[str, str]:
        """Weights that the objective reads besides the start, by name: the run notices when they are replaced."""
        return {}

    def check(self) -> None:
        """Called before a run begins and its folder is written.

        Raises:
            UserError: a setting without a usable default is missing.
        """

    def build(self, backbone: Encoder, config: "PretrainConfig", steps: int, steps_per_epoch: int) -> "Learner":
        """The networks that learn, with everything that a checkpoint needs.

        Args:
            backbone: initialised; it becomes part of the result.
            config: of the run.
            steps: updates of the whole run, for schedules.
            steps_per_epoch: updates in which every clip is seen once.
        """
        raise NotImplementedError


class Queue(nn.Module):
    """A ring of at most ``length`` rows (D,), float32; part of the state dict."""

    ring: Tensor
    pushed: Tensor

    def __init__(self, length: int, width: int) -> None:
        super().__init__()
        self.register_buffer("ring", torch.zeros(length, width))
        self.register_buffer("pushed", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def push(self, rows: Tensor) -> None:
        """Add rows (N, D); the oldest make room."""
        rows = rows[-len(self.ring) :]
        places = (self.pushed + torch.arange(len(rows), device=self.ring.device)) % len(self.ring)
        self.ring[places] = rows.to(self.ring.dtype)
        self.pushed += len(rows)

    def rows(self) -> Tensor:
        """The rows that are there, (N, D), in no particular order."""
        return self.ring[: int(self.pushed)]


class Learner(Trainable):
    """Networks that learn by an objective; a batch is a list of views, each (B, 3, T, H, W), the two global ones first.

    Attributes:
        recent: features (N, D) of the last clips, for the run's health.
    """

    recent: Queue

    def kept(self) -> Encoder:
        """The backbone that the run is for: it is probed, and saved at the end."""
        raise NotImplementedError

    def backbones(self) -> list[Encoder]:
        """The backbones that take gradients; they are compiled if the configuration says so."""
        raise NotImplementedError

    def units(self) -> list[nn.Module]:
        """The blocks of all backbones, a frozen teacher's too; none where a backbone is no transformer."""
        return [
            block for module in self.modules() if isinstance(module, Encoder) for block in module.attention_blocks()
        ]


class StudentTeacher(Learner):
    """A student with a head, and a teacher of the same shape that gets no gradients. The teacher is kept."""

    def __init__(self, backbone: Encoder, head: nn.Module) -> None:
        super().__init__()
        self.student = nn.ModuleDict({"backbone": backbone, "head": head})
        self.teacher = make_teacher(self.student)
        self.recent = Queue(RECENT, backbone.config.width)

    def train(self, mode: bool = True) -> "StudentTeacher":
        """Set the student's mode; the teacher drops no paths."""
        super().train(mode)
        self.teacher.eval()
        return self

    def kept(self) -> Encoder:
        """The teacher's backbone."""
        return cast(Encoder, self.teacher["backbone"])

    def backbones(self) -> list[Encoder]:
        """The student's backbone."""
        return [cast(Encoder, self.student["backbone"])]


def make_teacher(student: nn.ModuleDict) -> nn.ModuleDict:
    """A copy that takes no gradient and drops no paths."""
    teacher = copy.deepcopy(student)
    teacher.requires_grad_(False)
    return teacher.eval()


@torch.no_grad()
def follow(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """Teacher <- momentum * teacher + (1 - momentum) * student, parameter by parameter."""
    torch._foreach_lerp_(list(teacher.parameters()), [p.detach() for p in student.parameters()], 1 - momentum)
