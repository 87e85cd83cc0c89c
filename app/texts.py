"""Escape foreign text (from files, file names, labels and errors) where Streamlit expects Markdown.

Markdown can contain links and pictures, and a browser loads a picture immediately. Streamlit reads Markdown in
captions, boxes, titles, labels of widgets, metrics, progress bars, toasts, cells of `st.table`, and in the options of
radio buttons, pills, segmented controls and sliders. It shows options of select boxes, data frames, code and JSON as
plain text.
"""

import re

_MARKUP = re.compile(r"[\\`*_{}\[\]()#+!|~$<>:&^]")


def plain(text: object) -> str:
    """Markdown that shows a text unchanged, on one line."""
    escaped = _MARKUP.sub(r"\\\g<0>", " ".join(str(text).split()))
    return re.sub(r"^(\d*)([-=.])", r"\1\\\2", escaped)  # would start a list or underline a heading
