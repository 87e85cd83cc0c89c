"""Read boxes and masks in the formats of public data sets, and convert them to pixels of their own picture.

Every reader returns boxes exactly as they are in the file. Only `fit_boxes` decides what is inside a picture, and it
reports every change.
"""

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
from PIL import Image, UnidentifiedImageError

from endofm_lab.brief import Brief
from endofm_lab.errors import UserError


class AnnotationError(UserError):
    """A file of boxes, labels or masks that cannot be read; the message names file and place."""


@dataclass(frozen=True)
class Box:
    """A box with its label; corners x1 < x2, y1 < y2 in pixels or fractions, as the file has them."""

    label: str
    x1: float
    y1: float
    x2: float
    y2: float

    def scaled(self, width: float, height: float) -> "Box":
        """The box with x times ``width`` and y times ``height``."""
        return replace(self, x1=self.x1 * width, y1=self.y1 * height, x2=self.x2 * width, y2=self.y2 * height)


def read_voc(path: str | Path) -> list[Box]:
    """Boxes of a PASCAL VOC file (pixels)."""
    try:
        # expat neither fetches entities nor expands them without bound
        root = ElementTree.fromstring(_text(path))  # noqa: S314
    except ElementTree.ParseError as error:
        raise AnnotationError(f"{path}: Not an XML file: {error}") from error
    boxes = []
    for item in root.iter("object"):
        corners = [_number(item.findtext(f"bndbox/{side}"), path, side) for side in ("xmin", "ymin", "xmax", "ymax")]
        boxes.append(Box((item.findtext("name") or "").strip(), *corners))
    return boxes


def read_yolo(path: str | Path, labels: Mapping[str, str]) -> list[Box]:
    """Boxes of a YOLO text file: ``class x_centre y_centre width height``, in fractions of the picture.

    Args:
        path: The file; an empty file has no boxes.
        labels: Class number -> name. A number that is missing here is an error; an empty mapping keeps the numbers.
    """
    boxes = []
    for place, words in _words(path):
        if len(words) < 5:
            raise AnnotationError(f"{place}: Expected `class x y width height`, found {' '.join(words)!r}.")
        if labels and words[0] not in labels:
            raise AnnotationError(f"{place}: Class {words[0]} is not among the recipe's {len(labels)} classes.")
        x, y, w, h = (_number(word, place, "a number") for word in words[1:5])
        boxes.append(Box(labels.get(words[0], words[0]), x - w / 2, y - h / 2, x + w / 2, y + h / 2))
    return boxes


def read_counted_lines(path: str | Path, label: str = "polyp") -> list[Box]:
    """Boxes of a text file whose first line is their number and whose other lines are ``x1 y1 x2 y2`` (pixels)."""
    lines = list(_words(path))
    count = int(_number(lines[0][1][0] if lines else None, path, "the number of boxes"))
    if len(lines) - 1 != count:
        raise AnnotationError(f"{path}: The file announces {count} boxes and has {len(lines) - 1}.")
    return [Box(label, *(_number(word, place, "a number") for word in words[:4])) for place, words in lines[1:]]


def read_named_lines(path: str | Path, labels: Mapping[str, str]) -> Iterator[tuple[str, Box]]:
    """(picture name, box) of lines ``picture xmin,ymin,xmax,ymax,class`` (pixels); a line may have no boxes."""
    for place, words in _words(path):
        for group in words[1:]:
            numbers = group.split(",")
            if len(numbers) != 5:
                raise AnnotationError(f"{place}: Expected `xmin,ymin,xmax,ymax,class`, found {group!r}.")
            corners = (_number(word, place, "a number") for word in numbers[:4])
            yield words[0], Box(labels.get(numbers[4], numbers[4]), *corners)


def read_coco(path: str | Path) -> Iterator[tuple[str, Box]]:
    """(file name, box) of a COCO file (pixels)."""
    data = _json(path)
    try:
        names = {image["id"]: image["file_name"] for image in data["images"]}
        labels = {category["id"]: category["name"] for category in data["categories"]}
        for item in data["annotations"]:
            x, y, w, h = item["bbox"]
            yield names[item["image_id"]], Box(labels[item["category_id"]], x, y, x + w, y + h)
    except (KeyError, TypeError, ValueError) as error:
        raise AnnotationError(f"{path}: Not a COCO file of boxes: {error!r}") from error


