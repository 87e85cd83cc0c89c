"""Targets of an attribution: one number per clip, computed from a model's outputs."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from endofm_lab.brief import Brief
from endofm_lab.errors import UserError
from endofm_lab.model.encoder import VideoTokens
from endofm_lab.model.video_model import VideoModel, VideoOutput


@dataclass(frozen=True, eq=False, repr=False)
class Target(Brief):
    """The number that an attribution explains.

    Attributes:
        name: name in figures.
        score: a differentiable function that returns (B,) for clips (B, 3, T, H, W).
        of_output: the same score (B,) from the model's output for those clips, if it depends on the pooled feature of
            the clip; None for masks and boxes, which depend on patches.
    """

    name: str
    score: Callable[[Tensor], Tensor]
    of_output: Callable[[VideoOutput], Tensor] | None = None


def target_of(model: VideoModel, head: str, label: str) -> Target:
    """The evidence of one head for one of its classes.

    The head defines the evidence: the log odds of a class, the area of a mask, the most confident box; see
    `Head.evidence`.

    Raises:
        UserError: the head or the class does not exist.
    """
    specs = model.card.heads
    if head not in specs:
        raise UserError(f"The model has no head {head!r}; choose one of {', '.join(specs) or '(none)'}.")
    if label not in specs[head].classes:
        raise UserError(f"The head {head!r} has no class {label!r}; choose one of {', '.join(specs[head].classes)}.")
    spec, k = specs[head], specs[head].classes.index(label)
    name = f"{head}: {label}" if spec.answer == "clip" else f"{head} ({label})"

    def evidence(output: VideoOutput) -> Tensor:
        return model.head(head).evidence(output.logits[head].float(), k, spec)

    return Target(name, lambda clips: evidence(model(clips)), evidence if spec.answer == "clip" else None)


def similarity_to(model: VideoModel, clip: Tensor, name: str = "the chosen clip") -> Target:
    """The cosine similarity of a clip's pooled feature to the feature of a chosen clip (1, 3, T, H, W)."""
    with torch.no_grad():
        chosen = F.normalize(model.backbone(clip).pooled().float(), dim=1)

    def similarity(tokens: VideoTokens) -> Tensor:
        return (F.normalize(tokens.pooled().float(), dim=1) * chosen).sum(dim=1)

    return Target(
        f"similarity to {name}",
        lambda clips: similarity(model.backbone(clips)),
        lambda output: similarity(output.tokens),
    )
