"""The released values of the published protocols, and a configuration's values under the same names."""

from typing import Any

# Endo-FM's released scripts (arXiv 2306.16741). Epochs and batches; steps follow from the rows.
RELEASED = {
    "polypdiag": {
        "task": "classification", "head": "light", "frames": 8, "stride": 32, "optimiser": "sgd", "lr": 1e-3 * 4 / 256,
        "schedule": "cosine", "per_epoch": True, "warmup": 0, "floor": 0, "batch": 4, "epochs": 20, "crops": 3,
        "augmentation": "scale jitter", "layer_decay": 1, "method": "full",
    },
    "cvc-12k": {
        "task": "segmentation", "head": "transunet", "optimiser": "adamw", "lr": 1e-4, "weight_decay": 0.05,
        "schedule": "poly", "warmup": 0, "batch": 1, "epochs": 150, "px": 224, "layer_decay": 1, "method": "full",
    },
    "kumc": {
        "task": "detection", "head": "stft", "optimiser": "sgd", "lr": 0.0025, "schedule": "halved", "steps": 96_000,
        "warmup_steps": 8_000, "milestones": [64_000, 80_000, 88_000], "frames": 3, "layer_decay": 1, "method": "full",
    },
}  # fmt: skip

# The published pre-training, by the names of its settings.
RELEASED_PRETRAINING = {
    "epochs": 30, "batch": 12, "lr": 5e-4, "lr_end": 1e-6, "warmup_epochs": 10, "weight_decay": [0.04, 0.4], "clip": 3,
    "objective": "dino", "backbone.width": 768, "backbone.depth": 12, "views.global_frames": [8, 16],
    "views.local_frames": [2, 2, 4, 4, 8, 8, 16, 16], "views.global_px": 224, "views.local_px": 96, "views.jitter": 0.8,
    "views.grey": 0.2, "dino.prototypes": 65_536, "dino.hidden": 2048, "dino.bottleneck": 256,
    "dino.teacher_temperature": 0.04, "dino.momentum": 0.996,
}  # fmt: skip


def value_of(config: dict[str, Any], key: str) -> Any:
    """The value of a setting such as "views.global_px"."""
    value: Any = config
    for name in key.split("."):
        value = value[name]
    return value


def of_finetuning(config: dict[str, Any], epoch: int) -> dict[str, Any]:
    """The settings of a fine-tuning as plain values, with those that the released scripts count otherwise."""
    start, steps = config["start"], config["steps"]
    about_start = {"frames": start["n_frames"], "stride": start["stride"], "px": start["image_px"]}
    return {**config, **about_start, "epochs": steps / epoch, "warmup_steps": round(config["warmup"] * steps)}
