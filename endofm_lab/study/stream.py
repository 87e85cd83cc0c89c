"""Decode and resize the frames of a study in threads, compare them for near-duplicates, and collect them in batches.

Each thread decodes every n-th segment of the video, from one key frame to another. It may run ahead of the model by a
limited number of frames; the segments are joined in their order.
"""

import queue
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from endofm_lab.brief import Brief
from endofm_lab.data.hashing import Fingerprint, fingerprint, hamming
from endofm_lab.machine import cores
from endofm_lab.model.card import InputSpec
from endofm_lab.model.video_model import VideoModel
from endofm_lab.video.reader import VideoReader
from endofm_lab.video.transforms import normalise, resize

THREADS = min(4, cores())  # number of decoding threads, and of batches that are scored in parallel
CHUNK_FRAMES = 32  # frames that a decoder passes on together
QUEUE_CHUNKS = 8  # chunks that a decoder may be ahead: about one segment of H.264 (250 frames), so that none waits
SEGMENT_FRAMES = 64  # least number of frames in a segment

# A near-duplicate is what a camera sees while it stands still: a frame that differs from the last scored frame by no
# more than this.
DUPLICATE_BITS = 6  # of the 128 bits of the perceptual hash
DUPLICATE_GREY = 3.0  # mean absolute difference of the 32 x 32 thumbnails, on a scale of 255

_DECODED_BYTES = 2 << 20  # frames at full size that a decoder holds at once, small enough for the processor's cache


@dataclass(eq=False, repr=False)
class LastScored(Brief):
    """The last frame that was scored: its number (-1 before the first one), hash and thumbnail."""

    frame: int = -1
    bits: np.ndarray | None = None
    thumb: np.ndarray | None = None

    @classmethod
    def of_part(cls, path: Path) -> "LastScored":
        """The last scored frame of the part at ``path``."""
        with np.load(path, allow_pickle=False) as part:
            frame = int(part["kept_frame"])
            return cls() if frame < 0 else cls(frame, part["kept_bits"], part["kept_thumb"])

    def is_repeated_by(self, picture: Fingerprint, frame: int) -> bool:
        """Whether a frame is a near-duplicate of the last scored frame; if not, it becomes the last scored frame."""
        if (
            self.bits is not None
            and self.thumb is not None
            and hamming(picture.hash, self.bits) <= DUPLICATE_BITS
            and np.abs(picture.thumb.astype(np.int16) - self.thumb).mean() <= DUPLICATE_GREY
        ):
            return True
        self.frame, self.bits, self.thumb = frame, picture.hash, picture.thumb
        return False


@dataclass(frozen=True, eq=False, repr=False)
class Batch(Brief):
    """Frames of one part in their order, ready for the model.

    ``frames`` (n,) and ``clips`` (n, 3, 1, S, S) are to be scored; ``duplicates`` are pairs (frame, frame that it
    repeats); ``unreadable`` are pairs (frame, reason). After this batch, near-duplicates are compared with
    ``last_scored``.
    """

    frames: list[int]
    clips: Tensor | None
    duplicates: list[tuple[int, int]]
    unreadable: list[tuple[int, str]]
    last_scored: LastScored
    next_frame: int


def answers_of(model: VideoModel, clips: Tensor, names: list[str]) -> tuple[dict[str, Tensor], np.ndarray | None]:
    """Scores of frames by head, and distances (n,) from the training features if the model has statistics of them."""
    scores, features = model.answer(clips, names)
    return scores, None if model.familiarity is None else model.familiarity.distances(features)


class Batches:
    """Batches of the frames from ``first`` on.

    No batch crosses the border of a part, so that a resumed study has the same batches. ``batch`` and ``part`` are
    numbers of frames. With ``last_scored`` near-duplicates are recognised.
    """

    def __init__(
        self, reader: VideoReader, model: VideoModel, first: int, batch: int, part: int, last_scored: LastScored | None
    ) -> None:
        self._batch, self._part, self._last_scored = batch, part, last_scored
        self._first, self._at, self._n_frames = first, first, reader.info.n_frames
        self._spec = model.card.input
        self._decoders = [
            _Decoder(reader, islice(_segments(reader, first), nth, None, THREADS), self._spec, last_scored is not None)
            for nth in range(THREADS)
        ]
        self._frames = self._in_order()

    def __next__(self) -> Batch:
        """The next batch, which ends when it has ``batch`` frames to score or when the part ends."""
        part_end = self._at + self._part - (self._at - self._first) % self._part
        stop = min(part_end, self._n_frames)
        frames: list[int] = []
        clips: list[Tensor] = []
        duplicates, unreadable = [], []
        while self._at < stop and len(frames) < self._batch:
            frame = next(self._frames)
            if frame.clip is None:
                unreadable.append((frame.number, frame.reason))
            elif (
                self._last_scored is not None
                and frame.fingerprint is not None
                and self._last_scored.is_repeated_by(frame.fingerprint, frame.number)
            ):
                duplicates.append((frame.number, self._last_scored.frame))
            else:
                frames.append(frame.number)
                clips.append(frame.clip)
            self._at = frame.number + 1
        last_scored = LastScored() if self._last_scored is None else replace(self._last_scored)
        stacked = normalise(torch.stack(clips), self._spec) if clips else None
        return Batch(frames, stacked, duplicates, unreadable, last_scored, self._at)

    def _in_order(self) -> Iterator["_Frame"]:
        """The frames of all segments in their order; the decoders take turns."""
        while True:
            for decoder in self._decoders:
                for chunk in iter(decoder.next_chunk, None):
                    yield from chunk

    def close(self) -> None:
        """Stop the threads and wait for them."""
        for decoder in self._decoders:
            decoder.stop()
        for decoder in self._decoders:
            decoder.join()


