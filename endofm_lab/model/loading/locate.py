"""Find weights in the package, on this disk, or on the Hugging Face Hub."""

import os
import re
from pathlib import Path

from endofm_lab.errors import CheckpointError
from endofm_lab.familiarity.statistics import FAMILIARITY_FILE
from endofm_lab.model.card import CARD_FILE, WEIGHTS_FILE
from endofm_lab.model.others.hugging_face_config import FAMILIES
from endofm_lab.model.others.hugging_face_folder import FILES, is_folder_of_transformers, model_type
from endofm_lab.model.others.torchvision_video import TORCHVISION

PACKAGE_WEIGHTS = Path(__file__).parents[2] / "weights"  # endofm_lab/weights/<name>/
HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")
_BUILT_NAME = re.compile(r"\w[\w.-]{0,99}")
ORIGIN = "origin.json"  # in the folder of a fetched Hub model: repository, commit and licence
_FILE_ENDINGS = (".pth", ".pt", ".pyth", ".bin", ".safetensors", ".ckpt", ".tar")


def models_folder() -> Path:
    """The folder of built models: ``ENDOFM_LAB_MODELS``, otherwise ``.local/share/endofm_lab/models`` in the home."""
    setting = os.environ.get("ENDOFM_LAB_MODELS")
    return Path(setting) if setting else Path.home() / ".local" / "share" / "endofm_lab" / "models"


def hub_id_in(name: str) -> str | None:
    """The ``owner/name`` in ``hf://owner/name`` or ``hf:owner/name``; None for other names."""
    return name.removeprefix("hf:").removeprefix("//") if name.startswith("hf:") else None


def built_model(name: str) -> Path | None:
    """The folder of a built model of this name, or None."""
    folder = models_folder() / name
    return folder if _BUILT_NAME.fullmatch(name) and (folder / CARD_FILE).is_file() else None


def fetched_folder(hub_id: str) -> Path:
    """The folder into which `endofm-lab models get` puts a Hub model."""
    return models_folder() / hub_id.replace("/", "--")


def locate(path_or_name: str | Path) -> Path:
    """The file or folder that a name stands for.

    A name is "demo", the name of a built model in `models_folder`, a local path, or a hub id ``owner/name`` or
    ``hf:owner/name``. A built model comes before a folder of the same name in the current one; write ``./NAME`` there.

    A hub id is read from this disk if `endofm-lab models get` or the Hub's own programs have put it there. Otherwise
    ``hf://owner/name`` is refused, while ``hf:owner/name``, and ``owner/name`` if neither it nor its first part exists
    on this disk, are fetched (card, weights and statistics only, into the Hub's own cache).

    Raises:
        CheckpointError: there are no such weights, or they cannot be fetched; the message says what to do.
    """
    name = str(path_or_name)
    if name == "demo":
        return _packaged(name)
    if (hub_id := hub_id_in(name)) is not None:
        return _fetched(hub_id, name)
    if (built := built_model(name)) is not None:
        return built
    path = Path(path_or_name).expanduser()
    if path.exists():
        return path
    looks_like_hub_id = HUB_ID.fullmatch(name) and not name.endswith(_FILE_ENDINGS) and not name.startswith(".")
    if looks_like_hub_id and not path.parent.exists():
        return _fetched(name, name)
    if name.startswith(TORCHVISION):
        raise CheckpointError(
            f"{name}: Weights of torchvision are not fetched. Download the file whose address torchvision's "
            "documentation gives, and give its path; for random weights, start from scratch with this name as size."
        )
    raise CheckpointError(
        f"{name}: There is no such file or folder; give a weights file, a model folder, 'demo', or a Hugging Face Hub "
        "id as hf:owner/name."
    )


def absolute(source: str) -> str:
    """A source as `locate` takes it, whose path is absolute, so that it means the same in every folder; names stay."""
    path = Path(source).expanduser()
    is_name = source == "scratch" or not path.exists() or locate(source) != path
    return source if is_name else str(path.resolve())


def _packaged(name: str) -> Path:
    folder = PACKAGE_WEIGHTS / name
    if not (folder / WEIGHTS_FILE).is_file():
        raise CheckpointError(f"The {name} model is not in this installation; make it with `endofm-lab {name} train`.")
    return folder


def _fetched(hub_id: str, reference: str) -> Path:
    """The folder of a hub repository with a model of ours, or else its weights file."""
    if not HUB_ID.fullmatch(hub_id):
        raise CheckpointError(f"{reference} is not a Hugging Face Hub id; the form is hf:owner/name.")
    if (folder := fetched_folder(hub_id) / ORIGIN).is_file():
        return _weights_in(folder.parent, reference)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        local_only = reference.startswith("hf://")
        patterns = [WEIGHTS_FILE, CARD_FILE, FAMILIARITY_FILE, *FILES]
        folder = Path(snapshot_download(hub_id, allow_patterns=patterns, local_files_only=local_only))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        if local_only:
            raise CheckpointError(
                f"{reference} is not on this machine. `endofm-lab models get {reference}` shows its licence and "
                "fetches it."
            ) from error
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(
            f"{reference} is not on this disk, and could not be fetched as a Hugging Face Hub id ({reason}). Without a "
            f"network, download {WEIGHTS_FILE} and {CARD_FILE} of https://huggingface.co/{hub_id} elsewhere, copy them "
            "into one folder here, and give that folder's path."
        ) from error
    return _weights_in(folder, reference)


def _weights_in(folder: Path, reference: str) -> Path:
    """A folder with a model of ours, or else the weights file in it."""
    if not (folder / WEIGHTS_FILE).is_file():
        raise CheckpointError(
            f"{reference}: The repository has no {WEIGHTS_FILE}; download its weights by hand and give their "
            "local path."
        )
    if is_folder_of_transformers(folder) and model_type(folder) in FAMILIES:
        return folder
    return folder if (folder / CARD_FILE).is_file() else folder / WEIGHTS_FILE
