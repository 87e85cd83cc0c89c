"""Statistics of the features that a model was trained on, and the distance of other clips from them.

The distance of a clip is the Mahalanobis distance of its feature x from the mean m of the training features, with their
covariance C, all of them divided by their length first (Müller and Hein 2025, "Mahalanobis++"):

    d(x) = sqrt((x / |x| - m)^T C^-1 (x / |x| - m)) / limit

The feature of a clip is the mean token after the middle block of the encoder. Training for a task removes from the last
block how a picture looks, so CLS and the last patches are worse (docs/results.md).
``limit`` is the distance up to which 95 % of the validation patients are familiar, so 1 is the limit of every model. C
is shrunk towards a multiple of the identity (Ledoit and Wolf 2004), because there may be fewer clips than dimensions.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save
from scipy.linalg import LinAlgError, solve_triangular

from endofm_lab.brief import Brief
from endofm_lab.errors import CheckpointError, UserError
from endofm_lab.files import reading

FAMILIARITY_FILE = "familiarity.safetensors"  # in a model folder, beside the weights
SHARE = 0.95  # of the validation patients that are familiar, and of the clips that make a patient familiar
_TENSORS = ("mean", "covariance", "limit")
_ABOUT = "endofm_lab.familiarity"  # key of the counts in the metadata of the file
_REMEDY = "Copy the model folder again, or build the model again."


@dataclass(frozen=True, eq=False, repr=False)
class Familiarity(Brief):
    """The statistics of a model's training features.

    Attributes:
        mean: (D,) float32.
        covariance: (D, D) float32, shrunk.
        limit: the Mahalanobis distance that counts as 1.
        about: the number of clips and units behind the statistics and behind the limit.

    Raises:
        UserError: the arrays do not belong together, a value is NaN or infinite, the limit is not above 0, or the
            covariance is not positive definite.
    """

    mean: NDArray[np.float32]
    covariance: NDArray[np.float32]
    limit: float
    about: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        D = self.mean.size
        if self.mean.shape != (D,) or self.covariance.shape != (D, D) or not D:
            raise UserError(
                f"The mean has shape {self.mean.shape} and the covariance {self.covariance.shape}; they must be (D,) "
                "and (D, D)."
            )
        if not (np.isfinite(self.mean).all() and np.isfinite(self.covariance).all() and 0 < self.limit < np.inf):
            raise UserError("The statistics of the training features hold NaN or infinity, or a limit that is not > 0.")
        if not np.allclose(self.covariance, self.covariance.T, rtol=1e-4, atol=1e-6):
            raise UserError("The covariance of the training features is not symmetric.")
        _ = self._root  # raises an error if the covariance is not positive definite

    @property
    def words(self) -> str:
        """The counts behind the statistics, in a sentence."""
        about = {"train_clips": "?", "train_units": "?", "val_clips": "?", "val_units": "?", **self.about}
        return (
            f"Features of {about['train_clips']} training clips ({about['train_units']}). At the limit, 95 % of the "
            f"validation part are familiar: {about['val_clips']} clips ({about['val_units']})."
        )

    @property
    def width(self) -> int:
        """D of the features."""
        return self.mean.size

    @cached_property
    def _root(self) -> NDArray[np.float64]:
        """The Cholesky factor L of the covariance, C = L L^T."""
        try:
            return np.linalg.cholesky(self.covariance.astype(np.float64))
        except (LinAlgError, np.linalg.LinAlgError) as error:
            raise UserError("The covariance of the training features is not positive definite.") from error

    def distances(self, features: ArrayLike) -> NDArray[np.float64]:
        """The distances (N,) of features (N, D); up to 1 a clip is familiar.

        Raises:
            UserError: the features have another width, or hold NaN or infinity.
        """
        x = np.asarray(features, np.float64)
        if x.ndim != 2 or x.shape[1] != self.width:
            raise UserError(
                f"The features have shape {x.shape}, but the model's statistics are of features of width {self.width}."
            )
        white = solve_triangular(self._root, (unit_length(x) - self.mean).T, lower=True)
        return np.sqrt((white**2).sum(axis=0)) / self.limit

    def to_bytes(self) -> bytes:
        """The content of the file; the same statistics give the same bytes."""
        arrays = {"mean": self.mean, "covariance": self.covariance, "limit": np.array([self.limit], np.float64)}
        about = json.dumps(dict(self.about), sort_keys=True, allow_nan=False)
        return save({name: np.ascontiguousarray(values) for name, values in arrays.items()}, {_ABOUT: about})


def read_familiarity(path: str | Path) -> Familiarity:
    """The statistics in a file.

    Raises:
        CheckpointError: the file is missing, damaged, or holds statistics that cannot be.
    """
    with reading(path, _REMEDY, CheckpointError):
        try:
            with safe_open(str(path), framework="numpy") as file:
                if sorted(file.keys()) != sorted(_TENSORS):
                    raise ValueError(f"it holds the tensors {', '.join(file.keys())}")
                arrays = {name: file.get_tensor(name) for name in _TENSORS}
                about = json.loads((file.metadata() or {}).get(_ABOUT, "{}"))
            if arrays["limit"].shape != (1,) or any(values.dtype.kind != "f" for values in arrays.values()):
                raise ValueError("its tensors are not of the form that endofm_lab writes")
            return Familiarity(arrays["mean"], arrays["covariance"], float(arrays["limit"][0]), about)
        except SafetensorError as error:
            raise ValueError(str(error)) from error
        except UserError as error:
            raise CheckpointError(f"{path}: {error} {_REMEDY}") from error


def familiarity_of(
    train: ArrayLike, val: ArrayLike, val_units: ArrayLike, about: Mapping[str, Any] | None = None
) -> Familiarity:
    """The statistics of training features (N, D), with the limit from validation features (M, D).

    A validation unit is familiar if 95 % of its clips are, and the limit is the smallest at which 95 % of the units
    are. With fewer than 20 units that is the distance of the farthest one.

    Args:
        train: features of training clips.
        val: features of validation clips.
        val_units: (M,) unit of independence of every validation clip: its patient, if that is known.
        about: counts that are saved with the statistics.

    Raises:
        UserError: there are fewer than two training clips or no validation clip, widths differ, a feature is NaN or
            infinite, or all training features are equal.
    """
    raw, y = np.asarray(train, np.float64), np.asarray(val, np.float64)
    if len(raw) < 2 or not len(y):
        raise UserError(
            f"Familiarity needs at least 2 training clips and 1 validation clip, but there are {len(raw)} and "
            f"{len(y)}. Give a manifest with both splits."
        )
    x = unit_length(raw)
    if x.std(axis=0).max() < 1e-9:
        raise UserError("All training clips have the same feature, so no distance can be measured. Train the model.")
    from sklearn.covariance import ledoit_wolf  # imported late: it takes a second, and only training needs it

    covariance, _ = ledoit_wolf(x)
    unscaled = Familiarity(x.mean(axis=0).astype(np.float32), covariance.astype(np.float32), 1.0)
    limit = limit_of(unscaled.distances(y), val_units)
    return Familiarity(unscaled.mean, unscaled.covariance, limit, dict(about or {}))


def limit_of(distances: ArrayLike, units: ArrayLike, share: float = SHARE) -> float:
    """The smallest distance at which a share of the units is familiar; a unit is if that share of its clips is.

    Args:
        distances: (M,) of validation clips.
        units: (M,) the unit of each.
        share: of clips and of units.
    """
    values, names = np.asarray(distances, np.float64), np.asarray(units)
    of_units = [np.quantile(values[names == name], share, method="inverted_cdf") for name in np.unique(names)]
    return float(np.quantile(of_units, share, method="inverted_cdf"))


def unit_length(features: NDArray[np.float64]) -> NDArray[np.float64]:
    """Features (N, D) divided by their length; features of length 0 stay.

    Raises:
        UserError: a feature is NaN or infinite.
    """
    broken = ~np.isfinite(features).all(axis=1)
    if broken.any():
        raise UserError(
            f"The features of {int(broken.sum())} of {len(features)} clips are NaN or infinite, so they have no "
            "distance. Use another model, or train this one again."
        )
    return features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
