"""Folders of frames and single images."""

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from endofm_lab.errors import UserError, VideoError
from endofm_lab.video.reader import open_video
from tests.video.conftest import numbered, numbers_in, refused


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
    assert "130x100" in refused_inside(folder, "1.png").reason


def test_broken_images_are_named(tmp_path: Path) -> None:
    folder = _folder(tmp_path / "frames", ["0.jpg", "1.jpg", "2.jpg"])
    whole = (folder / "1.jpg").read_bytes()
    (folder / "1.jpg").write_bytes(b"no image")
    refused_inside(folder, "1.jpg")
    (folder / "1.jpg").write_bytes(whole[: len(whole) // 2])  # the header is good, the pixels end early
    with open_video(folder) as video, pytest.raises(VideoError, match=r"1\.jpg.*cannot be decoded"):
        video.read([0, 1])


def test_sixteen_bit_images_are_refused_and_not_cut_to_eight(tmp_path: Path) -> None:
    Image.fromarray(np.full((8, 8), 40_000, np.uint16)).save(tmp_path / "deep.png")
    assert "8-bit" in refused(tmp_path / "deep.png").reason


def test_a_folder_without_images_isrefused(tmp_path: Path) -> None:
    assert "no image" in refused(tmp_path).reason


@pytest.mark.parametrize("fps", [0, -1, Fraction(-1, 2)])
def test_a_frame_rate_of_zero_isrefused(tmp_path: Path, fps: Fraction) -> None:
    with pytest.raises(UserError, match="above 0"):
        open_video(_folder(tmp_path / "frames", ["0.png"]), fps=fps)


def refused_inside(folder: Path, name: str) -> VideoError:
    error = refused(folder)
    assert Path(error.path).name == name
    return error
