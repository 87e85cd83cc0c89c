"""Build rows from the files of a layout: the facts in names, lists, boxes and masks about each picture or video."""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from endofm_lab.data.prepare import annotations
from endofm_lab.data.prepare.annotations import AnnotationError, Box
from endofm_lab.data.prepare.layouts import FoundLayout
from endofm_lab.data.prepare.names import NamePattern, normal
from endofm_lab.data.prepare.recipes import Boxes, Masks, Recipe, Table
from endofm_lab.data.prepare.scan import FileFacts, Problem

Key = tuple[str, ...]


@dataclass
class Row:
    """One picture or video file with its facts; ``boxes`` are in the file's own unit until `fit_row_boxes` runs."""

    path: str
    says: dict[str, str]
    mask: str = ""
    binary_above: int | None = None
    boxes: list[Box] = field(default_factory=list)
    boxes_unit: str = "pixel"
    clamp: float = 0.0
    stretches: list[tuple[float, float, str]] = field(default_factory=list)  # (start_s, end_s, label) within a video


def same(text: str) -> str:
    """The form in which names are compared: Unicode composed, and numbers without leading zeros."""
    text = normal(text.strip())
    return str(int(text)) if text.isascii() and text.isdigit() else text


def build_rows(recipe: Recipe, match: FoundLayout, base: Path) -> tuple[list[Row], list[Problem]]:
    """Rows of all pictures and videos, with the problems met while joining their lists, boxes and masks.

    Args:
        recipe: The recipe, with its translations of names.
        match: The layout and its files.
        base: The folder that the paths are relative to.
    """
    problems: list[Problem] = []
    rows = [Row(path, says | {"file": Path(path).name}) for path, says in match.media.items()]
    _add_tables(match, base, rows, problems)
    _add_boxes(match, base, rows, problems)
    _add_masks(match, rows, problems)
    for row in rows:
        for name, values in recipe.translate.items():
            if name in row.says:
                row.says[name] = values.get(row.says[name], row.says[name])
        if "label" not in row.says and match.layout.boxes:
            row.says["label"] = "|".join(sorted({box.label for box in row.boxes})) or row.says.get("no_box_label", "")
        if recipe.patient_is == "sequence":
            row.says["patient"] = row.says.get("patient") or row.says.get("sequence", "")
        for helper in ("no_box_label", "file"):
            row.says.pop(helper, None)
    return rows, problems


def _key(spec: Table | Boxes | Masks, pieces: Mapping[str, str]) -> Key | None:
    """The key by which a picture finds its part of a file: placeholders of the file's name, then filled templates."""
    templates = spec.match if isinstance(spec, Table) else spec.picture if isinstance(spec, Boxes) else {}
    try:
        filled = [NamePattern(template, {}).write(pieces) for template in templates.values()]
        return tuple(same(text) for text in [*(pieces[name] for name in _own(spec)), *filled])
    except KeyError:
        return None  # a picture of another pattern, which the file does not describe


def _asked(specs: Sequence[Table | Boxes | Masks], pieces: Mapping[str, str]) -> list[tuple[int, Key]]:
    """Numbers of the patterns that describe a picture, and the key of the picture in each.

    Within one format only the most specific patterns count: a picture ``val2019/Image/1/7.jpg`` uses
    ``val2019/Annotation/1/7.xml`` and never ``train2019/Annotation/7.xml``.
    """
    matches = [(i, key) for i, spec in enumerate(specs) if (key := _key(spec, pieces)) is not None]
    finest: dict[str, int] = {}
    for i, _ in matches:
        form = getattr(specs[i], "format", "")
        finest[form] = max(finest.get(form, 0), len(_own(specs[i])))
    return [(i, key) for i, key in matches if len(_own(specs[i])) == finest[getattr(specs[i], "format", "")]]


