"""Phases of long videos: one answer every ``step_s`` seconds from the clip that ends there, then smoothed over time.

The rows of a video are its phases, one after the other; instants between two rows have no phase and are skipped.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from endofm_lab.data.manifest import Manifest
from endofm_lab.errors import ManifestError, UserError
from endofm_lab.metrics.classification import weighted_mean
from endofm_lab.metrics.intervals import MetricSet
from endofm_lab.metrics.phases import phase_metrics
from endofm_lab.metrics.smoothing import hmm_filter, hmm_smooth, transition_from_labels
from endofm_lab.model.card import HeadSpec
from endofm_lab.model.video_model import VideoModel
from endofm_lab.tasks.clips import EvaluationClip, TrainingClip, in_batches, read_clip
from endofm_lab.tasks.examples import Example
from endofm_lab.tasks.labels import class_head, class_targets, recall_and_precision, score_names
from endofm_lab.tasks.scoring import BATCH, answers, targets_of
from endofm_lab.tasks.task import ClassMetrics, Task
from endofm_lab.video.clips import ClipSpec
from endofm_lab.video.reader import VideoReader
from endofm_lab.video.transforms import InputSpec

Smoother = Literal["none", "causal", "offline"]


@dataclass(frozen=True)
class Phases(Task):
    """Phases of long videos. Its table has one row per instant: ``video``, ``target``, ``predicted``, and raw scores.

    Attributes:
        label: column of the manifest that holds the phase.
        step_s: seconds from one answer to the next.
        smoother: "causal" answers from the past only, "offline" from the whole video, "none" from the clip alone.
    """

    label: str = "label"
    step_s: float = 1.0
    smoother: Smoother = "causal"

    name = "phases"
    head_name = "phase"
    kinds = ("multiclass",)
    methods = ("full", "frozen", "ST-Adapter", "LoRA", "attentive probe")
    columns = ("video", "target", "predicted")
    truth = ("video", "target")
    primary = "jaccard"
    chosen_by = "accuracy"

    def __post_init__(self) -> None:
        if not self.step_s > 0 or self.smoother not in get_args(Smoother):
            raise UserError(
                f"step_s is {self.step_s} and smoother {self.smoother!r}; give a step above 0 and one of the smoothers "
                f"{', '.join(get_args(Smoother))}."
            )

    def head(self, manifest: Manifest) -> HeadSpec:
        """The head for the phases of the training rows."""
        return class_head(manifest, self.label)

    def targets(self, manifest: Manifest, split: str, head: HeadSpec) -> Sequence[Any]:
        """The number of every row's phase."""
        return class_targets(manifest, split, head, self.label)

    def sample(self, example: Example, clip: TrainingClip) -> dict[str, Any]:
        """``target``: the number of the phase."""
        return {"target": torch.tensor(example.target)}

    def table(
        self, model: VideoModel, head: str, examples: Sequence[Example], training: Sequence[Example]
    ) -> pd.DataFrame:
        """One row per instant, smoothed over time.

        The smoother is a hidden Markov model whose transitions are counted in the training videos at the same steps.
        Its prior is the share of each class among the training rows, because that is how often training shows it.

        Raises:
            ManifestError: rows of one video overlap in time.
        """
        classes = model.card.heads[head].classes
        rows: list[dict] = []
        scores = []
        for batch in in_batches(_instants(examples, model.card.clip, model.card.input, self.step_s, rows), BATCH):
            scores.append(answers(model, head, batch).double().numpy())
        table = pd.DataFrame(rows)
        values = np.concatenate(scores)
        table[[f"score_{name}" for name in classes]] = values
        table["predicted"] = values.argmax(1)
        if self.smoother == "none":
            return table
        transition = transition_from_labels(_label_sequences(training, self.step_s), len(classes))
        counts = np.bincount(targets_of(training), minlength=len(classes))
        smooth = hmm_filter if self.smoother == "causal" else hmm_smooth
        for video in table["video"].unique():
            in_video = (table["video"] == video).to_numpy()
            probabilities = smooth(np.clip(values[in_video], 1e-9, None), transition, counts / counts.sum())
            table.loc[in_video, "predicted"] = probabilities.argmax(1)
        return table

    def protocol(self) -> dict[str, Any]:
        """The column and the step."""
        return {"label": self.label, "step_s": self.step_s}

    def words(self) -> str:
        """The smoother."""
        return {"none": "not smoothed", "causal": "causal smoother", "offline": "offline smoother"}[self.smoother]

    @classmethod
    def measured(cls, rows: pd.DataFrame) -> tuple[NDArray, MetricSet]:
        """Units are videos; metrics are means over them."""
        table = phase_metrics(rows["video"], rows["target"], rows["predicted"])
        owner = rows.groupby("video", sort=False)["patient"].first()
        columns = {str(name): table[name].to_numpy() for name in table}
        return owner.loc[table.index].to_numpy(), lambda weights: {
            name: weighted_mean(values, weights) for name, values in columns.items()
        }

    @classmethod
    def by_class(cls, rows: pd.DataFrame, protocol: Mapping[str, Any]) -> list[tuple[str, int, ClassMetrics]]:
        """``recall`` and ``precision`` over time steps."""
        target, predicted = rows["target"].to_numpy(), rows["predicted"].to_numpy()
        names = score_names(rows) or [f"class {k}" for k in range(int(max(target.max(), predicted.max())) + 1)]
        return recall_and_precision(names, *(v[:, None] == np.arange(len(names)) for v in (target, predicted)))


def causal_indices(clip: ClipSpec, reader: VideoReader, at_s: float) -> NDArray[np.int64]:
    """Frames (T,) of the clip that ends at ``at_s``; the first frame stands for frames before the video's start."""
    last = max(int(np.searchsorted(reader.times_s, at_s + 1e-6)) - 1, 0)
    spacing = max(1, round(float(reader.info.fps) * clip.span_s(reader.info) / clip.n_frames))
    return np.maximum(last - spacing * np.arange(clip.n_frames - 1, -1, -1), 0)


def _instants(
    examples: Sequence[Example], clip: ClipSpec, spec: InputSpec, step_s: float, rows: list[dict]
) -> Iterator[EvaluationClip]:
    """The clips of all instants, video by video in temporal order; a row for each of them is appended to ``rows``."""
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
                yield read_clip(example, reader, causal_indices(clip, reader, at_s), spec)


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
    ends = [example.end_in(reader) for example in of_video]
    overlaps = sum(following.start_s < end - 1e-6 for end, following in zip(ends, of_video[1:], strict=False))
    if overlaps:
        raise ManifestError(f"{name}: {overlaps} rows start before the previous row ends. Phases must not overlap.")
    for example, end_s in zip(of_video, ends, strict=True):
        first, stop = np.ceil(np.array([example.start_s, end_s]) / step_s - 1e-6).astype(int).tolist()
        for number in range(first, stop):
            yield number * step_s, example
