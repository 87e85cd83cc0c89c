"""From a video file to a `VideoPrediction`: the one call that app, notebooks and command line share.

polyp.mp4 -> sliding clips -> model -> scores per clip, masks and boxes per frame that the model saw
"""

import shutil
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from endofm_lab import __version__
from endofm_lab.errors import UserError
from endofm_lab.familiarity.quality import FAULTS, faults_of
from endofm_lab.files import fingerprint_of, sha256_of
from endofm_lab.folders.provenance import provenance
from endofm_lab.folders.run_folder import claim
from endofm_lab.messages import progress_bar
from endofm_lab.model.inference import for_inference
from endofm_lab.model.loading.load import model_at
from endofm_lab.model.precision import Precision, dtype_of
from endofm_lab.model.video_model import VideoModel
from endofm_lab.model.weight_files import state_fingerprint
from endofm_lab.parts import PredictionPart, assemble, joined_parts
from endofm_lab.prediction import VideoPrediction, load_prediction
from endofm_lab.video.clips import sliding_clips
from endofm_lab.video.reader import VideoReader, open_video
from endofm_lab.video.transforms import to_input

T = TypeVar("T")

QUALITY = "picture quality"  # among the outputs for frames, beside those of heads, whose names have no spaces
PART_BATCHES = 16  # batches per part on disk; a kill loses at most the work on this many batches


class PlannedClip(NamedTuple):
    """A clip that goes through the model: a clip of the regular grid, or one between two clips of the grid.

    Attributes:
        start_s: start of the clip.
        end_s: end of the clip.
        indices: (T,) indices of its frames.
        grid_clip: index of this clip in the grid; of a clip between two clips of the grid, the index of the first.
        between: whether the clip is between two clips of the grid; it is then run for masks and boxes only.
    """

    start_s: float
    end_s: float
    indices: np.ndarray
    grid_clip: int
    between: bool


def predict_video(
    path: str | Path,
    model: VideoModel | str | Path = "demo",
    *,
    step_s: float | None = None,
    every_frame: bool = False,
    batch_clips: int = 4,
    precision: Precision = "float32",
    device: str = "auto",
    out: str | Path | None = None,
    progress: bool = True,
) -> VideoPrediction:
    """Scores for sliding clips over a whole video, and masks and boxes for the frames in them.

    If the model has statistics of its training features, each clip also gets its distance from them, and clips beyond
    the limit are marked as unlike what the model learned (`VideoPrediction.familiar`).

    Each frame is decoded once, and the memory for decoding and inference does not grow with the video. A frame that
    several clips show gets the mean of their mask probabilities and of their raw box outputs. Clip length and frame
    spacing are those the model was trained with (its card).

    Args:
        path: a video file, a folder of frames, or one image.
        model: a model, its folder, a released checkpoint, or the name ``"demo"``.
        step_s: seconds from one clip's start to the next; by default half a clip, so that every instant is in two.
        every_frame: also run the clips that start in between, so that every frame of the video gets a mask and boxes.
            This multiplies the time by the spacing of a clip's frames. The scores stay those of the sliding clips;
            `VideoPrediction.score_spread` shows how far the clips in between differ from them.
        batch_clips: clips that go through the model together.
        precision: ``"auto"`` computes in bfloat16 if the processor supports it in hardware: about three times as fast
            for the base model, with scores that differ in the third decimal.
        device: where the model computes: "cpu", "cuda", "cuda:1", "mps", or "auto" for the first of cuda, mps and cpu
            that this machine has. A model object that is passed in stays on its device; a copy of it computes.
        out: a folder for the result, where finished parts of the work are saved. A run that was stopped is resumed by
            the same call with the same video, model and options. A finished result is read back.
        progress: show a progress bar.

    Raises:
        VideoError: the video cannot be read.
        UserError: an option is out of range, ``out`` contains other files or another result (the message names the
            differences), or another process works there.
    """
    steps = prediction_steps(path, model, step_s, every_frame, batch_clips, precision, device, out)
    return with_progress(steps, "clip", Path(path).name, progress)


