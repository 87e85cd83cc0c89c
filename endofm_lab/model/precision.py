"""The precisions of a computation, and the automatic one."""

from typing import Literal, get_args

import torch

from endofm_lab.errors import UserError

Precision = Literal["float32", "bfloat16", "float16", "auto"]


def dtype_of(precision: str, device: torch.device | str = "cpu") -> torch.dtype:
    """The type that a precision computes in on a device.

    Raises:
        UserError: there is no such precision.
    """
    if precision not in get_args(Precision):
        raise UserError(f"The precision is {precision!r}; choose one of {', '.join(get_args(Precision))}.")
    return automatic_dtype(device) if precision == "auto" else getattr(torch, precision)


def automatic_dtype(device: torch.device | str = "cpu") -> torch.dtype:
    """bfloat16 where the processor multiplies it in hardware, float32 elsewhere.

    Use it on the weights: ``for_inference(model, automatic_dtype(device))``; the backbone takes its clips as they are.
    On CPUs that is faster than autocast, which converts every weight in every forward pass, and CLS keeps a cosine
    similarity above 0.999 with that of float32. For training keep float32 weights and use autocast.
    """
    device = torch.device(device)
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        fast = device.type == "cpu" and (torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported())
    return torch.bfloat16 if fast else torch.float32
