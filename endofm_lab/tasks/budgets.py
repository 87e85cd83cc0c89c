"""Label budgets: a part of the training patients, to see how many labels a method needs."""

import re
from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from endofm_lab.data.manifest import Manifest
from endofm_lab.data.splits import class_matrix
from endofm_lab.errors import ManifestError, UserError
from endofm_lab.model.card import HeadSpec
from endofm_lab.tasks.examples import named, units_of

ALL = "all"
_FORM = re.compile(r"(?P<share>\d+(?:\.\d+)?) ?%|(?P<n>\d+) ?patients?")
_SEED = 0  # of the one order in which patients are drawn, so that every budget contains the smaller ones


def checked_budget(budget: str) -> str:
    """A budget in its usual spelling: "all", "10 %", "5 patients".

    Raises:
        UserError: it is none of these.
    """
    form = None if budget == ALL else _FORM.fullmatch(str(budget).strip())
    if budget != ALL and (form is None or not (form["share"] is None or 0 < float(form["share"]) <= 100)):
        raise UserError(f"The label budget is {budget!r}; give 'all', a share such as '10 %', or '5 patients'.")
    if form is None:
        return ALL
    if form["share"] is not None:
        return f"{float(form['share']):g} %"
    if (n := int(form["n"])) < 1:
        raise UserError("The label budget is 0 patients; give at least 1 patient.")
    return f"{n} patient{'' if n == 1 else 's'}"


def within_budget(manifest: Manifest, budget: str, label: str = "label") -> Manifest:
    """The manifest with the training rows of only as many patients as a budget allows; other rows stay.

    Patients are units of independence (`data.units`) and stay whole. There is one order of them, which follows from
    their names: each next patient brings the classes closest to their shares in all training rows, and the seed
    decides between equals. A smaller budget is therefore a part of a larger one.

    Args:
        manifest: with training rows.
        budget: "all", "10 %" of the patients (at least one), or "5 patients".
        label: column of the classes whose shares are kept; without such a column the order is random.

    Raises:
        UserError: the budget has another form, or is larger than the data.
    """
    budget = checked_budget(budget)
    if budget == ALL:
        return manifest
    units = units_of(manifest, "train")
    form = _FORM.fullmatch(budget)
    assert form is not None
    n = int(form["n"]) if form["n"] else max(1, round(units.n * float(form["share"]) / 100))
    if n > units.n:
        raise UserError(f"The label budget is {budget}, but training has {units.words}. Give a smaller budget.")
    rows = manifest.rows("train")
    table = rows.assign(label=rows.get(label, ""))
    chosen = _order(units.ids, class_matrix(table)[0], n)
    training = (manifest.table["split"] == "train").to_numpy()
    kept = ~training
    kept[training] = np.isin(units.ids, chosen)
    return replace(manifest, table=manifest.table[kept].reset_index(drop=True))


def _order(ids: NDArray, classes: NDArray[np.float64], n: int) -> list[str]:
    """The first ``n`` units in the order of `within_budget`; ``classes`` (N, K) are those of the rows."""
    names, numbers = np.unique(ids.astype(str), return_inverse=True)
    counts = np.zeros((len(names), classes.shape[1] + 1))
    np.add.at(counts, numbers, np.concatenate([classes, np.ones((len(classes), 1))], axis=1))
    draw = np.random.default_rng(_SEED).permutation(len(names))
    counts, names = counts[draw], names[draw]
    shares = counts.sum(0) / counts.sum()
    free, total, order = np.ones(len(names), bool), np.zeros(counts.shape[1]), []
    for _ in range(n):
        after = (total + counts) / (total + counts).sum(1, keepdims=True)
        distance = ((after - shares) ** 2 / np.maximum(shares, 1e-12)).sum(1)
        best = int(np.where(free, distance, np.inf).argmin())
        free[best], total = False, total + counts[best]
        order.append(str(names[best]))
    return order


def head_within(head_of: Callable[[Manifest], HeadSpec], manifest: Manifest, part: Manifest, budget: str) -> HeadSpec:
    """The head for all classes of a manifest, after a check that the part within a budget still has each of them.

    Args:
        head_of: gives the head for the training rows of a manifest.
        manifest: all rows.
        part: its rows `within_budget`.
        budget: the budget, for the message.

    Raises:
        ManifestError: a class has no training row left, or as ``head_of``.
    """
    head = head_of(manifest)
    if len(part) == len(manifest):
        return head
    try:
        classes = head_of(part).classes
    except ManifestError:  # fewer than two classes
        classes = ()
    if lost := [name for name in head.classes if name not in classes]:
        raise ManifestError(
            f"The label budget {budget} ({units_of(part, 'train').words}) leaves classes without a training example: "
            f"{named(lost if classes else head.classes)}. Give a larger budget."
        )
    return head
