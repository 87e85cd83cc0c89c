"""Speed of the backbone against the same equations written as a textbook writes them."""

import json
import time
from pathlib import Path
from statistics import median

import pytest
import torch

from endofm_lab.model.inference import for_inference
from endofm_lab.model.precision import automatic_dtype
from endofm_lab.model.transformer import build_backbone
from tests.goldens.weights_from_names import input_for, state_dict_for
from tests.model.textbook import textbook_backbone

GOLDENS = Path(__file__).parents[1] / "goldens"


def interleaved_medians(calls: dict, repeats: int) -> dict[str, float]:
    """Median seconds of each call, taken in turns, so that whatever else the machine does meets all of them."""
    seconds = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - start)
    return {name: median(values) for name, values in seconds.items()}


@pytest.mark.benchmark
@pytest.mark.timeout(900)
@torch.inference_mode()
def test_base_against_the_textbook():
    shapes = json.loads((GOLDENS / "backbone_shapes.json").read_text())
    weights = state_dict_for(shapes)
    clip = input_for("clip_8x224", (1, 3, 8, 224, 224))
    with torch.device("meta"):
        backbone = build_backbone("base").eval()
    backbone.load_state_dict(weights, assign=True)
    dtype = automatic_dtype()
    exact, quick = for_inference(backbone, torch.float32), for_inference(backbone, dtype)
    calls = {
        "textbook": lambda: textbook_backbone(clip, weights, heads=12)[:2],
        "float32": lambda: exact(clip),
        "float32, all maps": lambda: exact(clip, attention=True),
        "automatic": lambda: quick(clip),
        "automatic, all maps": lambda: quick(clip, attention=True),
    }
    cls, patches = calls["textbook"]()
    for name in ("float32", "float32, all maps"):
        tokens = calls[name]()
        torch.testing.assert_close(tokens.cls, cls, rtol=0, atol=1e-4)
        torch.testing.assert_close(tokens.patches, patches, rtol=0, atol=1e-4)
    for name in ("automatic", "automatic, all maps"):
        assert torch.cosine_similarity(calls[name]().cls.float(), cls).item() >= 0.999
    seconds = interleaved_medians(calls, repeats=15)
    ratio = {name: seconds["textbook"] / s for name, s in seconds.items()}
    print(
        f"\nbase, one clip of 8 x 224 x 224, {torch.get_num_threads()} threads, against the textbook "
        f"({seconds['textbook']:.2f} s):\n"
        f"  float32                {ratio['float32']:.2f}x as fast (goal 1.15)\n"
        f"  automatic ({str(dtype).removeprefix('torch.')})   {ratio['automatic']:.2f}x as fast (goal 3)\n"
        f"  all maps of all blocks cost {seconds['float32, all maps'] / seconds['float32']:.2f}x a plain forward in "
        f"float32, {seconds['automatic, all maps'] / seconds['automatic']:.2f}x in automatic precision (goal <= 1.5)"
    )
