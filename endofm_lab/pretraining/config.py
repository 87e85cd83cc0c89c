"""The configuration of a pre-training run: a frozen dataclass, presets as functions, and its form in JSON."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from endofm_lab.brief import Brief
from endofm_lab.errors import UserError
from endofm_lab.folders.plain import from_plain, to_plain
from endofm_lab.model.encoder import Encoder
from endofm_lab.model.frame import FrameBackbone, FrameConfig, frame_config, frame_input
from endofm_lab.model.precision import Precision, automatic_dtype
from endofm_lab.model.transformer import PRESETS as BACKBONES
from endofm_lab.model.transformer import BackboneConfig, VideoTransformer
from endofm_lab.outside import class_named, name_of
from endofm_lab.pretraining.dino import DinoConfig
from endofm_lab.pretraining.features import FeatureConfig
from endofm_lab.pretraining.masked import MaskConfig
from endofm_lab.pretraining.objective import Objective, Signs
from endofm_lab.pretraining.vcl import ContrastConfig
from endofm_lab.pretraining.vicreg import VicregConfig
from endofm_lab.pretraining.views import ViewSpec
from endofm_lab.video.transforms import InputSpec

# The objectives: name -> the field of the configuration that holds its settings.
OBJECTIVES = {
    DinoConfig.name: "dino",
    MaskConfig.name: "masking",
    ContrastConfig.name: "contrast",
    FeatureConfig.name: "features",
    VicregConfig.name: "vicreg",
}
SETTINGS = "objective_settings"  # key in config.json: the settings of an objective that was given as an object
OWN_CLASS = "objective_class"  # key in config.json: its importable name, if it is from outside the library
_OBJECTIVE = ("objective", SETTINGS, OWN_CLASS)


@dataclass(frozen=True, repr=False)
class PretrainConfig(Brief):
    """A pre-training run. The defaults are Endo-FM's recipe.

    Attributes:
        manifest: table of the videos.
        out: folder of the run.
        others: further manifests with videos to learn from.
        weights: relative frequency of the clips of each manifest, such as 3 1; by default its number of clips.
        objective: a name in `OBJECTIVES`: "dino" (Endo-FM), "masked" (EndoFM-LV), "vcl" (contrast of videos), "vicreg",
            "features" (of a frozen teacher, EVA-02).
        backbone: the network to train.
        image_model: name in timm of an image model, which replaces ``backbone`` and sees single frames; its pictures
            have the size of the global views and timm's normalisation, whatever ``views.input`` is.
        views: the views of each clip.
        dino: settings of the objectives dino and masked.
        masking: further settings of masked.
        contrast: settings of vcl.
        features: teacher and settings of features.
        vicreg: settings of vicreg.
        initialisation: "scratch", or weights: a file (Endo-FM, SVT, image models), a model's folder, a hub id. For an
            ``image_model`` a file of its own, a folder of such a model, or "hub" for the weights that timm knows.
        split: split to learn from; None takes "pretrain", "train" and rows without a split, never "val" and "test".
        epochs: number of passes over the rows.
        steps: number of updates; replaces ``epochs``.
        batch: clips per update, in all processes together.
        accumulation: number of pieces in which a process computes its share of the batch.
        precision: "float32", "bfloat16", "float16" or "auto".
        lr: the highest learning rate for a batch of 256; it is scaled in proportion to the batch.
        lr_end: the learning rate at the end.
        warmup_epochs: epochs in which the learning rate rises.
        weight_decay: weight decay at the start and at the end.
        clip: largest norm of each tensor's gradient.
        seed: seed of every random generator in the run.
        save_every: steps between checkpoints.
        keep: number of checkpoints to keep.
        workers: number of processes that load data.
        device: device of the computation: "cpu", "cuda", "cuda:1", "mps", or "auto" for the first of cuda, mps and cpu.
        compile: compile the backbone with torch.compile.
        trackers: Accelerate's names of trackers, in addition to the log.
        probe: labelled manifest for the kNN and linear probes, which learn from its "train" rows and are tested on
            "val" rows during the run and on "test" rows before and after it; if one split is missing, the other serves.
        probe_label: column of the labels in that manifest.
        probe_every: steps between probes; a probe always runs before the first step and at the end.
    """

    manifest: str | Path
    out: str | Path
    others: tuple[str | Path, ...] = ()
    weights: tuple[float, ...] = ()
    objective: str = "dino"
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    image_model: str | None = None
    views: ViewSpec = field(default_factory=ViewSpec)
    dino: DinoConfig = field(default_factory=DinoConfig)
    masking: MaskConfig = field(default_factory=MaskConfig)
    contrast: ContrastConfig = field(default_factory=ContrastConfig)
    features: FeatureConfig = field(default_factory=FeatureConfig)
    vicreg: VicregConfig = field(default_factory=VicregConfig)
    initialisation: str = "scratch"
    split: str | None = None
    epochs: float = 30
    steps: int | None = None
    batch: int = 12
    accumulation: int = 1
    precision: Precision = "float32"
    lr: float = 5e-4
    lr_end: float = 1e-6
    warmup_epochs: float = 10
    weight_decay: tuple[float, float] = (0.04, 0.4)
    clip: float = 3.0
    seed: int = 0
    save_every: int = 500
    keep: int = 2
    workers: int = 0
    device: str = "auto"
    compile: bool = False
    trackers: tuple[str, ...] = ("tensorboard",)
    probe: str | Path | None = None
    probe_label: str = "label"
    probe_every: int = 500

    def __post_init__(self) -> None:
        for name in ("manifest", "out", "probe"):
            if isinstance(getattr(self, name), str):  # text is accepted too
                object.__setattr__(self, name, Path(getattr(self, name)))
        object.__setattr__(self, "others", tuple(map(Path, self.others)))
        if self.weights and (len(self.weights) != 1 + len(self.others) or not self.others):
            raise UserError(
                f"There are {len(self.weights)} weights for {1 + len(self.others)} manifests: give one for each of "
                "several manifests, or none."
            )
        if wrong := [weight for weight in self.weights if not 0 < weight < float("inf")]:
            raise UserError(f"The weight of a manifest is {wrong[0]}; give finite numbers above 0.")
        if self.objective not in OBJECTIVES:
            raise UserError(
                f"objective is {self.objective!r}; choose one of {', '.join(OBJECTIVES)}, or give an objective of your "
                "own to pretrain(config, objective=...)."
            )
        for name in ("epochs", "batch", "lr", "clip", "probe_every"):
            if not 0 < getattr(self, name) < float("inf"):
                raise UserError(f"{name} is {getattr(self, name)}; give a number above 0.")
        backbone = self.chosen.backbone(self.network[1])
        sides = [self.views.global_px, self.views.local_px]
        if self.image_model is None:
            object.__setattr__(self, "backbone", backbone)
        else:
            object.__setattr__(self, "views", replace(self.views, input=frame_input(backbone)))
            sides = sides[: 2 if self.chosen.views(self.views).local_frames else 1]
            if len(set(sides)) > 1:
                raise UserError(
                    f"{self.image_model} takes pictures of one size, but global views have {sides[0]} px and local "
                    f"views {sides[1]} px. Set views.local_frames to [], or set one size for both."
                )
        for px in sides:
            if px % backbone.patch_px:
                raise UserError(f"Views of {px} px do not divide into patches of {backbone.patch_px} px.")

    @property
    def chosen(self) -> Objective:
        """The objective with its settings."""
        return getattr(self, OBJECTIVES[self.objective])

    @property
    def network(self) -> tuple[type[Encoder], Any]:
        """Class and configuration of the backbone to train."""
        if self.image_model is None:
            return VideoTransformer, self.backbone
        return FrameBackbone, _frame_config(self.image_model, self.views.global_px)

    def steps_per_epoch(self, n_clips: int) -> int:
        """Number of updates in which every clip is seen once."""
        return max(1, n_clips // self.batch)

    def n_steps(self, n_clips: int) -> int:
        """Number of updates in the whole run."""
        return self.steps if self.steps is not None else max(1, round(self.epochs * self.steps_per_epoch(n_clips)))


@lru_cache
def _frame_config(name: str, image_px: int) -> FrameConfig:
    """`frame_config`, which builds the model to learn its sizes."""
    return frame_config(name, image_px)


def endo_fm(manifest: Path, out: Path) -> PretrainConfig:
    """The published settings: ViT-B/16 with time, ten views, 12 clips per step, 30 epochs.

    It is the published recipe only from the weights that the released training loads; see `explained`.
    """
    return PretrainConfig(manifest, out, precision="bfloat16", workers=4)


def small(manifest: Path, out: Path) -> PretrainConfig:
    """The published settings with ViT-S/16 and a head for less data: for one GPU."""
    dino = DinoConfig(prototypes=8192, teacher_temperature=0.04, momentum=0.99)
    return PretrainConfig(manifest, out, backbone=BACKBONES["small"], dino=dino, precision="bfloat16", workers=4)


# Mean and standard deviation of the phantom's pixels. With ImageNet's normalisation, the colour that all endoscopic
# frames share dominates every feature of an untrained network, and a short training from scratch cannot unlearn it.
_PHANTOM = InputSpec(80, (0.70, 0.44, 0.39), (0.33, 0.25, 0.23))


def tiny(manifest: Path, out: Path) -> PretrainConfig:
    """A small run for lessons: 3 M parameters, small views of short clips, minutes on a laptop's CPU.

    The objective is contrast without colour jitter, because mainly colour separates a bleeding or an ulcer of the
    phantom from its surroundings. The key encoder has a low momentum, because the run is short. ``objective="dino"``
    works with the same views; its settings here suit little data: few prototypes and a low teacher temperature.
    """
    views = ViewSpec(
        clip_s=2.0,
        short_side_px=160,
        global_frames=(2, 4),
        local_frames=(2, 2, 4, 4),
        global_shift=4,
        local_window=0.25,
        global_px=80,
        local_px=48,
        local_scale=(0.1, 0.4),
        jitter=0.0,
        grey=0.0,
        input=_PHANTOM,
    )
    dino = DinoConfig(prototypes=512, hidden=512, bottleneck=128, teacher_temperature=0.03, momentum=0.99)
    return PretrainConfig(
        manifest,
        out,
        objective="vcl",
        backbone=BACKBONES["tiny"],
        views=views,
        dino=replace(dino, teacher_temperature_start=0.03),
        contrast=ContrastConfig(hidden=512, temperature=0.1, queue=64, momentum=0.5),
        steps=200,
        batch=32,
        precision="bfloat16" if automatic_dtype() == torch.bfloat16 else "float32",
        lr=8e-3,  # 1e-3 at a batch of 32
        warmup_epochs=3,
        save_every=50,
        probe_every=50,
    )


def long_video(manifest: Path, out: Path) -> PretrainConfig:
    """EndoFM-LV: minute-long clips at 2 frames per second, more frames per view, masked tokens in addition to DINO."""
    views = ViewSpec(
        clip_s=60.0, clip_fps=2.0, global_frames=(16, 32), local_frames=(4, 4, 8, 8, 8, 8, 16, 16), local_window=0.2
    )
    return PretrainConfig(
        manifest,
        out,
        objective="masked",
        backbone=replace(BACKBONES["base"], frames=32, mask_token=True, checkpointing=True),
        views=views,
        dino=DinoConfig(prototypes=8192),
        precision="bfloat16",
        workers=4,
    )


def images(manifest: Path, out: Path) -> PretrainConfig:
    """Image models on single frames: EVA-02 continues from its weights and learns the features of a given teacher."""
    views = ViewSpec(global_frames=(1, 1), local_frames=(), global_shift=0, global_scale=(0.2, 1.0), grey=0.0)
    return PretrainConfig(
        manifest,
        out,
        objective="features",
        image_model="eva02_small_patch14_224.mim_in22k",
        initialisation="hub",
        views=views,
        batch=64,
        precision="bfloat16",
        lr=2e-4,
        warmup_epochs=1,
        weight_decay=(0.05, 0.05),
        workers=4,
    )


PRESETS: dict[str, Callable[[Path, Path], PretrainConfig]] = {
    "endo-fm": endo_fm,
    "small": small,
    "tiny": tiny,
    "long-video": long_video,
    "images": images,
}


FROM_SCRATCH = (
    "this training starts from scratch, so it is not the published recipe, which starts from Kinetics-400 weights of "
    "SVT in student and teacher: give them with --start FILE."
)
DIFFERENCES = {
    "endo-fm": (
        f"start: without one, {FROM_SCRATCH}",
        "epochs: 30, as the authors state; the default of the released script is 100.",
        "precision: bfloat16; the released training computes in float16 with a scaler.",
    ),
    "small": ("size: ViT-S/16, 8,192 prototypes and a teacher that follows faster, for one GPU.",),
    "tiny": ("everything: sizes, views and objective are chosen for lessons on a laptop.",),
    "long-video": ("source: the paper of EndoFM-LV; no released training code was available for comparison.",),
    "images": ("everything: it trains image models on single frames; the published training has videos only.",),
}


def explained(preset: str | None) -> list[str]:
    """The differences of a preset from the published training, in lines.

    Raises:
        UserError: the preset does not exist.
    """
    name = preset or "endo-fm"
    if name not in DIFFERENCES:
        raise UserError(f"There is no preset {name!r}; choose one of {', '.join(DIFFERENCES)}.")
    published = name in ("endo-fm", "long-video")
    head = "the published settings, with these differences:" if published else "not a published recipe:"
    return [f"{name}: {head}", *(f"- {line}" for line in DIFFERENCES[name])]


def with_settings(config: PretrainConfig, settings: dict[str, Any]) -> PretrainConfig:
    """A configuration with some settings changed; keys like "batch" or "views.global_px", values as in JSON.

    "backbone" also takes the name of a preset ("small").

    Raises:
        UserError: a key is unknown, or a value has the wrong type; the message names the key.
    """
    tree = to_json(config)
    for key, value in settings.items():
        *path, last = key.split(".")
        branch: Any = tree
        for name in path:
            branch = branch.get(name) if isinstance(branch, dict) else None
        if not isinstance(branch, dict) or last not in branch:
            names = ", ".join(branch if isinstance(branch, dict) else tree)
            raise UserError(f"There is no setting {key!r}; choose one of {names}.")
        branch[last] = value
    if isinstance(tree["backbone"], str):
        if tree["backbone"] not in BACKBONES:
            raise UserError(f"There is no backbone preset {tree['backbone']!r}; choose one of {', '.join(BACKBONES)}.")
        tree["backbone"] = asdict(BACKBONES[tree["backbone"]])
    return from_json(tree)


def to_json(config: PretrainConfig) -> dict[str, Any]:
    """The configuration as plain JSON values."""
    return to_plain(asdict(config))


def from_json(tree: dict[str, Any]) -> PretrainConfig:
    """The configuration that `to_json` wrote."""
    return from_plain(PretrainConfig, tree, "config")


def settings(config: PretrainConfig, objective: Objective) -> dict[str, Any]:
    """All settings of a run as plain JSON values, including those of an objective from outside the table."""
    tree = to_json(config)
    if objective != config.chosen:
        tree |= {"objective": objective.name, SETTINGS: to_plain(asdict(objective))}
        tree |= {OWN_CLASS: name} if (name := name_of(type(objective))) else {}
    return tree


def stored_settings(tree: dict[str, Any]) -> dict[str, Any]:
    """The settings in a run folder, with the defaults of settings that are newer than the folder."""
    return to_json(known_settings(tree)) | {name: tree[name] for name in _OBJECTIVE if name in tree}


def known_settings(tree: dict[str, Any]) -> PretrainConfig:
    """The configuration in a run folder, without an objective that was given as an object."""
    excluded = _OBJECTIVE if SETTINGS in tree else ()
    return from_json({name: value for name, value in tree.items() if name not in excluded})


def own_objective(tree: dict[str, Any], source: str) -> Objective | None:
    """The objective that was given as an object, from the settings in a run folder; None without such an objective.

    Raises:
        UserError: the class of the objective is not allowed, or its settings have changed.
    """
    if SETTINGS not in tree:
        return None
    if OWN_CLASS in tree:
        return from_plain(class_named(tree[OWN_CLASS], Objective, source), tree[SETTINGS], SETTINGS)
    kind = type(getattr(PretrainConfig(Path(), Path()), OBJECTIVES[tree["objective"]]))
    return from_plain(kind, tree[SETTINGS], SETTINGS)


def signs_of(description: dict[str, Any]) -> Signs:
    """The signs of health in the log of a run, from the content of its ``config.json``.

    A folder of an older version without signs is read by the name of its objective.
    """
    if "signs" in description:
        return from_plain(Signs, description["signs"], "signs")
    config = from_json(description["config"])
    return config.chosen.signs(config)
