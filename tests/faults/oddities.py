"""Inputs that are unusual rather than damaged: odd kinds of files, encodings, names, headers and numbers.

Each is written by somebody: another program, another country's computer, a careless script, or somebody with bad
intentions. The result is the true one, or the input is refused.
"""

import os
import struct
import zlib
from collections.abc import Callable, Iterator
from fractions import Fraction
from functools import partial
from itertools import count, product
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image, ImageOps

from endofm_lab.data.manifest import read_manifest
from endofm_lab.data.prepare.prepare import prepare
from endofm_lab.data.prepare.recipes import read_recipe
from endofm_lab.files import read_json
from endofm_lab.model.loading.load import load_state
from endofm_lab.video.reader import open_video, write_video
from tests.faults import odd_texts
from tests.faults.campaign import Case
from tests.faults.odd_texts import Attempt
from tests.video.recordings import encode, number_in, numbered

N = 6
IN_TREES = ("pipe.png", "pipe.csv", "loop.png", "up", "folder.png", "wide.png", "a\nb.png", "zero.mp4")
NAMES = (
    "über \u202eagfx.mp4", "a\nb.mp4", "שלום.mp4", "-rf.mp4", "a'b\"c.mp4", "%d.mp4", "a b&c;d.mp4", "e\u0301.mp4",
    "*.mp4", "[0-9].mp4", "x" * 200 + ".mp4", "C:\\a.mp4", "http:a.mp4", "concat:a.mp4", " .mp4", "😀.mp4",
    "a.mp4.part.mp4",
)  # fmt: skip


