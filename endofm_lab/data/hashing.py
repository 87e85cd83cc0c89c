"""Perceptual fingerprints of endoscopy pictures: hash, search, and checks that two pictures show the same scene.

Endoscopy pictures look alike to a plain perceptual hash: a bright octagon with a dark hole. Four steps are needed.
1. The lit part is cut out, because the same picture is published with and without its black border, and a 128-bit
   difference hash is taken (signs of horizontal and vertical steps on an 8 x 8 grid).
2. Pairs within a Hamming radius are found by multi-index hashing (Norouzi et al., CVPR 2012): exact, vectorised, in
   blocks of bounded memory.
3. Their colours are compared place by place, because mucosa, light and device give every recording its own colours.
4. The remaining pairs are checked by matching blocks of fine detail: the same scene gives high correlations with
            consistent shifts, even after a small camera movement; two different scenes do not.

Limits: mirrored copies and copies with changed colours are not detected.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

THUMB_PX, COLOUR_PX = 32, 8
HASH_WORDS = 2  # 128 bits
# Chosen on 800 pictures of Kvasir-SEG with ten near-duplicate pairs confirmed by eye, and on generated clips of 40
# patients (51,000 pairs of pictures of different patients).
# Hashes: the ten pairs are 0 to 19 bits apart; a random pair is within 20 bits in 0.04 % of cases, within 24 in 0.2 %.
MAX_RADIUS = 24
# Colours: the ten pairs differ by 0.028 at most; a random pair of Kvasir-SEG by less than 0.034 in 0.1 % of cases.
SAME_COLOUR = 0.03
# Detail: the ten pairs score 0.44 to 0.99. Seven more of Kvasir-SEG score 0.64 to 0.89, and by eye they show the same
# scene too; the next scores 0.35. Of the generated pictures, two pairs of different patients score 0.42 and 0.47: below
# SURE_SCENE a pair is a reason to look, not proof.
SAME_SCENE, SURE_SCENE = 0.42, 0.6

_LIT = 24  # grey value above which a pixel is not border
_BLOCK, _REACH = 8, 4  # px of the thumbnail


class Fingerprint(NamedTuple):
    """The fingerprint of a picture.

    Attributes:
        hash: uint64 (2,).
        thumb: uint8 (32, 32), grey, of the lit part.
        colour: float16 (64, 2), red and green as shares of red + green + blue on an 8 x 8 grid; NaN where it is dark.
    """

    hash: np.ndarray
    thumb: np.ndarray
    colour: np.ndarray


def fingerprint(picture: Image.Image) -> Fingerprint:
    """Hash, thumbnail and colours of the lit part of a picture."""
    picture = picture.convert("RGB")
    if max(picture.size) > 512:  # a small picture makes this fast
        picture = picture.reduce(max(picture.size) // 256)
    grey = picture.convert("L")
    box = _lit_box(np.asarray(grey))

    def shrunk(image: Image.Image, width: int, height: int) -> np.ndarray:
        return np.asarray(image.resize((width, height), Image.Resampling.BOX, box=box))

    wide, high = shrunk(grey, 9, 8).astype(np.int16), shrunk(grey, 8, 9).astype(np.int16)
    bits = np.concatenate([(np.diff(wide, axis=1) > 0).ravel(), (np.diff(high, axis=0) > 0).ravel()])
    rgb = shrunk(picture, COLOUR_PX, COLOUR_PX).reshape(-1, 3).astype(np.float32)
    total = rgb.sum(axis=1, keepdims=True)
    colour = np.where(total > 90, rgb[:, :2] / np.maximum(total, 1), np.nan).astype(np.float16)
    return Fingerprint(np.packbits(bits).view(np.uint64), shrunk(grey, THUMB_PX, THUMB_PX), colour)


def _lit_box(grey: np.ndarray) -> tuple[int, int, int, int]:
    """The smallest box around rows and columns that are lit over a quarter; the whole picture if there is none."""
    lit = grey > _LIT
    rows, columns = np.flatnonzero(lit.mean(axis=1) > 0.25), np.flatnonzero(lit.mean(axis=0) > 0.25)
    if len(rows) < 16 or len(columns) < 16:
        return (0, 0, grey.shape[1], grey.shape[0])
    return (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)


def hamming(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Differing bits of hashes ``(..., 2)`` uint64; broadcasts like ``a ^ b``."""
    return np.bitwise_count(a ^ b).sum(axis=-1, dtype=np.int16)