def with_progress(steps: Generator[tuple[int, int], None, T], unit: str, title: str, shown: bool) -> T:
    """Run a generator of (done, total) to its end with a progress bar, and return the generator's return value."""
    with progress_bar(unit=unit, desc=title, shown=shown) as bar:
        while True:
            try:
                done, bar.total = next(steps)
            except StopIteration as finished:
                return finished.value
            bar.update(done - bar.n)


def prediction_steps(
    path: str | Path,
    model: VideoModel | str | Path = "demo",
    step_s: float | None = None,
    every_frame: bool = False,
    batch_clips: int = 4,
    precision: Precision = "float32",
    device: str = "auto",
    out: str | Path | None = None,
) -> Generator[tuple[int, int], None, VideoPrediction]:
    """`predict_video` in steps, for callers with a progress bar of their own: yields (clips done, clips in all).

    The prediction is the generator's return value. Closing the generator early loses at most one part.
    """
    if batch_clips < 1:
        raise UserError(f"batch_clips is {batch_clips}, but at least 1 clip must go through the model at a time.")
    if step_s is not None and not 0 < step_s < float("inf"):
        raise UserError(f"step_s is {step_s}, but clips must start more than 0 s apart.")
    model = model_at(model, device)
    model_device = next(model.parameters()).device
    dtype = dtype_of(precision, model_device)
    network = for_inference(model, dtype)
    with open_video(path) as reader:
        request: dict[str, Any] = {
            "video": fingerprint_of(path) if Path(path).is_dir() else sha256_of(path),
            "model": model.card.fingerprint,
            "step_s": step_s,
            "every_frame": every_frame,
            "batch_clips": batch_clips,
            "dtype": str(dtype).removeprefix("torch."),
            "version": __version__,
        }
        if out is None:
            return (yield from _predict(model, network, reader, request, None))
        request["weights"] = state_fingerprint(model)
        with claim(out, request, "a prediction") as folder:
            if (folder / "prediction.json").exists():
                shutil.rmtree(folder / "parts", ignore_errors=True)  # left if the last call was killed at its very end
                return load_prediction(folder)
            return (yield from _predict(model, network, reader, request, folder))


def _predict(
    model: VideoModel, network: VideoModel, reader: VideoReader, request: dict[str, Any], folder: Path | None
) -> Generator[tuple[int, int], None, VideoPrediction]:
    """Run the clips that are in no part in ``folder`` yet, and join the parts."""
    clips = _plan(model, reader, request["step_s"], request["every_frame"])
    parts: list[PredictionPart | Path] = []
    if folder is not None:
        (folder / "parts").mkdir(exist_ok=True)
        parts += joined_parts(folder / "parts")
    last = PredictionPart.read(parts[-1]) if parts else None  # type: ignore[arg-type]
    yield (last.stop_clip if last else 0), len(clips)
    for part in _run(network, reader, clips, last, request["batch_clips"]):
        parts.append(part.save(folder / "parts") if folder else part)
        yield part.stop_clip, len(clips)
    heads = model.card.heads
    sources = {
        **provenance(next(model.parameters()).device),
        **request,
        "model_name": model.card.name,
        "initialisation": model.card.initialisation,
        "training_data": model.card.data,
        "decoder": reader.info.decoder,
    }
    return assemble(
        parts,
        times_s=np.array([[clip.start_s, clip.end_s] for clip in clips], dtype=np.float64),
        grid_clip=np.array([clip.grid_clip for clip in clips]),
        between=np.array([clip.between for clip in clips]),
        frame_times_s=reader.times_s,
        video=reader.info,
        classes={name: list(head.classes) for name, head in heads.items()},
        provenance=sources,
        folder=folder,
    )


