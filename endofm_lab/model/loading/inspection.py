"""Describe the content of a weights file without building a model from it."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from endofm_lab.brief import Brief
from endofm_lab.errors import UserError
from endofm_lab.model.card import collapse
from endofm_lab.model.loading.formats import LAYOUTS, OF_OTHERS, Checkpoint, config_of, load_state, sizes_of
from endofm_lab.model.loading.image_weights import spatial_part
from endofm_lab.model.loading.locate import locate
from endofm_lab.model.loading.released import NETWORKS
from endofm_lab.model.transformer import VideoTransformer
from endofm_lab.model.video_model import CLASS, build_model
from endofm_lab.model.weight_files import FLOATING

_AS_IMAGE = (
    "strictly: as an encoder of single frames, load_model(path), or as the spatial part of a video transformer, "
    "initialise(backbone, path)"
)
_USES = {"image": _AS_IMAGE, "image-training": _AS_IMAGE}
_SEALED = "sealed with the weights: unchanged since the model was saved"
_UNSEALED = "not sealed, as in models of older versions: its changes are not noticed. Saving the model again seals it"
_SHOWN = ("architecture", "attention", "width", "depth", "heads", "patch_px", "image_px", "frames", "mlp_ratio")


@dataclass(frozen=True, repr=False)
class CheckpointReport(Brief):
    """The result of `inspect_checkpoint`.

    Attributes:
        path: the file.
        size_bytes: its size.
        sha256: of its bytes.
        layout: a key of `LAYOUTS`, and ``kind`` the same in words.
        network: which network is taken, of those in ``networks``.
        architecture: the backbone's settings, as far as the file gives them; None if its tensors contradict each other.
        parameters: numbers in the network's tensors, and ``backbone_parameters`` those of its backbone.
        dtype: of the backbone's tensors.
        missing: tensors that such a backbone has and the file lacks (block numbers merged into ranges).
        unexpected: tensors in the file that such a backbone lacks.
        rest: the network's other tensors: heads, decoder.
        ignored: top-level entries that are no part of the network.
        settings: what the file says about its training.
        normalisation: the normalisation that belongs to the weights, in words.
        initialisation: of our own models, in words.
        sealed: of our own models: whether a change of the card would be noticed; models of older versions have no seal.
        problems: why the backbone would not load strictly; empty if it would.
    """

    path: str
    size_bytes: int
    sha256: str
    layout: str
    kind: str
    network: str
    networks: tuple[str, ...]
    architecture: dict[str, Any] | None
    parameters: int
    backbone_parameters: int
    dtype: str
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    rest: tuple[str, ...]
    ignored: tuple[str, ...]
    settings: dict[str, Any]
    normalisation: str
    initialisation: str | None
    sealed: bool | None
    problems: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """The report as plain JSON values."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    def __str__(self) -> str:
        assumed = "" if self.layout == "own" else " (one per 64 channels, by convention)"
        sizes = self.architecture or {}
        shown = [f"{key} {sizes[key]}{assumed if key == 'heads' else ''}" for key in _SHOWN if key in sizes]
        other_networks = [name for name in self.networks if name != self.network]
        rows = {
            "file": f"{self.path} ({self.size_bytes / 1e6:,.1f} MB)",
            "sha256": self.sha256,
            "kind": f"{self.kind} [{self.layout}]",
            "network": self.network + (f" (the file also has: {', '.join(other_networks)})" if other_networks else ""),
            "architecture": ", ".join(shown) or "not given by the tensors",
            "parameters": f"{self.parameters:,}, of them {self.backbone_parameters:,} in the backbone ({self.dtype})",
            "missing": ", ".join(self.missing) or "none",
            "unexpected": ", ".join(self.unexpected) or "none",
            "beside it": ", ".join(self.rest) or "nothing",
            "not read": ", ".join(self.ignored) or "nothing",
            "says": ", ".join(f"{key} = {value}" for key, value in self.settings.items()) or "nothing of its training",
            "normalise": self.normalisation,
            "start": self.initialisation or "not recorded",
            **({} if self.sealed is None else {"card": _SEALED if self.sealed else _UNSEALED}),
            "loads": "no: " + " ".join(self.problems) if self.problems else _USES.get(self.layout, "strictly"),
        }
        return "\n".join(f"{label:<13} {text}" for label, text in rows.items())


