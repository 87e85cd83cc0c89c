"""The embedding store: what is in it, stopping and going on, and what it refuses."""

import copy
import json
import os
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from endofm_lab.data.manifest import write_manifest
from endofm_lab.errors import UserError
from endofm_lab.explain.embeddings import embed, embedding_steps, load_store
from endofm_lab.model.video_model import VideoModel
from endofm_lab.video.clips import ClipSpec, read_clip
from endofm_lab.video.reader import write_video
from endofm_lab.video.transforms import to_input
from tests.explain.models import small_model


@pytest.fixture(scope="module")
def model():
    return small_model()


@pytest.fixture
def manifest(tmp_path):
    draw = np.random.default_rng(0)
    rows = []
    for n in range(5):
        name = f"{n}.mp4"
        if n == 3:
            (tmp_path / name).write_text("no video")
        else:
            write_video(tmp_path / name, draw.integers(0, 255, (12, 32, 32, 3), dtype=np.uint8), Fraction(6))
        rows.append(
            {
                "video": name,
                "start_s": 0.0,
                "end_s": 2.0,
                "label": "ab"[n % 2],
                "patient": f"p{n // 2}",
                "dataset": "d",
                "split": "train",
            }
        )
    return write_manifest(pd.DataFrame(rows), tmp_path / "manifest.csv")


def test_each_row_has_the_vector_of_the_clip_in_its_middle(manifest, model, tmp_path):
    store = embed(manifest, model, tmp_path / "store", batch_clips=2, progress=False)
    assert store.vectors.shape == (5, 32) and isinstance(store.vectors, np.memmap)
    clip = read_clip(tmp_path / "2.mp4", model.card.clip, start_s=(2.0 - 4 / 6) / 2)
    with torch.no_grad():
        expected = model.backbone(to_input(clip.frames, model.card.input)).cls[0].numpy()
    np.testing.assert_allclose(store.vectors[2], expected, atol=1e-4)
    assert store.rows["time_s"][2] == pytest.approx(clip.times_s[0])
    assert store.usable().tolist() == [True, True, True, False, True]
    assert np.isnan(store.vectors[3]).all() and store.rows["error"][3]
    store.must_be_of(model)


def test_a_stopped_run_goes_on_where_it_was(manifest, model, tmp_path):
    whole = embed(manifest, model, tmp_path / "whole", batch_clips=2, progress=False)
    steps = embedding_steps(manifest, model, tmp_path / "store", batch_clips=2)
    assert next(steps) == 2
    steps.close()
    with pytest.raises(UserError, match="no finished embeddings"):
        load_store(tmp_path / "store")
    with (tmp_path / "store" / "done.jsonl").open("a") as torn:
        torn.write('[{"time_s": 0.')
    assert next(embedding_steps(manifest, model, tmp_path / "store", batch_clips=2)) == 4
    store = embed(manifest, model, tmp_path / "store", batch_clips=2, progress=False)
    np.testing.assert_array_equal(store.vectors, whole.vectors)
    pd.testing.assert_frame_equal(store.rows, whole.rows)
    assert sorted(p.name for p in (tmp_path / "store").iterdir()) == [
        "hashes.json",
        "job.json",
        "rows.parquet",
        "store.json",
        "vectors.npy",
    ]


@pytest.mark.parametrize("moment", ["job.json", "rows.parquet", "vectors.npy", "store.json"])
def test_a_store_killed_before_or_after_a_file_gets_its_name_goes_on_to_the_same_vectors(
    manifest, model, tmp_path, monkeypatch, moment
):
    """A full disk or a kill between the move of the vectors and store.json once gave vectors of zeros."""
    whole = embed(manifest, model, tmp_path / "whole", batch_clips=2, progress=False)
    replace_file = Path.replace
    for side in ("before", "after"):

        def killed(path, target, side=side):
            if side == "after" or Path(target).name != moment:
                replace_file(path, target)
            if Path(target).name == moment:
                raise OSError(28, "No space left on device")

        with monkeypatch.context() as fault, pytest.raises(OSError, match="No space"):
            fault.setattr(Path, "replace", killed)
            embed(manifest, model, tmp_path / side, batch_clips=2, progress=False)
        store = embed(manifest, model, tmp_path / side, batch_clips=2, progress=False)
        np.testing.assert_array_equal(store.vectors, whole.vectors)
        pd.testing.assert_frame_equal(store.rows, whole.rows)
        names = sorted(path.name for path in (tmp_path / side).iterdir())
        assert names == ["hashes.json", "job.json", "rows.parquet", "store.json", "vectors.npy"]


@pytest.mark.parametrize("left", ["nothing", "a row and a half"])
def test_rows_that_the_log_names_but_that_have_no_vector_are_embedded_again(manifest, model, tmp_path, left):
    whole = embed(manifest, model, tmp_path / "whole", batch_clips=2, progress=False)
    steps = embedding_steps(manifest, model, tmp_path / "store", batch_clips=2)
    assert [next(steps), next(steps)] == [2, 4]
    steps.close()
    vectors = tmp_path / "store" / "vectors.part.npy"
    if left == "nothing":
        vectors.unlink()
    else:
        vectors.write_bytes(vectors.read_bytes()[: 128 + 6 * 32])
    store = embed(manifest, model, tmp_path / "store", batch_clips=2, progress=False)
    np.testing.assert_array_equal(store.vectors, whole.vectors)


