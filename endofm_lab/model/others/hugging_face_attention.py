"""Attention maps of the video models of `transformers`: the softmax of their calls, by places in the clip."""

from collections.abc import Callable
from typing import Any

import torch
from einops import rearrange
from torch import Tensor
from torch.overrides import TorchFunctionMode

from endofm_lab.errors import UserError
from endofm_lab.model.frame import ExplicitAttention

MOST_BYTES = 8_000_000_000  # of the maps of a clip


class _Softmaxes(TorchFunctionMode):
    """Within this context, in this thread, the results of softmax over the last axis are kept."""

    def __init__(self) -> None:
        super().__init__()
        self.maps: list[Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in (torch.Tensor.softmax, torch.softmax, torch.nn.functional.softmax):
            self.maps.append(result)
        return result


def with_maps(
    compute: Callable[[], Tensor], grid: tuple[int, int, int], kind: str, has_cls: bool, frames_last: bool
) -> tuple[Tensor, dict[str, tuple[Tensor, ...]]]:
    """The result of a model's call, and its maps by their names in `VideoTokens`, without a change of the model.

    Args:
        compute: calls the model.
        grid: T, h and w of its tokens.
        kind: "joint" or "divided".
        has_cls: its first token is CLS.
        frames_last: its other tokens have all moments of a patch beside each other, not all patches of a moment.

    Raises:
        UserError: the model keeps no softmax of such a shape, as after a change in `transformers`.
    """
    T, h, w = grid
    with _Softmaxes() as softmaxes, ExplicitAttention() as explicit:
        tokens = compute()
    maps, n, B = explicit.maps or softmaxes.maps, T * h * w + has_cls, len(tokens)
    if kind == "joint" and maps and all(m.shape[-2:] == (n, n) for m in maps):
        order = torch.arange(T * h * w, device=tokens.device)
        if frames_last:
            order = rearrange(order, "(n t) -> (t n)", t=T)
        order = torch.cat([order.new_zeros(1), order + 1]) if has_cls else order
        return tokens, {"joint": tuple(m[..., order, :][..., order] if frames_last else m for m in maps)}
    time, space = maps[::2], maps[1::2]
    if kind == "divided" and maps and len(time) == len(space):
        in_time = all(m.shape[0] == B * h * w and m.shape[-2:] == (T, T) for m in time)
        if in_time and all(m.shape[0] == B * T and m.shape[-1] == 1 + h * w for m in space):
            return tokens, {
                "temporal": tuple(rearrange(m, "(b h w) k i j -> b h w k i j", b=B, h=h) for m in time),
                "spatial": tuple(rearrange(m, "(b t) k i j -> b t k i j", b=B) for m in space),
            }
    raise UserError(
        "The attention maps of this model could not be told from its calls in the installed version of transformers. "
        "Use attribution by gradients or occlusion, which works for every model."
    )


def refuse_large(n_tokens: int, heads: int, blocks: int) -> None:
    """Refuse maps that would not fit into memory.

    Raises:
        UserError: the message says how large they would be.
    """
    size = 4 * n_tokens**2 * heads * blocks
    if size > MOST_BYTES:
        raise UserError(
            f"The attention maps of {n_tokens:,} tokens in {blocks} blocks of {heads} heads would need "
            f"{size / 1e9:,.0f} GB. Start from the model with fewer frames (n_frames), or use attribution by gradients "
            "or occlusion."
        )
