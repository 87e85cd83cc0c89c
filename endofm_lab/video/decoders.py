"""From bytes on disk to RGB pictures: video files (PyAV, and decord for sparse access) and folders of images.

PyAV's list of packets is the truth about a file: which frames are shown, in which order and when. Both decoders answer
to it. decord is used only where it can be held to that list: in AVI files without presentation times, around open
groups of pictures and with intra refresh it returns wrong frames, and in a stream-copied cut it counts frames that no
player shows.
"""

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from PIL import Image, ImageOps

from endofm_lab.errors import VideoError
from endofm_lab.video.bitstream import CLEAN_START, NO_START, missing_bytes, start_at

try:
    import decord
except ImportError:  # no wheel for this platform: PyAV reads everything
    decord = None
    _DECORD_ERRORS: tuple[type[Exception], ...] = ()
else:
    _DECORD_ERRORS = (decord.DECORDError, decord.DECORDLimitReachedError, RuntimeError)
    decord.logging.set_level(decord.logging.QUIET)

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"})

# Demuxers of video files proper. Play lists, image patterns and text renderers stay out: they open other files.
_CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,asf,flv,ogg,mxf,gif,dv,rm,h264,hevc"

# decord returns the next frame for one that its decoder drops without an error, as those of HEVC, VP9 and MPEG-4 do
# with damaged data. The decoders of these two report every damaged frame.
_DECORD_CODECS = ("h264", "mjpeg")

_THREADED_PX = 640 * 480

_NO_STAMP = np.iinfo(np.int64).min  # a packet without a time stamp
_PACKET = [(name, "i8") for name in ("pts", "dts", "duration")]
_PACKET += [("key", "?"), ("start", "u1"), ("discard", "?"), ("corrupt", "?")]


