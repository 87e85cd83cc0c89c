"""The card of a model in words: what it finds, its data and their licence, what it reached, and what it cannot do."""

from pathlib import Path

import pandas as pd

from endofm_lab.familiarity.statistics import FAMILIARITY_FILE, read_familiarity
from endofm_lab.model.card import ModelCard

ANSWERS = {
    "multiclass": "one class per clip",
    "multilabel": "any number of classes per clip",
    "mask": "a mask per frame",
    "box": "boxes per frame",
}
CLASSES_SHOWN = 20


def facts(card: ModelCard, folder: str | Path | None = None) -> list[tuple[str, str]]:
    """The card as pairs of item and sentence; what is not known is said to be unknown.

    Args:
        card: the card.
        folder: the folder of the model, whose statistics of familiarity are then described.

    Raises:
        CheckpointError: the statistics that the card names cannot be read.
    """
    data = card.data
    kind = {True: "generated video; it shows no patient", False: "real pictures or video", None: "not known"}
    rows = [("Name", card.name)]
    rows += [("Finds", f"{head}: {_finds(spec.kind, spec.classes)}") for head, spec in card.heads.items()]
    rows += [
        ("Intended use", card.intended_use or "not stated"),
        ("Trained on", data.get("description", "not known")),
        ("Kind of data", kind[data.get("generated")]),
        ("Split", data.get("split", "not known")),
        ("Licence of the data", data.get("licence") or ("none needed" if data.get("generated") else "not known")),
        ("Licence of the weights", card.licence),
        ("Audit", card.audit or "not audited"),
        ("Familiarity", _familiarity(card, folder)),
        *(("Limit", limit) for limit in card.limits),
        ("Start of the training", card.initialisation["words"]),
    ]
    return rows


def metrics_table(card: ModelCard) -> pd.DataFrame:
    """The metrics of a card: metric, value, 95 % interval ("" if it was not measured), data and part."""
    rows = [
        (
            metric["name"],
            f"{metric['value']:.3f}",
            f"{metric['interval'][0]:.3f} to {metric['interval'][1]:.3f}" if "interval" in metric else "",
            metric.get("data", ""),
            metric.get("split", ""),
        )
        for metric in card.metrics
    ]
    return pd.DataFrame(rows, columns=["metric", "value", "95 % interval", "data", "part"])


def _finds(kind: str, classes: tuple[str, ...]) -> str:
    more = f" and {len(classes) - CLASSES_SHOWN} more" if len(classes) > CLASSES_SHOWN else ""
    return f"{ANSWERS.get(kind, kind)}: {', '.join(classes[:CLASSES_SHOWN])}{more}"


def _familiarity(card: ModelCard, folder: str | Path | None) -> str:
    if card.familiarity_sha256 is None:
        return "Unknown: the model cannot tell whether a video looks like what it learned."
    return "Known." if folder is None else read_familiarity(Path(folder) / FAMILIARITY_FILE).words