def _add_tables(match: FoundLayout, base: Path, rows: list[Row], problems: list[Problem]) -> None:
    tables = match.layout.tables
    lines: list[dict[Key, dict[str, str]]] = [{} for _ in tables]
    stretches: dict[Key, list[tuple[float, float, str]]] = {}
    for i, table in enumerate(tables):
        files = {path: pieces for path, (file_table, pieces) in match.tables.items() if file_table is table}
        if not files and table.required and not table.ranges:
            problems.append(Problem("list is missing", table.file.template, "the recipe needs it", False))
        for name, (first, last) in table.ranges.items():
            lines[i] |= {(str(number),): dict.fromkeys(table.gives, name) for number in range(first, last + 1)}
        for path, pieces in files.items():
            try:
                if table.format == "frame-labels":
                    video = tuple(same(pieces[name]) for name in table.file.placeholders)
                    stretches[video] = annotations.read_frame_labels(base / path, table.fps, table.separator)
                    lines[i][video] = {}
                    continue
                for key, says in _read_table(table, base / path, pieces):
                    lines[i][key] = _joined(lines[i].get(key, {}), says)
            except (AnnotationError, OSError) as error:
                problems.append(Problem("list cannot be read", path, _short(error, base), False))
    used: set[tuple[int, Key]] = set()
    for row in rows:
        for i, key in _asked(tables, row.says):
            if key in lines[i]:
                row.says |= {name: value for name, value in lines[i][key].items() if value}
                if tables[i].format == "frame-labels":
                    row.stretches = stretches[key]
                used.add((i, key))
            elif lines[i] and tables[i].required:
                message = f"no line of {tables[i].file.template or 'the recipe'} names it"
                problems.append(Problem("not in the list", row.path, message, False))
    for i, table in enumerate(tables):
        for key in [key for key in lines[i] if (i, key) not in used and not table.ranges]:
            message = f"is named in {table.file.template} and not on disk"
            problems.append(Problem("listed but not on disk", " ".join(key), message, True))


def _joined(says: dict[str, str], additions: dict[str, str]) -> dict[str, str]:
    """Two lines about one picture joined: labels are added, of every other fact the last value counts."""
    labels = dict.fromkeys(label for line in (says, additions) for label in line.get("label", "").split("|") if label)
    return says | additions | ({"label": "|".join(labels)} if labels else {})


def _read_table(table: Table, full: Path, pieces: dict[str, str]) -> Iterator[tuple[Key, dict[str, str]]]:
    """(key, facts) of every line of a list."""
    path_pieces = [pieces[name] for name in _own(table)]
    says = {name: NamePattern(value, {}).write(pieces) for name, value in table.says.items()}
    match table.format:
        case "names":
            lines: Iterable[tuple[str, Mapping[str, str]]] = [(full.name, pieces)]
        case "cholect50-json":
            lines = ((full.name, {"frame": n} | facts) for n, facts in annotations.read_cholect50(full)[0].items())
        case _:
            lines = annotations.read_table(full, table.separator, table.header)
    for place, line in lines:
        needed = (*table.match, *table.gives.values(), *table.one_hot)
        if missing := [column for column in needed if column not in line]:
            raise AnnotationError(f"{place}: There is no column {missing[0]!r}; the columns are {', '.join(line)}.")
        key = tuple(same(text) for text in [*path_pieces, *(line[column] for column in table.match)])
        facts = says | {name: line[column].strip() for name, column in table.gives.items()}
        if table.format == "names":
            facts = {name: value.replace(table.separator, "|") for name, value in facts.items()}
        if table.one_hot:
            facts["label"] = "|".join(column for column in table.one_hot if line[column].strip() in ("1", "1.0"))
        yield key, facts


def _own(spec: Table | Boxes | Masks) -> tuple[str, ...]:
    """The pieces of a file's name that connect it with pictures: all pieces except those that are facts it gives."""
    if isinstance(spec, Table):
        outputs = set(spec.gives.values()) if spec.format == "names" else set()
        return tuple(name for name in spec.file.placeholders if name not in outputs)
    return spec.path.placeholders


