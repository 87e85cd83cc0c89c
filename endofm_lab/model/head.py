"""The contract of a head: outputs from tokens, their loss, and the scores that a prediction shows."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from endofm_lab.model.encoder import Encoder, VideoTokens

if TYPE_CHECKING:
    from endofm_lab.model.card import HeadSpec

Answer = Literal["clip", "map", "boxes"]
Batch = Mapping[str, Tensor]  # a batch of clips with their truth, as the task's ``collate`` makes it
FrameBoxes = tuple[Tensor, Tensor, Tensor]  # boxes (n, 4), scores (n,), class indices (n,) of one frame


class Head(nn.Module):
    """The contract of heads; `model.heads.HEADS` lists those of the library, `HeadSpec.by` names others.

    Attributes:
        answer: "clip": outputs (B, K), one score per clip and class; "map": outputs (B, K, T, h, w), in every frame a
            score per place and class; "boxes": raw outputs (B, C, T, h, w), for ``decode``.
        options: the fields of `HeadSpec` that the head reads besides its kind, variant and classes.
    """

    answer: ClassVar[Answer]
    options: ClassVar[frozenset[str]] = frozenset()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({sum(parameter.numel() for parameter in self.parameters()):,} parameters)"

    @classmethod
    def build(cls, spec: "HeadSpec", backbone: Encoder, image_px: int) -> "Head":
        """The freshly initialised head that answers ``spec`` from a backbone's tokens of pictures of ``image_px``.

        Raises:
            CheckpointError: the head does not fit the backbone.
        """
        return cls(backbone.width, len(spec.classes))  # type: ignore[call-arg]

    def forward(self, tokens: VideoTokens) -> Tensor:
        """Outputs, called logits wherever the head is not known: (B, K) or (B, C, T, h, w)."""
        raise NotImplementedError

    def loss(self, logits: Tensor, batch: Batch) -> Tensor:
        """The loss of outputs against the truth in a batch, a scalar; the head names the entries that it reads."""
        raise NotImplementedError

    def scores(self, logits: Tensor, spec: "HeadSpec") -> Tensor:
        """The result of `VideoModel.predict` for float32 outputs: scores in 0..1 of classes and maps, raw for boxes."""
        raise NotImplementedError

    def evidence(self, logits: Tensor, k: int, spec: "HeadSpec") -> Tensor:
        """The evidence in float32 outputs for class ``k``, (B,): the number that an attribution explains."""
        raise NotImplementedError

    def decode(self, raw: Tensor, min_score: float = 0.3, max_boxes: int = 10) -> list[list[FrameBoxes]]:
        """Per clip and frame: boxes (n, 4) in fractions within 0..1, scores (n,) in 0..1, class indices (n,).

        Only heads that answer with boxes have this method. Boxes are sorted by score; at most ``max_boxes`` boxes with
        a score of at least ``min_score`` are returned.
        """
        raise NotImplementedError


class ClassHead(Head):
    """Logits (B, K) of a clip; the spec says whether classes exclude each other (softmax) or not (sigmoid)."""

    answer = "clip"
    options = frozenset({"temperature"})

    def loss(self, logits: Tensor, batch: Batch) -> Tensor:
        """Cross-entropy for class indices ``target`` (B,), binary cross-entropy for indicators (B, K) in 0..1."""
        target = batch["target"]
        if target.ndim == 1:
            return F.cross_entropy(logits.float(), target)
        return F.binary_cross_entropy_with_logits(logits.float(), target.float())

    def scores(self, logits: Tensor, spec: "HeadSpec") -> Tensor:
        """Probabilities (B, K) of logits over the temperature."""
        logits = logits / (spec.temperature or 1.0)
        return logits.softmax(dim=-1) if spec.kind == "multiclass" else logits.sigmoid()

    def evidence(self, logits: Tensor, k: int, spec: "HeadSpec") -> Tensor:
        """The log odds of the class, in nats, which do not saturate like a probability.

        For exclusive classes: its logit minus the log-sum-exp of the other logits; for several labels: its logit.
        """
        other_classes = [i for i in range(logits.shape[1]) if i != k]
        if spec.kind == "multiclass" and other_classes:
            return logits[:, k] - logits[:, other_classes].logsumexp(dim=1)
        return logits[:, k]


class MapHead(Head):
    """Logits (B, K, T, h, w), one per place of a frame and class."""

    answer = "map"

    def scores(self, logits: Tensor, spec: "HeadSpec") -> Tensor:
        """Probabilities of that shape."""
        return logits.sigmoid()

    def evidence(self, logits: Tensor, k: int, spec: "HeadSpec") -> Tensor:
        """The sum of the class's probabilities over all places of the clip."""
        return logits[:, k].sigmoid().sum(dim=(1, 2, 3))


class BoxesHead(Head):
    """Raw outputs (B, C, T, h, w), of which the first K channels are class logits."""

    answer = "boxes"

    def scores(self, logits: Tensor, spec: "HeadSpec") -> Tensor:
        """The raw outputs, which ``decode`` reads: frames of several clips are averaged before they are decoded."""
        return logits

    def evidence(self, logits: Tensor, k: int, spec: "HeadSpec") -> Tensor:
        """The largest logit of the class over all locations of each frame, averaged over the frames."""
        return logits[:, k].flatten(2).amax(dim=2).mean(dim=1)
