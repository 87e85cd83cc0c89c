"""Small trees of files in the layouts that recipes describe, made from the recipes' own examples.

The counts that a tree must give are counted here while it is written, independently of the code under test.
"""

import json
from collections import Counter
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image

from endofm_lab.data.prepare.recipes import Boxes, Layout, Recipe, Table
from endofm_lab.video.reader import write_video

WIDTH, HEIGHT = 64, 48
BOX = (8, 6, 40, 30)  # px, inside the picture


@dataclass
class Tree:
    """What was written, and what must be found: files, masks, boxes, label of each file (None: not checked)."""

    files: list[str] = field(default_factory=list)
    masks: int = 0
    boxes: int = 0
    labels: Counter = field(default_factory=Counter)
    lists: list[str] = field(default_factory=list)


def picture(path: Path, seed: int, size: tuple[int, int] = (WIDTH, HEIGHT)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 255, (size[1] // 8, size[0] // 8, 3), dtype=np.uint8)
    Image.fromarray(noise).resize(size).save(path)


def mask(path: Path, size: tuple[int, int] = (WIDTH, HEIGHT)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.zeros((size[1], size[0]), bool)
    pixels[5:21, 7:30] = True
    image = Image.fromarray(pixels)
    (image.convert("L") if path.suffix in (".jpg", ".tif", ".bmp") else image).save(path)


@cache
def _video_bytes(ending: str, seconds: int) -> bytes:
    with TemporaryDirectory() as folder:
        path = Path(folder) / f"video{ending}"
        ramp = [np.full((HEIGHT, WIDTH, 3), 20 + i * 3 % 200, np.uint8) for i in range(10 * seconds)]
        write_video(path, ramp, Fraction(10), codec="mpeg4" if ending in (".avi", ".mpg") else "h264")
        return path.read_bytes()


def video(path: Path, seconds: int = 1) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(_video_bytes(path.suffix, seconds))


def build_tree(recipe: Recipe, layout: Layout, root: Path) -> Tree:
    """Write up to three files per pattern of a layout with everything that belongs to them."""
    examples = {}
    for name, piece in (recipe.facts.get("names") or {}).items():
        example = piece["example"]
        examples[name] = [str(item) for item in (example if isinstance(example, list) else [example])]
    tree = Tree()
    rows: list[dict[str, str]] = []
    for number, media in enumerate(layout.media):
        paths = set()
        for i in range(3):
            pieces = {name: options[(i + number) % len(options)] for name, options in examples.items()}
            pieces |= {name: pieces.get(name, f"{name}{i}") for name in media.path.placeholders}
            path = media.path.write(pieces)
            if path in paths:
                continue
            paths.add(path)
            tree.files.append(path)
            full = root / path
            video(full) if layout.unit == "video" else picture(full, len(tree.files))
            row = {name: pieces[name] for name in media.path.placeholders} | {"file": full.name, "path": path}
            row |= {name: value.format(**pieces) for name, value in media.says.items()}
            rows.append(row)
            tree.masks += _write_mask(layout, row, root, target=path)
    for spec in layout.boxes:
        tree.boxes += _write_boxes(spec, layout, rows, root)
    for table in layout.tables:
        _write_table(recipe, table, rows, root, tree)
    for row in rows:
        label = row.get("label", "")
        tree.labels[recipe.translate.get("label", {}).get(label, label)] += 1
    return tree


def _fits(template_names: tuple[str, ...], row: dict[str, str], all_names: list[tuple[str, ...]]) -> bool:
    """Whether a pattern with these placeholders is the most specific one that a picture can fill."""
    fitting = [names for names in all_names if set(names) <= set(row)]
    return bool(fitting) and template_names in fitting and len(template_names) == max(map(len, fitting))


def _write_mask(layout: Layout, row: dict[str, str], root: Path, target: str) -> int:
    names = [spec.path.placeholders for spec in layout.masks]
    for spec in layout.masks:
        if _fits(spec.path.placeholders, row, names):
            path = spec.path.write(row)
            if path != target:
                mask(root / path)
            else:
                mask(root / target)
            return 1
    return 0


def _write_boxes(spec: Boxes, layout: Layout, rows: list[dict[str, str]], root: Path) -> int:
    names = [item.path.placeholders for item in layout.boxes if item.format == spec.format]
    label = next(iter(spec.labels), "polyp")
    x1, y1, x2, y2 = BOX
    if spec.unit == "fraction":
        x1, y1, x2, y2 = x1 / WIDTH, y1 / HEIGHT, x2 / WIDTH, y2 / HEIGHT
    files: dict[str, list[dict[str, str]]] = {}
    for row in rows:
        if _fits(spec.path.placeholders, row, names):
            files.setdefault(spec.path.write(row), []).append(row)
    for path, several in files.items():
        full = root / path
        full.parent.mkdir(parents=True, exist_ok=True)
        keys = [[template.format(**row) for template in spec.picture.values()] for row in several]
        match spec.format:
            case "voc":
                corners = "".join(
                    f"<{side}>{value}</{side}>"
                    for side, value in zip(("xmin", "ymin", "xmax", "ymax"), BOX, strict=True)
                )
                text = f"<annotation><object><name>{label}</name><bndbox>{corners}</bndbox></object></annotation>"
            case "yolo":
                text = f"{label} {(x1 + x2) / 2} {(y1 + y2) / 2} {x2 - x1} {y2 - y1}\n"
            case "counted-lines":
                text = f"1\n{x1} {y1} {x2} {y2}\n"
            case "named-lines":
                text = "".join(f"{key[0]} {x1},{y1},{x2},{y2},{label}\n" for key in keys)
            case "polyp-json":
                box = {"label": label, "xmin": x1, "ymin": y1, "xmax": x2, "ymax": y2}
                text = json.dumps({key[0]: {"height": HEIGHT, "width": WIDTH, "bbox": [box]} for key in keys})
            case "csv":
                columns = [*spec.picture, *spec.columns.values()]
                values = {"x1": x1, "y1": y1, "x2": x2, "y2": y2, "label": label}
                lines = [[*key, *(str(values[name]) for name in spec.columns)] for key in keys]
                text = "\n".join(spec.separator.join(line) for line in [columns, *lines])
            case "cholect50-json":
                names_of = {"phase": {"0": "preparation"}, "instrument": {"0": "grasper"}, "triplet": {"7": "g,d,l"}}
                rows_of = {
                    str(int(key[0])): [[7, 0, 1, x1, y1, x2 - x1, y2 - y1, 0, 0, -1, -1, -1, -1, -1, 0]] for key in keys
                }
                text = json.dumps({"categories": names_of, "annotations": rows_of})
                for row in several:
                    row["label"] = "preparation"
        full.write_text(text)
        if not any("label" in row for row in several):
            for row in several:
                row["label"] = spec.labels.get(label, label)
    return sum(len(several) for several in files.values())


def _write_table(recipe: Recipe, table: Table, rows: list[dict[str, str]], root: Path, tree: Tree) -> None:
    if table.ranges or table.format == "cholect50-json":
        return
    if table.format == "names":
        output = next(iter(table.gives.values()))
        for row in rows:
            placeholders = {name for name in table.file.placeholders if name != output}
            if placeholders != {name for name in row if name in ("patient", "sequence", "frame")}:
                continue
            full = root / table.file.write(row | {output: "c01_q01"})
            full.parent.mkdir(parents=True, exist_ok=True)
            full.write_bytes(b"")
            row["label"] = "c01|q01"
        return
    if not all(name in row for row in rows for name in table.file.placeholders) and table.required:
        raise AssertionError(f"{recipe.name}: no picture fills {table.file.template}")
    files: dict[str, list[dict[str, str]]] = {}
    for row in rows:
        files.setdefault(table.file.write(row), []).append(row)
    for path, several in files.items():
        full = root / path
        full.parent.mkdir(parents=True, exist_ok=True)
        tree.lists.append(path)
        if table.format == "frame-labels":
            full.write_text("Frame\tPhase\n" + "".join(f"{i}\t{'A' if i < 10 else 'B'}\n" for i in range(25)))
            continue
        output = dict.fromkeys(table.gives.values(), "1") | dict.fromkeys(table.one_hot, "0")
        if table.one_hot:
            output[table.one_hot[0]] = "1"
        columns = [*table.match, *output]
        lines = [[*(template.format(**row) for template in table.match.values()), *output.values()] for row in several]
        if not table.header:
            columns = []
        text = "\n".join(table.separator.join(line) for line in ([columns] if columns else []) + lines)
        full.write_text(text + "\n")
        for row in several:
            if "label" in table.gives:
                row["label"] = "1"
            if table.one_hot:
                row["label"] = table.one_hot[0]
