"""From the files of a layout to rows: what names, lists, boxes and masks say about each picture or video."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from endofm_lab.data import annotations
from endofm_lab.data.annotations import AnnotationError, Box
from endofm_lab.data.layouts import FoundLayout
from endofm_lab.data.names import NamePattern, normal
from endofm_lab.data.recipes import Boxes, Masks, Recipe, Table
from endofm_lab.data.scan import FileFacts, Problem

Key = tuple[str, ...]


@dataclass
class Row:
    """One picture or video file and what is known of it; ``boxes`` are in the file's own unit until they are fitted."""

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


def build_rows(recipe: Recipe, found: FoundLayout, base: Path) -> tuple[list[Row], list[Problem]]:
    """Rows of all pictures and videos, with the problems met while joining what belongs to them.

    Args:
        recipe: For the translations of names.
        found: The layout and its files.
        base: The folder that the paths are relative to.
    """
    problems: list[Problem] = []
    rows = [Row(path, dict(says)) for path, says in found.media.items()]
    _add_tables(found, base, rows, problems)
    _add_boxes(found, base, rows, problems)
    _add_masks(found, rows, problems)
    for row in rows:
        for name, values in recipe.translate.items():
            if name in row.says:
                row.says[name] = values.get(row.says[name], row.says[name])
        if "label" not in row.says and found.layout.boxes:
            row.says["label"] = "|".join(sorted({box.label for box in row.boxes})) or row.says.get("no_box_label", "")
        row.says.pop("no_box_label", None)
    return rows, problems


def _key(spec: Table | Boxes | Masks, pieces: Mapping[str, str]) -> Key | None:
    """How a picture asks for its part of a file: the placeholders of the file's name, then the filled templates."""
    templates = spec.match if isinstance(spec, Table) else spec.picture if isinstance(spec, Boxes) else {}
    try:
        filled = [NamePattern(template, {}).write(pieces) for template in templates.values()]
        return tuple(same(text) for text in [*(pieces[name] for name in _own(spec)), *filled])
    except KeyError:
        return None  # a picture of another pattern, of which the file does not speak


def _add_tables(found: FoundLayout, base: Path, rows: list[Row], problems: list[Problem]) -> None:
    for table in found.layout.tables:
        files = {path: pieces for path, (other, pieces) in found.tables.items() if other is table}
        if not files and table.required:
            problems.append(Problem("list is missing", table.file.template, "the recipe needs it", False))
            continue
        lines: dict[Key, dict[str, str]] = {}
        stretches: dict[Key, list[tuple[float, float, str]]] = {}
        for path, pieces in files.items():
            try:
                if table.format == "frame-labels":
                    key = tuple(same(pieces[name]) for name in table.file.placeholders)
                    lines[key] = {}
                    stretches[key] = annotations.read_frame_labels(base / path, table.fps, table.separator)
                    continue
                for key, says in _read_table(table, base / path, pieces):
                    lines[key] = _joined(lines.get(key, {}), says)
            except (AnnotationError, OSError) as error:
                problems.append(Problem("list cannot be read", path, _short(error, base), False))
        used = set()
        for row in rows:
            key = _key(table, row.says)
            if key is not None and key in lines:
                row.says |= {name: value for name, value in lines[key].items() if value}
                row.stretches += stretches.get(key, [])
                used.add(key)
            elif key is not None and lines and table.required:
                message = f"no line of {table.file.template} names it"
                problems.append(Problem("not in the list", row.path, message, False))
        for key in lines.keys() - used:
            message = f"is named in {table.file.template} and not on disk"
            problems.append(Problem("listed but not on disk", " ".join(key), message, True))


def _joined(says: dict[str, str], more: dict[str, str]) -> dict[str, str]:
    """Two lines about one picture: labels add up, of anything else the last counts."""
    labels = dict.fromkeys(label for one in (says, more) for label in one.get("label", "").split("|") if label)
    return says | more | ({"label": "|".join(labels)} if labels else {})


def _read_table(table: Table, full: Path, pieces: dict[str, str]) -> Iterator[tuple[Key, dict[str, str]]]:
    """(key, facts) of every line of a list."""
    own = [pieces[name] for name in _own(table)]
    says = {name: NamePattern(value, {}).write(pieces) for name, value in table.says.items()}
    match table.format:
        case "names":
            lines: Iterable[tuple[str, Mapping[str, str]]] = [(full.name, pieces)]
        case "cholect50-json":
            lines = ((full.name, {"frame": n} | facts) for n, facts in annotations.read_cholect50(full)[0].items())
        case _:
            lines = annotations.read_table(full, table.separator, table.header)
    for place, line in lines:
        asked = (*table.match, *table.gives.values(), *table.one_hot)
        if missing := [column for column in asked if column not in line]:
            raise AnnotationError(f"{place}: there is no column {missing[0]!r}; there are {', '.join(line)}")
        key = tuple(same(text) for text in [*own, *(line[column] for column in table.match)])
        facts = says | {name: line[column].strip() for name, column in table.gives.items()}
        if table.format == "names":
            facts = {name: value.replace(table.separator, "|") for name, value in facts.items()}
        if table.one_hot:
            facts["label"] = "|".join(column for column in table.one_hot if line[column].strip() in ("1", "1.0"))
        yield key, facts