class VideoFile:
    """The frames of one video file in presentation order, decoded by PyAV.

    Holds the index of the file and no open handle: every call of :meth:`frames` opens the file for itself, so that
    threads never share a decoder.

    Attributes:
        path: The file.
        codec: FFmpeg's name of the codec, such as ``h264``.
        fps: Average frame rate.
        times_s: Presentation times in seconds ``(n_frames,)`` float64, the first frame at 0.
        first_s: Presentation time of the first frame on the file's own clock, in seconds.
        duration_s: End of the last frame in seconds.
        suits_decord: decord can be trusted with it: its decoder reports damage, every key frame is a clean start, and
            the header promises about as many frames as there are.
        size_hw_px: Height and width after rotation.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if missing := missing_bytes(path):
            raise VideoError(
                path, f"the file is cut off, its header promises {missing:,} more bytes; copy it again from its source"
            )
        with self._open() as (container, stream):
            self.codec = stream.codec_context.codec.canonical_name
            self._read_index(container, stream)
            _, first = next(self.frames([0]))
            self.size_hw_px = (first.shape[0], first.shape[1])

    @property
    def n_frames(self) -> int:
        """Number of frames that are shown."""
        return len(self.times_s)

    def _read_index(self, container: Any, stream: Any) -> None:
        """List the packets of the stream (no decoding): which frames are shown, when, and where decoding can start."""
        extradata = stream.codec_context.extradata or b""
        fields = (
            (
                _stamp(packet.pts),
                _stamp(packet.dts),
                packet.duration or 0,
                packet.is_keyframe,
                start_at(packet, self.codec, extradata) if packet.is_keyframe else NO_START,
                packet.is_discard,
                packet.is_corrupt,
            )
            for packet in container.demux(stream)
            if packet.size
        )
        with self._readable("its packets cannot be listed"):
            packets = np.fromiter(fields, dtype=_PACKET)  # 28 bytes a frame: 3 MB for an hour
        if packets.size and packets["corrupt"][-1]:
            raise VideoError(self.path, "the file is cut off inside its last frame; copy it again from its source")
        stamps, avi = packets["pts"], container.format.name == "avi"
        if avi:  # knows decoding times only, which are presentation times where no frame is moved
            stamps = np.where(stamps == _NO_STAMP, packets["dts"], stamps)
        self._seekable = (
            not (avi and self.codec in ("h264", "hevc") and stream.codec_context.has_b_frames)
            and _NO_STAMP not in stamps
            and len(np.unique(stamps)) == len(stamps)
        )
        if not self._seekable:  # no presentation times: frames are counted from the start, evenly spaced in time
            stamps = np.arange(len(packets))
        starts = packets["start"] != NO_START
        keys = stamps[starts]
        # Pre-roll has negative stamps or the discard flag: needed for decoding, never shown.
        # What comes before the first key frame cannot be decoded by any player.
        shown = (stamps >= max(0, keys[0])) & ~packets["discard"] if keys.size else starts
        if not shown.any():
            raise VideoError(self.path, "it holds no frame that can be decoded; check that it is a whole video")
        order = np.argsort(stamps[shown])
        self._stamps = stamps[shown][order]
        self._keys = np.sort(keys)
        rate = stream.average_rate or stream.guessed_rate
        tick = Fraction(stream.time_base) if self._seekable or not rate else 1 / Fraction(rate)
        # Numerator first: float64 then rounds once, so that frame 30 of 30000/1001 per second lies at exactly 1.001 s.
        self.times_s = (self._stamps - self._stamps[0]) * tick.numerator / tick.denominator
        self.first_s = float(self._stamps[0] * tick)
        self.fps = Fraction(rate) if rate else Fraction(len(order) - 1 or 1, int(np.ptp(self._stamps)) or 1) / tick
        last = int(packets["duration"][shown][order][-1]) if self._seekable else 0
        self.duration_s = float(self.times_s[-1]) + float(last * tick or 1 / self.fps)
        clean = (packets["start"][packets["key"]] == CLEAN_START).all()
        # decord reserves memory for what the header promises; a damaged header lets it abort the whole process.
        promised = max(stream.frames, (container.duration or 0) / av.time_base * float(self.fps))
        self.suits_decord = bool(self.codec in _DECORD_CODECS and clean and promised < 2 * len(packets) + 1000)

    def frames(self, wanted: Iterable[int]) -> Iterator[tuple[int, np.ndarray]]:
        """Decode the frames with the ascending numbers ``wanted``; yields ``(number, uint8 (H, W, 3) RGB)``.

        Seeks only where a key frame lies between the last frame and the next; what is decoded on the way is let go.
        """
        with self._open() as (container, stream):
            # Threads pay for large pictures only; for small ones, handing over takes longer than decoding.
            threaded = stream.width * stream.height >= _THREADED_PX
            stream.thread_type, stream.thread_count = ("AUTO", 0) if threaded else ("SLICE", 1)
            to_rgb = VideoReformatter()
            decoded: Iterator[tuple[int, av.VideoFrame]] = iter(())
            at = -1  # number of the last frame that came out
            for number in wanted:
                # the frame that follows needs no search
                if at < 0 or (at + 1 < number and at + 1 < self._key_before(number)):
                    decoded = self._decode_from(container, stream, number)
                at, frame = next((item for item in decoded if item[0] >= number), (-1, None))
                if frame is None or at != number or frame.is_corrupt:
                    raise VideoError(self.path, self._damage(number))
                with self._readable(self._damage(number)):
                    picture = self._upright(number, frame, to_rgb)
                yield number, picture

    def next_start(self, number: int) -> int:
        """The first frame from ``number`` on that can be decoded without those before it; ``n_frames`` if none can."""
        if number >= self.n_frames or not self._seekable:
            return self.n_frames
        later = self._keys[np.searchsorted(self._keys, self._stamps[number], side="left") :]
        return int(np.searchsorted(self._stamps, later[0])) if later.size else self.n_frames

    def _upright(self, number: int, frame: av.VideoFrame, to_rgb: VideoReformatter) -> np.ndarray:
        quarter_turns, rest = divmod(round(frame.rotation), 90)
        if rest:
            raise VideoError(
                self.path, f"it asks to be turned by {frame.rotation} degrees; 90, 180 and 270 work: convert it upright"
            )
        rgb = to_rgb.reformat(frame, format="rgb24", threads=1).to_ndarray()  # more threads wait for each other
        picture: np.ndarray = np.ascontiguousarray(np.rot90(rgb, quarter_turns))
        size = getattr(self, "size_hw_px", picture.shape[:2])
        if picture.shape[:2] != size:
            raise VideoError(
                self.path,
                f"frame {number} has {picture.shape[1]}x{picture.shape[0]} px, the first one {size[1]}x{size[0]} px; "
                "split the file where the size changes",
            )
        return picture

    def _key_before(self, number: int) -> int:
        """Number of the last frame at or before ``number`` where decoding can start; 0 where seeking is impossible."""
        if not self._seekable:
            return 0
        key = self._keys[np.searchsorted(self._keys, self._stamps[number], side="right") - 1]
        return int(np.searchsorted(self._stamps, key))

    def _decode_from(self, container: Any, stream: Any, number: int) -> Iterator[tuple[int, av.VideoFrame]]:
        """Frames in presentation order with their numbers, the first at or before ``number``."""
        if not self._seekable:  # just opened, so at the start
            return enumerate(self._decoded(container, stream))
        last = int(np.searchsorted(self._keys, self._stamps[number], side="right")) - 1
        # Some containers seek by decoding time and land on a later key frame: then start one key frame earlier.
        for key in self._keys[last::-1]:
            with self._readable(self._damage(number)):
                container.seek(int(key), stream=stream)
            decoded = self._numbered(self._decoded(container, stream), int(np.searchsorted(self._stamps, key)))
            first = next(decoded, None)
            if first is not None:
                return chain([first], decoded)
        raise VideoError(self.path, self._damage(number))

    def _numbered(self, frames: Iterator[av.VideoFrame], number: int) -> Iterator[tuple[int, av.VideoFrame]]:
        """Pair frames with their numbers by their presentation times, from ``number`` on without a gap.

        Frames that come before are not shown, or were predicted from others that a start here has left out. A gap means
        that a frame was lost; the frames behind it were predicted from it, so it ends there.
        """
        for frame in frames:
            if _stamp(frame.pts) >= self._stamps[number]:
                if frame.pts != self._stamps[number]:
                    return
                yield number, frame
                number += 1
                if number == self.n_frames:
                    return

    @staticmethod
    def _decoded(container: Any, stream: Any) -> Iterator[av.VideoFrame]:
        """Decoded frames up to the end or to the first damaged packet: what depends on that one cannot be trusted."""
        try:
            yield from container.decode(stream)
        except av.FFmpegError:
            return

    def _damage(self, number: int) -> str:
        return (
            f"frame {number} of {self.n_frames} (at {self.times_s[number]:.2f} s) cannot be decoded; "
            "the file is damaged there, copy it again from its source"
        )

    @contextmanager
    def _open(self) -> Iterator[tuple[Any, Any]]:
        options = {"protocol_whitelist": "file", "format_whitelist": _CONTAINERS}
        with self._readable("it is not a video, or its index is missing because it was cut off"):
            container = av.open(f"file:{self.path.absolute()}", options=options, metadata_errors="replace")
        with container:
            pictures = [s for s in container.streams.video if not s.disposition & s.disposition.attached_pic]
            if not pictures or pictures[0].codec_context is None:
                raise VideoError(self.path, "it holds no video stream that can be decoded; choose a video file")
            yield container, pictures[0]

    @contextmanager
    def _readable(self, reason: str) -> Iterator[None]:
        """Turn the decoder's complaints into a :class:`VideoError` with ``reason``."""
        try:
            yield
        except (av.FFmpegError, OSError) as error:
            raise VideoError(self.path, f"{reason} ({error.strerror})") from error


