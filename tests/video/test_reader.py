"""Frame identity, times, rotation, threads, memory, and real recordings."""

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

from endofm_lab.errors import VideoError
from endofm_lab.video import decoders, reader
from endofm_lab.video.reader import open_video, write_video
from tests.video.recordings import (
    ENCODINGS,
    add_sound,
    encode,
    number_in,
    numbered,
    numbers_in,
    rewrap,
    sequential,
    turned,
)

VideoOf = Callable[[str], Path]


def test_numbers_survive_their_drawing() -> None:
    assert [number_in(numbered(number)) for number in (0, 1, 59, 4095)] == [0, 1, 59, 4095]


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
        keys = video._source.index.keys  # type: ignore[union-attr]
        stamps = video._source.index.stamps  # type: ignore[union-attr]
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
def test_rotation_is_applied_by_both_ways_of_reading(
    video_of: VideoOf,
    tmp_path: Path,
    matrix: tuple[int, ...],
    quarter_turns: int,
) -> None:
    path = turned(video_of("h264_short_gop.mp4"), tmp_path / "turned.mp4", matrix)
    truth = np.rot90(sequential(video_of("h264_short_gop.mp4")), quarter_turns, axes=(1, 2))
    with open_video(path) as video:
        assert (video.info.height_px, video.info.width_px) == truth.shape[1:3]
        np.testing.assert_array_equal(video.read([5, 40]), truth[[5, 40]])
        np.testing.assert_array_equal(np.stack([frame for _, frame in video.stream()]), truth)


def test_sound_beside_the_pictures_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "sound.mp4"
    with av.open(str(path), "w") as container:
        video_stream = container.add_stream("libx264", rate=25)
        video_stream.width, video_stream.height, video_stream.pix_fmt = 128, 96, "yuv420p"
        add_sound(container, "aac", seconds=3)
        for number in range(30):
            frame = av.VideoFrame.from_ndarray(numbered(number), format="rgb24")
            container.mux(video_stream.encode(frame))
        container.mux(video_stream.encode())
    with open_video(path) as video:
        assert video.info.n_frames == 30 and video.info.duration_s == pytest.approx(1.2)
        assert numbers_in(video.read(range(30))) == list(range(30))


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


def test_the_index_of_a_file_is_read_once_until_the_file_changes(tmp_path: Path, monkeypatch) -> None:
    read = []
    plain = decoders.VideoFile._read_index
    monkeypatch.setattr(decoders.VideoFile, "_read_index", lambda *a: (read.append(a[0].path.name), plain(*a))[1])
    monkeypatch.setattr(reader, "_INDICES", reader._Indices())
    first_path, second_path = tmp_path / "one.mp4", tmp_path / "other.mp4"
    for path, first in ((first_path, 0), (second_path, 8)):
        write_video(path, [numbered(first + n) for n in range(8)], 25)

    def opened(path: Path) -> list[int]:
        with open_video(path) as video:
            assert video.info.path == path
            return numbers_in(video.read(range(video.info.n_frames)))

    monkeypatch.chdir(tmp_path)
    for _ in range(3):
        assert opened(first_path) == opened(Path("one.mp4")) == list(range(8))
    assert read == ["one.mp4"] * 2  # once for each name that was given
    write_video(first_path, [numbered(20 + n) for n in range(5)], 25)
    assert opened(first_path) == list(range(20, 25)) and len(read) == 3
    first_path.write_bytes(first_path.read_bytes()[:-100])
    with pytest.raises(VideoError, match="cut off"):
        opened(first_path)
    monkeypatch.setattr(reader._Indices, "LIMIT_FRAMES", 10)
    monkeypatch.setattr(reader, "_INDICES", reader._Indices())
    assert opened(second_path) == list(range(8, 16)) == opened(second_path) and len(read) == 4
    write_video(first_path, [numbered(n) for n in range(5)], 25)
    assert opened(first_path) == list(range(5)) and opened(second_path) == list(range(8, 16))
    assert read[4:] == ["one.mp4", "other.mp4"]  # together they are over the limit: the older one had to go


@pytest.mark.slow
def test_an_hour_streams_in_the_memory_of_a_minute(tmp_path: Path) -> None:
    if not Path("/proc/self/status").exists():
        pytest.skip("the peak of a program's memory is read from /proc")
    minute = encode(tmp_path / "minute.mp4", 1500, g="50", preset="ultrafast")
    hour = rewrap(minute, tmp_path / "hour.mp4", lambda packet: True, repeats=60)
    # VmHWM starts anew with each program; getrusage would report the peak of the test that starts it.
    program = (
        "import sys\n"
        "from endofm_lab.video.reader import open_video\n"
        "n = sum(1 for _ in open_video(sys.argv[1]).stream())\n"
        "print(n, next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')))\n"
    )
    peak_kb = {}
    for path, n_frames in ((minute, 1500), (hour, 90000)):
        done = subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True, text=True, check=True)
        n, peak = map(int, done.stdout.split())
        assert n == n_frames
        peak_kb[path] = peak
    print(f"peak: minute {peak_kb[minute] / 1024:.0f} MB, hour {peak_kb[hour] / 1024:.0f} MB")
    assert peak_kb[hour] - peak_kb[minute] < 40 * 1024  # the decoders' indices of 90,000 frames


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
        numbers = [249, 0, 100, 101, 32]
        truth = {number: frame for number, frame in video.stream() if number in numbers}
        np.testing.assert_array_equal(video.read(numbers), np.stack([truth[number] for number in numbers]))


@pytest.mark.real_data
def test_a_real_folder_of_frames_is_read(real_data: Path) -> None:
    folder = real_data / "sinus" / "seq_002603"
    with open_video(folder, fps=Fraction(30)) as video:
        assert (video.info.n_frames, video.info.decoder) == (250, "frames")
        last = np.asarray(Image.open(max(folder.glob("*.jpg"))).convert("RGB"))
        np.testing.assert_array_equal(video.read([249])[0], last)
