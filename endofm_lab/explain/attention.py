"""Attention of a clip: in space, in time, per head, and as a rollout over all blocks.

Maps are plain float32 tensors of one clip. Letters: T frames, h w patches, N = h w, K heads.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from endofm_lab.brief import Brief
from endofm_lab.errors import UserError
from endofm_lab.explain.norms import StepNorms, step_norms
from endofm_lab.model.encoder import Encoder, VideoTokens
from endofm_lab.model.video_model import VideoModel, check_finite

HeadChoice = int | Literal["mean", "max"]
By = Literal["attention", "norms"]


@dataclass(frozen=True, eq=False, repr=False)
class AttentionMaps(Brief):
    """The attention of one clip in all blocks, with methods to read it.

    Attributes:
        space: per block (T, K, 1 + N, 1 + N), row = query, column = key, entry 0 is CLS; rows sum to one. For a joint
            model T is 1 and N counts the patches of all frames, frame after frame. In a model without CLS, whose
            feature is the mean over all patches, entry 0 stands for that mean: its row is the mean of the rows of all
            patches, and nothing attends to it.
        time: per block (h, w, K, T, T), between frames at one patch; rows sum to one. Empty without temporal attention.
        grid: T, h and w of the tokens; for tubelets, T counts moments of several frames.
        kind: ``divided``, ``space_only`` or ``joint``.
        norms: the contributions of tokens in each step (`StepNorms`); None unless requested.
    """

    space: tuple[Tensor, ...]
    time: tuple[Tensor, ...]
    grid: tuple[int, int, int]
    kind: str
    norms: StepNorms | None = None
    has_cls: bool = True

    @property
    def reader(self) -> str:
        """The token that stands for the clip, in words."""
        return "CLS" if self.has_cls else "the mean over all patches"

    @property
    def blocks(self) -> int:
        """Number of blocks."""
        return len(self.space)

    @property
    def heads(self) -> int:
        """Number of heads per block."""
        return self.space[0].shape[1]

    def since(self, block: int) -> "AttentionMaps":
        """The maps from this block on, whose rollout shows how much the block's *input* tokens contribute to CLS.

        Every block mixes tokens, and some blocks collect information in a few patches without content of their own
        (Darcet et al. 2024, arXiv 2309.16588), to which a rollout through all blocks can point. The later the start,
        the more the rollout describes tokens instead of pixels.

        Raises:
            UserError: the block is out of range.
        """
        block = self._number(block)
        norms = self.norms and StepNorms(self.norms.space[block:], self.norms.time[block:])
        return replace(self, space=self.space[block:], time=self.time[block:], norms=norms)

    def in_space(self, block: int, head: HeadChoice = "mean", patch: tuple[int, int] | None = None) -> Tensor:
        """(T, h, w): where CLS looks in every frame, or where the patch (row, column) of each frame looks in its frame.

        A row of attention sums to one over CLS and patches, so these maps sum to one minus the attention to CLS. In a
        joint model the row covers all frames: the map of CLS sums to one over (T, h, w), and the map of a patch in
        frame t shows only its attention to frame t.

        Args:
            block: counted from 0, negative from the end.
            head: a number, or the mean or the maximum over the heads (normalised to sum to one again).
            patch: row and column of the query; None for CLS.

        Raises:
            UserError: block, head or patch out of range.
        """
        T, h, w = self.grid
        rows = self._fused(self.space, block, head)  # (T, 1 + N, 1 + N), or (1, 1 + TN, 1 + TN)
        if self.kind != "joint":
            return rows[:, self._token(patch), 1:].reshape(T, h, w)
        if patch is None:
            return rows[0, 0, 1:].reshape(T, h, w)
        queries = self._token(patch) + torch.arange(T) * h * w
        return rows[0, queries, 1:].reshape(T, T, h, w)[torch.arange(T), torch.arange(T)]

    def in_time(self, block: int, head: HeadChoice = "mean", patch: tuple[int, int] | None = None) -> Tensor:
        """(T, T): how much each frame (row) attends to each frame (column), at a patch or on average over all patches.

        Rows sum to one. In a joint model, an entry is the attention of the patch to all patches of a frame, divided by
        its attention to all patches.

        Raises:
            UserError: block, head or patch is out of range, or the model has no temporal attention.
        """
        T, h, w = self.grid
        self._number(block)
        if self.kind == "joint":
            rows = self._fused(self.space, block, head)[0, 1:, 1:].reshape(T, h * w, T, h * w).sum(dim=3)
            rows = (rows / rows.sum(dim=2, keepdim=True)).permute(1, 0, 2)  # (N, T, T)
        elif not self.time:
            raise UserError(
                f"This model ({self.kind}) has no attention in time; it has maps in space for the blocks 0 to "
                f"{self.blocks - 1}. Temporal maps need a model with divided or joint attention."
            )
        else:
            rows = self._fused(self.time, block, head).flatten(0, 1)
        return rows.mean(dim=0) if patch is None else rows[self._token(patch) - 1]

    def rollout(
        self, query: tuple[int, int, int] | None = None, head: HeadChoice = "mean", by: By = "attention"
    ) -> Tensor:
        """(T, h, w): how much of each input patch reaches CLS, or the patch (frame, row, column), through all blocks.

        Without CLS, it starts at the mean over all patches.

        Attention rollout (Abnar and Zuidema 2020, arXiv 2005.00928) for space and time in turns. A residual step
        ``x + A x`` passes on ``M = (I + A) / 2`` of its input; a network passes on the product of its steps. Let the
        tokens be the patches x[t, n] and a copy c[t] of CLS per frame. A block of the divided model makes three steps:

        1. time, at each patch n:    x[t, n] <- (x[t, n] + sum_s A_n[t, s] x[s, n]) / 2,   c[t] <- c[t]
        2. space, in each frame t:   z[t, i] <- (z[t, i] + sum_j B_t[i, j] z[t, j]) / 2,   z[t] = (c[t], x[t, 1..N])
        3. one CLS per clip:         c[t] <- mean over s of c[s]

        (Step 3 averages what step 2 added; the copies were equal before, so averaging all of c is the same.) The
        contributions to one token are that token's row of the product, and a row r times M costs only a matrix-vector
        product. So start with r = 1 at the query (1/T at each copy of CLS) and walk from the last block to the first:
        3, 2, 1, each as r <- r M. Every M is row-stochastic, so r always sums to one; the result leaves out the share
        of CLS. Space-only models have step 2 alone, and so have joint models, over one long frame.

        With ``by="norms"``, M holds the measured contributions in steps 1 and 2 (see `StepNorms`): attention to a token
        with a value near zero hardly counts, and the residual has its true share. Heads are summed there, not chosen.

        Raises:
            UserError: head or query is out of range, or the maps have no norms.
        """
        T, h, w = self.grid
        row = torch.zeros(T, 1 + h * w)
        if query is None and not self.has_cls:
            row[:, 1:] = 1 / (T * h * w)
        elif query is None:
            row[:, 0] = 1 / T
        else:
            self._frame(query[0])
            row[query[0], self._token(query[1:])] = 1.0
        return self.walk(row, head, by)[:, 1:].reshape(T, h, w)

    def rollout_in_time(self, head: HeadChoice = "mean", by: By = "attention") -> Tensor:
        """(T, T): the share of each input frame (column) in the patches of each output frame (row), through all blocks.

        This is the mean rollout of a frame's patches, summed over the patches of each input frame; each row is divided
        by the total over all patches, so that rows sum to one.
        """
        T, h, w = self.grid
        rows = []
        for t in range(T):
            row = torch.zeros(T, 1 + h * w)
            row[t, 1:] = 1 / (h * w)
            frames = self.walk(row, head, by)[:, 1:].sum(dim=1)
            rows.append(frames / frames.sum())
        return torch.stack(rows)

    def statistics(self) -> pd.DataFrame:
        """One row per axis ("space" or "time"), block and head, with its attention ``distance`` and ``entropy``.

        The distance is the mean over query patches of the attention-weighted distance to the key patches, in patches
        (space) or frames (time), without CLS (Dosovitskiy et al. 2021, arXiv 2010.11929, figure 7). The entropy is that
        of the rows divided by its maximum: 0 for a single key, 1 for uniform attention. In a joint model both cover all
        frames, and the distance is in patches.
        """
        T, h, w = self.grid
        y, x = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
        positions = torch.stack([y, x], dim=-1).reshape(-1, 2).float()
        if self.kind == "joint":
            positions = positions.repeat(T, 1)
        distances, moments = torch.cdist(positions, positions), torch.arange(T).float()
        records = []
        for axis, maps, distance in (
            ("space", [m[:, :, 1:, 1:] for m in self.space], distances),
            ("time", [m.flatten(0, 1) for m in self.time], (moments[:, None] - moments).abs()),
        ):
            for block, rows in enumerate(maps):  # (positions, K, n, n)
                rows = rows / rows.sum(dim=-1, keepdim=True).clamp(min=1e-12)
                length = (rows * distance).sum(dim=-1).mean(dim=(0, 2))
                entropy = torch.special.entr(rows).sum(dim=-1).mean(dim=(0, 2))
                entropy = entropy / max(float(torch.tensor(float(rows.shape[-1])).log()), 1e-12)
                for head in range(self.heads):
                    records.append((axis, block, head, float(length[head]), float(entropy[head])))
        return pd.DataFrame(records, columns=["axis", "block", "head", "distance", "entropy"])

    def walk(self, row: Tensor, head: HeadChoice = "mean", by: By = "attention", share: float = 0.5) -> Tensor:
        """A row (T, 1 + N) over output tokens to one over input tokens, through every step backwards; see `rollout`.

        By attention, each residual step is ``M = share (I + A)``: 0.5 keeps rows of attention stochastic.
        """
        T, h, w = self.grid
        norms = self.norms if by == "norms" else None
        if by == "norms" and norms is None:
            raise UserError("These maps have no norms. Request them with look(model, clip, norms=True).")
        if self.kind == "joint":  # one CLS, one long frame
            row = torch.cat([row[:, 0].sum()[None], row[:, 1:].flatten()])[None]
        for block in reversed(range(self.blocks)):
            if self.kind == "divided":
                row = torch.cat([row[:, :1].mean(dim=0).expand(T, 1), row[:, 1:]], dim=1)
            space = norms.space[block] if norms else _residual(self._fused(self.space, block, head), share)
            row = torch.einsum("ti,tij->tj", row, space)
            if self.kind == "divided":
                fused = self._fused(self.time, block, head).flatten(0, 1)
                time = norms.time[block] if norms else _residual(fused, share)
                row = torch.cat([row[:, :1], torch.einsum("tn,nts->sn", row[:, 1:], time)], dim=1)
        if self.kind == "joint":
            cls, patches = row[0, :1], row[0, 1:].reshape(T, h * w)
            row = torch.cat([(cls / T).expand(T, 1), patches], dim=1)
        return row

    def _fused(self, maps: Sequence[Tensor], block: int, head: HeadChoice) -> Tensor:
        """A block's maps with the heads, the third axis from the end, reduced to one."""
        rows = maps[self._number(block)]
        if head == "mean":
            return rows.mean(dim=-3)
        if head == "max":
            top = rows.amax(dim=-3)
            return top / top.sum(dim=-1, keepdim=True)
        if isinstance(head, bool) or not isinstance(head, int) or not 0 <= head < self.heads:
            raise UserError(f"There is no head {head!r}; choose 0 to {self.heads - 1}, 'mean' or 'max'.")
        return rows[..., head, :, :]

    def _number(self, block: int) -> int:
        if not -self.blocks <= block < self.blocks:
            raise UserError(f"There is no block {block}; this model has the blocks 0 to {self.blocks - 1}.")
        return block % self.blocks

    def _frame(self, frame: int) -> None:
        if not 0 <= frame < self.grid[0]:
            raise UserError(f"There is no frame {frame} in the clip; it has the frames 0 to {self.grid[0] - 1}.")

    def _token(self, patch: Sequence[int] | None) -> int:
        """Index of a patch among the tokens of its frame; 0 for CLS."""
        _, h, w = self.grid
        if patch is None:
            return 0
        row, column = patch
        if not (0 <= row < h and 0 <= column < w):
            raise UserError(
                f"There is no patch in row {row}, column {column}; the grid has the rows 0 to {h - 1} and the columns "
                f"0 to {w - 1}."
            )
        return 1 + row * w + column


