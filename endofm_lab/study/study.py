"""Score whole studies frame by frame with a frame model: hours of video or a million images in constant memory.

decode and resize (threads, bounded queues) -> batches -> model (threads) -> parts on disk -> `Study`

A part holds the scores of `PART_FRAMES` frames. If the process is killed, only the current part is lost. Because no
batch crosses the border of a part, a resumed study equals a study that was never stopped.
"""

import shutil
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from endofm_lab import __version__
from endofm_lab.brief import Brief, html_of
from endofm_lab.errors import UserError, VideoError
from endofm_lab.familiarity.clips import summary_of, text_of
from endofm_lab.files import fingerprint_of, read_json, read_parquet, reading, write_json, write_parquet
from endofm_lab.folders.hashes import refuse_changed
from endofm_lab.folders.provenance import provenance
from endofm_lab.folders.run_folder import claim
from endofm_lab.model.loading.load import model_at
from endofm_lab.model.video_model import VideoModel
from endofm_lab.model.weight_files import state_fingerprint
from endofm_lab.predict import with_progress
from endofm_lab.study.parts import joined, leading_parts, write_part
from endofm_lab.study.stream import THREADS, Batches, LastScored, answers_of
from endofm_lab.video.reader import VideoInfo, VideoReader, open_video

PART_FRAMES = 4096
FORM = 1  # version of the file format; to be raised when older versions could no longer read the files
SCORED, DUPLICATE, UNREADABLE = 0, 1, 2  # states of a frame
STATES = ("scored", "near-duplicate", "unreadable")


@dataclass(frozen=True, eq=False, repr=False)
class Study(Brief):
    """The scores of every frame of a study, or of the first N frames if the study is unfinished.

    Attributes:
        video: the video that was read.
        times_s: (N,) float64 presentation times.
        scores: class head -> (N, K) float32 in 0..1, after the card's temperature; NaN for unreadable frames. A
            near-duplicate has the scores of the frame that it repeats.
        classes: head -> the names of its K classes.
        kinds: head -> "multiclass" or "multilabel".
        state: (N,) uint8: `SCORED`, `DUPLICATE` or `UNREADABLE`.
        stands_for: (N,) int64, the frame that the scores were computed from; -1 for unreadable frames.
        unreadable: columns frame, time_s, reason; one row per unreadable frame.
        provenance: model, options, versions.
        distance: (N,) float64 from the training features, up to 1 is familiar; NaN for unreadable frames, and that of
            the repeated frame for near-duplicates. None if the model has no statistics of its training features.
    """

    video: VideoInfo
    times_s: np.ndarray
    scores: dict[str, np.ndarray]
    classes: dict[str, list[str]]
    kinds: dict[str, str]
    state: np.ndarray
    stands_for: np.ndarray
    unreadable: pd.DataFrame
    provenance: dict[str, Any]
    distance: np.ndarray | None = None

    def _repr_html_(self) -> str:
        return html_of(self, self.table())

    @property
    def finished(self) -> bool:
        """Whether every frame of the video was processed."""
        return len(self.times_s) == self.video.n_frames

    def unfamiliar_frames(self) -> np.ndarray:
        """Bool (N,), frames that look unlike what the model learned; all False if the distances are unknown."""
        return np.zeros(len(self.times_s), bool) if self.distance is None else self.distance > 1

    def familiarity_text(self) -> str:
        """A sentence on how many of the readable frames look unlike what the model learned."""
        return text_of(self._readable_distance(), "frame")

    def familiarity_summary(self) -> dict[str, Any]:
        """The counts of `familiarity_text` as plain values; those that are unknown are None."""
        return summary_of(self._readable_distance(), int((self.state != UNREADABLE).sum()), "frame")

    def _readable_distance(self) -> np.ndarray | None:
        return None if self.distance is None else self.distance[self.state != UNREADABLE]

    def table(self) -> pd.DataFrame:
        """One row per frame: frame, time_s, state, stands_for, and one column ``head.class`` per score.

        If familiarity is known, also the distance of the frame from what the model learned.
        """
        columns: dict[str, Any] = {
            "frame": np.arange(len(self.times_s)),
            "time_s": self.times_s,
            "state": np.array(STATES)[self.state],
            "stands_for": self.stands_for,
        }
        if self.distance is not None:
            columns["distance"] = self.distance
        for head, values in self.scores.items():
            columns |= {f"{head}.{name}": values[:, k] for k, name in enumerate(self.classes[head])}
        return pd.DataFrame(columns)


