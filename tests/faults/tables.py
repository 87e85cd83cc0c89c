"""Spoiled cards, manifests, recipes and submissions: what is written in them is read as it stands, or refused."""

import copy
import csv
import io
import json
import math
from collections.abc import Iterator
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from endofm_lab.data.manifest import read_manifest, write_manifest
from endofm_lab.data.prepare.recipes import list_recipes, read_recipe
from endofm_lab.metrics import capsule_vision
from endofm_lab.model.card import ModelCard
from endofm_lab.model.loading.load import load_model
from tests.faults.campaign import Case
from tests.faults.videos import mutations

# What somebody may write into a field, or a program that goes wrong.
VALUES = (
    None, True, -1, 0, 1e308, math.inf, math.nan, 10**30, "", "abc", "=1+1", "../../etc", "a" * 5000, [], {}, [[]],
    [1, 2, 3], ["a", "a"], {"a": 1}, "1/0", "nan", "\u0000", [None], -0.5, 3.7,
)  # fmt: skip


def spoiled(value: Any, rng: np.random.Generator) -> tuple[str, Any]:
    """A copy of nested JSON with one entry removed, renamed, added or replaced, and what was done."""
    changed = copy.deepcopy(value)
    place, at = changed, []
    while isinstance(place, dict | list) and len(place):
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        key = keys[int(rng.integers(len(keys)))]
        at.append(str(key)[:20])
        if not isinstance(place[key], dict | list) or not len(place[key]) or rng.random() < 0.3:
            break
        place = place[key]
    change = str(rng.choice(["remove", "replace", "replace", "replace", "rename", "add"]))
    if change == "remove":
        del place[key]
    elif change == "rename" and isinstance(place, dict):
        place[f"{key}s"] = place.pop(key)
    elif change == "add" and isinstance(place, dict):
        place["further"] = VALUES[int(rng.integers(len(VALUES)))]
    else:
        new = VALUES[int(rng.integers(len(VALUES)))]
        place[key] = new
        change = f"replace by {str(new)[:20]!r}"
    return f"{change} {'.'.join(at)}", changed


def same(first: Any, second: Any) -> bool:
    """Whether two JSON values are equal; NaN is itself, and whole numbers may be written as fractions."""
    if isinstance(first, dict) and isinstance(second, dict):
        return first.keys() == second.keys() and all(same(first[key], second[key]) for key in first)
    if isinstance(first, list | tuple) and isinstance(second, list | tuple):
        return len(first) == len(second) and all(map(same, first, second))
    if isinstance(first, float) and isinstance(second, float) and math.isnan(first):
        return math.isnan(second)
    return bool(first == second)


def cards(folder: Path, seed: int) -> Iterator[Case]:
    """Spoiled cards of the demo: alone read back as they stand or refused; beside sealed weights always refused."""
    demo, rng = load_model("demo"), np.random.default_rng(seed)
    value = demo.card.to_json()
    for turn in count():
        change, changed = spoiled(value, rng)
        if turn % 4 == 3:
            change, changed = f"{change}; text", _spoiled_text(json.dumps(changed), rng)
        yield Case(change, partial(_card_is_read, changed, value))


def _spoiled_text(text: str, rng: np.random.Generator) -> str:
    at, length = int(rng.integers(len(text))), int(rng.integers(1, 40))
    return text[:at] + ("" if rng.random() < 0.5 else text[at : at + length] * 2) + text[at + length :]


def _card_is_read(changed: Any, value: Any) -> bool:
    if isinstance(changed, str):
        try:
            changed = json.loads(changed)
        except ValueError:
            changed = None  # what read_card says of text that is no JSON is tried with the models
    card = ModelCard.from_json(changed).to_json()
    changed = changed if isinstance(changed, dict) else {}
    return same(card, json.loads(json.dumps({**_defaults(value), **changed}))) or _only_absent(card, changed)


def _defaults(value: dict[str, Any]) -> dict[str, Any]:
    """What a card says where an entry is left out."""
    needed = {key: value[key] for key in ("name", "backbone", "input", "clip")}
    return ModelCard.from_json(needed).to_json()


