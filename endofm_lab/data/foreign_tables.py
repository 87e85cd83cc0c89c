"""Tables as people have them: text with any separator and encoding, spreadsheets and Parquet, every cell as text."""

import csv
import io
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import pandas as pd

from endofm_lab.brief import Brief
from endofm_lab.errors import UserError
from endofm_lab.files import read_parquet, reading

SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars"}
ENDINGS = (".csv", ".tsv", ".txt", ".xlsx", ".parquet")
_MOST_UNPACKED = 500_000_000  # bytes of a spreadsheet, which is a compressed archive
_BYTE_ORDER_MARKS = (b"\xff\xfe", b"\xfe\xff")


@dataclass(frozen=True, eq=False, repr=False)
class ForeignTable(Brief):
    """A table that is no manifest yet.

    Attributes:
        cells: text without spaces around it; the index is the line of the file, from 1, the header included.
        how: how the file was read, in words: "UTF-8, separated by semicolons".
        uneven: lines with more or fewer cells than the header; they are not among the cells.
    """

    cells: pd.DataFrame
    how: str
    uneven: list[int]


def read_foreign_table(path: str | Path) -> ForeignTable:
    """The cells of a table, whose separator and encoding are found out.

    Raises:
        UserError: the file is absent, of another kind, or holds no table with a header and a row.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: There is no such table. Check the path.")
    ending = path.suffix.lower()
    if ending not in ENDINGS:
        raise UserError(f"{path}: A table is a file that ends in {', '.join(ENDINGS)}. Save it as one of them.")
    try:
        table = _read(path, ending)
    except ImportError as error:
        needed = "install it by pip install 'endofm-lab[export]', or save the table as CSV"
        raise UserError(f"{path}: A spreadsheet needs openpyxl: {needed}.") from error
    names = Counter(table.cells.columns)
    if repeats := [name for name, count in names.items() if count > 1]:
        raise UserError(f"{path}: The column {', '.join(map(repr, repeats))} is there twice. Give each its own name.")
    if table.cells.empty:
        raise UserError(f"{path}: There is no row below the header. Give a table with a header and at least one row.")
    return table


def _read(path: Path, ending: str) -> ForeignTable:
    with reading(path, "Save the table again, for example as CSV in UTF-8."):
        if ending == ".parquet":
            return ForeignTable(_as_text(read_parquet(path), first_line=1), "Parquet", [])
        if ending == ".xlsx":
            return ForeignTable(_as_text(read_spreadsheet(path, text=True), first_line=2), "the first sheet", [])
        return _from_text(path.read_bytes())


def read_spreadsheet(path: str | Path, text: bool = False) -> pd.DataFrame:
    """The first sheet of an .xlsx file; with ``text`` every cell as text.

    Raises:
        ImportError: openpyxl is not installed.
        UserError: it would unpack to more than 500 MB.
    """
    with ZipFile(path) as archive:
        unpacked = sum(entry.file_size for entry in archive.infolist())
    if unpacked > _MOST_UNPACKED:
        raise UserError(f"{path}: It unpacks to {unpacked:,} bytes; at most {_MOST_UNPACKED:,} are read.")
    return pd.read_excel(path, dtype=str, keep_default_na=False) if text else pd.read_excel(path)


def _from_text(data: bytes) -> ForeignTable:
    text, encoding = _decoded(data)
    lines = text.splitlines(keepends=True)
    skipped, stated_separator = 0, None
    if lines and lines[0].lower().startswith("sep=") and len(lines[0].strip()) == 5:  # a hint that Excel writes
        skipped, stated_separator = 1, lines[0][4]
    body = "".join(lines[skipped:])
    separator = stated_separator or _separator(body)
    reader = csv.reader(io.StringIO(body, newline=""), delimiter=separator, skipinitialspace=True)
    header = [name.strip() for name in next(reader, [])]
    rows, numbers, uneven = [], [], []
    for row in reader:
        line = reader.line_num + skipped
        if not any(cell.strip() for cell in row):
            continue
        if len(row) != len(header):
            uneven.append(line)
            continue
        rows.append([cell.strip() for cell in row])
        numbers.append(line)
    cells = pd.DataFrame(np.array(rows, dtype=object).reshape(-1, len(header)), columns=header, index=numbers)
    return ForeignTable(cells, f"{encoding}, separated by {SEPARATORS.get(separator, repr(separator))}", uneven)


def _decoded(data: bytes) -> tuple[str, str]:
    """The text of a file, and the name of its encoding: UTF-16 by its mark, UTF-8, or else that of old Windows."""
    if data[:2] in _BYTE_ORDER_MARKS:
        return data.decode("utf-16"), "UTF-16"
    try:
        return data.decode("utf-8-sig"), "UTF-8"
    except UnicodeDecodeError:
        try:
            return data.decode("cp1252"), "Windows-1252"
        except UnicodeDecodeError:
            return data.decode("latin-1"), "Latin-1"


def _separator(text: str) -> str:
    """The separator with which most lines have as many cells as the header, and the header more than one."""
    sample = "".join(text.splitlines(keepends=True)[:200])

    def quality(separator: str) -> tuple[bool, float, int]:
        counts = [len(row) for row in csv.reader(io.StringIO(sample, newline=""), delimiter=separator) if row]
        n_cells = counts[0] if counts else 0
        return n_cells > 1, sum(count == n_cells for count in counts) / max(1, len(counts)), n_cells

    return max(SEPARATORS, key=quality)


def _as_text(table: pd.DataFrame, first_line: int) -> pd.DataFrame:
    """Every cell as text, whole numbers without a fraction and missing values as empty text."""

    def text(value: object) -> str:
        if value is None or (isinstance(value, float) and np.isnan(value)) or value is pd.NaT or value is pd.NA:
            return ""
        return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value).strip()

    result = pd.DataFrame({n: column.map(text).astype(object) for n, (_, column) in enumerate(table.items())})
    result.columns = [str(name).strip() for name in table.columns]
    result.index = pd.RangeIndex(first_line, first_line + len(result))
    return result
