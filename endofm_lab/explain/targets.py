"""What an attribution explains: one number per clip, made from a model's outputs."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from endofm_lab.errors import UserError
from endofm_lab.model.video_model import VideoModel


@dataclass(frozen=True)
class Target:
    """A name for figures, and a differentiable score (B,) of clips (B, 3, T, H, W)."""

    name: str
    score: Callable[[Tensor], Tensor]


def target_of(model: VideoModel, head: str, label: str) -> Target:
    """The evidence of one head for one of its classes.

    - class head: the log odds of the class, in nats: its logit less the log-sum-exp of the others (multi-class), or its
      logit (multi-label). Unlike a probability it does not saturate.
    - mask head: the sum of the mask's probabilities over all pixels of its grid.
    - box head: the largest logit of the class over all locations of each frame, averaged over the frames.

    Raises:
        UserError: there is no such head or class.
    """
    specs = model.card.heads
    if head not in specs:
        raise UserError(f"The model has no head {head!r}; it has {', '.join(specs) or 'none'}.")
    if label not in specs[head].classes:
        raise UserError(f"The head {head!r} has no class {label!r}; it has {', '.join(specs[head].classes)}.")
    kind, k = specs[head].kind, specs[head].classes.index(label)
    name = f"{head}: {label}" if kind in ("multiclass", "multilabel") else f"{head} ({label})"

    def score(clips: Tensor) -> Tensor:
        logits = model(clips).logits[head].float()
        if kind == "multiclass":
            others = [i for i in range(logits.shape[1]) if i != k]
            return logits[:, k] - logits[:, others].logsumexp(dim=1) if others else logits[:, k]
        if kind == "multilabel":
            return logits[:, k]
        if kind == "mask":
            return logits[:, k].sigmoid().sum(dim=(1, 2, 3))
        return logits[:, k].flatten(2).amax(dim=2).mean(dim=1)  # the class logits come first in every box head

    return Target(name, score)


def similarity_to(model: VideoModel, clip: Tensor, name: str = "the chosen clip") -> Target:
    """The cosine similarity of a clip's CLS feature to that of a chosen clip (1, 3, T, H, W)."""
    with torch.no_grad():
        chosen = F.normalize(model.backbone(clip).cls.float(), dim=1)
    return Target(
        f"similarity to {name}",
        lambda clips: (F.normalize(model.backbone(clips).cls.float(), dim=1) * chosen).sum(dim=1),
    )
