"""Folders of frames and single images."""

import os
import struct
import sys
import zlib
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from endofm_lab.errors import UserError, VideoError
from endofm_lab.video import reader
from endofm_lab.video.images import GENERATED
from endofm_lab.video.masks import check_masks
from endofm_lab.video.reader import open_video, write_video
from tests.video.recordings import numbered, numbers_in, refused


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
    header = struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0)  # three channels of 16 bits
    rows = zlib.compress(b"\0" + struct.pack(">6H", *range(0, 6000, 1000)))
    chunks = [(b"IHDR", header), (b"IDAT", rows), (b"IEND", b"")]
    data = [struct.pack(">I", len(b)) + k + b + struct.pack(">I", zlib.crc32(k + b)) for k, b in chunks]
    (tmp_path / "colours.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(data))
    assert "8-bit" in refused(tmp_path / "colours.png").reason


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no pipes in folders")
@pytest.mark.parametrize("kind", ["missing", "loop", "pipe"])
def test_a_frame_that_is_no_file_is_refused_and_not_left_out(tmp_path: Path, kind: str) -> None:
    folder = _folder(tmp_path / "frames", ["1.png", "3.png"])
    if kind == "pipe":
        os.mkfifo(folder / "2.png")
    else:
        (folder / "2.png").symlink_to(folder / ("2.png" if kind == "loop" else "nowhere.png"))
    refused_inside(folder, "2.png")
    (folder / "2.png").unlink()
    (folder / "2.png").mkdir()
    with open_video(folder) as video:
        assert video.info.n_frames == 2


@pytest.mark.parametrize("number", [0.5, float("nan"), 1e300, "0", True])
def test_frames_are_read_by_whole_numbers(tmp_path: Path, number: object) -> None:
    with open_video(_folder(tmp_path / "frames", ["1.png", "2.png"])) as video:
        assert len(video.read([1.0, 0.0])) == 2 and len(video.read([])) == 0
        with pytest.raises(UserError, match="whole numbers"):
            video.read([number])


@pytest.mark.parametrize("names", [["001.png", "001.jpg"], ["frame1.png", "frame01.png"], ["a.png", "a.bmp"]])
def test_two_images_for_one_place_are_refused(tmp_path: Path, names: list[str]) -> None:
    reason = refused(_folder(tmp_path / "frames", [*names, "5.png"])).reason
    assert "same place" in reason and all(name in reason for name in names)


@pytest.mark.parametrize("suffix", [".png", ".webp", ".tif"])
def test_an_animated_image_is_refused_and_not_its_first_picture_taken(tmp_path: Path, suffix: str) -> None:
    pictures = [Image.fromarray(numbered(number)) for number in range(3)]
    pictures[0].save(tmp_path / f"a{suffix}", save_all=True, append_images=pictures[1:])
    assert "3 pictures" in refused(tmp_path / f"a{suffix}").reason
    folder = _folder(tmp_path / "frames", [f"{number}{suffix}" for number in range(2)])
    (tmp_path / f"a{suffix}").rename(folder / f"2{suffix}")
    refused_inside(folder, f"2{suffix}")


def test_names_with_odd_digits_are_read(tmp_path: Path) -> None:
    with open_video(_folder(tmp_path / "frames", ["x².png", "x٣.png", "9" * 200 + ".png"])) as video:
        assert video.info.n_frames == 3 and len(video.files) == 3


def test_masks_are_paired_by_name(tmp_path: Path) -> None:
    frames = open_video(_folder(tmp_path / "frames", [f"{k}.jpg" for k in range(1, 6)]))
    check_masks(frames, open_video(_folder(tmp_path / "same", [f"{k}.png" for k in range(1, 6)])))
    check_masks(frames, open_video(_folder(tmp_path / "numbers", [f"mask_{k:03d}.png" for k in range(1, 6)])))
    shifted = open_video(_folder(tmp_path / "shifted", [f"{k}.png" for k in (1, 2, 4, 5, 6)]))
    with pytest.raises(VideoError, match=r"Frame 3\.jpg has no mask and mask 6\.png has no frame"):
        check_masks(frames, shifted)
    with pytest.raises(VideoError, match=r"Frame 3\.jpg has no mask. There are 4 masks for 5 frames"):
        check_masks(frames, open_video(_folder(tmp_path / "fewer", [f"{k}.png" for k in (1, 2, 4, 5)])))
    masks = open_video(_folder(tmp_path / "named", [f"{k}.png" for k in "abcde"]))
    with pytest.raises(VideoError, match="name of its frame"):
        check_masks(frames, masks)
    check_masks(*(open_video(_folder(tmp_path / name, [f"{name}.png"])) for name in ("picture", "outline")))


def test_masks_of_a_video_file_are_numbered_without_a_gap(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", [numbered(k) for k in range(5)], 25)
    video = open_video(tmp_path / "a.mp4")
    assert video.files == ()
    for first in (0, 1):
        check_masks(video, open_video(_folder(tmp_path / f"from_{first}", [f"{first + k}.png" for k in range(5)])))
    with pytest.raises(VideoError, match=r"4\.png.*without a gap"):
        check_masks(video, open_video(_folder(tmp_path / "gap", [f"{k}.png" for k in (0, 1, 2, 4, 5)])))


@pytest.mark.parametrize("turned", ["picture", "mask"])
def test_a_picture_and_a_mask_that_are_turned_apart_are_refused(tmp_path: Path, turned: str) -> None:
    """They may have one size and still not fit; nobody can tell which of the two is meant."""
    exif = Image.Exif()
    exif[0x0112] = 6
    for name in ("picture", "mask"):
        image = Image.fromarray(numbered(5, 128, 128))
        image.save(tmp_path / f"{name}.png", **({"exif": exif} if name == turned else {}))
    with pytest.raises(VideoError, match="Save both upright"):
        check_masks(open_video(tmp_path / "picture.png"), open_video(tmp_path / "mask.png"))


@pytest.mark.parametrize("name", ["a.png", "a.jpg"])
def test_a_picture_that_says_it_is_generated_is_known_as_such(tmp_path: Path, name: str) -> None:
    note = PngInfo()
    note.add_text("Comment", GENERATED)
    image = Image.fromarray(numbered(1))
    assert not open_video(_folder(tmp_path / "plain", [name])).info.generated
    image.save(tmp_path / name, **({"pnginfo": note} if name.endswith("png") else {"comment": GENERATED.encode()}))
    assert open_video(tmp_path / name).info.generated


@pytest.mark.parametrize("fps", [float("inf"), float("nan"), -1.0, 1e300, "25", None])
def test_a_frame_rate_that_is_no_number_is_refused_in_a_sentence(tmp_path: Path, fps: float) -> None:
    folder = _folder(tmp_path / "frames", ["0.png"])
    if fps is None:
        assert open_video(folder, fps=29.97).info.fps == Fraction(2997, 100)
        return
    with pytest.raises(UserError, match="above 0"):
        open_video(folder, fps=fps)
    with pytest.raises(UserError, match="above 0"):
        write_video(tmp_path / "a.mp4", [numbered(0)], fps)


def test_paths_that_cannot_be_opened_are_refused_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "link.mp4").symlink_to(tmp_path / "nowhere.mp4")
    (tmp_path / "loop.mp4").symlink_to(tmp_path / "loop.mp4")
    (tmp_path / "folder.mp4").mkdir()
    (tmp_path / "file.txt").write_text("text")
    for path, words in (
        (tmp_path / "link.mp4", "link"),
        (tmp_path / "loop.mp4", "cannot be opened"),
        (tmp_path / "folder.mp4", "no image"),
        (tmp_path / "file.txt" / "a.mp4", "no such file"),
        (tmp_path / ("a" * 5000), "letters"),
        (Path("a/" * 2500), "letters"),
        (Path("nul\0.mp4"), "cannot be opened"),
    ):
        with pytest.raises(VideoError) as error:
            open_video(path)
        assert words in str(error.value) and len(str(error.value)) < 500 and "\0" not in str(error.value)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_what_may_not_be_read_is_said(tmp_path: Path) -> None:
    folder = _folder(tmp_path / "frames", ["0.png"])
    (folder / "0.png").chmod(0)
    refused_inside(folder, "0.png")
    folder.chmod(0)
    assert "no permission to read" in refused(folder).reason
    folder.chmod(0o700)


def test_a_missing_permission_is_said_whoever_asks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_video(tmp_path / "a.mp4", [numbered(0)], 25)

    def forbidden(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(reader._Indices, "of", forbidden)
    assert "no permission to read" in refused(tmp_path / "a.mp4").reason


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
