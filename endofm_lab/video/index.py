"""The frames of a video file in presentation order, from its packets alone: their times, and which frames are lost."""

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from endofm_lab.brief import Brief
from endofm_lab.errors import VideoError
from endofm_lab.video.containers import Span, broken_spans, ffv1_checksums_hold, header_damage

# Every packet of these codecs holds one picture, and pictures are shown in the order of the file.
_IN_ORDER = ("vp8", "vp9", "av1", "mjpeg", "ffv1")
_MOST_REORDERED = 32  # frames; H.264 and HEVC allow 16

_ABSURD = 1000  # a declared duration this many times the real duration is a damaged number, not a loss of frames

_HEADER_BYTES = 32  # more than any container writes before a packet

_NO_STAMP = np.iinfo(np.int64).min  # a packet without a time stamp
_PACKET = [(name, "i8") for name in ("pts", "dts", "duration", "pos", "size")]
_PACKET += [("start", "?"), ("discard", "?"), ("corrupt", "?"), ("checksums", "i1")]


@dataclass(frozen=True, eq=False, repr=False)
class FrameIndex(Brief):
    """The frames that a file shows.

    Attributes:
        stamps: Presentation times ``(n,)`` int64 in ticks of the file's own clock, ascending.
        times_s: The same times in seconds ``(n,)`` float64, the first at 0.
        keys: Stamps at which decoding can start ``(k,)`` int64, ascending.
        seek_to: Where to seek for each key ``(k,)`` int64; it differs because MPEG-TS finds packets by decoding time.
        seekable: Stamps come from the file. Otherwise frames are counted from its start.
        fps: Average frame rate.
        duration_s: End of the last frame in seconds.
        damaged: Frames ``(n,)`` bool that are lost, lie in a broken part of the file, or were predicted from one.
        lost: Number of frames that are missing, according to gaps in a broken file or to its declared duration.
    """

    stamps: np.ndarray
    times_s: np.ndarray
    keys: np.ndarray
    seek_to: np.ndarray
    seekable: bool
    fps: Fraction
    duration_s: float
    damaged: np.ndarray
    lost: int

    def number_of(self, stamp: int) -> int:
        """The number of the first frame that is shown at or after a stamp."""
        return int(np.searchsorted(self.stamps, stamp))

    def key_of(self, number: int) -> int:
        """Number of the last key at or before a frame, counted from 0."""
        return int(np.searchsorted(self.keys, self.stamps[number], side="right")) - 1


def list_packets(container: Any, stream: Any, codec: str) -> np.ndarray:
    """The packets of a stream in the order of the file (no decoding), 44 bytes each: 4 MB for an hour."""
    extradata = stream.codec_context.extradata or b""
    by_start_codes = codec in ("h264", "hevc") and extradata[:1] != b"\x01"
    fields = (
        (
            _NO_STAMP if packet.pts is None else packet.pts,
            _NO_STAMP if packet.dts is None else packet.dts,
            packet.duration or 0,
            -1 if packet.pos is None else packet.pos,
            packet.size,
            packet.is_keyframe and packet.size > 0 and _can_start(packet, codec, extradata),
            packet.is_discard,
            packet.is_corrupt or (by_start_codes and _has_long_delimiter(memoryview(packet)[:64].tobytes(), codec)),
            ffv1_checksums_hold(bytes(packet)) if codec == "ffv1" else 0,
        )
        for packet in container.demux(stream)
        if packet.size or packet.pts is not None  # an empty packet repeats the last picture; the final one means "end"
    )
    return np.fromiter(fields, dtype=_PACKET)


