"""Damaged times, scales and start codes: what is shown is every frame at its own time, or nothing."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from endofm_lab.errors import VideoError
from endofm_lab.video.reader import open_video
from tests.video.recordings import numbers_in

VideoOf = Callable[[str], Path]


def is_refused_or_true(path: Path, data: bytes, place: int, mask: int) -> bool:
    """Whether a video of 60 even frames is refused, or true, with the bits of ``mask`` changed at one place."""
    changed = bytearray(data)
    changed[place] ^= mask
    path.write_bytes(changed)
    try:
        with open_video(path) as video:
            after = np.diff(video.times_s)
            numbers = numbers_in(frame for _, frame in video.stream())
            return np.ptp(after) < 2e-3 and numbers == list(range(60))
    except VideoError:
        return True


def test_a_wrong_time_scale_or_a_wrong_time_in_an_mp4_hides_no_frame_and_moves_none(
    video_of: VideoOf, tmp_path: Path
) -> None:
    data = video_of("h264_short_gop.mp4").read_bytes()
    scale = data.index(b"mvhd") + 16  # the list of edits is counted in this scale
    assert all(is_refused_or_true(tmp_path / "a.mp4", data, scale, 1 << bit) for bit in range(8))
    offsets = data.index(b"ctts") + 12
    n = int.from_bytes(data[offsets - 4 : offsets], "big")
    for entry in range(n):  # by how much a frame is shown after it is decoded: count, offset
        place = offsets + 8 * entry + 4
        if data[place - 1] == 1:  # alone: the frames of a longer run move together and meet their neighbours
            assert is_refused_or_true(tmp_path / "a.mp4", data, place + 3, 64), entry  # 5 ms of 40
            assert is_refused_or_true(tmp_path / "a.mp4", data, place, 1), entry


def test_the_time_of_the_last_frame_agrees_with_the_declared_end(video_of: VideoOf, tmp_path: Path) -> None:
    data = video_of("vp9.webm").read_bytes()
    cluster = data.rindex(b"\x1f\x43\xb6\x75")
    last = data.rindex(b"\xa3", cluster, len(data) - 8)  # a simple block: identifier, length, track, time of 2 bytes
    while data[last + 2 : last + 3] != b"\x81" and data[last + 3 : last + 4] != b"\x81":
        last = data.rindex(b"\xa3", cluster, last)
    place = data.index(b"\x81", last) + 2
    for bit in (2, 3, 4, 5):
        assert is_refused_or_true(tmp_path / "a.webm", data, place, 1 << bit), bit


def test_a_frame_without_its_start_code_is_noticed_in_its_delimiter(video_of: VideoOf, tmp_path: Path) -> None:
    """The decoder repeats the frame before it in silence."""
    data = video_of("h264.ts").read_bytes()
    places = [place for place in range(len(data) - 5) if data[place : place + 5] == b"\0\0\0\1\x41"]
    assert len(places) > 5 and all(is_refused_or_true(tmp_path / "a.ts", data, place + 3, 2) for place in places[:10])


def test_a_flipped_bit_anywhere_in_the_tables_of_an_mp4_is_refused_or_changes_nothing(
    video_of: VideoOf, tmp_path: Path
) -> None:
    data = video_of("h264_short_gop.mp4").read_bytes()
    places = range(data.index(b"moov"), len(data), 11)
    assert [place for place in places if not is_refused_or_true(tmp_path / "a.mp4", data, place, 2)] == []
