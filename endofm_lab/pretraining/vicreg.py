"""Variance, invariance and covariance: two views agree, and terms of the loss prevent their collapse.

Written from VICReg (arXiv 2105.04906, section 4), which needs no teacher, no prototypes and no negatives.
"""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.nn.functional import all_gather

from endofm_lab.errors import UserError
from endofm_lab.model.encoder import Encoder
from endofm_lab.pretraining.objective import RECENT, Learner, Objective, Queue, Signs
from endofm_lab.pretraining.views import ViewSpec

if TYPE_CHECKING:
    from endofm_lab.pretraining.config import PretrainConfig


@dataclass(frozen=True)
class VicregConfig(Objective):
    """The settings of VICReg; the weights are those of the paper.

    Attributes:
        width: width of the embeddings in the loss; 8192 in the paper.
        hidden: width of the expander's two hidden layers; 8192 in the paper.
        invariance: weight of the distance between the two views of a clip.
        variance: weight of the term that keeps the spread of every dimension.
        covariance: weight of the redundancy between dimensions.
    """

    name: ClassVar[str] = "vicreg"
    words: ClassVar[str] = "agreement of views with variance and covariance (VICReg)"
    depends_on_length: ClassVar[str] = ""

    width: int = 2048
    hidden: int = 2048
    invariance: float = 25.0
    variance: float = 25.0
    covariance: float = 1.0

    def __post_init__(self) -> None:
        if self.width < 2 or self.hidden < 1 or min(self.invariance, self.variance, self.covariance) < 0:
            raise UserError(
                f"width is {self.width}, hidden {self.hidden}, the weights are {self.invariance}, {self.variance} and "
                f"{self.covariance}; give a width of at least 2, a hidden width above 0 and weights of 0 or more."
            )

    def views(self, spec: ViewSpec) -> ViewSpec:
        """The two global views."""
        return replace(spec, local_frames=())

    def signs(self, config: "PretrainConfig") -> Signs:
        """Collapse shows in the spread of the embeddings and in that of the features."""
        curves = {
            "Loss": ("loss",),
            "Terms of the loss, without their weights": ("invariance", "variance", "covariance"),
            "Standard deviation of the embeddings (the aim is 1)": ("embedding_std",),
        }
        advice = "a larger weight of the variance, a larger batch, a lower learning rate with a longer warm-up."
        return Signs(curves, least={"feature_std": 0.03, "embedding_std": 0.1}, advice=advice)

    def build(self, backbone: Encoder, config: "PretrainConfig", steps: int, steps_per_epoch: int) -> "Vicreg":
        """One backbone with its expander."""
        return Vicreg(backbone, self)


def vicreg_loss(a: Tensor, b: Tensor, config: VicregConfig) -> dict[str, Tensor]:
    """L = l s(a, b) + m (v(a) + v(b)) + n (c(a) + c(b)) of the embeddings of two views, each (B, D) float32.

    s: mean squared difference over clips and dimensions. v: mean over dimensions of max(0, 1 - sqrt(var_d + 1e-4)).
    c: sum of the squared covariances of two different dimensions, over D. Variances and covariances divide by B - 1.

    Returns:
        "loss"; "invariance", "variance" and "covariance", its terms without their weights; "embedding_std", the mean
        standard deviation of a dimension.

    Source:
        Equations 1 to 6. The released code halves the variance term.
    """
    B, D = a.shape
    std = torch.stack([(z.var(dim=0) + 1e-4).sqrt() for z in (a, b)])  # (2, D)
    invariance, variance = F.mse_loss(a, b), F.relu(1 - std).mean(dim=1).sum()
    covariance = a.new_zeros(())
    for z in (a, b):
        centred = z - z.mean(dim=0)
        squares = (centred.t() @ centred / (B - 1)).square()  # (D, D)
        covariance = covariance + (squares.sum() - squares.diagonal().sum()) / D
    loss = config.invariance * invariance + config.variance * variance + config.covariance * covariance
    terms = {"invariance": invariance, "variance": variance, "covariance": covariance, "embedding_std": std.mean()}
    return {"loss": loss} | {name: term.detach() for name, term in terms.items()}


class Vicreg(Learner):
    """A backbone and its expander: three linear maps with batch norm and ReLU between. The run saves the backbone."""

    def __init__(self, backbone: Encoder, config: VicregConfig) -> None:
        super().__init__()
        self.config, D, hidden = config, backbone.config.width, config.hidden
        # Statistics of the batch alone: the expander is never used outside training.
        first, second = (nn.BatchNorm1d(hidden, track_running_stats=False) for _ in range(2))
        self.backbone = backbone
        self.expander = nn.Sequential(
            nn.Linear(D, hidden), first, nn.ReLU(), nn.Linear(hidden, hidden), second, nn.ReLU(),
            nn.Linear(hidden, config.width),
        )  # fmt: skip
        self.recent = Queue(RECENT, D)

    def kept(self) -> Encoder:
        """The backbone."""
        return self.backbone

    def backbones(self) -> list[Encoder]:
        """The backbone."""
        return [self.backbone]

    def forward(self, batch: Any, part: object, step: int) -> dict[str, Tensor]:
        """The loss over the clips of all processes.

        Raises:
            UserError: a process got a single clip, which has no variance.
        """
        if len(batch[0]) < 2:
            raise UserError("vicreg got one clip at a time; give a batch of at least 2 for each process.")
        features = [self.backbone(view).pooled() for view in batch]
        self.recent.push(features[0].detach().float())
        embeddings = [self.expander(x).float() for x in features]
        if dist.is_available() and dist.is_initialized():
            embeddings = [torch.cat(list(all_gather(z))) for z in embeddings]
        with torch.autocast(embeddings[0].device.type, enabled=False):  # variances are differences of large numbers
            return vicreg_loss(embeddings[0], embeddings[1], self.config)
