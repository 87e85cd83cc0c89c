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


def error(ours, theirs):
    """Largest difference."""
    assert ours.shape == theirs.shape
    return (ours - theirs.to(ours)).abs().max().item()
