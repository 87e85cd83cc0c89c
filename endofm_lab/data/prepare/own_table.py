"""A manifest from a table of your own: ``import_table("labels.csv", video="file", label="finding", out="own.csv")``.

All problems of the table and of its files are collected and reported together.
"""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from endofm_lab.brief import Brief, html_of
from endofm_lab.data.foreign_tables import ForeignTable, read_foreign_table
from endofm_lab.data.manifest import OPTIONAL_TEXT, REQUIRED, Manifest, write_manifest
from endofm_lab.data.prepare.check import file_facts
from endofm_lab.data.prepare.names import patient_finder
from endofm_lab.data.prepare.prepared import relative_to_manifest
from endofm_lab.data.prepare.scan import IMAGE_FORMATS, Problem
from endofm_lab.data.units import units
from endofm_lab.errors import LONGEST_MESSAGE, ManifestError, UserError, shortened
from endofm_lab.machine import cores

_SPLITS = {"training": "train", "validation": "val", "valid": "val", "dev": "val", "testing": "test"}
_SPLITS |= {name: name for name in ("train", "val", "test", "pretrain")}
_CLOCK = re.compile(r"(?:(\d+):)?(\d{1,2}):(\d{1,2}(?:\.\d+)?)")  # 1:02:03.5 or 02:03.5
_PREVIEW = 5  # rows


class TableError(ManifestError):
    """A table that cannot become a manifest as it is.

    Attributes:
        problems: all problems, sorted by kind; ``path`` is the line of the table and its content.
        preview: the first rows as they were read.
    """

    def __init__(self, path: Path, problems: Sequence[Problem], preview: str) -> None:
        self.path, self.problems, self.preview = path, list(problems), preview
        kinds = _by_kind(problems)
        counts = {kind: f"{kind}: {len(group)}" for kind, group in kinds.items()}
        head = f"{path.name}: Nothing was written, because of {len(problems)} problems."
        remedy = "Put them right, or delete the lines."
        room = (LONGEST_MESSAGE - len(f"{head} {'; '.join(counts.values())}. {remedy}")) // len(kinds) - 3
        examples = [f"{counts[kind]} ({shortened(group[0].path, max(room, 12))})" for kind, group in kinds.items()]
        super().__init__(f"{head} {'; '.join(examples)}. {remedy}")

    def __reduce__(self) -> tuple[type, tuple[Path, list[Problem], str]]:
        return type(self), (self.path, self.problems, self.preview)

    def text(self) -> str:
        """The preview, and every kind of problem with its first five examples."""
        lines = [self.preview, ""]
        for kind, group in _by_kind(self.problems).items():
            lines.append(f"{kind}: {len(group)}")
            lines += [f"  {problem.path}: {problem.message}" for problem in group[:5]]
            lines += [f"  ... and {len(group) - 5} more"] if len(group) > 5 else []
        return "\n".join(lines)


@dataclass(frozen=True, eq=False, repr=False)
class ImportedTable(Brief):
    """The manifest that `import_table` wrote.

    Attributes:
        manifest: the manifest, as `read_manifest` gives it.
        preview: its first rows, as text.
        notes: sentences on values that were interpreted, and on missing information.
    """

    manifest: Manifest
    preview: str
    notes: list[str]

    def _repr_html_(self) -> str:
        return html_of(self, self.manifest.table)

    def text(self) -> str:
        """The first rows, the number of rows and patients per label and split, and the notes."""
        table = self.manifest.table
        labelled = table.assign(label=table["label"].replace("", "(none)"), split=table["split"].replace("", "(none)"))
        counts = labelled.pivot_table(index="split", columns="label", values="video", aggfunc="count", fill_value=0)
        patients = labelled[labelled["patient"] != ""].groupby("split")["patient"].nunique()
        counts["patients"] = patients.reindex(counts.index, fill_value=0)
        head = f"{len(table)} rows of {units(table).words} -> {self.manifest.path}"
        return "\n".join([self.preview, "", head, counts.to_string(), *(f"Note: {note}" for note in self.notes)])


