"""Frame identity, times, threads, memory and every way a video can be broken."""

import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from endofm_lab.errors import UserError, VideoError
from endofm_lab.video import decoders
from endofm_lab.video.reader import open_video, write_video
from tests.video.conftest import ENCODINGS, encode, number_in, numbered, numbers_in, rewrap, spoil_packet, turned

VideoOf = Callable[[str], Path]


def sequential(path: Path) -> np.ndarray:
    """All frames by plain decoding from start to end: what every other way of reading is held against."""
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


# ---------------------------------------------------------------------------------------------- frame identity


@pytest.mark.parametrize("name", ENCODINGS)
def test_any_frame_in_any_order_is_the_one_of_sequential_decoding(video_of: VideoOf, name: str) -> None:
    truth = sequential(video_of(name))
    assert numbers_in(truth) == list(range(60))
    order = np.random.default_rng(1).permutation(60)
    with open_video(video_of(name)) as video:
        np.testing.assert_array_equal(video.read(order), truth[order])
        for number in (59, 0, 31, 13, 12, 11, 47):
            np.testing.assert_array_equal(video.read([number]), truth[[number]])
        np.testing.assert_array_equal(video.read([7, 50, 7, 3]), truth[[7, 50, 7, 3]])


@pytest.mark.parametrize("name", ENCODINGS)
def test_streaming_gives_the_pixels_of_reading(video_of: VideoOf, name: str) -> None:
    with open_video(video_of(name)) as video:
        streamed = list(video.stream())
        assert [number for number, _ in streamed] == list(range(60))
        np.testing.assert_array_equal(np.stack([frame for _, frame in streamed]), video.read(range(60)))
        part = list(video.stream(23, 41))
        assert [number for number, _ in part] == list(range(23, 41)) == numbers_in(frame for _, frame in part)


@pytest.mark.parametrize("name", ENCODINGS)
def test_info_is_exact(video_of: VideoOf, name: str) -> None:
    fps = ENCODINGS[name].get("fps", Fraction(25))
    with open_video(video_of(name)) as video:
        info = video.info
        assert (info.n_frames, info.width_px, info.height_px) == (60, 128, 96)
        assert info.fps == fps and isinstance(info.fps, Fraction)
        assert info.codec == name.replace(".", "_").split("_")[0]
        assert info.duration_s == pytest.approx(60 / fps, abs=1e-3)
        rounding_s = 0.5e-3 if name.endswith((".mkv", ".webm")) else 1e-12  # Matroska counts in milliseconds
        np.testing.assert_allclose(video.times_s, np.arange(60) / float(fps), rtol=0, atol=rounding_s + 1e-12)
        assert video.times_s.dtype == np.float64


@pytest.mark.parametrize("name", ["h264_short_gop.mp4", "h264_long_gop.mp4", "h264.mkv", "mjpeg.avi", "mjpeg.mov"])
def test_decord_reads_what_it_reads_exactly(video_of: VideoOf, name: str) -> None:
    pytest.importorskip("decord")
    with open_video(video_of(name)) as video:
        assert video.info.decoder == "decord"


@pytest.mark.parametrize(
    "name",
    [
        "av1.mp4",
        "h264_reordered.avi",
        "h264_open_gop.mp4",
        "hevc_open_gop.mkv",
        "h264_intra_refresh.mp4",
        "hevc.mov",
        "vp9.webm",
        "mpeg4.mp4",
    ],
)
def test_pyav_reads_where_decord_cannot_be_trusted(video_of: VideoOf, name: str) -> None:
    with open_video(video_of(name)) as video:
        assert video.info.decoder == "pyav"


