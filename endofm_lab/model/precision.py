"""The device of a computation and its precision, and the automatic ones."""

from typing import Literal, get_args

import torch

from endofm_lab.errors import UserError

Precision = Literal["float32", "bfloat16", "float16", "auto"]


def resolve_device(name: str = "auto") -> torch.device:
    """The device of a name; "auto" is the first of cuda, mps and cpu that this machine has.

    Args:
        name: "auto", "cpu", "cuda", "cuda:1" (the second GPU) or "mps" (the GPU of an Apple computer).

    Raises:
        UserError: there is no device of that name, or this machine does not have it.
    """
    names = [f"cuda:{n}" for n in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    names += ["mps"] if torch.backends.mps.is_available() else []
    kinds = list(dict.fromkeys([place.partition(":")[0] for place in names] + ["cpu"]))
    if name == "auto":
        return torch.device(kinds[0])
    if name not in (*kinds, *names):
        lacks = ": torch was installed without CUDA, or it finds no driver" if name.startswith("cuda") else ""
        raise UserError(
            f"The device is {name!r}, but this machine has {', '.join(dict.fromkeys([*kinds, *names]))}{lacks}. Choose "
            "one of these, or 'auto'."
        )
    return torch.device(name)


def dtype_of(precision: str, device: torch.device | str = "cpu") -> torch.dtype:
    """The type that a precision computes in on a device.

    Raises:
        UserError: there is no such precision.
    """
    if precision not in get_args(Precision):
        raise UserError(f"The precision is {precision!r}; choose one of {', '.join(get_args(Precision))}.")
    return automatic_dtype(device) if precision == "auto" else getattr(torch, precision)


def automatic_dtype(device: torch.device | str = "cpu") -> torch.dtype:
    """bfloat16 if the processor multiplies it in hardware, otherwise float32.

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