def import_table(
    path: str | Path,
    *,
    video: str,
    out: str | Path,
    label: str | None = None,
    patient: str | None = None,
    patient_from: str | None = None,
    split: str | None = None,
    start: str | None = None,
    end: str | None = None,
    root: str | Path | None = None,
    name: str | None = None,
    fps: float | None = None,
    drop_unlabelled: bool = False,
    workers: int | None = None,
) -> ImportedTable:
    """Turn any table of videos, pictures or folders of frames into a manifest.

    The table is text with commas, semicolons, tabs or vertical bars, a spreadsheet (.xlsx) or Parquet. Other columns
    are kept as they are, unless a manifest uses their names for something else.

    Args:
        path: the table.
        video: column with the path of the video, picture or folder of frames.
        out: the manifest (.csv or .parquet), or a folder for it.
        label: column with the class; several labels of one clip are written as A|B. Omit it for unlabelled videos.
        patient: column with the patient.
        patient_from: regular expression with one group that finds the patient in the path, such as "(P[0-9]+)_".
        split: column with train, val, test or pretrain.
        start: column with the start in seconds (also 1,5) or as 1:02:03; by default the start of the video.
        end: column with the end, in the same form; by default the end of the video.
        root: folder that relative paths start from; by default the folder of the table.
        name: name of the data set in the manifest; by default the name of the table.
        fps: frames per second of folders of frames.
        drop_unlabelled: leave out rows without a label instead of refusing the table.
        workers: number of threads that open the files; by default the number of cores.

    Raises:
        TableError: lines, files or labels are wrong; the error holds all problems, and nothing was written.
        UserError: the table or a column does not exist, or the options contradict each other.
    """
    path, out = Path(path), Path(out)
    out = out if out.suffix.lower() in (".csv", ".parquet") else out / "manifest.csv"
    if out.absolute() == path.absolute():
        raise UserError(f"{out}: The manifest would replace the table itself. Choose another --out.")
    if patient is not None and patient_from is not None:
        raise UserError("Patients come from --patient or from --patient-from: leave out one of them.")
    finder = patient_finder(patient_from) if patient_from is not None else None
    columns = {"video": video, "label": label, "patient": patient, "split": split, "start_s": start, "end_s": end}
    read = read_foreign_table(path)
    _refuse_missing(path, read, {key: name for key, name in columns.items() if name is not None})
    conversion = _Import(read, columns, _existing(path.parent if root is None else Path(root)), name or path.stem, fps)
    conversion.fill(finder, drop_unlabelled)
    conversion.check(out.parent, workers or cores())
    if conversion.problems:
        raise TableError(path, conversion.problems, conversion.preview())
    table = conversion.table.reset_index(drop=True)
    table["video"] = [relative_to_manifest(cell, out.parent) for cell in table["video"]]
    return ImportedTable(write_manifest(table, out), conversion.preview(), conversion.notes)


def _existing(root: Path) -> Path:
    """The folder that relative paths start from.

    Raises:
        UserError: it is not a folder.
    """
    if not root.is_dir():
        raise UserError(f"{root.absolute()} is not a folder. Give the folder that relative paths start from as --root.")
    return root.absolute()


