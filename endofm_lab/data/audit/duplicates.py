"""Find pairs of manifest rows that show the same scene, by perceptual hash of their pictures or by embeddings.

Pairs that share a patient, video or sequence are left out, because the audit reports them by their ids.
"""

import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from endofm_lab.brief import Brief
from endofm_lab.data.audit.overlap import Rows
from endofm_lab.data.hashing import (
    COLOUR_PX,
    MAX_RADIUS,
    SAME_SCENE,
    SURE_SCENE,
    THUMB_PX,
    Fingerprint,
    fingerprint,
    hamming,
    near_pairs,
    same_colour,
    same_scene,
)
from endofm_lab.errors import UserError
from endofm_lab.machine import cores
from endofm_lab.messages import progress_bar
from endofm_lab.video.images import IMAGE_SUFFIXES
from endofm_lab.video.reader import open_video

NEAR_COSINE = 0.98
PICTURE_EVERY_S, MAX_PICTURES = 1.0, 8  # pictures per clip: one per second, at most eight
_KEPT = 1 << 20  # candidate pairs held at once


@dataclass(frozen=True, eq=False, repr=False)
class Neighbours(Brief):
    """Pairs of rows that show the same scene.

    Attributes:
        pairs: columns ``row`` < ``other`` (row numbers), ``score`` (1 is identical), best first.
        sure: the score from which a pair needs no review.
        compared: the comparison in words, for the report.
        problems: sentences about pictures that could not be compared.
    """

    pairs: pd.DataFrame
    sure: float
    compared: str
    problems: tuple[str, ...] = ()


@dataclass(eq=False, repr=False)
class Pictures(Brief):
    """Fingerprints of the pictures of all rows; thumbnails are in a file that is deleted with this object."""

    row: np.ndarray  # int64 (P,)
    hashes: np.ndarray  # uint64 (P, 2)
    colours: np.ndarray  # float16 (P, 64, 2)
    thumbs: np.ndarray  # uint8 (P, 32, 32)
    unreadable: list[str]
    featureless: int


def picture_neighbours(rows: Rows, progress: bool = True) -> Neighbours:
    """Rows with near-duplicate pictures: hashes within a radius, the same colours, the same scene by matched detail.

    The radius is as large as possible, up to ``MAX_RADIUS``, while chance alone is expected to give no more pairs than
    can be compared by colour (a thousand per picture, at most fifty million). The radius is part of ``compared``.
    """
    pictures = read_pictures(rows, progress)
    problems = []
    if pictures.unreadable:
        names = ", ".join(pictures.unreadable[:3]) + (", ..." if len(pictures.unreadable) > 3 else "")
        problems.append(f"{len(pictures.unreadable):,} files could not be read and were not compared: {names}.")
    if pictures.featureless:
        problems.append(f"{pictures.featureless:,} pictures are nearly black or uniform and were not compared.")
    n = len(pictures.row)
    radius = _radius(rows, pictures, budget=min(1000 * n, 50_000_000))
    candidates, dropped = _candidates(rows, pictures, radius)
    if dropped:
        problems.append(f"{dropped:,} candidate pairs beyond the {_KEPT:,} nearest were not compared in detail.")
    i, j = candidates
    scores = np.zeros(len(i))
    for start in progress_bar(range(0, len(i), 1024), desc="checking pairs", shown=progress):
        block = slice(start, start + 1024)
        scores[block] = same_scene(pictures.thumbs[i[block]], pictures.thumbs[j[block]])
    matches = scores >= SAME_SCENE
    compared = f"{n:,} pictures, hashes within {radius} of 128 bits, {len(i):,} pairs compared in detail"
    return Neighbours(
        _row_pairs(pictures.row[i[matches]], pictures.row[j[matches]], scores[matches]),
        SURE_SCENE,
        compared,
        tuple(problems),
    )


