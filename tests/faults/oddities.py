"""Inputs that are unusual rather than damaged: odd kinds of files, encodings, names, headers and numbers.

Each is written by somebody: another program, another country's computer, a careless script, or somebody with bad
intentions. The result is the true one, or the input is refused.
"""

import io
import json
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
import pandas as pd
from PIL import Image, ImageOps

from endofm_lab.data.manifest import read_manifest
from endofm_lab.data.prepare.prepare import prepare
from endofm_lab.data.prepare.recipes import list_recipes, read_recipe
from endofm_lab.errors import UserError
from endofm_lab.files import read_json
from endofm_lab.model.loading.load import load_state
from endofm_lab.video.clips import ClipSpec
from endofm_lab.video.reader import open_video, write_video
from tests.faults.campaign import Case
from tests.video.recordings import encode, number_in, numbered

Attempt = Callable[[Path, np.random.Generator, Any], bool]  # folder to work in, random numbers, which form
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
        again = [number_in(frame) for frame in video.read(range(n - 1, -1, -1))]
        return shown == list(range(n)) == again[::-1] and bool((np.diff(video.times_s) > 0).all())


def _odd_size(folder: Path, rng: np.random.Generator, form: Any) -> bool:
    height, width = (int(size) for size in rng.integers(60, 140, 2))
    suffix, codec = form
    frames = [np.full((height, width, 3), 40 * number, np.uint8) for number in range(N)]
    write_video(folder / f"v{suffix}", frames, Fraction(10), codec)
    with open_video(folder / f"v{suffix}") as video:
        found = video.read(range(N))
    return found.shape == (N, height, width, 3) and [round(f.mean() / 40) for f in found] == list(range(N))


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
    found = read_manifest(prepared.manifest).table["video"]
    return sorted(Path(cell).name for cell in found) == ["p0_0.png", "p1_1.png", "p2_2.png"]


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
        found = picture.read([0])[0]
    truth = np.asarray(pixels.convert(mode).convert("RGB"), int)
    return bool(np.abs(found - truth).mean() < (12 if suffix == ".jpg" else 1)) and number_in(found) == 5


def _turned(folder: Path, rng: np.random.Generator, form: Any) -> bool:
    orientation, suffix = form
    pixels = Image.fromarray(numbered(9))
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels.save(folder / f"a{suffix}", exif=exif)
    with open_video(folder / f"a{suffix}") as picture:
        found = picture.read([0])[0]
    with Image.open(folder / f"a{suffix}") as stored:
        return bool(np.array_equal(found, np.asarray(ImageOps.exif_transpose(stored).convert("RGB"))))


def _several(folder: Path, rng: np.random.Generator, form: Any) -> bool:
    first, *more = (Image.fromarray(numbered(number)) for number in range(3))
    first.save(folder / f"a{form}", save_all=True, append_images=more)
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


TABLE = "video,start_s,end_s,label,patient,dataset,split\na.mp4,0,1,x,p1,d,train\nb.mp4,0,1,ü,p2,d,test\n"


HEAD, FIRST, SECOND, _ = TABLE.split("\n")
CSV = {
    "bom": TABLE.encode("utf-8-sig"),
    "utf-16": TABLE.encode("utf-16"),
    "latin-1": TABLE.encode("latin-1"),
    "crlf": TABLE.replace("\n", "\r\n").encode(),
    "cr": TABLE.replace("\n", "\r").encode(),
    "mixed ends": f"{HEAD}\r\n{FIRST}\n{SECOND}".encode(),
    "nul": TABLE.replace("x", "x\0").encode(),
    "nul line": f"{HEAD}\n{FIRST}\n\0\n{SECOND}\n".encode(),
    "semicolons": TABLE.replace(",", ";").encode(),
    "tabs": TABLE.replace(",", "\t").encode(),
    "twice": TABLE.replace("dataset", "label").encode(),
    "blank lines": TABLE.replace("\n", "\n\n").encode(),
    "blanks": f"{HEAD}\n{FIRST}\n   \n{SECOND}\n".encode(),
    "spaces in head": TABLE.replace(",label", ", label").encode(),
    "capitals": TABLE.replace("label", "Label").encode(),
    "header only": f"{HEAD}\n".encode(),
    "open quote": TABLE.replace("x", '"x').encode(),
    "quoted": TABLE.replace("x", '"x"').encode(),
    "quoted line": TABLE.replace("x", '"x\ny"').encode(),
    "wide": TABLE.replace("x", "x" * 200_000).encode(),
    "control": TABLE.replace("x", "x\x0b\x1c\u2028").encode(),
    "comment": f"# made by hand\n{TABLE}".encode(),
    "index": f",{HEAD}\n0,{FIRST}\n1,{SECOND}\n".encode(),
    "nan": TABLE.replace(",0,1,x", ",nan,1,x").encode(),
    "infinite": TABLE.replace(",0,1,x", ",0,inf,x").encode(),
    "exponent": TABLE.replace(",0,1,x", ",0,1e3,x").encode(),
    "comma": TABLE.replace(",0,1,x", ',"0,5",1,x').encode(),
    "underscore": TABLE.replace(",0,1,x", ",0,1_000,x").encode(),
    "digits": TABLE.replace(",0,1,x", ",0,١,x").encode(),
    "na": TABLE.replace("x,p1", "NA,null").encode(),
    "binary": bytes(range(256)),
    "parquet": b"PAR1",
}  # fmt: skip


