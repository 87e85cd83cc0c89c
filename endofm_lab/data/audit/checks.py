"""The single checks of the audit, and what they report."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

import numpy as np
import pandas as pd

from endofm_lab.brief import Brief
from endofm_lab.data.audit.confounding import confounding
from endofm_lab.data.audit.duplicates import Neighbours
from endofm_lab.data.audit.overlap import Rows, frame_gaps, shared, time_gaps
from endofm_lab.data.units import MIN_UNITS_FOR_RANK, group_ids

N_EXAMPLES = 12
NEAR_FRAMES = 5
NEAR_S = 1.0
STRONG_V = 0.3  # Cramér's V from which a confounder is worth a warning
Severity = Literal["leak", "warning", "note"]
SEVERITIES = ("leak", "warning", "note")


@dataclass(frozen=True)
class Example:
    """Two rows that belong together: their videos, splits, labels and starts, and the reason."""

    path: str
    other_path: str
    split: str
    other_split: str
    label: str
    other_label: str
    start_s: float
    other_start_s: float
    why: str


@dataclass(frozen=True, repr=False)
class Finding(Brief):
    """A finding of the audit.

    Attributes:
        check: name of the check, such as `same patient` or `near-duplicate pictures`.
        severity: `leak` (the evaluated part is not independent), `warning` or `note`.
        message: one sentence.
        rows: number of affected rows; for a leak, of evaluated rows.
        of_rows: number of all rows; for a leak, of the evaluated rows of the data set.
        learned: the part used for training; empty if the check does not compare two parts.
        evaluated: the part whose results are affected.
        dataset: the data set of the finding; empty for all data sets together.
        numbers: further figures of this check, such as the patients, videos or sequences in common.
        examples: a few pairs of rows.
    """

    check: str
    severity: Severity
    message: str
    rows: int
    of_rows: int
    learned: str = ""
    evaluated: str = ""
    dataset: str = ""
    numbers: dict[str, float] = field(default_factory=dict)
    examples: tuple[Example, ...] = ()


class Checks:
    """Runs the checks on the rows and collects their findings.

    Attributes:
        findings: in the order of the checks.
        touched: (learned, evaluated) numbers of parts -> bool (N,), evaluated rows that any leak touches.
        compared: the comparisons that were made.
        unchecked: what could not be compared, and why.
    """

    def __init__(self, rows: Rows) -> None:
        self.rows = rows
        self.findings: list[Finding] = []
        self.touched = {pair: np.zeros(len(rows.table), bool) for pair in rows.pairs}
        self.compared = ["patients, videos, sequences, frame numbers"]
        self.unchecked: list[str] = []
        self._datasets = [(name, (rows.table["dataset"] == name).to_numpy()) for name in rows.table["dataset"].unique()]

    def same_ids(self, a: int, b: int) -> None:
        """Patients, videos and sequences that are in part ``a`` and in part ``b``."""
        rows = self.rows
        for check, keys in rows.keys.items():
            for dataset, inside in self._datasets:
                evaluated = (rows.part == b) & inside
                # A file may be listed under two data sets (clips cut from another's videos); other ids are their own.
                learned = (rows.part == a) if check == "video" else (rows.part == a) & inside
                overlap = shared(keys, learned, evaluated)
                if not len(overlap.common):
                    continue
                guessed = check == "sequence" and rows.inferred[overlap.touched].all()
                source = " (read from the file names)" if guessed else ""
                examples = overlap.common[:N_EXAMPLES]
                pairs = zip(_first_rows(keys, evaluated, examples), _first_rows(keys, learned, examples), strict=True)
                self._leak(
                    f"same {check}",
                    (a, b),
                    dataset,
                    overlap.touched,
                    f"{len(overlap.common):,} of {overlap.n_evaluated:,} {check}s of {rows.parts[b]}{source} are also "
                    f"in {rows.parts[a]}: {overlap.touched.sum():,} of {evaluated.sum():,} rows.",
                    [self._example(i, j, f"{check} {rows.names[check][keys[i]]}") for i, j in pairs],
                    {"common": len(overlap.common), "of": overlap.n_evaluated},
                )

    def near_frames(self, a: int, b: int) -> None:
        """Neighbouring frames of one sequence on both sides of the split."""
        rows = self.rows
        gaps, nearest = frame_gaps(rows.keys["sequence"], rows.frame, rows.part == a, rows.part == b)
        for dataset, inside in self._datasets:
            n = int(((rows.part == b) & inside).sum())
            near, adjacent = (inside & (gaps <= limit) for limit in (NEAR_FRAMES, 1))
            closest = np.flatnonzero(near)[np.argsort(gaps[near], kind="stable")][:N_EXAMPLES]
            self._leak(
                "near frames",
                (a, b),
                dataset,
                near,
                f"{percent(adjacent.sum(), n)} of the {rows.parts[b]} rows ({adjacent.sum():,} of {n:,}) are the same "
                f"as or directly adjacent to a {rows.parts[a]} frame, {percent(near.sum(), n)} lie within "
                f"{NEAR_FRAMES} frames of one.",
                [self._example(i, nearest[i], f"{gaps[i]:.0f} frames apart") for i in closest],
                {"adjacent": int(adjacent.sum()), "near": int(near.sum())},
            )

    def near_clips(self, a: int, b: int) -> None:
        """Clips of one video that overlap or almost touch across the split."""
        rows = self.rows
        start, end = rows.table["start_s"].to_numpy(float), rows.table["end_s"].to_numpy(float)
        clip = ~(end <= start)  # an image has no length, and comparing its id is enough
        gaps, nearest = time_gaps(rows.keys["video"], start, end, clip & (rows.part == a), clip & (rows.part == b))
        for dataset, inside in self._datasets:
            n = int(((rows.part == b) & inside).sum())
            near, overlapping = (inside & (gaps <= limit) for limit in (NEAR_S, 0))
            closest = np.flatnonzero(near)[np.argsort(gaps[near], kind="stable")][:N_EXAMPLES]
            self._leak(
                "near clips",
                (a, b),
                dataset,
                near,
                f"{near.sum():,} of {n:,} {rows.parts[b]} rows lie within {NEAR_S:g} s of a {rows.parts[a]} row of the "
                f"same video, {overlapping.sum():,} of them overlap it.",
                [self._example(i, nearest[i], f"{gaps[i]:.2f} s apart") for i in closest],
                {"overlapping": int(overlapping.sum()), "near": int(near.sum())},
            )

    def neighbours(self, result: Neighbours, check: str) -> None:
        """Pairs of rows that show the same scene: leaks across the split, and contradictions if their labels differ."""
        rows, pairs = self.rows, result.pairs  # the best pairs first
        self.compared.append(result.compared)
        self.unchecked += result.problems
        i, j = pairs["row"].to_numpy(), pairs["other"].to_numpy()
        sure = pairs["score"].to_numpy() >= result.sure
        for a, b in rows.pairs:
            directions = [(rows.part[i] == a) & (rows.part[j] == b), (rows.part[i] == b) & (rows.part[j] == a)]
            evaluated_row, learned_row = np.where(directions[0], j, i), np.where(directions[0], i, j)
            for dataset, inside in self._datasets:
                hits = np.flatnonzero((directions[0] | directions[1]) & inside[evaluated_row] & sure)
                touched = np.zeros(len(rows.table), bool)
                touched[evaluated_row[hits]] = True
                n = int(((rows.part == b) & inside).sum())
                self._leak(
                    check,
                    (a, b),
                    dataset,
                    touched,
                    f"{touched.sum():,} of {n:,} {rows.parts[b]} rows look the same as a row of {rows.parts[a]} "
                    f"({check}, pairs: {len(hits):,}).",
                    [self._example(evaluated_row[k], learned_row[k], _similarity(pairs, k)) for k in hits[:N_EXAMPLES]],
                    {"pairs": len(hits)},
                )
        labels = rows.table["label"].to_numpy()
        differ = np.flatnonzero((labels[i] != labels[j]) & (labels[i] != "") & (labels[j] != "") & sure)
        within = np.flatnonzero((rows.part[i] == rows.part[j]) & sure)
        for name, severity, hits, words in (
            ("label conflict", "warning", differ, "carry different labels"),
            ("duplicates within a part", "note", within, "lie within one part and count double"),
            ("possible", "warning", np.flatnonzero(~sure), "are less sure: look at them"),
        ):
            if len(hits):
                touched_rows = len(np.unique(np.concatenate([i[hits], j[hits]])))
                self.findings.append(
                    Finding(
                        f"{name} ({check})",
                        severity,  # type: ignore[arg-type]
                        f"{len(hits):,} pairs of {check} {words} ({touched_rows:,} rows).",
                        touched_rows,
                        len(rows.table),
                        numbers={"pairs": len(hits)},
                        examples=tuple(self._example(i[k], j[k], _similarity(pairs, k)) for k in hits[:N_EXAMPLES]),
                    )
                )

    def label_contradictions(self) -> None:
        """The same picture or clip listed with different labels."""
        table = self.rows.table
        item = self.rows.keys["video"]
        for values in (table["start_s"].to_numpy(float), table["end_s"].to_numpy(float), self.rows.frame):
            codes, unique = pd.factorize(values, use_na_sentinel=False)
            item = pd.factorize(item * len(unique) + codes)[0]
        labels = table["label"].to_numpy(object)
        codes, unique = pd.factorize(labels)
        n_labels = np.bincount(pd.unique(item * len(unique) + codes) // len(unique))
        bad = np.flatnonzero(n_labels[item] > 1)
        if not len(bad):
            return
        bad = bad[np.argsort(item[bad], kind="stable")]
        pairs = [(p, q) for p, q in pairwise(bad.tolist()) if item[p] == item[q] and labels[p] != labels[q]]
        self.findings.append(
            Finding(
                "label conflict (same entry)",
                "warning",
                f"{(n_labels > 1).sum():,} pictures or clips are listed with different labels ({len(bad):,} rows).",
                len(bad),
                len(table),
                numbers={"items": int((n_labels > 1).sum())},
                examples=tuple(self._example(p, q, "the same picture or clip") for p, q in pairs[:N_EXAMPLES]),
            )
        )

    def confounders(self) -> None:
        """Classes that can be guessed from the device or the data set."""
        table, groups = self.rows.table, group_ids(self.rows.table)
        for column in ("device", "dataset"):
            if column not in table:
                continue
            result = confounding(column, table[column].fillna("").astype(str), table["label"], groups)
            if result is None or result.cramers_v < STRONG_V or result.p_value > 0.01:
                continue
            if math.isnan(result.p_value):
                self.unchecked.append(
                    f"The {column} goes with the class (Cramér's V {result.cramers_v:.2f}), which may be chance: with "
                    f"{result.n_groups} independent groups there is no test; {MIN_UNITS_FOR_RANK} are needed."
                )
                continue
            self.findings.append(
                Finding(
                    f"class and {column}",
                    "warning",
                    f"The {column} alone guesses the class with a balanced accuracy of {result.guess:.2f} (chance "
                    f"{result.chance:.2f}; Cramér's V {result.cramers_v:.2f}, p {result.p_value:.3f} by permutation of "
                    f"groups): a model may learn the {column}.",
                    len(table),
                    len(table),
                    numbers={
                        "cramers_v": result.cramers_v,
                        "guess": result.guess,
                        "chance": result.chance,
                        "p_value": result.p_value,
                    },
                )
            )

    def blind_spots(self) -> None:
        """Record which leaks ids alone cannot show."""
        rows = self.rows
        placed = rows.part >= 0
        if not placed.all():
            self.unchecked.append(f"{(~placed).sum():,} rows have no split and were not compared.")
        no_patient = placed & (rows.keys["patient"] < 0)
        blind = no_patient & (rows.keys["sequence"] < 0)
        sets = ", ".join(sorted(set(rows.table["dataset"][blind])))
        if blind.any():
            self.unchecked.append(
                f"{blind.sum():,} rows ({sets}) name neither patient nor sequence, so shared patients cannot be seen."
            )
        elif no_patient.any():
            self.unchecked.append(
                f"{no_patient.sum():,} rows do not name the patient; only their videos and sequences were compared."
            )

    def _example(self, i: int, j: int, reason: str) -> Example:
        evaluated, learned = (self.rows.table.iloc[int(k)] for k in (i, j))
        return Example(
            evaluated["path"],
            learned["path"],
            evaluated["split"],
            learned["split"],
            evaluated["label"],
            learned["label"],
            float(evaluated["start_s"]),
            float(learned["start_s"]),
            reason,
        )

    def _leak(
        self,
        check: str,
        pair: tuple[int, int],
        dataset: str,
        touched: np.ndarray,
        message: str,
        examples: list[Example],
        numbers: dict[str, float],
    ) -> None:
        """Record a leak, unless it touches no row."""
        if not touched.any():
            return
        self.touched[pair] |= touched
        learned, evaluated = (self.rows.parts[k] for k in pair)
        of_rows = int(((self.rows.part == pair[1]) & (self.rows.table["dataset"] == dataset)).sum())
        prefix = f"{dataset}: " if dataset and len(self._datasets) > 1 else ""
        self.findings.append(
            Finding(
                check,
                "leak",
                prefix + message,
                int(touched.sum()),
                of_rows,
                learned,
                evaluated,
                dataset,
                numbers,
                tuple(examples),
            )
        )


def percent(part: int, total: int) -> str:
    """A share in per cent with one decimal."""
    return f"{100 * part / max(total, 1):.1f} %"


def _similarity(pairs: pd.DataFrame, k: int) -> str:
    return f"similarity {pairs['score'].iloc[int(k)]:.2f}"


def _first_rows(keys: np.ndarray, side: np.ndarray, ids: np.ndarray) -> Iterable[int]:
    """The first row of ``side`` for each wanted id (all of which occur there)."""
    numbers = np.flatnonzero(side)
    unique, first = np.unique(keys[numbers], return_index=True)
    return numbers[first[np.searchsorted(unique, ids)]].tolist()
