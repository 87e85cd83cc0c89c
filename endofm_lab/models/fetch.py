"""Fetch initial weights or a model from the Hugging Face Hub, when asked: `endofm-lab models get`."""

import json
from collections.abc import Iterator
from pathlib import Path

from endofm_lab.data.download import Source, download, refuse_unless_agreed
from endofm_lab.errors import UserError
from endofm_lab.familiarity.statistics import FAMILIARITY_FILE
from endofm_lab.files import write_json
from endofm_lab.folders.run_folder import claim
from endofm_lab.model.card import CARD_FILE, WEIGHTS_FILE
from endofm_lab.model.loading.locate import HUB_ID, ORIGIN, fetched_folder, hub_id_in
from endofm_lab.model.loading.seal import SEAL
from endofm_lab.model.weight_files import metadata_of
from endofm_lab.models.recipe import load_model_recipe

HUB_HOSTS = ("huggingface.co", "hf.co")


def get(name: str, agree: bool = False) -> Iterator[tuple[int, int]]:
    """Fetch weights; yields the bytes that are there and those of the whole file.

    Without ``agree`` nothing is fetched, and source, size, licence and SHA-256 are shown in the error.

    Args:
        name: a Hub id (``hf://owner/name``), or the name of a model recipe, for its initial weights.
        agree: the licence is agreed to.

    Raises:
        UserError: no such repository or network, the licence is not agreed to, or a file is not as stated.
    """
    hub_id = hub_id_in(name) or _weights_of(name)
    source, description = described(hub_id)
    refuse_unless_agreed(source, agree)
    folder = fetched_folder(hub_id)
    request = {"repository": hub_id, "commit": description["commit"]}
    with claim(folder, request, "a fetched model"):
        yield from download(source, folder / WEIGHTS_FILE)
        if (sealed := metadata_of(folder / WEIGHTS_FILE).get(SEAL)) is not None:  # a model of this library
            card = json.loads(sealed) | {"weights_sha256": source.sha256}
            if card.get("familiarity_sha256") is not None:
                yield from download(described(hub_id, FAMILIARITY_FILE)[0], folder / FAMILIARITY_FILE)
            write_json(folder / CARD_FILE, card)
        write_json(folder / ORIGIN, description)


def _weights_of(name: str) -> str:
    """The Hub id of the initial weights of a model recipe."""
    for start in load_model_recipe(name).starts:
        if (hub_id := hub_id_in(start.source)) is not None:
            return hub_id
    raise UserError(f"The recipe {name} names no weights on the Hugging Face Hub. Give a file with --start.")


def described(hub_id: str, name: str = WEIGHTS_FILE) -> tuple[Source, dict[str, str]]:
    """A file of a repository, and its name, commit and licence. The card is not fetched: weights carry a copy.

    Raises:
        UserError: there is no such repository, no network, or a file without a checksum.
    """
    from huggingface_hub import HfApi, hf_hub_url
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    if not HUB_ID.fullmatch(hub_id):
        raise UserError(f"{hub_id!r} is not a name on the Hugging Face Hub; the form is hf://owner/name.")
    try:
        info = HfApi().model_info(hub_id, files_metadata=True)
    except GatedRepoError as error:
        page = f"https://huggingface.co/{hub_id}"
        raise UserError(
            f"{hub_id} needs a form: fill it in at {page}, download {WEIGHTS_FILE}, and give its path."
        ) from error
    except (HfHubHTTPError, HFValidationError, OfflineModeIsEnabled, OSError) as error:
        reason = " ".join(str(error).split())[:150]
        raise UserError(f"{hub_id} cannot be reached on the Hub ({reason}). Check name and network.") from error
    licence = str(info.card_data.get("license") or "not stated") if info.card_data else "not stated"
    files = [entry for entry in info.siblings or () if entry.rfilename == name]
    if not files or files[0].lfs is None or files[0].size is None:
        raise UserError(f"{hub_id} has no {name} with a SHA-256. Fetch its files by hand and give their folder.")
    url = hf_hub_url(hub_id, name, revision=str(info.sha))
    source = Source(url, files[0].size, files[0].lfs.sha256, licence, HUB_HOSTS)
    return source, {"repository": hub_id, "commit": str(info.sha), "licence": licence}


def folder_with(name: str) -> Path:
    """The folder into which `get` puts a Hub model."""
    return fetched_folder(hub_id_in(name) or _weights_of(name))
