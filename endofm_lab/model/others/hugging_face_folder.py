"""Read a folder of `transformers`: its configuration, normalisation and safetensors, strictly and without running code.

The library `transformers` never sees the folder: it gets checked settings and tensors, since some of its settings name
code or files to fetch. Old names of tensors are brought up to date by `transformers` itself.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from endofm_lab.brief import Brief
from endofm_lab.errors import CheckpointError, UserError, shortened
from endofm_lab.model.card import CARD_FILE, WEIGHTS_FILE, collapse
from endofm_lab.model.others.hugging_face import drop_beside
from endofm_lab.model.others.hugging_face_config import FAMILIES, Family, HuggingFaceConfig, configured, library
from endofm_lab.model.weight_files import read_weights
from endofm_lab.video.transforms import InputSpec

CONFIG_FILE = "config.json"
PROCESSOR_FILES = ("video_preprocessor_config.json", "preprocessor_config.json")
FILES = (CONFIG_FILE, *PROCESSOR_FILES)  # beside the weights
_MOST_BYTES = 4_000_000  # of a file of settings


@dataclass(frozen=True, eq=False, repr=False)
class Folder(Brief):
    """The content of a folder.

    Attributes:
        name: of the folder, or of the repository in the Hub's cache.
        config: the encoder's configuration.
        input: normalisation of its pictures, and ``normalisation`` where that was read.
        encoder: tensors of the encoder by their names in `HuggingFaceVideo`.
        rest: the file's other tensors: decoder, predictor, classifier.
    """

    name: str
    config: HuggingFaceConfig
    input: InputSpec
    normalisation: str
    encoder: dict[str, Tensor]
    rest: dict[str, Tensor]


def is_folder_of_transformers(path: Path) -> bool:
    """Whether a folder has a ``config.json`` of `transformers` and is no model folder of this library."""
    return (path / CONFIG_FILE).is_file() and not (path / CARD_FILE).exists()


def model_type(path: Path) -> str | None:
    """The model type in the ``config.json`` of a folder; None for a model without one.

    Raises:
        CheckpointError: the file is damaged.
    """
    value = _json(path / CONFIG_FILE).get("model_type")
    return value if isinstance(value, str) else None


def read_folder(path: Path) -> Folder:
    """The encoder in a folder as ``save_pretrained`` writes it, strictly.

    Raises:
        CheckpointError: a file is missing or damaged, the model is of another family, a tensor is missing, left over or
            of another shape, or `transformers` is not installed.
    """
    settings = _json(path / CONFIG_FILE)
    architecture = model_type(path)
    if architecture not in FAMILIES:
        raise CheckpointError(
            f"{path / CONFIG_FILE} is of the model type {architecture!r}; the video models of transformers that can be "
            f"read are {', '.join(FAMILIES)}. Image models are read by timm: timm:NAME."
        )
    family = FAMILIES[architecture]
    try:
        config = configured(architecture, settings)
        content = read_weights(_weights_of(path))
        if not all(isinstance(tensor, Tensor) for tensor in content.values()):
            raise CheckpointError(f"{path / WEIGHTS_FILE} holds other things than tensors; fetch it again.")
        taken, rest = _parted(content, family)
        encoder = _renamed(taken, config, path / WEIGHTS_FILE)
        spec, normalisation = _input(path, config)
    except CheckpointError:
        raise
    except UserError as error:
        raise CheckpointError(f"{path}: {error}") from error
    return Folder(_name(path), config, spec, normalisation, encoder, rest)


def _weights_of(path: Path) -> Path:
    if (path / WEIGHTS_FILE).is_file():
        return path / WEIGHTS_FILE
    if list(path.glob("*.safetensors")):
        raise CheckpointError(
            f"{path} has its weights in several files; write them to one {WEIGHTS_FILE}: "
            'model.save_pretrained(folder, max_shard_size="50GB").'
        )
    raise CheckpointError(
        f"{path} has no {WEIGHTS_FILE}. Pickles (pytorch_model.bin) are not read, as they can run code: load the model "
        "in transformers where you trust it, and write it with save_pretrained."
    )


def _parted(content: dict[str, Tensor], family: Family) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The tensors of the encoder without a prefix, and all others by their names in the file."""
    prefix = family.prefix if any(name.startswith(family.prefix) for name in content) else ""
    beside = tuple(f"{prefix}{name}." for name in family.beside)
    of_encoder = {name for name in content if name.startswith(prefix) and not name.startswith(beside or ("\0",))}
    taken = {name.removeprefix(prefix): content[name] for name in content if name in of_encoder}
    return taken, {name: tensor for name, tensor in content.items() if name not in of_encoder}


