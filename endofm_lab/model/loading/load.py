"""Save and load models: load any known weights, save models, start a backbone from weights, and inspect files."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from endofm_lab.errors import CheckpointError
from endofm_lab.familiarity.statistics import FAMILIARITY_FILE, Familiarity, read_familiarity
from endofm_lab.files import atomic_path, sha256_of, write_json
from endofm_lab.model import frame
from endofm_lab.model.card import CARD_FILE, HANDED_OVER, WEIGHTS_FILE, ModelCard
from endofm_lab.model.encoder import Encoder
from endofm_lab.model.loading import downstream
from endofm_lab.model.loading.formats import OF_OTHERS, Checkpoint, config_of, load_state
from endofm_lab.model.loading.image_weights import spatial_part
from endofm_lab.model.loading.initialisation import initialise, public_name, record_of
from endofm_lab.model.loading.inspection import CheckpointReport, inspect_checkpoint
from endofm_lab.model.loading.locate import locate
from endofm_lab.model.loading.released import card_of, head_tensors, image_card_of
from endofm_lab.model.loading.seal import metadata_with_seal
from endofm_lab.model.precision import resolve_device
from endofm_lab.model.video_model import VideoModel, build_frame_model, build_model, encoder_of, model_on
from endofm_lab.model.weight_files import check_fit, load_strictly, state_fingerprint, write_weights
from endofm_lab.outside import Allowed, allowing

__all__ = [
    "Checkpoint",
    "CheckpointReport",
    "in_memory",
    "initialise",
    "inspect_checkpoint",
    "load_model",
    "load_state",
    "load_strictly",
    "model_at",
    "save_model",
    "without_heads",
]


Parts = dict[str, dict[str, Tensor]]  # part of a model, "" for all of it -> its tensors by name


def save_model(model: VideoModel, folder: str | Path) -> Path:
    """Write ``model.safetensors`` and ``card.json`` into a folder, which may exist. Either all are written or none.

    A model with statistics of its training features (``model.familiarity``) also gets ``familiarity.safetensors``. The
    card is given the hashes of these files, also in ``model``, and the weights file a copy of the card: `load_model`
    refuses a folder whose parts do not belong together, or whose card was edited. Other files stay.

    Raises:
        CheckpointError: ``folder`` is a file, or the weights cannot be written there.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise CheckpointError(f"{folder} is a file, but a model is saved as a folder. Choose another name.")
    statistics = None if model.familiarity is None else model.familiarity.to_bytes()
    digest = None if statistics is None else hashlib.sha256(statistics).hexdigest()
    with (
        atomic_path(folder / CARD_FILE) as card_part,
        atomic_path(folder / WEIGHTS_FILE) as weights_part,
        _optional(folder / FAMILIARITY_FILE, statistics),
    ):
        card = replace(model.card, familiarity_sha256=digest)
        try:
            write_weights(model.state_dict(), weights_part, metadata_with_seal(card))
        except SafetensorError as error:
            raise CheckpointError(
                f"{folder / WEIGHTS_FILE} cannot be written ({error}). Make room, or choose another folder."
            ) from error
        card = replace(card, weights_sha256=sha256_of(weights_part))
        write_json(card_part, card.to_json())
    model.card = card
    return folder


@contextmanager
def _optional(path: Path, content: bytes | None) -> Iterator[None]:
    """Write a file when the block succeeds; without content, a file of that name is removed then."""
    if content is None:
        yield
        path.unlink(missing_ok=True)
        return
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)
        yield


def load_model(path_or_name: str | Path, allow: Allowed = (), device: str = "cpu") -> VideoModel:
    """A model in evaluation mode, in float32.

    Args:
        path_or_name: "demo" (the weights in the package), a model folder as `save_model` writes it, a released
            checkpoint with a video transformer, image weights of a plain vision transformer (DINO, DINOv2 without
            registers, timm's ViTs), a folder of `transformers` with VideoMAE, V-JEPA 2, TimeSformer or ViViT, a Hugging
            Face Hub id of any of these (``hf:owner/name``), a file of torchvision's video models, or an image model of
            timm with its weights from the Hub (``timm:eva02_base_patch14_224.mim_in22k``). Released checkpoints have no
            head, or theirs: PolypDiag's classes, the CVC-12k segmenter's masks, the KUMC detector's boxes. Image
            weights become an encoder of single frames without a head.
        allow: code that a model folder may name besides the library's own encoders and heads: packages or modules
            ("my_package"), single classes ("my_package.encoders:Mine"), or classes themselves. A folder cannot make the
            library import anything that is not named here or in `endofm_lab.allow`.
        device: where it computes: "cpu", "cuda", "cuda:1", "mps", or "auto" for the first of cuda, mps and cpu that
            this machine has. Clips that are handed to the model itself have to lie there too.

    Raises:
        UserError: this machine has no such device.
        CheckpointError: the weights cannot be read, are unsafe, are not of a plain transformer, do not fit, or need
            code that is not allowed.
    """
    place = resolve_device(device)
    with allowing(allow):
        return _loaded(path_or_name).to(place)


