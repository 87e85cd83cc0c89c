"""At which packets of a video decoding can start, bit for bit: what codecs say where containers keep silent."""

from collections.abc import Iterator
from typing import Any


def can_start(packet: Any, codec: str, extradata: bytes) -> bool:
    """Whether decoding can start at a packet that its container marks as a key frame.

    It can where the whole picture is there, for this frame and all that is shown after it; frames decoded after it but
    shown before it may need an earlier start (open groups of pictures). It cannot where the picture is renewed bit by
    bit over many frames (intra refresh), and where the container is mistaken.

    H.264: Rec. ITU-T H.264, tables 7-1 and 7-6. HEVC: Rec. ITU-T H.265, table 7-1. MPEG-4: ISO/IEC 14496-2, 6.2.5.
    In other codecs the container is believed.
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
