"""Phases of long videos: one answer every ``step_s`` seconds from the clip that ends there, then smoothed over time.

The rows of a video are its phases, one after the other; instants between two rows have no phase and are not asked for.
"""

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Literal

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from endofm_lab.errors import ManifestError
from endofm_lab.metrics.smoothing import hmm_filter, hmm_smooth, transition_from_labels
from endofm_lab.model.video_model import VideoModel
from endofm_lab.tasks.clips import SeenClip, in_batches, see
from endofm_lab.tasks.examples import Example, targets_of
from endofm_lab.video.clips import ClipSpec
from endofm_lab.video.reader import VideoReader
from endofm_lab.video.transforms import InputSpec

Smoother = Literal["none", "causal", "offline"]
BATCH = 8  # clips that go through the model together


def phase_table(
    model: VideoModel,
    head: str,
    examples: Sequence[Example],
    training: Sequence[Example],
    step_s: float,
    smoother: Smoother,
) -> pd.DataFrame:
    """One row per instant: ``row``, ``patient``, ``video``, ``target``, ``predicted`` and ``score_<class>`` (raw).

    The smoother is a hidden Markov model whose transitions are counted in the training videos at the same steps; its
    prior is the share of each class among training rows, which is how often training shows it.

    Args:
        model: with a class head.
        head: its name.
        examples: rows to answer.
        training: rows that the model was trained on.
        step_s: seconds between instants.
        smoother: "causal" answers from the past only, "offline" from the whole video, "none" from the clip alone.

    Raises:
        ManifestError: rows of one video overlap in time.
    """
    classes = model.card.heads[head].classes
    rows: list[dict] = []
    scores = []
    for some in in_batches(_instants(examples, model.card.clip, model.card.input, step_s, rows), BATCH):
        scores.append(model.predict(torch.stack([seen.clip for seen in some]))[head].double().numpy())
    table = pd.DataFrame(rows)
    values = np.concatenate(scores)
    table[[f"score_{name}" for name in classes]] = values
    table["predicted"] = values.argmax(1)
    if smoother == "none":
        return table
    transition = transition_from_labels(_label_sequences(training, step_s), len(classes))
    counts = np.bincount(targets_of(training), minlength=len(classes))
    smooth = hmm_filter if smoother == "causal" else hmm_smooth
    for video in table["video"].unique():
        own = (table["video"] == video).to_numpy()
        chances = smooth(np.clip(values[own], 1e-9, None), transition, counts / counts.sum())
        table.loc[own, "predicted"] = chances.argmax(1)
    return table


def causal_indices(clip: ClipSpec, reader: VideoReader, at_s: float) -> NDArray[np.int64]:
    """Frames (T,) of the clip that ends with the last frame shown by ``at_s``; the video's first fills up its start."""
    last = max(int(np.searchsorted(reader.times_s, at_s + 1e-6)) - 1, 0)
    apart = max(1, round(float(reader.info.fps) * clip.span_s(reader.info) / clip.n_frames))
    return np.maximum(last - apart * np.arange(clip.n_frames - 1, -1, -1), 0)


def _instants(
    examples: Sequence[Example], clip: ClipSpec, spec: InputSpec, step_s: float, rows: list[dict]
) -> Iterator[SeenClip]:
    """The clips of all instants, video after video in temporal order; ``rows`` is filled beside them."""
    for name, of_video in _by_video(examples):
        with of_video[0].open() as reader:
            for at_s, example in _steps(name, of_video, reader, step_s):
                rows.append(
                    {
                        "row": f"{name}@{at_s:.3f}",
                        "patient": example.patient,
                        "video": name,
                        "target": example.target,
                    }
                )
                yield see(example, reader, causal_indices(clip, reader, at_s), spec)


def _label_sequences(examples: Sequence[Example], step_s: float) -> Iterator[NDArray[np.int64]]:
    """The classes of every video at its instants."""
    for name, of_video in _by_video(examples):
        with of_video[0].open() as reader:
            yield targets_of([example for _, example in _steps(name, of_video, reader, step_s)])


def _by_video(examples: Sequence[Example]) -> Iterator[tuple[str, list[Example]]]:
    ordered = sorted(examples, key=lambda example: (example.name, example.start_s))
    for name, of_video in groupby(ordered, key=lambda example: example.name):
        yield name, list(of_video)


def _steps(
    name: str, of_video: Sequence[Example], reader: VideoReader, step_s: float
) -> Iterator[tuple[float, Example]]:
    """Every instant at a multiple of ``step_s`` seconds, with the row that it lies in."""
    ends = [min(example.end_s, reader.info.duration_s) for example in of_video]
    overlaps = sum(later.start_s < end - 1e-6 for end, later in zip(ends, of_video[1:], strict=False))
    if overlaps:
        raise ManifestError(f"{name}: {overlaps} rows start before the one before them ends; an instant has one phase.")
    for example, end_s in zip(of_video, ends, strict=True):
        first, after = np.ceil(np.array([example.start_s, end_s]) / step_s - 1e-6).astype(int).tolist()
        for number in range(first, after):
            yield number * step_s, example
