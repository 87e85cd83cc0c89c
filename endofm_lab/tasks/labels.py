"""Classes of rows, for the tasks whose truth is a label: read from a manifest, and counted class by class."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from endofm_lab.data.labels import map_labels, read_mapping
from endofm_lab.data.manifest import Manifest
from endofm_lab.data.splits import class_matrix
from endofm_lab.errors import ManifestError, UserError
from endofm_lab.metrics.classification import ratio
from endofm_lab.model.card import HeadSpec
from endofm_lab.tasks.examples import SPLITS, Example, named
from endofm_lab.tasks.task import ClassMetrics


def class_head(manifest: Manifest, column: str, several: bool = False) -> HeadSpec:
    """The head for the classes that the rows of the split "train" have in a column.

    ``several``: cells hold any number of labels, joined by ``|``.

    Raises:
        ManifestError: the column or a label is missing, or there are fewer than two classes.
    """
    classes = class_matrix(_labelled(manifest, column, several).query("split == 'train'"))[1]
    if len(classes) < 2 and not several:
        raise ManifestError(f"Training has the classes {classes} in the column {column!r}; at least two are needed.")
    return HeadSpec("multilabel" if several else "multiclass", tuple(classes))


def class_targets(manifest: Manifest, split: str, head: HeadSpec, column: str) -> list[int] | list[tuple[int, ...]]:
    """The class number of every row of a split, or (K,) of 0 and 1 for several labels.

    Raises:
        ManifestError: a label is missing, or training never saw it.
    """
    several = head.kind == "multilabel"
    table = _labelled(manifest, column, several)
    table = table[table["split"] == split]
    cells = [[label for label in cell.split("|") if label] for cell in table["label"]]
    unknown = sorted({label for cell in cells for label in cell} - set(head.classes))
    if unknown:
        count = sum(bool(set(cell) & set(unknown)) for cell in cells)
        raise ManifestError(
            f"{count} rows of {split} have a class that training never saw: {named(unknown)}. Training has "
            f"{named(head.classes)}; move such rows to training or take them out."
        )
    if several:
        return [tuple(int(name in cell) for name in head.classes) for cell in cells]
    return [head.classes.index(cell[0]) for cell in cells]


def mapped_manifest(manifest: Manifest, name_or_path: str, column: str) -> Manifest:
    """A manifest whose column ``column`` holds the classes that a mapping gives its labels.

    Rows whose labels do not stand for exactly one class of the mapping are left out.

    Raises:
        UserError: there is no such mapping, it gives several labels per row, or leaves a split without rows.
    """
    mapping = read_mapping(name_or_path)
    if mapping.multi_label:
        raise UserError(
            f"The mapping {mapping.name} gives rows several labels; fine-tuning needs one class per row, so use a "
            "mapping without multi_label."
        )
    if column not in manifest.table:
        raise ManifestError(f"There is no column {column!r}; there are {', '.join(map(str, manifest.table))}.")
    found = map_labels(manifest.table.assign(label=manifest.table[column]), mapping)
    classes = np.array(found.leaves)[found.allowed.argmax(axis=1)]
    kept = manifest.table.assign(**{column: classes})[found.exact].reset_index(drop=True)
    if empty := sorted(set(manifest.table["split"]) & set(SPLITS) - set(kept["split"])):
        raise ManifestError(
            f"With the mapping {mapping.name} no row of {', '.join(empty)} stands for exactly one class; see "
            f"`endofm-lab data coverage {manifest.path} --mapping {name_or_path}`."
        )
    return replace(manifest, table=kept)


def compatible_rows(
    manifest: Manifest, split: str, head: HeadSpec, name_or_path: str, column: str
) -> tuple[Manifest, list[tuple[int, ...]]]:
    """The rows of a split whose labels restrict the head's classes by a mapping, and (K,) of 0 and 1 for each row.

    1 stands for the classes of the head that the row's label may stand for; rows that may stand for all of them, or for
    none, are left out. As always in training, every row is taken to be of one of the head's classes.
    """
    rows = manifest.rows(split)
    found = map_labels(rows.assign(label=rows[column]), read_mapping(name_or_path))
    allowed = found.allowed[:, [found.leaves.index(name) for name in head.classes]]
    tells = np.flatnonzero(allowed.any(axis=1) & ~allowed.all(axis=1))
    targets = [tuple(row) for row in allowed[tells].astype(int).tolist()]
    return replace(manifest, table=rows.iloc[tells].reset_index(drop=True)), targets


def balanced(examples: Sequence[Example]) -> list[Example]:
    """Examples in which every class that occurs is as frequent as the most frequent one; rows repeat in turn.

    This is sampling by inverse frequency without chance.

    Raises:
        UserError: the examples are not of one class each.
    """
    if not all(isinstance(example.target, int) for example in examples):
        raise UserError("Draws cannot be balanced: these rows do not have one class each. Switch balancing off.")
    targets = np.array([example.target for example in examples])
    counts = np.bincount(targets)
    rows = [np.resize(np.flatnonzero(targets == k), counts.max()) for k in np.flatnonzero(counts)]
    return [examples[row] for row in np.concatenate(rows)]


def score_names(rows: pd.DataFrame) -> list[str]:
    """The classes K of a table with the columns ``score_<class>``, in their order."""
    return [name.removeprefix("score_") for name in map(str, rows) if name.startswith("score_")]


def recall_and_precision(
    names: Sequence[str], truth: NDArray[np.bool_], predicted: NDArray[np.bool_]
) -> list[tuple[str, int, ClassMetrics]]:
    """Name, true rows and the two metrics of every class, from truth and answers (N, K)."""
    return [(name, int(truth[:, k].sum()), _of_class(truth[:, k], predicted[:, k])) for k, name in enumerate(names)]


def _of_class(truth: NDArray[np.bool_], predicted: NDArray[np.bool_]) -> ClassMetrics:
    return lambda weights: {
        "recall": ratio(weights @ (truth & predicted), weights @ truth),
        "precision": ratio(weights @ (truth & predicted), weights @ predicted),
    }


def _labelled(manifest: Manifest, column: str, several: bool) -> pd.DataFrame:
    """The manifest's table with the asked column as ``label``; every row of the splits has one."""
    if column not in manifest.table:
        raise ManifestError(f"There is no column {column!r}; there are {', '.join(map(str, manifest.table))}.")
    table = manifest.table.assign(label=manifest.table[column].astype(str))
    table = table[table["split"].isin(SPLITS)]
    if not several:
        if empty := int((table["label"] == "").sum()):
            raise ManifestError(f"{empty} rows are empty in the column {column!r}. Label these rows or remove them.")
        if joined := int(table["label"].str.contains("|", regex=False).sum()):
            raise ManifestError(f"{joined} rows have several labels in the column {column!r}. Set several_labels.")
    return table