def read_polyp_json(path: str | Path) -> Iterator[tuple[str, Box]]:
    """(picture, box) of the JSON that comes with Kvasir-SEG and HyperKvasir's masks (pixels)."""
    try:
        for name, picture in _json(path).items():
            for item in picture["bbox"]:
                yield name, Box(item["label"], item["xmin"], item["ymin"], item["xmax"], item["ymax"])
    except (KeyError, TypeError, AttributeError) as error:
        raise AnnotationError(f"{path}: Not a JSON file of boxes by picture: {error!r}") from error


def read_csv_boxes(
    path: str | Path, columns: Mapping[str, str], separator: str = ","
) -> Iterator[tuple[dict[str, str], Box]]:
    """(row, box) of a CSV file; rows whose corners are all empty are pictures without a box and are skipped.

    Args:
        path: The file, with a heading.
        columns: The columns of x1, y1, x2, y2 and label. A label that is not the name of a column is the label itself.
        separator: Separator between columns.
    """
    for place, row in read_table(path, separator):
        corners = [row.get(columns[side]) for side in ("x1", "y1", "x2", "y2")]
        if all(not corner for corner in corners):
            continue
        x1, y1, x2, y2 = (_number(corner, place, "a corner") for corner in corners)
        yield row, Box(row.get(columns.get("label", ""), columns.get("label", "")), x1, y1, x2, y2)


def read_cholect50(path: str | Path) -> tuple[dict[str, dict[str, str]], dict[str, list[Box]]]:
    """Facts and boxes per frame of a CholecT50 label file.

    A file holds, per frame, rows of 15 numbers: triplet, instrument, its score, its tip box (x, y, w, h in fractions,
    -1 where there is none), verb, target, its score and box, phase.

    Returns:
        Two mappings by frame number: the facts ``phase``, ``instruments`` and ``triplets`` (several joined by ``|``,
        empty where there is none), and the boxes of the instrument tips.
    """
    data = _json(path)
    facts, boxes = {}, {}
    try:
        names = data["categories"]
        for frame, rows in data["annotations"].items():
            numbers = np.asarray(rows, dtype=float).reshape(-1, 15)

            def several(kind: str, ids: np.ndarray) -> str:
                return "|".join(names[kind][str(int(i))] for i in dict.fromkeys(ids[ids >= 0].tolist()))

            facts[frame] = {
                "phase": several("phase", numbers[:1, 14]),
                "instruments": several("instrument", numbers[:, 1]),
                "triplets": several("triplet", numbers[:, 0]),
            }
            boxes[frame] = [
                Box(names["instrument"][str(int(row[1]))], row[3], row[4], row[3] + row[5], row[4] + row[6])
                for row in numbers
                if row[1] >= 0 and row[3] >= 0
            ]
    except (KeyError, TypeError, ValueError) as error:
        raise AnnotationError(f"{path}: Not a CholecT50 label file: {error!r}") from error
    return facts, boxes


def read_table(path: str | Path, separator: str = ",", header: bool = True) -> Iterator[tuple[str, dict[str, str]]]:
    """(place, row) of a CSV or text list; without a heading the columns are called ``1``, ``2``, ..."""
    lines = csv.reader(_text(path).splitlines(), delimiter=separator, skipinitialspace=True)
    columns = next(lines, []) if header else None
    for number, words in enumerate(lines, start=2 if header else 1):
        if not any(words):
            continue
        names = columns or [str(i + 1) for i in range(len(words))]
        if len(words) != len(names):
            raise AnnotationError(
                f"{path}, line {number}: The line has {len(words)} columns, the heading {len(names)}."
            )
        yield f"{path}, line {number}", dict(zip(names, words, strict=True))


@dataclass(frozen=True)
class FittedBoxes:
    """Boxes inside their picture (pixels), and a sentence for each box that was corrected or left out."""

    boxes: list[Box]
    clamped: list[str]
    outside: list[str]
    empty: list[str]


