"""What went wrong, shown in the page: with the name that the reader knows a file by, not its name in the cache."""

import re

import streamlit as st
from texts import plain

from endofm_lab.errors import UserError, shortened, storage_sentence
from endofm_lab.files import cache_folder

_UPLOAD = re.compile(r"[0-9a-f]{24}\.[a-z0-9]{1,5}")
_PREDICTION = re.compile(r"[0-9a-f]{24}")


SHOWN = (UserError, OSError)  # what a page shows as a sentence


def show(error: Exception) -> None:
    """A red box with the sentence of an error; what no sentence is known for is raised again."""
    sentence = storage_sentence(error) if isinstance(error, OSError) else str(error)
    if sentence is None:
        raise error
    st.error(plain(shortened(named(sentence, st.session_state.get("name of the upload", "The uploaded video")))))


def named(sentence: str, upload: str) -> str:
    """A sentence in which the uploaded video has its own name, and a kept prediction is called one."""
    for folder, names, words in (("uploads", _UPLOAD, upload), ("predictions", _PREDICTION, "The kept prediction")):
        start = re.escape(str(cache_folder(folder))) + r"[/\\]"
        sentence = re.sub(f"(?:{start})?{names.pattern}", lambda _, words=words: words, sentence)
    return sentence