def _plan(model: VideoModel, reader: VideoReader, step_s: float | None, every_frame: bool) -> list[PlannedClip]:
    """The clips of the regular grid and, with ``every_frame``, those in between, sorted by their first frame."""
    half_s = model.card.clip.span_s(reader.info) / 2
    grid = sliding_clips(model.card.clip, reader.info, half_s if step_s is None else step_s, reader.times_s)
    grid = sorted(grid, key=lambda clip: (int(clip[2][0]), clip[0]))
    clips = [PlannedClip(*clip, number, between=False) for number, clip in enumerate(grid)]
    if every_frame:
        frames = np.unique(np.concatenate([clip.indices for clip in clips]))
        spacing = int(np.diff(frames).max()) if len(frames) > 1 else 1
        times, last = reader.times_s, reader.info.n_frames - 1
        for start, end, indices, number, _ in list(clips):
            for shift in range(1, spacing):
                shifted = np.minimum(indices + shift, last)
                shift_s = float(times[shifted[0]] - times[indices[0]])
                clips.append(PlannedClip(start + shift_s, end + shift_s, shifted, number, between=True))
    return sorted(clips, key=lambda clip: (int(clip.indices[0]), clip.start_s))


def _run(
    model: VideoModel, reader: VideoReader, clips: list[PlannedClip], last: PredictionPart | None, batch_clips: int
) -> Iterator[PredictionPart]:
    """Run the clips after the part ``last``, in parts of `PART_BATCHES` batches."""
    first, dense = (last.stop_clip, _DenseSums.carried_by(last)) if last else (0, _DenseSums())
    if first == len(clips):
        return
    stream = _needed_frames(model, reader, clips[first:])
    # The first frame that clip i or any later clip shows: all frames before it are finished.
    first_frames = [int(clip.indices.min()) for clip in reversed(clips)]
    oldest = [*np.minimum.accumulate(first_frames)[::-1].tolist(), reader.info.n_frames]
    buffer: dict[int, Tensor] = {}  # index -> (3, S, S)
    faults: dict[int, np.ndarray] = {}  # index -> (4,)
    for start in range(first, len(clips), PART_BATCHES * batch_clips):
        stop = min(start + PART_BATCHES * batch_clips, len(clips))
        scores: dict[str, list[np.ndarray]] = {}
        distances: list[np.ndarray] = []
        finished: list[tuple[int, dict[str, np.ndarray]]] = []
        for first_clip in range(start, stop, batch_clips):
            planned = clips[first_clip : min(first_clip + batch_clips, stop)]
            batch = [clip.indices for clip in planned]
            while any(int(i) not in buffer for indices in batch for i in indices):
                index, frame, faults[index] = next(stream)
                buffer[index] = frame
            x = torch.stack([torch.stack([buffer[int(i)] for i in indices], dim=1) for indices in batch])
            clip_names = [f"the clip at {clip.start_s:.2f} s" for clip in planned]
            answers, features = model.answer(x, clip_names)
            if model.familiarity is not None:
                distances.append(model.familiarity.distances(features))
            outputs = {name: values.numpy() for name, values in answers.items()}
            per_frame = [name for name in outputs if model.card.heads[name].answer != "clip"]
            for name in (name for name in outputs if name not in per_frame):  # in the model's order
                scores.setdefault(name, []).append(outputs[name])
            quality = np.stack([np.stack([faults[int(i)] for i in indices], axis=1) for indices in batch])
            dense.add(batch, {name: outputs[name] for name in per_frame} | {QUALITY: quality})
            horizon = oldest[min(first_clip + batch_clips, len(clips))]
            buffer = {index: frame for index, frame in buffer.items() if index >= horizon}
            faults = {index: values for index, values in faults.items() if index >= horizon}
            finished += dense.release(horizon)
        joined = {name: np.concatenate(values) for name, values in scores.items()}
        yield _part(model, start, stop, joined, np.concatenate([np.empty(0), *distances]), finished, dense)