@dataclass
class _Import:
    """The conversion of a table to a manifest; the index of ``table`` is the line of the file."""

    read: ForeignTable
    columns: dict[str, str | None]
    root: Path
    dataset: str
    fps: float | None

    def __post_init__(self) -> None:
        self.problems = [
            Problem("line of another length", f"line {line}", "has more or fewer cells than the header", True)
            for line in self.read.uneven
        ]
        self.notes = [f"The table was read as {self.read.how}."]
        cells = self.read.cells
        self.table = pd.DataFrame(index=cells.index)
        for key in ("video", "label", "patient", "split"):
            self.table[key] = cells[self.columns[key]] if self.columns[key] is not None else ""
        self.table["dataset"] = self.dataset
        used = set(self.columns.values())
        reserved = {*REQUIRED, *OPTIONAL_TEXT, "fps", "sha256"} - {"device", "sequence", "source", "motion"}
        unused = [name for name in cells.columns if name not in used and name]
        for name in unused:
            if name not in reserved:
                self.table[name] = cells[name]
        if omitted := [name for name in unused if name in reserved]:
            self.notes.append(f"Left out, because a manifest has another use for the name: {', '.join(omitted)}.")

    def fill(self, finder: re.Pattern[str] | None, drop_unlabelled: bool) -> None:
        """Read labels, patients, splits and times, and collect their problems."""
        self._labels(drop_unlabelled)
        self._complain("no video is named", self.table["video"] == "", "video", "the cell is empty")
        if finder is not None:
            matches = [finder.search(cell.replace("\\", "/")) for cell in self.table["video"]]
            self.table["patient"] = [(match[1] or "") if match else "" for match in matches]
        if finder is not None or self.columns["patient"] is not None:
            reason = "the path holds none" if finder is not None else "the cell is empty"
            self._complain("no patient", self.table["patient"] == "", "video", reason)
        else:
            self.notes.append("Patients are unknown, and each video counts as a case of its own: see --patient-from.")
        self._splits()
        for key in ("start_s", "end_s"):
            column = self.columns[key]
            texts = self.read.cells.loc[self.table.index, column] if column is not None else None
            self.table[key] = [_seconds(text) for text in texts] if texts is not None else np.nan
            if texts is not None:
                self._complain("no time", self.table[key].isna() & (texts != ""), key, "is no number of seconds")
        self.table["start_s"] = self.table["start_s"].fillna(0.0)
        image = self.table["video"].map(_is_image)
        early = (self.table["end_s"] <= self.table["start_s"]) & ~image
        self._complain("end before start", early, "end_s", "is not after the start")

    def _labels(self, drop_unlabelled: bool) -> None:
        label = self.table["label"]
        if self.columns["label"] is None:
            return
        if drop_unlabelled:
            self.table = self.table[label != ""]
            if dropped := int((label == "").sum()):
                self.notes.append(f"{dropped} rows without a label were left out.")
            if self.table.empty:
                raise UserError("No row has a label: name another column by --label, or leave out --drop-unlabelled.")
        else:
            self._complain("no label", label == "", "video", "give one, or --drop-unlabelled")
        by_form: dict[str, set[str]] = {}
        for text in set(label) - {""}:
            by_form.setdefault(" ".join(text.lower().split()), set()).add(text)
        variants = [" and ".join(sorted(map(repr, forms))) for forms in by_form.values() if len(forms) > 1]
        if variants:
            self.notes.append(f"Labels that differ in case or spaces only are classes of their own: {variants[0]}.")

    def _splits(self) -> None:
        splits = self.table["split"].str.lower().map(_SPLITS)
        has_split = self.table["split"] != ""
        self._complain("unknown split", has_split & splits.isna(), "split", "is not train, val, test or pretrain")
        changed = has_split & splits.notna() & (splits != self.table["split"])
        if changed.any():
            words = dict(zip(self.table["split"][changed], splits[changed], strict=True))
            self.notes.append("Splits are read as " + ", ".join(f"{new} ({old})" for old, new in words.items()) + ".")
        self.table["split"] = splits.fillna("")

    def check(self, folder: Path, workers: int) -> None:
        """Find the files and open them, and look for rows that repeat or contradict each other."""
        cells = self.table["video"].copy()
        self.table["video"] = [self._found(cell) for cell in cells]
        lines = self.table.index[cells != ""]
        if self.fps is not None:
            self.table["fps"] = [self.fps if Path(path).is_dir() else "" for path in self.table["video"]]
        file_problems: list[Problem] = []
        facts = file_facts(Manifest(self.table.loc[lines], folder), workers, file_problems) if len(lines) else {}
        paths = self.table["video"][lines]
        first = dict(zip(paths[::-1], lines[::-1], strict=True))
        for problem in file_problems:
            line = first[problem.path]
            self.problems.append(Problem(problem.kind, f"line {line}, {cells[line]}", problem.message, True))
        length = self.table["video"].map({path: fact.get("duration_s", 0.0) for path, fact in facts.items()})
        image = self.table["video"].map(_is_image)
        self._complain(
            "end after the video", (self.table["end_s"] > length + 0.05) & ~image, "end_s", "lies after its end"
        )
        self.table["end_s"] = self.table["end_s"].fillna(length)
        self.table.loc[image, ["start_s", "end_s"]] = 0.0
        existing = self.table.loc[lines]
        stretch = ["video", "start_s", "end_s"]
        repeats = existing.duplicated([*stretch, "label"])
        self._complain("repeated row", repeats.reindex(self.table.index, fill_value=False), "video", "is there before")
        several = existing.groupby(stretch, dropna=False)["label"].transform("nunique") > 1
        several = several.reindex(self.table.index, fill_value=False)
        self._complain("conflicting labels", several, "label", "is not the only label of this stretch; see A|B")

    def _found(self, cell: str) -> str:
        """The absolute path of a cell, whichever slash it uses; empty for an empty cell."""
        if not cell:
            return ""
        path = Path(os.path.normpath(self.root / cell))
        return str(path if path.exists() else Path(os.path.normpath(self.root / cell.replace("\\", "/"))))

    def _complain(self, kind: str, wrong: Any, column: str, message: str) -> None:
        name = self.columns.get(column)
        source = self.read.cells[name] if name is not None else self.read.cells.iloc[:, 0]
        for line in self.table.index[wrong.to_numpy(bool)]:
            self.problems.append(Problem(kind, f"line {line}, {source[line] or '(empty)'}", message, True))

    def preview(self) -> str:
        """The first rows as text."""
        rows = self.table[["video", "label", "patient", "split", "start_s", "end_s"]].head(_PREVIEW)
        names = [Path(path).name for path in rows["video"]]
        return rows.assign(video=names).to_string(index=False, na_rep="")


def _refuse_missing(path: Path, read: ForeignTable, columns: dict[str, str]) -> None:
    if missing := [name for name in columns.values() if name not in read.cells.columns]:
        columns_of_table = ", ".join(map(str, read.cells.columns))
        raise UserError(
            f"{path}: There is no column {', '.join(map(repr, missing))}; the table ({read.how}) has "
            f"{shortened(columns_of_table, 200)}."
        )


def _is_image(path: str) -> bool:
    return Path(path).suffix.lower() in IMAGE_FORMATS


def _seconds(text: str) -> float:
    """Seconds from 12.5, 12,5, 02:03 or 1:02:03.5; NaN for anything else."""
    text = text.replace(",", ".")
    if clock := _CLOCK.fullmatch(text):
        return 3600 * int(clock[1] or 0) + 60 * int(clock[2]) + float(clock[3])
    try:
        number = float(text)
    except ValueError:
        return float("nan")
    return number if 0 <= number < float("inf") else float("nan")


def _by_kind(problems: Sequence[Problem]) -> dict[str, list[Problem]]:
    kinds: dict[str, list[Problem]] = {}
    for problem in problems:
        kinds.setdefault(problem.kind, []).append(problem)
    return kinds
