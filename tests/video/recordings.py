"""Videos whose frames carry their own number, made with PyAV, and ways to spoil them."""

from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from endofm_lab.errors import VideoError
from endofm_lab.video.reader import open_video

HEIGHT_PX, WIDTH_PX, BITS = 96, 128, 12


def numbered(number: int, height_px: int = HEIGHT_PX, width_px: int = WIDTH_PX) -> np.ndarray:
    """A moving texture with ``number`` drawn as twelve black or white bars at the top; uint8 (H, W, 3)."""
    picture = np.zeros((height_px, width_px, 3), np.uint8)
    for bit in range(BITS):
        if number >> bit & 1:
            picture[8:40, 4 + bit * 10 : 12 + bit * 10] = 255
    y, x = np.mgrid[48:height_px, :width_px]
    picture[48:, :, 0], picture[48:, :, 1], picture[48:, :, 2] = (x + 3 * number) % 256, (2 * y + number) % 256, 90
    return picture


def number_in(picture: np.ndarray) -> int:
    """The number drawn by :func:`numbered`, as it comes back from a lossy codec."""
    return sum(1 << bit for bit in range(BITS) if picture[14:34, 6 + bit * 10 : 10 + bit * 10].mean() > 128)


def numbers_in(pictures: Iterable[np.ndarray]) -> list[int]:
    return [number_in(picture) for picture in pictures]


def encode(
    path: Path,
    n_frames: int = 60,
    encoder: str = "libx264",
    fps: Fraction = Fraction(25),
    pixel_format: str = "yuv420p",
    times_ms: Sequence[int] | None = None,
    container: dict[str, str] | None = None,
    **options: str,
) -> Path:
    """Encode numbered frames; ``times_ms`` gives a variable frame rate, ``options`` go to the encoder."""
    with av.open(str(path), "w", options=container or {}) as target:
        stream = target.add_stream(encoder, rate=fps, options=options)
        stream.width, stream.height, stream.pix_fmt = WIDTH_PX, HEIGHT_PX, pixel_format
        if times_ms is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        for number in range(n_frames):
            frame = av.VideoFrame.from_ndarray(numbered(number), format="rgb24")
            if times_ms is not None:
                frame.pts, frame.time_base = times_ms[number], Fraction(1, 1000)
            target.mux(stream.encode(frame))
        target.mux(stream.encode())
    return path


# Name of the file: what encode() needs for it. GOPs of 12 and 250 frames, with and without reordered frames.
ENCODINGS: dict[str, dict] = {
    "h264_short_gop.mp4": {"g": "12"},
    "h264_long_gop.mp4": {"g": "250", "fps": Fraction(30000, 1001)},
    "h264_open_gop.mp4": {"g": "12", "x264-params": "open-gop=1:bframes=3"},
    "h264_intra_refresh.mp4": {"g": "12", "x264-params": "intra-refresh=1:bframes=0"},
    "h264_fragments.mp4": {"g": "12", "container": {"movflags": "frag_keyframe+empty_moov"}},
    "h264.mkv": {"g": "12", "fps": Fraction(30000, 1001)},
    "h264_reordered.avi": {"g": "12"},
    "h264_in_order.avi": {"g": "12", "bf": "0"},
    "hevc.mov": {"encoder": "libx265", "x265-params": "keyint=12:open-gop=0:log-level=none"},
    "hevc_open_gop.mkv": {"encoder": "libx265", "x265-params": "keyint=12:log-level=none"},
    "hevc.mkv": {"encoder": "libx265", "x265-params": "log-level=none"},
    "mpeg4.avi": {"encoder": "mpeg4", "g": "12"},
    "mpeg4_reordered.avi": {"encoder": "mpeg4", "bf": "2"},
    "mpeg4.mp4": {"encoder": "mpeg4", "g": "12", "fps": Fraction(30000, 1001)},
    "vp9.webm": {"encoder": "libvpx-vp9", "g": "12", "fps": Fraction(30000, 1001), "deadline": "realtime"},
    "vp9.mkv": {"encoder": "libvpx-vp9", "deadline": "realtime"},
    "mjpeg.avi": {"encoder": "mjpeg", "pixel_format": "yuvj420p"},
    "mjpeg.mov": {"encoder": "mjpeg", "pixel_format": "yuvj420p"},
    "av1.mp4": {"encoder": "libsvtav1", "preset": "8", "crf": "20"},
    "h264.ts": {"g": "12"},
    "h264_open_gop.ts": {"g": "12", "x264-params": "open-gop=1:bframes=3"},
    "hevc.ts": {"encoder": "libx265", "x265-params": "keyint=12:log-level=none"},
    "mpeg2video.ts": {"encoder": "mpeg2video", "g": "12", "bf": "2"},
    "h264.flv": {"g": "12"},
    "ffv1.mkv": {"encoder": "ffv1", "pixel_format": "bgr0"},
    "ffv1.avi": {"encoder": "ffv1", "pixel_format": "bgr0", "slices": "4", "g": "12"},
}


