"""Upload a model to the Hugging Face Hub, with a page that is made from its card."""

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from endofm_lab.errors import UserError
from endofm_lab.model.card import CARD_FILE, WEIGHTS_FILE, ModelCard
from endofm_lab.model.loading.locate import HUB_ID

if TYPE_CHECKING:
    from endofm_lab.model.video_model import VideoModel


def push(model: "VideoModel", name: str, private: bool, token: str | None) -> str:
    """Upload weights, card and page to the repository ``name``; returns its address.

    Raises:
        UserError: the name has another form, or the Hub refuses or cannot be reached.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError, OfflineModeIsEnabled

    if not HUB_ID.fullmatch(name):
        raise UserError(f"{name!r} is not a name on the Hugging Face Hub; the form is owner/name.")
    files = [WEIGHTS_FILE, CARD_FILE, "README.md"]
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        (Path(folder) / "README.md").write_text(page(model.card, name), encoding="utf-8")
        try:
            api = HfApi(token=token)
            api.create_repo(name, private=private, exist_ok=True)
            api.upload_folder(repo_id=name, folder_path=folder, allow_patterns=files, commit_message=model.card.name)
        except (HfHubHTTPError, HFValidationError, LocalTokenNotFoundError, OfflineModeIsEnabled, OSError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f"{name} was not uploaded ({reason}). Check name, token and network, and call again."
            ) from error
    return f"https://huggingface.co/{name}"


def page(card: ModelCard, name: str) -> str:
    """The README of a repository: what the model is, where it comes from, how to load it, and its notice."""
    heads = [f"- `{head}`: {spec.kind}, classes {', '.join(spec.classes[:20])}" for head, spec in card.heads.items()]
    metrics = [f"- {metric['name']}: {metric['value']:.3f}" for metric in card.metrics]
    return "\n".join(
        [
            "---\nlicense: other\nlibrary_name: endofm-lab\ntags: [endoscopy, video]\n---\n",
            f"# {card.name}\n\n{card.licence}\n",
            f"```python\nimport endofm_lab as lab\n\nmodel = lab.VideoModel.from_pretrained({f'hf:{name}'!r})\n```\n",
            f"Initialisation: {card.initialisation['words']}\n",
            *(["Heads:\n", *heads, ""] if heads else []),
            *(["Measured:\n", *metrics, ""] if metrics else []),
        ]
    )