@pytest.mark.parametrize("name", ["h264_short_gop.mp4", "h264_open_gop.mp4", "hevc.mov", "vp9.mkv", "mjpeg.mov"])
def test_without_decord_pyav_reads_the_same(video_of: VideoOf, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    order = np.random.default_rng(2).permutation(60)
    monkeypatch.setattr(decoders, "decord", None)
    with open_video(video_of(name)) as video:
        assert video.info.decoder == "pyav"
        np.testing.assert_array_equal(video.read(order), sequential(video_of(name))[order])


def test_times_follow_a_variable_frame_rate(tmp_path: Path) -> None:
    times_ms = np.cumsum([0] + [20, 40, 160, 33, 7] * 11)[:50]
    path = encode(tmp_path / "variable.mp4", 50, times_ms=times_ms.tolist(), g="10")
    with open_video(path) as video:
        np.testing.assert_allclose(video.times_s, times_ms / 1000, atol=1e-9)
        assert numbers_in(video.read([49, 2, 30])) == [49, 2, 30]
        assert numbers_in(frame for _, frame in video.stream()) == list(range(50))


@pytest.mark.parametrize("name", ["h264_short_gop.mp4", "mjpeg.mov"])
def test_pre_roll_frames_are_not_shown(video_of: VideoOf, tmp_path: Path, name: str) -> None:
    """A cut without encoding begins at frame 18: it needs the key frame before it, which no player shows."""
    source = video_of(name)
    with open_video(source) as video:
        keys = video._source._keys  # type: ignore[union-attr]
        stamps = video._source._stamps  # type: ignore[union-attr]
        key = int(keys[np.searchsorted(keys, stamps[18], side="right") - 1])
    offset = int(stamps[18])

    def cut(packet: av.Packet) -> bool:
        keep = packet.pts >= key
        packet.pts, packet.dts = packet.pts - offset, packet.dts - offset
        return keep

    path = rewrap(source, tmp_path / name, cut)
    with open_video(path) as video:
        assert numbers_in(frame for _, frame in video.stream()) == list(range(18, 60))
        assert video.info.n_frames == 42 and video.times_s[0] == 0
        assert numbers_in(video.read([41, 0, 20])) == [59, 18, 38]


@pytest.mark.parametrize(
    ("matrix", "quarter_turns"), [((0, 1, -1, 0), -1), ((-1, 0, 0, -1), 2), ((0, -1, 1, 0), 1), ((1, 0, 0, 1), 0)]
)
def test_rotation_is_applied_by_both_decoders(
    video_of: VideoOf,
    tmp_path: Path,
    matrix: tuple[int, ...],
    quarter_turns: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = turned(video_of("h264_short_gop.mp4"), tmp_path / "turned.mp4", matrix)
    truth = np.rot90(sequential(video_of("h264_short_gop.mp4")), quarter_turns, axes=(1, 2))
    with open_video(path) as video:
        assert video.info.decoder == "decord"
        assert (video.info.height_px, video.info.width_px) == truth.shape[1:3]
        np.testing.assert_array_equal(video.read([5, 40]), truth[[5, 40]])
        np.testing.assert_array_equal(np.stack([frame for _, frame in video.stream()]), truth)


def test_sound_beside_the_pictures_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "sound.mp4"
    with av.open(str(path), "w") as container:
        video_stream = container.add_stream("libx264", rate=25)
        video_stream.width, video_stream.height, video_stream.pix_fmt = 128, 96, "yuv420p"
        audio_stream = container.add_stream("aac", rate=16000)
        _add_sound(container, audio_stream, seconds=3)
        for number in range(30):
            frame = av.VideoFrame.from_ndarray(numbered(number), format="rgb24")
            container.mux(video_stream.encode(frame))
        container.mux(video_stream.encode())
    with open_video(path) as video:
        assert video.info.n_frames == 30 and video.info.duration_s == pytest.approx(1.2)
        assert numbers_in(video.read(range(30))) == list(range(30))


# ---------------------------------------------------------------------------------------------- threads, memory


@pytest.mark.parametrize("name", ["h264_short_gop.mp4", "mpeg4.avi"])
def test_a_reader_shared_by_threads_gives_every_thread_its_frames(video_of: VideoOf, name: str) -> None:
    with open_video(video_of(name)) as video:

        def work(seed: int) -> bool:
            order = np.random.default_rng(seed).integers(0, 60, 6)
            return numbers_in(video.read(order)) == order.tolist()

        def stream(seed: int) -> bool:
            return numbers_in(frame for _, frame in video.stream(seed, seed + 20)) == list(range(seed, seed + 20))

        with ThreadPoolExecutor(8) as pool:
            results = [*pool.map(work, range(40)), *pool.map(stream, range(16))]
    assert len(results) == 56 and all(results)


def test_threads_may_open_the_same_file_at_once(video_of: VideoOf) -> None:
    def work(seed: int) -> list[int]:
        with open_video(video_of("h264_short_gop.mp4")) as video:
            return numbers_in(video.read([seed, 59 - seed]))

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(work, range(24))) == [[seed, 59 - seed] for seed in range(24)]


def test_streaming_decodes_each_frame_once(video_of: VideoOf, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded = []
    plain = decoders.VideoFile._decoded

    def counting(container, stream):
        for frame in plain(container, stream):
            decoded.append(frame.pts)
            yield frame

    with open_video(video_of("h264_short_gop.mp4")) as video:
        monkeypatch.setattr(decoders.VideoFile, "_decoded", staticmethod(counting))
        assert sum(1 for _ in video.stream()) == 60
    assert len(decoded) == len(set(decoded)) == 60


@pytest.mark.slow
def test_an_hour_streams_in_the_memory_of_a_minute(tmp_path: Path) -> None:
    minute = encode(tmp_path / "minute.mp4", 1500, g="50", preset="ultrafast")
    hour = rewrap(minute, tmp_path / "hour.mp4", lambda packet: True, repeats=60)
    program = (
        "import resource, sys\n"
        "from endofm_lab.video.reader import open_video\n"
        "n = sum(1 for _ in open_video(sys.argv[1]).stream())\n"
        "print(n, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)\n"
    )
    peak_kb = {}
    for path, n_frames in ((minute, 1500), (hour, 90000)):
        done = subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True, text=True, check=True)
        n, peak = map(int, done.stdout.split())
        assert n == n_frames
        peak_kb[path] = peak
    print(f"peak: minute {peak_kb[minute] / 1024:.0f} MB, hour {peak_kb[hour] / 1024:.0f} MB")
    assert peak_kb[hour] - peak_kb[minute] < 40 * 1024  # decord's and our index of 90,000 frames


# ---------------------------------------------------------------------------------------------- bad input


def _add_sound(container, stream, seconds: int) -> None:
    for start in range(0, 16000 * seconds, 1024):
        tone = np.sin(np.arange(start, start + 1024) / 20).astype(np.float32)[None]
        frame = av.AudioFrame.from_ndarray(tone, format="fltp", layout="mono")
        frame.sample_rate, frame.pts = 16000, start
        container.mux(stream.encode(frame))
    container.mux(stream.encode())


def _refused(path: Path) -> VideoError:
    with pytest.raises(VideoError) as caught:
        open_video(path)
    assert str(path) in str(caught.value) and caught.value.path.startswith(str(path)) and caught.value.reason
    assert "\n" not in str(caught.value)
    return caught.value


@pytest.mark.parametrize("name", [name for name in ENCODINGS if name != "h264_fragments.mp4"])
@pytest.mark.parametrize("part", [0.95, 0.6, 0.1])
def test_a_truncated_file_is_a_video_error_that_names_it(
    video_of: VideoOf, tmp_path: Path, name: str, part: float
) -> None:
    whole = video_of(name).read_bytes()
    path = tmp_path / name
    path.write_bytes(whole[: int(len(whole) * part)])
    _refused(path)


@pytest.mark.parametrize("between_frames", [True, False])
def test_a_truncated_file_with_its_index_first_is_refused(
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
    assert "cut off" in _refused(path).reason


def test_fragments_cut_inside_one_are_refused(video_of: VideoOf, tmp_path: Path) -> None:
    whole = video_of("h264_fragments.mp4").read_bytes()
    path = tmp_path / "fragments.mp4"
    path.write_bytes(whole[: whole.rindex(b"mdat") + 40])
    assert "cut off" in _refused(path).reason


# Not here: FFV1 conceals damaged slices, AV1 packets of still parts are 3 bytes long, and AVI holds no presentation
# times, so that the order of reordered MPEG-4 frames next to a damaged one is a guess.
@pytest.mark.parametrize(
    "name", [name for name in ENCODINGS if name not in ("ffv1.mkv", "av1.mp4", "mpeg4_reordered.avi")]
)
def test_damage_inside_a_file_is_an_error_at_the_frame_and_never_another_frame(
    video_of: VideoOf, tmp_path: Path, name: str
) -> None:
    path = spoil_packet(video_of(name), tmp_path / name, 30)
    truth = sequential(video_of(name))
    seen = []
    with pytest.raises(VideoError, match="cannot be decoded") as caught, open_video(path) as video:
        for number, frame in video.stream():
            np.testing.assert_array_equal(frame, truth[number])
            seen.append(number)
    assert seen == list(range(len(seen))) and 20 <= len(seen) <= 36
    assert f"frame {len(seen)} of 60" in str(caught.value)
    refused = []
    for number in range(20, 60):
        with open_video(path) as video:
            try:
                np.testing.assert_array_equal(video.read([number])[0], truth[number])
            except VideoError:
                refused.append(number)
    assert 30 in refused and len(seen) in refused
    with open_video(path) as video:
        with pytest.raises(VideoError, match="cannot be decoded"):
            video.read(range(60))
        np.testing.assert_array_equal(video.read([9, 2]), truth[[9, 2]])  # the reader is still alive


def test_what_is_not_a_video_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("This is not a video.\n" * 100)
    (tmp_path / "notes.txt").write_text("FFmpeg can draw text files as video.\n" * 100)
    for seed in range(5):
        (tmp_path / f"random{seed}.mp4").write_bytes(np.random.default_rng(seed).bytes(50_000))
    for path in sorted(tmp_path.iterdir()):
        _refused(path)
    assert "empty" in _refused(tmp_path / "empty.mp4").reason
    assert "no such" in _refused(tmp_path / "missing.mp4").reason


@pytest.mark.parametrize("name", ["sound.mp4", "sound.mkv", "sound.wav"])
def test_sound_alone_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    with av.open(str(path), "w") as container:
        _add_sound(container, container.add_stream("pcm_s16le" if "wav" in name else "aac", rate=16000), seconds=1)
    assert "no video" in _refused(path).reason or "not a video" in _refused(path).reason


def test_lists_that_point_to_other_files_are_not_followed(video_of: VideoOf, tmp_path: Path) -> None:
    target = video_of("h264_short_gop.mp4")
    (tmp_path / "list.mp4").write_text(f"ffconcat version 1.0\nfile '{target}'\n")
    (tmp_path / "list.m3u8").write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:3\n#EXTINF:3,\n{target}\n#EXT-X-ENDLIST\n")
    for path in tmp_path.iterdir():
        _refused(path)


def test_a_device_is_refused() -> None:
    if not Path("/dev/zero").exists():
        pytest.skip("there is no /dev/zero here")
    _refused(Path("/dev/zero"))


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
        with pytest.raises(VideoError, match="it has 60"):
            video.stream(0, 61)
        assert list(video.stream(60)) == []


def test_a_frame_rate_for_a_file_is_refused(video_of: VideoOf) -> None:
    with pytest.raises(UserError, match="own frame rate"):
        open_video(video_of("h264_short_gop.mp4"), fps=Fraction(12))


# ---------------------------------------------------------------------------------------------- folders of frames


def _folder(path: Path, names: list[str]) -> Path:
    path.mkdir()
    for number, name in enumerate(names):
        Image.fromarray(numbered(number)).save(path / name, quality=95)
    return path


def test_a_folder_is_read_in_natural_order_and_other_files_are_ignored(tmp_path: Path) -> None:
    folder = _folder(tmp_path / "frames", [f"frame{k}.png" for k in range(1, 13)])
    (folder / "notes.txt").write_text("text")
    (folder / "Thumbs.db").write_bytes(b"\0" * 10)
    (folder / "._frame1.png").write_bytes(b"no image")
    (folder / ".hidden.png").write_bytes(b"no image")
    (folder / "masks.png").mkdir()
    with open_video(folder, fps=Fraction(30000, 1001)) as video:
        info = video.info
        assert (info.n_frames, info.decoder, info.codec, info.fps) == (12, "frames", "png", Fraction(30000, 1001))
        assert info.duration_s == pytest.approx(12 * 1001 / 30000)
        np.testing.assert_array_equal(video.read(range(12)), np.stack([numbered(k) for k in range(12)]))
        assert numbers_in(frame for _, frame in video.stream(3, 7)) == [3, 4, 5, 6]
        np.testing.assert_allclose(video.times_s, np.arange(12) * 1001 / 30000)
    assert open_video(folder).info.fps == 25


@pytest.mark.parametrize("suffix", [".jpg", ".JPEG", ".png", ".bmp", ".tif", ".tiff", ".webp"])
def test_every_image_format_makes_a_folder(tmp_path: Path, suffix: str) -> None:
    folder = _folder(tmp_path / "frames", [f"{k}{suffix}" for k in range(3)])
    with open_video(folder) as video:
        assert numbers_in(video.read([2, 0, 1])) == [2, 0, 1]


def test_a_single_image_is_a_video_of_one_frame(tmp_path: Path) -> None:
    path = _folder(tmp_path / "still", ["a.png"]) / "a.png"
    with open_video(path) as video:
        assert video.info.n_frames == 1 and video.info.duration_s == pytest.approx(0.04)
        np.testing.assert_array_equal(video.read([0, 0]), np.stack([numbered(0)] * 2))


def test_grey_palette_and_alpha_become_rgb(tmp_path: Path) -> None:
    folder = tmp_path / "kinds"
    folder.mkdir()
    for number, kind in enumerate(("L", "P", "RGBA", "1")):
        Image.fromarray(numbered(number)).convert(kind).save(folder / f"{number}.png")
    with open_video(folder) as video:
        frames = video.read(range(4))
        assert frames.shape == (4, 96, 128, 3) and numbers_in(frames) == [0, 1, 2, 3]


def test_an_image_turned_by_its_camera_is_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # "rotate by 90 degrees clockwise to show"
    Image.fromarray(numbered(5)).save(tmp_path / "a.png", exif=exif)
    with open_video(tmp_path / "a.png") as video:
        assert (video.info.height_px, video.info.width_px) == (128, 96)
        np.testing.assert_array_equal(video.read([0])[0], np.rot90(numbered(5), -1))


def test_a_folder_with_two_sizes_names_the_odd_one(tmp_path: Path) -> None:
    folder = _folder(tmp_path / "frames", ["0.png", "1.png", "2.png"])
    Image.fromarray(numbered(1, 100, 130)).save(folder / "1.png")
    assert "130x100" in _refused_inside(folder, "1.png").reason


def test_broken_images_are_named(tmp_path: Path) -> None:
    folder = _folder(tmp_path / "frames", ["0.jpg", "1.jpg", "2.jpg"])
    whole = (folder / "1.jpg").read_bytes()
    (folder / "1.jpg").write_bytes(b"no image")
    _refused_inside(folder, "1.jpg")
    (folder / "1.jpg").write_bytes(whole[: len(whole) // 2])  # the header is good, the pixels end early
    with open_video(folder) as video, pytest.raises(VideoError, match=r"1\.jpg.*cannot be decoded"):
        video.read([0, 1])


def test_sixteen_bit_images_are_refused_and_not_cut_to_eight(tmp_path: Path) -> None:
    Image.fromarray(np.full((8, 8), 40_000, np.uint16)).save(tmp_path / "deep.png")
    assert "8-bit" in _refused(tmp_path / "deep.png").reason


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    assert "no image" in _refused(tmp_path).reason


@pytest.mark.parametrize("fps", [0, -1, Fraction(-1, 2)])
def test_a_frame_rate_of_zero_is_refused(tmp_path: Path, fps: Fraction) -> None:
    with pytest.raises(UserError, match="above 0"):
        open_video(_folder(tmp_path / "frames", ["0.png"]), fps=fps)


def _refused_inside(folder: Path, name: str) -> VideoError:
    error = _refused(folder)
    assert Path(error.path).name == name
    return error


# ---------------------------------------------------------------------------------------------- writing


@pytest.mark.parametrize(
    ("name", "codec"),
    [
        ("a.mp4", "h264"),
        ("a.mkv", "h264"),
        ("a.mov", "hevc"),
        ("a.webm", "vp9"),
        ("a.mp4", "av1"),
        ("a.avi", "mpeg4"),
        ("a.avi", "mjpeg"),
        ("a.mkv", "ffv1"),
    ],
)
def test_what_is_written_comes_back(tmp_path: Path, name: str, codec: str) -> None:
    frames = [numbered(number) for number in range(20)]
    write_video(tmp_path / name, iter(frames), Fraction(30000, 1001), codec)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    with open_video(tmp_path / name) as video:
        assert (video.info.codec, video.info.fps, video.info.n_frames) == (codec, Fraction(30000, 1001), 20)
        back = video.read(range(20))
    assert numbers_in(back) == list(range(20))
    error = np.abs(back.astype(int) - np.stack(frames)).mean()
    assert error == 0 if codec == "ffv1" else error < 8


@pytest.mark.parametrize("codec", ["h264", "hevc", "mpeg4", "ffv1"])
def test_odd_sizes_keep_every_pixel_row(tmp_path: Path, codec: str) -> None:
    path = tmp_path / "odd.mkv"
    write_video(path, [numbered(number)[:95, :127] for number in range(5)], 10, codec)
    with open_video(path) as video:
        assert (video.info.height_px, video.info.width_px) == (95, 127)
        assert numbers_in(video.read(range(5))) == list(range(5))


def test_writing_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a.mp4", "b.mp4"):
        write_video(tmp_path / name, (numbered(number) for number in range(30)), 25)
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()


def test_a_failed_write_leaves_nothing_and_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(b"old")

    def interrupted():
        yield numbered(0)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_video(path, interrupted(), 25)
    with pytest.raises(UserError, match="uint8"):
        write_video(path, [numbered(0), numbered(1).astype(np.float32)], 25)
    with pytest.raises(UserError, match="size of the first"):
        write_video(path, [numbered(0), numbered(1)[:-2]], 25)
    with pytest.raises(UserError, match="at least one"):
        write_video(path, [], 25)
    assert path.read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    ("name", "fps", "codec", "message"),
    [
        ("a.mp4", 25, "divx", "h264, hevc"),
        ("a.mp4", 0, "h264", "above 0"),
        ("a.xyz", 25, "h264", r"\.mp4"),
        ("a.webm", 25, "h264", "cannot be written"),
    ],
)
def test_what_cannot_be_written_is_said(tmp_path: Path, name: str, fps: int, codec: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        write_video(tmp_path / name, [numbered(0)], fps, codec)
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------------------------------------- real recordings


@pytest.fixture
def real_data() -> Path:
    folder = os.environ.get("ENDOFM_LAB_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("ENDOFM_LAB_DATA does not name the folder with real recordings")
    return Path(folder)


@pytest.mark.real_data
def test_a_real_laparoscopy_is_read_frame_by_frame(real_data: Path) -> None:
    with open_video(real_data / "laparoscopy" / "endo.mp4") as video:
        info = video.info
        assert (info.n_frames, info.fps, info.width_px, info.height_px, info.codec) == (250, 25, 1280, 720, "h264")
        wanted = [249, 0, 100, 101, 32]
        truth = {number: frame for number, frame in video.stream() if number in wanted}
        np.testing.assert_array_equal(video.read(wanted), np.stack([truth[number] for number in wanted]))


@pytest.mark.real_data
def test_a_real_folder_of_frames_is_read(real_data: Path) -> None:
    folder = real_data / "sinus" / "seq_002603"
    with open_video(folder, fps=Fraction(30)) as video:
        assert (video.info.n_frames, video.info.decoder) == (250, "frames")
        last = np.asarray(Image.open(max(folder.glob("*.jpg"))).convert("RGB"))
        np.testing.assert_array_equal(video.read([249])[0], last)


def test_numbers_survive_their_drawing() -> None:
    assert [number_in(numbered(number)) for number in (0, 1, 59, 4095)] == [0, 1, 59, 4095]
