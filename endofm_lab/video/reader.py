"""Read video files and folders of frames, by number or as a stream in constant memory; and write video files."""

import math
import stat
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from numbers import Real
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, Literal

import av
import numpy as np

from endofm_lab.errors import UserError, VideoError, shortened
from endofm_lab.files import atomic_path
from endofm_lab.video.decoders import VideoFile
from endofm_lab.video.images import GENERATED, IMAGE_SUFFIXES, ImageSequence

# Encoder, pixel format and options for each codec. The first four end up in files that players and browsers open.
# One thread, because the pictures would depend on the number of threads. No mbtree, because its result differs from run
# to run on processors with AVX-512.
_X265 = "log-level=none:pools=none:frame-threads=1"
_ENCODERS: dict[str, tuple[str, str, dict[str, str]]] = {
    "h264": ("libx264", "yuv420p", {"crf": "18", "preset": "veryfast", "threads": "1", "x264-params": "mbtree=0"}),
    "hevc": ("libx265", "yuv420p", {"crf": "20", "preset": "veryfast", "x265-params": _X265}),
    "vp9": ("libvpx-vp9", "yuv420p", {"crf": "24", "b": "0", "deadline": "realtime", "cpu-used": "6", "threads": "1"}),
    "av1": ("libsvtav1", "yuv420p", {"crf": "26", "preset": "9", "svtav1-params": "lp=1"}),
    "mpeg4": ("mpeg4", "yuv420p", {"qmin": "2", "qmax": "4", "threads": "1"}),
    "mjpeg": ("mjpeg", "yuvj420p", {"qmin": "2", "qmax": "3", "threads": "1"}),
    "ffv1": ("ffv1", "bgr0", {}),  # lossless; .mkv or .avi
}
LEAST_FPS, MOST_FPS = 0.001, 1_000_000
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
        decoder: What decodes the frames.
        generated: The file states that it was drawn by the phantom and is not a recording.
    """

    path: Path
    n_frames: int
    fps: Fraction
    width_px: int
    height_px: int
    duration_s: float
    codec: str
    decoder: Literal["pyav", "frames"]
    generated: bool = False


class VideoReader:
    """Frames of one video in presentation order, opened by :func:`open_video`. Safe to share between threads."""

    def __init__(self, source: VideoFile | ImageSequence, mark: bool = False) -> None:
        self._source = source
        self._mark = mark
        self._damaged: dict[int, str] = {}
        height_px, width_px = source.size_hw_px
        self._info = VideoInfo(
            path=source.path,
            n_frames=source.n_frames,
            fps=source.fps,
            width_px=width_px,
            height_px=height_px,
            duration_s=source.duration_s,
            codec=source.codec,
            decoder="frames" if isinstance(source, ImageSequence) else "pyav",
            generated=source.generated,
        )

    def __repr__(self) -> str:
        info = self._info
        return (
            f"VideoReader({shortened(info.path.name, 80)}: {info.n_frames:,} frames of {info.width_px} x "
            f"{info.height_px} px, {info.duration_s:.2f} s, {info.codec})"
        )

    def __enter__(self) -> "VideoReader":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Do nothing: no file stays open between two calls."""

    @property
    def info(self) -> VideoInfo:
        """What the video holds."""
        return self._info

    @property
    def times_s(self) -> np.ndarray:
        """Presentation time of every frame in seconds ``(n_frames,)`` float64, the first frame at 0."""
        return self._source.times_s.copy()

    @property
    def files(self) -> tuple[Path, ...]:
        """The images of a folder, one per frame; empty for a video file."""
        return self._source.files if isinstance(self._source, ImageSequence) else ()

    @property
    def damaged(self) -> Mapping[int, str]:
        """Numbers of the damaged frames read so far, with the reasons; empty unless damaged frames are marked."""
        return MappingProxyType(self._damaged)

    def read(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """Frames by number, in the order asked for, repeats allowed: uint8 ``(T, H, W, 3)`` RGB.

        Raises:
            VideoError: A number is outside the video, or its frame cannot be decoded (the message names it). Where
                damaged frames are marked, such a frame is black instead and is listed in :attr:`damaged`.
        """
        numbers = _whole_numbers(indices)
        outside = numbers[(numbers < 0) | (numbers >= self.info.n_frames)]
        if outside.size:
            raise VideoError(
                self.info.path,
                f"Frame {outside[0]} does not exist; the video has frames 0 to {self.info.n_frames - 1}.",
            )
        ascending, places = np.unique(numbers, return_inverse=True)
        second_reading = self._source.second_reading if isinstance(self._source, VideoFile) else None
        if second_reading is not None and (reread := second_reading.read(ascending)) is not None:
            return reread if np.array_equal(ascending, numbers) else reread[places]
        frames = np.empty((len(numbers), self.info.height_px, self.info.width_px, 3), dtype=np.uint8)
        for number, frame in self._frames(ascending.tolist()):
            frames[numbers == number] = frame
            if second_reading is not None and number not in self._damaged:
                second_reading.note(number, frame)
        return frames

    def stream(self, start: int = 0, stop: int | None = None) -> Iterator[tuple[int, np.ndarray]]:
        """The frames from ``start`` up to, not including, ``stop``: yields ``(number, uint8 (H, W, 3) RGB)``.

        Each frame is decoded once, and memory does not grow with the length of the video. The pixels, and the treatment
        of damaged frames, are the same as in :meth:`read`.

        Raises:
            VideoError: A frame cannot be decoded (the message names it), or the range lies outside the video.
        """
        stop = self.info.n_frames if stop is None else stop
        if not 0 <= start <= stop <= self.info.n_frames:
            raise VideoError(
                self.info.path,
                f"Frames {start} to {stop} do not exist; the video has {self.info.n_frames} frames.",
            )
        return self._frames(range(start, stop))

    def _frames(self, numbers: Sequence[int]) -> Iterator[tuple[int, np.ndarray]]:
        return self._marked(numbers) if self._mark else self._source.frames(numbers)

    def _marked(self, numbers: Sequence[int]) -> Iterator[tuple[int, np.ndarray]]:
        """Every wanted frame; a damaged frame, and the frames up to the next key frame that depend on it, are black."""
        black = np.zeros((self.info.height_px, self.info.width_px, 3), np.uint8)
        position = 0
        while position < len(numbers):
            try:
                for number, frame in self._source.frames(numbers[position:]):
                    self._damaged.pop(number, None)
                    position += 1
                    yield number, frame
            except VideoError as error:
                first = numbers[position]
                goes_on = max(first + 1, self.next_start(first + 1))
                while position < len(numbers) and (number := numbers[position]) < goes_on:
                    self._damaged[number] = (
                        error.reason
                        if number == first
                        else f"Frame {number} is predicted from frame {first}, which cannot be decoded."
                    )
                    position += 1
                    yield number, black.copy()

    def next_start(self, number: int) -> int:
        """Where reading can continue after damage: the first frame from ``number`` on that needs no earlier frame.

        That is the next key frame of a video file, and ``number`` itself in a folder; ``n_frames`` if there is none.
        """
        return self._source.next_start(number)


def _whole_numbers(indices: Sequence[int] | np.ndarray) -> np.ndarray:
    """Numbers of frames as int64 ``(n,)``.

    Raises:
        UserError: one of them is not a whole number.
    """
    numbers = np.asarray(indices).reshape(-1)
    is_float = numbers.dtype.kind == "f"
    if is_float and (numbers == np.floor(numbers)).all() and (np.abs(numbers) < 2**53).all():
        numbers = numbers.astype(np.int64)
    if numbers.dtype.kind not in "iu":
        raise UserError(f"Frames are read by whole numbers, not by {str(indices)[:60]}.")
    return numbers.astype(np.int64)


class _Indices:
    """Indices of the files that were opened last, kept because reading an index takes longer than decoding a clip.

    No file is kept open. A file whose size or time of last change differs is read again.
    """

    LIMIT_FRAMES = 4_000_000  # about 70 MB

    def __init__(self) -> None:
        self._files: OrderedDict[tuple[Path, Path, int, int], VideoFile] = OrderedDict()
        self._frames = 0
        self._lock = threading.Lock()

    def of(self, path: Path) -> VideoFile:
        status = path.stat()
        key = (path, path.absolute(), status.st_size, status.st_mtime_ns)
        with self._lock:
            if key in self._files:
                self._files.move_to_end(key)
                return self._files[key]
        file = VideoFile(path)
        with self._lock:
            if key not in self._files:
                self._files[key] = file
                self._frames += file.n_frames
            while self._frames > self.LIMIT_FRAMES:
                self._frames -= self._files.popitem(last=False)[1].n_frames
        return file


_INDICES = _Indices()


def open_video(
    path: str | Path,
    fps: Fraction | float | None = None,
    check: bool = True,
    damaged: Literal["refuse", "mark"] = "refuse",
) -> VideoReader:
    """Open a video file, a folder of frames, or a single image (a video of one frame).

    Args:
        path: MP4, MOV, AVI, MKV or WebM with H.264, HEVC, MPEG-4, VP9, AV1 or MJPEG; or a folder of JPEG, PNG, BMP,
            TIFF or WebP images of one size, shown in natural order of their names.
        fps: Frame rate of a folder or image, 25 if not given. A video file has its own frame rate.
        check: Check every image of a folder now. Otherwise an image that is damaged or differs in size from the first
            raises an error only when it is read. Long studies use this, because they continue after such an image.
        damaged: ``refuse`` raises an error at a frame that cannot be decoded cleanly, and does not open a file from
            which frames are lost. ``mark`` continues: such frames keep their numbers, are black, and are listed with
            the reason in :attr:`VideoReader.damaged`. A frame is clean if neither the container nor the decoder
            reports an error for it or for a frame that it was predicted from, and the checksums hold that the file
            has (Matroska written by FFmpeg, FFV1 of version 3, PNG). A flipped bit elsewhere may go unnoticed: lossy
            codecs in MP4 or AVI have no checksum.

    Returns:
        A reader; use it in a ``with`` block. Frames are upright (rotation applied) and RGB; pixels are as stored, a
        pixel aspect ratio other than 1 is not applied.

    Raises:
        VideoError: The file is missing, empty, cut off (even if the frames up to the cut could be decoded), without
            video, shorter than it declares, or damaged at its first frame. Later damage raises this error when the
            frame is read.
        UserError: A frame rate that is not above 0, or one for a video file.
    """
    path = Path(path)
    if damaged not in ("refuse", "mark"):
        raise UserError(f"damaged is {damaged!r}; choose refuse or mark.")
    if fps is not None:
        fps = _checked_rate(fps)
    try:
        kind = path.stat().st_mode
        if stat.S_ISDIR(kind) or path.suffix.lower() in IMAGE_SUFFIXES:
            return VideoReader(ImageSequence(path, Fraction(25) if fps is None else fps, check), damaged == "mark")
        if fps is not None:
            raise UserError(f"{path}: A video file has its own frame rate. Leave out fps={fps}.")
        if not stat.S_ISREG(kind):
            raise VideoError(path, "This is neither a file nor a folder. Give a video file or a folder of frames.")
        if not path.stat().st_size:
            raise VideoError(path, "The file is empty (0 bytes). Copy it again from its source.")
        file = _INDICES.of(path)
    except (OSError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise _unreachable(path, error) from error
    if file.problem is not None and damaged == "refuse":
        raise VideoError(file.problem.path, file.problem.reason)
    return VideoReader(file, damaged == "mark")


def _checked_rate(fps: Fraction | float) -> Fraction:
    """A frame rate as an exact number.

    Raises:
        UserError: It is not a finite number above 0.
    """
    if not (isinstance(fps, Real) and math.isfinite(fps) and LEAST_FPS <= fps <= MOST_FPS):
        raise UserError(
            f"The frame rate is {fps}; it must be above 0, from {LEAST_FPS:g} to {MOST_FPS:,}. Give the frames per "
            "second of the recording."
        )
    return Fraction(fps).limit_denominator(100_000) if isinstance(fps, float) else Fraction(fps)


def _unreachable(path: Path, error: Exception) -> VideoError:
    """The reason why a path cannot be opened, in a sentence."""
    name = str(path)
    shown = f"{name[:100]}... ({len(name):,} letters)" if len(name) > 300 else name.replace("\0", "\\0")
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        if path.is_symlink():
            return VideoError(shown, "This is a link to a missing file. Check where the link points.")
        return VideoError(shown, "There is no such file or folder. Check the path.")
    if isinstance(error, PermissionError):
        return VideoError(shown, "You have no permission to read this. Ask its owner for permission.")
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return VideoError(shown, f"This cannot be opened ({reason}). Check the path.")


def write_video(
    path: str | Path, frames: Iterable[np.ndarray], fps: Fraction | float, codec: str = "h264", generated: bool = False
) -> None:
    """Encode frames to a file. The file is either whole or absent; the same frames give the same bytes.

    Args:
        path: Target; its ending chooses the container (``.mp4``, ``.mov``, ``.mkv``, ``.webm``, ``.avi``).
        frames: uint8 ``(H, W, 3)`` RGB arrays of one size, taken one at a time.
        fps: Frames per second.
        codec: ``h264``, ``hevc``, ``vp9``, ``av1``, ``mpeg4`` or ``mjpeg`` (visually close, 4:2:0 colour; 4:4:4 for odd
            sizes where the codec needs it), or ``ffv1`` (lossless, bit for bit, with checksums; ``.mkv`` or
            ``.avi``).
        generated: The frames were drawn by the phantom. The comment of the file states this, and so does
            :class:`VideoInfo` when the file is read.

    Raises:
        UserError: Unknown codec, no frames, frames of another kind or size, frame rate not above 0, or a container
            that does not take the codec.
    """
    if codec not in _ENCODERS:
        raise UserError(f"Codec {codec!r} is unknown; choose one of {', '.join(_ENCODERS)}.")
    if Path(path).suffix.lower() not in _CONTAINERS:
        raise UserError(f"{path}: The ending chooses the container. Use one of {', '.join(_CONTAINERS)}.")
    rate = _checked_rate(fps)
    path = Path(path)
    stream: Any = None
    with atomic_path(path) as temporary, _writable(path, codec):
        # The index goes to the front, so that browsers can start before the end has arrived.
        options = {"movflags": "+faststart"} if path.suffix.lower() in (".mp4", ".mov") else {}
        options["fflags"] = "+bitexact"  # no time and no random numbers in the file
        with av.open(f"file:{temporary.absolute()}", "w", options=options) as container:
            if generated:
                container.metadata["comment"] = GENERATED
            for frame in frames:
                _check_frame(frame, (stream.height, stream.width, 3) if stream else frame.shape)
                if stream is None:
                    stream = _add_stream(container, codec, rate, frame.shape[0], frame.shape[1])
                picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
                container.mux(stream.encode(picture))
            if stream is None:
                raise UserError(f"{path}: There is no frame to write. Give at least one.")
            container.mux(stream.encode())


def _add_stream(container: Any, codec: str, fps: Fraction, height_px: int, width_px: int) -> Any:
    encoder, pixel_format, options = _ENCODERS[codec]
    try:
        stream = container.add_stream(encoder, rate=fps, options=options)
    except ValueError as error:  # the encoder is missing here, or does not fit the container
        raise av.ArgumentError(0, str(error)) from error
    stream.height, stream.width = height_px, width_px
    odd = height_px % 2 or width_px % 2
    stream.pix_fmt = "yuv444p" if odd and codec in ("h264", "hevc") else pixel_format
    return stream


@contextmanager
def _writable(path: Path, codec: str) -> Iterator[None]:
    """Turn errors of the encoder into a :class:`UserError`."""
    try:
        yield
    except av.FFmpegError as error:
        message = f"The video cannot be written with codec {codec} ({error.strerror}). Try .mp4 with h264."
        raise UserError(f"{path}: {message}") from error


def _check_frame(frame: np.ndarray, shape: tuple[int, ...]) -> None:
    if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3 or frame.shape != shape:
        raise UserError(
            f"A frame is {frame.dtype} {frame.shape}; all frames must be uint8 (H, W, 3) like the first, {shape}."
        )
