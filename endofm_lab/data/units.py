"""Units of independence: which rows form one case, and the words for such cases beside every number.

Frames of one operation resemble each other, so they are one case regardless of the number of rows. The unit of a row is
its patient; if the patient is unknown, its sequence (the recording); and if the sequence is unknown too, its video. A
unit is never finer than a recording: rows that share a patient, a sequence or a video, directly or through other rows,
are one unit. Splits, intervals, ranks, probes, neighbours and the audit all take their units from this module.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from endofm_lab.brief import Brief
from endofm_lab.video.images import IMAGE_SUFFIXES

# With 4 units there are only 35 different resamples, so that the outer 2.5 % hardly differ from the worst and the best
# unit; with 5 there are 126.
MIN_UNITS_FOR_INTERVAL = 5
# From here on a nominal 95 % interval covers at least 90 %, so that a p-value of 0.05 means at most 0.10.
MIN_UNITS_FOR_RANK = 10

GROUP_COLUMNS = ("patient", "video", "sequence")
# The possible kinds of units, the best first; an image is its own unit only if nothing else is known.
KINDS = ("patient", "sequence", "sequence (read from the file names)", "video", "image")
_PATIENT, _SEQUENCE, _GUESSED, _VIDEO, _IMAGE = range(len(KINDS))
_PLURALS = ("patients", "sequences", "sequences (read from the file names)", "videos", "images")

# `04a78ef00c5245e0_11602.jpg`: an id with at least one digit, a separator, the number of the frame.
_ID_AND_FRAME = re.compile(r"^(?P<id>.*\d.*?)[ _.-]+(?:frame|img|image|f)?[ _-]*(?P<frame>\d{1,9})$", re.IGNORECASE)
# `case12/frame_0007.png`: a numbered folder of numbered frames.
_NUMBERED_FOLDER = re.compile(
    r"(?:case|vid|video|seq|sequence|patient|clip|exam|procedure)[ _.-]*\d+|\d+", re.IGNORECASE
)
_ENDING = re.compile(r"\.[A-Za-z0-9]{1,5}$")
_LAST_NUMBER = re.compile(r"(\d{1,9})$")


@dataclass(frozen=True, eq=False, repr=False)
class Units(Brief):
    """The unit of every row.

    Attributes:
        ids: (N,) str, the unit of each row: data set and patient (or sequence, or video).
        kinds: (N,) index into ``KINDS``, the kind of this unit.
        datasets: (N,) str, the data set that names the unit.
    """

    ids: NDArray[Any]
    kinds: NDArray[np.int64]
    datasets: NDArray[Any]

    @property
    def n(self) -> int:
        """The number of units."""
        return len(pd.unique(self.ids))

    @property
    def repeat(self) -> bool:
        """Whether any unit has several rows, so that rows are not independent."""
        return self.n < len(self.ids)

    @property
    def kind(self) -> str:
        """The kind of the units: "patient", or the kind in each data set if they differ ("a: patient, b: sequence")."""
        by_set = {name: " and ".join(KINDS[k] for k in counts) for name, counts in self._counts().items()}
        entry = set(by_set.values())
        return entry.pop() if len(entry) == 1 else ", ".join(f"{name}: {kind}" for name, kind in by_set.items())

    @property
    def words(self) -> str:
        """Number and kind of units: "16 patients", "1 sequence; patients unknown"; by data set if they differ."""
        counts = self._counts()
        if len({tuple(entry) for entry in counts.values()}) <= 1:
            total: dict[int, int] = {}
            for entry in counts.values():
                total = {kind: total.get(kind, 0) + n for kind, n in entry.items()}
            return _in_words(total)
        return "; ".join(f"{name}: {_in_words(entry, ', ')}" for name, entry in counts.items())

    @property
    def patients_known(self) -> bool:
        """Whether every unit is a patient."""
        return bool((self.kinds == _PATIENT).all())

    def take(self, rows: NDArray[Any]) -> "Units":
        """The units of some rows, given by number or as bool (N,)."""
        return Units(self.ids[rows], self.kinds[rows], self.datasets[rows])

    def described(self) -> dict[str, Any]:
        """``kind``, ``n`` and ``words`` as plain values, for a report."""
        return {"kind": self.kind, "n": self.n, "words": self.words}

    def _counts(self) -> dict[str, dict[int, int]]:
        """Data set -> kind -> number of units, both sorted."""
        first = np.flatnonzero(~pd.Series(self.ids).duplicated())
        sizes = Counter(zip(self.datasets[first].tolist(), self.kinds[first].tolist(), strict=True))
        counts: dict[str, dict[int, int]] = {}
        for dataset, kind in sorted(sizes):
            counts.setdefault(dataset, {})[kind] = sizes[dataset, kind]
        return counts


def units(table: pd.DataFrame) -> Units:
    """The unit of every row of a manifest's table: patient, otherwise sequence, otherwise video, within its data set.

    Patients that share a recording count as one unit, named after the first of them. Images that name neither patient
    nor sequence belong to the sequence in their file names, if the names are unambiguous (``<video id>_<frame>.jpg``);
    otherwise each image is a unit of its own, and ``words`` says so.

    Args:
        table: with a column ``video``; ``dataset``, ``patient`` and ``sequence`` count if they are present and not
            empty.
    """
    cells = _Cells.of(table)
    kinds = np.where(cells.images, _IMAGE, _VIDEO)
    numbers = np.array([f"of row {row}" for row in range(len(table))], dtype=object)
    names = np.where(cells.texts["video"] != "", cells.texts["video"], numbers)
    for kind, column, usable in (
        (_GUESSED, "sequence", cells.guessed),
        (_SEQUENCE, "sequence", ~cells.guessed),
        (_PATIENT, "patient", True),
    ):
        applies = (cells.texts[column] != "") & usable
        kinds, names = np.where(applies, kind, kinds), np.where(applies, cells.texts[column], names)
    group = _components(cells, None, GROUP_COLUMNS)
    best = np.full(group.max(initial=-1) + 1, len(KINDS))
    np.minimum.at(best, group, kinds)
    rows = pd.DataFrame({"group": group, "kind": kinds, "dataset": cells.texts["dataset"], "name": names})
    rows = rows[kinds == best[group]].drop_duplicates(["group", "dataset", "name"])
    several = rows["group"].duplicated(keep=False)  # named after the first, whatever the order of the rows
    first = pd.concat([rows[~several], rows[several].sort_values(["dataset", "name"]).drop_duplicates("group")])
    first = first.sort_values("group")  # groups are numbered from 0
    words = np.array(["", "sequence ", "sequence ", "video ", "image "], dtype=object)
    dataset, kind = first["dataset"].to_numpy(object), first["kind"].to_numpy(np.int64)
    titles = dataset + "/" + words[kind] + first["name"].to_numpy(object)
    return Units(titles[group], kind[group], dataset[group])


def group_ids(
    table: pd.DataFrame, links: np.ndarray | None = None, columns: Sequence[str] = GROUP_COLUMNS
) -> NDArray[np.int64]:
    """Int64 (N,) group of every row: rows with a common patient, video or sequence are in one group.

    Patients and sequences are compared within their data set, because `patient 1` of two data sets are two people.

    Args:
        table: a manifest's table; empty cells connect no rows. An image without patient and sequence belongs to the
            sequence in its file name (see `sequences_from_names`).
        links: (L, 2) pairs of rows that must stay together too, such as near-duplicates found by the audit.
        columns: the columns that connect rows; without "patient", groups are recordings.
    """
    return _components(_Cells.of(table), links, columns)


@dataclass(frozen=True)
class _Cells:
    """A table's cells as text, (N,) each: "dataset", "patient", "sequence" (with what names give) and "video"."""

    texts: dict[str, NDArray[Any]]
    guessed: NDArray[np.bool_]  # the sequence was read from the file name
    images: NDArray[np.bool_]

    @classmethod
    def of(cls, table: pd.DataFrame) -> "_Cells":
        texts = {column: _text(table, column) for column in ("dataset", *GROUP_COLUMNS)}
        images = np.array([_ending(name) in IMAGE_SUFFIXES for name in texts["video"]], dtype=bool)
        silent = np.flatnonzero(images & (texts["patient"] == "") & (texts["sequence"] == ""))
        names = sequences_from_names(pd.Series(texts["video"][silent], dtype=object))[0].to_numpy(object)
        texts["sequence"] = texts["sequence"].copy()
        texts["sequence"][silent] = names
        guessed = np.zeros(len(table), bool)
        guessed[silent] = names != ""
        return cls(texts, guessed, images)