def _csv(folder: Path, rng: np.random.Generator, form: Any) -> bool:
    name = form
    (folder / "m.csv").write_bytes(CSV[name])
    table = read_manifest(folder / "m.csv").table
    label = {
        "quoted line": "x\ny", "nul": "x\0", "wide": "x" * 200_000, "control": "x\x0b\x1c\u2028", "na": "NA",
    }.get(name, "x")  # fmt: skip
    return (
        name not in ("twice", "semicolons", "tabs", "spaces in head", "capitals", "utf-16", "binary", "open quote")
        and table["label"].tolist() == [label, "ü"]
        and table["end_s"].tolist() == [1000.0 if name in ("exponent", "underscore") else 1.0, 1.0]
        and table["patient"].tolist() == ["null" if name == "na" else "p1", "p2"]
    )


def _parquet(folder: Path, rng: np.random.Generator, form: Any) -> bool:
    """Tables of the right columns and unusual types: the same manifest as with text and numbers, or refused."""
    whole = pd.read_csv(io.StringIO(TABLE))
    column = str(rng.choice(list(whole.columns)))
    changed = whole.copy()
    kind = form
    if kind == 0:
        changed[column] = changed[column].astype("category")
    elif kind == 1:
        changed[column] = [[1, 2], [3]]
    elif kind == 2:
        changed[column] = pd.to_datetime(["2020-01-01", "2021-01-01"])
    elif kind == 3:
        changed[column] = [b"a\xff", b"b"]
    elif kind == 4:
        changed[column] = [None, None]
    elif kind == 5:
        changed[column] = pd.array([1, None], "Int64")
    elif kind == 6:
        changed = changed.set_index(column)
    elif kind == 7:
        changed[column] = [True, False]
    elif kind == 8:
        changed[column] = [{"a": 1}, {"a": 2}]
    else:
        changed = changed.iloc[:0]
    changed.to_parquet(folder / "m.parquet")
    found = read_manifest(folder / "m.parquet").table
    if kind in (0, 6):
        return found[column].astype(str).tolist() == whole[column].astype(found[column].dtype).astype(str).tolist()
    return len(found) == 2 and kind not in (1, 3, 8) and all(
        found[name].astype(str).tolist() == whole[name].astype(found[name].dtype).astype(str).tolist()
        for name in whole.columns if name != column
    )  # fmt: skip


YAML = (
    "bomb",
    "tag",
    "duplicate key",
    "two documents",
    "deep",
    "bom",
    "utf-16",
    "tabs",
    "nul",
    "merge",
    "recursive",
    "empty",
    "list",
    "crlf",
)


def _yaml(folder: Path, rng: np.random.Generator, form: Any) -> bool:
    path = list_recipes()[0].path
    text = path.read_text(encoding="utf-8")
    bomb = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
        f"{b}: &{b} [{','.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefghi", "bcdefghij", strict=True)
    )
    first = text[text.index("name:") :].splitlines()[0]
    forms = {
        "bomb": (bomb + text).encode(),
        "tag": (text + "\nx: !!python/object/apply:os.system [true]\n").encode(),
        "duplicate key": (text + f"\n{first.split(':')[0]}: another\n").encode(),
        "two documents": (text + "\n---\nname: b\n").encode(),
        "deep": ("a: " + "[" * 100_000).encode(),
        "bom": text.encode("utf-8-sig"),
        "utf-16": text.encode("utf-16"),
        "tabs": text.replace("  ", "\t").encode(),
        "nul": (text + "\0").encode(),
        "merge": (text + "\n<<: {name: other}\n").encode(),
        "recursive": ("a: &a [*a]\n" + text).encode(),
        "empty": b"",
        "list": b"- a\n",
        "crlf": text.replace("\n", "\r\n").encode(),
    }
    name = form
    (folder / path.name).write_bytes(forms[name])
    recipe = read_recipe(folder / path.name)
    return name in ("bom", "utf-16", "crlf", "merge") and recipe.facts == read_recipe(path).facts


JSON = [
    '{"a": 1, "a": 2}', '{"a": NaN}', '{"a": -Infinity}', "[" * 100_000, '{"a": 1} x', '{"a": 1e999}', "",
    '{"a": "\\ud800"}', "{'a': 1}", '\ufeff{"a": 1}', '{"a": 1,}', '{"a": ' + "9" * 5000 + "}", "\0",
]  # fmt: skip


