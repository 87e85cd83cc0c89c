"""Text from elsewhere (files, their names, labels, errors) where Streamlit expects Markdown: shown as it is.

Markdown can hold links and pictures, and a browser fetches a picture at once. Streamlit reads Markdown in captions,
boxes, titles, labels of widgets, metrics, progress bars, toasts, cells of `st.table`, and in the options of radio
buttons, pills, segmented controls and sliders. Options of select boxes, data frames, code and JSON are text already.
"""

import re

_MARKUP = re.compile(r"[\\`*_{}\[\]()#+!|~$<>:&^]")


def plain(text: object) -> str:
    """Markdown that shows a text as it is, on one line."""
    escaped = _MARKUP.sub(r"\\\g<0>", " ".join(str(text).split()))
    return re.sub(r"^(\d*)([-=.])", r"\1\\\2", escaped)  # a list, or a line under a heading