def _needed_frames(
    model: VideoModel, reader: VideoReader, clips: list[PlannedClip]
) -> Iterator[tuple[int, Tensor, np.ndarray]]:
    """(index, float32 (3, S, S), faults (4,)) of every frame that a clip shows, in order; each is decoded once."""
    needed = set(np.concatenate([clip.indices for clip in clips]).tolist())
    for index, frame in reader.stream(start=min(needed), stop=max(needed) + 1):
        if index in needed:
            yield index, to_input(frame[None], model.card.input)[0, :, 0], faults_of(frame)


class _DenseSums:
    """Sums of the dense outputs of frames over the clips that showed them."""

    def __init__(self) -> None:
        self.sums: dict[int, dict[str, np.ndarray]] = {}
        self.counts: dict[int, int] = {}

    @classmethod
    def carried_by(cls, part: PredictionPart) -> "_DenseSums":
        dense = cls()
        for index, frame in enumerate(part.carry_frames.tolist()):
            dense.sums[frame] = {name: values[index].copy() for name, values in part.carry.items()}
            dense.counts[frame] = int(part.carry_counts[index])
        return dense

    def add(self, batch: list[np.ndarray], outputs: dict[str, np.ndarray]) -> None:
        """Add the ``outputs``, head -> (B, K, T, h, w), of clips with the frame indices ``batch``, B x (T,)."""
        for b, indices in enumerate(batch):
            for t, frame in enumerate(indices.tolist()):
                sums = self.sums.setdefault(frame, {})
                for name, values in outputs.items():
                    sums[name] = sums[name] + values[b, :, t] if name in sums else values[b, :, t].copy()
                self.counts[frame] = self.counts.get(frame, 0) + 1

    def release(self, before: int) -> list[tuple[int, dict[str, np.ndarray]]]:
        """The means of the frames below ``before``, in order; their sums are removed."""
        ready = sorted(frame for frame in self.sums if frame < before)
        means = []
        for frame in ready:
            count = self.counts.pop(frame)
            means.append((frame, {name: total / count for name, total in self.sums.pop(frame).items()}))
        return means


def _part(
    model: VideoModel,
    start: int,
    stop: int,
    scores: dict[str, np.ndarray],
    distance: np.ndarray,
    finished: list[tuple[int, dict[str, np.ndarray]]],
    dense: _DenseSums,
) -> PredictionPart:
    """Pack the finished frames (masks as uint8, boxes decoded) and the sums that later clips still need."""
    maps: dict[str, list[np.ndarray]] = {}
    boxes: dict[str, list[np.ndarray]] = {}
    quality = np.stack([outputs.pop(QUALITY) for _, outputs in finished]) if finished else np.empty((0, len(FAULTS)))
    for frame, outputs in finished:
        for name, values in outputs.items():
            if model.card.heads[name].answer == "map":
                maps.setdefault(name, []).append((values * 255).round().astype(np.uint8))
                continue
            ((xyxy, score, label),) = model.head(name).decode(torch.from_numpy(values)[None, :, None])[0]
            rows = torch.cat([torch.full_like(score, frame)[:, None], label[:, None], score[:, None], xyxy], dim=1)
            boxes.setdefault(name, []).append(rows.numpy())
    waiting = sorted(dense.sums)
    names = list(dense.sums[waiting[0]]) if waiting else []
    return PredictionPart(
        start_clip=start,
        stop_clip=stop,
        scores=scores,
        distance=distance,
        frames=np.array([frame for frame, _ in finished], dtype=np.int64),
        maps={name: np.stack(values) for name, values in maps.items()},
        boxes={name: np.concatenate(rows) for name, rows in boxes.items()},
        quality=quality.astype(np.float32),
        carry={name: np.stack([dense.sums[frame][name] for frame in waiting]) for name in names},
        carry_frames=np.array(waiting, dtype=np.int64),
        carry_counts=np.array([dense.counts[frame] for frame in waiting], dtype=np.int64),
    )