def _stamp(time: int | None) -> int:
    return _NO_STAMP if time is None else time


class SparseReader:
    """decord's random access to a file whose index PyAV has read. Not safe under threads: hold a lock."""

    def __init__(self, reader: Any, first: int) -> None:
        self._reader = reader
        self._first = first  # decord also counts the pre-roll frames before the first one that is shown

    @classmethod
    def of(cls, file: VideoFile) -> "SparseReader | None":
        """A reader, or None where decord is absent, cannot open the file, or disagrees with its index."""
        if decord is None or not file.suits_decord:
            return None
        try:
            # decord repeats a neighbour for a damaged frame unless told that not a single one may fail.
            reader = decord.VideoReader(str(file.path.absolute()), fault_tol=1e-9)
            stamps_s = reader.get_frame_timestamp(np.arange(len(reader)))[:, 0]  # float32
        except _DECORD_ERRORS:
            return None
        first = len(reader) - file.n_frames
        if first < 0 or not np.allclose(stamps_s[first:], file.times_s + file.first_s, rtol=1e-6, atol=1e-3):
            return None
        return cls(reader, first)

    def read(self, numbers: np.ndarray) -> np.ndarray | None:
        """Frames with the ascending ``numbers`` as uint8 ``(T, H, W, 3)`` RGB; None where decord gives up."""
        try:
            return self._reader.get_batch((numbers + self._first).tolist()).asnumpy()
        except _DECORD_ERRORS:
            return None