def embedding_neighbours(rows: Rows, embeddings: np.ndarray) -> Neighbours:
    """Rows whose embeddings agree with a cosine of at least ``NEAR_COSINE``.

    Args:
        rows: the rows.
        embeddings: float (N, D), finite; zero vectors match nothing. Time grows with N squared times D.

    Raises:
        UserError: the embeddings contain values that are not finite.
    """
    if not np.isfinite(embeddings).all():
        raise UserError("The embeddings contain NaN or infinity. Leave out the rows without a finite embedding.")
    unit = np.asarray(embeddings, np.float32)
    unit = unit / np.maximum(np.linalg.norm(unit, axis=1, keepdims=True), 1e-12)
    blocks: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    size = 2048
    for top in range(0, len(unit), size):
        for left in range(top, len(unit), size):
            cosine = unit[top : top + size] @ unit[left : left + size].T
            i, j = np.nonzero(cosine >= NEAR_COSINE)
            score = cosine[i, j]
            i, j = i + top, j + left
            keep = (j > i) & ~_explained(rows, i, j)
            blocks.append((i[keep], j[keep], score[keep]))
    i, j, score = (np.concatenate([block[k] for block in blocks]) for k in range(3))
    compared = f"{len(unit):,} embeddings, cosine of {NEAR_COSINE} and up"
    return Neighbours(_row_pairs(i, j, np.minimum(score, 1.0)), NEAR_COSINE, compared)


def read_pictures(rows: Rows, progress: bool = True) -> Pictures:
    """Fingerprints of every row's pictures: the image itself, or one frame per second of a clip (at most eight)."""
    videos = pd.Series(np.arange(len(rows.table))).groupby(rows.keys["video"]).indices
    works = [numbers for _, numbers in sorted(videos.items())]
    batches = [works[n : n + 32] for n in range(0, len(works), 32)]
    times = rows.table[["start_s", "end_s"]].to_numpy(float)
    paths = rows.table["path"].to_numpy()

    def read(batch: Sequence[np.ndarray]) -> tuple[list[tuple[int, Fingerprint]], list[str]]:
        out: list[tuple[int, Fingerprint]] = []
        failed = []
        for numbers in batch:
            try:
                out += _fingerprints(Path(paths[numbers[0]]), numbers, times[numbers])
            except (OSError, ValueError, Image.DecompressionBombError) as error:  # UserError is a ValueError
                failed.append(f"{Path(paths[numbers[0]]).name} ({error})")
        return out, failed

    row: list[int] = []
    hashes: list[np.ndarray] = []
    colours: list[np.ndarray] = []
    unreadable: list[str] = []
    featureless = 0
    with tempfile.TemporaryFile() as file, ThreadPoolExecutor(cores()) as pool:
        for prints, failed in progress_bar(
            pool.map(read, batches), desc="reading pictures", total=len(batches), unit_scale=32, shown=progress
        ):
            unreadable += failed
            for number, entry in prints:
                if entry.thumb.std() < 4 or (entry.thumb > 20).mean() < 0.2:
                    featureless += 1
                    continue
                row.append(number)
                hashes.append(entry.hash)
                colours.append(entry.colour)
                file.write(entry.thumb.tobytes())
        file.flush()
        shape = (len(row), THUMB_PX, THUMB_PX)
        thumbs = np.memmap(file, np.uint8, "r", shape=shape) if row else np.zeros(shape, np.uint8)
    bits = np.array(hashes, np.uint64).reshape(-1, 2)
    shares = np.array(colours, np.float16).reshape(-1, COLOUR_PX**2, 2)
    return Pictures(np.array(row, np.int64), bits, shares, thumbs, unreadable, featureless)


