"""Ways to spoil a video file, drawn from a seed: what a bad disk, a broken copy or a careless tool leaves behind."""

from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import numpy as np

HEAD_BYTES = 1024  # where containers keep what they say about themselves


def mutations(path: str | Path, seed: int) -> Iterator[tuple[str, bytes]]:
    """Spoiled copies of a file without end: pairs of ``(name, bytes)``, each different from the file.

    The kinds of damage take turns; the name says kind and place, such as ``delete 300 at 1817``. The same path
    contents and seed give the same copies.
    """
    whole = Path(path).read_bytes()
    rng = np.random.default_rng(seed)
    for turn in count():
        kind = list(_KINDS)[turn % len(_KINDS)]
        place, spoiled = _KINDS[kind](whole, rng)
        if spoiled != whole:
            yield f"{kind} {place}", spoiled


def _flip(data: bytes, rng: np.random.Generator, stop: int | None = None) -> tuple[str, bytes]:
    at, bit = int(rng.integers(stop or len(data))), int(rng.integers(8))
    return f"bit {bit} at {at}", data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :]


def _flip_head(data: bytes, rng: np.random.Generator) -> tuple[str, bytes]:
    return _flip(data, rng, min(len(data), HEAD_BYTES))


def _flip_tail(data: bytes, rng: np.random.Generator) -> tuple[str, bytes]:
    place, turned = _flip(data[::-1], rng, min(len(data), HEAD_BYTES))
    return f"{place} from the end", turned[::-1]


def _run(data: bytes, rng: np.random.Generator) -> tuple[int, int]:
    length = min(int(rng.integers(1, 300)), len(data))
    return int(rng.integers(len(data) - length + 1)), length


def _zeros(data: bytes, rng: np.random.Generator) -> tuple[str, bytes]:
    at, length = _run(data, rng)
    return f"{length} at {at}", data[:at] + bytes(length) + data[at + length :]


def _noise(data: bytes, rng: np.random.Generator) -> tuple[str, bytes]:
    at, length = _run(data, rng)
    return f"{length} at {at}", data[:at] + rng.bytes(length) + data[at + length :]


def _delete(data: bytes, rng: np.random.Generator) -> tuple[str, bytes]:
    at, length = _run(data, rng)
    return f"{length} at {at}", data[:at] + data[at + length :]


def _insert(data: bytes, rng: np.random.Generator) -> tuple[str, bytes]:
    at, length = _run(data, rng)
    return f"{length} at {at}", data[:at] + rng.bytes(length) + data[at:]


def _repeat(data: bytes, rng: np.random.Generator) -> tuple[str, bytes]:
    at, length = _run(data, rng)
    return f"{length} at {at}", data[: at + length] + data[at:]


def _lost_sector(data: bytes, rng: np.random.Generator) -> tuple[str, bytes]:
    at = int(rng.integers(1 + len(data) // 512)) * 512
    return f"at {at}", data[:at] + bytes(len(data[at : at + 512])) + data[at + 512 :]


def _truncate(data: bytes, rng: np.random.Generator) -> tuple[str, bytes]:
    length = int(rng.integers(len(data)))
    return f"to {length}", data[:length]


def _append(data: bytes, rng: np.random.Generator) -> tuple[str, bytes]:
    length = int(rng.integers(1, 300))
    return f"{length}", data + rng.bytes(length)


_KINDS: dict[str, Callable[[bytes, np.random.Generator], tuple[str, bytes]]] = {
    "flip": _flip,
    "flip head": _flip_head,
    "flip tail": _flip_tail,
    "zeros": _zeros,
    "noise": _noise,
    "delete": _delete,
    "insert": _insert,
    "repeat": _repeat,
    "lost sector": _lost_sector,
    "truncate": _truncate,
    "append": _append,
}