def read_index(path: Path, container: Any, stream: Any, packets: np.ndarray, codec: str) -> FrameIndex:
    """The index of a file from its packets.

    Raises:
        VideoError: The file is cut off, shows no frame, has contradictory time stamps, or has lost most of its frames.
    """
    filled, spans = packets[packets["size"] > 0], broken_spans(path)
    if reason := header_damage(path, codec):
        raise VideoError(path, f"{reason} The file is damaged. Copy it again from its source.")
    if filled.size and filled["corrupt"][-1]:
        raise VideoError(path, "The file is cut off inside its last frame. Copy the file again from its source.")
    seekable, stamps = _stamps(path, container, stream, filled, codec, spans)
    starts = filled["start"]
    shown = _shown(path, filled, stamps, starts, container.format.name.startswith(("mpeg", "h264", "hevc")))
    frames, keys = stamps[shown], np.sort(stamps[starts])
    rate = stream.average_rate or stream.guessed_rate
    tick = Fraction(stream.time_base) if seekable or not rate else 1 / Fraction(rate)
    fps = Fraction(rate) if rate else Fraction(len(frames) - 1 or 1, int(np.ptp(frames)) or 1) / tick
    last = int(filled["duration"][shown[-1]]) if seekable else 0

    step = max(1, round(float(np.median(np.diff(frames))) if len(frames) > 1 else 1 / fps / tick))
    bounds = _bounds(container, stream, packets, seekable, spans)
    even = "mov" in container.format.name and len(np.unique(filled["duration"][:-1])) <= 1
    lost = _lost(path, frames, step, bounds, filled[shown], spans, even)
    damaged = _in_broken_parts(container, filled, starts, spans)[shown]
    if even and _hides_frames(stream, frames, step):
        raise VideoError(
            path,
            f"Its list of edits shows {(stream.duration or 0) / step:.2f} of {stream.frames} frames, and {len(frames)} "
            "have times within it: the file is damaged. Copy it again from its source, or convert it.",
        )
    if seekable and (even or container.format.name == "mpegts"):
        damaged |= _off_the_beat(frames, step) if even else _off_the_grid(frames, step)
    elif seekable and bounds[2] is not None and _ends_elsewhere(frames, step, bounds[2]):
        damaged[-1] = True
    if len(lost):
        if not seekable:  # it is unknown which frames after the first broken place are lost
            damaged |= filled["pos"][shown] >= min((span[0] for span in spans), default=0)
        last = step if lost.max() > frames[-1] else last
        frames, damaged = np.append(frames, lost), np.append(damaged, np.ones(len(lost), bool))
        order = np.argsort(frames)
        frames, damaged = frames[order], damaged[order]
    # Numerator first: float64 then rounds once, so that frame 30 of 30000/1001 per second lies at exactly 1.001 s.
    times_s = (frames - frames[0]) * tick.numerator / tick.denominator
    decoded_at = filled["dts"][starts][np.argsort(stamps[starts])]
    by_decoding = container.format.name == "mpegts" and seekable and _NO_STAMP not in decoded_at
    seek_to = np.minimum(keys, decoded_at) if by_decoding else keys
    kept = np.isin(keys, frames) | (keys < frames[0])
    return FrameIndex(
        stamps=frames,
        times_s=times_s,
        keys=keys[kept],
        seek_to=seek_to[kept],
        seekable=seekable,
        fps=fps,
        duration_s=float(times_s[-1]) + float(last * tick or 1 / fps),
        damaged=damaged,
        lost=len(lost),
    )


def _stamps(
    path: Path, container: Any, stream: Any, packets: np.ndarray, codec: str, spans: list[Span]
) -> tuple[bool, np.ndarray]:
    """Whether frames can be found by presentation time, and these times; without them, the numbers of the packets.

    Raises:
        VideoError: The time stamps contradict each other.
    """
    stamps, numbers = packets["pts"], np.arange(len(packets))
    if container.format.name == "avi":  # has decoding times only; they are presentation times if nothing is reordered
        stamps = np.where(stamps == _NO_STAMP, packets["dts"], stamps)
        # Seeking uses the index of the file, which is useless if it disagrees with the frames.
        if spans or (codec in ("h264", "hevc") and stream.codec_context.has_b_frames):
            return False, numbers
    if _NO_STAMP in stamps or len(np.unique(stamps)) < len(stamps):
        if spans:
            raise VideoError(path, "Some frames have no time stamp because the file is damaged. Copy it again.")
        return False, numbers
    moved = np.abs(np.argsort(np.argsort(stamps)) - numbers)
    if (wrong := np.flatnonzero(moved > (0 if codec in _IN_ORDER else _MOST_REORDERED))).size:
        raise VideoError(
            path,
            f"The time stamp of packet {wrong[0]} contradicts its neighbours: the file is damaged or joined from "
            "several files. Copy it again from its source, or convert it.",
        )
    return True, stamps