def _residual(rows: Tensor, share: float) -> Tensor:
    """``share (I + A)`` of every matrix."""
    return share * (rows + torch.eye(rows.shape[-1]))


@torch.inference_mode()
def look(model: VideoModel | Encoder, clip: Tensor, norms: bool = False) -> AttentionMaps:
    """The attention of one clip (1, 3, T, H, W), normalised as the model's card says.

    Image models (ViT, DINOv2, EVA-02 with its rotary positions) attend in space only. Maps of tubelets (VideoMAE,
    V-JEPA 2, ViViT) have one moment for the frames of a token.

    Args:
        model: the model or encoder.
        clip: the clip, (1, 3, T, H, W).
        norms: also measure the contributions of tokens in each step, for ``rollout(by="norms")``; this works for video
            transformers only.

    Raises:
        UserError: the clip has another shape or is not one clip, the model gives no attention maps, or norms were
            requested from another model than a video transformer of this library.
    """
    backbone = model.backbone if isinstance(model, VideoModel) else model
    if clip.ndim != 5 or len(clip) != 1:
        raise UserError(f"The clip has shape {tuple(clip.shape)}; give one clip at a time, (1, 3, T, H, W).")
    kind = backbone.attention_kind
    if kind is None:
        raise UserError(
            f"A backbone of kind {backbone.kind!r} has no attention from a token to the patches of each frame, so "
            "there are no attention maps. Use attribution by gradients or occlusion, which works for every model."
        )
    if norms and not backbone.has_video_blocks:
        raise UserError("Norms can be measured in video transformers only. For other models, use rollout by attention.")
    clip = clip.to(next(backbone.parameters()).device)
    if not norms:
        return maps_of(backbone(clip, attention=True), kind)
    tokens, measured = step_norms(backbone, clip)
    return replace(maps_of(tokens, kind), norms=measured)


def maps_of(tokens: VideoTokens, kind: str) -> AttentionMaps:
    """The attention maps in the tokens of one clip, after ``backbone(clip, attention=True)``."""
    _, T, h, w, _ = tokens.patches.shape
    space = tokens.joint if kind == "joint" else tokens.spatial
    if space is None:
        raise UserError("These tokens have no attention maps. Request them with backbone(clip, attention=True).")
    check_finite(tokens.patches, "The backbone", ["this clip"])
    rows = [m if kind == "joint" else m[0] for m in space]  # in a joint model, the clip is one long frame
    if tokens.cls is None:
        rows = [_with_mean(m) for m in rows]
    return AttentionMaps(
        space=tuple(m.detach().float().cpu() for m in rows),
        time=tuple(m[0].detach().float().cpu() for m in tokens.temporal or ()),
        grid=(T, h, w),
        kind=kind,
        has_cls=tokens.cls is not None,
    )


def _with_mean(rows: Tensor) -> Tensor:
    """(1, K, N, N) -> (1, K, 1 + N, 1 + N): entry 0 is the mean over all patches, to which nothing attends."""
    return F.pad(torch.cat([rows.mean(dim=-2, keepdim=True), rows], dim=-2), (1, 0))
