"""The memory of the server: results are kept up to a number of megabytes, and free memory goes back to the machine.

`st.cache_data` counts entries, and 400 pictures are 5 MB of one video and 2.5 GB of another.
"""

import ctypes
import functools
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import torch

R = TypeVar("R")
_MISSING = object()
TRIM_EVERY_S = 2.0
_ARENAS = 2  # every thread that runs a page would get a heap of its own otherwise, and its gaps are never given back
_M_ARENA_MAX = -8  # of malloc.h
_libc = ctypes.CDLL(None) if sys.platform == "linux" else None
_trimmed_s = 0.0


class Kept:
    """Results by their keys, together at most ``limit_mb``: the one that was unused for longest leaves first.

    The latest result stays even if it alone is larger. Results are shared between sessions and must not be changed.
    """

    def __init__(self, limit_mb: float) -> None:
        self.limit_mb, self.held_mb = limit_mb, 0.0
        self._results: OrderedDict[Any, tuple[Any, float]] = OrderedDict()  # key -> result, its megabytes
        self._lock, self._computing = threading.Lock(), {}

    def find(self, key: Any, otherwise: Any = None) -> Any:
        """The result of a key, or ``otherwise`` if it is not held."""
        with self._lock:
            if key not in self._results:
                return otherwise
            self._results.move_to_end(key)
            return self._results[key][0]

    def put(self, key: Any, value: Any) -> None:
        """Hold a result, in place of an earlier one of this key."""
        size_mb = size_of(value) / 1e6
        with self._lock:
            self.held_mb += size_mb - self._results.pop(key, (None, 0.0))[1]
            self._results[key] = (value, size_mb)
            while len(self._results) > 1 and self.held_mb > self.limit_mb:
                self.held_mb -= self._results.popitem(last=False)[1][1]

    def get(self, key: Any, compute: Callable[[], R]) -> R:
        """The result of a key; it is computed by one thread while others that ask for it wait."""
        with self._lock:
            key_lock = self._computing.setdefault(key, threading.Lock())
        with key_lock:
            value = self.find(key, _MISSING)
            if value is _MISSING:
                value = compute()
                self.put(key, value)
        with self._lock:
            self._computing = {name: lock for name, lock in self._computing.items() if lock.locked()}
        return value


_ALL: dict[str, Kept] = {}  # by function: Streamlit runs the module of a page again for every click


def kept(limit_mb: float) -> Callable[[Callable[..., R]], Callable[..., R]]:
    """Keep the results of a function, whose arguments must be hashable, up to a number of megabytes."""

    def decorate(function: Callable[..., R]) -> Callable[..., R]:
        store = _ALL.setdefault(f"{function.__code__.co_filename} {function.__qualname__}", Kept(limit_mb))

        @functools.wraps(function)
        def call(*args: Any) -> R:
            return store.get(args, lambda: function(*args))

        return call

    return decorate


def size_of(value: Any) -> int:
    """The bytes of the arrays and texts in a value, and of what it is made of."""
    if isinstance(value, np.ndarray | torch.Tensor):
        return value.nbytes
    if isinstance(value, str | bytes):
        return len(value)
    if isinstance(value, pd.DataFrame):
        return int(value.memory_usage(deep=True).sum())
    if isinstance(value, Mapping):
        return sum(size_of(item) for item in value.values())
    if isinstance(value, list | tuple):
        return sum(map(size_of, value))
    return sum(size_of(item) for item in vars(value).values()) if hasattr(value, "__dict__") else sys.getsizeof(value)


def use_few_heaps() -> None:
    """Let the threads of this process share two heaps (with the C library of GNU; elsewhere nothing changes)."""
    if hasattr(_libc, "mallopt"):
        _libc.mallopt(_M_ARENA_MAX, _ARENAS)


def give_back() -> None:
    """Give the memory that is free in the heaps back to the machine, at most every two seconds."""
    global _trimmed_s
    if hasattr(_libc, "malloc_trim") and time.monotonic() - _trimmed_s > TRIM_EVERY_S:
        _trimmed_s = time.monotonic()
        _libc.malloc_trim(0)
