"""The largest difference between models and what `endofm_lab.export` writes: python -m docs.experiments.export_parity.

Base and small are drawn at random (with a temporal part that is not zero), small-96px is small for 4 frames of 96 px,
demo is the model in the package, the segmenter is the paper's: a convolutional stem, a ViT-S and a TransUNet head,
drawn at random, and polyp-segmenter has the architecture that `endofm-lab models build polyp-segmenter` trains.
"""

import argparse
import tempfile
import time
from pathlib import Path

import torch

import endofm_lab as lab
from endofm_lab.finetuning.start import Start
from endofm_lab.model.card import HeadSpec
from endofm_lab.model.transformer import build_backbone
from endofm_lab.model.video_model import VideoModel, model_on
from endofm_lab.portable import ENDINGS, Output

OUTPUTS: tuple[Output, ...] = ("scores", "features")
LABEL = {"finding": HeadSpec("multiclass", ("normal", "polyp"))}


def of_preset(name: str, **sizes: int) -> VideoModel:
    """A model of a preset whose parameters are all drawn at random; ``sizes`` are other fields of its configuration."""
    torch.manual_seed(0)
    backbone = build_backbone(name, **sizes)
    for parameter in backbone.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.02)
    return model_on(backbone, LABEL, name).eval()


def segmenter() -> VideoModel:
    """The paper's segmenter on a ViT-S."""
    return Start("scratch", size="small").build("mask", HeadSpec("mask", ("lesion",), form="transunet"), seed=0).eval()


def polyp_segmenter() -> VideoModel:
    """The network of the recipe polyp-segmenter: single frames of 252 px, a ViT-S/14 and a mask head."""
    start = Start("scratch", size="timm:vit_small_patch14_dinov2.lvd142m", n_frames=1, stride=1, image_px=252)
    return start.build("mask", HeadSpec("mask", ("polyp",)), seed=0).eval()


MODELS = {
    "demo": lambda: lab.load_model("demo"),
    "small": lambda: of_preset("small"),
    "small-96px": lambda: of_preset("small", image_px=96, frames=4),
    "base": lambda: of_preset("base"),
    "segmenter": segmenter,
    "polyp-segmenter": polyp_segmenter,
}


def main() -> None:
    """Print a row per model, format and kind of output."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--files", nargs="+", choices=ENDINGS, default=ENDINGS)
    parser.add_argument("--outputs", nargs="+", choices=OUTPUTS, default=OUTPUTS)
    args = parser.parse_args()
    print("| model | file | outputs | any number | any length | largest difference | MB | s |\n" + "|---" * 8 + "|")
    for name in args.only:
        model = MODELS[name]()
        for ending in args.files:
            for output in args.outputs:
                with tempfile.TemporaryDirectory() as folder:
                    begin = time.monotonic()
                    done = lab.export(model, Path(folder) / f"{name}{ending}", output)
                    size, seconds = done.path.stat().st_size / 1e6, time.monotonic() - begin
                free = ["yes" if yes else "no" for yes in (done.any_batch, done.any_length)]
                row = [
                    name,
                    ending,
                    ", ".join(done.outputs),
                    *free,
                    f"{done.largest_difference:.1e}",
                    f"{size:.0f}",
                    f"{seconds:.0f}",
                ]
                print(f"| {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    main()
