"""Spoiled images, and folders of frames and masks that are not what they should be."""

import io
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count, cycle
from pathlib import Path

import numpy as np
from PIL import Image

from endofm_lab.video.masks import check_masks
from endofm_lab.video.reader import open_video
from tests.faults.campaign import Case
from tests.faults.videos import mutations
from tests.video.recordings import number_in, numbered

FORMATS = {".png": {}, ".jpg": {"quality": 95}, ".bmp": {}, ".tif": {"compression": "raw"}, ".webp": {"lossless": True}}
# A format without checksums cannot tell a changed pixel; what changes its length or its structure can be told.
STRUCTURAL = ("truncate", "append")


def images(folder: Path, seed: int) -> Iterator[Case]:
    """Spoiled images of every kind: the pixels of the whole file, or a refusal."""
    streams = []
    for suffix, options in FORMATS.items():
        path = folder / f"whole{suffix}"
        Image.fromarray(numbered(77)).save(path, **options)
        copies = mutations(path, seed)
        if suffix != ".png":
            copies = (copy for copy in copies if copy[0].startswith(STRUCTURAL))
        streams.append((folder / f"spoiled{suffix}", copies, np.asarray(Image.open(path).convert("RGB"))))
    for path, copies, truth in cycle(streams):
        change, data = next(copies)
        yield Case(f"{path.name}, {change}", partial(_same_pixels, path, data, truth))


def _same_pixels(path: Path, data: bytes, truth: np.ndarray) -> bool:
    path.write_bytes(data)
    with open_video(path) as picture:
        return picture.info.n_frames == 1 and bool(np.array_equal(picture.read([0])[0], truth))


N = 8


def folders(folder: Path, seed: int) -> Iterator[Case]:
    """Folders of numbered frames and of masks, changed as by hand: every mask stays with its frame, or a refusal."""
    rng = np.random.default_rng(seed)
    whole = folder / "whole"
    for kind in ("frames", "masks"):
        (whole / kind).mkdir(parents=True)
        for number in range(N):
            Image.fromarray(numbered(number)).save(whole / kind / f"{number:04d}.png")
    for turn in count():
        names = [list(CHANGES)[turn % len(CHANGES)], *rng.choice(list(CHANGES), turn // len(CHANGES) % 3)]
        places = rng.integers(N, size=len(names)).tolist()
        yield Case(" and ".join(f"{n} {p}" for n, p in zip(names, places, strict=True)),
                   partial(_paired, whole, folder / "case", list(zip(names, places, strict=True))))  # fmt: skip


def _paired(whole: Path, copy: Path, changes: list[tuple[str, int]]) -> bool:
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(whole, copy, symlinks=True)
    for name, place in changes:
        try:
            CHANGES[name](copy / "frames", copy / "masks", place)
        except FileNotFoundError:  # an earlier change took the file away
            continue
    with open_video(copy / "frames") as frames, open_video(copy / "masks") as masks:
        check_masks(frames, masks)
        shown = [[number_in(frame) for _, frame in reader.stream()] for reader in (frames, masks)]
        names = [[file.stem for file in reader.files] for reader in (frames, masks)]
    expected = [int("".join(c for c in name if c.isdigit()) or -1) for name in names[0]]
    return shown[0] == shown[1] and names[0] == names[1] and shown[0] == expected and shown[0] == sorted(shown[0])


def _file(folder: Path, place: int) -> Path:
    return folder / f"{place:04d}.png"


def _noisy(path: Path) -> None:
    if not path.exists() or not path.stat().st_size:
        raise FileNotFoundError(path)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 16
    path.write_bytes(data)


def _turned(path: Path) -> None:
    """The same picture, stored on its side with a note in its EXIF that it has to be turned; a broken one stays."""
    try:
        with Image.open(path) as picture:
            pixels = picture.transpose(Image.Transpose.ROTATE_90)
            exif = picture.getexif()
    except OSError:  # spoiled before
        return
    exif[0x0112] = 6
    written = io.BytesIO()
    pixels.save(written, "PNG", exif=exif)
    path.write_bytes(written.getvalue())


def _resized(path: Path) -> None:
    with Image.open(path) as picture:
        smaller = picture.resize((64, 48))
    smaller.save(path)


def _animated(path: Path) -> None:
    if not path.exists():
        raise FileNotFoundError(path)
    first, *others = (Image.fromarray(numbered(number)) for number in (int(path.stem), 9))
    first.save(path, save_all=True, append_images=others)


def _looped(path: Path) -> None:
    path.unlink()
    path.symlink_to(path)


def _dangling(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.with_name("nowhere.png"))


CHANGES: dict[str, Callable[[Path, Path, int], object]] = {
    "mask removed": lambda frames, masks, at: _file(masks, at).unlink(),
    "frame removed": lambda frames, masks, at: _file(frames, at).unlink(),
    "both removed": lambda frames, masks, at: (_file(masks, at).unlink(), _file(frames, at).unlink()),
    "mask added": lambda frames, masks, at: shutil.copy(_file(masks, at), masks / "0099.png"),
    "mask renamed": lambda frames, masks, at: _file(masks, at).rename(masks / f"{at + 50:04d}.png"),
    "second format": lambda frames, masks, at: shutil.copy(_file(frames, at), frames / f"{at:04d}.bmp"),
    "second name": lambda frames, masks, at: shutil.copy(_file(frames, at), frames / f"{at}.png"),
    "empty frame": lambda frames, masks, at: _file(frames, at).write_bytes(b""),
    "text as mask": lambda frames, masks, at: _file(masks, at).write_text("no picture"),
    "bit of a frame": lambda frames, masks, at: _noisy(_file(frames, at)),
    "bit of a mask": lambda frames, masks, at: _noisy(_file(masks, at)),
    "frame turned by EXIF": lambda frames, masks, at: _turned(_file(frames, at)),
    "frame resized": lambda frames, masks, at: _resized(_file(frames, at)),
    "mask resized": lambda frames, masks, at: _resized(_file(masks, at)),
    "animated frame": lambda frames, masks, at: _animated(_file(frames, at)),
    "link to itself": lambda frames, masks, at: _looped(_file(frames, at)),
    "dangling link": lambda frames, masks, at: _dangling(_file(masks, at)),
    "folder in it": lambda frames, masks, at: (frames / f"folder{at}.png").mkdir(),
    "hidden file": lambda frames, masks, at: (frames / f".{at}.png").write_text("of the system"),
    "note beside": lambda frames, masks, at: (frames / "notes.txt").write_text("a note"),
    "masks empty": lambda frames, masks, at: [path.unlink() for path in masks.iterdir()],
    "masks gone": lambda frames, masks, at: shutil.rmtree(masks),
}
