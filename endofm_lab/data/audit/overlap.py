"""Find what two parts of a manifest share: patients, videos, sequences, neighbouring frames and moments.

This module uses the table alone and opens no picture. Ids that are missing in the table are read from file names with
an unambiguous pattern (`<video id>_<frame>.jpg`, `case12/frame_0007.png`), and reported as such. A guess that would
join two patients of the manifest is dropped.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from endofm_lab.brief import Brief
from endofm_lab.data.manifest import Manifest
from endofm_lab.data.units import sequences_from_names

_RANKS = {"pretrain": 0, "train": 1, "training": 1, "val": 2, "valid": 2, "validate": 2, "validation": 2, "dev": 2}
_RANKS |= {"test": 3, "testing": 3}


@dataclass(frozen=True, eq=False, repr=False)
class Rows(Brief):
    """The rows of one or several manifests, ready for comparison.

    Attributes:
        table: the tables one below the other, with ``path`` (absolute) and, as text without NaN, ``dataset``,
            ``label``, ``split``.
        parts: names of the splits that occur, from the most learned from (pretrain) to the most held out (test).
        part: int8 (N,) index into ``parts``, -1 for rows without a part.
        keys: check -> int64 (N,) id of the patient, video or sequence that must stay on one side, -1 if unknown.
        names: check -> list of the ids' names, for messages.
        frame: float64 (N,), number of the frame in its sequence, NaN where unknown.
        inferred: bool (N,), sequence and frame were read from the file name.
    """

    table: pd.DataFrame
    parts: tuple[str, ...]
    part: np.ndarray
    keys: dict[str, np.ndarray]
    names: dict[str, list[str]]
    frame: np.ndarray
    inferred: np.ndarray

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """(learned, evaluated) parts to compare: all but pre-training with training, which may overlap."""
        numbers = range(len(self.parts))
        ranks = [_RANKS.get(part.lower(), 4) for part in self.parts]
        return [(a, b) for a in numbers for b in numbers[a + 1 :] if (ranks[a], ranks[b]) != (0, 1)]


def gather(manifests: Sequence[Manifest], pretrain: Sequence[Manifest] = ()) -> Rows:
    """The rows of all manifests; those of ``pretrain`` get the split `pretrain`, whatever their table says."""
    tables: list[pd.DataFrame] = []
    for manifest in [*manifests, *pretrain]:
        table = manifest.table.reset_index(drop=True)
        videos, unique = pd.factorize(table["video"].astype(object))
        table = table.assign(path=_paths(str(manifest.root), unique)[videos] if len(table) else [])
        if len(tables) >= len(manifests):
            table = table.assign(split="pretrain")
        tables.append(table)
    table = pd.concat(tables, ignore_index=True)
    for column in ("dataset", "label", "split"):
        table[column] = table[column].fillna("").astype(str)
    parts = sorted(set(table["split"]) - {""}, key=lambda part: (_RANKS.get(part.lower(), 4), part))
    part = pd.Categorical(table["split"], categories=parts).codes.astype(np.int8)

    scope = table["dataset"] + "\x00"
    ids = {column: _text(table, column) for column in ("patient", "sequence")}
    guessed, guessed_frame = sequences_from_names(table["video"].astype(str))
    inferred = np.asarray((ids["sequence"] == "") & (guessed != ""))
    # `phantom-0-7.png` looks like frame 7 of `phantom-0`: not where the manifest says that two patients share the id.
    of_guess = ids["patient"].where(ids["patient"] != "").groupby((scope + guessed).where(inferred))
    inferred = inferred & ~np.asarray(of_guess.transform("nunique") > 1)
    sequence = ids["sequence"].where(~inferred, guessed)
    frame = np.full(len(table), np.nan)
    if "frame" in table:
        frame = pd.to_numeric(table["frame"], errors="coerce").to_numpy(float)
    frame = np.where(np.isnan(frame) & (inferred | np.asarray(ids["sequence"] != "")), guessed_frame, frame)

    keys, names = {}, {}
    texts = {"patient": ids["patient"], "video": table["path"].astype(str), "sequence": sequence}
    for check, text in texts.items():
        scoped = text if check == "video" else scope + text
        codes, unique = pd.factorize(scoped)
        keys[check] = np.where((text == "").to_numpy(), -1, codes)
        names[check] = list(unique) if check == "video" else [str(name).split("\x00")[-1] for name in unique]
    return Rows(table, tuple(parts), part, keys, names, frame, inferred)


def _paths(root: str, names: Sequence[str] | pd.Index) -> np.ndarray:
    """Absolute paths of files, joined by text: a million calls of the file system would take minutes."""
    folders: dict[str, str] = {}
    paths = np.empty(len(names), dtype=object)
    for at, name in enumerate(map(str, names)):
        file = name.rpartition("/")[2]
        folder = name[: len(name) - len(file)]
        if file in ("", ".", "..") or os.sep != "/":
            paths[at] = os.path.normpath(os.path.join(root, name))  # noqa: PTH118
            continue
        if folder not in folders:
            joined = os.path.normpath(os.path.join(root, folder))  # noqa: PTH118
            folders[folder] = "" if joined == "." else joined
        paths[at] = os.path.join(folders[folder], file)  # noqa: PTH118
    return paths


def _text(table: pd.DataFrame, column: str) -> pd.Series:
    if column not in table:
        return pd.Series("", index=table.index)
    return table[column].fillna("").astype(str)


@dataclass(frozen=True, eq=False, repr=False)
class Shared(Brief):
    """Ids in both a learned and an evaluated part, ids of the evaluated part, and bool (N,) of the affected rows."""

    common: np.ndarray
    n_evaluated: int
    touched: np.ndarray


def shared(keys: np.ndarray, learned: np.ndarray, evaluated: np.ndarray) -> Shared:
    """Ids that are on both sides.

    Args:
        keys: int64 (N,), -1 where unknown.
        learned: bool (N,), rows of one side.
        evaluated: bool (N,), rows of the other.
    """
    has_key = keys >= 0
    evaluated_keys = np.unique(keys[evaluated & has_key])
    common = np.intersect1d(np.unique(keys[learned & has_key]), evaluated_keys, assume_unique=True)
    return Shared(common, len(evaluated_keys), evaluated & has_key & np.isin(keys, common))


def frame_gaps(
    sequence: np.ndarray, frame: np.ndarray, learned: np.ndarray, evaluated: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Distance in frames to the nearest learned frame of the same sequence, for every evaluated row.

    Args:
        sequence: int64 (N,), -1 where unknown.
        frame: float64 (N,), NaN where unknown.
        learned: bool (N,).
        evaluated: bool (N,).

    Returns:
        Float64 (N,) gaps (infinite where there is no such frame, or the row is not evaluated) and int64 (N,) the row
        of the nearest learned frame (-1 where there is none).
    """
    usable = (sequence >= 0) & np.isfinite(frame)
    left, right = np.flatnonzero(learned & usable), np.flatnonzero(evaluated & usable)
    gaps, nearest = np.full(len(frame), np.inf), np.full(len(frame), -1)
    if not len(left) or not len(right):
        return gaps, nearest
    # One number line: every sequence gets a stretch of its own, longer than any gap within a sequence.
    low = frame[usable].min()
    stretch = 2 * (frame[usable].max() - low) + 2
    place = np.where(usable, sequence * stretch + frame - low, 0.0)
    left = left[np.argsort(place[left], kind="stable")]
    at = np.searchsorted(place[left], place[right])
    for step in (at - 1, at):
        neighbour = left[np.clip(step, 0, len(left) - 1)]
        gap = np.where(sequence[neighbour] == sequence[right], np.abs(frame[neighbour] - frame[right]), np.inf)
        better = gap < gaps[right]
        gaps[right] = np.where(better, gap, gaps[right])
        nearest[right] = np.where(better, neighbour, nearest[right])
    return gaps, nearest


