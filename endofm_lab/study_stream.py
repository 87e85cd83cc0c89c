"""The frames of a study on their way to the model: decoded, compared and resized by a thread, in a bounded queue."""

import queue
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from endofm_lab.data.hashing import fingerprint, hamming
from endofm_lab.errors import VideoError
from endofm_lab.model.video_model import VideoModel
from endofm_lab.video.reader import VideoReader
from endofm_lab.video.transforms import to_input

QUEUE_BATCHES = 3  # decoded ahead of the model

# A near-duplicate: what a camera that stands still sees. At most these differences from the last frame that was scored.
DUPLICATE_BITS = 6  # of the 128 of the perceptual hash
DUPLICATE_GREY = 3.0  # mean absolute difference of the 32 x 32 thumbnails, of 255

_DECODED_BYTES = 32 << 20  # frames in their own size that are held at once


@dataclass
class Kept:
    """The last frame that was scored: its number, hash and thumbnail; -1 before there is one."""

    frame: int = -1
    bits: np.ndarray | None = None
    thumb: np.ndarray | None = None

    @classmethod
    def of_part(cls, path: Path) -> "Kept":
        """What the part at ``path`` kept last."""
        with np.load(path, allow_pickle=False) as part:
            frame = int(part["kept_frame"])
            return cls() if frame < 0 else cls(frame, part["kept_bits"], part["kept_thumb"])

    def same(self, picture: np.ndarray, frame: int) -> bool:
        """Whether a frame nearly equals the kept one; if not, it is the kept one from now on."""
        bits, thumb, _ = fingerprint(Image.fromarray(picture))
        if (
            self.bits is not None
            and self.thumb is not None
            and hamming(bits, self.bits) <= DUPLICATE_BITS
            and np.abs(thumb.astype(np.int16) - self.thumb).mean() <= DUPLICATE_GREY
        ):
            return True
        self.frame, self.bits, self.thumb = frame, bits, thumb
        return False


@dataclass(frozen=True)
class Batch:
    """Frames of one part in their order, ready for the model.

    ``frames`` (n,) and ``clips`` (n, 3, 1, S, S) are those to score; ``duplicates`` pairs (frame, frame it equals);
    ``unreadable`` pairs (frame, reason); ``kept`` is what near-duplicates are compared with behind this batch.
    """

    frames: list[int]
    clips: Tensor | None
    duplicates: list[tuple[int, int]]
    unreadable: list[tuple[int, str]]
    kept: Kept
    next_frame: int


class Batches:
    """The decoding thread and its bounded queue of batches."""

    def __init__(
        self, reader: VideoReader, model: VideoModel, first: int, batch: int, part: int, kept: Kept | None
    ) -> None:
        self._reader, self._spec, self._kept = reader, model.card.input, kept
        self._batch, self._part = batch, part  # frames of each
        self._queue: queue.Queue[Batch | BaseException] = queue.Queue(QUEUE_BATCHES)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._decode, args=(first,), name="study-decoder", daemon=True)
        self._thread.start()

    def __next__(self) -> Batch:
        item = self._queue.get()
        if isinstance(item, BaseException):
            raise item
        return item

    def close(self) -> None:
        """Stop the thread and wait for it."""
        self._stop.set()
        while self._thread.is_alive():
            try:
                self._queue.get(timeout=0.05)
            except queue.Empty:
                continue

    def _put(self, item: Batch | BaseException) -> None:
        while not self._stop.is_set():
            try:
                return self._queue.put(item, timeout=0.1)
            except queue.Full:
                continue

    def _decode(self, first: int) -> None:
        try:
            n_frames = self._reader.info.n_frames
            pictures = _readable_frames(self._reader, first)
            for start in range(first, n_frames, self._part):
                stop = min(start + self._part, n_frames)
                at = start
                while at < stop and not self._stop.is_set():
                    made = self._next_batch(pictures, at, stop)
                    self._put(made)
                    at = made.next_frame
        except BaseException as error:  # the caller's thread raises it
            self._put(error)

    def _next_batch(self, pictures: Iterator[tuple[int, np.ndarray | str]], at: int, stop: int) -> Batch:
        """The next frames from ``at`` on: until ``batch`` of them are to be scored, or the part ends."""
        frames: list[int] = []
        waiting: list[np.ndarray] = []
        clips: list[Tensor] = []
        duplicates, unreadable = [], []
        while at < stop and len(frames) < self._batch:
            at, picture = next(pictures)
            if isinstance(picture, str):
                unreadable.append((at, picture))
            elif self._kept is not None and self._kept.same(picture, at):
                duplicates.append((at, self._kept.frame))
            else:
                frames.append(at)
                waiting.append(picture)
            at += 1
            if waiting and (
                len(waiting) * waiting[0].nbytes >= _DECODED_BYTES or at == stop or len(frames) == self._batch
            ):
                clips.append(to_input(np.stack(waiting)[:, None], self._spec))
                waiting = []
        if waiting:
            clips.append(to_input(np.stack(waiting)[:, None], self._spec))
        kept = Kept() if self._kept is None else Kept(self._kept.frame, self._kept.bits, self._kept.thumb)
        return Batch(frames, torch.cat(clips) if clips else None, duplicates, unreadable, kept, at)


def _readable_frames(reader: VideoReader, first: int) -> Iterator[tuple[int, np.ndarray | str]]:
    """Every frame from ``first`` on as (number, uint8 (H, W, 3)), or (number, reason) where it cannot be read.

    Behind damage a video goes on at its next key frame, since the frames up to there are predicted from what is lost.
    """
    at, n_frames = first, reader.info.n_frames
    while at < n_frames:
        try:
            for number, picture in reader.stream(start=at):
                yield number, picture
                at = number + 1
        except VideoError as error:
            yield at, error.reason
            goes_on = reader.next_start(at + 1)
            for lost in range(at + 1, goes_on):
                yield lost, f"frame {lost} is predicted from frame {at}, which cannot be decoded"
            at = goes_on