def _shown(path: Path, packets: np.ndarray, stamps: np.ndarray, starts: np.ndarray, broadcast: bool) -> np.ndarray:
    """Numbers of the packets that hold a frame to be shown, in presentation order."""
    keys = stamps[starts]
    if not keys.size:
        raise VideoError(path, "The file holds no frame that can be decoded. Check that it is a whole video.")
    # Pre-roll packets have negative stamps or the discard flag: they are decoded but never shown. No player can decode
    # what a broadcast holds before its first key frame. Other files begin with a key frame, or they are damaged.
    leading = (np.cumsum(starts) == 0) & (not broadcast)
    shown = np.flatnonzero(((stamps >= keys.min()) | leading) & (stamps >= 0) & ~packets["discard"])
    if not shown.size:
        raise VideoError(path, "The file holds no frame that can be decoded. Check that it is a whole video.")
    return shown[np.argsort(stamps[shown])]


def _bounds(
    container: Any, stream: Any, packets: np.ndarray, seekable: bool, spans: list[Span]
) -> tuple[int, int, int | None]:
    """Where frames can begin, where the packets end, and where they end according to the container; in ticks.

    The declared end is None if the container declares no end for the pictures alone.
    """
    if not seekable:
        return 0, len(packets), int(stream.frames) or None
    stamps = np.where(packets["pts"] == _NO_STAMP, packets["dts"], packets["pts"])
    has_stamp = stamps != _NO_STAMP
    first, end = int(stamps[has_stamp].min()), int((stamps + packets["duration"])[has_stamp].max())
    name, only_stream = container.format.name, len(container.streams) == 1
    total = round((container.duration or 0) / av.time_base / stream.time_base) if only_stream else 0
    if "mov" in name or name == "avi":
        declared = None if "mov" in name and spans else max(first + (stream.duration or 0), total)
        return max(0, first) if name == "avi" else 0, end, declared or None
    if "matroska" in name:
        tag = _seconds(stream.metadata.get("DURATION", ""))
        declared_s = min(tag, (container.duration or 0) / av.time_base)
        return 0, end, total or (round(declared_s / stream.time_base) if tag < float("inf") else None) or None
    return (0, end, total or None) if name == "flv" else (max(0, first), end, None)


def _seconds(clock: str) -> float:
    """Seconds of a Matroska tag such as 00:00:01.600000000; infinity if the tag has another form."""
    try:
        hours, minutes, seconds = clock.split(":")
        return int(hours) * 3600 + int(minutes) * 60 + float(seconds)
    except ValueError:
        return float("inf")


def _lost(
    path: Path,
    frames: np.ndarray,
    step: int,
    bounds: tuple[int, int, int | None],
    packets: np.ndarray,
    spans: list[Span],
    even: bool,
) -> np.ndarray:
    """Stamps of frames that are missing from a list of ``frames``, a ``step`` apart.

    If the list ends before the declared duration, its end is missing, unless the frame rate varies: then the last frame
    may be shown for a long time. A gap alone is no proof of loss either, because recorders pause. A gap does mean lost
    frames in a file with a broken part, and in an MP4 whose packets are evenly spaced.
    """
    first, end, declared = bounds
    runs, gaps, usual = [], np.diff(frames), np.maximum(step, packets["duration"][:-1])
    steady = len(gaps) > 0 and gaps.max() <= 1.5 * step
    if spans or even:
        runs = [(int(frames[at]), gaps[at]) for at in np.flatnonzero(gaps > 1.5 * usual)]
    if spans and packets["pos"][0] > spans[0][0]:
        runs.append((first - step, frames[0] - first + step))
    missing = declared - end if declared is not None and (spans or steady) else 0
    if missing > _ABSURD * (end - frames[0]):
        missing = 0
    if missing <= (0.75 if spans else 1.5) * step:
        # Without a declared end, assume that a broken last part held at least one frame.
        at_end = spans and declared is None and packets["pos"].max() < spans[-1][0]
        missing = step if at_end else 0
    runs.append((int(frames[-1]), missing + step))
    counts = [max(0, round(length / step) - 1) for _, length in runs]
    if sum(counts) > 40 * len(frames):
        raise VideoError(
            path,
            f"{sum(counts):,} of its {sum(counts) + len(frames):,} frames are lost because the file is damaged. "
            "Copy it again from its source.",
        )
    return np.array(
        [start + step * k for (start, _), n in zip(runs, counts, strict=True) for k in range(1, n + 1)], int
    )