def _renamed(tensors: dict[str, Tensor], config: HuggingFaceConfig, path: Path) -> dict[str, Tensor]:
    """The tensors by their names in `HuggingFaceVideo`, float32; `transformers` knows the names of its older versions.

    Raises:
        CheckpointError: a tensor is missing, left over or of another shape; all of them are named.
    """
    family = config.family
    model = getattr(library(), family.classes[1])
    with _quiet(), torch.random.fork_rng(devices=[]):
        try:
            net, report = model.from_pretrained(
                None,
                config=config.to_transformers(),
                state_dict=dict(tensors),
                output_loading_info=True,
                ignore_mismatched_sizes=True,
                dtype=torch.float32,
                **family.options,
            )
        except Exception as error:  # a foreign file can break the reader anywhere
            raise CheckpointError(
                f"{path} cannot be read as {family.words} ({shortened(str(error), 200)}); its {CONFIG_FILE} may be of "
                "another model."
            ) from error
    beside = tuple(f"{name}." for name in family.beside)
    missing = sorted(name for name in report["missing_keys"] if not name.startswith(beside or ("\0",)))
    unexpected = sorted(report["unexpected_keys"])
    shapes = [f"{name} ({_by(is_)} in place of {_by(needed)})" for name, is_, needed in report["mismatched_keys"]]
    parts = [
        f"{verb} {', '.join(collapse(names))}"
        for verb, names in (("lacks", missing), ("also has", unexpected), ("has in another shape", sorted(shapes)))
        if names
    ]
    if parts:
        raise CheckpointError(
            f"{path} {'; it '.join(parts)}, so it is not the {family.words} that its {CONFIG_FILE} describes. Fetch "
            "both files again, from one place."
        )
    drop_beside(net, family)
    return {f"net.{name}": tensor.detach() for name, tensor in net.state_dict().items()}


def _by(shape: Any) -> str:
    return " x ".join(map(str, shape))


def _input(path: Path, config: HuggingFaceConfig) -> tuple[InputSpec, str]:
    """Normalisation from the processor's file beside the weights, else that of the family's published models.

    Processors compute ``(x f - o - mean) / std`` from pixels x in 0..255, with a factor f and an offset o of 0 or 1.
    """
    files = [path / name for name in PROCESSOR_FILES if (path / name).is_file()]
    usual = config.family.input
    if not files:
        words = f"those of the published {config.family.words} models, as no file of a processor is beside the weights"
        return InputSpec(config.image_px, usual.mean, usual.std), words
    values = _json(files[0])
    factor = float(values.get("rescale_factor", 1 / 255)) if values.get("do_rescale", True) else 1.0
    offset = 1.0 if values.get("offset", False) and values.get("do_rescale", True) else 0.0
    normalised = values.get("do_normalize", True)
    mean = values.get("image_mean") or list(usual.mean)
    std = values.get("image_std") or list(usual.std)
    try:
        means = [((m if normalised else 0.0) + offset) / (255 * factor) for m in mean]
        deviations = [(s if normalised else 1.0) / (255 * factor) for s in std]
        if factor == 1 / 255 and not offset and normalised:
            means, deviations = mean, std  # without rounding
        return InputSpec(config.image_px, tuple(means), tuple(deviations)), f"from {files[0].name}"  # type: ignore[arg-type]
    except (TypeError, ValueError, ZeroDivisionError) as error:
        raise CheckpointError(
            f"{files[0]}: rescale_factor, image_mean and image_std are {values.get('rescale_factor')!r}, {mean!r} and "
            f"{std!r}; they must be numbers, three of mean and std."
        ) from error


def _json(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise CheckpointError(f"{path} has more than {_MOST_BYTES:,} bytes, so it holds no settings.")
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}); fetch it again.") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} holds no settings; fetch it again.")
    return values


def _name(path: Path) -> str:
    """The name of a folder; in the Hub's cache (``models--owner--name/snapshots/COMMIT``) that of the repository."""
    path = path.resolve()
    repository = path.parent.parent.name
    if path.parent.name == "snapshots" and repository.startswith("models--"):
        return repository.removeprefix("models--").replace("--", "/")
    return path.name


@contextmanager
def _quiet() -> Iterator[None]:
    """Within this context `transformers` shows no progress and no report, since what is wrong becomes an error."""
    logging = library().utils.logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
