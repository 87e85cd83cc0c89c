"""Messages and progress bars of the library: the logger "endofm_lab", and one switch for both.

Messages go to standard error, or wherever the program that uses the library sends its logs. At the level WARNING of the
logger there are no progress bars either.
"""

import contextlib
import logging
import sys
from collections.abc import Iterable, Iterator
from typing import Any

from tqdm import tqdm

messages = logging.getLogger("endofm_lab")


class _Terminal(logging.Handler):
    """Writes messages to standard error, unless the program has handlers of its own."""

    def emit(self, record: logging.LogRecord) -> None:
        if not logging.getLogger().handlers:
            print(self.format(record), file=sys.stderr, flush=True)


if not messages.handlers:
    messages.addHandler(_Terminal())
    messages.setLevel(logging.INFO)


def verbose(on: bool = True) -> None:
    """Show messages and progress bars of the library, or only its warnings.

    The same as ``logging.getLogger("endofm_lab").setLevel(...)`` with INFO or WARNING.
    """
    messages.setLevel(logging.INFO if on else logging.WARNING)


@contextlib.contextmanager
def speaking(on: bool) -> Iterator[None]:
    """Within it, `verbose` is off if ``on`` is false; afterwards the level is what it was."""
    level = messages.level
    if not on:
        verbose(False)
    try:
        yield
    finally:
        messages.setLevel(level)


def progress_bar(items: Iterable[Any] | None = None, *, shown: bool | None = True, **options: Any) -> tqdm:
    """A progress bar of tqdm, which the level of the logger and ``shown`` can both switch off.

    Args:
        items: what is passed on, or None for a bar that is moved by ``update``.
        shown: False switches it off; None shows it in a terminal only.
        options: of tqdm: ``total``, ``unit``, ``desc``, ...
    """
    off = not messages.isEnabledFor(logging.INFO)
    return tqdm(items, disable=True if off or shown is False else None if shown is None else False, **options)