def time_gaps(
    video: np.ndarray, start_s: np.ndarray, end_s: np.ndarray, learned: np.ndarray, evaluated: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Seconds between every evaluated clip and the nearest learned clip of the same video; 0 where they overlap.

    Args:
        video: int64 (N,), -1 where unknown.
        start_s: float64 (N,) seconds; NaN means the start of the video.
        end_s: float64 (N,) seconds; NaN means its end.
        learned: bool (N,).
        evaluated: bool (N,).

    Returns:
        As :func:`frame_gaps`, in seconds.
    """
    start = np.nan_to_num(start_s, nan=0.0)
    end = np.where(np.isnan(end_s), np.inf, end_s)
    left, right = np.flatnonzero(learned & (video >= 0)), np.flatnonzero(evaluated & (video >= 0))
    gaps, nearest = np.full(len(start), np.inf), np.full(len(start), -1)
    if not len(left) or not len(right):
        return gaps, nearest
    left = left[np.lexsort((start[left], video[left]))]
    # Latest end among the learned clips of a video that start no later than this one: a running maximum per video.
    finite = np.isfinite(end)
    limit = max(start.max(), end[finite].max(initial=0.0)) + 1.0
    stretch = 2 * limit
    place = video * stretch
    ends = place + np.minimum(end, limit)
    running = np.maximum.accumulate(ends[left])
    # The row that determines the running maximum.
    is_new = np.concatenate([[True], running[1:] > running[:-1]])
    holder = left[np.maximum.accumulate(np.where(is_new, np.arange(len(left)), 0))]
    at = np.searchsorted((place + start)[left], (place + start)[right], side="right")

    previous = np.clip(at - 1, 0, None)
    neighbour = holder[previous]
    same_video = (at > 0) & (video[left[previous]] == video[right])
    gap = np.where(same_video, np.maximum(0.0, (place + start)[right] - running[previous]), np.inf)
    gaps[right], nearest[right] = gap, np.where(same_video, neighbour, -1)

    following = np.clip(at, 0, len(left) - 1)
    neighbour = left[following]
    same_video = (at < len(left)) & (video[neighbour] == video[right])
    gap = np.where(same_video, np.maximum(0.0, start[neighbour] - end[right]), np.inf)
    better = gap < gaps[right]
    gaps[right] = np.where(better, gap, gaps[right])
    nearest[right] = np.where(better, neighbour, nearest[right])
    return gaps, nearest
