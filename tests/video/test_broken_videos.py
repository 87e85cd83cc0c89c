"""Every way a video can be broken ends in a VideoError, never in a crash, a hang or another frame."""

from collections.abc import Callable
from fractions import Fraction
from itertools import islice
from pathlib import Path

import av
import numpy as np
import pytest

from endofm_lab.errors import UserError, VideoError
from endofm_lab.video.containers import broken_spans
from endofm_lab.video.reader import open_video, write_video
from tests.faults.videos import mutations
from tests.video.recordings import ENCODINGS, add_sound, encode, numbered, numbers_in, refused, sequential, spoil_packet

# Containers with checksums or counters: one damaged frame makes its whole part of the file doubtful.
CHECKED = [name for name in ENCODINGS if name.endswith((".mkv", ".ts", ".flv"))]

VideoOf = Callable[[str], Path]


@pytest.mark.parametrize("name", [name for name in ENCODINGS if name != "h264_fragments.mp4"])
@pytest.mark.parametrize("part", [0.95, 0.6, 0.1])
def test_a_truncated_file_is_a_video_error_that_names_it(
    video_of: VideoOf, tmp_path: Path, name: str, part: float
) -> None:
    whole = video_of(name).read_bytes()
    path = tmp_path / name
    path.write_bytes(whole[: int(len(whole) * part) | 1])  # odd: not at the end of a packet of MPEG-TS
    refused(path)


@pytest.mark.parametrize("between_frames", [True, False])
def test_a_truncated_file_with_its_index_first_isrefused(
    video_of: VideoOf, tmp_path: Path, between_frames: bool
) -> None:
    path = tmp_path / "front.mp4"
    with av.open(str(video_of("h264_short_gop.mp4"))) as source:
        stream = source.streams.video[0]
        with av.open(str(path), "w", options={"movflags": "+faststart"}) as target:
            copy = target.add_stream_from_template(stream)
            for packet in source.demux(stream):
                if packet.size:
                    packet.stream = copy
                    target.mux(packet)
    with av.open(str(path)) as container:
        places = [packet.pos for packet in container.demux(video=0) if packet.size]
    assert path.read_bytes().index(b"moov") < path.read_bytes().index(b"mdat")
    assert open_video(path).info.n_frames == 60
    path.write_bytes(path.read_bytes()[: places[40] + (0 if between_frames else 9)])
    assert "cut off" in refused(path).reason


def test_fragments_cut_inside_one_are_refused(video_of: VideoOf, tmp_path: Path) -> None:
    whole = video_of("h264_fragments.mp4").read_bytes()
    path = tmp_path / "fragments.mp4"
    path.write_bytes(whole[: whole.rindex(b"mdat") + 40])
    assert "cut off" in refused(path).reason


# Not here: AV1 packets of still parts are 3 bytes long, and AVI holds no presentation
# times, so that the order of reordered MPEG-4 frames next to a damaged one is a guess.
@pytest.mark.parametrize(
    "name", [name for name in ENCODINGS if name not in ("av1.mp4", "mpeg4_reordered.avi", *CHECKED)]
)
def test_damage_inside_a_file_is_an_error_at_the_frame_and_never_another_frame(
    video_of: VideoOf, tmp_path: Path, name: str
) -> None:
    path = spoil_packet(video_of(name), tmp_path / name, 30)
    truth = sequential(video_of(name))
    numbers = []
    with pytest.raises(VideoError, match="cannot be decoded") as error, open_video(path) as video:
        for number, frame in video.stream():
            np.testing.assert_array_equal(frame, truth[number])
            numbers.append(number)
    assert numbers == list(range(len(numbers))) and 20 <= len(numbers) <= 36
    assert f"Frame {len(numbers)} of 60" in str(error.value)
    refused = []
    for number in range(20, 60):
        with open_video(path) as video:
            try:
                np.testing.assert_array_equal(video.read([number])[0], truth[number])
            except VideoError:
                refused.append(number)
    assert 30 in refused and len(numbers) in refused
    with open_video(path) as video:
        with pytest.raises(VideoError, match="cannot be decoded"):
            video.read(range(60))
        np.testing.assert_array_equal(video.read([9, 2]), truth[[9, 2]])  # the reader is still alive