def _json(folder: Path, rng: np.random.Generator, form: Any) -> bool:
    text = str(form)
    (folder / "a.json").write_bytes(text.encode("utf-16" if rng.random() < 0.1 else "utf-8"))
    read_json(folder / "a.json")
    return text == '{"a": "\\ud800"}'


FOUR = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
HEADERS: list[tuple[bytes, bytes]] = [
    (json.dumps({"a": FOUR, "b": FOUR}).encode(), bytes(4)),  # overlapping
    (json.dumps({"a": FOUR, "b": {**FOUR, "data_offsets": [2, 6]}}).encode(), bytes(6)),
    (json.dumps({"a": {**FOUR, "data_offsets": [4, 8]}}).encode(), bytes(8)),  # a gap
    (json.dumps({"a": {**FOUR, "data_offsets": [4, 0]}}).encode(), bytes(4)),
    (json.dumps({"a": {**FOUR, "shape": [1 << 62, 8]}}).encode(), bytes(4)),
    (json.dumps({"a": {**FOUR, "shape": [-1]}}).encode(), bytes(4)),
    (json.dumps({"a": {**FOUR, "dtype": "X9"}}).encode(), bytes(4)),
    (b'{"a": {"dtype":"F32","shape":[1],"data_offsets":[0,4]}, "a": {"dtype":"I32","shape":[1],"data_offsets":[0,4]}}',
     bytes(4)),
    (json.dumps({"a": FOUR}).encode(), bytes(3)),
    (json.dumps({"a": FOUR}).encode(), bytes(5)),
    (json.dumps({"__metadata__": {"a": 1}, "a": FOUR}).encode(), bytes(4)),
    (b"{" * 1000, b""), (b"{}", b""), (b'{"a": null}', b""), (b"\xff\xfe{", b""),
]  # fmt: skip


def _safetensors(folder: Path, rng: np.random.Generator, form: Any) -> bool:
    header, data = HEADERS[form]
    length = len(header) if rng.random() < 0.8 else (1 << 62, 1 << 31, 0, 100_000_001)[int(rng.integers(4))]
    (folder / "a.safetensors").write_bytes(struct.pack("<Q", length) + header + data)
    load_state(folder / "a.safetensors")
    return False


NUMBERS = (
    float("nan"),
    float("inf"),
    -float("inf"),
    -1,
    0,
    -0.5,
    1e300,
    10**30,
    "",
    "8",
    None,
    True,
    [],
    b"1",
    2.5,
    1 << 40,
)


def _argument(folder: Path, rng: np.random.Generator, form: Any) -> bool:
    """Numbers that nobody means in calls of the library."""
    name, value = form
    for number in range(2):
        Image.fromarray(numbered(number)).save(folder / f"{number}.png")
    frames = [numbered(number) for number in range(2)]
    calls: dict[str, Callable[[], Any]] = {
        "fps": lambda: open_video(folder, fps=value).info.duration_s,
        "read": lambda: open_video(folder).read([value]),
        "stream": lambda: list(open_video(folder).stream(value)),
        "clip frames": lambda: ClipSpec(n_frames=value, stride=1),
        "clip stride": lambda: ClipSpec(stride=value),
        "clip fps": lambda: ClipSpec(fps=value),
        "clip seconds": lambda: ClipSpec(duration_s=value),
        "written rate": lambda: write_video(folder / "a.mp4", frames, value),
    }
    try:
        calls[name]()
    except (TypeError, ValueError) as error:
        if isinstance(value, (str, bytes, list)) or value is None or isinstance(error, UserError):
            raise UserError("A value of another type is a mistake in the caller's program.") from error
        raise
    return value in (True, 0, 2.5, 1e300, None, []) or value == 1 << 40


KINDS = ("pipe", "device", "folder", "loop", "empty", "dangling")
SUFFIXES = (".mp4", ".png", ".csv", ".json", ".yaml", ".pth", ".safetensors", "")
BOXES = (b"moov", b"trak", b"mdia", b"stbl", b"stsz", b"stco", b"stts", b"stsc", b"avcC", b"mvhd", b"tkhd",
         b"\x16\x54\xae\x6b", b"\x15\x49\xa9\x66", b"\x1f\x43\xb6\x75")  # fmt: skip
LENGTHS = (b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x7f\xff\xff\xff", b"\0\0\0\1", b"\0\0\0\x09")
ARGUMENTS = ("fps", "read", "stream", "clip frames", "clip stride", "clip fps", "clip seconds", "written rate")

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
    "csv": (_csv, CSV),
    "parquet": (_parquet, range(10)),
    "yaml": (_yaml, YAML),
    "json": (_json, JSON),
    "safetensors": (_safetensors, range(len(HEADERS))),
    "argument": (_argument, list(product(ARGUMENTS, NUMBERS))),
}
