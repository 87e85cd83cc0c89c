"""Find weights in the package, on this disk, or on the Hugging Face Hub."""

import os
import re
from pathlib import Path

from endofm_lab.errors import CheckpointError
from endofm_lab.model.card import CARD_FILE, WEIGHTS_FILE

PACKAGE_WEIGHTS = Path(__file__).parents[2] / "weights"  # endofm_lab/weights/<name>/
HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")
_BUILT_NAME = re.compile(r"\w[\w.-]*")
_FILE_ENDINGS = (".pth", ".pt", ".pyth", ".bin", ".safetensors", ".ckpt", ".tar")


def models_folder() -> Path:
    """The folder of built models: ``ENDOFM_LAB_MODELS``, otherwise ``.local/share/endofm_lab/models`` in the home."""
    given = os.environ.get("ENDOFM_LAB_MODELS")
    return Path(given) if given else Path.home() / ".local" / "share" / "endofm_lab" / "models"


def locate(path_or_name: str | Path) -> Path:
    """The file or folder that a name stands for.

    A name is "demo", the name of a built model in `models_folder`, a local path, or a hub id ``owner/name`` or
    ``hf:owner/name``. A built model comes before a folder of the same name in the current one; write ``./NAME`` there.

    A hub id is fetched (card and weights only, into the Hub's own cache) if it has the prefix ``hf:``, or if neither
    the id nor its first part exists on this disk.

    Raises:
        CheckpointError: there are no such weights, or they cannot be fetched; the message says what to do.
    """
    name = str(path_or_name)
    if name == "demo":
        return _packaged(name)
    if name.startswith("hf:"):
        return _fetched(name.removeprefix("hf:"), name)
    if _BUILT_NAME.fullmatch(name) and (models_folder() / name / CARD_FILE).is_file():
        return models_folder() / name
    path = Path(path_or_name).expanduser()
    if path.exists():
        return path
    looks_like_hub_id = HUB_ID.fullmatch(name) and not name.endswith(_FILE_ENDINGS) and not name.startswith(".")
    if looks_like_hub_id and not path.parent.exists():
        return _fetched(name, name)
    raise CheckpointError(
        f"{name}: There is no such file or folder; give a weights file, a model folder, 'demo', or a Hugging Face Hub "
        "id as hf:owner/name."
    )


def _packaged(name: str) -> Path:
    folder = PACKAGE_WEIGHTS / name
    if not (folder / WEIGHTS_FILE).is_file():
        raise CheckpointError(f"The {name} model is not in this installation; make it with `endofm-lab {name} train`.")
    return folder


def _fetched(hub_id: str, given: str) -> Path:
    """The folder of a hub repository with a model of ours, or else its weights file."""
    if not HUB_ID.fullmatch(hub_id):
        raise CheckpointError(f"{given} is not a Hugging Face Hub id; the form is hf:owner/name.")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(hub_id, allow_patterns=[WEIGHTS_FILE, CARD_FILE]))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(
            f"{given} is not on this disk, and could not be fetched as a Hugging Face Hub id ({reason}). Without a "
            f"network, download {WEIGHTS_FILE} and {CARD_FILE} of https://huggingface.co/{hub_id} elsewhere, copy them "
            "into one folder here, and give that folder's path."
        ) from error
    if not (folder / WEIGHTS_FILE).is_file():
        raise CheckpointError(
            f"{given}: The repository has no {WEIGHTS_FILE}; download its weights by hand and give their local path."
        )
    return folder if (folder / CARD_FILE).is_file() else folder / WEIGHTS_FILE