def cases(folder: Path, seed: int) -> Iterator[Case]:
    """The odd inputs in turn; what is drawn in them differs from turn to turn."""
    for turn in count():
        name = list(ODDITIES)[turn % len(ODDITIES)]
        attempt, forms = ODDITIES[name]
        form, rng = list(forms)[turn // len(ODDITIES) % len(forms)], np.random.default_rng([seed, turn])
        yield Case(f"{name}, {form!r:.60}, turn {turn}", partial(_tried, attempt, folder / str(turn), rng, form))


def _tried(attempt: Attempt, folder: Path, rng: np.random.Generator, form: Any) -> bool:
    folder.mkdir()
    return attempt(folder, rng, form)


def _numbers(path: Path, n: int = N) -> bool:
    """Whether a video shows the numbers from 0 on, by stream and by single reading."""
    with open_video(path) as video:
        shown = [number_in(frame) for _, frame in video.stream()]
        backwards = [number_in(frame) for frame in video.read(range(n - 1, -1, -1))]
        return shown == list(range(n)) == backwards[::-1] and bool((np.diff(video.times_s) > 0).all())


def _odd_size(folder: Path, rng: np.random.Generator, form: Any) -> bool:
    height, width = (int(size) for size in rng.integers(60, 140, 2))
    suffix, codec = form
    frames = [np.full((height, width, 3), 40 * number, np.uint8) for number in range(N)]
    write_video(folder / f"v{suffix}", frames, Fraction(10), codec)
    with open_video(folder / f"v{suffix}") as video:
        decoded = video.read(range(N))
    return decoded.shape == (N, height, width, 3) and [round(f.mean() / 40) for f in decoded] == list(range(N))


def _uneven(folder: Path, rng: np.random.Generator, form: Any) -> bool:
    times = np.cumsum(rng.integers(20, 400, N)) + int(rng.integers(-2000, 500))
    path = encode(folder / f"v{form}", N, times_ms=[int(at) for at in times], bf="0")
    with open_video(path) as video:
        shown = [number_in(frame) for _, frame in video.stream()]
        # Frames before 0 are not shown; what is shown keeps its distances.
        kept = times[N - len(shown) :]
        return shown == list(range(N))[N - len(shown) :] and np.allclose(
            video.times_s, (kept - kept[0]) / 1e3, atol=2e-3
        )


def _named(folder: Path, rng: np.random.Generator, form: Any) -> bool:
    path = folder / form
    write_video(path, [numbered(number) for number in range(N)], 10)
    return _numbers(path)


def _special(folder: Path, rng: np.random.Generator, form: Any) -> bool:
    """Something that is no file where a file is expected; a pipe must not be waited for."""
    kind, suffix = form
    path = folder / f"a{suffix}"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "empty":
        path.write_bytes(b"")
    else:
        path.symlink_to({"device": "/dev/zero", "loop": path, "dangling": folder / "nowhere"}[kind])
    readers: dict[str, Callable[[Path], Any]] = {
        ".csv": read_manifest, ".json": read_json, ".yaml": read_recipe, ".pth": load_state, ".safetensors": load_state,
    }  # fmt: skip
    readers.get(suffix, open_video)(path)
    return False


def _inside(folder: Path, rng: np.random.Generator, form: Any) -> bool:
    """The same in the place of a frame: a frame may not be left out without a word."""
    for number in range(N):
        Image.fromarray(numbered(number)).save(folder / f"{number}.png")
    path = folder / f"{int(rng.integers(N))}.png"
    path.unlink()
    os.mkfifo(path) if form == "pipe" else path.symlink_to(path if form == "loop" else folder / "nowhere")
    with open_video(folder) as video:
        return video.info.n_frames == N


def _tree(folder: Path, rng: np.random.Generator, form: Any) -> bool:
    """Odd things in a folder that is prepared: those that cannot be read are named, none is waited for."""
    root = folder / "root"
    (root / "polyp").mkdir(parents=True)
    for number in range(3):
        Image.fromarray(numbered(number)).save(root / "polyp" / f"p{number}_{number}.png")
    for name in (form, str(rng.choice(IN_TREES))):
        path = root / "polyp" / name
        if path.exists() or path.is_symlink():
            continue
        if name.startswith("pipe"):
            os.mkfifo(path)
        elif name == "loop.png":
            path.symlink_to(path)
        elif name == "up":
            path.symlink_to(root)
        elif name == "folder.png":
            path.mkdir()
        elif name == "wide.png":
            path.write_bytes(_png(1 << 30, 1 << 30, 8))
        else:
            path.write_bytes(b"")
    prepared = prepare("private-folder", root, folder / "out", workers=1)
    videos = read_manifest(prepared.manifest).table["video"]
    return sorted(Path(cell).name for cell in videos) == ["p0_0.png", "p1_1.png", "p2_2.png"]


def _png(width: int, height: int, depth: int, colours: int = 2, data: bytes = b"") -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = struct.pack(">IIBBBBB", width, height, depth, colours, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def _deep(folder: Path, rng: np.random.Generator, form: Any) -> bool:
    """More than eight bits per channel: never cut down without a word."""
    if form == 0:  # three channels of 16 bits, which Pillow cuts to 8
        row = b"\0" + b"".join(struct.pack(">HHH", 200, 400, 4000) for _ in range(16))
        (folder / "a.png").write_bytes(_png(16, 16, 16, 2, row * 16))
        path = folder / "a.png"
    else:
        values = [
            np.full((16, 16), 3000, np.uint16),
            np.full((16, 16), 3000, np.int32),
            np.full((16, 16), 0.5, np.float32),
        ]
        path = folder / ("a.png" if form == 1 else "a.tif")
        Image.fromarray(values[form - 1]).save(path)
    with open_video(path) as picture:
        picture.read([0])
    return False


def _picture_mode(folder: Path, rng: np.random.Generator, form: Any) -> bool:
    pixels = Image.fromarray(numbered(5))
    mode, suffix = form, {"CMYK": ".jpg", "YCbCr": ".jpg"}.get(form, ".png")
    pixels.convert(mode).save(folder / f"a{suffix}", **({"quality": 95} if suffix == ".jpg" else {}))
    with open_video(folder / f"a{suffix}") as picture:
        frame = picture.read([0])[0]
    truth = np.asarray(pixels.convert(mode).convert("RGB"), int)
    return bool(np.abs(frame - truth).mean() < (12 if suffix == ".jpg" else 1)) and number_in(frame) == 5


def _turned(folder: Path, rng: np.random.Generator, form: Any) -> bool:
    orientation, suffix = form
    pixels = Image.fromarray(numbered(9))
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels.save(folder / f"a{suffix}", exif=exif)
    with open_video(folder / f"a{suffix}") as picture:
        frame = picture.read([0])[0]
    with Image.open(folder / f"a{suffix}") as stored:
        return bool(np.array_equal(frame, np.asarray(ImageOps.exif_transpose(stored).convert("RGB"))))


def _several(folder: Path, rng: np.random.Generator, form: Any) -> bool:
    first, *others = (Image.fromarray(numbered(number)) for number in range(3))
    first.save(folder / f"a{form}", save_all=True, append_images=others)
    with open_video(folder / f"a{form}") as picture:
        picture.read([0])
    return False


def _huge_picture(folder: Path, rng: np.random.Generator, form: Any) -> bool:
    (folder / "a.png").write_bytes(_png(*form, 8, 2, b"\0" * 100))
    with open_video(folder / "a.png") as picture:
        picture.read([0])
    return False


def _two_streams(folder: Path, rng: np.random.Generator, form: Any) -> bool:
    """Two pictures side by side in one file: the first stream is shown, as players do."""
    path = folder / f"a{form}"
    with av.open(str(path), "w") as target:
        streams = [target.add_stream("libx264", rate=10) for _ in range(2)]
        for stream in streams:
            stream.width, stream.height, stream.pix_fmt = 128, 96, "yuv420p"
        for number in range(N):
            for offset, stream in zip((0, 100), streams, strict=True):
                target.mux(stream.encode(av.VideoFrame.from_ndarray(numbered(number + offset), format="rgb24")))
        for stream in streams:
            target.mux(stream.encode())
    return _numbers(path)


def _boxes(folder: Path, rng: np.random.Generator, form: Any) -> bool:
    """A length in a box of MP4 or an element of Matroska that is larger than any disk, zero or all ones."""
    name, length = form
    path = encode(folder / ("a.mp4" if name.isascii() else "a.mkv"), N, g="3")
    data = bytearray(path.read_bytes())
    at = data.find(name) + (-4 if name.isascii() else 4)
    data[at : at + 4] = length
    path.write_bytes(data)
    return _numbers(path)


KINDS = ("pipe", "device", "folder", "loop", "empty", "dangling")
SUFFIXES = (".mp4", ".png", ".csv", ".json", ".yaml", ".pth", ".safetensors", "")
BOXES = (b"moov", b"trak", b"mdia", b"stbl", b"stsz", b"stco", b"stts", b"stsc", b"avcC", b"mvhd", b"tkhd",
         b"\x16\x54\xae\x6b", b"\x15\x49\xa9\x66", b"\x1f\x43\xb6\x75")  # fmt: skip
LENGTHS = (b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x7f\xff\xff\xff", b"\0\0\0\1", b"\0\0\0\x09")

ODDITIES: dict[str, tuple[Attempt, Any]] = {
    "odd size": (
        _odd_size,
        ((".mp4", "h264"), (".mkv", "ffv1"), (".avi", "mpeg4"), (".webm", "vp9"), (".avi", "ffv1")),
    ),
    "uneven times": (_uneven, (".mp4", ".mkv", ".mov", ".ts")),
    "name": (_named, NAMES),
    "no file": (_special, list(product(KINDS, SUFFIXES))),
    "no frame": (_inside, ("pipe", "loop", "dangling")),
    "tree": (_tree, IN_TREES),
    "more than 8 bits": (_deep, range(4)),
    "colours": (_picture_mode, ("P", "L", "1", "LA", "RGBA", "CMYK", "YCbCr")),
    "orientation": (_turned, list(product(range(1, 9), (".jpg", ".png", ".webp", ".tif")))),
    "several": (_several, (".png", ".webp", ".tif", ".tiff")),
    "huge picture": (_huge_picture, ((1 << 30, 1 << 30), (1 << 15, 1 << 15), (1 << 31, 1), (60_000, 60_000), (0, 5))),
    "two streams": (_two_streams, (".mkv", ".mp4")),
    "lengths": (_boxes, list(product(BOXES, LENGTHS))),
    **odd_texts.ODDITIES,
}
