"""Made faults of pictures: blur, darkness, foam, and a view out of the body. They test the detectors of `quality`.

Each takes a frame (H, W, 3) uint8 and a random generator, and returns a frame of the same size. Lengths are fractions
of the frame's shorter side. The strength of a fault is drawn anew each time, from clearly visible to severe.
"""

from collections.abc import Callable

import numpy as np
from scipy.ndimage import convolve1d, gaussian_filter, rotate

Frame = np.ndarray  # (H, W, 3) uint8
_DRAPES = ((45, 95, 140), (40, 125, 115), (60, 130, 80), (200, 205, 205), (120, 125, 130), (230, 228, 215))


def blurred(frame: Frame, random: np.random.Generator) -> Frame:
    """Out of focus (Gaussian, sigma 1.2 to 3 %), or moved while the shutter was open (5 to 12 % along a line)."""
    picture, side = frame.astype(np.float32), min(frame.shape[:2])
    if random.random() < 0.5:
        sigma = side * random.uniform(0.012, 0.03)
        return _uint8(gaussian_filter(picture, (sigma, sigma, 0)))
    length = max(3, round(side * random.uniform(0.05, 0.12)))
    line = np.ones(length, np.float32) / length
    diagonal, axis = random.random() < 0.5, int(random.integers(2))
    if not diagonal:
        return _uint8(convolve1d(picture, line, axis=axis))
    turned = rotate(picture, 45, reshape=False, order=1, mode="nearest")
    back = rotate(convolve1d(turned, line, axis=axis), -45, reshape=False, order=1, mode="nearest")
    return _uint8(back)


def darkened(frame: Frame, random: np.random.Generator) -> Frame:
    """Too little light: 4 to 18 % of the brightness, with the noise of the sensor."""
    dark = frame.astype(np.float32) * random.uniform(0.04, 0.18)
    return _uint8(dark + random.normal(0, 2.0, frame.shape))


def foamed(frame: Frame, random: np.random.Generator) -> Frame:
    """Bubbles over 35 to 80 % of the frame: whitish discs of 1 to 5 % with a bright rim and a highlight."""
    out, side = frame.astype(np.float32), min(frame.shape[:2])
    height, width = frame.shape[:2]
    share, covered = random.uniform(0.35, 0.8), np.zeros((height, width), bool)
    centres = random.uniform((0, 0), (height, width), (int(random.integers(2, 6)), 2))
    for _ in range(2000):
        if covered.mean() >= share:
            break
        radius = side * random.uniform(0.012, 0.05)
        y, x = centres[random.integers(len(centres))] + random.normal(0, 0.28 * side, 2)
        _draw_bubble(out, covered, float(y), float(x), float(radius), random)
    return _uint8(out)


def _draw_bubble(
    out: np.ndarray, covered: np.ndarray, y: float, x: float, radius: float, random: np.random.Generator
) -> None:
    """Draw one bubble into a float picture, in place."""
    (top, left), (height, width) = (max(0, int(place - radius - 1)) for place in (y, x)), out.shape[:2]
    window = (slice(top, min(height, int(y + radius + 2))), slice(left, min(width, int(x + radius + 2))))
    if min(window[0].stop - top, window[1].stop - left) <= 0:
        return
    rows, columns = np.ogrid[window]
    away = np.hypot(rows - y, columns - x) / radius
    rim = np.exp(-(((away - 0.9) / 0.12) ** 2))
    spot = np.exp(-((np.hypot(rows - y + radius / 3, columns - x + radius / 3) / (0.22 * radius)) ** 2))
    body = (away <= 1) * 0.25
    alpha = np.clip(body + 0.6 * rim * (away <= 1.2) + 0.9 * spot, 0, 0.95)[..., None]
    white = np.array([245.0, 240.0, 228.0]) * random.uniform(0.8, 1.0)
    out[window] = out[window] * (1 - alpha) + white * alpha
    covered[window] |= away <= 1


def outside(frame: Frame, random: np.random.Generator) -> Frame:
    """A view into the room: drapes, walls and instruments in cold colours, with up to 20 % of the frame shining in."""
    height, width = frame.shape[:2]
    colours = random.permutation(_DRAPES).astype(np.float32)
    down, across = np.linspace(0, 1, height)[:, None, None], np.linspace(0, 1, width)[None, :, None]
    room = colours[0] * (0.6 + 0.4 * down) + 0 * across
    for colour in colours[1 : 2 + int(random.integers(1, 4))]:
        slope, offset = random.uniform(-1.5, 1.5), random.uniform(0.1, 0.9)
        inside = (down - offset > slope * (across - 0.5))[..., 0]
        room[inside] = (colour * random.uniform(0.6, 1.1) * (0.7 + 0.3 * across) + 0 * down)[inside]
    y, x = random.uniform(0, height), random.uniform(0, width)
    lamp = np.exp(-((np.hypot(np.arange(height)[:, None] - y, np.arange(width)[None] - x) / (0.25 * width)) ** 2))
    room += 90 * lamp[..., None]
    soft = min(height, width) * random.uniform(0.003, 0.015)
    room = gaussian_filter(room, (soft, soft, 0)) * random.uniform(0.7, 1.1)
    mixed = room * (1 - (share := random.uniform(0, 0.2))) + share * frame.astype(np.float32)
    return _uint8(mixed + random.normal(0, 3.0, frame.shape))


def _uint8(picture: np.ndarray) -> Frame:
    return picture.round().clip(0, 255).astype(np.uint8)


DEGRADATIONS: dict[str, Callable[[Frame, np.random.Generator], Frame]] = {
    "blur": blurred,
    "darkness": darkened,
    "foam": foamed,
    "outside": outside,
}
