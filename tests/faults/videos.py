"""Ways to spoil a video file, drawn from a seed: what a bad disk, a broken copy or a careless tool leaves behind."""

from collections.abc import Callable, Iterator
from functools import partial
from itertools import count, cycle
from pathlib import Path

import numpy as np

from endofm_lab.video.reader import open_video
from tests.faults.campaign import Case
from tests.video.recordings import ENCODINGS, encode, number_in

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


# Containers with checksums, and codecs and containers whose frames are damaged by structure alone.
FILES = (
    "h264_short_gop.mp4", "h264.mkv", "h264.ts", "mjpeg.avi", "vp9.webm", "hevc.mov", "mpeg4.avi", "ffv1.mkv",
    "ffv1.avi",
)  # fmt: skip
N_FRAMES = 24


def cases(folder: Path, seed: int) -> Iterator[Case]:
    """Spoiled videos of several containers: the frames are those of the whole file, or the video is refused.

    Every frame carries its number, and FFV1's has checksums and must be equal in every pixel. A damaged stream whose
    container has no checksum may show a damaged picture (nobody can tell); it may not be shorter, longer or shifted.
    """
    streams = []
    for name in FILES:
        path = encode(folder / name, N_FRAMES, **ENCODINGS[name])
        with open_video(path) as video:
            truth = np.stack([frame for _, frame in video.stream()]) if name.startswith("ffv1") else None
        (folder / f"spoiled-{name}").mkdir()
        times_s = np.arange(N_FRAMES) / float(ENCODINGS[name].get("fps", 25))
        streams.append((folder / f"spoiled-{name}" / name, mutations(path, seed), times_s, truth))
    for path, copies, times_s, truth in cycle(streams):
        change, data = next(copies)
        yield Case(f"{path.name}, {change}", partial(_is_true, path, data, times_s, truth))


def _is_true(path: Path, data: bytes, times_s: np.ndarray, truth: np.ndarray | None) -> bool:
    path.write_bytes(data)
    with open_video(path) as video:
        frames = np.stack([frame for _, frame in video.stream()])
        if frames.shape[0] != N_FRAMES or not np.allclose(video.times_s, times_s, atol=1e-3):
            return False
    if truth is not None:
        return bool(np.array_equal(frames, truth))
    return sum(number_in(frame) == number for number, frame in enumerate(frames)) >= N_FRAMES // 2
