"""Video-level contrast: two clips of a video, augmented in time and space, are matched among clips of other videos.

This is the baseline VCL of Endo-FM's paper (arXiv 2203.14465), implemented with MoCo's momentum encoder and queue
(1911.05722), which provides enough other videos when a batch is small.
"""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from endofm_lab.errors import UserError
from endofm_lab.model.encoder import Encoder
from endofm_lab.pretraining.objective import Objective, Queue, Signs, StudentTeacher, follow
from endofm_lab.pretraining.views import ViewSpec
from endofm_lab.training.schedules import cosine

if TYPE_CHECKING:
    from endofm_lab.pretraining.config import PretrainConfig


@dataclass(frozen=True)
class ContrastConfig(Objective):
    """The settings of the contrast.

    Attributes:
        width: width of the vectors that are compared.
        hidden: width of the projection's hidden layer.
        temperature: divisor of the cosines; 0.2 in MoCo v2.
        queue: number of keys of earlier batches, which serve as negatives.
        momentum: share of the old key encoder in the new one at step 0; it grows to 1 along a cosine.
    """

    name: ClassVar[str] = "vcl"
    words: ClassVar[str] = "contrast of videos"
    depends_on_length: ClassVar[str] = "the momentum of its key encoder"

    width: int = 128
    hidden: int = 2048
    temperature: float = 0.2
    queue: int = 4096
    momentum: float = 0.996

    def __post_init__(self) -> None:
        if self.width < 1 or self.hidden < 1:
            raise UserError(f"width is {self.width}, hidden {self.hidden}; give widths of at least 1.")
        if not (self.temperature > 0 and self.queue > 0 and 0 <= self.momentum <= 1):
            raise UserError(
                f"temperature is {self.temperature}, queue {self.queue}, momentum {self.momentum}; give a temperature "
                "and a queue above 0 and a momentum from 0 to 1."
            )

    def views(self, spec: ViewSpec) -> ViewSpec:
        """The two global views."""
        return replace(spec, local_frames=())

    def signs(self, config: "PretrainConfig") -> Signs:
        """Without prototypes a run cannot collapse onto one; the verdict rests on its features."""
        return Signs({"Loss": ("loss", "found")})

    def build(self, backbone: Encoder, config: "PretrainConfig", steps: int, steps_per_epoch: int) -> "VCL":
        """Query and key encoder with their projections."""
        return VCL(backbone, self, steps)


def info_nce(
    queries: Tensor, keys: Tensor, negatives: Tensor, positives: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """L = -mean_b log( exp(q_b k_own(b) / t) / sum_j exp(q_b k_j / t) ) over all keys and negatives; unit vectors.

    Args:
        queries: (B, D), with gradient.
        keys: (N, D), keys of the whole batch; row ``own[b]`` belongs to the video of query b.
        negatives: (M, D), keys of other videos.
        positives: (B,) int64, row of the own key of each query.
        temperature: divisor of the cosines.

    Returns:
        The loss, and the share of queries whose nearest key is their own.
    """
    logits = queries.float() @ torch.cat([keys, negatives]).float().t() / temperature  # (B, N + M)
    return F.cross_entropy(logits, positives), (logits.argmax(dim=1) == positives).float().mean()


class VCL(StudentTeacher):
    """Query and key encoder with projections; a batch is two global views, each (B, 3, T, H, W)."""

    def __init__(self, backbone: Encoder, config: ContrastConfig, steps: int) -> None:
        D = backbone.config.width
        # Features are standardised over the batch of a process (MoCo v3 has batch norms in its projection, 2104.02057).
        # Otherwise the part that all clips share dominates every key at first, and a short training cannot unlearn it.
        standardise = nn.BatchNorm1d(D, affine=False, track_running_stats=False)
        head = nn.Sequential(
            standardise, nn.Linear(D, config.hidden), nn.GELU(), nn.Linear(config.hidden, config.width)
        )
        super().__init__(backbone, head)
        self.config, self.steps = config, steps
        self.queue = Queue(config.queue, config.width)
        self._keys: Tensor | None = None  # (2, N, D) of all processes
        self._fresh: list[Tensor] = []  # keys since the last step

    def parts(self, batch: Any) -> list[int]:
        """One part per view."""
        return [0, 1]

    def forward(self, batch: Any, part: int, step: int) -> dict[str, Tensor]:
        """Half the loss: the queries are of view ``part``, the keys of the other view.

        Raises:
            UserError: a process got a single clip, which has no negatives.
        """
        if len(batch[0]) < 2:
            raise UserError("vcl got one clip at a time; give a batch of at least 2 for each process and accumulation.")
        if part == 0:
            self._compute_keys(batch)
        assert self._keys is not None
        B = len(batch[part])
        queries = F.normalize(self.student["head"](self.student["backbone"](batch[part]).pooled()).float(), dim=-1)
        rank = dist.get_rank() if _distributed() else 0
        positives = rank * B + torch.arange(B, device=queries.device)
        negatives = self.queue.rows()
        loss, accuracy = info_nce(queries, self._keys[1 - part], negatives, positives, self.config.temperature)
        return {"loss": loss / 2, "found": accuracy / 2}

    @torch.no_grad()
    def _compute_keys(self, batch: Any) -> None:
        features = [self.teacher["backbone"](view).pooled() for view in batch[:2]]
        self.recent.push(features[0].float())
        keys = F.normalize(torch.stack([self.teacher["head"](x) for x in features]).float(), dim=-1)  # (2, B, D)
        if _distributed():
            pieces = [torch.empty_like(keys) for _ in range(dist.get_world_size())]
            dist.all_gather(pieces, keys.contiguous())
            keys = torch.cat(pieces, dim=1)
        self._keys = keys
        self._fresh.append(keys.flatten(0, 1))

    def before_step(self, step: int) -> None:
        """Discard the keys of a step that was interrupted."""
        self._fresh = []

    def after_step(self, step: int) -> dict[str, float]:
        """Queue the keys for later batches and update the key encoder; "others" counts the negatives of each clip."""
        n_negatives = len(self._fresh[-1]) // 2 - 1 + len(self.queue.rows())
        for keys in self._fresh:
            self.queue.push(keys)
        momentum = cosine(step, self.config.momentum, 1.0, self.steps)
        follow(self.teacher, self.student, momentum)
        return {"momentum": momentum, "others": n_negatives}


def _distributed() -> bool:
    return dist.is_available() and dist.is_initialized()