def _fingerprints(path: Path, numbers: np.ndarray, times_s: np.ndarray) -> list[tuple[int, Fingerprint]]:
    """(row, fingerprint) of the rows ``numbers`` of one file, whose clips are ``times_s`` (n, 2)."""
    if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file():
        with Image.open(path) as picture:
            picture.draft("RGB", (256, 256))  # JPEG: decodes at a fraction of the size
            entry = fingerprint(picture)
        return [(int(number), entry) for number in numbers]
    with open_video(path) as reader:
        frame_times_s = reader.times_s
        requests = []
        for number, (start, end) in zip(numbers, times_s, strict=True):
            end = frame_times_s[-1] if np.isnan(end) else end
            count = int(np.clip(np.ceil((end - start) / PICTURE_EVERY_S), 1, MAX_PICTURES))
            moments = start + (end - start) * (np.arange(count) + 0.5) / count
            requests += [(int(number), int(np.abs(frame_times_s - moment).argmin())) for moment in moments]
        frames = sorted({frame for _, frame in requests})
        prints = {
            frame: fingerprint(Image.fromarray(picture))
            for frame, picture in zip(frames, reader.read(frames), strict=True)
        }
    return [(number, prints[frame]) for number, frame in requests]


def _explained(rows: Rows, i: np.ndarray, j: np.ndarray) -> np.ndarray:
    """Whether rows i and j share a patient, a video or a sequence; bool like i."""
    shared = np.zeros(len(i), bool)
    for keys in rows.keys.values():
        shared |= (keys[i] == keys[j]) & (keys[i] >= 0)
    return shared


def _radius(rows: Rows, pictures: Pictures, budget: int) -> int:
    """The largest radius whose expected number of unexplained pairs stays within ``budget``, by a sample of pairs."""
    n = len(pictures.row)
    if n < 2:
        return 0
    rng = np.random.default_rng(0)
    i, j = rng.integers(0, n, (2, 1 << 21))
    different = ~_explained(rows, pictures.row[i], pictures.row[j]) & (i != j)
    distance = hamming(pictures.hashes[i[different]], pictures.hashes[j[different]])
    # Share of all pairs within each radius, times the number of pairs.
    expected = np.cumsum(np.bincount(distance, minlength=129)) / len(i) * (n * (n - 1) / 2)
    most = MAX_RADIUS if n <= 100_000 else 15  # for more pictures, only the index is fast enough
    return int(min(most, max(int(np.searchsorted(expected, budget, side="right")) - 1, 4)))


def _candidates(rows: Rows, pictures: Pictures, radius: int) -> tuple[tuple[np.ndarray, np.ndarray], int]:
    """Unexplained pairs of similar colour within ``radius`` (the nearest if too many), and how many were dropped."""
    blocks: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    n_held, dropped = 0, 0
    for i, j, distance in near_pairs(pictures.hashes, radius):
        keep = np.flatnonzero(
            ~_explained(rows, pictures.row[i], pictures.row[j]) & (pictures.row[i] != pictures.row[j])
        )
        keep = keep[same_colour(pictures.colours[i[keep]], pictures.colours[j[keep]])]
        blocks.append((i[keep], j[keep], distance[keep]))
        n_held += len(keep)
        if n_held > 2 * _KEPT:
            blocks = [_nearest(blocks)]
            dropped, n_held = dropped + n_held - _KEPT, _KEPT
    if n_held > _KEPT:
        dropped += n_held - _KEPT
    i, j, _ = _nearest(blocks)
    return (i, j), dropped


def _nearest(blocks: list[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    if not blocks:
        return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.int16)
    i, j, distance = (np.concatenate([block[k] for block in blocks]) for k in range(3))
    best = np.argsort(distance, kind="stable")[:_KEPT]
    return i[best], j[best], distance[best]


def _row_pairs(i: np.ndarray, j: np.ndarray, score: np.ndarray) -> pd.DataFrame:
    """One line per pair of rows, with the best score of its pictures."""
    table = pd.DataFrame({"row": np.minimum(i, j), "other": np.maximum(i, j), "score": score})
    table = table.sort_values(["score", "row", "other"], ascending=[False, True, True])
    return table.drop_duplicates(["row", "other"]).reset_index(drop=True)
