"""Segmentation metrics, one value per frame; means over frames leave out frames where a value is not defined.

| frame | dice, iou | hd95_px | false_positive |
|---|---|---|---|
| lesion, found in part or wholly | overlap | distance of outlines | NaN |
| lesion, nothing predicted | 0 | diagonal of the frame, the largest distance there is | NaN |
| no lesion, something predicted | NaN | NaN | 1 |
| no lesion, nothing predicted | NaN | NaN | 0 |

Frames without a lesion have no overlap, so they are measured by the rate of false-positive frames alone, the mean of
``false_positive``.
"""

from collections.abc import Iterable

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.ndimage import binary_erosion, distance_transform_edt

from endofm_lab.metrics.classification import MetricError


def mask_metrics(truth: Iterable[NDArray], predicted: Iterable[NDArray]) -> pd.DataFrame:
    """One row per frame: ``lesion`` (bool), ``dice``, ``iou`` in [0, 1], ``hd95_px``, ``false_positive``.

    Args:
        truth: T masks (H, W), bool or 0/1; frames may differ in size.
        predicted: T masks of the same sizes.

    Raises:
        MetricError: a pair of masks differs in size, a mask is not binary, or one side has more frames.
    """
    try:
        pairs = [_checked(t, p, k) for k, (t, p) in enumerate(zip(truth, predicted, strict=True))]
    except ValueError as error:
        if isinstance(error, MetricError):
            raise
        raise MetricError("The numbers of predicted and true masks differ; give one of each per frame.") from error
    rows = [(t.any(), dice(t, p), iou(t, p), hd95_px(t, p), false_positive(t, p)) for t, p in pairs]
    return pd.DataFrame(rows, columns=["lesion", "dice", "iou", "hd95_px", "false_positive"])


def dice(truth: NDArray[np.bool_], predicted: NDArray[np.bool_]) -> float:
    """2 |A and B| / (|A| + |B|) of one frame's masks (H, W), in [0, 1]; NaN without true pixels.

    The released code gives 1 if the truth is empty and the prediction is not; see ``metrics.released``.
    """
    if not truth.any():
        return float("nan")
    return float(2 * (truth & predicted).sum() / (truth.sum() + predicted.sum()))


def iou(truth: NDArray[np.bool_], predicted: NDArray[np.bool_]) -> float:
    """|A and B| / |A or B| of one frame's masks (H, W), in [0, 1]; NaN without true pixels."""
    if not truth.any():
        return float("nan")
    return float((truth & predicted).sum() / (truth | predicted).sum())


def hd95_px(truth: NDArray[np.bool_], predicted: NDArray[np.bool_]) -> float:
    """95th percentile Hausdorff distance between the outlines of two masks (H, W) in pixels, the larger direction.

    The outline consists of the mask's pixels with a 4-neighbour outside the mask or the frame; distances are between
    pixel centres. NaN without true pixels; the diagonal of the frame, sqrt(H^2 + W^2), without predicted pixels.

    Source: Huttenlocher et al. 1993; the maximum of the two directions' percentiles, as in MONAI.
    """
    if not truth.any():
        return float("nan")
    if not predicted.any():
        return float(np.hypot(*truth.shape))
    rows, columns = np.nonzero(truth | predicted)  # cropping to both masks leaves the distances as they are
    part = np.s_[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    a, b = _outline(truth[part]), _outline(predicted[part])
    to_truth, to_predicted = distance_transform_edt(~a)[b], distance_transform_edt(~b)[a]
    return float(max(np.percentile(to_truth, 95), np.percentile(to_predicted, 95)))


def false_positive(truth: NDArray[np.bool_], predicted: NDArray[np.bool_]) -> float:
    """1 where a frame without lesion has a predicted pixel, 0 where it has none, NaN where there is a lesion."""
    return float("nan") if truth.any() else float(predicted.any())


def _outline(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    return mask & ~binary_erosion(mask)


def _checked(truth: NDArray, predicted: NDArray, frame: int) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    masks = [np.asarray(truth), np.asarray(predicted)]
    if masks[0].shape != masks[1].shape or masks[0].ndim != 2:
        raise MetricError(
            f"Frame {frame}: The true mask has shape {masks[0].shape}, the predicted one {masks[1].shape}; "
            "give both as (H, W) of the frame."
        )
    for mask, name in zip(masks, ("true", "predicted"), strict=True):
        if mask.dtype != bool and not np.isin(mask, (0, 1)).all():
            raise MetricError(f"Frame {frame}: The {name} mask has values up to {mask.max()}; threshold it to 0 and 1.")
    return masks[0].astype(bool), masks[1].astype(bool)
