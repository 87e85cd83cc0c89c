from fractions import Fraction

import numpy as np
import pandas as pd
import pytest
import torch

from endofm_lab.data.manifest import read_manifest, write_manifest
from endofm_lab.errors import ManifestError
from endofm_lab.finetuning.config import FinetuneConfig
from endofm_lab.finetuning.finetune import finetune
from endofm_lab.finetuning.start import Start
from endofm_lab.runs.run import read_run
from endofm_lab.tasks.phases import Phases, causal_indices
from endofm_lab.video.clips import ClipSpec
from endofm_lab.video.reader import open_video, write_video

FPS, PHASE_S, COLOURS = Fraction(8), 2, {"dark": 40, "bright": 200}


@pytest.fixture(scope="module")
def operations(tmp_path_factory):
    """Six videos of 8 s: dark, bright, dark, bright, two seconds each."""
    root = tmp_path_factory.mktemp("operations")
    random = np.random.default_rng(0)
    rows = []
    for number, split in enumerate(["train", "train", "val", "val", "test", "test"]):
        frames = []
        for k, phase in enumerate(["dark", "bright"] * 2):
            pictures = random.integers(-30, 30, size=(int(FPS) * PHASE_S, 64, 64, 3)) + COLOURS[phase]
            frames += list(pictures.clip(0, 255).astype(np.uint8))
            row = {"video": f"{number}.mp4", "start_s": k * PHASE_S, "end_s": (k + 1) * PHASE_S, "label": phase}
            rows.append({**row, "patient": f"p{number}", "dataset": "made", "split": split})
        write_video(root / f"{number}.mp4", frames, FPS)
    return write_manifest(pd.DataFrame(rows), root / "manifest.csv").path


def test_phases_are_learned_and_answered_at_every_step(operations, tmp_path):
    config = FinetuneConfig(
        operations,
        tmp_path / "run",
        task="phases",
        start=Start("scratch", size="micro", stride=1),
        steps=20,
        batch=8,
        lr=3e-3,
        validate_every=10,
        step_s=0.5,
    )
    list(finetune(config))
    run = read_run(config.out)
    assert run.method == "full fine-tuning, causal smoother"
    predictions = run.predictions
    assert predictions.groupby("video").size().tolist() == [16, 16]
    bright = ["bright", "dark"].index("bright")
    assert predictions["target"].tolist()[:8] == [1 - bright] * 4 + [bright] * 4
    accuracy = (predictions["target"] == predictions["predicted"]).mean()
    assert accuracy > 0.75, "brightness tells the phase; only instants right after a change are hard"


def test_a_causal_answer_does_not_know_the_future(operations):
    manifest = read_manifest(operations)
    head = Phases().head(manifest)
    train, test = (Phases().examples(manifest, split, head) for split in ("train", "test"))
    model = Start("scratch", size="micro", stride=1).build("phase", head, seed=0).eval()
    with torch.no_grad():
        model.heads["phase"].linear.weight.mul_(50)  # a fresh head is too unsure to be smoothed visibly
    video = [example for example in test if example.name == test[0].name]
    for smoother in ("causal", "none"):
        task = Phases(step_s=0.5, smoother=smoother)
        long = task.table(model, "phase", video, train)
        short = task.table(model, "phase", video[:3], train)
        assert len(short) == 12 and len(long) == 16
        np.testing.assert_allclose(long.filter(like="score_")[:12], short.filter(like="score_"), atol=1e-6)
        assert long["predicted"].tolist()[:12] == short["predicted"].tolist()


def test_a_clip_ends_at_its_instant_and_repeats_the_first_frame_before_the_video(operations):
    with open_video(operations.parent / "0.mp4") as reader:
        clip = ClipSpec(n_frames=4, stride=2)
        assert causal_indices(clip, reader, 2.0).tolist() == [10, 12, 14, 16]
        assert causal_indices(clip, reader, 2.1).tolist() == [10, 12, 14, 16]
        assert causal_indices(clip, reader, 0.25).tolist() == [0, 0, 0, 2]


def test_rows_that_overlap_in_time_are_refused_with_the_count(operations):
    manifest = read_manifest(operations)
    manifest.table.loc[manifest.table["label"] == "dark", "end_s"] += 0.5
    task = Phases(step_s=0.5, smoother="none")
    head = task.head(manifest)
    model = Start("scratch", size="micro").build("phase", head, seed=0).eval()
    examples = task.examples(manifest, "test", head)
    with pytest.raises(ManifestError, match="2 rows start before the previous row ends"):
        task.table(model, "phase", examples, examples)