@pytest.mark.parametrize("name", CHECKED)
def test_where_the_container_sees_the_damage_its_whole_part_is_refused_or_marked(
    video_of: VideoOf, tmp_path: Path, name: str
) -> None:
    path = spoil_packet(video_of(name), tmp_path / name, 30)
    truth = sequential(video_of(name))
    with pytest.raises(VideoError, match=r"cannot be decoded|are lost"), open_video(path) as video:
        for number, frame in video.stream():
            np.testing.assert_array_equal(frame, truth[number])
    try:
        marked = open_video(path, damaged="mark")
    except VideoError as error:
        assert name == "vp9.mkv" or "Frame 0" in error.reason  # the only key frame is in the damaged part
        return
    n_good = 0
    for number, frame in marked.stream():
        if number in marked.damaged:
            assert not frame.any()
        else:
            n_good += 1
            truth_at = round(marked.times_s[number] * marked.info.fps)
            np.testing.assert_array_equal(frame, truth[truth_at])
    assert marked.damaged and n_good > 4


@pytest.mark.parametrize("name", ["h264_short_gop.mp4", "mjpeg.avi", "hevc.mov"])
def test_damaged_frames_are_black_and_marked_where_that_is_asked_for(
    video_of: VideoOf, tmp_path: Path, name: str
) -> None:
    path = spoil_packet(video_of(name), tmp_path / name, 30)
    truth = sequential(video_of(name))
    with open_video(path, damaged="mark") as video:
        assert video.info.n_frames == 60 and video.damaged == {}
        frames = np.stack([frame for _, frame in video.stream()])
        damaged = video.damaged
        assert 30 in damaged and "cannot be decoded" in damaged[min(damaged)]
        for number in range(60):
            np.testing.assert_array_equal(frames[number], 0 * truth[number] if number in damaged else truth[number])
        assert set(damaged) <= set(range(24, 48))
    with open_video(path, damaged="mark") as video:
        np.testing.assert_array_equal(video.read([50, 30, 2, 30]), frames[[50, 30, 2, 30]])
        assert list(video.damaged) == [30]
    with pytest.raises(UserError, match="refuse or mark"):
        open_video(path, damaged="ignore")  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["vp9.webm", "mjpeg.avi", "h264.flv", "h264.ts", "h264_fragments.mp4"])
def test_frames_that_a_damaged_container_loses_are_noticed(video_of: VideoOf, tmp_path: Path, name: str) -> None:
    """Demuxers go on behind a broken place, and a player shows a shorter video."""
    data = video_of(name).read_bytes()
    path = tmp_path / name
    at = len(data) // 2
    path.write_bytes(data[:at] + bytes(400) + data[at + 400 :])
    with pytest.raises(VideoError), open_video(path) as video:
        for _ in video.stream():
            pass
    try:
        marked = open_video(path, damaged="mark")
    except VideoError:
        return
    assert sum(1 for _ in marked.stream()) >= 58 and marked.damaged


def test_an_avi_whose_list_of_frames_has_lost_its_head_is_not_shorter(video_of: VideoOf, tmp_path: Path) -> None:
    """A lost sector can take the head of the list, and the first frame with it; the demuxer searches for the next."""
    data = video_of("mjpeg.avi").read_bytes()
    movi = data.index(b"movi")
    path = tmp_path / "a.avi"
    for lost in (16, 40, 512):  # the head of the list; with the head of the first frame; with all of that frame
        path.write_bytes(data[: movi - 8] + bytes(lost) + data[movi - 8 + lost :])
        with pytest.raises(VideoError, match="damage"), open_video(path) as video:
            for _ in video.stream():
                pass


def test_a_live_recording_without_lengths_is_whole(tmp_path: Path) -> None:
    """Clusters of unknown length end where the next one begins."""
    path = encode(tmp_path / "live.mkv", g="12", container={"live": "1", "cluster_time_limit": "500"})
    assert broken_spans(path) == []
    assert numbers_in(frame for _, frame in open_video(path).stream()) == list(range(60))


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.webm"])
def test_a_variable_frame_rate_with_pauses_is_no_damage(tmp_path: Path, name: str) -> None:
    times_ms = np.cumsum([0] + [40, 40, 2000, 30, 700] * 6)[:30].tolist()
    encoder = "libvpx-vp9" if name == "a.webm" else "libx264"
    path = encode(tmp_path / name, 30, encoder=encoder, times_ms=times_ms, g="10")
    with open_video(path) as video:
        np.testing.assert_allclose(video.times_s, np.array(times_ms) / 1000, atol=1e-3)
        assert numbers_in(frame for _, frame in video.stream()) == list(range(30))


