"""The effect of a class mapping on a manifest: mapped, coarse, ambiguous, left out, unmapped or contradictory rows."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from endofm_lab.brief import Brief, html_of
from endofm_lab.data.labels import MULTI, LabelMapping, MappedLabels, label_pairs, map_labels, same_name

STATES = ("mapped", "coarse", "ambiguous", "left out", "unmapped", "conflicting")
_MOMENT = ("video", "start_s", "end_s", "frame")  # entries that agree in these are the same picture or clip


@dataclass(frozen=True, eq=False, repr=False)
class Coverage(Brief):
    """The effect of a mapping on a manifest.

    Attributes:
        mapping: the mapping's name.
        labels: one row per (dataset, label): ``rows``, ``state`` (mapped, coarse, ambiguous, left out, unmapped,
            conflicting) and ``targets``. `coarse` is an inner node, `ambiguous` one of several targets, `conflicting`
            a row whose own labels contradict each other.
        classes: one row per leaf and data set: ``rows`` that name exactly this leaf.
        empty: leaves that no row names exactly.
        conflicts: rows of one picture or clip (same video and time) that several entries map to incompatible leaves.
        unverified: data sets in the manifest whose label names could not be checked against an official list.
    """

    mapping: str
    labels: pd.DataFrame
    classes: pd.DataFrame
    empty: tuple[str, ...]
    conflicts: pd.DataFrame
    unverified: tuple[str, ...]

    def _repr_html_(self) -> str:
        return html_of(self, self.labels)

    def text(self) -> str:
        """The report as plain text, one block per data set."""
        lines = [f"Mapping {self.mapping}"]
        for dataset, part in self.labels.groupby("dataset", sort=True):
            rows = part.groupby("state")["rows"].sum()
            counts = ", ".join(f"{state} {rows[state]:,} rows" for state in STATES if state in rows)
            note = " (label names unverified)" if dataset in self.unverified else ""
            lines += ["", f"{dataset}{note}: {len(part)} labels, {counts}"]
            width = max(len(label) for label in part["label"])
            for row in part.itertuples():
                targets = str(row.targets).replace(MULTI, " or " if row.state == "ambiguous" else " + ") or "-"
                lines.append(f"  {row.label:<{width}}  {row.rows:>8,}  {row.state:<11}  {targets}")
        lines += ["", f"Empty classes: {', '.join(self.empty) or 'none'}"]
        lines.append(f"Pictures with contradicting entries: {self.conflicts['item'].nunique():,}")
        return "\n".join(lines)


def coverage(table: pd.DataFrame, mapping: LabelMapping) -> Coverage:
    """The effect of ``mapping`` on the labels of a manifest's table, per data set and per class."""
    mapped = map_labels(table, mapping)
    codes, pairs = label_pairs(table)
    rows = np.bincount(codes, minlength=len(pairs))
    first = np.full(len(pairs), -1)
    first[codes[::-1]] = np.arange(len(table))[::-1]

    def state_of(dataset: str, text: str, allowed: np.ndarray) -> str:
        target_sets = [mapping.targets_of(dataset, label) for label in text.split(MULTI)]
        if None in target_sets:
            return "unmapped"
        mapped_sets = [targets for targets in target_sets if targets]
        if not mapped_sets:
            return "left out"
        if mapping.multi_label:
            return (
                "mapped"
                if all(mapping.mask([t]).sum() == 1 for target_set in mapped_sets for t in target_set)
                else "coarse"
            )
        if not allowed.any():
            return "conflicting"
        if allowed.sum() == 1:
            return "mapped"
        return "ambiguous" if any(len(target_set) > 1 for target_set in mapped_sets) else "coarse"

    labels = pd.DataFrame(
        {
            "dataset": [dataset for dataset, _ in pairs],
            "label": [label for _, label in pairs],
            "rows": rows,
            "state": [state_of(*pair, mapped.allowed[row]) for pair, row in zip(pairs, first, strict=True)],
            "targets": mapped.targets[first],
        }
    ).sort_values(["dataset", "label"], ignore_index=True)

    sure = mapped.usable if mapping.multi_label else mapped.exact
    datasets = table["dataset"].fillna("").astype(str).to_numpy()[sure]
    leaf_table = pd.DataFrame(mapped.allowed[sure], columns=list(mapped.leaves))
    classes = leaf_table.groupby(datasets).sum().astype(int).rename_axis("dataset")
    empty = tuple(leaf for leaf in mapped.leaves if not classes[leaf].any())
    doubtful = {same_name(name) for name in mapping.unverified}
    unverified = tuple(sorted({dataset for dataset, _ in pairs if same_name(dataset) in doubtful}))
    conflicts = _conflicts(table, mapped, mapping)
    return Coverage(mapping.name, labels, classes, empty, conflicts, unverified)


def _conflicts(table: pd.DataFrame, mapped: MappedLabels, mapping: LabelMapping) -> pd.DataFrame:
    """Rows of one picture whose compatible leaves have nothing in common (single-label mappings only)."""
    keys = [table[column].fillna(-1) if column in table else pd.Series(-1, table.index) for column in _MOMENT]
    item = pd.MultiIndex.from_arrays(keys).factorize()[0]
    columns = ["item", "row", "dataset", "label", "targets"]
    usable = np.flatnonzero(mapped.usable)
    usable = usable[np.bincount(item[usable])[item[usable]] > 1]  # most pictures are listed once
    if mapping.multi_label or not len(usable):
        return pd.DataFrame(columns=columns)
    entries = pd.DataFrame(mapped.allowed[usable], index=usable)
    agreed = entries.groupby(item[usable]).transform("min").to_numpy(bool).any(axis=1)
    bad = usable[~agreed]
    conflicts = pd.DataFrame(
        {
            "item": item[bad],
            "row": bad,
            "dataset": table["dataset"].to_numpy()[bad],
            "label": table["label"].to_numpy()[bad],
            "targets": mapped.targets[bad],
        },
        columns=columns,
    )
    return conflicts.sort_values(["item", "row"], ignore_index=True)