def rewrap(source: Path, target: Path, move: Callable[[av.Packet], bool], repeats: int = 1) -> Path:
    """Copy packets without decoding; ``move`` changes a packet's stamps and says whether to keep it."""
    with av.open(str(target), "w") as output:
        copy = None
        for repeat in range(repeats):
            with av.open(str(source)) as original:
                stream = original.streams.video[0]
                if copy is None:
                    copy = output.add_stream_from_template(stream)
                for packet in original.demux(stream):
                    if packet.size:
                        packet.pts += repeat * stream.duration
                        packet.dts += repeat * stream.duration
                        if move(packet):
                            packet.stream = copy
                            output.mux(packet)
    return target


def turned(source: Path, target: Path, matrix: Sequence[int]) -> Path:
    """Copy an MP4 and write ``matrix`` (a, b, c, d of ISO/IEC 14496-12, 8.3.2) into its track header."""
    data = bytearray(source.read_bytes())
    at = data.index(b"tkhd") + 44
    a, b, c, d = (value.to_bytes(4, "big", signed=True) for value in (v << 16 for v in matrix))
    zero = bytes(4)
    data[at : at + 36] = a + b + zero + c + d + zero + zero + zero + (1 << 30).to_bytes(4, "big")
    target.write_bytes(data)
    return target


def spoil_packet(source: Path, target: Path, number: int) -> Path:
    """Copy a file with the bytes of one packet set to zero."""
    with av.open(str(source)) as container:
        place = [(p.pos, p.size) for p in container.demux(container.streams.video[0]) if p.size][number]
    data = bytearray(source.read_bytes())
    data[place[0] + 4 : place[0] + place[1]] = bytes(place[1] - 4)  # keeps the length in front
    target.write_bytes(data)
    return target


def sequential(path: Path) -> np.ndarray:
    """All frames by plain decoding from start to end: what every other way of reading is held against."""
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def add_sound(container: av.container.OutputContainer, codec: str, seconds: int) -> None:
    """Add a track with a tone of 16 kHz."""
    stream = container.add_stream(codec, rate=16000)
    for start in range(0, 16000 * seconds, 1024):
        tone = np.sin(np.arange(start, start + 1024) / 20).astype(np.float32)[None]
        frame = av.AudioFrame.from_ndarray(tone, format="fltp", layout="mono")
        frame.sample_rate, frame.pts = 16000, start
        container.mux(stream.encode(frame))
    container.mux(stream.encode())


def refused(path: Path) -> VideoError:
    """Opening fails with one sentence that names the path, or a file below it."""
    with pytest.raises(VideoError) as error:
        open_video(path)
    assert error.value.path.startswith(str(path)) and error.value.reason
    assert str(error.value).startswith(error.value.path) and "\n" not in str(error.value)
    return error.value
