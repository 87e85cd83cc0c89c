"""Check that a video file is whole by the rules of its container; demuxers skip broken parts without a warning."""

import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

Span = tuple[int, int]  # first byte, byte after the last

_FFV1_FOOTER_BYTES = 8  # of a slice with a checksum: 24 bits of length, 8 bits of status, 32 bits of checksum
_REVERSED_BITS = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))

_TS_BYTES = 188  # one packet of MPEG-TS
_TS_BLOCK = 1 << 16  # packets looked at together: 12 MB
_LARGEST_CLUSTER = 1 << 28  # 256 MB; writers begin a new cluster after 5 MB

# Elements of Matroska (RFC 9559, section 5) that stand directly in a segment, and those that stand in a cluster.
_CRC, _CLUSTER, _INFO, _TRACKS = 0xBF, 0x1F43B675, 0x1549A966, 0x1654AE6B
_IN_SEGMENT = {0x114D9B74, _INFO, _TRACKS, _CLUSTER, 0x1C53BB6B, 0x1043A770, 0x1941A469, 0x1254C367, 0xEC, _CRC}
_IN_CLUSTER = {0xE7, 0xA3, 0xA0, 0xAB, 0xA7, 0x5854, 0xAF, 0xEC, _CRC}


def missing_bytes(path: Path) -> int:
    """Number of bytes missing from a file according to its own structure; 0 if it is whole or its format does not say.

    This function knows the boxes of MP4 and MOV (ISO/IEC 14496-12), the chunks of AVI (RIFF), the segment of Matroska
    and WebM (RFC 9559) and the packets of MPEG-TS. It is needed because decoders read a file that was cut off between
    two frames as a shorter file, without a warning.
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
    return -size % _TS_BYTES if _is_ts(head) else 0


def broken_spans(path: Path) -> list[Span]:
    """The parts of a file that break the rules of its container, in order. Frames are lost in these parts.

    An empty list means that the file is whole, or that its format cannot show damage. This function knows the elements
    and checksums of Matroska and WebM (RFC 9559), the chunks of AVI (RIFF), the tags of FLV (Adobe FLV 10.1, annex E),
    the packets of MPEG-TS (ISO/IEC 13818-1, 2.4.3) and the fragments of MP4 (ISO/IEC 14496-12, 8.8.5).
    """
    with path.open("rb") as file:
        head = file.read(3 * _TS_BYTES)
        kind: Callable[[BinaryIO, int], Iterator[Span]]
        if head[:4] == b"\x1a\x45\xdf\xa3":
            kind = _broken_matroska
        elif head[:4] == b"RIFF":
            kind = _broken_avi
        elif head[:3] == b"FLV":
            kind = _broken_flv
        elif head[4:8] in (b"ftyp", b"styp", b"moov", b"moof"):
            kind = _broken_mp4
        elif _is_ts(head):
            kind = _broken_ts
        else:
            return []
        return list(kind(file, path.stat().st_size))


def header_damage(path: Path, codec: str) -> str:
    """A sentence about damage in the header of a Matroska, AVI or MP4 file; empty for whole headers and other formats.

    Matroska may have checksums. The header of AVI gives the size of the pictures and the frame rate twice: for the file
    and for its first stream. Old programs are careless with the second one, so that this is asked of FFV1 only, which
    takes the size from there and shows other pictures if the size is wrong. The tables of an MP4 each count the frames.

    Source:
        RFC 9559; ISO/IEC 14496-12, 8.6 and 8.7; AVI RIFF File Reference (AVIMAINHEADER, AVISTREAMHEADER,
        BITMAPINFOHEADER), Microsoft.
    """
    with path.open("rb") as file:
        head = file.read(4096)
        if head[:4] == b"\x1a\x45\xdf\xa3" and not all(
            map(_checksum_holds, _matroska_header(file, path.stat().st_size))
        ):
            return "The checksum of its header is wrong."
        if head[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip"):
            return _mp4_contradiction(file, path.stat().st_size)
    return _avi_contradiction(head) if head[:4] == b"RIFF" and codec == "ffv1" else ""


def _matroska_header(file: BinaryIO, size: int) -> Iterator[bytes]:
    """The elements before the first cluster that say how long and how large the pictures are shown."""
    length, at = _ebml_length(_read(file, 0, 64), 4)
    _, end, at = _element(_read(file, at + length, 16), at + length, size)  # the segment
    while at < end:
        kind, stop, body = _element(_read(file, at, 16), at, end)
        if kind == _CLUSTER or kind not in _IN_SEGMENT:
            return
        if kind in (_INFO, _TRACKS):
            yield _read(file, body, min(stop - body, _LARGEST_CLUSTER))
        at = stop


def _avi_contradiction(head: bytes) -> str:
    main, stream, picture = (head.find(name) + 8 for name in (b"avih", b"strh", b"strf"))
    if not 8 <= main < stream < picture:
        return ""

    def number(at: int) -> int:
        return int.from_bytes(head[at : at + 4], "little")

    (width, height), picture_size = ((number(at), number(at + 4)) for at in (main + 32, picture + 4))
    if (width, height) != picture_size:
        return f"Its header gives two sizes of the pictures, {width}x{height} and {picture_size[0]}x{picture_size[1]}."
    period_s, scale, rate = number(main) / 1e6, number(stream + 20), number(stream + 24)
    if period_s and abs(period_s * rate - scale) > 1e-3 * scale + 2e-6 * rate:
        return f"Its header gives two frame rates, {1 / period_s:g} and {rate / max(scale, 1):g} per second."
    return ""


def _mp4_contradiction(file: BinaryIO, size: int) -> str:
    at, name, length = 0, b"", 8
    while at + 8 <= size and name != b"moov" and length >= 8:
        name, length = _mp4_box(_read(file, at, 16))
        at += length
    if name != b"moov" or length < 8:
        return ""
    moov = _read(file, at - length, min(length, _LARGEST_CLUSTER))
    for track, start, stop in _mp4_children(moov, 8, len(moov)):
        if track != b"trak" or b"vide" not in moov[start:stop]:
            continue
        counts = {}
        for table, begin, end in _mp4_tables(moov, start, stop):
            numbers = np.frombuffer(moov, ">u4", max(0, end - begin) // 4, begin)
            if table == b"":
                return "The tables of its header do not join."
            if table == b"stsz" and len(numbers) > 2:
                counts["stsz"] = int(numbers[2])
            elif table in (b"stts", b"ctts"):  # entries of a count and a time
                counts[table.decode()] = int(numbers[2::2].sum(dtype=np.int64))
        if "stsz" in counts and len(set(counts.values())) > 1:
            return "The tables of its header count " + ", ".join(f"{n} frames ({t})" for t, n in counts.items()) + "."
    return ""


def _mp4_tables(data: bytes, start: int, stop: int) -> Iterator[tuple[bytes, int, int]]:
    """Name, start and stop of the boxes in the sample table of a track; the name is empty where they do not join."""
    for name, begin, end in _mp4_children(data, start, stop):
        if name in (b"mdia", b"minf", b"stbl"):
            yield from _mp4_tables(data, begin, end)
        else:
            yield name, begin, end


def _mp4_children(data: bytes, start: int, stop: int) -> Iterator[tuple[bytes, int, int]]:
    """Name, start and stop of the contents of the boxes in a range; an empty name at the end if they do not fill it."""
    while start + 8 <= stop:
        name, length = _mp4_box(data[start : start + 16])
        if length < 8 or start + length > stop or not name.replace(b" ", b"a").replace(b"\xa9", b"a").isalnum():
            yield b"", start, stop
            return
        yield name, start + 8, start + length
        start += length


def ffv1_checksums_hold(packet: bytes) -> int:
    """1 if every slice of an FFV1 packet has its checksum, -1 if one is wrong, 0 if the slices show no checksums.

    Decoders show a part of the picture before in place of a slice with a wrong checksum, without an error. Checksums
    are optional, and the same in all packets of a file: 0 also means damage if other packets have checksums.

    Source:
        RFC 9043, section 4.9 (slice footer). Checksums of version 4 start with all bits set.
    """
    slices, end = [], len(packet)
    while end >= _FFV1_FOOTER_BYTES:
        at = end - _FFV1_FOOTER_BYTES
        begin = at - int.from_bytes(packet[at : at + 3], "big")
        if begin < 0:
            return 0
        slices.append(packet[begin:end].translate(_REVERSED_BITS))
        end = begin
    # The register of this CRC takes the highest bit first, that of zlib the lowest, and zlib inverts it at both ends.
    # It holds what it held at the start after a slice and its checksum.
    holds = any(all(zlib.crc32(data, start) == start for data in slices) for start in (0xFFFFFFFF, 0))
    return 0 if end or not slices else 1 if holds else -1


def _is_ts(head: bytes) -> bool:
    return sum(head[at : at + 1] == b"\x47" for at in (0, _TS_BYTES, 2 * _TS_BYTES)) > 1


def _broken_matroska(file: BinaryIO, size: int) -> Iterator[Span]:
    """Clusters whose checksum is wrong, and elements in a place where they are not allowed."""
    head = _read(file, 0, 64)
    length, at = _ebml_length(head, 4)
    _, end, at = _element(_read(file, at + length, 16), at + length, size)  # the segment
    while at < end:
        kind, stop, body = _element(_read(file, at, 16), at, end)
        if kind not in _IN_SEGMENT or stop > end:
            yield at, size
            return
        if kind == _CLUSTER:
            open_end = stop == end  # unknown length, as in a live recording, or the last cluster
            content = _read(file, body, min(stop - body, _LARGEST_CLUSTER))
            n_walked, clean = _walk_cluster(content)
            if open_end and not clean and _element(content[n_walked:], 0, len(content))[0] in _IN_SEGMENT:
                stop, content, clean = body + n_walked, content[:n_walked], True  # the next cluster begins here
            if not (clean and _checksum_holds(content)):
                yield at, stop
        at = stop


def _walk_cluster(data: bytes) -> tuple[int, bool]:
    """Number of bytes that the valid elements of a cluster cover, and whether they reach the end of the cluster."""
    at = 0
    while at < len(data):
        kind, stop, _ = _element(data[at : at + 16], at, len(data) + 1)
        if kind not in _IN_CLUSTER or stop > len(data):
            return at, False
        at = stop
    return at, True


def _checksum_holds(data: bytes) -> bool:
    """Whether the CRC-32 at the start of an element, if there is one, agrees with the bytes after it."""
    if data[:2] != b"\xbf\x84":
        return True
    return zlib.crc32(data[6:]) == int.from_bytes(data[2:6], "little")


def _element(head: bytes, at: int, end: int) -> tuple[int, int, int]:
    """Kind, end and start of the content of the element at ``at``; an element of unknown length ends at ``end``."""
    n_kind = 9 - head[0].bit_length() if head and head[0] else 0
    if not n_kind or not head[n_kind : n_kind + 1].strip(b"\0"):
        return 0, end + 1, at
    length, body = _ebml_length(head, n_kind)
    unknown = length == 0 and head[n_kind] & 1 and not head[n_kind + 1 : body].strip(b"\xff")
    return int.from_bytes(head[:n_kind], "big"), end if unknown else at + body + length, at + body


def _broken_avi(file: BinaryIO, size: int) -> Iterator[Span]:
    """The rest of a list after an invalid chunk, and an index that disagrees with the frames."""
    at, frames, riff_stop = 0, [], 0
    while at + 12 <= size:
        head = _read(file, at, 12)
        stop = min(size, at + 8 + int.from_bytes(head[4:8], "little"))
        if head[:4] == b"RIFF":  # a list of lists: look inside
            at, riff_stop = at + 12, stop
            continue
        if at + 12 <= riff_stop and not head[:4].replace(b" ", b"a").isalnum():
            yield at, riff_stop
            return
        if head[:4] == b"LIST" and head[8:12] == b"movi":
            chunks, broken = _avi_chunks(file, at + 12, stop)
            frames += chunks
            if broken is not None:
                yield broken, stop
        elif head[:4] == b"idx1":
            entries = np.frombuffer(_read(file, at + 8, (stop - at - 8) // 16 * 16), np.dtype("V4, <u4, <u4, <u4"))
            index_list = [(bytes(entry[0]), int(entry[3])) for entry in entries if bytes(entry[0]) != b"rec "]
            offsets = np.array([int(entry[2]) for entry in entries if bytes(entry[0]) != b"rec "], np.int64)
            places = np.array([place for _, _, place in frames], np.int64)
            matches = index_list == [(name, length) for name, length, _ in frames]
            if not matches or len(np.unique(places - offsets)) > 1:  # offsets count from the list or from the file
                yield at, stop
        at = stop + stop % 2


def _avi_chunks(file: BinaryIO, at: int, stop: int) -> tuple[list[tuple[bytes, int, int]], int | None]:
    """Name, length and place of the picture and sound chunks in a range, and where the list ends early (or None)."""
    chunks: list[tuple[bytes, int, int]] = []
    while at + 8 <= stop:
        head = _read(file, at, 12)
        name, length = head[:4], int.from_bytes(head[4:8], "little")
        of_stream = name[:2].isdigit()
        if name == b"LIST" and head[8:12] == b"rec ":
            length = 4
        elif not (of_stream or name[:2] == b"ix" or name == b"JUNK") or at + 8 + length > stop + 1:
            return chunks, at
        if of_stream:
            chunks.append((name, length, at))
        at += 8 + length + length % 2
    return chunks, None


def _broken_flv(file: BinaryIO, size: int) -> Iterator[Span]:
    """The rest of a file after a tag whose length is not repeated after the tag."""
    at = int.from_bytes(_read(file, 5, 4), "big") + 4
    while at + 11 <= size:
        head = _read(file, at, 11)
        stop = at + 11 + int.from_bytes(head[1:4], "big")
        if head[0] & 31 not in (8, 9, 18) or int.from_bytes(_read(file, stop, 4), "big") != stop - at:
            yield at, size
            return
        at = stop + 4


def _broken_mp4(file: BinaryIO, size: int) -> Iterator[Span]:
    """The rest of a file after an invalid box or a missing fragment."""
    at, last = 0, None
    while at + 8 <= size:
        head = _read(file, at, 24)
        name, length = _mp4_box(head)
        if length < 8 or not name.replace(b" ", b"a").isalnum():
            if last is not None and length and head.strip(b"\0"):  # without fragments, one index names every frame
                yield at, size
            return
        if name == b"moof" and head[12:16] == b"mfhd":
            number = int.from_bytes(head[20:24], "big")
            if last is not None and number != last + 1:
                yield at, size
                return
            last = number
        at += length


def _broken_ts(file: BinaryIO, size: int) -> Iterator[Span]:
    """Packets without a sync byte, with an error flag, with a wrong count, or with a start flag but no unit start."""
    counters: dict[int, int] = {}
    streams: dict[int, bool] = {}  # packet identifier -> whether its packets carry units of sound or pictures
    for first in range(0, size, _TS_BYTES * _TS_BLOCK):
        raw = np.frombuffer(_read(file, first, _TS_BYTES * _TS_BLOCK), np.uint8)
        packets = raw[: len(raw) // _TS_BYTES * _TS_BYTES].reshape(-1, _TS_BYTES)
        wrong = (packets[:, 0] != 0x47) | (packets[:, 1] & 0x80 > 0)
        number = (packets[:, 1].astype(int) & 0x1F) << 8 | packets[:, 2]
        payload, adapted = packets[:, 3] & 0x10 > 0, packets[:, 3] & 0x20 > 0
        begins = packets[:, 1] & 0x40 > 0
        offset = np.minimum(np.where(adapted, 5 + packets[:, 4].astype(int), 4), _TS_BYTES - 3)
        start = packets[np.arange(len(packets))[:, None], offset[:, None] + np.arange(3)]
        is_unit = (start == (0, 0, 1)).all(axis=1)
        for pid in np.unique(number[payload & ~wrong]):
            if pid == 0x1FFF:  # stuffing
                continue
            at = np.flatnonzero((number == pid) & payload)
            count = packets[at, 3].astype(int) & 15
            previous = np.concatenate(([counters.get(int(pid), int(count[0]) - 1)], count[:-1]))
            announced = adapted[at] & (packets[at, 4] > 0) & (packets[at, 5] & 0x80 > 0)  # discontinuity_indicator
            wrong[at] |= ((count - previous) % 16 > 1) & ~announced  # a packet may come twice
            counters[int(pid)] = int(count[-1])
            heads = at[begins[at]]
            if heads.size:
                carries = streams.setdefault(int(pid), bool(is_unit[heads].mean() > 0.5))
                wrong[heads] |= carries & ~is_unit[heads]
        for place in np.flatnonzero(wrong):
            yield first + int(place) * _TS_BYTES, first + int(place + 1) * _TS_BYTES
    if size % _TS_BYTES:
        yield size - size % _TS_BYTES, size


def _read(file: BinaryIO, at: int, length: int) -> bytes:
    file.seek(at)
    return file.read(length)


def _mp4_box(head: bytes) -> tuple[bytes, int]:
    """Name and total length of the box that begins with ``head``; a length of 1 means that 64 bits follow."""
    length = int.from_bytes(head[:4], "big")
    return head[4:8], int.from_bytes(head[8:16], "big") if length == 1 else length


def _ebml_length(data: bytes, at: int) -> tuple[int, int]:
    """The EBML length at ``at`` and the place after it; 0 means "unknown" (live). Leading zeros give its size."""
    if at >= len(data) or not data[at]:
        return 0, at
    n_bytes = 9 - data[at].bit_length()
    mask = (1 << 7 * n_bytes) - 1
    value = int.from_bytes(data[at : at + n_bytes], "big") & mask
    return (0 if value == mask else value), at + n_bytes