class _Frame(NamedTuple):
    """A decoded frame: uint8 (3, 1, S, S), and its fingerprint if wanted; or the reason why it cannot be read."""

    number: int
    clip: Tensor | None = None
    fingerprint: Fingerprint | None = None
    reason: str = ""


class _Decoder:
    """A thread that decodes segments, and the bounded queue of its chunks; None marks the end of a segment."""

    def __init__(self, reader: VideoReader, segments: Iterator[range], spec: InputSpec, fingerprints: bool) -> None:
        self._reader, self._segments, self._spec, self._fingerprints = reader, segments, spec, fingerprints
        self._queue: queue.Queue[list[_Frame] | BaseException | None] = queue.Queue(QUEUE_CHUNKS)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._decode, name="study-decoder", daemon=True)
        self._thread.start()

    def next_chunk(self) -> list[_Frame] | None:
        item = self._queue.get()
        if isinstance(item, BaseException):
            raise item
        return item

    def stop(self) -> None:
        self._stop.set()

    def join(self) -> None:
        self._thread.join()

    def _put(self, item: list[_Frame] | BaseException | None) -> None:
        while not self._stop.is_set():
            try:
                return self._queue.put(item, timeout=0.1)
            except queue.Full:
                continue

    def _decode(self) -> None:
        torch.set_num_threads(1)  # holds for this thread only
        try:
            for segment in self._segments:
                if self._stop.is_set():
                    return
                frames = self._resized(_readable_frames(self._reader, segment))
                while (chunk := list(islice(frames, CHUNK_FRAMES))) and not self._stop.is_set():
                    self._put(chunk)
                self._put(None)
        except BaseException as error:  # `next_chunk` raises it in the caller's thread
            self._put(error)

    def _resized(self, pictures: Iterator[tuple[int, np.ndarray | str]]) -> Iterator[_Frame]:
        """The frames in their order; several are resized at a time."""
        waiting: list[tuple[int, np.ndarray]] = []
        for number, picture in pictures:
            if isinstance(picture, str):
                yield from self._clips(waiting)
                waiting = []
                yield _Frame(number, reason=picture)
                continue
            waiting.append((number, picture))
            if len(waiting) == CHUNK_FRAMES or len(waiting) * picture.nbytes >= _DECODED_BYTES:
                yield from self._clips(waiting)
                waiting = []
        yield from self._clips(waiting)

    def _clips(self, pictures: list[tuple[int, np.ndarray]]) -> Iterator[_Frame]:
        if pictures:
            # torch copies the pictures without holding the interpreter lock, which the other threads need.
            stacked = torch.stack([torch.from_numpy(picture) for _, picture in pictures])
            clips = resize(stacked[:, None], self._spec)
            for clip, (number, picture) in zip(clips, pictures, strict=True):
                yield _Frame(number, clip, fingerprint(Image.fromarray(picture)) if self._fingerprints else None)


def _segments(reader: VideoReader, first: int) -> Iterator[range]:
    """The frames from ``first`` on, cut at frames where decoding can start."""
    while first < reader.info.n_frames:
        stop = min(reader.next_start(first + SEGMENT_FRAMES), reader.info.n_frames)
        yield range(first, stop)
        first = stop


def _readable_frames(reader: VideoReader, segment: range) -> Iterator[tuple[int, np.ndarray | str]]:
    """Every frame of a segment as (number, uint8 (H, W, 3)), or (number, reason) where it cannot be read.

    The reader must be opened with ``damaged="mark"``: after damage a video continues at its next key frame.
    """
    for number, picture in reader.stream(segment.start, segment.stop):
        yield number, reader.damaged.get(number, picture)
