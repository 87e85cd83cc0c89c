"""Video files and folders of frames: what they hold, frames by number, all frames in flat memory; and writing."""

import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import av
import numpy as np

from endofm_lab.errors import UserError, VideoError
from endofm_lab.files import atomic_path
from endofm_lab.video.decoders import IMAGE_SUFFIXES, ImageSequence, SparseReader, VideoFile

# Encoder, pixel format and options for each codec. The first four end up in files that players and browsers open.
_ENCODERS: dict[str, tuple[str, str, dict[str, str]]] = {
    "h264": ("libx264", "yuv420p", {"crf": "18", "preset": "veryfast"}),
    "hevc": ("libx265", "yuv420p", {"crf": "20", "preset": "veryfast", "x265-params": "log-level=none"}),
    "vp9": ("libvpx-vp9", "yuv420p", {"crf": "24", "b": "0", "deadline": "realtime", "cpu-used": "6"}),
    "av1": ("libsvtav1", "yuv420p", {"crf": "26", "preset": "9"}),
    "mpeg4": ("mpeg4", "yuv420p", {"qmin": "2", "qmax": "4"}),
    "mjpeg": ("mjpeg", "yuvj420p", {"qmin": "2", "qmax": "3"}),
    "ffv1": ("ffv1", "bgr0", {}),  # lossless; .mkv or .avi
}
_CONTAINERS = (".mp4", ".mov", ".mkv", ".webm", ".avi")


@dataclass(frozen=True)
class VideoInfo:
    """What a video holds.

    Attributes:
        path: File or folder.
        n_frames: Number of frames that are shown.
        fps: Average frame rate, exact (30000/1001, not 29.97).
        width_px: Width after rotation.
        height_px: Height after rotation.
        duration_s: End of the last frame, counted from the first.
        codec: FFmpeg's name of the codec, or the image format of a folder.
        decoder: Who answers :meth:`VideoReader.read`.
    """

    path: Path
    n_frames: int
    fps: Fraction
    width_px: int
    height_px: int
    duration_s: float
    codec: str
    decoder: Literal["decord", "pyav", "frames"]


