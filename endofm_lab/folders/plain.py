"""Dataclasses as plain JSON values and back, for the configurations in run folders."""

import types
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from endofm_lab.errors import UserError


def to_plain(value: Any) -> Any:
    """Nested dicts and sequences with lists in place of tuples and strings in place of paths, as JSON has them."""
    if isinstance(value, dict):
        return {key: to_plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def from_plain(kind: Any, value: Any, name: str) -> Any:
    """A value of an annotated type, such as a dataclass, from plain JSON.

    Args:
        kind: the type; dataclasses, unions with None, tuples, dicts, literals, paths and numbers are supported.
        value: the value in JSON.
        name: name of the value in error messages.

    Raises:
        UserError: the value is of another type, or a dataclass has no such setting.
    """
    origin = get_origin(kind)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in get_args(kind):
            return None
        return from_plain(next(k for k in get_args(kind) if k is not type(None)), value, name)
    if is_dataclass(kind) and isinstance(value, dict):
        hints, settings = get_type_hints(kind), [f.name for f in fields(kind)]
        if unknown := [key for key in value if key not in settings]:
            raise UserError(f"{name}: Unknown setting {', '.join(unknown)}; choose from {', '.join(settings)}.")
        return kind(**{key: from_plain(hints[key], item, key) for key, item in value.items()})  # type: ignore[operator]
    if origin is dict and isinstance(value, dict):
        return {key: from_plain(get_args(kind)[1], item, key) for key, item in value.items()}
    if origin is tuple and isinstance(value, list):
        kinds = get_args(kind)
        item_kinds = [kinds[0]] * len(value) if kinds[-1] is Ellipsis else list(kinds)
        if len(item_kinds) == len(value):
            return tuple(from_plain(k, item, name) for k, item in zip(item_kinds, value, strict=True))
    if origin is Literal and value in get_args(kind):
        return value
    if kind is Path and isinstance(value, str):
        return Path(value)
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if isinstance(kind, type) and type(value) is kind:
        return value
    raise UserError(f"{name} is {value!r}; give a value of the type {getattr(kind, '__name__', kind)}.")