def run_study(
    path: str | Path,
    model: VideoModel | str | Path,
    out: str | Path,
    *,
    skip_near_duplicates: bool = False,
    batch: int = 64,
    fps: float | None = None,
    device: str = "auto",
    progress: bool = True,
) -> Study:
    """Score every frame of a video or a folder of images, and write the result to ``out`` (see `load_study`).

    The same call continues a study that was stopped, and reads a finished study back.

    Args:
        path: a video file or a folder of frames.
        model: a frame model (its clips have one frame) with class heads, its folder, or a name for `load_model`.
        out: folder for ``frames.parquet`` and ``study.json``, and for the parts while the study runs.
        skip_near_duplicates: frames that hardly differ from the last scored frame take its scores.
        batch: number of frames that go through the model together.
        fps: frames per second of a folder of frames; 25 if not given.
        device: device that the model runs on, as in `predict_video`.
        progress: show a progress bar.

    Raises:
        VideoError: the video cannot be opened, or none of its frames can be read.
        UserError: the model takes clips of several frames or has no class head, ``out`` contains another study or
            other files (the message names the difference), or another process is working there.
    """
    steps = study_steps(path, model, out, skip_near_duplicates, batch, fps, device)
    return with_progress(steps, "frame", Path(path).name, progress)


def study_steps(
    path: str | Path,
    model: VideoModel | str | Path,
    out: str | Path,
    skip_near_duplicates: bool = False,
    batch: int = 64,
    fps: float | None = None,
    device: str = "auto",
) -> Generator[tuple[int, int], None, Study]:
    """`run_study` in steps: yields (frames done, total number of frames) after every part; returns the study."""
    if batch < 1:
        raise UserError(f"The batch is {batch}, but it must be at least 1. Give the number of frames per batch.")
    model = model_at(model, device)
    _check_model(model)
    with open_video(path, fps, check=False, damaged="mark") as reader:
        request = {
            "video": fingerprint_of(path),
            "model": model.card.fingerprint,
            "weights": state_fingerprint(model),
            "skip_near_duplicates": skip_near_duplicates,
            "batch": batch,
            "fps": str(reader.info.fps),
            "part_frames": PART_FRAMES,
            "version": __version__,
            "form": FORM,
        }
        description = _describe(reader.info, model, request)
        with claim(out, request, "a study", about={"about": description}) as folder:
            if (folder / "study.json").exists():
                shutil.rmtree(folder / "parts", ignore_errors=True)  # remain if the last call was killed at its end
                return load_study(folder)
            yield from _score(reader, model, folder / "parts", batch, skip_near_duplicates)
            return _assemble(folder, description)


