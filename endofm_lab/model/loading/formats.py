"""Find out which of the known layouts a weights file has, and where the backbone is in the file.

| layout         | file                                          | top level                                      |
|----------------|-----------------------------------------------|------------------------------------------------|
| video-training | `endo_fm.pth`, SVT `kinetics400_vitb_ssl.pth` | `student`, `teacher`, `optimizer`, `args`      |
| timesformer    | TimeSformer K400                              | `model_state`, prefix `model.`, 400-class head |
| polypdiag      | Endo-FM fine-tuned on PolypDiag               | `backbone_state_dict`, `state_dict` (linear)   |
| segmenter      | Endo-FM fine-tuned on CVC-12k                 | the segmenter's tensors                        |
| detector       | Endo-FM fine-tuned on KUMC                    | `model`                                        |
| video          | any other file with this transformer          | tensors, also in `model` or `state_dict`       |
| image-training | DINO's full checkpoints                       | as video-training, without time                |
| image          | DINO, DINOv2, MAE, timm's ViTs                | tensors, also in `model` or `state_dict`       |
| own            | a model folder of ours                        | `model.safetensors` beside `card.json`         |
| transformers   | VideoMAE, V-JEPA 2, TimeSformer, ViViT        | `model.safetensors` beside `config.json`       |
| torchvision    | MViT v2, Video Swin, 3-D ResNets              | tensors                                        |

The backbone is found by the tensor ``patch_embed.proj.weight`` (in the segmenter: ``transformer.encoder.cls_token``):
the text before that name is its prefix.
"""

import math
import re
from argparse import Namespace
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from endofm_lab.brief import Brief
from endofm_lab.errors import CheckpointError
from endofm_lab.files import sha256_of
from endofm_lab.model.card import CARD_FILE, WEIGHTS_FILE, ModelCard, read_card
from endofm_lab.model.encoder import Encoder
from endofm_lab.model.loading.seal import is_sealed
from endofm_lab.model.others import torchvision_video
from endofm_lab.model.others.hugging_face import HuggingFaceVideo
from endofm_lab.model.others.hugging_face_config import FAMILIES
from endofm_lab.model.others.hugging_face_folder import is_folder_of_transformers, model_type, read_folder
from endofm_lab.model.transformer import BackboneConfig
from endofm_lab.model.weight_files import read_weights
from endofm_lab.video.clips import ClipSpec

LAYOUTS = {
    "video-training": "training checkpoint of a video transformer (Endo-FM, SVT)",
    "timesformer": "TimeSformer, trained to name actions (Kinetics)",
    "polypdiag": "Endo-FM fine-tuned on PolypDiag: backbone and linear head",
    "segmenter": "Endo-FM fine-tuned on CVC-12k: TransUNet-style segmenter",
    "detector": "Endo-FM fine-tuned on KUMC: FCOS detector with STFT",
    "video": "video transformer without further information",
    "image-training": "training checkpoint of an image transformer (DINO)",
    "image": "image transformer (DINO, DINOv2, MAE, timm)",
    "own": "model folder of endofm_lab",
    "transformers": "video model of Hugging Face transformers",
    "torchvision": "video model of torchvision",
    "memory": "model of endofm_lab in memory",
}

LONGEST_NAME = 250  # letters of a tensor's name

OF_OTHERS = ("transformers", "torchvision")  # encoders of other libraries, whose tensors are no whole model of ours
_WRAPPERS = ("module", "_orig_mod", "model")  # DataParallel, torch.compile, TimeSformer
_CONTAINERS = ("model_state", "state_dict", "model")  # where other trainers keep the tensors
_BACKBONE = re.compile(r"(cls_token|pos_embed|time_embed|mask_token|patch_embed\.proj\.\w+|blocks\.\d+\..+|norm\.\w+)$")
_SETTINGS = ("arch", "data_path", "epochs", "epoch", "n_frames", "local_crops_number")  # of `args`, worth showing


