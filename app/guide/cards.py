"""What a model is, from its card: what it finds, what it was trained on, and what was measured."""

from pathlib import Path

import streamlit as st
from texts import plain

from endofm_lab.model.card import CARD_FILE, ModelCard, read_card
from endofm_lab.model.loading.locate import PACKAGE_WEIGHTS, built_model


def folder_of(name: str) -> Path | None:
    """The folder of a model that has a card, by its name or path; None for released checkpoints and unknown names."""
    for folder in (built_model(name), PACKAGE_WEIGHTS / name, Path(name).expanduser()):
        try:
            if folder is not None and (folder / CARD_FILE).is_file():
                return folder
        except (OSError, ValueError):  # no permission, or a text that is no path
            continue
    return None


def finds(card: ModelCard) -> str:
    """The classes of every head in words."""
    kinds = {"clip": "scores", "map": "masks", "boxes": "boxes"}
    heads = [f"{kinds[head.answer]} of {', '.join(head.classes[:6])}" for head in card.heads.values()]
    return "; ".join(heads) if heads else "nothing by itself: it has no head"


def trained_on(card: ModelCard) -> str:
    """The training data in words."""
    words = str(card.data.get("description") or "data that its card does not name")
    return f"generated video only ({words})" if card.data.get("generated") else words


def measured(card: ModelCard) -> str:
    """The first two measured numbers with their intervals."""
    numbers = []
    for metric in card.metrics[:2]:
        interval = f" [{metric['interval'][0]:.2f}, {metric['interval'][1]:.2f}]" if "interval" in metric else ""
        numbers.append(f"{metric['name']} {metric['value']:.2f}{interval} on {metric.get('split', 'unknown data')}")
    return "; ".join(numbers) or "nothing"


def show_card(name: str) -> None:
    """Show the card of a model, or that it has none.

    Raises:
        UserError: the card is damaged.
    """
    folder = folder_of(name)
    if folder is None:
        st.markdown(f"**{plain(name)}**")
        st.caption("It has no card: it is a released checkpoint, or no model of this name exists.")
        return
    card = read_card(folder)
    row = st.container(horizontal=True, vertical_alignment="center")
    row.markdown(f"**{plain(card.name)}**", width="content")
    if card.data.get("generated"):
        row.badge("trained on generated video", icon=":material/draw:", color="orange")
    facts = {"Finds": finds(card), "Trained on": trained_on(card), "Measured": measured(card)}
    st.markdown("\n".join(f"- {title}: {plain(words)}" for title, words in facts.items()))
    if card.limits:
        st.caption(f"Limits: {plain(' '.join(card.limits))}")
