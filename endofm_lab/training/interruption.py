"""Delay Ctrl-C until a step is complete."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def ctrl_c_held() -> Iterator[list[Any]]:
    """Delay Ctrl-C until the block has ended; the yielded list collects the signals that arrived."""
    signals: list[Any] = []
    if threading.current_thread() is not threading.main_thread():
        yield signals
        return
    handler = signal.signal(signal.SIGINT, lambda *arguments: signals.append(arguments))
    try:
        yield signals
    finally:
        signal.signal(signal.SIGINT, handler)
    if signals:
        signal.raise_signal(signal.SIGINT)