@dataclass(frozen=True, eq=False, repr=False)
class Checkpoint(Brief):
    """The parts of a weights file.

    Attributes:
        path: the file.
        layout: a key of `LAYOUTS`.
        network: which network was used: "teacher", "student", or "model" if the file has only one.
        networks: those the file has.
        backbone: the backbone's tensors under the names `VideoTransformer` gives them; from image models unchanged.
        rest: the network's other tensors (heads, decoder), named as in the file without wrapper prefixes.
        tensors: every tensor of the network, named as in the file without wrapper prefixes.
        ignored: top-level entries that are no part of the network, such as the optimiser.
        settings: what the file says about its training.
        card: of our own models.
        sealed: the weights file carries a copy of the card, and the card is still the same.
        digest: of a model in memory, which has no file.
        encoder: the backbone of a model in memory.
        normalisation: of a folder of `transformers`, where its mean and std were read, in words.
    """

    path: Path
    layout: str
    network: str
    networks: tuple[str, ...]
    backbone: dict[str, Tensor]
    rest: dict[str, Tensor]
    tensors: dict[str, Tensor]
    ignored: tuple[str, ...]
    settings: dict[str, Any]
    card: ModelCard | None = None
    sealed: bool = False
    digest: str | None = None
    encoder: Encoder | None = None
    normalisation: str = "from the card"

    @cached_property
    def sha256(self) -> str:
        """Of the file's bytes."""
        return self.digest or sha256_of(self.path)

    @property
    def is_image(self) -> bool:
        """Whether the backbone has no temporal part."""
        return not any(is_temporal(name) for name in self.backbone)


def is_temporal(name: str) -> bool:
    """Whether a tensor of this name belongs to the temporal part of a backbone; image models have none."""
    return name == "time_embed" or ".temporal_" in name


def load_state(path: str | Path) -> Checkpoint:
    """Read a weights file (or a model folder) of any layout in `LAYOUTS`; of student and teacher, the teacher.

    Raises:
        CheckpointError: the file cannot be read safely, holds no transformer of these layouts, or a model folder's
            weights are not those its card was written for, or its card was changed after it was saved.
    """
    path = Path(path)
    folder = path.parent if path.name == WEIGHTS_FILE else path
    if is_folder_of_transformers(folder) and (path.is_dir() or model_type(folder) in FAMILIES):
        return _of_transformers(folder)
    card = None
    if path.is_dir() or (path.name == WEIGHTS_FILE and (path.parent / CARD_FILE).exists()):
        path = path / WEIGHTS_FILE if path.is_dir() else path
        card = read_card(path.parent)
    content = read_weights(path)
    network, networks, tensors, used = _choose_network(content, path)
    if long := [name for name in tensors if len(name) > LONGEST_NAME]:
        raise CheckpointError(
            f"{path} has a tensor whose name has {len(long[0]):,} letters ({long[0][:40]}...); names have at most "
            f"{LONGEST_NAME}. The file is damaged, or no network."
        )
    if card is None and (name := torchvision_video.architecture_of(tensors)) is not None:
        return _of_torchvision(path, name, tensors)
    layout = "own" if card else _layout(content, tensors)
    names = _backbone_names(tensors, layout, path)
    checkpoint = Checkpoint(
        path=path,
        layout=layout,
        network=network,
        networks=networks,
        backbone={new: tensors[old] for old, new in names.items()},
        rest={name: tensor for name, tensor in tensors.items() if name not in names},
        tensors=tensors,
        ignored=tuple(str(key) for key in content if key not in used),
        settings=_settings(content),
        card=card,
    )
    if card and card.weights_sha256 not in (None, checkpoint.sha256):
        raise CheckpointError(
            f"{path} is not the file its {CARD_FILE} was written for (SHA-256 {checkpoint.sha256[:12]}..., the card "
            f"says {str(card.weights_sha256)[:12]}...); copy both files again, from one place."
        )
    return replace(checkpoint, sealed=is_sealed(path)) if card else checkpoint


def _of_transformers(folder: Path) -> Checkpoint:
    """The video encoder in a folder of `transformers`, with a card that says what its files say."""
    content = read_folder(folder)
    config, words = content.config, content.config.family.words
    card = ModelCard(
        name=content.name,
        backbone=HuggingFaceVideo.describe(config),
        input=content.input,
        clip=ClipSpec(n_frames=config.frames, stride=2),
        data={"description": f"{words}. Its mean and std are {content.normalisation}."},
    )
    return _of_others(folder / WEIGHTS_FILE, "transformers", card, content.encoder, content.rest, content.normalisation)


def _of_torchvision(path: Path, name: str, tensors: dict[str, Tensor]) -> Checkpoint:
    """The video encoder in a file of torchvision, with a card that says what its architecture says."""
    config, architecture = torchvision_video.TorchvisionConfig(name), torchvision_video.ARCHITECTURES[name]
    classifier, normalisation = f"{architecture.classifier}.", f"those of the published weights of {name}"
    card = ModelCard(
        name=path.stem,
        backbone=torchvision_video.TorchvisionVideo.describe(config),
        input=replace(architecture.input, size_px=config.image_px),
        clip=ClipSpec(n_frames=config.frames, stride=2),
        data={"description": f"{name}. Its mean and std are {normalisation}."},
    )
    encoder = {f"net.{key}": tensor for key, tensor in tensors.items() if not key.startswith(classifier)}
    rest = {key: tensor for key, tensor in tensors.items() if key.startswith(classifier)}
    return _of_others(path, "torchvision", card, encoder, rest, normalisation)


