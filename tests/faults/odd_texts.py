"""Tables, YAML, JSON, headers of weights and numbers as other programs and careless scripts write them."""

import io
import json
import struct
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from endofm_lab.data.manifest import read_manifest
from endofm_lab.data.prepare.recipes import list_recipes, read_recipe
from endofm_lab.errors import UserError
from endofm_lab.files import read_json
from endofm_lab.model.loading.load import load_state
from endofm_lab.video.clips import ClipSpec
from endofm_lab.video.reader import open_video, write_video
from tests.video.recordings import numbered

Attempt = Callable[[Path, np.random.Generator, Any], bool]  # folder to work in, random numbers, which form
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
    table = read_manifest(folder / "m.parquet").table
    if kind in (0, 6):
        return table[column].astype(str).tolist() == whole[column].astype(table[column].dtype).astype(str).tolist()
    return len(table) == 2 and kind not in (1, 3, 8) and all(
        table[name].astype(str).tolist() == whole[name].astype(table[name].dtype).astype(str).tolist()
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


ARGUMENTS = ("fps", "read", "stream", "clip frames", "clip stride", "clip fps", "clip seconds", "written rate")

ODDITIES: dict[str, tuple[Attempt, Any]] = {
    "csv": (_csv, CSV),
    "parquet": (_parquet, range(10)),
    "yaml": (_yaml, YAML),
    "json": (_json, JSON),
    "safetensors": (_safetensors, range(len(HEADERS))),
    "argument": (_argument, list(product(ARGUMENTS, NUMBERS))),
}
