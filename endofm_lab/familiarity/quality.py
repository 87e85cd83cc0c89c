"""The quality of a picture: blur, darkness, foam or bubbles, and a view out of the body.

Eleven statistics of a small copy of a frame go through one logistic regression per fault. The weights in
``quality.json`` were fitted on real and generated frames with made faults (`degradations`):
``python -m docs.experiments.quality_of_pictures DATA --write``.
"""

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import maximum_filter, minimum_filter, uniform_filter, uniform_filter1d

FAULTS = ("blur", "darkness", "foam", "outside")
WORDS = {
    "blur": "blurred",
    "darkness": "too dark",
    "foam": "covered by foam or bubbles",
    "outside": "out of the body",
}
WEIGHTS = Path(__file__).with_name("quality.json")
SMALL_PX = 128  # shorter side of the small copy
STATISTICS = (
    "re-blur",
    "sharpness",
    "mean light",
    "bright light",
    "lit share",
    "bright spots",
    "rims",
    "whitish share",
    "red over green",
    "red over blue",
    "cold share",
)


def faults_of(frame: np.ndarray) -> NDArray[np.float32]:
    """The probability of each of `FAULTS` in a frame (H, W, 3) uint8, as (4,); from 0.5 on the frame has the fault."""
    return probabilities(statistics_of(frame)[None])[0]


def words_of(quality: NDArray[np.float32] | None) -> dict[int, str]:
    """Row of ``quality`` (M, 4) -> the faults of that frame in words, for the frames that have one."""
    if quality is None:
        return {}
    return {
        int(row): " and ".join(WORDS[fault] for fault, p in zip(FAULTS, quality[row], strict=True) if p >= 0.5)
        for row in np.flatnonzero((quality >= 0.5).any(axis=1))
    }


def fault_counts(quality: NDArray[np.float32] | None) -> dict[str, int] | None:
    """The number of frames with each fault, from ``quality`` (M, 4); None if it was not measured."""
    return None if quality is None else dict(zip(FAULTS, (quality >= 0.5).sum(axis=0).tolist(), strict=True))


def fault_text(quality: NDArray[np.float32] | None) -> str:
    """A sentence on how many frames have each fault; ``quality`` (M, 4) or None."""
    counts = fault_counts(quality)
    if quality is None or counts is None:
        return "Picture quality was not measured."
    parts = [f"{n} {'is' if n == 1 else 'are'} {WORDS[fault]}" for fault, n in counts.items() if n]
    return f"Picture quality: of {len(quality)} frames, {', '.join(parts) or 'none has a fault'}."


def probabilities(statistics: np.ndarray) -> NDArray[np.float32]:
    """The probabilities (N, 4) of the faults of frames from their statistics (N, 11)."""
    fitted = _weights()
    x = (statistics - fitted["mean"]) / fitted["scale"]
    logits = x @ fitted["weights"].T + fitted["bias"]
    return (1 / (1 + np.exp(-np.clip(logits, -60, 60)))).astype(np.float32)


@cache
def _weights() -> dict[str, Any]:
    stored = json.loads(WEIGHTS.read_text(encoding="utf-8"))
    return {name: np.array(stored[name]) for name in ("mean", "scale", "weights", "bias")}


def statistics_of(frame: np.ndarray) -> NDArray[np.float64]:
    """The values of `STATISTICS` for a frame (H, W, 3) uint8, as (11,)."""
    rgb = _small(frame)
    light = rgb @ np.array([0.299, 0.587, 0.114], np.float32)
    inside = _field(light)
    red, green, blue = np.moveaxis(rgb, -1, 0)
    sharp, contrast = _sharpness(light, inside), _contrast(light, inside)
    value, lowest = rgb.max(axis=-1), rgb.min(axis=-1)
    whitish = (value > 0.35) & (value - lowest < 0.25 * value)
    reds = np.log((red + 0.02) / (green + 0.02)), np.log((red + 0.02) / (blue + 0.02))
    cold = np.maximum(green, blue) > 1.02 * red
    return np.array(
        [
            _reblur(light, inside),
            np.log(sharp / contrast),
            np.log(light[inside].mean() + 0.01),
            np.log(np.quantile(light[inside], 0.95) + 0.01),
            (light > 0.08).mean(),
            *_bubbles(light, inside),
            whitish[inside].mean(),
            np.median(reds[0][inside]),
            np.median(reds[1][inside]),
            cold[inside].mean(),
        ]
    )


def _small(frame: np.ndarray) -> NDArray[np.float32]:
    """The frame with a shorter side of at most `SMALL_PX`, (h, w, 3) in 0 to 1."""
    height, width = frame.shape[:2]
    scale = min(1.0, SMALL_PX / min(height, width))
    size = max(8, round(width * scale)), max(8, round(height * scale))
    picture = Image.fromarray(frame)
    return np.asarray(picture.resize(size, Image.Resampling.BOX, reducing_gap=2.0), np.float32) / np.float32(255)


def _field(light: np.ndarray) -> NDArray[np.bool_]:
    """The field of view without its rim: not black, or the middle of the picture if nearly all of it is black."""
    lit = minimum_filter(uniform_filter(light, 5) > 0.04, 5)
    if lit.mean() >= 0.2:
        return lit
    height, width = light.shape
    middle = np.zeros_like(lit)
    middle[height // 4 : height - height // 4, width // 4 : width - width // 4] = True
    return middle


def _reblur(light: np.ndarray, inside: np.ndarray) -> float:
    """How little a picture changes when it is blurred (Crété et al. 2007): near 1 for a blurred picture."""
    kept = []
    for axis in (0, 1):
        soft = uniform_filter1d(light, 7, axis=axis)
        before, after = (np.abs(np.gradient(picture, axis=axis)) for picture in (light, soft))
        lost = np.maximum(0, before - after)
        total = before[inside].sum()
        kept.append((total - lost[inside].sum()) / (total + 1e-9))
    return float(max(kept))


def _sharpness(light: np.ndarray, inside: np.ndarray) -> float:
    """The spread of the finest details."""
    return float((light - uniform_filter(light, 3))[inside].std() + 1e-4)


def _contrast(light: np.ndarray, inside: np.ndarray) -> float:
    """The spread of details of medium size."""
    return float((uniform_filter(light, 3) - uniform_filter(light, 21))[inside].std() + 1e-3)


def _bubbles(light: np.ndarray, inside: np.ndarray) -> tuple[float, float]:
    """How many small bright spots there are, and how strong bright lines of the width of a bubble's rim are."""
    band = uniform_filter(light, 2) - uniform_filter(light, 7)
    peaks = (band == maximum_filter(band, 5)) & (band > 0.04) & inside
    return float(np.log(peaks.sum() / inside.sum() + 1e-4)), float(np.log(np.maximum(band, 0)[inside].mean() + 1e-4))
