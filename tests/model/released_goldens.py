"""The released detector and segmenter with parity weights, and their golden outputs."""

import functools
import importlib.util
import json
import math
from pathlib import Path

import torch
from safetensors.torch import load_file

GOLDENS = Path(__file__).parents[1] / "goldens"
_spec = importlib.util.spec_from_file_location("weights_from_names", GOLDENS / "weights_from_names.py")
parity = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(parity)


def golden(name):
    return load_file(GOLDENS / f"{name}.safetensors")


def golden_json(name):
    return json.loads((GOLDENS / f"{name}.json").read_text())


@functools.cache
def segmenter_state():
    return parity.state_dict_for(golden_json("segmenter_shapes"))


@functools.cache
def _detector_state():
    return parity.state_dict_for(golden_json("detector_shapes"))


def detector_state(tuned):
    state = {name: tensor.clone() if "rpn" in name else tensor for name, tensor in _detector_state().items()}
    if tuned:
        for level, scale in enumerate([2.5, 2.0, 1.5, 1.0, 0.5]):
            state[f"rpn.head.scales.{level}.scale"] = torch.tensor([scale])
        state["rpn.head.bbox_pred.bias"] += 2.0
        state["rpn.head.cls_logits.bias"] -= math.log(99)
        state["rpn.head.dcn_cls_score.bias"] -= math.log(99)
    return state


@functools.cache
def small_segmenter_state():
    """A file of the released names at small sizes: frames of 64 px, one block 64 wide, a stem half as wide."""
    sizes = {768: 64, 2304: 192, 3072: 256}
    skips = {0: 512 + 256, 1: 256 + 128, 2: 128 + 32}  # channels into the decoder's steps: before, and from the stem
    shapes = {}
    for name, shape in golden_json("segmenter_shapes").items():
        if ("layer." in name and ".layer.0." not in name) or ("unit" in name and ".unit1." not in name):
            continue
        if "hybrid_model" in name:
            first = "block1.unit1" in name and name.endswith(("conv1.weight", "downsample.weight"))
            shape = [n // 2 if n >= 64 else n for n in shape]
            assert not first or shape[1] == 32
        elif name.endswith("position_embeddings"):
            shape = [1, 16, 64]
        elif name.endswith("patch_embeddings.weight"):
            shape = [64, 512, 1, 1]
        elif name.startswith("decoder.blocks.") and name.endswith("conv1.0.weight"):
            shape = [shape[0], skips.get(int(name.split(".")[2]), shape[1]), 3, 3]
        elif name == "decoder.conv_more.0.weight" or name.startswith("transformer."):
            shape = [sizes.get(n, n) for n in shape]
        shapes[name] = shape
    return parity.state_dict_for(shapes)


@functools.cache
def small_detector_state():
    """A file of the released names at small sizes: one block 64 wide, 16 channels in pyramid and towers."""
    sizes = {768: 64, 2304: 192, 3072: 256}
    shapes = {}
    for name, shape in golden_json("detector_shapes").items():
        if ".blocks." in name and ".blocks.0." not in name:
            continue
        of_head = name.startswith(("backbone.fpn.", "rpn."))
        shapes[name] = [16 if of_head and n == 256 else sizes.get(n, n) for n in shape]
    state = parity.state_dict_for(shapes)
    state["rpn.head.bbox_pred.bias"] += 2.0  # boxes with an area, sure enough to be kept
    return state


def error(actual, expected):
    """Largest difference."""
    assert actual.shape == expected.shape
    return (actual - expected.to(actual)).abs().max().item()
