"""Short texts for objects that hold arrays and tables, as notebooks and terminals show them."""

import html
from collections.abc import Mapping
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any

LIMIT = 400  # characters


class Brief:
    """A dataclass whose ``repr`` gives sizes instead of contents, and leaves out what has its default.

    Declare such a class with ``@dataclass(repr=False)``, and with ``eq=False`` if it holds arrays or tables: comparing
    them does not give a single truth value, so such an object is equal only to itself.
    """

    def __repr__(self) -> str:
        return cut(f"{type(self).__name__}({brief_fields(self)}", LIMIT) + ")"


def brief_fields(item: Any) -> str:
    """The fields of a dataclass in a few words each, without those that have their default."""
    shown = [f for f in fields(item) if f.repr and not _is_default(f, getattr(item, f.name))]
    return ", ".join(f"{f.name}={brief(getattr(item, f.name))}" for f in shown)


def _is_default(field: Field, value: Any) -> bool:
    """Whether a field has the value that it has if nothing is given; arrays and tables are never compared."""
    default = field.default_factory() if field.default_factory is not MISSING else field.default
    return type(value) is type(default) and not hasattr(value, "shape") and bool(value == default)


def brief(value: Any) -> str:
    """A value in a few words: sizes of arrays, tables and collections, the beginning of texts."""
    if isinstance(value, type):
        return value.__name__
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"{' x '.join(map(str, value.shape)) or 'one'} {str(value.dtype).removeprefix('torch.')}"
    if hasattr(value, "columns"):
        return f"{len(value):,} rows"
    if isinstance(value, Path):
        return cut(value.name, 40)
    if isinstance(value, Mapping):
        return "{" + cut(", ".join(map(str, value)), 60) + "}"
    if isinstance(value, list | tuple | set | frozenset):
        content = repr(value)
        return content if len(content) <= 40 else f"{len(value)} entries"
    text = repr(value)
    return text if len(text) <= 60 else cut(text, 40)


def html_of(item: object, table: Any) -> str:
    """The `repr` of an object and the first rows of its table for a notebook; every text is escaped."""
    return f"<p>{html.escape(repr(item))}</p>{table.head(10).to_html(index=False, border=0, escape=True)}"


def cut(text: str, limit: int) -> str:
    """The beginning of a text, with an ellipsis if it is longer than a limit."""
    return text if len(text) <= limit else f"{text[: limit - 3]}..."
