"""A task that the library does not have, written against its public contracts alone: how near every pixel is.

Dense regression: the truth is a grey picture per frame (here 255 on the phantom's finding, falling off with the
distance to it), the head gives a number in 0..1 per pixel. It is also the worked example of CONTRIBUTING.md.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from scipy.ndimage import distance_transform_edt

from endofm_lab.data.manifest import read_manifest, write_manifest
from endofm_lab.data.phantom_set import PRESETS
from endofm_lab.errors import CheckpointError, ManifestError, UserError
from endofm_lab.figures.prediction import frame_timeline
from endofm_lab.finetuning.config import FinetuneConfig
from endofm_lab.finetuning.evaluate import evaluate
from endofm_lab.finetuning.finetune import finetune
from endofm_lab.finetuning.start import Start
from endofm_lab.metrics.classification import weighted_mean
from endofm_lab.model.card import HeadSpec
from endofm_lab.model.heads import MaskHead
from endofm_lab.model.loading.load import load_model
from endofm_lab.outside import allowing
from endofm_lab.predict import predict_video
from endofm_lab.runs.by_class import by_class
from endofm_lab.runs.compare import compare
from endofm_lab.runs.run import read_run
from endofm_lab.tasks import Task
from endofm_lab.tasks.clips import TrainingClip, covering_clips, in_batches
from endofm_lab.video.reader import open_video
from endofm_lab.video.transforms import masks_to_frame


class DepthHead(MaskHead):
    """The layers of `MaskHead`, trained by the absolute error of its probabilities."""

    def loss(self, logits, batch):
        """The mean absolute error against ``depth`` (B, 1, T, S, S) in 0..1, averaged down to the logits' grid."""
        target = F.adaptive_avg_pool3d(batch["depth"].float(), logits.shape[2:])
        return F.l1_loss(logits.float().sigmoid(), target)


@dataclass(frozen=True)
class Depth(Task):
    """A number in 0..1 for every pixel; an example's target is the folder of its grey pictures.

    Attributes:
        column: of the manifest, that names the folders.
    """

    column: str = "depth"

    name = "depth"
    head_name = "depth"
    kinds = ("depth",)
    files = ("depth",)
    columns = ("true_mean", "absolute_error", "near")
    truth = ("true_mean",)
    primary = "absolute_error"
    chosen_by = "near"
    lower_is_better = frozenset({"absolute_error"})

    def head(self, manifest):
        """One number per pixel."""
        return HeadSpec("depth", ("depth",), by=DepthHead)

    def targets(self, manifest, split, head):
        """The folder of every row."""
        rows = manifest.rows(split)
        if self.column not in rows:
            raise ManifestError(f"The manifest has no column {self.column!r}; depth needs one.")
        return [manifest.resolve(cell) for cell in rows[self.column]]

    def sample(self, example, clip: TrainingClip) -> dict[str, Any]:
        """``depth`` (1, T, S, S) in 0..1, cut as the frames are."""

        def read(numbers):
            return clip.reduced(torch.from_numpy(read_depth(example.target, numbers))[:, None])[:, 0].numpy()

        return {"depth": clip.view.masks(clip.pictures(example.target, read), clip.size_px)[None]}

    def table(self, model, head, examples, training):
        """One row per frame: the true mean, the mean absolute error, and the share of pixels within 0.1."""
        size, rows = model.card.input.size_px, []
        for clips in in_batches(covering_clips(examples, model.card.clip, model.card.input), 8):
            predicted = model.predict(torch.stack([clip.clip for clip in clips]))[head][:, 0]
            predicted = F.interpolate(predicted, size=(size, size), mode="bilinear")
            for clip, values in zip(clips, predicted, strict=True):
                numbers, first = np.unique(clip.indices, return_index=True)
                truth = read_depth(clip.example.target, numbers)
                error = np.abs(masks_to_frame(values[first], clip.frame_hw, model.card.input) - truth)
                for number, depth, off in zip(numbers, truth, error, strict=True):
                    values_of_row = (f"{clip.example.row}:{number}", clip.example.patient)
                    rows.append((*values_of_row, depth.mean(), off.mean(), (off < 0.1).mean()))
        return pd.DataFrame(rows, columns=["row", "patient", *self.columns])

    @classmethod
    def measured(cls, rows):
        """Units are frames; metrics are means over them."""
        columns = {name: rows[name].to_numpy(np.float64) for name in ("absolute_error", "near")}
        return rows["patient"].to_numpy(), lambda weights: {
            name: weighted_mean(values, weights) for name, values in columns.items()
        }


