"""Models that carry statistics of their training features: fitting, saving, loading, predicting and reading back."""

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from threading import Barrier

import numpy as np
import pytest
import torch
from torch import nn

import endofm_lab as lab
from endofm_lab.data.manifest import read_manifest
from endofm_lab.explain.familiarity import features_of, fit_familiarity
from endofm_lab.familiarity.statistics import FAMILIARITY_FILE, Familiarity
from endofm_lab.figures.prediction import frame_timeline, timeline
from endofm_lab.model.card import HeadSpec, ModelCard
from endofm_lab.model.video_model import build_frame_model
from endofm_lab.prediction import load_prediction
from endofm_lab.reports.video import write_video_report
from endofm_lab.video.reader import write_video


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    heads = {"finding": HeadSpec("multiclass", ("normal", "polyp")), "mask": HeadSpec("mask", ("polyp",))}
    made = build_frame_model("vit_micro", heads | {"box": HeadSpec("box", ("polyp",))})
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.2)
    return made.eval()


@pytest.fixture(scope="module")
def known(model, phantom):
    """The model with statistics of the phantom."""
    found = lab.load_model(lab.save_model(model, phantom.parent.with_name("bare")))
    found.familiarity = fit_familiarity(found, read_manifest(phantom))
    return found


@pytest.fixture(scope="module")
def noise(tmp_path_factory):
    path = tmp_path_factory.mktemp("noise") / "noise.mp4"
    random = np.random.default_rng(0)
    write_video(path, [random.integers(0, 255, (64, 64, 3)).astype(np.uint8) for _ in range(12)], 12)
    return path


@pytest.fixture(scope="module")
def half_strange(phantom, tmp_path_factory):
    """A video of the phantom whose second half is noise."""
    table = read_manifest(phantom).table
    with lab.open_video(phantom.parent / table["video"][0]) as reader:
        frames = list(reader.read(range(12)))
    random = np.random.default_rng(1)
    path = tmp_path_factory.mktemp("half") / "half.mp4"
    write_video(path, frames + [random.integers(0, 255, (64, 64, 3)).astype(np.uint8) for _ in range(12)], 12)
    return path


