"""Decode a video file into RGB pictures, frame by frame.

The list of packets is the reference: it states which frames are shown, in which order and when. Decoded frames are
checked against that list, and the list is checked against the container. A frame counts as readable if the frame
itself, and every frame that it was predicted from, was decoded without an error.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.reformatter import VideoReformatter

from endofm_lab.errors import VideoError
from endofm_lab.video.containers import missing_bytes
from endofm_lab.video.images import GENERATED
from endofm_lab.video.index import list_packets, read_index
from endofm_lab.video.sparse import SecondReading

# Demuxers of real video files. Play lists, image patterns and text renderers are left out: they open other files.
_CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,asf,flv,ogg,mxf,gif,dv,rm,h264,hevc"

# A decoder that meets damage stops with an error. By default it would invent a picture and continue.
_STRICT = {"err_detect": "explode"}

_THREADED_PX = 640 * 480


class VideoFile:
    """The frames of one video file in presentation order, decoded by PyAV.

    Holds the index of the file and no open handle: every call of :meth:`frames` opens the file for itself, so that
    threads never share a decoder.

    Attributes:
        path: The file.
        codec: FFmpeg's name of the codec, such as ``h264``.
        index: Which frames the file shows, and when.
        size_hw_px: Height and width after rotation.
        generated: The file states that :func:`write_video` wrote a generated video.
        second_reading: What is known about frames that were read before.
        problem: Why the file as a whole is damaged, or None. Single frames may be damaged in either case.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if missing := missing_bytes(path):
            raise VideoError(
                path, f"The file is cut off: {missing:,} bytes are missing. Copy the file again from its source."
            )
        self.problem: VideoError | None = None
        with self._open() as (container, stream):
            self.codec = stream.codec_context.codec.canonical_name
            self.generated = GENERATED in container.metadata.values()
            self._read_index(container, stream)
        if self.index.lost:
            self.problem = VideoError(
                path,
                f"{self.index.lost} of its {self.n_frames} frames are lost, and the damage begins at "
                f"{self.times_s[self.index.damaged.argmax()]:.2f} s. Copy the file again from its source.",
            )
        self.size_hw_px = self._first_size()
        self.second_reading = SecondReading(self)

    @property
    def n_frames(self) -> int:
        """Number of frames that are shown."""
        return len(self.index.stamps)

    @property
    def times_s(self) -> np.ndarray:
        """Presentation times in seconds ``(n_frames,)`` float64, the first frame at 0."""
        return self.index.times_s

    @property
    def fps(self) -> Fraction:
        """Average frame rate."""
        return self.index.fps

    @property
    def duration_s(self) -> float:
        """End of the last frame in seconds."""
        return self.index.duration_s

    def _read_index(self, container: Any, stream: Any) -> None:
        with self._readable("The packets of this file cannot be listed"):
            packets = list_packets(container, stream, self.codec)
        self.index = read_index(self.path, container, stream, packets, self.codec)

    def _first_size(self) -> tuple[int, int]:
        """Height and width of the first frame that can be decoded: frame 0 unless the file is damaged."""
        number = 0
        while True:
            try:
                _, first = next(self.frames([number]))
            except VideoError as error:
                self.problem = self.problem or error
                number = self.next_start(number + 1)
                if number >= self.n_frames:
                    raise self.problem from error
            else:
                return first.shape[0], first.shape[1]

    def frames(self, numbers: Iterable[int]) -> Iterator[tuple[int, np.ndarray]]:
        """Decode the frames with the ascending ``numbers``; yields ``(number, uint8 (H, W, 3) RGB)``.

        Seeks only if a key frame lies between the previous frame and the next. Frames decoded in between are discarded.
        """
        with self._open() as (container, stream):
            # Threads are faster for large pictures only: handing over small pictures takes longer than decoding them.
            threaded = stream.width * stream.height >= _THREADED_PX
            stream.thread_type, stream.thread_count = ("AUTO", 0) if threaded else ("SLICE", 1)
            stream.codec_context.options = _STRICT
            to_rgb = VideoReformatter()
            decoded: Iterator[tuple[int, av.VideoFrame]] = iter(())
            at = -1  # number of the last frame that came out
            for number in numbers:
                if self.index.damaged[number]:
                    raise VideoError(self.path, self._damage(number))
                # the next frame needs no search
                if at < 0 or (at + 1 < number and at + 1 < self.key_before(number)):
                    decoded = self._decode_from(container, stream, number)
                at, frame = next((item for item in decoded if item[0] >= number), (-1, None))
                if frame is None or at != number:
                    raise VideoError(self.path, self._damage(number))
                with self._readable(self._damage(number)):
                    picture = self._upright(number, frame, to_rgb)
                yield number, picture

    def next_start(self, number: int) -> int:
        """The first frame from ``number`` on that can be decoded without those before it; ``n_frames`` if none can."""
        if number >= self.n_frames or not self.index.seekable:
            return self.n_frames
        later = self.index.keys[self.index.keys >= self.index.stamps[number]]
        return self.index.number_of(later[0]) if later.size else self.n_frames

    def _upright(self, number: int, frame: av.VideoFrame, to_rgb: VideoReformatter) -> np.ndarray:
        quarter_turns, remainder = divmod(round(frame.rotation), 90)
        if remainder:
            raise VideoError(
                self.path,
                f"The file asks for a rotation by {frame.rotation} degrees; only 90, 180 and 270 are supported. "
                "Convert it upright.",
            )
        rgb = to_rgb.reformat(
            frame, format="rgb24", threads=1
        ).to_ndarray()  # several threads would wait for each other
        picture: np.ndarray = np.ascontiguousarray(np.rot90(rgb, quarter_turns))
        size = getattr(self, "size_hw_px", picture.shape[:2])
        if picture.shape[:2] != size:
            raise VideoError(
                self.path,
                f"Frame {number} has {picture.shape[1]}x{picture.shape[0]} px, the first frame {size[1]}x{size[0]} px. "
                "Split the file where the size changes.",
            )
        return picture

    def key_before(self, number: int) -> int:
        """Number of the last frame at or before ``number`` where decoding can start; 0 where seeking is impossible."""
        return self.index.number_of(self.index.keys[self.index.key_of(number)]) if self.index.seekable else 0

    def _decode_from(self, container: Any, stream: Any, number: int) -> Iterator[tuple[int, av.VideoFrame]]:
        """Frames in presentation order with their numbers, the first at or before ``number``."""
        if not self.index.seekable:  # just opened, so at the start
            return enumerate(self._decoded(container, stream))
        # Seeking in some containers ends at a later key frame: then start one key frame earlier.
        for key in range(self.index.key_of(number), -1, -1):
            with self._readable(self._damage(number)):
                container.seek(int(self.index.seek_to[key]), stream=stream)
            start = self.index.number_of(self.index.keys[key])
            decoded = self._numbered(self._decoded(container, stream), start)
            first = next(decoded, None)
            if first is not None:
                return chain([first], decoded)
        raise VideoError(self.path, self._damage(number))

    def _numbered(self, frames: Iterator[av.VideoFrame], number: int) -> Iterator[tuple[int, av.VideoFrame]]:
        """Pair frames with their numbers by their presentation times, from ``number`` on without a gap.

        Frames before ``number`` are not shown, or were predicted from frames that were skipped by starting here. A gap
        means that a frame was lost. Later frames were predicted from the lost frame, so the iteration ends there.
        """
        stamps = self.index.stamps
        for frame in frames:
            if frame.pts is not None and frame.pts >= stamps[number]:
                if frame.pts != stamps[number] or frame.is_corrupt:
                    return
                yield number, frame
                number += 1
                if number == self.n_frames:
                    return

    @staticmethod
    def _decoded(container: Any, stream: Any) -> Iterator[av.VideoFrame]:
        """Decoded frames up to the end or the first damaged packet: frames that depend on it cannot be trusted."""
        try:
            yield from container.decode(stream)
        except (av.FFmpegError, IndexError):
            return

    def _damage(self, number: int) -> str:
        return (
            f"Frame {number} of {self.n_frames} (at {self.times_s[number]:.2f} s) cannot be decoded: the file is "
            "damaged there. Copy it again from its source."
        )

    @contextmanager
    def _open(self) -> Iterator[tuple[Any, Any]]:
        options = {"protocol_whitelist": "file", "format_whitelist": _CONTAINERS}
        with self._readable("The file is not a video, or its index is missing because the file was cut off"):
            container = av.open(f"file:{self.path.absolute()}", options=options, metadata_errors="replace")
        with container:
            pictures = [s for s in container.streams.video if not s.disposition & s.disposition.attached_pic]
            if not pictures or pictures[0].codec_context is None:
                raise VideoError(self.path, "The file holds no video stream that can be decoded. Choose a video file.")
            yield container, pictures[0]

    @contextmanager
    def _readable(self, reason: str) -> Iterator[None]:
        """Turn errors of the decoder into a :class:`VideoError` with ``reason``."""
        try:
            yield
        # PyAV raises IndexError if a damaged file announces a further stream in its middle.
        except (av.FFmpegError, OSError, IndexError) as error:
            raise VideoError(self.path, f"{reason} ({getattr(error, 'strerror', error)}).") from error
