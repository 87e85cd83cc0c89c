"""Instants of videos as rows: what models of time learn from is one vector every ``step_s`` seconds of a recording."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch

from endofm_lab.data.manifest import Manifest
from endofm_lab.data.rows import Row
from endofm_lab.errors import UserError, VideoError
from endofm_lab.model.video_model import VideoModel
from endofm_lab.tasks.clips import shares_of
from endofm_lab.tasks.phases import causal_indices
from endofm_lab.video.transforms import to_input

KEPT = ("video", "patient", "dataset", "sequence", "frame", "fps")  # columns of a manifest that belong to its videos
MOST = 50_000_000  # instants of one store


def instants_of(manifest: Manifest, step_s: float) -> Manifest:
    """A manifest with a row every ``step_s`` seconds of every video, from 0 on; an image is a single instant.

    ``start_s`` and ``end_s`` are both the instant. Labels and splits are empty: they belong to a manifest and not to
    the videos, so that manifests with other labels or splits of the same videos have equal instants. A video that
    cannot be opened has one row.

    Raises:
        UserError: ``step_s`` is not above 0, or gives too many instants.
    """
    if not step_s > 0:
        raise UserError(f"step_s is {step_s}; give a number of seconds above 0.")
    columns = [name for name in KEPT if name in manifest.table]
    videos = manifest.table.drop_duplicates("video")
    counts = [_count(Row.of(manifest, cells), step_s) for cells in videos.to_dict("records")]
    if sum(counts) > MOST:
        raise UserError(f"One vector every {step_s} s gives {sum(counts):,} vectors; give a longer step.")
    table = videos[columns].loc[videos.index.repeat(counts)].reset_index(drop=True)
    times = np.concatenate([step_s * np.arange(count) for count in counts])
    return replace(manifest, table=table.assign(start_s=times, end_s=times, label="", split=""), path=None)


def _count(row: Row, step_s: float) -> int:
    """The number of instants in the video of a row."""
    try:
        with row.open() as reader:
            return max(1, int(np.ceil(reader.info.duration_s / step_s - 1e-6)))
    except VideoError:
        return 1


def spread_rows(manifest: Manifest, clips: int) -> Manifest:
    """A manifest with ``clips`` rows for every different stretch of video, as probes read a row.

    ``share`` is the place of the clip between the first and the last start in its stretch; a single clip is in the
    middle. Labels and splits are empty, as in `instants_of`.

    Raises:
        UserError: ``clips`` is less than 1, or gives too many rows.
    """
    if not 1 <= clips <= MOST / max(1, len(manifest)):
        raise UserError(f"clips is {clips} for {len(manifest):,} rows; give from 1 clip to {MOST:,} vectors in all.")
    columns = [name for name in (*KEPT, "start_s", "end_s") if name in manifest.table and name != "fps"]
    table = manifest.table[columns]
    rates = [Row.of(manifest, cells).fps for cells in manifest.table.to_dict("records")]
    if any(rates):
        table = table.assign(fps=[float("nan") if rate is None else float(rate) for rate in rates])
    table = table.drop_duplicates([name for name in ("video", "start_s", "end_s", "fps") if name in table])
    n, shares = len(table), shares_of(clips)
    table = table.loc[table.index.repeat(clips)].reset_index(drop=True)
    return replace(manifest, table=table.assign(share=np.tile(shares, n), label="", split=""), path=None)


def clips_spread(
    manifest: Manifest, model: VideoModel, numbers: Sequence[int]
) -> Iterator[tuple[torch.Tensor, float] | VideoError]:
    """The clip (1, 3, T, S, S) at the ``share`` of each row of `spread_rows`, and its start, or the error."""
    for number in numbers:
        cells = manifest.table.iloc[number]
        row = Row.of(manifest, cells)
        try:
            with row.open() as reader:
                earliest, latest = row.starts(reader, model.card.clip)
                index = row.clip_at(reader, model.card.clip, earliest + float(cells["share"]) * (latest - earliest))
                yield to_input(reader.read(index), model.card.input), float(reader.times_s[index[0]])
        except VideoError as error:
            yield error


def clips_ending_at(
    manifest: Manifest, model: VideoModel, numbers: Sequence[int]
) -> Iterator[tuple[torch.Tensor, float] | VideoError]:
    """The clip (1, 3, T, S, S) that ends at each of these instants, and the time of the instant, or the error.

    The frames of neighbouring clips overlap; a frame is decoded once for all instants of one call.

    Args:
        manifest: of `instants_of`.
        model: gives length, spacing and input of the clips.
        numbers: consecutive rows.
    """
    part = manifest.table.iloc[list(numbers)]
    for _, of_video in part.groupby((part["video"] != part["video"].shift()).cumsum(), sort=False):
        row = Row.of(manifest, of_video.iloc[0])
        times = of_video["start_s"].tolist()
        try:
            yield from _read(row, model, times)
        except VideoError:
            for at_s in times:
                try:
                    yield from _read(row, model, [at_s])
                except VideoError as error:
                    yield error


def _read(row: Row, model: VideoModel, times: Sequence[float]) -> list[tuple[torch.Tensor, float]]:
    """The clips of one video that end at these times."""
    with row.open() as reader:
        indices = np.stack([causal_indices(model.card.clip, reader, at_s) for at_s in times])
        shown, places = np.unique(indices, return_inverse=True)
        frames = reader.read(shown)
        places = places.reshape(indices.shape)
        return [
            (to_input(frames[indices_of_clip], model.card.input), at_s)
            for indices_of_clip, at_s in zip(places, times, strict=True)
        ]