def test_a_matroska_checksum_tells_what_no_decoder_can(video_of: VideoOf, tmp_path: Path) -> None:
    data = bytearray(video_of("ffv1.mkv").read_bytes())
    data[len(data) // 2] ^= 1
    path = tmp_path / "a.mkv"
    path.write_bytes(data)
    assert sequential(path).shape == (60, 96, 128, 3)  # PyAV alone shows other pictures without a word
    truth = sequential(video_of("ffv1.mkv"))
    with pytest.raises(VideoError, match="cannot be decoded"), open_video(path) as video:
        for number, frame in video.stream():
            np.testing.assert_array_equal(frame, truth[number])


@pytest.mark.parametrize("name", ["lossless.avi", "lossless.mkv"])
def test_a_changed_byte_in_a_lossless_video_is_never_another_picture(tmp_path: Path, name: str) -> None:
    truth, path = np.stack([numbered(number) for number in range(15)]), tmp_path / name
    rng = np.random.default_rng(5)
    write_video(path, truth, Fraction(10), codec="ffv1")
    whole, n_refused = path.read_bytes(), 0
    header = whole.index(b"movi" if name.endswith("avi") else b"\x1f\x43\xb6\x75")
    for turn in range(200):
        data = bytearray(whole)
        data[int(rng.integers(header if turn % 4 == 0 else len(data)))] ^= int(rng.integers(1, 256))
        path.write_bytes(data)
        try:
            with open_video(path) as video:
                frames, times_s, fps = np.stack([frame for _, frame in video.stream()]), video.times_s, video.info.fps
        except VideoError:
            n_refused += 1
        else:
            np.testing.assert_array_equal(frames, truth)
            assert times_s.tolist() == [number / 10 for number in range(15)] and fps == 10
    assert 100 < n_refused < 200


def test_a_lossless_video_without_checksums_can_be_read(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.avi", 15, "ffv1", pixel_format="bgr0", slicecrc="0")
    with open_video(path) as video:
        np.testing.assert_array_equal(video.read(range(15)), [numbered(number) for number in range(15)])


def test_mutated_videos_give_true_frames_or_an_error(video_of: VideoOf, tmp_path: Path) -> None:
    """A shorter, shifted or longer video is never accepted; what only a checksum can tell is not asked for here."""
    for name in ("h264_short_gop.mp4", "h264.mkv", "h264.ts", "mjpeg.avi", "vp9.webm"):
        n_whole = 0
        for change, data in islice(mutations(video_of(name), seed=3), 22):
            (tmp_path / name).write_bytes(data)
            try:
                with open_video(tmp_path / name) as video:
                    times_s = video.times_s
                    n_frames = sum(1 for _ in video.stream())
            except VideoError as error:
                assert len(str(error)) < 500 and "\n" not in str(error)
                continue
            n_whole += 1
            assert n_frames == 60, f"{name}, {change}: {n_frames} frames"
            fps = float(ENCODINGS[name].get("fps", 25))
            np.testing.assert_allclose(times_s, np.arange(60) / fps, atol=1e-3, err_msg=f"{name}, {change}")
        assert n_whole < 22


@pytest.mark.parametrize("name", ["h264.ts", "mpeg2video.ts"])
def test_a_flipped_bit_in_a_time_of_a_transport_stream_is_refused_or_changes_nothing(
    video_of: VideoOf, tmp_path: Path, name: str
) -> None:
    """The time stamps of MPEG-TS have no checksum, but one that moves alone does not fit the frame rate."""
    whole = video_of(name).read_bytes()
    with open_video(video_of(name)) as video:
        expected = video.times_s
    headers = [
        at for at in range(len(whole) - 14) if whole[at : at + 4] == b"\x00\x00\x01\xe0" and whole[at + 7] & 0x80
    ]
    assert len(headers) == len(expected)
    n_refused, path = 0, tmp_path / name
    for header, bit in [
        (header, bit) for header in (headers[0], headers[9], headers[30], headers[-1]) for bit in range(40)
    ]:
        data = bytearray(whole)
        data[header + 9 + bit // 8] ^= 128 >> bit % 8  # the five bytes of the presentation time stamp
        path.write_bytes(data)
        try:
            with open_video(path) as video:
                times_s = video.times_s
                assert sum(1 for _ in video.stream()) == len(expected)
        except VideoError:
            n_refused += 1
            continue
        np.testing.assert_allclose(times_s, expected, atol=2e-3, err_msg=f"bit {bit} of the header at {header}")
    assert n_refused > 40


def test_what_is_not_a_video_isrefused(tmp_path: Path) -> None:
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("This is not a video.\n" * 100)
    (tmp_path / "notes.txt").write_text("FFmpeg can draw text files as video.\n" * 100)
    for seed in range(5):
        (tmp_path / f"random{seed}.mp4").write_bytes(np.random.default_rng(seed).bytes(50_000))
    for path in sorted(tmp_path.iterdir()):
        refused(path)
    assert "empty" in refused(tmp_path / "empty.mp4").reason
    assert "no such" in refused(tmp_path / "missing.mp4").reason


@pytest.mark.parametrize("name", ["sound.mp4", "sound.mkv", "sound.wav"])
def test_sound_alone_isrefused(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    with av.open(str(path), "w") as container:
        add_sound(container, "pcm_s16le" if "wav" in name else "aac", seconds=1)
    assert "no video" in refused(path).reason or "not a video" in refused(path).reason


def test_lists_that_point_to_other_files_are_not_followed(video_of: VideoOf, tmp_path: Path) -> None:
    target = video_of("h264_short_gop.mp4")
    (tmp_path / "list.mp4").write_text(f"ffconcat version 1.0\nfile '{target}'\n")
    (tmp_path / "list.m3u8").write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:3\n#EXTINF:3,\n{target}\n#EXT-X-ENDLIST\n")
    for path in tmp_path.iterdir():
        refused(path)


def test_a_device_isrefused() -> None:
    if not Path("/dev/zero").exists():
        pytest.skip("there is no /dev/zero here")
    refused(Path("/dev/zero"))


def test_odd_names_are_files_and_not_protocols(
    video_of: VideoOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("http:clip.mp4", "50% ünï çode, %03d.mp4", "-i.mp4"):
        Path(name).write_bytes(video_of("h264_short_gop.mp4").read_bytes())
        assert numbers_in(open_video(name).read([3, 33])) == [3, 33]


@pytest.mark.parametrize("indices", [[60], [-1], [0, 5, 1000]])
def test_frames_outside_the_video_are_refused(video_of: VideoOf, indices: list[int]) -> None:
    with open_video(video_of("h264_short_gop.mp4")) as video:
        with pytest.raises(VideoError, match="0 to 59"):
            video.read(indices)
        assert video.read([]).shape == (0, 96, 128, 3)
        with pytest.raises(VideoError, match="the video has 60"):
            video.stream(0, 61)
        assert list(video.stream(60)) == []


def test_a_frame_rate_for_a_file_isrefused(video_of: VideoOf) -> None:
    with pytest.raises(UserError, match="own frame rate"):
        open_video(video_of("h264_short_gop.mp4"), fps=Fraction(12))


def test_names_and_notes_in_another_alphabet_do_no_harm(tmp_path: Path) -> None:
    """Recorders write Latin-1 into fields that should hold UTF-8."""
    data = encode(tmp_path / "a.mkv", container={"write_crc32": "0"}, **ENCODINGS["h264.mkv"]).read_bytes()
    assert data.count(b"Lavf") >= 1
    (tmp_path / "latin1.mkv").write_bytes(data.replace(b"Lavf", b"\xe4\xf6\xfc\xdf"))
    assert numbers_in(open_video(tmp_path / "latin1.mkv").read([8, 55])) == [8, 55]


def test_random_damage_gives_frames_or_a_video_error(video_of: VideoOf, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    outcomes = {"read": 0, "refused": 0}
    for name in sorted(ENCODINGS) * 4:
        data = bytearray(video_of(name).read_bytes())
        first, length = int(rng.integers(len(data))), int(rng.integers(1, 300))
        if rng.integers(2):
            data[first : first + length] = rng.bytes(length)
        else:
            del data[first : first + length]
        (tmp_path / name).write_bytes(data)
        try:
            with open_video(tmp_path / name) as video:
                n_frames = video.info.n_frames
                assert len(video.read(rng.integers(0, n_frames, 3))) == 3
                assert sum(1 for _ in video.stream()) == n_frames
            outcomes["read"] += 1
        except VideoError:
            outcomes["refused"] += 1
    assert min(outcomes.values()) > 5, outcomes


@pytest.mark.parametrize("name", ["h264_short_gop.mp4", "h264_fragments.mp4", "mjpeg.mov"])
def test_a_header_that_promises_years_does_not_end_the_process(video_of: VideoOf, tmp_path: Path, name: str) -> None:
    """A duration a thousand times too long is a damaged number, and neither lost frames nor a reason to take memory."""
    data = bytearray(video_of(name).read_bytes())
    for box, place in ((b"mvhd", 20), (b"tkhd", 24), (b"mdhd", 20)):  # duration, ISO/IEC 14496-12, 8.2.2, 8.3.2, 8.4.2
        at = data.index(box) + place
        data[at : at + 4] = b"\x7f\xff\xff\xff"
    (tmp_path / name).write_bytes(data)
    with open_video(tmp_path / name) as video:
        assert numbers_in(video.read([4, 50])) == [4, 50]
