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
    rows = _labelled(manifest, column, several).query("split == 'train'")
    classes = [name for name in class_matrix(rows)[1] if name]  # no label at all is no class
    if len(classes) < 2 and not several:
        raise ManifestError(f"Training has the classes {classes} in the column {column!r}. Give at least two classes.")
    return HeadSpec("multilabel" if several else "multiclass", tuple(classes))


def class_targets(manifest: Manifest, split: str, head: HeadSpec, column: str) -> list[int] | list[tuple[int, ...]]:
    """The class number of every row of a split, or (K,) of 0 and 1 for several labels.

    Raises:
        ManifestError: a label is missing, or no training row has it.
    """
    several = head.kind == "multilabel"
    table = _labelled(manifest, column, several)
    table = table[table["split"] == split]
    cells = [[label for label in cell.split("|") if label] for cell in table["label"]]
    unknown = sorted({label for cell in cells for label in cell} - set(head.classes))
    if unknown:
        count = sum(bool(set(cell) & set(unknown)) for cell in cells)
        raise ManifestError(
            f"{count} rows of {split} have a class without training rows: {named(unknown)}. Training has "
            f"{named(head.classes)}; move such rows to training or remove them."
        )
    if several:
        return [tuple(int(name in cell) for name in head.classes) for cell in cells]
    return [head.classes.index(cell[0]) for cell in cells]


def mapped_manifest(manifest: Manifest, name_or_path: str, column: str) -> Manifest:
    """A manifest with the labels in ``column`` replaced by the classes of a mapping.

    Rows whose labels do not stand for exactly one class of the mapping are left out.

    Raises:
        UserError: the mapping does not exist, gives several labels per row, or leaves a split without rows.
    """
    mapping = read_mapping(name_or_path)
    if mapping.multi_label:
        raise UserError(
            f"The mapping {mapping.name} gives rows several labels, but fine-tuning needs one class per row. Use a "
            "mapping without multi_label."
        )
    if column not in manifest.table:
        raise ManifestError(f"There is no column {column!r}; there are {', '.join(map(str, manifest.table))}.")
    mapped = map_labels(manifest.table.assign(label=manifest.table[column]), mapping)
    classes = np.array(mapped.leaves)[mapped.allowed.argmax(axis=1)]
    rows = manifest.table.assign(**{column: classes})[mapped.exact].reset_index(drop=True)
    if empty := sorted(set(manifest.table["split"]) & set(SPLITS) - set(rows["split"])):
        raise ManifestError(
            f"With the mapping {mapping.name}, no row of {', '.join(empty)} stands for exactly one class. Look at "
            f"`endofm-lab data coverage {manifest.path} --mapping {name_or_path}`."
        )
    return replace(manifest, table=rows)


def compatible_rows(
    manifest: Manifest, split: str, head: HeadSpec, name_or_path: str, column: str
) -> tuple[Manifest, list[tuple[int, ...]]]:
    """The rows of a split whose labels restrict the head's classes by a mapping, and a target (K,) for each row.

    A target is 1 for the classes of the head that the row's label may stand for, and 0 for the others. Rows that may
    stand for all classes, or for none, are left out. As always in training, every row is assumed to be of one of the
    head's classes.
    """
    rows = manifest.rows(split)
    mapped = map_labels(rows.assign(label=rows[column]), read_mapping(name_or_path))
    allowed = mapped.allowed[:, [mapped.leaves.index(name) for name in head.classes]]
    informative = np.flatnonzero(allowed.any(axis=1) & ~allowed.all(axis=1))
    targets = [tuple(row) for row in allowed[informative].astype(int).tolist()]
    return replace(manifest, table=rows.iloc[informative].reset_index(drop=True)), targets


def balanced(examples: Sequence[Example]) -> list[Example]:
    """Examples repeated in turn, so that every class that occurs is as frequent as the most frequent one.

    This is deterministic sampling by inverse frequency.

    Raises:
        UserError: an example does not have exactly one class.
    """
    if not all(isinstance(example.target, int) for example in examples):
        raise UserError("Rows cannot be balanced unless each has exactly one class. Switch balancing off.")
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
    """Name, number of true rows, recall and precision of every class, from truth and predictions (N, K)."""
    return [(name, int(truth[:, k].sum()), _of_class(truth[:, k], predicted[:, k])) for k, name in enumerate(names)]


def _of_class(truth: NDArray[np.bool_], predicted: NDArray[np.bool_]) -> ClassMetrics:
    return lambda weights: {
        "recall": ratio(weights @ (truth & predicted), weights @ truth),
        "precision": ratio(weights @ (truth & predicted), weights @ predicted),
    }


def _labelled(manifest: Manifest, column: str, several: bool) -> pd.DataFrame:
    """The manifest's table with ``column`` as ``label``, after a check that every row of the splits has a label."""
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
