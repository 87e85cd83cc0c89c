"""Show errors in the page, with the names of files that the user knows instead of their names in the cache."""

import re

import streamlit as st
from texts import plain

from endofm_lab.errors import UserError, shortened, storage_sentence
from endofm_lab.files import cache_folder

_UPLOAD = re.compile(r"[0-9a-f]{24}\.[a-z0-9]{1,5}")
_PREDICTION = re.compile(r"[0-9a-f]{24}")


SHOWN = (UserError, OSError)  # errors that a page shows as a sentence


def show(error: Exception) -> None:
    """Show the sentence of an error in a red box; an error without such a sentence is raised again."""
    sentence = storage_sentence(error) if isinstance(error, OSError) else str(error)
    if sentence is None:
        raise error
    st.error(plain(shortened(named(sentence, st.session_state.get("name of the upload", "The uploaded video")))))


def named(sentence: str, upload: str) -> str:
    """A sentence in which cached uploads and predictions are replaced by names that the user understands."""
    for folder, names, words in (("uploads", _UPLOAD, upload), ("predictions", _PREDICTION, "The stored prediction")):
        start = re.escape(str(cache_folder(folder))) + r"[/\\]"
        sentence = re.sub(f"(?:{start})?{names.pattern}", lambda _, words=words: words, sentence)
    return sentence
