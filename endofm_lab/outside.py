"""Classes from outside the library, which files name as "module:Class" and which are imported only if the user allows.

A model folder or a run is data. It may name the class that it needs, but that class is code, so it is imported only if
the user allowed its package, its module or the class itself, with `allow` or in the call that reads the file.
"""

import importlib
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

from endofm_lab.errors import UserError

Allowed = str | type | Sequence[str | type]  # a package, a module, "module:Class", or a class itself; one or several
T = TypeVar("T")

_NAME = re.compile(r"([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*):([A-Za-z_]\w*)", re.ASCII)
_PLACE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*(:[A-Za-z_]\w*)?", re.ASCII)
_LONGEST = 200  # characters of a name
_always: list[str | type] = []
_allowed_in_block: ContextVar[tuple[str | type, ...]] = ContextVar("_here", default=())


def allow(*names: str | type) -> None:
    """Allow the import of your code that files of this library name, for the rest of this process.

    >>> allow("my_package")  # doctest: +SKIP

    Args:
        names: packages or modules ("my_package", with all its modules), single classes ("my_package.encoders:Mine"), or
            class objects, which need no import.

    Raises:
        UserError: a name has another form.
    """
    _always.extend(_checked(names))


@contextmanager
def allowing(names: Allowed = ()) -> Iterator[None]:
    """`allow` within a block only.

    Raises:
        UserError: a name has another form.
    """
    token = _allowed_in_block.set(
        (*_allowed_in_block.get(), *_checked([names] if isinstance(names, str | type) else names))
    )
    try:
        yield
    finally:
        _allowed_in_block.reset(token)


def name_of(kind: type) -> str | None:
    """The name of a class in files, "module:Class"; None for a class of this library.

    Raises:
        UserError: the class is defined inside a function or another class, from where it cannot be imported.
    """
    module = kind.__module__
    if module.partition(".")[0] == "endofm_lab":
        return None
    if kind.__qualname__ != kind.__name__:
        raise UserError(
            f"{kind.__qualname__} is defined inside a function or class, so a saved model or run could not name it. "
            "Define it at the top of a module."
        )
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    if module == "__main__" and spec is not None:  # python -m my_package.train
        module = spec.name
    return f"{module}:{kind.__name__}"


def class_named(name: str, base: type[T], source: str, error: type[UserError] = UserError) -> type[T]:
    """The class that a file names.

    Args:
        name: name of the class, from `name_of`.
        base: the class that it must derive from.
        source: the file or model that names the class, for messages.
        error: type of the error, a subclass of `UserError`.

    Raises:
        UserError: the class is not allowed, cannot be imported, or does not derive from ``base``.
    """
    form = _NAME.fullmatch(name) if isinstance(name, str) and len(name) <= _LONGEST else None
    if form is None:
        raise error(f"{source} names the class {str(name)[:80]!r}; the name must have the form 'module:Class'.")
    module, last = form.groups()
    kind = _given_class(name, last) or (_imported(module, last, source, error) if _is_allowed(module, name) else None)
    if kind is None:
        script = " It was saved from a script or notebook: give the class itself." if module == "__main__" else ""
        raise error(
            f"{source} needs {name}, which is code from outside endofm_lab and is imported only if you allow "
            f"it.{script} If you trust this code, give allow=[{module.partition('.')[0]!r}], call "
            "endofm_lab.allow(...), or use --allow on the command line."
        )
    if not (isinstance(kind, type) and issubclass(kind, base)):
        raise error(f"{name} is not {base.__name__}: derive its class from {base.__module__}.{base.__name__}.")
    return kind


def _checked(names: Sequence[str | type]) -> list[str | type]:
    for name in names:
        if not isinstance(name, type) and not (isinstance(name, str) and _PLACE.fullmatch(name)):
            raise UserError(f"{name!r} cannot be allowed; give a package, a module, 'module:Class', or a class.")
    return list(names)


def _entries() -> tuple[str | type, ...]:
    return (*_always, *_allowed_in_block.get())


def _given_class(name: str, last: str) -> type | None:
    """The class among the allowed class objects; a class that a script saved is identified by its class name alone."""
    for entry in _entries():
        if isinstance(entry, type) and (
            name_of(entry) == name or (name == f"__main__:{last}" == f"__main__:{entry.__name__}")
        ):
            return entry
    return None


def _is_allowed(module: str, name: str) -> bool:
    names = [entry for entry in _entries() if isinstance(entry, str)]
    return any(allowed in (name, module) or module.startswith(f"{allowed}.") for allowed in names)


def _imported(module: str, last: str, source: str, error: type[UserError]) -> type:
    try:
        return getattr(importlib.import_module(module), last)
    except (ImportError, AttributeError) as reason:
        raise error(
            f"{source} needs {module}:{last}, which cannot be imported ({reason}). Install its package, or put its "
            "folder on PYTHONPATH."
        ) from reason