def _add_boxes(match: FoundLayout, base: Path, rows: list[Row], problems: list[Problem]) -> None:
    specs = match.layout.boxes
    boxes: list[dict[Key, list[Box]]] = [defaultdict(list) for _ in specs]
    files: dict[tuple[int, Key], str] = {}
    for path, (spec, pieces) in match.boxes.items():
        i = specs.index(spec)
        try:
            for key, several in _read_boxes(spec, base / path, pieces):
                boxes[i][key] += several
                files[i, key] = path
        except (AnnotationError, OSError) as error:
            problems.append(Problem("boxes cannot be read", path, _short(error, base), False))
    used: set[tuple[int, Key]] = set()
    for row in rows:
        for i, key in _asked(specs, row.says):
            if key in boxes[i]:
                row.boxes = row.boxes + boxes[i][key]
                row.boxes_unit, row.clamp = specs[i].unit, specs[i].clamp
                used.add((i, key))
    for i, key in files.keys() - used:
        message = f"{len(boxes[i][key])} boxes of {' '.join(key)}, which is not on disk"
        problems.append(Problem("boxes without a picture", files[i, key], message, True))


def _read_boxes(spec: Boxes, full: Path, pieces: dict[str, str]) -> Iterator[tuple[Key, list[Box]]]:
    path_pieces = [same(pieces[name]) for name in spec.path.placeholders]
    match spec.format:
        case "voc":
            yield tuple(path_pieces), [_named(box, spec) for box in annotations.read_voc(full)]
        case "yolo":
            yield tuple(path_pieces), annotations.read_yolo(full, spec.labels)
        case "counted-lines":
            yield tuple(path_pieces), [_named(box, spec) for box in annotations.read_counted_lines(full)]
        case "csv":
            for line, box in annotations.read_csv_boxes(full, spec.columns, spec.separator):
                if missing := [column for column in spec.picture if column not in line]:
                    raise AnnotationError(
                        f"{full}: There is no column {missing[0]!r}; the columns are {', '.join(line)}."
                    )
                yield (*path_pieces, *(same(line[column]) for column in spec.picture)), [_named(box, spec)]
        case "cholect50-json":
            for frame, several in annotations.read_cholect50(full)[1].items():
                yield (*path_pieces, same(frame)), several
        case _:
            readers = {"coco": annotations.read_coco, "polyp-json": annotations.read_polyp_json}
            pairs = readers[spec.format](full) if spec.format in readers else annotations.read_named_lines(full, {})
            for name, box in pairs:
                yield (*path_pieces, same(name)), [_named(box, spec)]


def _named(box: Box, spec: Boxes) -> Box:
    return Box(spec.labels.get(box.label, box.label), box.x1, box.y1, box.x2, box.y2)


def _add_masks(match: FoundLayout, rows: list[Row], problems: list[Problem]) -> None:
    specs = match.layout.masks
    by_key = {
        (i, *(same(pieces[name]) for name in specs[i].path.placeholders)): path
        for path, (i, pieces) in match.masks.items()
    }
    used = set()
    for row in rows:
        keys = _asked(specs, row.says)
        for i, key in keys:
            if path := by_key.get((i, *key)):
                row.mask, row.binary_above = path, specs[i].binary_above
                used.add(path)
                break
        if keys and not row.mask:
            problems.append(Problem("mask is missing", row.path, "there is no mask with this name", False))
    for path in sorted(match.masks.keys() - used):
        problems.append(Problem("mask without a picture", path, "there is no picture with this name", True))


def _short(error: Exception, base: Path) -> str:
    return str(error).replace(f"{base}/", "")


def fit_row_boxes(row: Row, facts: FileFacts) -> list[Problem]:
    """Convert a row's boxes to pixels inside its picture; returns a problem for every box corrected or left out."""
    boxes = row.boxes
    if row.boxes_unit == "fraction":
        boxes = [box.scaled(facts.width_px, facts.height_px) for box in boxes]
    fitted = annotations.fit_boxes(boxes, facts.width_px, facts.height_px, row.clamp)
    row.boxes = fitted.boxes
    problems = [Problem("box moved to the border", row.path, message, False) for message in fitted.clamped]
    problems += [Problem("box outside", row.path, message, True) for message in fitted.outside]
    return problems + [Problem("box without area", row.path, message, True) for message in fitted.empty]


def name_patients(rows: Sequence[Row], finder: re.Pattern[str]) -> list[Problem]:
    """Patients by their names in the paths, in place of the folder's; where there is none, the patient is unknown."""
    problems = []
    for row in rows:
        match = finder.search(row.path)
        row.says["patient"] = (match[1] or "") if match else ""
        if not row.says["patient"]:
            problems.append(Problem("no patient", row.path, "the path holds none that --patient-from finds", False))
    return problems