def inspect_checkpoint(path_or_name: str | Path) -> CheckpointReport:
    """The content of a weights file, model folder or hub id: layout, architecture, completeness, normalisation, hash.

    A backbone that would not load is described too, with the reason in ``problems``.

    Raises:
        CheckpointError: the file cannot be read safely, or holds no transformer of a known layout.
    """
    checkpoint = load_state(locate(path_or_name))
    tensors = checkpoint.backbone
    architecture, missing, unexpected, problems = _compared(checkpoint)
    return CheckpointReport(
        path=str(checkpoint.path),
        size_bytes=checkpoint.path.stat().st_size,
        sha256=checkpoint.sha256,
        layout=checkpoint.layout,
        kind=LAYOUTS[checkpoint.layout],
        network=checkpoint.network,
        networks=checkpoint.networks,
        architecture=architecture,
        parameters=sum(tensor.numel() for tensor in checkpoint.tensors.values()),
        backbone_parameters=sum(tensor.numel() for tensor in tensors.values()),
        dtype=", ".join(sorted({str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values()})),
        missing=tuple(collapse(missing)),
        unexpected=tuple(collapse(unexpected)),
        rest=tuple(collapse(checkpoint.rest)),
        ignored=checkpoint.ignored,
        settings=checkpoint.settings,
        normalisation=_normalisation(checkpoint),
        initialisation=checkpoint.card.initialisation["words"] if checkpoint.card else None,
        sealed=checkpoint.sealed if checkpoint.card and checkpoint.layout == "own" else None,
        problems=tuple(problems),
    )


def _compared(checkpoint: Checkpoint) -> tuple[dict[str, Any] | None, list[str], list[str], list[str]]:
    """Sizes, missing names, unexpected names, problems: of the whole model if it has a card, else of the backbone."""
    sizes = None
    try:
        sizes = sizes_of(checkpoint)
        with torch.device("meta"):  # shapes alone
            module: nn.Module
            if checkpoint.card:
                module, tensors = build_model(checkpoint.card), checkpoint.tensors
                if checkpoint.layout in OF_OTHERS:  # its other tensors are no part of the model
                    module, tensors = module.get_submodule("backbone"), checkpoint.backbone
                sizes = {name: value for name, value in checkpoint.card.backbone.items() if name not in ("kind", CLASS)}
            else:
                config = config_of(checkpoint)
                sizes = asdict(config)
                module, tensors = VideoTransformer(config), checkpoint.backbone
                if checkpoint.is_image:
                    tensors, _, _ = spatial_part(checkpoint, config)
    except UserError as error:  # incomplete, or no network of ours
        outside_blocks = ["cls_token", "pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias"]
        outside_blocks += [] if checkpoint.is_image else ["time_embed"]
        return sizes, [name for name in outside_blocks if name not in checkpoint.backbone], [], [str(error)]
    expected = module.state_dict()
    missing = [name for name in expected if name not in tensors]
    unexpected = [name for name in tensors if name not in expected]
    problems = [
        f"{name} has shape {tuple(tensor.shape)}, but {tuple(expected[name].shape)} is needed."
        for name, tensor in tensors.items()
        if name in expected and tensor.shape != expected[name].shape
    ]
    problems += [
        f"{name} holds numbers of the type {str(tensor.dtype).removeprefix('torch.')}."
        for name, tensor in tensors.items()
        if name in expected and tensor.dtype != expected[name].dtype and tensor.dtype not in FLOATING
    ]
    if missing or unexpected:
        problems.append(f"{len(missing)} tensors are missing and {len(unexpected)} unexpected.")
    return sizes, missing, unexpected, problems


def _normalisation(checkpoint: Checkpoint) -> str:
    if checkpoint.card is None:
        return NETWORKS[checkpoint.layout].normalisation
    spec = checkpoint.card.input
    prefix = "every frame stretched to its own range, then " if spec.own_range else ""
    return f"{prefix}mean {list(spec.mean)}, std {list(spec.std)} at {spec.size_px} px, {checkpoint.normalisation}"
