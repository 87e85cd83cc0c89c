"""The automatic precision of inference."""

import torch


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