def _components(cells: _Cells, links: np.ndarray | None, columns: Sequence[str]) -> NDArray[np.int64]:
    """Int64 (N,) connected component of every row, numbered by first appearance."""
    n = len(cells.images)
    rows, keys, n_keys = [np.empty(0, np.int64)], [np.empty(0, np.int64)], 0
    for column in columns:
        text = cells.texts[column]
        scope = text if column == "video" else cells.texts["dataset"] + "\x00" + text
        codes, unique = pd.factorize(scope)
        filled = text != ""
        rows.append(np.flatnonzero(filled))
        keys.append(codes[filled] + n_keys)
        n_keys += len(unique)
    start, end = np.concatenate(rows), np.concatenate(keys) + n
    if links is not None and len(links):
        start, end = np.concatenate([start, links[:, 0]]), np.concatenate([end, links[:, 1]])
    size = n + n_keys
    graph = coo_array((np.ones(len(start), bool), (start, end)), shape=(size, size))
    return pd.factorize(connected_components(graph, directed=False)[1][:n])[0].astype(np.int64)


def sequences_from_names(videos: pd.Series) -> tuple[pd.Series, NDArray[np.float64]]:
    """Sequence ids (text, empty if there is no clear id) and frame numbers (or NaN), read from file names."""
    folders: dict[str, bool] = {}
    pairs = [_sequence_of(video, folders) for video in videos]
    ids = pd.Series([sequence for sequence, _ in pairs], index=videos.index, dtype=object)
    return ids, np.array([frame for _, frame in pairs], dtype=float)