def _of_others(
    path: Path, layout: str, card: ModelCard, encoder: dict[str, Tensor], rest: dict[str, Tensor], normalisation: str
) -> Checkpoint:
    """The encoder of another library as a checkpoint."""
    words = f"{LAYOUTS[layout]}; the file does not say on which data it was trained: {card.data['description']}"
    return Checkpoint(
        path=path,
        layout=layout,
        network="model",
        networks=("model",),
        backbone=encoder,
        rest=rest,
        tensors=encoder | rest,
        ignored=(),
        settings={},
        card=replace(card, data={"description": words}, initialisation={"words": ""}),
        normalisation=normalisation,
    )


def _choose_network(
    content: dict[str, Any], path: Path
) -> tuple[str, tuple[str, ...], dict[str, Tensor], tuple[str, ...]]:
    """Name of the chosen network, all names, its tensors without wrappers, and the top-level keys they came from."""
    networks = tuple(name for name in ("teacher", "student") if _is_state(content.get(name)))
    if networks:
        return networks[0], networks, _unwrapped(content[networks[0]]), networks
    if _is_state(content.get("backbone_state_dict")):
        head = content.get("state_dict")
        tensors = _unwrapped(content["backbone_state_dict"]) | (_unwrapped(head) if isinstance(head, dict) else {})
        return "model", ("model",), tensors, ("backbone_state_dict", "state_dict")
    for container in _CONTAINERS:
        if _is_state(content.get(container)):
            return "model", ("model",), _unwrapped(content[container]), (container,)
    tensors = _unwrapped(content)
    if not tensors:
        raise CheckpointError(
            f"{path} holds no tensors of a network (its top level: {_some(content)}); "
            "expected a state dict, or one under teacher, model_state, backbone_state_dict, model or state_dict."
        )
    return "model", ("model",), tensors, tuple(key for key in content if isinstance(content[key], Tensor))


def _is_state(value: Any) -> bool:
    return isinstance(value, dict) and any(isinstance(entry, Tensor) for entry in value.values())


def _unwrapped(state: dict[str, Any]) -> dict[str, Tensor]:
    """The tensors of a state dict; a wrapper's prefix that all their names share is taken off."""
    tensors = {str(name): tensor for name, tensor in state.items() if isinstance(tensor, Tensor)}
    while any(tensors and all(name.startswith(f"{wrapper}.") for name in tensors) for wrapper in _WRAPPERS):
        tensors = {name.partition(".")[2]: tensor for name, tensor in tensors.items()}
    return tensors


def _layout(content: dict[str, Any], tensors: dict[str, Tensor]) -> str:
    if any(name.startswith("rpn.head.") for name in tensors):
        return "detector"
    if any(".hybrid_model." in name for name in tensors):
        return "segmenter"
    if not any(name.endswith("time_embed") or ".temporal_" in name for name in tensors):
        return "image-training" if "teacher" in content or "student" in content else "image"
    if "teacher" in content or "student" in content:
        return "video-training"
    if "backbone_state_dict" in content:
        return "polypdiag"
    if "model_state" in content and "head.weight" in tensors:
        return "timesformer"
    return "video"


def _backbone_names(tensors: dict[str, Tensor], layout: str, path: Path) -> dict[str, str]:
    """Name in the file -> name in `VideoTransformer`, for the tensors of the backbone."""
    if layout == "own":
        return {name: name.removeprefix("backbone.") for name in tensors if name.startswith("backbone.")}
    if layout == "segmenter":  # its patches come from a ResNet: no patch_embed, no pos_embed, no time_embed
        prefix = "transformer.encoder."
        renamed = {"layer.": "blocks.", "encoder_norm.": "norm."}
    else:
        anchors = [name for name in tensors if name.endswith("patch_embed.proj.weight")]
        if len(anchors) != 1:
            candidates = f"{len(anchors)} of them ({', '.join(anchors)})" if anchors else f"these: {_some(tensors)}"
            raise CheckpointError(
                f"{path} must hold one vision transformer with a tensor patch_embed.proj.weight, but has {candidates}. "
                "Known layouts: " + "; ".join(LAYOUTS.values()) + "."
            )
        prefix = anchors[0].removesuffix("patch_embed.proj.weight")
        renamed = {}
    names = {}
    for name in tensors:
        if name.startswith(prefix):
            new = name.removeprefix(prefix)
            for old_start, new_start in renamed.items():
                if new.startswith(old_start):
                    new = new_start + new.removeprefix(old_start)
            if _BACKBONE.match(new):
                names[name] = new
    return names