def _only_absent(card: Any, written: Any) -> bool:
    """Whether everything that is written was read, entries that say nothing (null) apart."""
    if isinstance(card, dict) and isinstance(written, dict):
        return all(item is None or (key in card and _only_absent(card[key], item)) for key, item in written.items())
    return same(card, written)


def manifests(folder: Path, seed: int) -> Iterator[Case]:
    """Spoiled manifests: the cells as another reader of CSV finds them, the table as it was in Parquet, or refused."""
    rng = np.random.default_rng(seed)
    columns = ["video", "start_s", "end_s", "label", "patient", "dataset", "split", "masks", "device"]
    rows = [
        (f"v{n}.mp4", 0.5 * n, 0.5 * n + 3, ("a", "b,c", 'd"e', "Ä|b")[n % 4], f"p{n // 2}", "made",
         ("train", "val", "test")[n % 3], "", f"d{n}")
        for n in range(12)
    ]  # fmt: skip
    whole = pd.DataFrame(rows, columns=columns)
    text, binary = folder / "manifest.csv", folder / "manifest.parquet"
    write_manifest(whole, text)
    truth = write_manifest(whole, binary).table
    (folder / "spoiled").mkdir()
    bytes_csv, bytes_parquet = mutations(text, seed), mutations(binary, seed)
    for turn in count():
        if turn % 3 == 0:
            change, data = next(bytes_csv)
            yield Case(f"csv, {change}", partial(_csv_is_read, folder / "spoiled" / "m.csv", data))
        elif turn % 3 == 1:
            table = whole.astype(object)
            row, column = int(rng.integers(len(rows))), columns[int(rng.integers(len(columns)))]
            value = VALUES[int(rng.integers(len(VALUES)))]
            table.loc[row, column] = str(value)
            data = table.to_csv(index=False).encode()
            change = f"csv, {column} of row {row + 1} is {str(value)[:20]!r}"
            yield Case(change, partial(_csv_is_read, folder / "spoiled" / "m.csv", data))
        else:
            change, data = next(bytes_parquet)
            yield Case(f"parquet, {change}", partial(_parquet_is_read, folder / "spoiled" / "m.parquet", data, truth))


def _csv_is_read(path: Path, data: bytes) -> bool:
    path.write_bytes(data)
    manifest = read_manifest(path)
    head, *rows = [row for row in csv.reader(io.StringIO(data.decode(), newline="")) if row]
    head[0] = head[0].removeprefix("\ufeff")
    if list(manifest.table.columns) != head or len(manifest) != len(rows):
        return False
    copy = read_manifest(write_manifest(manifest.table, path.with_name("again.csv")).path or path)
    if copy.fingerprint != manifest.fingerprint:
        return False
    for number, row in enumerate(rows):
        for name, cell in zip(head, row, strict=True):
            number_read = manifest.table[name][number]
            if name in ("start_s", "end_s"):
                expected = float(cell) if cell.strip() else math.nan
                if not (number_read == expected or (math.isnan(number_read) and math.isnan(expected))):
                    return False
            elif str(number_read) != cell:
                return False
    return True


def _parquet_is_read(path: Path, data: bytes, truth: pd.DataFrame) -> bool:
    path.write_bytes(data)
    return read_manifest(path).table.equals(truth)


def recipes(folder: Path, seed: int) -> Iterator[Case]:
    """Spoiled recipes of the project: the facts are those of the file, and every pattern can be asked, or refused."""
    rng = np.random.default_rng(seed)
    paths = [recipe.path for recipe in list_recipes()]
    texts = {path: mutations(path, seed) for path in paths}
    for turn in count():
        path = paths[turn % len(paths)]
        if turn % 3 == 0:
            change, data = next(texts[path])
        else:
            change, changed = spoiled(yaml.safe_load(path.read_text(encoding="utf-8")), rng)
            data = yaml.safe_dump(changed, allow_unicode=True).encode()
        yield Case(f"{path.stem}, {change}", partial(_recipe_is_read, folder / path.name, data))


