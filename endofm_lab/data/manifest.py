"""The table of a data set: one row per clip or image, with its label, its patient and its split."""

import csv
import hashlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np
import pandas as pd

from endofm_lab.brief import Brief, html_of
from endofm_lab.errors import ManifestError
from endofm_lab.files import atomic_path, fingerprint_of, read_parquet, write_parquet

IMPORT = "Make one of a table of your own with `endofm-lab data import`."
REQUIRED = ("video", "start_s", "end_s", "label", "patient", "dataset", "split")
OPTIONAL_TEXT = ("masks", "boxes", "device", "motion", "sequence", "source")
PATHS = ("video", "masks", "boxes")
_ROWS_AT_ONCE = 10_000  # that are hashed together
_READERS = 8  # threads that fingerprint files


@dataclass(frozen=True, eq=False, repr=False)
class Manifest(Brief):
    """A table of clips, and the folder that its relative paths start from.

    Columns: ``video`` (a file, a folder of frames or an image), ``start_s`` and ``end_s`` (seconds; both 0 for an
    image, and an ``end_s`` of NaN means the video's end), ``label``, ``patient``, ``dataset``, ``split``; optional
    ``masks`` (a folder of frames or an image), ``boxes`` (a CSV file), ``device``, ``motion``, ``sequence``, ``frame``,
    ``source``, ``fps`` (of a folder of frames; 25 if not given), and any further columns of a recipe. Unknown text is
    the empty string.
    """

    table: pd.DataFrame
    root: Path
    path: Path | None = None

    def _repr_html_(self) -> str:
        return html_of(self, self.table)

    def __len__(self) -> int:
        return len(self.table)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the content: the same for another order of rows or columns, and for CSV and Parquet."""
        columns = sorted(self.table.columns)
        rows = sorted(map("\x1f".join, zip(*(_canonical_texts(self.table[name]) for name in columns), strict=True)))
        digest = hashlib.sha256("\x1f".join(columns).encode())
        for start in range(0, len(rows), _ROWS_AT_ONCE):
            digest.update("\x1e".join(["", *rows[start : start + _ROWS_AT_ONCE]]).encode())
        return digest.hexdigest()

    @property
    def classes(self) -> list[str]:
        """The labels that occur, sorted; rows without a label do not count."""
        return sorted(set(self.table["label"]) - {""})

    @property
    def generated(self) -> bool:
        """Whether every row comes from the phantom: generated pictures, no patients."""
        return bool((self.table["dataset"] == "phantom").all())

    def rows(self, split: str | None = None) -> pd.DataFrame:
        """The rows of one split, or all of them, in their order.

        Raises:
            ManifestError: the split does not occur.
        """
        if split is None:
            return self.table
        selected = self.table[self.table["split"] == split]
        if selected.empty:
            existing = sorted(set(self.table["split"]))
            raise ManifestError(
                f"{self._name}: No row has the split {split!r}. Choose one of {', '.join(map(repr, existing))}."
            )
        return selected.reset_index(drop=True)

    def resolve(self, relative: str) -> Path:
        """The path named by a cell of ``video``, ``masks`` or ``boxes``.

        Raises:
            ManifestError: a relative path climbs out of the manifest's folder.
        """
        if Path(relative).is_absolute():
            return Path(relative)
        if ".." in PurePosixPath(relative.replace("\\", "/")).parts:
            raise ManifestError(
                f"{self._name}: The path {relative!r} leads out of the manifest's folder. Write it without '..'."
            )
        return self.root / relative

    def contents(self, *columns: str) -> dict[str, str]:
        """Cell -> `fingerprint_of` its file or folder, "" if there is none; the column ``video`` by default."""
        cells = {cell for column in columns or ("video",) if column in self.table for cell in self.table[column]}
        paths = {cell: self.resolve(cell) for cell in sorted(cells - {""})}
        with ThreadPoolExecutor(_READERS) as readers:  # most of the time goes into waiting for the disk
            prints = readers.map(lambda path: fingerprint_of(path) if path.exists() else "", paths.values())
            return dict(zip(paths, prints, strict=True))

    @property
    def _name(self) -> str:
        return str(self.path or "manifest")


def folder_fps(path: Path, row: Mapping[Any, Any] | pd.Series) -> Fraction | None:
    """Frames per second of a row whose video is a folder of frames; None for a file, and for a row without ``fps``."""
    rate = pd.to_numeric(row.get("fps", np.nan), errors="coerce")
    return Fraction(float(rate)).limit_denominator(1001) if path.is_dir() and not np.isnan(rate) else None


def read_manifest(path: str | Path) -> Manifest:
    """The manifest in a CSV or Parquet file, checked.

    Raises:
        ManifestError: the file is absent, of another kind, or malformed; the message names row and column. Rows are
            counted from 1, without the header.
    """
    path = Path(path)
    if not path.is_file():
        raise ManifestError(f"{path}: There is no such manifest. Check the path.")
    if path.suffix.lower() not in (".csv", ".parquet"):
        raise ManifestError(
            f"{path}: A manifest is a .csv or .parquet file, not {path.suffix or 'one without an ending'}. {IMPORT}"
        )
    try:
        table = read_parquet(path) if path.suffix.lower() == ".parquet" else _read_csv(path)
    except (ValueError, OSError) as error:
        raise ManifestError(f"{path}: The file cannot be read as a table ({error}). {IMPORT}") from error
    return Manifest(checked(table, str(path)), path.parent, path)


def _read_csv(path: Path) -> pd.DataFrame:
    """The cells of a CSV file as text.

    Raises:
        ValueError: it is no CSV in UTF-8, or a row has more or fewer cells than the header.
    """
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = csv.reader(file)
        try:  # pandas fills short rows up, so that cells would stand in the wrong columns
            n_cells = len(next(rows, []))
            uneven = next((number for number, row in enumerate(rows, 1) if row and len(row) != n_cells), None)
        except csv.Error as error:
            raise ValueError(str(error)) from error
    if uneven is not None:
        raise ValueError(f"row {uneven} has more or fewer cells than the header has names")
    return pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8")


def write_manifest(table: pd.DataFrame, path: str | Path) -> Manifest:
    """Check a table and write it as CSV or Parquet, by the path's ending; atomic.

    Raises:
        ManifestError: as `read_manifest`.
    """
    path = Path(path)
    if path.suffix.lower() not in (".csv", ".parquet"):
        raise ManifestError(
            f"{path}: A manifest is a .csv or .parquet file, not {path.suffix or 'one without an ending'}."
        )
    manifest = Manifest(checked(table, str(path)), path.parent, path)
    for cell in {cell for column in PATHS if column in manifest.table for cell in manifest.table[column]}:
        manifest.resolve(cell)
    if path.suffix.lower() == ".parquet":
        write_parquet(path, manifest.table)
        return manifest
    text = manifest.table.select_dtypes("object")
    returns = any(text[column].astype(str).str.contains("\r", regex=False).any() for column in text)
    quoting: Literal[0, 2] = (
        csv.QUOTE_NONNUMERIC if returns else csv.QUOTE_MINIMAL
    )  # the latter leaves a carriage return bare
    with atomic_path(path) as temporary:
        manifest.table.to_csv(temporary, index=False, encoding="utf-8", quoting=quoting)
    return manifest


def join_manifests(manifests: Sequence[Manifest]) -> Manifest:
    """Several manifests joined into one with absolute paths; a column missing in one of them is empty in its rows.

    Raises:
        ManifestError: a relative path climbs out of its manifest's folder.
    """
    if len(manifests) == 1:
        return manifests[0]
    tables = [absolute_paths(manifest) for manifest in manifests]
    return Manifest(checked(pd.concat(tables, ignore_index=True), "the joined manifests"), Path())


def absolute_paths(manifest: Manifest) -> pd.DataFrame:
    """The table with absolute paths, for a manifest in another folder.

    Raises:
        ManifestError: a relative path climbs out of the manifest's folder.
    """
    table = manifest.table.copy()
    for column in [column for column in PATHS if column in table]:
        codes, unique = pd.factorize(table[column])
        paths = [str(manifest.resolve(cell).absolute()) if cell else "" for cell in unique]
        table[column] = np.array(paths, dtype=object)[codes]
    return table


def checked(table: pd.DataFrame, name: str) -> pd.DataFrame:
    """A copy of a table with the manifest's types: text without NaN, seconds as float64, a fresh index.

    Raises:
        ManifestError: a column is missing, or a cell cannot be what its column says.
    """
    missing = [column for column in REQUIRED if column not in table]
    if missing:
        raise ManifestError(
            f"{name}: The column {', '.join(missing)} is missing; a manifest has at least {', '.join(REQUIRED)}. "
            f"{IMPORT}"
        )
    if table.empty:
        raise ManifestError(f"{name}: The manifest has no rows.")
    table = table.reset_index(drop=True).copy()
    for column in table:
        if pd.api.types.infer_dtype(table[column], skipna=True) in ("bytes", "mixed"):  # of Parquet
            wrong = table[column].map(lambda cell: isinstance(cell, bytes | dict | list | np.ndarray))
            _refuse(wrong, table, str(column), name, "is neither text nor a number")
    for column in ("start_s", "end_s"):
        numbers = pd.to_numeric(table[column].replace("", np.nan), errors="coerce").astype(np.float64)
        wrong = numbers.isna() & ~table[column].isin(["", "nan", "NaN"]) & table[column].notna()
        _refuse(wrong, table, column, name, "is not a number of seconds")
        table[column] = numbers
    _refuse(table["start_s"].isna() | (table["start_s"] < 0), table, "start_s", name, "must be 0 or more")
    _refuse(table["end_s"] < table["start_s"], table, "end_s", name, "lies before start_s")
    for column in ("start_s", "end_s"):
        _refuse(np.isinf(table[column]), table, column, name, "is not a number of seconds")
    if "fps" in table:
        has_rate = table["fps"].notna() & ~table["fps"].isin(["", "nan", "NaN"])
        rate = pd.to_numeric(table["fps"], errors="coerce").astype(np.float64)
        wrong = has_rate & ~((rate > 0) & (rate <= 1e6))
        _refuse(wrong, table, "fps", name, "is no number of frames per second; give one above 0, or leave it empty")
    for column in [c for c in (*REQUIRED, *OPTIONAL_TEXT) if c in table and c not in ("start_s", "end_s")]:
        table[column] = table[column].astype(object).where(table[column].notna(), "").astype(str).astype(object)
    _refuse(table["video"] == "", table, "video", name, "is empty")
    return table


def _refuse(wrong: pd.Series, table: pd.DataFrame, column: str, name: str, reason: str) -> None:
    if wrong.any():
        first = int(np.flatnonzero(wrong.to_numpy())[0])
        suffix = f" (and {int(wrong.sum()) - 1} more rows)" if wrong.sum() > 1 else ""
        raise ManifestError(
            f"{name}: Row {first + 1}, column {column}: {table[column].tolist()[first]!r} {reason}{suffix}."
        )


def _canonical_texts(column: pd.Series) -> list[str]:
    """`_canonical` of every cell; each different text or number is turned into text only once."""
    if column.dtype == np.float64:
        codes, unique = pd.factorize(column.to_numpy().view(np.int64))  # by bits: 0.0 and -0.0 are two texts
        unique = unique.view(np.float64)
    elif pd.api.types.infer_dtype(column.to_numpy(object), skipna=False) == "string":
        codes, unique = pd.factorize(column.to_numpy(object))
    else:
        return [_canonical(value) for value in column]
    texts = np.array([_canonical(value) for value in unique.tolist()], dtype=object)
    return texts[codes].tolist()


def _canonical(value: Any) -> str:
    """A text that is the same for 3, 3.0 and '3', and for NaN, None and ''."""
    if value is None or (isinstance(value, float) and np.isnan(value)):
        return ""
    if isinstance(value, str) and "/" in value:  # a path; to try whether text is a number takes time
        return value
    try:
        return repr(float(value))
    except (TypeError, ValueError):
        return str(value)