class ImageSequence:
    """Pictures of one size as a video: a folder in natural order (``9.png`` before ``10.png``), or a single image.

    Hidden files, sub-folders and files of other kinds are ignored. The attributes are those of :class:`VideoFile`.
    """

    def __init__(self, path: Path, fps: Fraction, check: bool = True) -> None:
        self.path = path
        candidates = [path] if path.is_file() else sorted(path.iterdir(), key=_natural)
        self._files = [
            file
            for file in candidates
            if file.suffix.lower() in IMAGE_SUFFIXES and not file.name.startswith(".") and file.is_file()
        ]
        if not self._files:
            raise VideoError(path, f"the folder holds no image; supported are {', '.join(sorted(IMAGE_SUFFIXES))}")
        self.codec = self._files[0].suffix.lower().lstrip(".")
        self.fps = fps
        self.times_s = np.arange(len(self._files)) / float(fps)
        self.duration_s = len(self._files) / float(fps)
        for number in range(len(self._files)):
            try:
                image = self._open(number)
            except VideoError:
                if check or number == len(self._files) - 1:
                    raise
                continue
            self.size_hw_px = (image.height, image.width)
            if not check:  # the first one that can be read gives the size; the others answer when they are asked for
                break

    @property
    def n_frames(self) -> int:
        """Number of images."""
        return len(self._files)

    def next_start(self, number: int) -> int:
        """Every image stands for itself: ``number``."""
        return number

    def frames(self, wanted: Iterable[int]) -> Iterator[tuple[int, np.ndarray]]:
        """Decode the images with the numbers ``wanted``; yields ``(number, uint8 (H, W, 3) RGB)``."""
        for number in wanted:
            with _image_errors(self._files[number]):
                image = self._open(number)
                picture = np.array(image if image.mode == "RGB" else image.convert("RGB"))  # converting RGB copies it
            yield number, picture

    def _open(self, number: int) -> Image.Image:
        """The image behind its header, upright; pixels are decoded later, unless it has to be turned."""
        file = self._files[number]
        with _image_errors(file):
            image: Image.Image = Image.open(file)
            if image.getexif().get(0x0112, 1) != 1:
                image = ImageOps.exif_transpose(image)
        if image.mode.startswith(("I", "F")):
            raise VideoError(file, f"its pixels are of kind {image.mode}, not 8 bit; convert it to 8-bit RGB or grey")
        size = getattr(self, "size_hw_px", (image.height, image.width))
        if (image.height, image.width) != size:
            raise VideoError(
                file,
                f"it has {image.width}x{image.height} px, the first image {size[1]}x{size[0]} px; "
                "all frames of a folder need one size",
            )
        return image


@contextmanager
def _image_errors(file: Path) -> Iterator[None]:
    try:
        yield
    except VideoError:
        raise
    # Pillow's plug-ins raise SyntaxError, ValueError, struct.error and others on broken bytes.
    except Exception as error:
        raise VideoError(file, f"the image cannot be decoded ({error}); replace it or remove it") from error


def _natural(path: Path) -> list[tuple[int, int | str]]:
    """Sorting key that compares runs of digits as numbers: ``frame9`` < ``frame10``; ties broken by the name."""
    parts = re.split(r"(\d+)", path.name)
    return [(0, int(part)) if part.isdigit() else (1, part) for part in parts if part] + [(2, path.name)]
