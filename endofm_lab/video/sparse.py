"""Read frames again with decord, after PyAV has decoded them once; faster if key frames are far apart.

decord invents a picture in place of a damaged frame and drops frames in some containers, in both cases without an
error. It is therefore used only for frames that PyAV has decoded cleanly from the same file before, and every frame
must have the checksum of the frame that PyAV returned. This helps because training reads the same frames once per
epoch, and a person who looks at a video goes back and forth.
"""

import threading
import zlib
from typing import Protocol

import numpy as np

try:
    import decord
except ImportError:  # no wheel for this platform: PyAV reads everything
    decord = None
    _ERRORS: tuple[type[Exception], ...] = ()
else:
    _ERRORS = (decord.DECORDError, decord.DECORDLimitReachedError, RuntimeError)
    decord.logging.set_level(decord.logging.QUIET)

# decord is faster if decoding starts far before the frames of a clip; near a key frame, opening decord takes longer.
_FAR = 24  # frames from a key frame to the wanted frame, on average


class Indexed(Protocol):
    """The properties that a video file must have; `decoders.VideoFile` has them."""

    @property
    def path(self) -> object:
        """The file."""
        ...

    @property
    def n_frames(self) -> int:
        """Number of frames that are shown."""
        ...

    def key_before(self, number: int) -> int:
        """Number of the last frame at or before ``number`` at which decoding can start."""
        ...


class SecondReading:
    """The frames of one file that are known from a first reading. Safe under threads; holds no open handle."""

    def __init__(self, file: Indexed) -> None:
        self._file = file
        self._checksums = np.zeros(file.n_frames, np.uint32)
        self._has_checksum = np.zeros(file.n_frames, bool)
        self._trusted = decord is not None
        self._lock = threading.Lock()

    def note(self, number: int, frame: np.ndarray) -> None:
        """Remember a frame (H, W, 3) uint8 that PyAV has decoded cleanly."""
        self._checksums[number], self._has_checksum[number] = zlib.crc32(frame.data), True

    def read(self, numbers: np.ndarray) -> np.ndarray | None:
        """The frames with the ascending ``numbers`` as uint8 ``(T, H, W, 3)`` RGB, bit for bit as PyAV decoded them.

        None if one of them was not decoded before, if decord is not faster, or if decord cannot be trusted with this
        file.
        """
        if not (self._trusted and len(numbers) and self._has_checksum[numbers].all() and self._far(numbers)):
            return None
        try:
            reader = decord.VideoReader(str(self._file.path), num_threads=1)  # not shared: it hangs between threads
            first = len(reader) - self._file.n_frames  # decord also counts frames before the first shown frame
            frames: np.ndarray = reader.get_batch((numbers + max(first, 0)).tolist()).asnumpy()
        except _ERRORS:
            frames = np.zeros((0, 0, 0, 3), np.uint8)
        matches = len(frames) == len(numbers) and all(
            zlib.crc32(frame.data) == self._checksums[number] for number, frame in zip(numbers, frames, strict=True)
        )
        if not matches:
            with self._lock:
                self._trusted = False
            return None
        return frames

    def _far(self, numbers: np.ndarray) -> bool:
        return float(np.mean([number - self._file.key_before(int(number)) for number in numbers])) >= _FAR
