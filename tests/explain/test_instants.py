"""Vectors of instants: which clips they show, and what makes them be computed again."""

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pandas as pd
import pytest
import torch

from endofm_lab.data.manifest import write_manifest
from endofm_lab.errors import UserError
from endofm_lab.explain.embeddings import embed, embedding_steps
from endofm_lab.explain.instants import instants_of
from endofm_lab.video.reader import open_video, write_video
from endofm_lab.video.transforms import to_input
from tests.explain.models import small_model


@pytest.fixture(scope="module")
def model():
    return small_model()


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    folder, draw, rows = tmp_path_factory.mktemp("videos"), np.random.default_rng(0), []
    for n, seconds in enumerate((4, 3)):
        name = f"{n}.mp4"
        write_video(folder / name, draw.integers(0, 255, (6 * seconds, 32, 32, 3), dtype=np.uint8), Fraction(6))
        for start, label in ((0, "in"), (2, "out")):
            row = {"video": name, "start_s": start, "end_s": start + 2, "label": label, "patient": f"p{n}"}
            rows.append({**row, "dataset": "d", "split": "train"})
    (folder / "broken.mp4").write_text("no video")
    rows.append({**rows[0], "video": "broken.mp4", "patient": "p2"})
    return write_manifest(pd.DataFrame(rows), folder / "manifest.csv")


@pytest.fixture(scope="module")
def store(manifest, model, tmp_path_factory):
    return embed(manifest, model, tmp_path_factory.mktemp("store") / "out", progress=False, step_s=1.0)


def test_every_second_has_the_vector_of_the_clip_that_ends_there(store, manifest, model):
    assert store.rows["video"].tolist() == ["0.mp4"] * 4 + ["1.mp4"] * 3 + ["broken.mp4"]
    assert store.rows["time_s"].tolist()[:7] == [0, 1, 2, 3, 0, 1, 2]
    assert store.usable().tolist() == [True] * 7 + [False] and store.about["step_s"] == 1.0
    with open_video(manifest.root / "0.mp4") as reader:
        frames = reader.read([9, 10, 11, 12])  # four frames at 6 per second, and frame 12 is shown at 2 s
        first = reader.read([0, 0, 0, 0])  # frames before the start of the video are its first frame
    with torch.no_grad():
        for number, clip in ((2, frames), (0, first)):
            expected = model.backbone(to_input(clip, model.card.input)).cls[0].numpy()
            np.testing.assert_allclose(store.vectors[number], expected, atol=1e-4)


def test_other_labels_and_splits_of_the_same_videos_find_the_vectors_computed(store, manifest, model):
    other = replace(manifest, table=manifest.table.assign(label="x", split="test").iloc[::-1][[*manifest.table]])
    same_order = replace(other, table=other.table.iloc[::-1])
    steps = embedding_steps(instants_of(same_order, 1.0), model, store.path, step_s=1.0)
    assert list(steps) == [len(store)]
    with pytest.raises(UserError, match=r"step_s is 1\.0 there, 0\.5 here"):
        embed(manifest, model, store.path, progress=False, step_s=0.5)


def test_a_stopped_run_goes_on_and_its_vectors_do_not_depend_on_the_batch(store, manifest, model, tmp_path):
    steps = embedding_steps(instants_of(manifest, 1.0), model, tmp_path / "store", 3, step_s=1.0)
    assert next(steps) == 3
    steps.close()
    again = embed(manifest, model, tmp_path / "store", batch_clips=5, progress=False, step_s=1.0)
    np.testing.assert_allclose(again.vectors, store.vectors, atol=1e-5)
    pd.testing.assert_frame_equal(again.rows, store.rows)


def test_both_kinds_of_tokens_stand_one_after_the_other(store, manifest, model, tmp_path):
    both = embed(manifest, model, tmp_path / "both", progress=False, step_s=1.0, tokens="both")
    mean = embed(manifest, model, tmp_path / "mean", progress=False, step_s=1.0, tokens="mean")
    expected = np.hstack([store.vectors, mean.vectors])
    np.testing.assert_allclose(both.vectors, expected, atol=1e-5)
    assert "CLS" in both.about["vector"] and not np.allclose(mean.vectors[:7], store.vectors[:7])


def test_images_are_single_instants_and_impossible_steps_are_refused(manifest, model, tmp_path):
    for value in (0, -1):
        with pytest.raises(UserError, match="seconds above 0"):
            instants_of(manifest, value)
    with pytest.raises(UserError, match="tokens is 'all'"):
        embed(manifest, model, tmp_path / "x", progress=False, tokens="all")
    image = manifest.table.iloc[:1].assign(video="0.png", end_s=0.0)
    assert len(instants_of(replace(manifest, table=image), 0.01)) == 1
