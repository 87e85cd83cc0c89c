"""Write a model as a folder that the Hugging Face Hub takes as it is: weights, card, and a page in the Hub's format."""

from pathlib import Path

from endofm_lab.errors import UserError
from endofm_lab.files import atomic_path
from endofm_lab.model.loading.hub import page
from endofm_lab.model.loading.load import load_model, save_model


def publish(name: str, out: str | Path, owner: str = "OWNER") -> Path:
    """Write ``model.safetensors``, ``card.json`` and ``README.md`` into a new folder; nothing is uploaded.

    Args:
        name: name or folder of a model with a card.
        out: folder that does not exist yet, or is empty.
        owner: account on the Hub, for the lines of code in the page.

    Raises:
        UserError: there is no such model, its card was edited, or ``out`` contains files.
    """
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} already exists and is not an empty folder. Choose a new one.")
    model = load_model(name)
    save_model(model, out)
    with atomic_path(out / "README.md") as temporary:
        temporary.write_text(page(model.card, f"{owner}/{Path(name).name}"), encoding="utf-8")
    return out
