"""What is written comes back, and nothing half-written is left."""

import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from endofm_lab.errors import UserError
from endofm_lab.video.phantom import PhantomSpec, render
from endofm_lab.video.reader import open_video, write_video
from tests.video.recordings import numbered, numbers_in


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


FORMATS = (
    ("a.mp4", "h264"),
    ("a.mkv", "h264"),
    ("a.mov", "hevc"),
    ("a.webm", "vp9"),
    ("b.mp4", "av1"),
    ("a.avi", "mpeg4"),
    ("b.avi", "mjpeg"),
    ("b.mkv", "ffv1"),
)


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which another process with another number of threads has written one clip in all formats."""
    folder = tmp_path_factory.mktemp("elsewhere")
    program = (
        "import os, sys\n"
        "os.cpu_count = lambda: 1\n"
        "if hasattr(os, 'sched_setaffinity'):\n"
        "    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:1])\n"
        "from endofm_lab.video.phantom import PhantomSpec, render\n"
        "from endofm_lab.video.reader import write_video\n"
        "clip = render(PhantomSpec(seed=1, finding='polyp', n_frames=24, size_px=96))\n"
        f"for name, codec in {FORMATS}:\n"
        "    write_video(f'{sys.argv[1]}/{name}', clip.frames, 24, codec, generated=True)\n"
    )
    threads = {"OMP_NUM_THREADS": "3", "MKL_NUM_THREADS": "3"}
    subprocess.run([sys.executable, "-c", program, str(folder)], check=True, env={**os.environ, **threads})
    return folder


@pytest.mark.parametrize(("name", "codec"), FORMATS)
def test_another_process_with_another_number_of_threads_writes_the_same_bytes(
    elsewhere: Path, tmp_path: Path, name: str, codec: str
) -> None:
    clip = render(PhantomSpec(seed=1, finding="polyp", n_frames=24, size_px=96))
    write_video(tmp_path / name, clip.frames, 24, codec, generated=True)
    assert (tmp_path / name).read_bytes() == (elsewhere / name).read_bytes()


@pytest.mark.parametrize("name", ["a.mp4", "a.mov", "a.mkv", "a.webm", "a.avi"])
def test_a_generated_video_says_so_when_it_is_read_back(tmp_path: Path, name: str) -> None:
    for generated in (False, True):
        codec = "vp9" if name == "a.webm" else "h264"
        write_video(tmp_path / name, [numbered(k) for k in range(3)], 25, codec, generated=generated)
        with open_video(tmp_path / name) as video:
            assert video.info.generated is generated


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
    with pytest.raises(UserError, match="like the first"):
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
