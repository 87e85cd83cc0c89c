"""Test whether the class can be guessed from the device or the source alone; a model may learn those instead."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from endofm_lab.brief import Brief
from endofm_lab.data.units import MIN_UNITS_FOR_RANK


@dataclass(frozen=True, eq=False, repr=False)
class Confounding(Brief):
    """The strength of the association between a column (device, dataset) and the label.

    Attributes:
        column: the column that was tested.
        cramers_v: bias-corrected Cramér's V in [0, 1] (Bergsma, J. Korean Stat. Soc. 2013).
        guess: balanced accuracy of the best guess of the class from the column alone, in [chance, 1].
        chance: 1 / number of classes.
        n_groups: how many groups (patients or recordings) have a value and a label.
        p_value: share of 200 permutations of the column over groups that reach this V, at least 1/201; NaN below
            ``MIN_UNITS_FOR_RANK`` groups.
        counts: rows per value of the column and class.
    """

    column: str
    cramers_v: float
    guess: float
    chance: float
    n_groups: int
    p_value: float
    counts: pd.DataFrame


def confounding(column: str, values: pd.Series, labels: pd.Series, groups: np.ndarray) -> Confounding | None:
    """Association between ``values`` and ``labels``, tested by permuting whole groups.

    Args:
        column: name for messages.
        values: (N,) text; empty rows are left out.
        labels: (N,) text; empty rows are left out.
        groups: int64 (N,), patients or videos: rows of one group are not independent, so they are permuted together.

    Returns:
        None if there are fewer than two values or two classes.
    """
    complete = ((values != "") & (labels != "")).to_numpy()
    value, value_names = pd.factorize(values[complete], sort=True)
    label, label_names = pd.factorize(labels[complete], sort=True)
    if len(value_names) < 2 or len(label_names) < 2:
        return None
    group = pd.factorize(groups[complete])[0]
    n_values, n_labels = len(value_names), len(label_names)
    pairs = _counts(value * n_labels + label, None, n_values, n_labels)

    # The classes of each group with their rows, and its value: that of its first row (devices rarely change in a
    # video).
    cells, rows = np.unique(group * n_labels + label, return_counts=True)
    owner, kind = np.divmod(cells, n_labels)
    of_group = value[np.unique(group, return_index=True)[1]]
    observed, n_groups = cramers_v(pairs), len(of_group)
    rng = np.random.default_rng(0)
    reached, n_permutations = 1, 200 if n_groups >= MIN_UNITS_FOR_RANK else 0
    for _ in range(n_permutations):
        shuffled = _counts(rng.permutation(of_group)[owner] * n_labels + kind, rows, n_values, n_labels)
        reached += cramers_v(shuffled) >= observed - 1e-12
    recalls = pairs / pairs.sum(axis=0)
    return Confounding(
        column,
        observed,
        # For each value, the best balanced guess is the class of whose rows this value holds the largest share.
        float(recalls.max(axis=1).sum() / n_labels),
        1 / n_labels,
        n_groups,
        reached / (n_permutations + 1) if n_permutations else float("nan"),
        pd.DataFrame(pairs.astype(int), index=pd.Index(value_names, name=column), columns=label_names),
    )


def _counts(cells: np.ndarray, rows: np.ndarray | None, n_values: int, n_labels: int) -> np.ndarray:
    """Contingency table float64 (V, K) of cell numbers ``v K + k``, each counting once or ``rows`` times."""
    return np.bincount(cells, rows, n_values * n_labels).astype(float).reshape(n_values, n_labels)


def cramers_v(counts: np.ndarray) -> float:
    """Bias-corrected Cramér's V of a contingency table; rows and columns without counts are ignored."""
    counts = counts[counts.sum(axis=1) > 0][:, counts.sum(axis=0) > 0]
    rows, columns = counts.shape
    n = counts.sum()
    if min(rows, columns) < 2 or n < 2:
        return 0.0
    expected = counts.sum(axis=1, keepdims=True) * counts.sum(axis=0, keepdims=True) / n
    phi2 = ((counts - expected) ** 2 / expected).sum() / n
    phi2 = max(0.0, phi2 - (rows - 1) * (columns - 1) / (n - 1))
    rows = rows - (rows - 1) ** 2 / (n - 1)
    columns = columns - (columns - 1) ** 2 / (n - 1)
    return float(np.sqrt(phi2 / max(min(rows, columns) - 1, 1e-12)))