class VideoReader:
    """Frames of one video in presentation order, as made by :func:`open_video`. Safe to share between threads."""

    def __init__(self, source: VideoFile | ImageSequence) -> None:
        self._source = source
        self._lock = threading.Lock()
        self._sparse = SparseReader.of(source) if isinstance(source, VideoFile) else None
        height_px, width_px = source.size_hw_px
        self._info = VideoInfo(
            path=source.path,
            n_frames=source.n_frames,
            fps=source.fps,
            width_px=width_px,
            height_px=height_px,
            duration_s=source.duration_s,
            codec=source.codec,
            decoder="frames" if isinstance(source, ImageSequence) else "decord" if self._sparse else "pyav",
        )

    def __enter__(self) -> "VideoReader":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Let the decoder go. Reading afterwards works, through PyAV."""
        with self._lock:
            self._forget_sparse()

    def _forget_sparse(self) -> None:
        if self._sparse is not None:
            self._sparse = None
            self._info = replace(self._info, decoder="pyav")

    @property
    def info(self) -> VideoInfo:
        """What the video holds."""
        return self._info

    @property
    def times_s(self) -> np.ndarray:
        """Presentation time of every frame in seconds ``(n_frames,)`` float64, the first frame at 0."""
        return self._source.times_s.copy()

    def read(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """Frames by number, in the order asked for, repeats allowed: uint8 ``(T, H, W, 3)`` RGB.

        Raises:
            VideoError: A number is outside the video, or its frame cannot be decoded (the message names it).
        """
        numbers = np.asarray(indices, dtype=np.int64).reshape(-1)
        outside = numbers[(numbers < 0) | (numbers >= self.info.n_frames)]
        if outside.size:
            raise VideoError(
                self.info.path, f"frame {outside[0]} does not exist; its frames are 0 to {self.info.n_frames - 1}"
            )
        ascending, places = np.unique(numbers, return_inverse=True)
        if ascending.size:
            with self._lock:
                if self._sparse is not None:
                    batch = self._sparse.read(ascending)
                    if batch is not None:
                        return batch if np.array_equal(ascending, numbers) else batch[places]
                    self._forget_sparse()  # damaged: PyAV says which frame it is
        frames = np.empty((len(numbers), self.info.height_px, self.info.width_px, 3), dtype=np.uint8)
        for number, frame in self._source.frames(ascending.tolist()):
            frames[numbers == number] = frame
        return frames

    def stream(self, start: int = 0, stop: int | None = None) -> Iterator[tuple[int, np.ndarray]]:
        """The frames from ``start`` up to, not including, ``stop``: yields ``(number, uint8 (H, W, 3) RGB)``.

        Each frame is decoded once, and memory stays flat however long the video is: this path always goes through
        PyAV, since decord keeps what it has decoded. The pixels are those of :meth:`read`.

        Raises:
            VideoError: A frame cannot be decoded (the message names it), or the range lies outside the video.
        """
        stop = self.info.n_frames if stop is None else stop
        if not 0 <= start <= stop <= self.info.n_frames:
            raise VideoError(self.info.path, f"frames {start} to {stop} were asked for, it has {self.info.n_frames}")
        return self._source.frames(range(start, stop))

    def next_start(self, number: int) -> int:
        """Where reading can go on behind damage: the first frame from ``number`` on that needs none before it.

        That is the next key frame of a video file, and ``number`` itself in a folder; ``n_frames`` if there is none.
        """
        return self._source.next_start(number)


class _Indices:
    """Indices of the files that were opened last: reading one takes longer than decoding a clip.

    They hold no open handle. A file that has changed, by size or time of the last change, is read again.
    """

    LIMIT_FRAMES = 4_000_000  # about 70 MB

    def __init__(self) -> None:
        self._known: OrderedDict[tuple[Path, Path, int, int], VideoFile] = OrderedDict()
        self._frames = 0
        self._lock = threading.Lock()

    def of(self, path: Path) -> VideoFile:
        stat = path.stat()
        key = (path, path.absolute(), stat.st_size, stat.st_mtime_ns)
        with self._lock:
            if key in self._known:
                self._known.move_to_end(key)
                return self._known[key]
        file = VideoFile(path)
        with self._lock:
            if key not in self._known:
                self._known[key] = file
                self._frames += file.n_frames
            while self._frames > self.LIMIT_FRAMES:
                self._frames -= self._known.popitem(last=False)[1].n_frames
        return file


_INDICES = _Indices()


def open_video(path: str | Path, fps: Fraction | int | None = None, check: bool = True) -> VideoReader:
    """Open a video file, a folder of frames, or a single image (a video of one frame).

    Args:
        path: MP4, MOV, AVI, MKV or WebM with H.264, HEVC, MPEG-4, VP9, AV1 or MJPEG; or a folder of JPEG, PNG, BMP,
            TIFF or WebP images of one size, shown in natural order of their names.
        fps: Frame rate of a folder or image, 25 if not given. A video file brings its own.
        check: Look at every image of a folder now. Without it, a damaged image or one of another size than the first
            is an error only when it is read: for long studies, which go on behind it.

    Returns:
        A reader; use it in a ``with`` block. Frames are upright (rotation applied) and RGB; pixels are as stored, a
        pixel aspect ratio other than 1 is not applied.

    Raises:
        VideoError: Missing, empty, cut off (also when the frames up to the cut could be decoded), without video, or
            damaged at its first frame. Damage further on is raised when the frame is asked for.
        UserError: A frame rate that is not above 0, or one for a video file.
    """
    path = Path(path)
    if fps is not None and fps <= 0:
        raise UserError(f"the frame rate is {fps}, it has to be above 0; give the frames per second of the recording")
    if not path.exists():
        raise VideoError(path, "there is no such file or folder; check the path")
    if path.is_dir() or path.suffix.lower() in IMAGE_SUFFIXES:
        return VideoReader(ImageSequence(path, Fraction(25 if fps is None else fps), check))
    if fps is not None:
        raise UserError(f"{path}: a video file brings its own frame rate; leave out fps={fps}")
    if not path.is_file():
        raise VideoError(path, "it is neither a file nor a folder; give a video file or a folder of frames")
    if not path.stat().st_size:
        raise VideoError(path, "the file is empty (0 bytes); copy it again from its source")
    return VideoReader(_INDICES.of(path))


def write_video(path: str | Path, frames: Iterable[np.ndarray], fps: Fraction | int, codec: str = "h264") -> None:
    """Encode frames to a file that is either whole or absent.

    Args:
        path: Target; its ending chooses the container (``.mp4``, ``.mov``, ``.mkv``, ``.webm``, ``.avi``).
        frames: uint8 ``(H, W, 3)`` RGB arrays of one size, taken one at a time.
        fps: Frames per second.
        codec: ``h264``, ``hevc``, ``vp9``, ``av1``, ``mpeg4`` or ``mjpeg`` (visually close, 4:2:0 colour; 4:4:4 for odd
            sizes where the codec needs it), or ``ffv1`` (lossless, bit for bit; ``.mkv`` or ``.avi``).

    Raises:
        UserError: Unknown codec, no frames, frames of another kind or size, frame rate not above 0, or a container
            that does not take the codec.
    """
    if codec not in _ENCODERS:
        raise UserError(f"codec {codec!r} is unknown; choose one of {', '.join(_ENCODERS)}")
    if Path(path).suffix.lower() not in _CONTAINERS:
        raise UserError(f"{path}: the ending chooses the container; use one of {', '.join(_CONTAINERS)}")
    if fps <= 0:
        raise UserError(f"the frame rate is {fps}, it has to be above 0")
    path = Path(path)
    stream: Any = None
    with atomic_path(path) as temporary, _writable(path, codec):
        # The index goes to the front, so that browsers can start before the end has arrived.
        front = {"movflags": "+faststart"} if path.suffix.lower() in (".mp4", ".mov") else {}
        with av.open(f"file:{temporary.absolute()}", "w", options=front) as container:
            for frame in frames:
                _check_frame(frame, (stream.height, stream.width, 3) if stream else frame.shape)
                if stream is None:
                    stream = _add_stream(container, codec, Fraction(fps), frame.shape[0], frame.shape[1])
                picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
                container.mux(stream.encode(picture))
            if stream is None:
                raise UserError(f"{path}: there is no frame to write; give at least one")
            container.mux(stream.encode())


def _add_stream(container: Any, codec: str, fps: Fraction, height_px: int, width_px: int) -> Any:
    encoder, pixel_format, options = _ENCODERS[codec]
    try:
        stream = container.add_stream(encoder, rate=fps, options=options)
    except ValueError as error:  # no such encoder here, or not for this container
        raise av.ArgumentError(0, str(error)) from error
    stream.height, stream.width = height_px, width_px
    odd = height_px % 2 or width_px % 2
    stream.pix_fmt = "yuv444p" if odd and codec in ("h264", "hevc") else pixel_format
    return stream


@contextmanager
def _writable(path: Path, codec: str) -> Iterator[None]:
    """Turn the encoder's complaints into a :class:`UserError`."""
    try:
        yield
    except av.FFmpegError as error:
        message = f"it cannot be written with codec {codec} ({error.strerror}); try .mp4 with h264"
        raise UserError(f"{path}: {message}") from error


def _check_frame(frame: np.ndarray, shape: tuple[int, ...]) -> None:
    if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3 or frame.shape != shape:
        raise UserError(
            f"a frame is {frame.dtype} {frame.shape}; frames are uint8 (H, W, 3), all of the size of the first, {shape}"
        )
