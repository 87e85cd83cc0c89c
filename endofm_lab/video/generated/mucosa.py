"""The wall of the phantom: texture and folds of a patient's mucosa, periodic along and around the tube.

``s`` runs along the tube, ``phi`` around it; lengths are in tube radii.
"""

import math
import zlib
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from endofm_lab.brief import Brief

TEXTURE_PX = (512, 256)  # along the tube (one period is PERIOD units), around it
PERIOD = 6.0


@dataclass(frozen=True, eq=False, repr=False)
class Mucosa(Brief):
    """The part of the phantom that belongs to the patient: colour and relief of the wall, and its folds."""

    texture: Tensor  # (1, 4, S + 2, P + 2): red, green, blue and relief, periodic, padded by one pixel
    base: Tensor  # (3,) mean colour
    fold_phase: Tensor  # (3,) of the sum of sines that places the folds
    fold_rate: float  # folds per tube radius
    fold_depth: float
    fold_lobes: float  # 3 in the transverse colon, fewer where it is round
    twist: float


def bell(x: Tensor) -> Tensor:
    """exp(-x^2), without the denormal numbers of its tails, which are slow to compute with."""
    return (x * x).clamp_(max=40).neg_().exp_()


def generator(*names: object) -> torch.Generator:
    """A random generator seeded by its purpose: a patient, or a clip of a patient."""
    return torch.Generator().manual_seed(zlib.crc32(repr(names).encode()))


def noise(shape: tuple[int, int], cells: tuple[int, int], random: torch.Generator) -> Tensor:
    """Smooth noise (S, P) of about unit variance that is periodic in both directions, with that many bumps."""
    grid = torch.randn((1, 1, *cells), generator=random)
    padded = F.pad(grid, (2, 2, 2, 2), mode="circular")
    scale = (shape[0] // cells[0], shape[1] // cells[1])
    big = F.interpolate(padded, scale_factor=scale, mode="bicubic", align_corners=False)[0, 0]
    return big[2 * scale[0] : 2 * scale[0] + shape[0], 2 * scale[1] : 2 * scale[1] + shape[1]]


@lru_cache(maxsize=4)
def mucosa_of(patient: int) -> Mucosa:
    """The wall of a patient, the same at every call."""
    random = generator("patient", patient)
    u = torch.rand(12, generator=random).tolist()
    patches = noise(TEXTURE_PX, (16, 8), random)
    fine = noise(TEXTURE_PX, (128, 64), random)
    grain = noise(TEXTURE_PX, (256, 128), random)
    # Vessels are the zero lines of smooth noise: thin, branching, closed.
    broad = bell(noise(TEXTURE_PX, (32, 16), random) / 0.09)
    thin = bell(noise(TEXTURE_PX, (64, 32), random) / 0.12)
    presence = torch.sigmoid(3 * noise(TEXTURE_PX, (16, 8), random))
    vessels = (0.55 + 0.45 * u[0]) * presence * (0.8 * broad + 0.55 * thin)
    base = torch.tensor([0.84 + 0.10 * u[1], 0.39 + 0.14 * u[2], 0.29 + 0.15 * u[3]])
    mottled = 1 + 0.07 * patches + 0.04 * fine + 0.03 * grain
    drop = torch.tensor([0.24, 0.55, 0.46])[:, None, None] * vessels
    colour = base[:, None, None] * mottled * (1 - drop)
    relief = 0.5 * patches + 0.35 * fine
    padded = F.pad(torch.cat([colour, relief[None]])[None], (1, 1, 1, 1), mode="circular")
    return Mucosa(
        texture=padded,
        base=base,
        fold_phase=2 * math.pi * torch.rand(3, generator=random),
        fold_rate=0.95 + 0.5 * u[4],
        fold_depth=0.24 + 0.14 * u[5],
        fold_lobes=3.0 if u[6] < 0.6 else 2.0,
        twist=0.6 * (u[7] - 0.5),
    )


def folds(s: Tensor, phi: Tensor, mucosa: Mucosa) -> Tensor:
    """Height of the folds in 0..1: sharp crests around the tube, uneven in spacing, broken into lobes."""
    p = mucosa.fold_phase.tolist()
    warp = 0.35 * torch.sin(1.3 * s + p[0]) + 0.25 * torch.sin(phi + 0.4 * s + p[1])
    wave = 0.5 + 0.5 * torch.cos(2 * math.pi * mucosa.fold_rate * (s + 0.25 * warp))
    lobes = 0.62 + 0.38 * torch.cos(mucosa.fold_lobes * (phi + mucosa.twist * s) + p[2])
    square = wave * wave
    return square * square * lobes


def grid_of(s: Tensor, phi: Tensor) -> Tensor:
    """Places on the wall as coordinates (t, H, W, 2) of the texture, which is padded by one pixel on every side."""

    def wrapped(turns: Tensor, cells: int) -> Tensor:
        """The place after ``turns`` periods of a texture with ``cells`` cells, in -1..1 of the padded texture."""
        return (turns - turns.floor()).mul_(2 * cells / (cells + 2)).add_(2 / (cells + 2) - 1)

    S, P = TEXTURE_PX
    return torch.stack([wrapped(phi / (2 * math.pi), P), wrapped(s / PERIOD, S)], dim=-1)