def fit_boxes(boxes: Sequence[Box], width_px: int, height_px: int, clamp: float = 0.0) -> FittedBoxes:
    """Keep the boxes that lie inside the picture and have an area.

    Edges that overhang by at most ``clamp`` (a fraction of the side) are moved to the border; a box that overhangs
    more, or has no area, or is not finite, is left out. Rounding by up to half a pixel is harmless and not reported.
    """
    fitted = FittedBoxes([], [], [], [])
    for box in boxes:
        corners = np.array([box.x1, box.y1, box.x2, box.y2], dtype=float)
        description = f"{box.label} {[round(float(corner), 2) for corner in corners]} in {width_px}x{height_px} px"
        sides = np.array([width_px, height_px, width_px, height_px], dtype=float)
        if not np.isfinite(corners).all():
            fitted.outside.append(f"{description}: not finite")
            continue
        overhang = np.maximum(np.maximum(-corners, corners - sides), 0)
        if (overhang > np.maximum(clamp * sides, 0.5)).any():
            fitted.outside.append(f"{description}: {overhang.max():.1f} px outside")
            continue
        if (overhang > 0.5).any():
            fitted.clamped.append(f"{description}: {overhang.max():.1f} px outside, moved to the border")
        x1, y1, x2, y2 = np.clip(corners, 0, sides).tolist()
        if x2 <= x1 or y2 <= y1:
            fitted.empty.append(f"{description}: no area")
            continue
        fitted.boxes.append(Box(box.label, x1, y1, x2, y2))
    return fitted


@dataclass(frozen=True, eq=False, repr=False)
class MaskFacts(Brief):
    """A mask as read: bool (H, W), the number of different grey values in the file, and the largest of them."""

    mask: np.ndarray
    levels: int
    brightest: int

    @property
    def plain(self) -> bool:
        """Whether the file can be used unchanged: it is black and white, without values in between."""
        return self.levels <= 2 and (self.brightest == 255 or not self.mask.any())


def read_mask(path: str | Path, binary_above: int | None = None) -> MaskFacts:
    """A mask image as bool (H, W).

    Args:
        path: A grey, colour, palette or 1-bit picture.
        binary_above: Grey value (0..255) above which a pixel belongs to the finding; needed if the file has more than
            two values (JPEG). Without it, every pixel that is not black belongs to the finding.

    Raises:
        AnnotationError: The file is not a readable picture.
    """
    try:
        with Image.open(path) as image:
            grey = np.asarray(image.convert("L"))
    except (OSError, UnidentifiedImageError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise AnnotationError(f"{path}: Not a readable mask: {error}") from error
    values = np.unique(grey)
    return MaskFacts(grey > (0 if binary_above is None else binary_above), len(values), int(values[-1]))


def read_frame_labels(path: str | Path, fps: float, separator: str = "\t") -> list[tuple[float, float, str]]:
    """(start_s, end_s, label) of a list with a heading and one line per frame: ``frame label``, frames from 0.

    Consecutive frames with the same label are one stretch, which ends where the next stretch begins.
    """
    stretches: list[tuple[float, float, str]] = []
    for place, row in read_table(path, separator):
        frame, label = list(row.values())[:2]
        start = _number(frame, place, "the frame") / fps
        if stretches and stretches[-1][2] == label:
            stretches[-1] = (stretches[-1][0], start + 1 / fps, label)
        else:
            if stretches:
                stretches[-1] = (stretches[-1][0], start, stretches[-1][2])
            stretches.append((start, start + 1 / fps, label))
    return stretches


def _text(path: str | Path) -> str:
    """The text of a file in UTF-8 with or without a byte order mark, otherwise in Latin-1 (older Windows tools)."""
    data = Path(path).read_bytes()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return data.decode("latin-1")


def _json(path: str | Path) -> Any:
    try:
        return json.loads(_text(path))
    except ValueError as error:
        raise AnnotationError(f"{path}: Not a JSON file: {error}") from error


def _words(path: str | Path) -> Iterator[tuple[str, list[str]]]:
    for number, line in enumerate(_text(path).splitlines(), start=1):
        if words := line.split():
            yield f"{path}, line {number}", words


def _number(text: str | None, place: object, quantity: str) -> float:
    try:
        return float(text)  # type: ignore[arg-type]  # None is caught below
    except (TypeError, ValueError):
        raise AnnotationError(f"{place}: {quantity} is {text!r}, not a number.") from None