def _in_broken_parts(container: Any, packets: np.ndarray, starts: np.ndarray, spans: list[Span]) -> np.ndarray:
    """Packets ``(n,)`` bool that lie in a broken part, or are decoded after a broken part and before a key frame.

    In Matroska and MPEG-TS the whole part is doubtful. In other containers only the packet at which the sequence breaks
    and the packet before it are doubtful; the packets that the demuxer finds after that place are whole again.
    """
    damaged = packets["corrupt"].copy()
    if (packets["checksums"] > 0).any():  # FFV1 has checksums in all packets or in none
        damaged |= packets["checksums"] <= 0
    if spans:
        if not ("matroska" in container.format.name or container.format.name == "mpegts"):
            spans = [(begin - 1, begin + _HEADER_BYTES) for begin, _ in spans]
        ends = np.append(packets["pos"][1:], packets["pos"][-1] + packets["size"][-1])
        begins, stops = np.array([*spans, (np.iinfo(np.int64).max,) * 2]).T
        damaged |= begins[np.searchsorted(stops, packets["pos"], side="right")] < ends
    group, numbers = np.cumsum(starts), np.arange(len(packets))
    first = np.full(group[-1] + 1, len(packets))  # damaged packet of each group
    np.minimum.at(first, group[damaged], numbers[damaged])
    first[0] = 0  # before any key frame
    return numbers >= first[group]


def _hides_frames(stream: Any, frames: np.ndarray, step: int) -> bool:
    """Whether an MP4 of a constant rate hides frames that its list of edits does not leave out.

    A cut that was made with an edit ends between two frames, up to rounding. An edit that ends within a frame has
    another time scale than it was made with, and a frame far outside a list that shows all frames has a wrong time.
    """
    hidden, length = stream.frames - len(frames), stream.duration or 0
    return hidden > 0 and abs(length / step - len(frames)) > 0.08