def _loaded(path_or_name: str | Path) -> VideoModel:
    if str(path_or_name).startswith("timm:"):
        return build_frame_model(str(path_or_name).removeprefix("timm:"), weights=frame.HUB).eval()
    checkpoint = load_state(locate(path_or_name))
    if checkpoint.layout in OF_OTHERS and checkpoint.card is not None:
        keys = list(checkpoint.backbone)
        record = record_of(checkpoint, checkpoint.card.name, keys, keys, resized=[], folded=[])
        card = replace(checkpoint.card, initialisation=record, weights_sha256=checkpoint.sha256)
        return _filled(card, {"backbone": checkpoint.backbone}, checkpoint.path)
    if checkpoint.card is not None:
        card = replace(checkpoint.card, weights_sha256=checkpoint.sha256)
        model = _filled(card, {"": checkpoint.tensors}, checkpoint.path)
        model.familiarity = _statistics_beside(checkpoint.path, model)
        return model
    if checkpoint.layout in downstream.RENAMES:
        card, tensors = downstream.parts_of(checkpoint, public_name(path_or_name, checkpoint))
        return _filled(card, {"": tensors}, checkpoint.path)
    if checkpoint.is_image:
        return _frame_encoder(checkpoint, public_name(path_or_name, checkpoint))
    keys = list(checkpoint.backbone)
    record = record_of(checkpoint, public_name(path_or_name, checkpoint), keys, keys, resized=[], folded=[])
    parts = {"backbone": checkpoint.backbone, "heads": head_tensors(checkpoint)}
    return _filled(card_of(checkpoint, record), parts, checkpoint.path)


def _statistics_beside(weights: Path, model: VideoModel) -> Familiarity | None:
    """The statistics of training features that the card of a model names; None for a card that names none.

    Raises:
        CheckpointError: the file is missing or damaged, is not the one that the card names, or is of another model.
    """
    path, card = weights.with_name(FAMILIARITY_FILE), model.card
    if card.familiarity_sha256 is None:
        return None
    if not path.is_file() or sha256_of(path) != card.familiarity_sha256:
        state = "was changed" if path.is_file() else "is missing"
        raise CheckpointError(
            f"{path} {state}, although the model's card names it (SHA-256 {card.familiarity_sha256[:12]}...). Copy the "
            "whole model folder again."
        )
    statistics = read_familiarity(path)
    if statistics.width != model.backbone.width:
        raise CheckpointError(
            f"{path} is of features of width {statistics.width}, but those of {card.name} have width "
            f"{model.backbone.width}. Copy the whole model folder again."
        )
    return statistics


def _frame_encoder(checkpoint: Checkpoint, name: str) -> VideoModel:
    """The image transformer in a file as a model of single frames, without a head."""
    config = config_of(checkpoint)
    tensors, resized, folded = spatial_part(checkpoint, config)
    record = record_of(checkpoint, name, list(tensors), list(tensors), resized, folded)
    return _filled(image_card_of(checkpoint, config, record), {"backbone": tensors}, checkpoint.path)


def in_memory(model: VideoModel | Encoder) -> Checkpoint:
    """A model or encoder as a checkpoint, so that `initialise` can start another backbone from it."""
    if isinstance(model, Encoder):
        model = model_on(model, {}, model.kind, HANDED_OVER)
    backbone = model.backbone.state_dict()
    heads = {f"heads.{name}": tensor for name, tensor in model.heads.state_dict().items()}
    return Checkpoint(
        path=Path(model.card.name),
        layout="memory",
        network="model",
        networks=("model",),
        backbone=backbone,
        rest=heads,
        tensors=dict(backbone) | heads,
        ignored=(),
        settings={},
        card=model.card,
        digest=state_fingerprint(model),
        encoder=model.backbone,
    )


def without_heads(start: VideoModel | Encoder) -> VideoModel:
    """The backbone of a model or encoder in memory as a model without heads, which can be saved."""
    if isinstance(start, Encoder):
        return model_on(start, {}, start.kind, HANDED_OVER)
    return VideoModel(start.backbone, nn.ModuleDict(), replace(start.card, heads={}))


def model_at(model: VideoModel | str | Path, device: str = "auto") -> VideoModel:
    """The model, or what `load_model` takes, in evaluation mode on the device that computes.

    Args:
        model: stays as it is and where it is; if it has to compute elsewhere, the result is a copy.
        device: as `load_model` takes it; "auto" leaves a model on its GPU.

    Raises:
        UserError: this machine has no such device.
        CheckpointError: as `load_model`.
    """
    place = resolve_device(device)
    if not isinstance(model, VideoModel):
        return load_model(model, device=device)
    current = next(model.parameters()).device
    matches = current.type == place.type and place.index in (None, current.index)
    if matches or (device == "auto" and current.type != "cpu"):
        return model.eval()
    return deepcopy(model).to(place).eval()


def _filled(card: ModelCard, parts: Parts, path: Path) -> VideoModel:
    """The model of a card with the tensors of its parts, in evaluation mode.

    The model is first built without memory, to check that the tensors fit before any of them is copied, and because
    initialising the 121 M parameters of the base model would take seconds. Loading fills every parameter and saved
    buffer; other buffers would stay undefined, so encoders with such buffers are built once more.
    """
    with torch.device("meta"):
        model = build_model(card)
    for name, tensors in parts.items():
        check_fit(model.get_submodule(name), tensors, path)
    if encoder_of(card)[0].state_is_whole:
        assert {name for name, _ in model.named_buffers()} <= model.state_dict().keys()
        model = model.to_empty(device="cpu")
    else:
        model = build_model(card)
    for name, tensors in parts.items():
        model.get_submodule(name).load_state_dict(tensors)
    return model.eval()
