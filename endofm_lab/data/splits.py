"""Patient-wise splits: groups stay whole, classes stay balanced, and the balance reached is reported.

A group must never be on two sides of a split. It consists of all rows that share a patient, a video or a sequence,
directly or through other rows (connected components, see `data.units`). Groups are assigned greedily, largest first,
and then improved by moves and exchanges. The seed decides between equally good assignments, so the same table and seed
always give the same split.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.sparse import coo_array

from endofm_lab.brief import Brief, html_of
from endofm_lab.data.units import Units, group_ids, units
from endofm_lab.errors import UserError

SHARES = {"train": 0.7, "val": 0.15, "test": 0.15}


@dataclass(frozen=True, eq=False, repr=False)
class Split(Brief):
    """A part for every row, and how well classes and sizes came out.

    Attributes:
        name: what the split is called in reports, such as `holdout-seed0` or `official`.
        parts: (N,) str, the part of each row; empty for rows without a part.
        balance: one row per class and part: ``rows``, ``groups``, ``share`` (of the class's rows), ``wanted``.
        n_groups: number of groups in the table.
        units: the units of independence of the rows; as many as groups unless `links` joined more.
        torn: number of groups with rows in more than one part; 0 for every split made by this module.
    """

    name: str
    parts: np.ndarray
    balance: pd.DataFrame
    n_groups: int
    units: Units
    torn: int

    def _repr_html_(self) -> str:
        return html_of(self, self.balance)

    @property
    def deviation(self) -> float:
        """Mean over classes and parts of abs(share - wanted), 0 for a perfect split."""
        return float((self.balance["share"] - self.balance["wanted"]).abs().mean())

    def text(self) -> str:
        """The balance as plain text, with a warning where patients are unknown."""
        head = (
            f"{self.name}: {self.n_groups:,} groups ({self.units.words}), {self.torn:,} torn apart, mean deviation "
            f"{self.deviation:.3f}"
        )
        table = self.balance.assign(share=self.balance["share"].round(3), wanted=self.balance["wanted"].round(3))
        return "\n".join([head, *([self.warning] if self.warning else []), table.to_string(index=False)])

    @property
    def warning(self) -> str:
        """The reservation that applies because patients are unknown; empty if every patient is known."""
        if self.units.patients_known:
            return ""
        return (
            f"WARNING: patients are not known for every row ({self.units.words}). Several groups may be of one "
            "patient, who is then on two sides of the split. Fill in the column patient or sequence if they are known."
        )


def holdout(
    table: pd.DataFrame,
    shares: Mapping[str, float] = SHARES,
    seed: int = 0,
    links: np.ndarray | None = None,
) -> Split:
    """Whole groups assigned to named parts, with balanced classes.

    Args:
        table: a manifest's table.
        shares: wanted share of each part; they sum to 1.
        seed: decides between equally good assignments.
        links: further pairs of rows to keep together, see :func:`group_ids`.

    Raises:
        UserError: the shares are not positive or do not sum to 1, or there are fewer groups than parts.
    """
    if any(share <= 0 for share in shares.values()) or abs(sum(shares.values()) - 1) > 1e-6:
        raise UserError(f"The shares of a split are {dict(shares)}; they must be positive and sum to 1.")
    groups = group_ids(table, links)
    targets = np.array(list(shares.values()))
    parts = np.array(list(shares), dtype=object)[_deal(table, groups, targets, seed)[groups]]
    return _report(f"holdout-seed{seed}", table, groups, parts, dict(shares))


def kfold(
    table: pd.DataFrame, k: int = 5, seed: int = 0, validation: bool = True, links: np.ndarray | None = None
) -> list[Split]:
    """``k`` splits; fold i is the test part of split i and, with ``validation``, fold i + 1 its validation part."""
    if k < 2 or (validation and k < 3):
        raise UserError(f"k is {k}; it must be at least 2, and at least 3 with a validation part.")
    groups = group_ids(table, links)
    fold = _deal(table, groups, np.full(k, 1 / k), seed)[groups]
    splits = []
    for i in range(k):
        parts = np.full(len(table), "train", dtype=object)
        parts[fold == i] = "test"
        shares = {"train": 1 - 1 / k, "test": 1 / k}
        if validation:
            parts[fold == (i + 1) % k] = "val"
            shares = {"train": 1 - 2 / k, "val": 1 / k, "test": 1 / k}
        splits.append(_report(f"{k}fold-seed{seed}-fold{i}", table, groups, parts, shares))
    return splits


def official(table: pd.DataFrame, name: str = "official") -> Split:
    """The split in the manifest's own column ``split``, with its balance and the number of groups it tears apart."""
    parts = table["split"].fillna("").astype(str).to_numpy(dtype=object)
    stated = parts[parts != ""]
    if not len(stated):
        raise UserError("The manifest has no split of its own: its column 'split' is empty. Use holdout or kfold.")
    names, counts = np.unique(stated.astype(str), return_counts=True)
    shares = dict(zip(names.tolist(), (counts / counts.sum()).tolist(), strict=True))
    return _report(name, table, group_ids(table), parts, shares)


def named_split(table: pd.DataFrame, name: str) -> pd.DataFrame:
    """The rows with one of the manifest's further official splits (column ``split_NAME``) in the column ``split``.

    A row that a leaking split puts on several sides (`train|test`) appears once for each side, so that training,
    testing and the audit see the published split.

    Raises:
        UserError: the manifest has no split of this name.
    """
    column = "split_" + name.replace("-", "_")
    if column not in table:
        names = sorted(key.removeprefix("split_") for key in table.columns if key.startswith("split_"))
        raise UserError(f"The manifest has no split '{name}'; its named splits are: {', '.join(names) or 'none'}.")
    return table.assign(split=table[column].fillna("").astype(str).str.split("|")).explode("split", ignore_index=True)


def class_matrix(table: pd.DataFrame) -> tuple[np.ndarray, list[str]]:
    """Float64 (N, K) of 0 and 1 with the labels of every row (several labels by ``|``), and the K names, sorted."""
    codes, kinds, names = _label_kinds(table)
    return kinds[codes], names


def _label_kinds(table: pd.DataFrame) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Codes (N,) into the distinct label texts, float64 (U, K) of 0 and 1 with the labels of each text, the K names."""
    codes, unique = pd.factorize(table["label"].fillna("").astype(str))
    dummies = pd.Series(unique).str.get_dummies("|").astype(float)
    return codes, dummies.to_numpy(), list(dummies.columns)


def _deal(table: pd.DataFrame, groups: np.ndarray, targets: np.ndarray, seed: int) -> np.ndarray:
    """The part of each group, int64 (G,).

    Minimises sum over parts p and classes c of (n_pc - w_p n_c)^2 / (w_p n_c), with the number of rows as one more
    class: the chi-square distance of every part from the whole, so rare classes weigh as much as common ones.
    """
    n_groups = int(groups.max()) + 1 if len(groups) else 0
    if n_groups < len(targets):
        raise UserError(
            f"{n_groups} groups (patients, videos, sequences) cannot be divided into {len(targets)} parts. "
            "Use fewer parts or more data."
        )
    codes, kinds, _ = _label_kinds(table)
    kinds = np.concatenate([kinds, np.ones((len(kinds), 1))], axis=1)
    ones = np.ones(len(table))
    counts = coo_array((ones, (groups, codes)), shape=(n_groups, len(kinds))).tocsr() @ kinds  # (G, C)
    total = counts.sum(axis=0)
    scaled = counts / np.sqrt(total)  # then the objective is a plain squared distance
    aim = targets[:, None] * np.sqrt(total)  # (P, C)

    rng = np.random.default_rng(seed)
    order = rng.permutation(n_groups)
    order = order[np.argsort(-counts[order, -1], kind="stable")]
    part = np.full(n_groups, -1)
    totals = np.zeros_like(aim)
    weight = 1 / targets
    for group in order:
        # Adding x to part p changes its term by w (2 x.(have - aim) + x.x).
        x = scaled[group]
        cost = weight * (2 * ((totals - aim) @ x) + x @ x)
        part[group] = best = int(np.argmin(cost))
        totals[best] += x
    _fill_empty(part, order, totals, scaled)
    for _ in range(20):
        if not _improve(part, order, totals, aim, scaled, weight):
            break
    return part


def _fill_empty(part: np.ndarray, order: np.ndarray, totals: np.ndarray, scaled: np.ndarray) -> None:
    """Give every empty part a group: the smallest group of the part with the most groups."""
    n_parts = len(totals)
    for p in range(n_parts):
        sizes = np.bincount(part, minlength=n_parts)
        if sizes[p] == 0:
            group = next(g for g in order[::-1] if part[g] == int(np.argmax(sizes)))
            totals[part[group]] -= scaled[group]
            totals[p] += scaled[group]
            part[group] = p


def _improve(
    part: np.ndarray, order: np.ndarray, totals: np.ndarray, aim: np.ndarray, scaled: np.ndarray, weight: np.ndarray
) -> bool:
    """One pass of moves and exchanges that lower the objective; False if there were none."""
    n_parts, changed = len(totals), False
    sizes = np.bincount(part, minlength=n_parts)
    # Exchanges are tried for the largest groups only: small ones are placed well by moves.
    swappable = order[:200]
    for rank, group in enumerate(order):
        p, x = part[group], scaled[group]
        excess = totals - aim
        add = weight * (2 * (excess @ x) + x @ x)
        leave = weight[p] * (x @ x - 2 * (excess[p] @ x))
        gain = leave + add
        gain[p] = 0.0
        q = int(np.argmin(gain))
        if gain[q] < -1e-9 and sizes[p] > 1:
            part[group] = q
            totals[p] -= x
            totals[q] += x
            sizes[p] -= 1
            sizes[q] += 1
            changed = True
        elif rank < len(swappable):
            partners = swappable[part[swappable] != p]
            if len(partners):
                y, q_of = scaled[partners], part[partners]
                d = y - x  # part p gains d, part q loses d
                dd = (d * d).sum(axis=1)
                gain = weight[p] * (2 * (d @ excess[p]) + dd) + weight[q_of] * (dd - 2 * (d * excess[q_of]).sum(axis=1))
                best = int(np.argmin(gain))
                if gain[best] < -1e-9:
                    partner, q = int(partners[best]), int(q_of[best])
                    part[group], part[partner] = q, p
                    totals[p] += d[best]
                    totals[q] -= d[best]
                    changed = True
    return changed


def _report(name: str, table: pd.DataFrame, groups: np.ndarray, parts: np.ndarray, shares: dict[str, float]) -> Split:
    codes, kinds, names = _label_kinds(table)
    rows = []
    for k, label in enumerate([*names, "(all rows)"]):
        inside = kinds[codes, k] > 0 if k < len(names) else np.ones(len(table), bool)
        inside = inside & (parts != "")
        for part, target in shares.items():
            in_part = inside & (parts == part)
            share = in_part.sum() / max(inside.sum(), 1)
            rows.append((label, part, int(in_part.sum()), len(np.unique(groups[in_part])), float(share), float(target)))
    balance = pd.DataFrame(rows, columns=["label", "part", "rows", "groups", "share", "wanted"])
    placed = parts != ""
    pairs = pd.DataFrame({"group": groups[placed], "part": parts[placed].astype(str)}).drop_duplicates()
    torn = int((pairs["group"].value_counts() > 1).sum())
    return Split(name, parts, balance, int(groups.max()) + 1, units(table), torn)
