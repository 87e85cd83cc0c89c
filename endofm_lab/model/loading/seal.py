"""The seal of a model folder: the weights file carries a copy of the card it was saved with.

The card holds the hash of the weights file, and so of that copy. A card whose class order or normalisation was edited
by hand differs from the copy, and the difference can be named.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from endofm_lab.errors import CheckpointError, shortened
from endofm_lab.files import read_json
from endofm_lab.model.card import CARD_FILE, ModelCard
from endofm_lab.model.weight_files import metadata_of

SEAL = "endofm_lab.card"  # key of the copy in the metadata of the safetensors file
_HASH = "weights_sha256"  # the one entry of a card that its copy cannot know


def metadata_with_seal(card: ModelCard) -> dict[str, str]:
    """The metadata of a weights file that is saved with a card."""
    content = {key: value for key, value in card.to_json().items() if key != _HASH}
    return {"format": "pt", SEAL: json.dumps(content, sort_keys=True, allow_nan=False)}


def is_sealed(weights: Path) -> bool:
    """Whether the weights file beside a card carries a copy of the card, and the card is unchanged.

    Raises:
        CheckpointError: the card was changed after the model was saved; the message names the differences.
    """
    stored = metadata_of(weights).get(SEAL)
    if stored is None:
        return False
    path = weights.parent / CARD_FILE
    try:
        sealed = json.loads(stored)
    except ValueError as error:
        raise CheckpointError(f"{weights}: The copy of the card is damaged ({error}). Copy the model again.") from error
    card = read_json(path)
    differing = list(_differences(sealed, {key: value for key, value in card.items() if key != _HASH}))
    if card.get(_HASH) is None:
        differing.append(f"{_HASH} is missing")
    if differing:
        suffix = f" and {len(differing) - 3} more" if len(differing) > 3 else ""
        raise CheckpointError(
            f"{path} was changed after the model was saved: {'; '.join(differing[:3])}{suffix}. Copy the model again; "
            "to change a card on purpose, set model.card in Python and save the model."
        )
    return True


def _differences(sealed: Any, current: Any, name: str = "") -> Iterator[str]:
    """Every difference between two JSON values, in words."""
    if isinstance(sealed, dict) and isinstance(current, dict):
        for key in sealed.keys() | current.keys():
            yield from _differences(sealed.get(key), current.get(key), f"{name}.{key}" if name else key)
    elif sealed != current:
        yield f"{name} was {_short(sealed)}, now {_short(current)}"


def _short(value: Any) -> str:
    return "absent" if value is None else shortened(json.dumps(value, ensure_ascii=False), 80)