def _recipe_is_read(path: Path, data: bytes) -> bool:
    path.write_bytes(data)
    recipe = read_recipe(path)
    for layout in recipe.layouts.values() if isinstance(recipe.layouts, dict) else recipe.layouts:
        for media in layout.media:
            media.path.read("patient_1/clip_0001.mp4")
    return same(recipe.facts, yaml.safe_load(data))


def scores(folder: Path, seed: int) -> Iterator[Case]:
    """Spoiled submissions: the score of the whole ones (in another order too), or refused by what is wrong."""
    rng = np.random.default_rng(seed)
    names = [f"image_{n:03d}.jpg" for n in range(40)]
    labels = folder / "labels.csv"
    table = pd.DataFrame({"image": names, "class": [capsule_vision.CLASSES[n % 10] for n in range(40)]})
    table.to_csv(labels, index=False)
    probabilities = rng.dirichlet(np.ones(10), 40)
    sheets = {}
    for suffix in (".csv", ".xlsx"):
        path = folder / f"whole{suffix}"
        capsule_vision.write_submission(path, names, probabilities)
        sheets[suffix] = (path, mutations(path, seed), capsule_vision.score_files(labels, path))
    for turn in count():
        suffix = (".csv", ".xlsx")[turn % 2]
        path, copies, truth = sheets[suffix]
        spoiled_path = folder / f"spoiled{suffix}"
        if turn % 4 < 2:
            change, data = next(copies)
            yield Case(f"{suffix}, {change}", partial(_score_is_true, labels, spoiled_path, data, truth))
        else:
            change, sheet = _spoiled_sheet(pd.read_csv(sheets[".csv"][0]), rng)
            data = sheet.to_csv(index=False).encode()
            yield Case(change, partial(_score_is_true, labels, folder / "spoiled.csv", data, sheets[".csv"][2]))


def _spoiled_sheet(sheet: pd.DataFrame, rng: np.random.Generator) -> tuple[str, pd.DataFrame]:
    change = str(
        rng.choice(["shuffle rows", "drop a row", "repeat a row", "swap columns", "a cell", "rename an image"])
    )
    row, column = int(rng.integers(len(sheet))), str(rng.choice(list(capsule_vision.CLASSES)))
    if change == "shuffle rows":
        return change, sheet.sample(frac=1, random_state=int(rng.integers(1 << 30)))
    if change == "drop a row":
        return change, sheet.drop(row)
    if change == "repeat a row":
        return change, pd.concat([sheet, sheet.iloc[[row]]])
    if change == "swap columns":
        columns = list(sheet.columns)
        columns[1], columns[5] = columns[5], columns[1]
        return change, sheet[columns]
    sheet = sheet.astype(object)
    if change == "rename an image":
        sheet.loc[row, sheet.columns[0]] = "other.jpg"
        return change, sheet
    value = [math.nan, math.inf, -0.1, 1.5, "abc", "", "0,5", "1e400"][int(rng.integers(8))]
    sheet.loc[row, column] = value
    return f"{column} of row {row} is {value!r}", sheet


def _score_is_true(labels: Path, path: Path, data: bytes, truth: dict[str, Any]) -> bool:
    path.write_bytes(data)
    result = capsule_vision.score_files(labels, path)
    if same(result, truth):
        return True
    # A digit of a probability that is another digit can be told by nobody; the score must be that of the table.
    if path.suffix == ".csv":
        rows = list(csv.DictReader(io.StringIO(data.decode("utf-8-sig"))))
        names = {row["image"]: row["class"] for row in csv.DictReader(labels.open())}
        image = "image_path" if "image_path" in rows[0] else "image"
        rows = [row for row in rows if row[image]]
        target = [capsule_vision.CLASSES.index(names[Path(row[image]).name]) for row in rows]
        table = np.array([[float(row[name]) for name in capsule_vision.CLASSES] for row in rows])
        repeat = capsule_vision.score(np.array(target), table)
        return abs(repeat["ranking_score"] - result["ranking_score"]) < 1e-9 and len(rows) == 40
    return False