def _score(
    reader: VideoReader, model: VideoModel, folder: Path, batch: int, skip_near_duplicates: bool
) -> Iterator[tuple[int, int]]:
    """Write the missing parts, and yield (frames done, total number of frames)."""
    folder.mkdir(exist_ok=True)
    n_frames = reader.info.n_frames
    parts = leading_parts(folder, n_frames, PART_FRAMES)
    first = min(len(parts) * PART_FRAMES, n_frames)
    yield first, n_frames
    last_scored = LastScored.of_part(parts[-1]) if parts and skip_near_duplicates else LastScored()
    stream = Batches(reader, model, first, batch, PART_FRAMES, last_scored if skip_near_duplicates else None)
    # Batches are scored in parallel, each with its share of the cores: threads that share one batch would wait for each
    # other and for the decoders. This thread itself uses one core, because its helper threads would spin between its
    # small steps and take time from all others.
    threads = torch.get_num_threads()
    scorers = ThreadPoolExecutor(THREADS, "study-scorer", torch.set_num_threads, (max(1, threads // THREADS),))
    torch.set_num_threads(1)
    try:
        for start in range(first, n_frames, PART_FRAMES):
            _run_part(stream, model, scorers, start, reader.times_s[start : start + PART_FRAMES], folder)
            yield min(start + PART_FRAMES, n_frames), n_frames
    finally:
        scorers.shutdown(cancel_futures=True)
        stream.close()
        torch.set_num_threads(threads)  # the scorers also changed the default for threads that start later


def load_study(folder: str | Path, unfinished: bool = False) -> Study:
    """Read a study from its folder.

    Args:
        folder: the folder that `run_study` wrote to.
        unfinished: also accept a study that was stopped or is still running; it has the frames of its parts.

    Raises:
        UserError: the folder contains no study, or its study is unfinished, damaged or written by another version.
    """
    folder = Path(folder)
    with reading(folder, "Run the study again into another folder."):
        if (folder / "study.json").exists():
            description = read_json(folder / "study.json")
            _check_form(folder, description["provenance"])
            refuse_changed(folder, "study.json", "frames.parquet")
            return _of_table(description, read_parquet(folder / "frames.parquet"))
        if not (folder / "job.json").exists():
            raise UserError(f"{folder} contains no study. Give the folder that `endofm-lab study ... --out` wrote to.")
        job = read_json(folder / "job.json")
        _check_form(folder, job)
        parts = sorted((folder / "parts").glob("part_*.npz"))
        if not unfinished or not parts:
            progress = "" if parts else " and has no part yet"
            raise UserError(
                f"The study in {folder} is not finished{progress}. Run the same `endofm-lab study` command again."
            )
        return _of_parts(job["about"], parts)


def _check_form(folder: Path, description: dict[str, Any]) -> None:
    if description.get("form") != FORM:
        raise UserError(
            f"The study in {folder} has file format {description.get('form', 0)}, written by endofm_lab "
            f"{description.get('version', 'of unknown version')}; this version, {__version__}, reads format {FORM}. "
            "Run the study again into another folder."
        )


def _describe(video: VideoInfo, model: VideoModel, request: dict[str, Any]) -> dict[str, Any]:
    """The attributes of `Study` besides its arrays, as JSON."""
    heads = _class_heads(model)
    return {
        # The absolute path, because the study may be opened from another working directory.
        "video": asdict(video) | {"fps": str(video.fps), "path": str(video.path.absolute())},
        "classes": {name: list(head.classes) for name, head in heads.items()},
        "kinds": {name: head.kind for name, head in heads.items()},
        "provenance": {
            **provenance(next(model.parameters()).device),
            **request,
            "model_name": model.card.name,
            "initialisation": model.card.initialisation,
            "training_data": model.card.data,
            "temperature": {name: head.temperature for name, head in heads.items()},
        },
    }


def _video(description: dict[str, Any]) -> VideoInfo:
    video = VideoInfo(**{**description, "fps": Fraction(description["fps"]), "path": Path(description["path"])})
    if video.n_frames < 1 or video.fps <= 0:
        raise ValueError(f"{video.n_frames} frames at {video.fps} per second")
    return video


def _of_table(description: dict[str, Any], table: pd.DataFrame) -> Study:
    """The finished study of ``study.json`` and ``frames.parquet``."""
    video = _video(description["video"])
    if len(table) != video.n_frames:
        raise ValueError(f"the table has {len(table)} rows for {video.n_frames} frames")
    return Study(
        video=video,
        times_s=table["time_s"].to_numpy(),
        scores={
            head: table[[f"{head}.{name}" for name in names]].to_numpy(np.float32)
            for head, names in description["classes"].items()
        },
        classes=description["classes"],
        kinds=description["kinds"],
        state=table["state"].map({name: n for n, name in enumerate(STATES)}).to_numpy(np.uint8),
        stands_for=table["stands_for"].to_numpy(),
        unreadable=pd.DataFrame(description["unreadable"], columns=["frame", "time_s", "reason"]),
        provenance=description["provenance"],
        distance=table["distance"].to_numpy(np.float64) if "distance" in table else None,
    )


def _of_parts(description: dict[str, Any], parts: Sequence[Path]) -> Study:
    """The study of the frames in the parts, which must follow each other from the first frame on.

    Raises:
        UserError: a part is missing.
    """
    arrays = joined(parts)
    state, stands_for, times_s, rows = (arrays[name] for name in ("state", "stands_for", "times_s", "unreadable"))
    scores = {name: arrays[f"scores/{name}"] for name in description["classes"]}
    copies = state == DUPLICATE
    distance = arrays.get("distance")
    for values in (*scores.values(), *([] if distance is None else [distance])):
        values[copies] = values[stands_for[copies]]
    return Study(
        video=_video(description["video"]),
        times_s=times_s,
        scores=scores,
        classes=description["classes"],
        kinds=description["kinds"],
        state=state,
        stands_for=stands_for,
        unreadable=pd.DataFrame({"frame": rows, "time_s": times_s[rows], "reason": arrays["reasons"].astype(object)}),
        provenance=description["provenance"],
        distance=distance,
    )


def _class_heads(model: VideoModel) -> dict[str, Any]:
    return {name: head for name, head in model.card.heads.items() if head.answer == "clip"}


def _check_model(model: VideoModel) -> None:
    if model.card.clip.n_frames != 1:
        raise UserError(
            f"{model.card.name} takes clips of {model.card.clip.n_frames} frames, but a study needs a model of single "
            "frames. Use a frame model, or `endofm-lab predict`, which also reads whole videos."
        )
    if not _class_heads(model):
        raise UserError(
            f"{model.card.name} has no class head, so it gives no scores. Train a head with `endofm-lab finetune`."
        )


def _run_part(
    stream: Batches, model: VideoModel, scorers: ThreadPoolExecutor, start: int, times_s: np.ndarray, folder: Path
) -> None:
    """Score the frames from ``start`` on, which have the times ``times_s``, and write them as one part."""
    n = len(times_s)
    stop = start + n
    heads = _class_heads(model)
    scores = {name: np.full((n, len(head.classes)), np.nan, np.float32) for name, head in heads.items()}
    state = np.full(n, SCORED, np.uint8)
    stands_for = np.arange(start, stop)
    unreadable: list[tuple[int, str]] = []
    distance = None if model.familiarity is None else np.full(n, np.nan)
    scored: deque[tuple[np.ndarray, Future[tuple[dict[str, torch.Tensor], np.ndarray | None]]]] = deque()

    def collect(waiting: int) -> None:
        """Fill in the scores of the oldest batches until only ``waiting`` batches are still being scored."""
        while len(scored) > waiting:
            rows, future = scored.popleft()
            answers, distances = future.result()
            for name in scores:
                scores[name][rows] = answers[name].numpy()
            if distance is not None:
                distance[rows] = distances

    at, last_scored = start, LastScored()
    while at < stop:
        group = next(stream)
        if group.clips is not None:
            names = [f"frame {frame}" for frame in group.frames]
            scored.append((np.array(group.frames) - start, scorers.submit(answers_of, model, group.clips, names)))
            collect(waiting=THREADS)
        for frame, original in group.duplicates:
            state[frame - start], stands_for[frame - start] = DUPLICATE, original
        for frame, _ in group.unreadable:
            state[frame - start], stands_for[frame - start] = UNREADABLE, -1
        unreadable += group.unreadable
        at, last_scored = group.next_frame, group.last_scored
    collect(waiting=0)
    write_part(folder, start, times_s, state, stands_for, unreadable, last_scored, scores, distance)


def _assemble(folder: Path, description: dict[str, Any]) -> Study:
    """Join the parts, write the result, and remove the parts."""
    study = _of_parts(description, sorted((folder / "parts").glob("part_*.npz")))
    if not study.finished:
        raise UserError(
            f"{folder} has the scores of {len(study.times_s)} frames, but {study.video.path} has "
            f"{study.video.n_frames}. Run the same study again, and remove no files while it runs."
        )
    if (study.state == UNREADABLE).all():
        raise VideoError(study.video.path, f"None of its {len(study.state)} frames can be read. Copy the video again.")
    write_parquet(folder / "frames.parquet", study.table())
    results = {"familiarity": study.familiarity_summary(), "unreadable": study.unreadable.to_dict("records")}
    write_json(folder / "study.json", {**description, **results})
    shutil.rmtree(folder / "parts")
    return study
