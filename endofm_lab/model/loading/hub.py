"""Upload a model to the Hugging Face Hub, with a page that is made from its card."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from endofm_lab.errors import UserError
from endofm_lab.familiarity.statistics import FAMILIARITY_FILE
from endofm_lab.model.card import CARD_FILE, WEIGHTS_FILE, Metric, ModelCard
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
    files = [WEIGHTS_FILE, CARD_FILE, FAMILIARITY_FILE, "README.md"]
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
    """The README of a repository in the Hub's format.

    It says what the model is for and cannot do, its data and their licence, metrics with their intervals, the audit,
    how to load it, and the notice.
    """
    kinds = sorted({spec.kind for spec in card.heads.values()})
    front = {
        "license": "other",
        "library_name": "endofm-lab",
        "tags": ["endoscopy", "video", *kinds],
        **({"metrics": list(dict.fromkeys(metric["name"] for metric in card.metrics))} if card.metrics else {}),
    }
    heads = [f"- `{head}`: {spec.kind}, classes {', '.join(spec.classes[:20])}" for head, spec in card.heads.items()]
    code = f"import endofm_lab as lab\n\nmodel = lab.VideoModel.from_pretrained({f'hf:{name}'!r})"
    keys = [key for key in ("description", "licence", "split", "recipe") if card.data.get(key)]
    data = [f"{key.capitalize()}: {card.data[key]}" for key in keys]  # type: ignore[literal-required]
    if card.data.get("generated"):
        data.append("The data is generated; it shows no patients.")
    parts = [
        f"---\n{yaml.safe_dump(front, sort_keys=False, allow_unicode=True)}---",
        f"# {card.name}\n\n{card.licence}",
        f"```python\n{code}\n```",
        _section("Intended use", [card.intended_use] if card.intended_use else []),
        _section("Limits", [f"- {limit}" for limit in card.limits]),
        _section("Training data", data),
        _section("Heads", heads),
        _section("Measured", [_measured(metric) for metric in card.metrics]),
        _section("Audit", [card.audit] if card.audit else []),
        _section("Initialisation", [card.initialisation["words"]]),
    ]
    return "\n\n".join(filter(None, parts)) + "\n"


def _section(title: str, lines: Sequence[str]) -> str:
    separator = "\n" if lines and lines[0].startswith("- ") else "\n\n"
    return f"## {title}\n\n{separator.join(map(str, lines))}" if lines else ""


def _measured(metric: Metric) -> str:
    """One metric with its interval and its data."""
    interval = f" [{metric['interval'][0]:.3f}, {metric['interval'][1]:.3f}]" if "interval" in metric else ""
    data = ", ".join(str(metric[key]) for key in ("data", "split") if key in metric)  # type: ignore[literal-required]
    return f"- {metric['name']}: {metric['value']:.3f}{interval}" + (f" ({data})" if data else "")
