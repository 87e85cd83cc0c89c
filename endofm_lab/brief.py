"""Short texts for objects that hold arrays and tables: what a notebook or a terminal shows of them."""

import html
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

LIMIT = 400  # characters


class Brief:
    """A dataclass whose ``repr`` says sizes in place of contents.

    Declare such a class with ``@dataclass(eq=False, repr=False)``: arrays do not compare to one truth, so two objects
    are equal only if they are the same.
    """

    def __repr__(self) -> str:
        shown = [f"{f.name}={brief(getattr(self, f.name))}" for f in fields(self) if f.repr]  # type: ignore[arg-type]
        return _cut(f"{type(self).__name__}({', '.join(shown)}", LIMIT) + ")"


def brief(value: Any) -> str:
    """A value in a few words: sizes of arrays, tables and collections, the beginning of texts."""
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"{' x '.join(map(str, value.shape)) or 'one'} {str(value.dtype).removeprefix('torch.')}"
    if hasattr(value, "columns"):
        return f"{len(value):,} rows"
    if isinstance(value, Path):
        return _cut(value.name, 40)
    if isinstance(value, Mapping):
        return "{" + _cut(", ".join(map(str, value)), 60) + "}"
    if isinstance(value, list | tuple | set | frozenset):
        inside = repr(value)
        return inside if len(inside) <= 40 else f"{len(value)} entries"
    text = repr(value)
    return text if len(text) <= 60 else _cut(text, 40)


def html_of(thing: object, table: Any) -> str:
    """What a notebook shows of an object with a table: its `repr`, and the first rows; every text is escaped."""
    return f"<p>{html.escape(repr(thing))}</p>{table.head(10).to_html(index=False, border=0, escape=True)}"


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else f"{text[: limit - 3]}..."
