"""What the bytes of a video say for themselves, where decoders keep silent: where it ends, where decoding can start."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

# How exactly decoding can start at a packet.
NO_START, OPEN_START, CLEAN_START = 0, 1, 2


def start_at(packet: Any, codec: str, extradata: bytes) -> int:
    """Whether decoding can start at a packet that its container marks as a key frame, bit for bit.

    ``CLEAN_START``: at this frame and everything behind it. ``OPEN_START``: at this frame and what is shown after it;
    frames decoded after it but shown before it need an earlier start (open groups of pictures, which decord gets
    wrong). ``NO_START``: the picture is renewed bit by bit over many frames (intra refresh), marked or not.

    H.264: Rec. ITU-T H.264, tables 7-1 and 7-6. HEVC: Rec. ITU-T H.265, table 7-1. Other codecs have clean key frames.
    """
    if codec not in ("h264", "hevc"):
        return CLEAN_START
    for unit in _nal_units(bytes(packet), codec, extradata):
        if codec == "hevc":
            kind = unit[0] >> 1 & 63
            if kind < 32:  # a slice
                return CLEAN_START if kind in (19, 20) else OPEN_START if 16 <= kind <= 21 else NO_START
        else:
            kind = unit[0] & 31
            if kind == 5:
                return CLEAN_START
            if 1 <= kind <= 4:
                bits = "".join(f"{byte:08b}" for byte in unit[1:17])
                _, bits = _exp_golomb(bits)  # first_mb_in_slice
                slice_type, _ = _exp_golomb(bits)
                return OPEN_START if slice_type % 5 == 2 else NO_START
    return NO_START


def _nal_units(data: bytes, codec: str, extradata: bytes) -> Iterator[bytes]:
    """Non-empty units of a packet: behind lengths (ISO/IEC 14496-15; MP4, Matroska) or start codes (AVI, MPEG-TS)."""
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


def missing_bytes(path: Path) -> int:
    """How many bytes a file lacks by its own structure; 0 when it is whole or of a kind that does not tell.

    Knows the boxes of MP4 and MOV (ISO/IEC 14496-12), the chunks of AVI (RIFF) and the segment of Matroska and WebM
    (RFC 9559). Decoders themselves read a file cut off between two frames as a shorter one, without a word.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(4096)
        if head[:4] == b"RIFF" or head[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip"):
            riff = head[:4] == b"RIFF"
            at = 0
            while at + 8 <= size:
                file.seek(at)
                box = file.read(16)
                name, length = (box[:4], 8 + int.from_bytes(box[4:8], "little")) if riff else _mp4_box(box)
                if not name.isalnum() or length < 8:  # padding, or a length that says "to the end of the file"
                    return 0
                at += length + (length % 2 if riff else 0)
            # Writers disagree on whether a RIFF length counts its own header and its padding.
            return max(0, at - size - (9 if riff else 0))
    if head[:4] == b"\x1a\x45\xdf\xa3":
        length, at = _ebml_length(head, 4)
        at += length
        if head[at : at + 4] == b"\x18\x53\x80\x67":
            length, at = _ebml_length(head, at + 4)
            return max(0, at + length - size)
    return 0


def _mp4_box(head: bytes) -> tuple[bytes, int]:
    """Name and whole length of the box that begins with ``head``; a length of 1 says that 64 bits follow."""
    length = int.from_bytes(head[:4], "big")
    return head[4:8], int.from_bytes(head[8:16], "big") if length == 1 else length


def _ebml_length(data: bytes, at: int) -> tuple[int, int]:
    """An EBML length at ``at``, its leading zeros give its size, and the place behind it; 0 for "unknown" (live)."""
    if at >= len(data) or not data[at]:
        return 0, at
    n_bytes = 9 - data[at].bit_length()
    mask = (1 << 7 * n_bytes) - 1
    value = int.from_bytes(data[at : at + n_bytes], "big") & mask
    return (0 if value == mask else value), at + n_bytes
