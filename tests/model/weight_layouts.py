"""Small files in every layout that weights come in, each with its own seeded numbers, and a small model of ours."""

import argparse
from dataclasses import replace

import torch
from safetensors.torch import save_file

from endofm_lab.model.card import HeadSpec, ModelCard
from endofm_lab.model.loading.load import save_model
from endofm_lab.model.transformer import BackboneConfig, VideoTransformer
from endofm_lab.model.video_model import build_model
from endofm_lab.video.clips import ClipSpec
from endofm_lab.video.transforms import IMAGENET

CONFIG = BackboneConfig(width=128, depth=2, heads=2, image_px=32, frames=4)
IMAGE_CONFIG = BackboneConfig(width=128, depth=2, heads=2, image_px=32, frames=1, attention="space_only")


def numbers(module, seed=0):
    """The module's state dict, filled from a seed (nothing zero, so that no tensor can be mistaken for another)."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: 0.1 * torch.randn(t.shape, generator=generator) + (name.endswith("weight") and t.ndim == 1)
        for name, t in module.state_dict().items()
    }


def backbone_state(seed=0, config=CONFIG):
    return numbers(VideoTransformer(config), seed)


def prefixed(state, prefix):
    return {prefix + name: tensor for name, tensor in state.items()}


def projection_head(width=128):
    return {"mlp.0.weight": torch.ones(8, width), "last_layer.weight_v": torch.ones(16, 8)}


def training_checkpoint(path, config=CONFIG, **extra):
    """As `endo_fm.pth`: the teacher has the numbers of seed 0, the student those of seed 1."""
    student = backbone_state(1, config)
    content = {
        "student": prefixed(student, "module.backbone.") | prefixed(projection_head(), "module.head."),
        "teacher": prefixed(backbone_state(0, config), "backbone.") | prefixed(projection_head(), "head."),
        "optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 1e-3, "params": [0]}]},
        "epoch": 29,
        "args": argparse.Namespace(arch="vit_base", data_path="corpus", lr=2.3e-5),
        "dino_loss": {"center": torch.zeros(1, 16)},
        "fp16_scaler": {"scale": 65536.0, "growth_factor": 2.0},
        **extra,
    }
    torch.save(content, path)
    return path


def timesformer(path):
    state = prefixed(backbone_state(), "model.")
    state |= {"model.head.weight": torch.randn(400, 128), "model.head.bias": torch.randn(400)}
    torch.save({"epoch": 15, "model_state": state, "optimizer_state": {"state": {}}, "cfg": "TRAIN: ..."}, path)
    return path


def polypdiag(path):
    linear = {"module.linear.weight": torch.randn(2, 128), "module.linear.bias": torch.randn(2)}
    backbone = prefixed(backbone_state(), "module.")
    torch.save({"epoch": 20, "backbone_state_dict": backbone, "state_dict": linear, "best_acc": 91.5}, path)
    return path


def segmenter(path):
    state = {}
    for name, tensor in backbone_state().items():
        if name.startswith(("blocks.", "norm.", "cls_token")):
            renamed = name.replace("blocks.", "layer.").replace("norm.", "encoder_norm.", name.startswith("norm."))
            state[f"transformer.encoder.{renamed}"] = tensor
    state["transformer.embeddings.position_embeddings"] = torch.zeros(1, 4, 128)
    state["transformer.embeddings.patch_embeddings.weight"] = torch.zeros(128, 8, 1, 1)
    state["transformer.embeddings.hybrid_model.root.conv.weight"] = torch.zeros(8, 3, 7, 7)
    state["segmentation_head.0.bias"] = torch.zeros(2)
    torch.save(state, path)
    return path


def detector(path):
    state = prefixed(backbone_state(), "module.backbone.body.")
    state["module.backbone.body.fpn1.0.weight"] = torch.zeros(128, 128, 2, 2)
    state["module.backbone.fpn.fpn_inner2.bias"] = torch.zeros(8)
    state["module.rpn.head.cls_logits.bias"] = torch.zeros(2)
    torch.save({"model": state, "optimizer": {"state": {}}, "scheduler": {"last_epoch": 5}, "iteration": 5}, path)
    return path


def plain_video(path):
    save_file(backbone_state(), path)
    return path


def image_training(path):
    return training_checkpoint(path, IMAGE_CONFIG)


def dino_image(path):
    torch.save(backbone_state(config=IMAGE_CONFIG), path)
    return path


def timm_image(path):
    head = {"head.weight": torch.zeros(1000, 128), "head.bias": torch.zeros(1000)}
    torch.save({"state_dict": prefixed(backbone_state(config=IMAGE_CONFIG) | head, "module."), "epoch": 300}, path)
    return path


# name -> (writer, file name, layout it must be recognised as)
WRITERS = {
    "Endo-FM": (training_checkpoint, "endo_fm.pth", "video-training"),
    "TimeSformer": (timesformer, "TimeSformer_divST_8x32_224_K400.pyth", "timesformer"),
    "PolypDiag": (polypdiag, "polypdiag.pth", "polypdiag"),
    "segmenter": (segmenter, "cvc.pth", "segmenter"),
    "detector": (detector, "kumc.pth", "detector"),
    "plain video": (plain_video, "video.safetensors", "video"),
    "DINO full": (image_training, "dino_full.pth", "image-training"),
    "DINO": (dino_image, "dino_vitbase16_pretrain.pth", "image"),
    "timm": (timm_image, "timm.pth.tar", "image"),
}


def write(name, folder):
    writer, filename, layout = WRITERS[name]
    return writer(folder / filename), layout


def card(**changes):
    heads = {"finding": HeadSpec("multiclass", ("normal", "polyp"), 1.5), "area": HeadSpec("mask", ("polyp",))}
    settings = VideoTransformer.describe(CONFIG)
    return replace(ModelCard("tested", settings, IMAGENET, ClipSpec(n_frames=4, stride=2), heads), **changes)


def saved(folder):
    torch.manual_seed(0)
    model = build_model(card()).eval()
    save_model(model, folder)
    return model