def read_depth(folder: Path, numbers: Sequence[int] | np.ndarray) -> np.ndarray:
    """float32 (T, H, W) in 0..1."""
    with open_video(folder, check=False) as reader:
        return reader.read(numbers)[..., 0].astype(np.float32) / 255


@pytest.fixture(scope="module")
def manifest(phantom, tmp_path_factory):
    """The phantom with a column ``depth``."""
    root = tmp_path_factory.mktemp("depth")
    table = read_manifest(phantom).table.copy()
    for name in ("videos", "masks", "boxes.csv"):
        (root / name).symlink_to(phantom.parent / name)
    for cell in table["masks"]:
        folder = root / cell.replace("masks", "depth")
        folder.mkdir(parents=True)
        for file in sorted((root / cell).iterdir()):
            mask = np.asarray(Image.open(file)).astype(bool)
            near = np.exp(-distance_transform_edt(~mask) / 8) if mask.any() else np.zeros(mask.shape)
            Image.fromarray((255 * near).astype(np.uint8)).save(folder / file.name)
    return write_manifest(table.assign(depth=table["masks"].str.replace("masks", "depth")), root / "manifest.csv").path


def config(manifest, out, **changes):
    settings = {"start": Start("scratch", size="micro", n_frames=2), "steps": 4, "batch": 4}
    return FinetuneConfig(manifest, out, **{**settings, "validate_every": 2, "lr": 3e-3, **changes})


def many_patients(run):
    """The run as if its frames were of twelve patients: the smallest phantom has too few to rank anything."""
    patients = [f"patient {k % 12}" for k in range(len(run.predictions))]
    return replace(run, predictions=run.predictions.assign(patient=patients))


def test_a_task_from_outside_is_trained_tested_evaluated_compared_and_predicts(manifest, tmp_path):
    records = list(finetune(config(manifest, tmp_path / "few"), task=Depth()))
    with pytest.raises(UserError, match=r"few needs tests\.tasks.*Depth, which is code from outside"):
        read_run(tmp_path / "few")
    run = read_run(tmp_path / "few", allow="tests")
    assert run.task == "depth" and run.protocol["classes"] == "depth"
    assert len(run.predictions) == 4 * PRESETS["tiny"].test * PRESETS["tiny"].n_frames
    assert records[-1]["test"]["absolute_error"] == pytest.approx(run.predictions["absolute_error"].mean())
    model = tmp_path / "few" / "seed-0" / "model"
    with pytest.raises(CheckpointError, match=r"needs tests\.tasks.*DepthHead, which is code from outside"):
        evaluate(model, manifest, tmp_path / "again", task=Depth())
    with allowing("tests.tasks"):
        second = evaluate(model, manifest, tmp_path / "again", task=Depth())
    pd.testing.assert_frame_equal(second.predictions, run.predictions, atol=1e-6)

    list(finetune(config(manifest, tmp_path / "more", steps=20, validate_every=10), task=Depth()))
    runs = [many_patients(run), many_patients(read_run(tmp_path / "more", allow=[Depth]))]
    compared = compare(runs, n=20)
    assert compared.ranked and [line.run.run for line in compared.lines] == ["more", "few"], "less error is better"
    assert by_class(run).empty

    video = manifest.parent / read_manifest(manifest).rows("test")["video"].iloc[0]
    loaded = load_model(model, allow=[DepthHead])
    prediction = predict_video(video, loaded, out=tmp_path / "prediction", progress=False)
    assert list(prediction.maps) == ["depth"] and len(prediction.maps["depth"]) == len(prediction.frames)
    assert len(frame_timeline(prediction).data) == 1


def test_options_that_a_configuration_does_not_have_come_with_the_task(manifest, tmp_path):
    with pytest.raises(ManifestError, match="no column 'range'"):
        next(finetune(config(manifest, tmp_path / "run"), task=Depth(column="range")))
    with pytest.raises(UserError, match="the configuration has segmentation"):
        next(finetune(config(manifest, tmp_path / "run", task="segmentation"), task=Depth()))


def test_a_run_notices_that_files_of_truth_were_changed(manifest, tmp_path):
    steps = finetune(config(manifest, tmp_path / "run"), task=Depth())
    next(steps)
    steps.close()
    file = sorted((manifest.parent / read_manifest(manifest).rows("train")["depth"].iloc[0]).iterdir())[0]
    before = file.read_bytes()
    Image.fromarray(np.full((64, 64), 9, np.uint8)).save(file)
    with pytest.raises(UserError, match="other settings"):
        next(finetune(config(manifest, tmp_path / "run"), task=Depth()))
    file.write_bytes(before)