def test_features_are_those_of_the_clips_with_their_patients(known, phantom):
    manifest = read_manifest(phantom)
    found = features_of(known, manifest, "val", batch_clips=5)
    rows = manifest.rows("val")
    assert found.vectors.shape == (3 * len(rows), known.backbone.width) and found.words == "2 patients"
    assert set(found.units) == {f"phantom/{patient}" for patient in rows["patient"]}
    with lab.open_video(manifest.resolve(rows["video"][0])) as reader, torch.inference_mode():
        x = lab.to_input(reader.read([0]), known.card.input)
        tokens = known.backbone.net.forward_intermediates(
            x[:, :, 0], norm=False, output_fmt="NLC", return_prefix_tokens=True
        )
        patches, prefix = tokens[1][len(known.backbone.net.blocks) // 2]
        first = torch.cat([prefix, patches], dim=1).mean(dim=1)
    assert np.allclose(found.vectors[0], first[0].numpy(), atol=1e-4)
    few = features_of(known, manifest, "val", most_clips=4)
    assert len(few.vectors) == 4, "rows are drawn if there are too many"


def test_a_saved_model_has_the_same_statistics_and_its_card_names_their_file(known, tmp_path, noise):
    folder = lab.save_model(known, tmp_path / "m")
    again = lab.load_model(folder)
    assert again.familiarity.to_bytes() == known.familiarity.to_bytes()
    assert (folder / FAMILIARITY_FILE).stat().st_size < 500_000
    assert json.loads((folder / "card.json").read_text())["familiarity_sha256"] == again.card.familiarity_sha256
    before, after = (lab.predict_video(noise, m, progress=False).distance for m in (known, again))
    assert np.array_equal(before, after)


def test_a_statistics_file_that_was_edited_or_lost_is_refused(known, tmp_path):
    folder = lab.save_model(known, tmp_path / "m")
    path = folder / FAMILIARITY_FILE
    path.write_bytes(replace(known.familiarity, limit=99.0).to_bytes())
    with pytest.raises(lab.CheckpointError, match=r"familiarity\.safetensors was changed, although the model's card"):
        lab.load_model(folder)
    path.unlink()
    with pytest.raises(lab.CheckpointError, match=r"familiarity\.safetensors is missing, although"):
        lab.load_model(folder)
    card = json.loads((folder / "card.json").read_text())
    del card["familiarity_sha256"]
    (folder / "card.json").write_text(json.dumps(card))
    with pytest.raises(lab.CheckpointError, match="familiarity_sha256 was"):
        lab.load_model(folder)


def test_statistics_of_a_model_of_another_width_are_refused(known, model, tmp_path):
    other = Familiarity(np.zeros(7, np.float32), np.eye(7, dtype=np.float32), 1.0)
    wrong = lab.load_model(lab.save_model(model, tmp_path / "m"))
    wrong.familiarity = other
    lab.save_model(wrong, tmp_path / "m")
    with pytest.raises(lab.CheckpointError, match=r"of features of width 7, but those of .* have width 32"):
        lab.load_model(tmp_path / "m")


def test_a_model_without_statistics_loads_and_says_that_familiarity_is_unknown(model, known, tmp_path, noise):
    folder = lab.save_model(known, tmp_path / "m")
    lab.save_model(model, folder)  # replaces the model, and so its statistics
    assert not (folder / FAMILIARITY_FILE).exists()
    bare = lab.load_model(folder)
    assert bare.familiarity is None and "familiarity_sha256" not in bare.card.to_json()
    found = lab.predict_video(noise, bare, progress=False)
    assert found.distance is None and found.familiar is None and not found.unfamiliar_frames().any()
    assert found.familiarity_text().startswith("Familiarity unknown") and "distance" not in found.table()


def test_every_clip_of_a_prediction_has_its_distance_also_after_a_stop_and_from_disk(known, noise, tmp_path):
    whole = lab.predict_video(noise, known, batch_clips=2, progress=False)
    assert (whole.distance > 1).all() and whole.familiar.tolist() == [False] * len(whole.times_s)
    for start, distance in zip(whole.times_s[:3, 0], whole.distance, strict=False):
        clip = lab.read_clip(noise, known.card.clip, start)
        features = known.answer(lab.to_input(clip.frames, known.card.input))[1]
        assert np.isclose(known.familiarity.distances(features)[0], distance, rtol=1e-4)
    saved = lab.predict_video(noise, known, batch_clips=2, out=tmp_path / "p", progress=False)
    again = load_prediction(tmp_path / "p")
    assert np.array_equal(saved.distance, whole.distance) and np.array_equal(again.distance, whole.distance)
    about = json.loads((tmp_path / "p" / "prediction.json").read_text())["familiarity"]
    assert about["unfamiliar_clips"] == about["clips"] == len(whole.times_s)


def test_a_folder_that_was_written_before_still_reads_and_knows_no_distances(known, noise, tmp_path):
    lab.predict_video(noise, known, out=tmp_path / "p", progress=False)
    for name in ("clips.parquet", "prediction.json"):
        if name.endswith("json"):
            about = json.loads((tmp_path / "p" / name).read_text())
            del about["familiarity"]
            (tmp_path / "p" / name).write_text(json.dumps(about))
        else:
            lab.load_prediction(tmp_path / "p").table().drop(columns=["distance", "familiar"]).to_parquet(
                tmp_path / "p" / name
            )
    (tmp_path / "p" / "hashes.json").unlink()
    old = load_prediction(tmp_path / "p")
    assert old.distance is None and len(old.table()) == len(old.times_s)


def test_no_mask_and_no_box_is_drawn_where_the_video_is_unfamiliar_unless_asked_for(known, half_strange, tmp_path):
    found = lab.predict_video(half_strange, known, progress=False)
    strange = found.unfamiliar_frames()
    assert strange[12:].all() and not strange[:12].all()
    frame = int(found.frames[-1])
    assert found.overlay(frame)[0] is None and not len(found.overlay(frame)[1])
    mask, boxes = found.overlay(frame, unfamiliar=True)
    assert mask is not None and len(boxes) == len(found.boxes(frame))
    values = frame_timeline(found).data[0].y
    assert np.isnan(values[strange]).all() and np.isfinite(values[~strange]).all()
    assert np.isfinite(frame_timeline(found, unfamiliar=True).data[0].y).all()
    shaded = timeline(found)
    assert len(shaded.layout.shapes) == len(found.unfamiliar_stretches()) >= 1
    assert {"circle", "circle-open"} == set(shaded.data[0].marker.symbol)
    text = write_video_report(found, known.card, tmp_path / "report.html").read_text()
    assert "look unlike what the model learned" in text


@pytest.mark.parametrize("digest", ["", "abc", "g" * 64])
def test_a_card_names_its_statistics_by_a_whole_hash(digest):
    card = lab.load_model("demo").card.to_json()
    with pytest.raises(lab.CheckpointError, match="must be 64 hexadecimal digits"):
        ModelCard.from_json({**card, "familiarity_sha256": digest})


def test_features_are_those_of_the_own_clips_when_several_threads_share_a_model(model):
    size = model.card.input.size_px
    clips = [torch.randn(1 + n % 3, 3, 1, size, size, generator=torch.Generator().manual_seed(n)) for n in range(24)]
    alone = [model.answer(clip)[1] for clip in clips]
    start = Barrier(4)

    def answered(number):
        if number < 4:
            start.wait()
        return model.answer(clips[number])[1]

    with ThreadPoolExecutor(4) as pool:
        for together, expected in zip(pool.map(answered, range(len(clips))), alone, strict=True):
            torch.testing.assert_close(together, expected)