def near_pairs(hashes: np.ndarray, radius: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """All pairs i < j of different rows with at most ``radius`` differing bits, each exactly once.

    Args:
        hashes: uint64 (N, 2).
        radius: in bits. Up to 15 bits, time grows with the number of similar hashes; above, with N squared.

    Yields:
        Blocks of (i, j, distance): int64, int64, int16.
    """
    if radius > 15 or len(hashes) < 2000:
        yield from _all_pairs(hashes, radius)
        return
    # Cut the bits into seven (eight) bands. Two hashes within the radius differ in some band by at most
    # radius // bands bits, because otherwise they would differ by more in all.
    n_bands = 7 if radius < 14 else 8
    slack = radius // n_bands
    keys, width = _bands(hashes, n_bands)
    for band, key in enumerate(keys):
        order = np.argsort(key, kind="stable").astype(np.int32)
        key, sorted_hashes = key[order], hashes[order]
        start = np.searchsorted(key, np.arange((1 << width) + 1))
        for mask in [0] + [1 << bit for bit in range(width)] * slack:
            if mask:  # the bucket whose key differs in this bit, each pair of buckets once
                partner = key ^ mask
                low, high = start[partner], np.where(key < partner, start[partner + 1], 0)
            else:  # the rest of the same bucket
                low, high = np.arange(1, len(key) + 1), start[key + 1]
            for first, second in _ranges(low, high):
                distance = np.bitwise_count(sorted_hashes[first, 0] ^ sorted_hashes[second, 0])
                near = np.flatnonzero(distance <= radius)
                i, j = first[near], second[near]
                distance = distance[near] + np.bitwise_count(sorted_hashes[i, 1] ^ sorted_hashes[j, 1])
                near = distance <= radius
                i, j, distance = order[i[near]], order[j[near]], distance[near]
                # Whether an earlier band has already found the pair.
                new = (np.bitwise_count(keys[:band, i] ^ keys[:band, j]) > slack).all(axis=0)
                if new.any():
                    i, j = i[new].astype(np.int64), j[new].astype(np.int64)
                    yield np.minimum(i, j), np.maximum(i, j), distance[new].astype(np.int16)


def _bands(hashes: np.ndarray, n_bands: int) -> tuple[np.ndarray, int]:
    """Int32 (bands, N) keys and their width in bits. Neighbouring bits are alike, so each band takes every n-th bit."""
    width = -(-128 // n_bands)
    keys = np.zeros((n_bands, len(hashes)), np.int32)
    for begin in range(0, len(hashes), 1 << 16):
        rows = np.ascontiguousarray(hashes[begin : begin + (1 << 16)])
        bits = np.unpackbits(rows.view(np.uint8).reshape(len(rows), 16), axis=1)
        for band in range(n_bands):
            band_bits = bits[:, band::n_bands]
            keys[band, begin : begin + len(bits)] = band_bits @ (1 << np.arange(band_bits.shape[1], dtype=np.int32))
    return keys, width


def _ranges(low: np.ndarray, high: np.ndarray, block: int = 1 << 18) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pairs (n, m) with low[n] <= m < high[n], in blocks of about ``block`` pairs."""
    lengths = np.maximum(high - low, 0)
    busy = np.flatnonzero(lengths)
    total = np.cumsum(lengths[busy])
    begin = 0
    while begin < len(busy):
        offset = total[begin - 1] if begin else 0
        end = max(begin + 1, int(np.searchsorted(total, offset + block, side="right")))
        rows = busy[begin:end]
        count = lengths[rows]
        # Within a row, m counts up from low; the first of row k stands at total[k - 1] - done.
        first = low[rows] - (total[begin:end] - count - offset)
        yield np.repeat(rows, count), np.repeat(first, count) + np.arange(int(count.sum()))
        begin = end


def _all_pairs(hashes: np.ndarray, radius: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    size = max(1, (1 << 21) // max(len(hashes), 1))
    for begin in range(0, len(hashes), size):
        rows = hashes[begin : begin + size]
        distance = np.zeros((len(rows), len(hashes) - begin), np.uint8)
        for word in range(HASH_WORDS):
            distance += np.bitwise_count(rows[:, None, word] ^ hashes[None, begin:, word])
        i, j = np.nonzero(distance <= radius)
        later = j > i
        i, j = i[later], j[later]
        if len(i):
            yield i + begin, j + begin, distance[i, j].astype(np.int16)


def same_colour(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Whether the colours agree to ``SAME_COLOUR`` in at least half of the places that are lit in both; bool (P,).

    Args:
        first: float16 (P, 64, 2), as in :class:`Fingerprint`.
        second: float16 (P, 64, 2).
    """
    difference = first.astype(np.float32) - second
    # Red, green, and blue, which is the rest of the sum.
    distance = np.abs(difference).sum(axis=2) + np.abs(difference.sum(axis=2))
    return 2 * (distance <= SAME_COLOUR).sum(axis=1) >= np.maximum(np.isfinite(distance).sum(axis=1), 1)


def same_scene(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """A score of how certainly two thumbnails show the same scene, for P pairs.

    Blocks of 8 px of the first picture are searched for within 4 px in the second, on the fine detail (grey minus its
    blur, relative to the blur). The score is the mean of the best correlations times the share of blocks whose shift
    agrees with the median shift to 1 px.

    Args:
        first: uint8 (P, 32, 32).
        second: uint8 (P, 32, 32).

    Returns:
        float64 (P,), about 0 to 0.35 for different scenes, 1 for the same picture; 0 if too little of it is lit.
    """
    scores = [_same_scene(first[n : n + 256], second[n : n + 256]) for n in range(0, len(first), 256)]
    return np.concatenate(scores) if scores else np.zeros(0)


def _same_scene(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    a, lit = _detail(first)
    b, _ = _detail(second)
    padded = F.pad(b, [_REACH] * 4)
    shifts = 2 * _REACH + 1
    energy = F.avg_pool2d(padded.square()[:, None], _BLOCK, stride=1, divisor_override=1)[:, 0]  # (P, 33, 33)
    energy_a = _blocks(a.square())
    correlations = torch.empty((shifts * shifts, *energy_a.shape))
    for n in range(shifts * shifts):
        y, x = divmod(n, shifts)
        product = _blocks(a * padded[:, y : y + THUMB_PX, x : x + THUMB_PX])
        energy_b = energy[:, y : y + 25 : _BLOCK // 2, x : x + 25 : _BLOCK // 2]
        correlations[n] = product * (energy_a * energy_b + 1e-9).rsqrt()
    best, index = correlations.max(dim=0)
    at = torch.stack([index // shifts, index % shifts], dim=-1).float()
    is_lit = (_blocks(lit.float()) >= 0.7 * _BLOCK**2).flatten(1)
    best, at = best.flatten(1), at.flatten(1, 2)
    at[~is_lit] = torch.nan
    agree = ((at - at.nanmedian(dim=1, keepdim=True).values).abs() <= 1).all(dim=-1) & is_lit
    count = is_lit.sum(dim=1)
    score = (best * is_lit).sum(dim=1) * agree.sum(dim=1) / count.clamp(min=1) ** 2
    return torch.where(count >= 6, score, 0.0).double().numpy()


def _blocks(x: torch.Tensor) -> torch.Tensor:
    """Sums over blocks of 8 x 8 px at every fourth pixel: (P, 32, 32) to (P, 7, 7)."""
    half = _BLOCK // 2
    cells = x.unflatten(2, (-1, half)).sum(3).unflatten(1, (-1, half)).sum(2)
    return F.avg_pool2d(cells[:, None], 2, stride=1, divisor_override=1)[:, 0]


def _detail(thumbs: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """Fine detail float32 (P, 32, 32), outliers (highlights) clipped at two standard deviations, and the lit pixels."""
    from scipy.ndimage import gaussian_filter  # takes half a second to load, at the start of every command

    grey = thumbs.astype(np.float32)
    blur = gaussian_filter(grey, (0, 1.5, 1.5))
    detail = (grey - blur) / (blur + 10)
    limit = 2 * detail.std(axis=(1, 2), keepdims=True)
    lit = grey > 20
    return torch.from_numpy(np.clip(detail, -limit, limit) * lit), torch.from_numpy(lit)