def _sequence_of(video: str, folders: dict[str, bool]) -> tuple[str, float]:
    """Sequence and frame number in one file name; ``folders`` remembers which folders are numbered sequences."""
    folder, _, name = _ENDING.sub("", video).rpartition("/")
    number = _LAST_NUMBER.search(name)
    if number is None or not number[1].isascii():
        return "", np.nan
    if folder not in folders:
        folders[folder] = _NUMBERED_FOLDER.fullmatch(folder.rpartition("/")[2]) is not None
    if folders[folder]:
        return folder, float(number[1])
    match = _ID_AND_FRAME.search(name)
    return (match["id"], float(number[1])) if match else ("", np.nan)


def _ending(name: str) -> str:
    return name[name.rfind(".") :].lower() if "." in name else ""


def _text(table: pd.DataFrame, column: str) -> NDArray[Any]:
    if column not in table:
        return np.full(len(table), "", dtype=object)
    cells = table[column].astype(object)
    if pd.api.types.infer_dtype(cells.to_numpy(), skipna=False) == "string":
        return cells.to_numpy()
    return cells.where(cells.notna(), "").astype(str).to_numpy(object)


def _in_words(counts: dict[int, int], before_unknown: str = "; ") -> str:
    words = " and ".join(f"{n:,} {(_PLURALS if n != 1 else KINDS)[kind]}" for kind, n in sorted(counts.items()))
    if set(counts) == {_PATIENT}:
        return words
    return f"{words}{before_unknown}patients unknown" if _PATIENT not in counts else f"{words} of unknown patients"
