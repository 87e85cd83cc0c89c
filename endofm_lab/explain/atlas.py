"""Analysis of embeddings: maps, neighbours, clusters, outliers, comparison of two models, and shortcuts.

Vectors are (N, D) float arrays of any origin.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike
from sklearn.cluster import KMeans
from sklearn.manifold import TSNE
from sklearn.model_selection import GroupKFold

from endofm_lab.brief import Brief
from endofm_lab.data.units import Units, group_ids, units
from endofm_lab.errors import UserError
from endofm_lab.files import atomic_path, reading
from endofm_lab.metrics.classification import balanced_accuracy
from endofm_lab.metrics.probes import linear_answers

MIN_UNITS_FOR_PROBE = 3  # one to test on and two to learn from: with fewer, a class cannot be told from a recording


@dataclass(frozen=True, eq=False, repr=False)
class Pca(Brief):
    """Fitted principal axes: ``mean`` (D,), ``axes`` (n, D), ``explained`` (n,) shares of the variance.

    The sign of an axis is arbitrary, so it is chosen such that the entry with the largest absolute value is positive.
    """

    mean: np.ndarray
    axes: np.ndarray
    explained: np.ndarray

    def project(self, vectors: ArrayLike) -> np.ndarray:
        """(..., D) to (..., n)."""
        return (np.asarray(vectors) - self.mean) @ self.axes.T

    def save(self, path: str | Path) -> Path:
        """Write the axes as ``.npz``, atomically."""
        path = Path(path)
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            np.savez(file, mean=self.mean, axes=self.axes, explained=self.explained)
        return path


def load_pca(path: str | Path) -> Pca:
    """The axes that `Pca.save` wrote."""
    with reading(path, "Fit the axes again, or copy the file again."), np.load(path, allow_pickle=False) as stored:
        return Pca(stored["mean"], stored["axes"], stored["explained"])


def fit_pca(vectors: ArrayLike, n: int = 2) -> Pca:
    """The first ``n`` principal axes of (N, D) vectors, exactly, from their (D, D) covariance.

    Raises:
        UserError: fewer than two vectors, or more axes than dimensions.
    """
    X = _finite(vectors)
    if not 1 <= n <= X.shape[1]:
        raise UserError(f"n is {n}; give a number of principal axes from 1 to {X.shape[1]}, the length of the vectors.")
    mean = X.mean(axis=0, dtype=np.float64)
    centred = X - mean.astype(X.dtype)
    values, axes = np.linalg.eigh((centred.T @ centred).astype(np.float64))
    values, axes = values[::-1].clip(min=0), axes.T[::-1][:n]
    largest = np.abs(axes).argmax(axis=1)
    axes = axes * np.sign(axes[np.arange(n), largest])[:, None]
    return Pca(mean.astype(np.float32), axes.astype(np.float32), (values[:n] / max(values.sum(), 1e-30)))


def patch_colours(patches: ArrayLike, pca: Pca | None = None) -> np.ndarray:
    """Colours (T, h, w, 3) uint8 of patch tokens (T, h, w, D): three principal components, on one basis for all frames.

    Red, green and blue run from the 1st to the 99th percentile over the whole clip, so equal tokens have equal colours
    in every frame (as in DINOv2, arXiv 2304.07193, figure 1).
    """
    tokens = np.asarray(patches, dtype=np.float32)
    flat = tokens.reshape(-1, tokens.shape[-1])
    three = (pca or fit_pca(flat, 3)).project(flat)[:, :3]
    low, high = np.percentile(three, [1, 99], axis=0)
    colours = ((three - low) / np.maximum(high - low, 1e-12)).clip(0, 1)
    return (colours * 255).round().astype(np.uint8).reshape(*tokens.shape[:-1], 3)


def tsne(vectors: ArrayLike, seed: int = 0, perplexity: float = 30.0) -> np.ndarray:
    """t-SNE (N, 2) of the first 50 principal components, started from the first two, so that it is reproducible.

    Neighbourhoods can be interpreted; distances between clusters and their sizes cannot.
    """
    X = _finite(vectors)
    if len(X) < 4:
        raise UserError(f"t-SNE needs at least 4 vectors, but there are {len(X)}. Use PCA.")
    X = fit_pca(X, min(50, X.shape[1])).project(X)
    return TSNE(init="pca", perplexity=min(perplexity, (len(X) - 1) / 3), random_state=seed).fit_transform(X)


def umap(vectors: ArrayLike, seed: int = 0, neighbours: int = 15) -> np.ndarray:
    """UMAP (N, 2), if umap-learn is installed (``pip install 'endofm-lab[umap]'``); the import takes some seconds.

    Raises:
        UserError: umap-learn is not installed.
    """
    try:
        from umap import UMAP
    except ImportError as error:
        raise UserError(
            "UMAP is not installed. Run pip install 'endofm-lab[umap]', or use PCA or t-SNE, which are always there."
        ) from error
    X = _finite(vectors)
    return np.asarray(UMAP(n_neighbors=min(neighbours, len(X) - 1), random_state=seed, n_jobs=1).fit_transform(X))


class Neighbours:
    """Exact nearest neighbours by cosine, from the product of a vector with all others.

    Rows of NaN (clips that could not be read) are never neighbours. ``units`` are those of the rows, or None without
    rows.
    """

    def __init__(self, vectors: ArrayLike, rows: pd.DataFrame | None = None) -> None:
        X = np.array(vectors, dtype=np.float32)
        X /= np.maximum(np.linalg.norm(X, axis=1, keepdims=True), 1e-12)
        self._readable = np.asarray(np.isfinite(X).all(axis=1))
        self._unit = np.nan_to_num(X)
        self.units: Units | None = None if rows is None else units(rows)
        self._codes = None if self.units is None else pd.factorize(self.units.ids)[0]

    def __repr__(self) -> str:
        units = "" if self.units is None else f" of {self.units.words}"
        return f"Neighbours({len(self._unit):,} vectors of width {self._unit.shape[1]}{units})"

    def of(self, index: int, k: int = 10, not_same: Literal["recording"] | None = "recording") -> pd.DataFrame:
        """The ``k`` nearest neighbours of a row, as ``row`` and ``similarity`` in -1..1, nearest first.

        Args:
            index: the row.
            k: number of neighbours; all others if there are fewer.
            not_same: "recording" leaves out everything that was recorded together, which is near for a trivial reason:
                rows of the same unit (patient, otherwise sequence, otherwise video; see `data.units`). None keeps
                them.

        Raises:
            UserError: the row does not exist or has no vector, or ``not_same`` has another value.
        """
        if not 0 <= index < len(self._unit):
            raise UserError(f"There is no row {index}; choose one of the rows 0 to {len(self._unit) - 1}.")
        if not self._readable[index]:
            raise UserError(f"Row {index} has no vector, because its video could not be read. Choose another row.")
        if not_same not in (None, "recording"):
            raise UserError(f"not_same is {not_same!r}; choose 'recording' or None.")
        if not_same is not None and self._codes is None:
            raise UserError("Only the rows say which clips were recorded together. Give the rows, or not_same=None.")
        similarity = self._unit @ self._unit[index]
        out = ~self._readable
        out[index] = True
        if not_same is not None and self._codes is not None:
            out = out | (self._codes == self._codes[index])
        similarity[out] = -np.inf
        k = min(k, int((~out).sum()))
        top = np.argpartition(-similarity, k - 1)[:k] if k else np.zeros(0, int)
        top = top[np.argsort(-similarity[top], kind="stable")]
        return pd.DataFrame({"row": top, "similarity": similarity[top]})


def neighbour_purity(
    vectors: ArrayLike,
    rows: pd.DataFrame,
    column: str,
    k: int = 5,
    not_same: Literal["recording"] | None = "recording",
) -> float:
    """Mean share of a row's ``k`` neighbours that have its value of ``column``; rows without a value do not count.

    NaN if no row has a neighbour, for instance because all rows belong to one unit.
    """
    finder, values = Neighbours(vectors, rows), rows[column].to_numpy()
    shares = []
    for row in np.flatnonzero((values != "") & np.isfinite(np.asarray(vectors)).all(axis=1)):
        neighbours = finder.of(int(row), k, not_same)["row"].to_numpy()
        if len(neighbours):
            shares.append(float((values[neighbours] == values[row]).mean()))
    return float(np.mean(shares)) if shares else float("nan")


def linear_cka(first: ArrayLike, second: ArrayLike) -> float:
    """Linear centred kernel alignment of (N, D1) and (N, D2), 0..1 (Kornblith et al. 2019, arXiv 1905.00414, eq. 3).

    It does not change if either is rotated, mirrored or scaled. With few rows and many dimensions it is too high.
    """
    X, Y = _paired(first, second)
    cross, own_x, own_y = (float(np.linalg.norm(a.T @ b)) for a, b in ((X, Y), (X, X), (Y, Y)))
    return float(cross**2 / max(own_x * own_y, 1e-30))


def procrustes(first: ArrayLike, second: ArrayLike) -> float:
    """Procrustes distance of (N, D1) and (N, D2) in 0..1: what remains after the best rotation, mirroring and scaling.

    ``1 - (sum of singular values of X'Y)^2`` for centred X, Y of norm one (Schoenemann 1966).
    """
    X, Y = _paired(first, second)
    X, Y = X / max(np.linalg.norm(X), 1e-30), Y / max(np.linalg.norm(Y), 1e-30)
    return float(np.clip(1 - np.linalg.svd(X.T @ Y, compute_uv=False).sum() ** 2, 0, 1))


def clusters(vectors: ArrayLike, k: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """k-means on unit vectors: the cluster of each row (N,), and each cluster's medoid, its most central row (k,).

    Raises:
        UserError: more clusters than vectors.
    """
    X = _unit(_finite(vectors))
    if not 1 <= k <= len(X):
        raise UserError(f"k is {k}; give a number of clusters from 1 to {len(X)}, the number of vectors.")
    fitted = KMeans(k, n_init=4, random_state=seed).fit(X)
    distances = fitted.transform(X)  # (N, k)
    medoids = [int(np.flatnonzero(fitted.labels_ == c)[distances[fitted.labels_ == c, c].argmin()]) for c in range(k)]
    return fitted.labels_, np.array(medoids)


def outlier_scores(vectors: ArrayLike, k: int = 5) -> np.ndarray:
    """(N,) mean cosine distance to the ``k`` nearest neighbours, which is large for a row unlike all others."""
    X = _unit(_finite(vectors))
    k = min(k, len(X) - 1)
    scores = []
    for start in range(0, len(X), 1024):
        similarity = X[start : start + 1024] @ X.T
        similarity[np.arange(len(similarity)), start + np.arange(len(similarity))] = -np.inf
        scores.append(1 - np.partition(similarity, -k, axis=1)[:, -k:].mean(axis=1))
    return np.concatenate(scores)


def shortcut_test(vectors: ArrayLike, rows: pd.DataFrame) -> pd.DataFrame:
    """Balanced accuracy of linear probes for label, device, data set and patient, with its chance level.

    Probes are tested on held-out recordings only: folds consist of whole units (patient, otherwise sequence, otherwise
    video; see `data.units`) for label, device and data set, and of whole recordings for the patient. If a probe
    predicts the patient or the device as well as the label, the model may recognise the label by a shortcut.

    Columns: ``target`` (the column that the probe predicts), ``units`` ("16 patients"), ``classes``, ``rows``,
    ``accuracy``, ``chance``, ``folds`` and ``why`` (the reason why there is no accuracy, or how many classes were left
    out because they occur in only one unit).
    """
    X = np.asarray(vectors, dtype=np.float32)
    readable = np.isfinite(X).all(axis=1)
    of_row, recording = units(rows), group_ids(rows, columns=("sequence", "video"))
    results = []
    for column in [c for c in ("label", "device", "dataset", "patient") if c in rows]:
        values = rows[column].astype(str).to_numpy()
        counts = pd.Series(values[readable & (values != "")]).value_counts()
        usable = readable & np.isin(values, counts.index[counts >= 3].to_numpy())
        if len(set(values[usable])) < 2:
            continue
        groups = recording if column == "patient" else pd.factorize(of_row.ids)[0]
        accuracy = _probe_accuracy(X[usable], values[usable], groups[usable])
        by = "recording" if column == "patient" else of_row.take(usable).kind
        results.append({"target": column, "units": of_row.take(usable).words, "folds": f"by {by}"} | accuracy)
    return pd.DataFrame(results, columns=["target", "units", "classes", "rows", "accuracy", "chance", "folds", "why"])


def _probe_accuracy(X: np.ndarray, values: np.ndarray, groups: np.ndarray) -> dict[str, Any]:
    """The accuracy of a probe for the values over folds of whole groups, or the reason why there is none."""
    per_class = pd.Series(groups).groupby(values).nunique()
    testable = np.isin(values, per_class.index[per_class >= 2].to_numpy())
    reason = ""
    if (n_groups := len(set(groups))) < MIN_UNITS_FOR_PROBE:
        reason = f"No accuracy: a probe needs at least {MIN_UNITS_FOR_PROBE} units, but there are {n_groups}."
    elif len(set(values[testable])) < 2:
        reason = "No accuracy: fewer than two classes occur in more than one unit."
    if reason:
        K = len(per_class)
        return {
            "classes": K,
            "rows": len(values),
            "accuracy": float("nan"),
            "chance": 1 / K,
            "folds": "",
            "why": reason,
        }
    X, values, groups = X[testable], values[testable], groups[testable]
    K = len(set(values))
    predicted = np.empty(len(values), dtype=object)
    classes, numbers = np.unique(values, return_inverse=True)
    features = torch.from_numpy(X)
    for train, test in GroupKFold(min(5, len(set(groups)))).split(X, groups=groups):
        predicted[test] = classes[linear_answers(features[train], numbers[train], features[test])]
    n_single = int((~np.isin(per_class.index, values)).sum())
    reason = f"{n_single} further classes occur in only one unit." if n_single else ""
    accuracy = float(balanced_accuracy(values, predicted.astype(values.dtype)))
    return {"classes": K, "rows": len(values), "accuracy": accuracy, "chance": 1 / K, "why": reason}


def _finite(vectors: ArrayLike) -> np.ndarray:
    X = np.asarray(vectors, dtype=np.float32)
    if X.ndim != 2 or len(X) < 2 or not np.isfinite(X).all():
        raise UserError(
            f"The vectors have shape {X.shape}"
            + ("" if np.isfinite(X).all() else ", and some are not finite")
            + "; give at least 2 finite vectors as (N, D), such as store.vectors[store.usable()]."
        )
    return X


def _unit(X: np.ndarray) -> np.ndarray:
    return X / np.maximum(np.linalg.norm(X, axis=1, keepdims=True), 1e-12)


def _paired(first: ArrayLike, second: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    X, Y = _finite(first).astype(np.float64), _finite(second).astype(np.float64)
    if len(X) != len(Y):
        raise UserError(f"{len(X)} and {len(Y)} vectors cannot be compared row by row. Embed the same manifest twice.")
    return X - X.mean(axis=0), Y - Y.mean(axis=0)