def _own(spec: Table | Boxes | Masks) -> tuple[str, ...]:
    """The pieces of a file's name that tie it to pictures: all of them, but those that it gives."""
    if isinstance(spec, Table):
        given = set(spec.gives.values()) if spec.format == "names" else set()
        return tuple(name for name in spec.file.placeholders if name not in given)
    return spec.path.placeholders


def _add_boxes(found: FoundLayout, base: Path, rows: list[Row], problems: list[Problem]) -> None:
    for spec in found.layout.boxes:
        boxes: dict[Key, list[Box]] = defaultdict(list)
        files: dict[Key, str] = {}
        for path, (other, pieces) in found.boxes.items():
            if other is not spec:
                continue
            try:
                for key, found_boxes in _read_boxes(spec, base / path, pieces):
                    boxes[key] += found_boxes
                    files[key] = path
            except (AnnotationError, OSError) as error:
                problems.append(Problem("boxes cannot be read", path, _short(error, base), False))
        used = set()
        for row in rows:
            key = _key(spec, row.says)
            if key is not None and key in boxes:
                row.boxes, row.boxes_unit, row.clamp = row.boxes + boxes[key], spec.unit, spec.clamp
                used.add(key)
        for key in boxes.keys() - used:
            message = f"{len(boxes[key])} boxes of {' '.join(key)}, which is not on disk"
            problems.append(Problem("boxes without a picture", files[key], message, True))


def _read_boxes(spec: Boxes, full: Path, pieces: dict[str, str]) -> Iterator[tuple[Key, list[Box]]]:
    own = [same(pieces[name]) for name in spec.path.placeholders]
    match spec.format:
        case "voc":
            yield tuple(own), [_named(box, spec) for box in annotations.read_voc(full)]
        case "yolo":
            yield tuple(own), annotations.read_yolo(full, spec.labels)
        case "counted-lines":
            yield tuple(own), [_named(box, spec) for box in annotations.read_counted_lines(full)]
        case "csv":
            for line, box in annotations.read_csv_boxes(full, spec.columns):
                if missing := [column for column in spec.picture if column not in line]:
                    raise AnnotationError(f"{full}: there is no column {missing[0]!r}; there are {', '.join(line)}")
                yield (*own, *(same(line[column]) for column in spec.picture)), [_named(box, spec)]
        case "cholect50-json":
            for frame, several in annotations.read_cholect50(full)[1].items():
                yield (*own, same(frame)), several
        case _:
            readers = {"coco": annotations.read_coco, "polyp-json": annotations.read_polyp_json}
            pairs = readers[spec.format](full) if spec.format in readers else annotations.read_named_lines(full, {})
            for name, box in pairs:
                yield (*own, same(name)), [_named(box, spec)]


def _named(box: Box, spec: Boxes) -> Box:
    return Box(spec.labels.get(box.label, box.label), box.x1, box.y1, box.x2, box.y2)


def _add_masks(found: FoundLayout, rows: list[Row], problems: list[Problem]) -> None:
    by_key = {
        (number, *(same(pieces[name]) for name in found.layout.masks[number].path.placeholders)): path
        for path, (number, pieces) in found.masks.items()
    }
    used = set()
    for row in rows:
        asked = False
        for number, spec in enumerate(found.layout.masks):
            key = _key(spec, row.says)
            if key is None:
                continue
            asked = True
            if path := by_key.get((number, *key)):
                row.mask, row.binary_above = path, spec.binary_above
                used.add(path)
                break
        if asked and not row.mask:
            problems.append(Problem("mask is missing", row.path, "there is no mask with this name", False))
    for path in sorted(found.masks.keys() - used):
        problems.append(Problem("mask without a picture", path, "there is no picture with this name", True))


def _short(error: Exception, base: Path) -> str:
    return str(error).replace(f"{base}/", "")


def fit_row_boxes(row: Row, facts: FileFacts) -> list[Problem]:
    """Bring a row's boxes to pixels inside its picture; what was put right or left out is returned."""
    boxes = row.boxes
    if row.boxes_unit == "fraction":
        boxes = [box.scaled(facts.width_px, facts.height_px) for box in boxes]
    fitted = annotations.fit_boxes(boxes, facts.width_px, facts.height_px, row.clamp)
    row.boxes = fitted.boxes
    problems = [Problem("box moved to the border", row.path, said, False) for said in fitted.clamped]
    problems += [Problem("box outside", row.path, said, True) for said in fitted.outside]
    return problems + [Problem("box without area", row.path, said, True) for said in fitted.empty]
