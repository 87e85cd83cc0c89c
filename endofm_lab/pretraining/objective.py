"""The contract of an objective, and the parts that objectives share: a student, a teacher and a queue of features.

An objective is one file: a frozen dataclass of settings, which describes the objective before any network exists
(`Objective`), and the networks that it trains (`Learner`). `endofm_lab.pretraining.config.OBJECTIVES` is the table of
the objectives that a configuration can name; any other object with this contract is given to
``pretrain(config, objective=...)``.
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
    """The signs of health in an objective's log, as plain values, which the run folder keeps for reports and the app.

    Attributes:
        curves: title of a figure -> the values of the log that it shows.
        prototypes: number of outputs K of a head that gives probabilities; None for an objective without such a head.
            With prototypes, the log must hold "teacher_entropy" and "prototypes_used".
        loss: value of the log that shows divergence; with prototypes it is a cross-entropy, at most ln K on average.
        least: values of the log that fall to 0 when all clips get the same feature -> the limit below which the run
            counts as collapsed.
        advice: remedies to try after such a collapse.
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
        depends_on_length: its own values that depend on the number of steps of the run, in words; "" if there are none.
            Only a run of an objective without such values can be extended.
    """

    name: ClassVar[str]
    words: ClassVar[str]
    depends_on_length: ClassVar[str] = "values of its objective"

    def backbone(self, config: Any) -> Any:
        """The configuration of the backbone (`BackboneConfig`, `FrameConfig`, ...), adapted to the objective.

        Raises:
            UserError: the objective cannot work with this backbone.
        """
        return config

    def views(self, spec: ViewSpec) -> ViewSpec:
        """The views, adapted to the objective, without those that it does not use."""
        return spec

    def signs(self, config: "PretrainConfig") -> Signs:
        """The signs of health in the log of a run with this configuration."""
        return Signs()

    def sources(self) -> dict[str, str]:
        """Weights that the objective reads in addition to the start, by name; a changed file makes another run."""
        return {}

    def check(self) -> None:
        """Check the settings before a run begins and its folder is written.

        Raises:
            UserError: a setting without a usable default is missing.
        """

    def build(self, backbone: Encoder, config: "PretrainConfig", steps: int, steps_per_epoch: int) -> "Learner":
        """The networks to train, with the whole state that a checkpoint needs.

        Args:
            backbone: an initialised backbone, which becomes part of the result.
            config: configuration of the run.
            steps: number of updates in the whole run, for schedules.
            steps_per_epoch: number of updates in which every clip is seen once.
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
        """Add rows (N, D), which replace the oldest rows of a full queue."""
        rows = rows[-len(self.ring) :]
        positions = (self.pushed + torch.arange(len(rows), device=self.ring.device)) % len(self.ring)
        self.ring[positions] = rows.to(self.ring.dtype)
        self.pushed += len(rows)

    def rows(self) -> Tensor:
        """The rows in the queue, (N, D), in no particular order."""
        return self.ring[: int(self.pushed)]


class Learner(Trainable):
    """The networks of an objective; a batch is a list of views, each (B, 3, T, H, W), with the two global views first.

    Attributes:
        recent: features (N, D) of the last clips, for the run's health.
    """

    recent: Queue

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(name for name, _ in self.named_children())}: {self.kept()!r})"

    def kept(self) -> Encoder:
        """The backbone that the run produces; it is probed during the run and saved at the end."""
        raise NotImplementedError

    def backbones(self) -> list[Encoder]:
        """The backbones that are trained; they are compiled if the configuration sets ``compile``."""
        raise NotImplementedError

    def units(self) -> list[nn.Module]:
        """The blocks of all transformer backbones, including those of a frozen teacher."""
        return [
            block for module in self.modules() if isinstance(module, Encoder) for block in module.attention_blocks()
        ]


class StudentTeacher(Learner):
    """A student with a head, and a teacher of the same shape that gets no gradients. The run saves the teacher."""

    def __init__(self, backbone: Encoder, head: nn.Module) -> None:
        super().__init__()
        self.student = nn.ModuleDict({"backbone": backbone, "head": head})
        self.teacher = make_teacher(self.student)
        self.recent = Queue(RECENT, backbone.config.width)

    def train(self, mode: bool = True) -> "StudentTeacher":
        """Set the student's mode; the teacher stays in evaluation mode, without drop path."""
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
    """A copy in evaluation mode that takes no gradient."""
    teacher = copy.deepcopy(student)
    teacher.requires_grad_(False)
    return teacher.eval()


@torch.no_grad()
def follow(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """Teacher <- momentum * teacher + (1 - momentum) * student, parameter by parameter."""
    torch._foreach_lerp_(list(teacher.parameters()), [p.detach() for p in student.parameters()], 1 - momentum)