def test_two_at_once_are_refused_and_a_changed_video_is_named(manifest, model, tmp_path):
    steps = embedding_steps(manifest, model, tmp_path / "store", batch_clips=2)
    next(steps)
    with pytest.raises(UserError, match="is being worked on by process"):
        embed(manifest, model, tmp_path / "store", progress=False)
    steps.close()
    video = tmp_path / "1.mp4"
    data, times = bytearray(video.read_bytes()), video.stat()
    data[-1] ^= 1
    video.write_bytes(data)
    os.utime(video, ns=(times.st_atime_ns, times.st_mtime_ns))
    with pytest.raises(UserError, match=r"other settings: different videos\.1\.mp4\."):
        embed(manifest, model, tmp_path / "store", progress=False)


def test_a_store_of_another_model_version_is_refused(manifest, model, tmp_path):
    store = embed(manifest, model, tmp_path / "store", progress=False)
    newer = VideoModel(model.backbone, model.heads, replace(model.card, weights_sha256="1" * 64))
    with pytest.raises(UserError, match=r"made by small .* not by small"):
        store.must_be_of(newer)
    with pytest.raises(UserError, match="other settings: different model"):
        embed(manifest, newer, tmp_path / "store", progress=False)


def test_foreign_and_damaged_folders_are_refused(manifest, model, tmp_path):
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "a.txt").write_text("a")
    with pytest.raises(UserError, match="do not belong to embeddings"):
        embed(manifest, model, tmp_path / "letters", progress=False)
    store = embed(manifest, model, tmp_path / "store", progress=False)
    about = json.loads((store.path / "store.json").read_text())
    (store.path / "store.json").write_text(json.dumps(about | {"width": 7}))
    with pytest.raises(UserError, match="damaged"):
        load_store(store.path)


def test_a_folder_of_frames_runs_at_the_rate_of_its_row_and_a_row_behind_its_end_has_no_vector(model, tmp_path):
    """Twelve pictures at one per second: the row of seconds 6 to 10 shows pictures 6 to 9."""
    pictures = np.random.default_rng(0).integers(0, 255, (12, 32, 32, 3), dtype=np.uint8)
    (tmp_path / "frames").mkdir()
    for n, picture in enumerate(pictures):
        Image.fromarray(picture).save(tmp_path / "frames" / f"{n:02d}.png")
    spans = [(6.0, 10.0), (12.0, 16.0)]
    rows = [{"start_s": start, "end_s": end, "label": "a", "patient": "p"} for start, end in spans]
    table = pd.DataFrame(rows).assign(video="frames", fps=1, dataset="d", split="train")
    card = replace(model.card, clip=ClipSpec(n_frames=4, stride=1))
    slow = VideoModel(model.backbone, model.heads, card)
    store = embed(write_manifest(table, tmp_path / "m.csv"), slow, tmp_path / "store", progress=False)
    with torch.no_grad():
        expected = model.backbone(to_input(pictures[6:10], card.input)).cls[0].numpy()
    np.testing.assert_allclose(store.vectors[0], expected, atol=1e-4)
    assert store.usable().tolist() == [True, False] and "ends at 12.0 s" in store.rows["error"][1]


def test_a_backbone_that_gives_no_numbers_makes_no_store(manifest, model, tmp_path):
    broken = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in broken.backbone.norm.parameters():
            parameter.fill_(torch.nan)
    with pytest.raises(UserError, match="gives NaN or infinity for row 1 of the manifest"):
        embed(manifest, broken, tmp_path / "store", progress=False)
    assert not (tmp_path / "store" / "store.json").exists()


def test_an_altered_store_is_refused(manifest, model, tmp_path):
    embed(manifest, model, tmp_path / "store", progress=False)
    about = json.loads((tmp_path / "store" / "store.json").read_text())
    (tmp_path / "store" / "store.json").write_text(json.dumps(about | {"rows": 5}))
    with pytest.raises(UserError, match="damaged or was edited"):
        load_store(tmp_path / "store")
    (tmp_path / "store" / "hashes.json").unlink()  # as in a store that was written before there were hashes
    for change in ({"width": "32"}, {"model_name": 5}, {"rows": None}):
        (tmp_path / "store" / "store.json").write_text(json.dumps(about | change))
        with pytest.raises(UserError, match="has the wrong value"):
            load_store(tmp_path / "store")
    for text in ("[]", "{", "NaN", "[" * 50_000):
        (tmp_path / "store" / "store.json").write_text(text)
        with pytest.raises(UserError, match="embed again"):
            load_store(tmp_path / "store")
    (tmp_path / "store" / "store.json").write_text(json.dumps(about))
    for name in ("vectors.npy", "rows.parquet"):
        whole = (tmp_path / "store" / name).read_bytes()
        for content in (b"", b"text", whole[:40]):
            (tmp_path / "store" / name).write_bytes(content)
            with pytest.raises(UserError, match="embed again"):
                load_store(tmp_path / "store")
        (tmp_path / "store" / name).write_bytes(whole)


@pytest.mark.parametrize("line", ["[]x", "5", "[5]", '[{"row": "a", "time_s": 0.0, "error": ""}]', "[{}]", "{"])
def test_an_altered_log_of_a_store_is_refused(manifest, model, tmp_path, line):
    steps = embedding_steps(manifest, model, tmp_path / "store", batch_clips=1)
    next(steps)
    steps.close()
    (tmp_path / "store" / "done.jsonl").write_text(line + "\n")
    with pytest.raises(UserError, match=r"done\.jsonl is damaged"):
        embed(manifest, model, tmp_path / "store", progress=False)