def _off_the_grid(frames: np.ndarray, step: int) -> np.ndarray:
    """Frames ``(n,)`` bool whose stamp alone does not fit a constant rate of one frame per ``step`` ticks.

    MPEG-TS has no checksum for times. A changed bit moves one frame between its neighbours, which stay where
    the rate puts them; a pause or a lost frame moves all frames that follow, too. Files of variable rate have no such
    grid.
    """
    tolerance = max(2, step // 50)  # ticks; rates such as 24000/1001 round to neighbouring ticks
    even = np.abs(np.diff(frames) - step) <= tolerance
    off = np.zeros(len(frames), bool)
    if len(frames) < 8 or even.mean() < 0.8:
        return off
    over_two = np.abs(frames[2:] - frames[:-2] - 2 * step) <= tolerance
    off[1:-1] = over_two & ~even[:-1] & ~even[1:]
    multiple = np.abs(np.diff(frames) - step * np.round(np.diff(frames) / step)) <= tolerance  # frames that were lost
    off[0], off[-1] = not multiple[0] and even[1:3].all(), not multiple[-1] and even[-3:-1].all()
    return off


def _off_the_beat(frames: np.ndarray, step: int) -> np.ndarray:
    """Frames ``(n,)`` bool of an MP4 of a constant rate that are not a whole number of ``step`` ticks from most others.

    How much later than it is decoded a frame is shown stands in a table without a checksum.
    """
    phases, counts = np.unique(frames % step, return_counts=True)
    distance = np.abs((frames - phases[counts.argmax()] + step // 2) % step - step // 2)
    off = distance > max(2, step // 50)
    return off if off.mean() <= 0.5 else np.zeros(len(frames), bool)


def _ends_elsewhere(frames: np.ndarray, step: int, declared: int) -> bool:
    """Whether the last of otherwise even frames is early or late, and its end is not the declared one either."""
    tolerance = max(2, step // 50)
    off = np.abs(np.diff(frames) - step) > tolerance
    return len(frames) >= 8 and off[-1] and not off[:-1].any() and abs(frames[-1] + step - declared) > tolerance


def _can_start(packet: Any, codec: str, extradata: bytes) -> bool:
    """Whether decoding can start at a packet that its container marks as a key frame.

    It can if the packet holds a whole picture, for this frame and all frames that are shown after it; frames that are
    decoded after it but shown before it may need an earlier start (open groups of pictures). It cannot if the picture
    is renewed in parts over many frames (intra refresh), or if the container is mistaken.

    H.264: Rec. ITU-T H.264, tables 7-1 and 7-6. HEVC: Rec. ITU-T H.265, table 7-1. MPEG-4: ISO/IEC 14496-2, 6.2.5.
    For other codecs the container is trusted.
    """
    if codec == "mpeg4":
        at = bytes(packet).find(b"\0\0\1\xb6")
        return at < 0 or bytes(packet)[at + 4 : at + 5] < b"\x40"  # vop_coding_type 0: intra
    if codec not in ("h264", "hevc"):
        return True
    for unit in _nal_units(bytes(packet), codec, extradata):
        if codec == "hevc":
            kind = unit[0] >> 1 & 63
            if kind < 32:  # a slice
                return 16 <= kind <= 21
        else:
            kind = unit[0] & 31
            if kind == 5:
                return True
            if 1 <= kind <= 4:
                bits = "".join(f"{byte:08b}" for byte in unit[1:17])
                _, bits = _exp_golomb(bits)  # first_mb_in_slice
                slice_type, _ = _exp_golomb(bits)
                return slice_type % 5 == 2
    return False


def _has_long_delimiter(head: bytes, codec: str) -> bool:
    """Whether the delimiter at the head of a packet is longer than its own bytes: it has swallowed a damaged slice.

    H.264, 7.3.2.4: an access unit delimiter is a unit of 2 bytes. HEVC, 7.3.2.5: 3 bytes.
    """
    at = 4 if head.startswith(b"\0\0\0\1") else 3
    unit = head[at:].split(b"\0\0\1")[0].rstrip(b"\0") if head[at - 3 : at] == b"\0\0\1" else b""
    is_delimiter = unit and (unit[0] & 31 == 9 if codec == "h264" else unit[0] >> 1 & 63 == 35)
    return bool(is_delimiter) and len(unit) > (2 if codec == "h264" else 3)


def _nal_units(data: bytes, codec: str, extradata: bytes) -> Iterator[bytes]:
    """Non-empty units of a packet, after lengths (ISO/IEC 14496-15; MP4, Matroska) or start codes (AVI, MPEG-TS)."""
    if extradata[:1] != b"\x01":
        yield from (unit for unit in data.split(b"\0\0\1") if unit.strip(b"\0"))
        return
    setting = extradata[4:5] if codec == "h264" else extradata[21:22]
    size = (setting[0] & 3) + 1 if setting else 4
    at = 0
    while at + size < len(data):
        end = at + size + int.from_bytes(data[at : at + size], "big")
        if end == at + size:
            return
        yield data[at + size : end]
        at = end


def _exp_golomb(bits: str) -> tuple[int, str]:
    """The unsigned number at the start of a string of 0 and 1 (H.264, 9.1), and the rest."""
    zeros = len(bits) - len(bits.lstrip("0"))
    return int(bits[zeros : 2 * zeros + 1] or "1", 2) - 1, bits[2 * zeros + 1 :]
