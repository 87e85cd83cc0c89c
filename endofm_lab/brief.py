"""Short texts for objects that hold arrays and tables, as notebooks and terminals show them."""

import html
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

LIMIT = 400  # characters


class Brief:
    """A dataclass whose ``repr`` gives sizes instead of contents.

    Declare such a class with ``@dataclass(eq=False, repr=False)``: comparing arrays does not give a single truth value,
    so an object is equal only to itself.
    """

    def __repr__(self) -> str:
        entries = [f"{f.name}={brief(getattr(self, f.name))}" for f in fields(self) if f.repr]  # type: ignore[arg-type]
        return _cut(f"{type(self).__name__}({', '.join(entries)}", LIMIT) + ")"


def brief(value: Any) -> str:
    """A value in a few words: sizes of arrays, tables and collections, the beginning of texts."""
    if isinstance(value, type):
        return value.__name__
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"{' x '.join(map(str, value.shape)) or 'one'} {str(value.dtype).removeprefix('torch.')}"
    if hasattr(value, "columns"):
        return f"{len(value):,} rows"
    if isinstance(value, Path):
        return _cut(value.name, 40)
    if isinstance(value, Mapping):
        return "{" + _cut(", ".join(map(str, value)), 60) + "}"
    if isinstance(value, list | tuple | set | frozenset):
        content = repr(value)
        return content if len(content) <= 40 else f"{len(value)} entries"
    text = repr(value)
    return text if len(text) <= 60 else _cut(text, 40)


def html_of(item: object, table: Any) -> str:
    """The `repr` of an object and the first rows of its table for a notebook; every text is escaped."""
    return f"<p>{html.escape(repr(item))}</p>{table.head(10).to_html(index=False, border=0, escape=True)}"


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else f"{text[: limit - 3]}..."