def config_of(checkpoint: Checkpoint) -> BackboneConfig:
    """The configuration that the shapes of a backbone's tensors imply.

    The shapes do not show the number of heads; as in every released model, one head per 64 channels is assumed.

    Raises:
        CheckpointError: a tensor that fixes the configuration is missing or has an impossible shape.
    """
    sizes, path = sizes_of(checkpoint), checkpoint.path
    fixes = {
        "width": "cls_token",
        "depth": "blocks.0",
        "patch_px": "patch_embed.proj.weight",
        "image_px": "pos_embed",
        "frames": "time_embed",
        "mlp_ratio": "blocks.0.mlp.fc1.weight",
    }
    for size, tensor in fixes.items():
        if size not in sizes:
            raise CheckpointError(
                f"{path} ({LAYOUTS[checkpoint.layout]}) has no {tensor}, so it is not a whole backbone; "
                "start a backbone from the part that it has: initialise(backbone, path)."
            )
    if "heads" not in sizes:
        raise CheckpointError(
            f"{path}: The number of heads is not in the file, and its width {sizes['width']} is not a multiple of 64 "
            "from which it would follow. Build the backbone yourself and use initialise(backbone, path)."
        )
    return BackboneConfig(**sizes)


def sizes_of(checkpoint: Checkpoint) -> dict[str, Any]:
    """Those settings of `BackboneConfig` that the shapes of a backbone's tensors imply.

    Raises:
        CheckpointError: a tensor has an impossible shape.
    """
    tensors, path = checkpoint.backbone, checkpoint.path
    axes = {"cls_token": 3, "pos_embed": 3, "time_embed": 3, "patch_embed.proj.weight": 4, "blocks.0.mlp.fc1.weight": 2}
    for name, n in axes.items():
        if name in tensors and tensors[name].ndim != n:
            raise CheckpointError(f"{path}: {name} has shape {tuple(tensors[name].shape)}, but must have {n} axes.")
    divided = any(".temporal_" in name for name in tensors)
    sizes: dict[str, Any] = {
        "attention": "divided" if divided else "joint" if "time_embed" in tensors else "space_only",
        "mask_token": "mask_token" in tensors and not checkpoint.is_image,
    }
    if "cls_token" in tensors:
        sizes["width"] = width = tensors["cls_token"].shape[-1]
        if width % 64 == 0:
            sizes["heads"] = width // 64
        if "blocks.0.mlp.fc1.weight" in tensors:
            sizes["mlp_ratio"] = tensors["blocks.0.mlp.fc1.weight"].shape[0] / width
    if blocks := {int(name.split(".")[1]) for name in tensors if name.startswith("blocks.")}:
        if max(blocks) >= len(blocks):
            raise CheckpointError(
                f"{path} has a block {max(blocks)}, but only {len(blocks)} blocks in all: blocks are counted from 0 "
                "without gaps. The file is damaged, or a part of a larger one."
            )
        sizes["depth"] = len(blocks)
    if "patch_embed.proj.weight" in tensors:
        sizes["patch_px"] = tensors["patch_embed.proj.weight"].shape[-1]
        if "pos_embed" in tensors:
            sizes["image_px"] = sizes["patch_px"] * grid_of(tensors["pos_embed"], path)[0]
    if "time_embed" in tensors:
        sizes["frames"] = tensors["time_embed"].shape[1]
    elif not divided:
        sizes["frames"] = 1
    return sizes


def grid_of(pos_embed: Tensor, source: str | Path) -> tuple[int, bool]:
    """Side of the patch grid that a position embedding (1, N, D) is for, and whether CLS has a place in it.

    Raises:
        CheckpointError: neither N nor N - 1 is a square.
    """
    tokens = pos_embed.shape[1]
    for has_cls in (True, False):
        side = math.isqrt(max(tokens - has_cls, 0))
        if side and side * side == tokens - has_cls:
            return side, has_cls
    raise CheckpointError(
        f"{source}: pos_embed has {tokens} places; a square grid has a square number of them, one more with CLS. "
        "Models with a distillation token or oblong grids are not supported."
    )


def _settings(content: dict[str, Any]) -> dict[str, Any]:
    """The epoch and the informative arguments among those stored in the file."""
    args = content.get("args")
    values = vars(args) if isinstance(args, Namespace) else args if isinstance(args, dict) else {}
    settings = {key: values[key] for key in _SETTINGS if isinstance(values.get(key), str | int | float)}
    if isinstance(content.get("epoch"), int):
        settings["epoch"] = content["epoch"]
    return settings


def _some(names: Any) -> str:
    """The first names of a long list, in words."""
    texts = [str(name) for name in names]
    return ", ".join(texts[:6]) + (f", ... ({len(texts)} in all)" if len(texts) > 6 else "")
