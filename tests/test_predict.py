import copy
import os
import shutil
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import nn

from endofm_lab.cli.main import main
from endofm_lab.errors import UserError, VideoError
from endofm_lab.figures.prediction import frame_timeline, timeline
from endofm_lab.files import read_json, write_json
from endofm_lab.model.card import HeadSpec, ModelCard
from endofm_lab.model.heads import BoxHead, ClipClassifier, MaskHead
from endofm_lab.model.loading.load import save_model
from endofm_lab.model.transformer import build_backbone
from endofm_lab.model.video_model import VideoModel
from endofm_lab.predict import predict_video, prediction_steps
from endofm_lab.prediction import VideoPrediction, load_prediction
from endofm_lab.video.clips import ClipSpec
from endofm_lab.video.reader import VideoReader, open_video, write_video
from endofm_lab.video.transforms import IMAGENET, to_input


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    backbone = build_backbone("micro")
    for parameter in backbone.parameters():
        nn.init.normal_(parameter, std=0.2)
    heads = {"kind": ClipClassifier(32, 3), "signs": ClipClassifier(32, 2), "mask": MaskHead(32), "box": BoxHead(32, 2)}
    for parameter in nn.ModuleDict(heads).parameters():
        nn.init.normal_(parameter, std=0.2)
    card = ModelCard(
        name="random micro",
        backbone={},
        input=replace(IMAGENET, size_px=64),
        clip=ClipSpec(n_frames=4, stride=2),
        heads={
            "kind": HeadSpec("multiclass", ("a", "b", "c"), temperature=2.0),
            "signs": HeadSpec("multilabel", ("x", "y")),
            "mask": HeadSpec("mask", ("m",)),
            "box": HeadSpec("box", ("p", "q")),
        },
    )
    return VideoModel(backbone, nn.ModuleDict(heads), card).eval()


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    """30 frames of 96 x 80 px, smooth noise that drifts."""
    random = np.random.default_rng(0)
    noise = random.integers(0, 255, (10, 12, 3)).astype(np.uint8).repeat(8, 0).repeat(8, 1)
    path = tmp_path_factory.mktemp("video") / "drift.mp4"
    write_video(path, [np.roll(noise, 3 * i, axis=1) for i in range(30)], Fraction(10))
    return path


def naive(video, model, clips):
    """Each clip read on its own, outputs gathered per frame in a dictionary."""
    scores, masks, boxes = [], {}, {}
    for indices in clips:
        with open_video(video) as reader:
            frames = reader.read(indices)
        with torch.inference_mode():
            logits = model(to_input(frames, model.card.input)).logits
        scores.append(((logits["kind"][0] / 2).softmax(0).numpy(), logits["signs"][0].sigmoid().numpy()))
        for t, index in enumerate(indices):
            masks.setdefault(int(index), []).append(logits["mask"][0, :, t].sigmoid().numpy())
            boxes.setdefault(int(index), []).append(logits["box"][0, :, t])
    return scores, masks, boxes


def test_a_prediction_equals_every_clip_read_and_run_on_its_own(video, model):
    prediction = predict_video(video, model, batch_clips=3, progress=False)
    clips = [np.arange(start, start + 8, 2) for start in np.rint(prediction.times_s[:, 0] * 10).astype(int)]
    clips = [np.minimum(indices, 29) for indices in clips]
    scores, masks, boxes = naive(video, model, clips)
    np.testing.assert_allclose(prediction.scores["kind"], [kind for kind, _ in scores], atol=1e-5)
    np.testing.assert_allclose(prediction.scores["signs"], [signs for _, signs in scores], atol=1e-5)
    assert prediction.frames.tolist() == sorted(masks)
    for at, frame in enumerate(prediction.frames.tolist()):
        mean = np.mean(masks[frame], axis=0)
        np.testing.assert_allclose(prediction.masks[at] / 255, mean, atol=0.51 / 255 + 1e-5)
        raw = torch.stack(boxes[frame]).mean(0)[None, :, None]
        ((xyxy, score, _),) = model.heads["box"].decode(raw)[0]
        detections = prediction.boxes(frame)
        assert len(detections) == len(score)
        np.testing.assert_allclose(detections["score"], score, atol=1e-5)
        scale = np.array([96, 80, 96, 80])
        np.testing.assert_allclose(detections[["x1", "y1", "x2", "y2"]], xyxy * scale, atol=1e-2)


def test_every_instant_of_the_video_is_in_a_clip(video, model):
    prediction = predict_video(video, model, progress=False)
    assert prediction.times_s[0, 0] == 0
    assert prediction.times_s[-1, 1] >= 2.9
    assert (prediction.times_s[1:, 0] <= prediction.times_s[:-1, 1]).all()


def test_each_frame_is_decoded_once(video, model, monkeypatch):
    decoded = []
    stream = VideoReader.stream

    def counted(self, start=0, stop=None):
        for index, frame in stream(self, start, stop):
            decoded.append(index)
            yield index, frame

    monkeypatch.setattr(VideoReader, "stream", counted)
    predict_video(video, model, step_s=0.1, progress=False)
    assert len(decoded) == len(set(decoded)) <= 30


def test_every_frame_gives_every_frame_a_mask_and_leaves_the_others_sound(video, model):
    dense = predict_video(video, model, every_frame=True, progress=False)
    assert dense.frames.tolist() == list(range(30))
    assert dense.mask(17).shape == (1, 80, 96)


def test_every_frame_leaves_the_scores_alone_and_tells_how_far_the_clips_between_differ(video, model, tmp_path):
    plain = predict_video(video, model, step_s=0.4, progress=False)
    dense = predict_video(video, model, step_s=0.4, every_frame=True, out=tmp_path, progress=False)
    np.testing.assert_array_equal(dense.times_s, plain.times_s)
    assert not plain.score_spread and set(dense.score_spread) == set(plain.scores)
    for head, scores in plain.scores.items():
        np.testing.assert_allclose(dense.scores[head], scores, atol=1e-6)
        low, high = np.moveaxis(dense.score_spread[head], -1, 0)
        assert (low <= dense.scores[head]).all() and (dense.scores[head] <= high).all() and (low < high).any()
    back = load_prediction(tmp_path)
    for head, spread in dense.score_spread.items():
        np.testing.assert_array_equal(back.score_spread[head], spread)
    bands = [trace for trace in timeline(back).data if trace.fill == "toself"]
    assert len(bands) == sum(scores.shape[1] for scores in plain.scores.values())


@pytest.mark.parametrize("stop_after", [1, 2, 3])
def test_a_stopped_prediction_goes_on_and_equals_an_uninterrupted_one(video, model, tmp_path, monkeypatch, stop_after):
    monkeypatch.setattr("endofm_lab.predict.PART_BATCHES", 2)
    whole = predict_video(video, model, step_s=0.2, batch_clips=2, progress=False)
    steps = prediction_steps(video, model, step_s=0.2, batch_clips=2, out=tmp_path)
    for _ in range(stop_after + 1):
        next(steps)
    steps.close()
    assert not (tmp_path / "prediction.json").exists()
    assert len(list((tmp_path / "parts").glob("*.npz"))) == stop_after
    resumed = predict_video(video, model, step_s=0.2, batch_clips=2, out=tmp_path, progress=False)
    np.testing.assert_array_equal(resumed.masks, whole.masks)
    pd.testing.assert_frame_equal(resumed.table(), whole.table())
    pd.testing.assert_frame_equal(resumed.boxes_xyxy, whole.boxes_xyxy)


def stopped(video, model, out, parts=3):
    steps = prediction_steps(video, model, step_s=0.2, batch_clips=2, out=out)
    for _ in range(parts + 1):
        next(steps)
    steps.close()


@pytest.mark.parametrize("damage", ["removed", "cut off"])
def test_a_part_that_was_removed_or_damaged_is_computed_again(video, model, tmp_path, monkeypatch, damage):
    monkeypatch.setattr("endofm_lab.predict.PART_BATCHES", 2)
    whole = predict_video(video, model, step_s=0.2, batch_clips=2, progress=False)
    stopped(video, model, tmp_path)
    second = sorted((tmp_path / "parts").iterdir())[1]
    if damage == "removed":
        second.unlink()
    else:
        second.write_bytes(second.read_bytes()[:100])
    resumed = predict_video(video, model, step_s=0.2, batch_clips=2, out=tmp_path, progress=False)
    np.testing.assert_array_equal(resumed.masks, whole.masks)
    pd.testing.assert_frame_equal(resumed.table(), whole.table())


@pytest.mark.parametrize("moment", ["job.json", "part_00000004.npz", "clips.parquet", "masks", "prediction.json"])
def test_a_prediction_killed_before_or_after_a_file_gets_its_name_goes_on(video, model, tmp_path, monkeypatch, moment):
    monkeypatch.setattr("endofm_lab.predict.PART_BATCHES", 2)
    whole = predict_video(video, model, step_s=0.2, batch_clips=2, progress=False)
    replace_file = Path.replace
    for side in ("before", "after"):

        def killed(path, target, side=side):
            if side == "after" or Path(target).name != moment:
                replace_file(path, target)
            if Path(target).name == moment:
                raise KeyboardInterrupt

        with monkeypatch.context() as fault, pytest.raises(KeyboardInterrupt):
            fault.setattr(Path, "replace", killed)
            predict_video(video, model, step_s=0.2, batch_clips=2, out=tmp_path / side, progress=False)
        resumed = predict_video(video, model, step_s=0.2, batch_clips=2, out=tmp_path / side, progress=False)
        np.testing.assert_array_equal(resumed.masks, whole.masks)
        pd.testing.assert_frame_equal(resumed.boxes_xyxy, whole.boxes_xyxy)
        assert not (tmp_path / side / "parts").exists()


def test_two_predictions_in_one_folder_and_models_or_frames_that_changed_are_refused(video, model, tmp_path):
    steps = prediction_steps(video, model, out=tmp_path / "p")
    next(steps)
    with pytest.raises(UserError, match="is being worked on by process"):
        predict_video(video, model, out=tmp_path / "p", progress=False)
    steps.close()
    changed = copy.deepcopy(model)
    with torch.no_grad():
        changed.heads["kind"].linear.bias[0] += 1e-3
    with pytest.raises(UserError, match="other settings: different weights"):
        predict_video(video, changed, out=tmp_path / "p", progress=False)
    (tmp_path / "frames").mkdir()
    for number in range(6):
        Image.fromarray(np.full((40, 50, 3), 90, np.uint8)).save(tmp_path / "frames" / f"{number}.bmp")
    predict_video(tmp_path / "frames", model, out=tmp_path / "q", progress=False)
    frame = tmp_path / "frames" / "3.bmp"
    times = frame.stat()
    Image.fromarray(np.full((40, 50, 3), 91, np.uint8)).save(frame)
    os.utime(frame, ns=(times.st_atime_ns, times.st_mtime_ns))
    with pytest.raises(UserError, match="other settings: different video"):
        predict_video(tmp_path / "frames", model, out=tmp_path / "q", progress=False)


def test_a_saved_prediction_reads_back_the_same(video, model, tmp_path):
    kept = predict_video(video, model, out=tmp_path / "p", progress=False)
    back = load_prediction(tmp_path / "p")
    pd.testing.assert_frame_equal(back.table(), kept.table())
    pd.testing.assert_frame_equal(back.boxes_xyxy, kept.boxes_xyxy)
    np.testing.assert_array_equal(back.masks, kept.masks)
    assert back.video == kept.video
    assert back.provenance == kept.provenance
    names = sorted(path.name for path in (tmp_path / "p").iterdir())
    assert names == [
        "boxes.parquet",
        "clips.parquet",
        "hashes.json",
        "job.json",
        "masks",
        "masks.npy",
        "prediction.json",
        "quality.parquet",
    ]
    with open_video(tmp_path / "p" / "masks") as reader:
        assert reader.info.n_frames == len(kept.frames)


def test_a_folder_with_another_prediction_or_anything_else_is_refused(video, model, tmp_path):
    predict_video(video, model, out=tmp_path / "p", progress=False)
    with pytest.raises(UserError, match="step_s"):
        predict_video(video, model, step_s=0.3, out=tmp_path / "p", progress=False)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="do not belong to a prediction"):
        predict_video(video, model, out=tmp_path / "mine", progress=False)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"


def test_a_single_image_is_a_video_of_one_clip(model, tmp_path):
    Image.fromarray(np.full((40, 50, 3), 90, np.uint8)).save(tmp_path / "still.png")
    prediction = predict_video(tmp_path / "still.png", model, progress=False)
    assert prediction.frames.tolist() == [0]
    assert len(prediction.times_s) == 1


def test_bad_options_name_value_and_limit(video, model, tmp_path):
    with pytest.raises(UserError, match="step_s is 0"):
        predict_video(video, model, step_s=0, progress=False)
    with pytest.raises(UserError, match="batch_clips is 0"):
        predict_video(video, model, batch_clips=0, progress=False)
    with pytest.raises(VideoError, match="absent"):
        predict_video(tmp_path / "absent.mp4", model, out=tmp_path / "out", progress=False)
    assert not (tmp_path / "out").exists()


def test_asking_for_the_mask_of_an_unseen_frame_says_which_frame_has_one(video, model):
    prediction = predict_video(video, model, step_s=0.8, progress=False)
    with pytest.raises(UserError, match="nearest frame that was is"):
        prediction.mask(1)


def test_automatic_precision_leaves_the_model_as_it_is_and_the_scores_nearly(video, model):
    exact = predict_video(video, model, progress=False)
    fast = predict_video(video, model, precision="auto", progress=False)
    assert next(model.parameters()).dtype == torch.float32
    np.testing.assert_allclose(fast.scores["kind"], exact.scores["kind"], atol=0.05)
    assert fast.provenance["dtype"] in ("float32", "bfloat16")
    with pytest.raises(UserError, match="precision is 'half'"):
        predict_video(video, model, precision="half", progress=False)


def test_the_opening_frame_is_the_one_with_the_most_evidence_in_the_clip_surest_of_a_finding():
    masks = np.zeros((8, 1, 4, 4), np.uint8)
    masks[1] = 255  # larger, but in a clip where the class head finds nothing
    masks[5, 0, :2], masks[6, 0, :3] = 255, 255
    scores = {
        "motion": np.array([[0.99, 0.01], [0.5, 0.5]], np.float32),
        "finding": np.array([[0.9, 0.1], [0.2, 0.8]], np.float32),
    }
    prediction = VideoPrediction(
        times_s=np.array([[0.0, 3.0], [4.0, 7.0]]),
        scores=scores,
        classes={
            "motion": ["advancing", "still"],
            "finding": ["normal", "polyp"],
            "mask": ["lesion"],
            "box": ["polyp"],
        },
        frames=np.arange(8) * 2,
        frame_times_s=np.arange(8.0),
        maps={"mask": masks},
        boxes_xyxy=pd.DataFrame({"frame": [2, 8, 14], "score": [0.9, 0.3, 0.6]}),
        video=None,
    )
    assert prediction.opening_frame() == 12
    assert (
        prediction.telling_frames(9)[0] == 12
        and len(set(prediction.telling_frames(9))) == len(prediction.telling_frames(9)) > 1
    )
    assert replace(prediction, maps={}).opening_frame() == 14, "the surest box of that clip"
    empty = pd.DataFrame({"frame": [], "score": []})
    assert replace(prediction, maps={"mask": masks * 0}, boxes_xyxy=empty).opening_frame() == 10, (
        "the middle of that clip"
    )
    assert replace(prediction, scores={"motion": scores["motion"]}).opening_frame() == 2, (
        "the largest mask of the video"
    )


@pytest.fixture(scope="module")
def twin(model):
    """A model with two mask heads of different sizes and two box heads."""
    torch.manual_seed(1)
    heads = {"polyp": MaskHead(32), "tools": MaskHead(32, 2), "near": BoxHead(32, 2), "far": BoxHead(32)}
    for parameter in nn.ModuleDict(heads).parameters():
        nn.init.normal_(parameter, std=0.2)
    specs = {
        "polyp": HeadSpec("mask", ("m",)),
        "tools": HeadSpec("mask", ("forceps", "snare")),
        "near": HeadSpec("box", ("p", "q")),
        "far": HeadSpec("box", ("r",)),
    }
    return VideoModel(model.backbone, nn.ModuleDict(heads), replace(model.card, heads=specs)).eval()


def alone(twin, head):
    card = replace(twin.card, heads={head: twin.card.heads[head]})
    return VideoModel(twin.backbone, nn.ModuleDict({head: twin.heads[head]}), card).eval()


def test_two_heads_of_a_kind_are_kept_apart_and_each_answers_as_if_it_were_alone(video, twin, tmp_path, monkeypatch):
    monkeypatch.setattr("endofm_lab.predict.PART_BATCHES", 2)
    stopped(video, twin, tmp_path / "both")
    predict_video(video, twin, step_s=0.2, batch_clips=2, out=tmp_path / "both", progress=False)
    prediction = load_prediction(tmp_path / "both")
    assert list(prediction.maps) == ["polyp", "tools"] and prediction.box_heads == ["near", "far"]
    assert (tmp_path / "both" / "masks_tools" / "000000_1.png").is_file()
    assert prediction.boxes_xyxy["frame"].is_monotonic_increasing and set(prediction.boxes_xyxy["head"]) == {
        "near",
        "far",
    }
    for head in prediction.maps:
        single = predict_video(video, alone(twin, head), step_s=0.2, batch_clips=2, progress=False)
        np.testing.assert_array_equal(prediction.maps[head], single.masks)
        np.testing.assert_array_equal(prediction.mask(4, head=head), single.mask(4))
    for head in prediction.box_heads:
        single = predict_video(video, alone(twin, head), step_s=0.2, batch_clips=2, progress=False)
        head_boxes = prediction.boxes_xyxy[prediction.boxes_xyxy["head"] == head].reset_index(drop=True)
        pd.testing.assert_frame_equal(head_boxes, single.boxes_xyxy)
    for call in (lambda: prediction.masks, lambda: prediction.mask(4), lambda: prediction.mask(4, head="near")):
        with pytest.raises(UserError, match="name one of the mask heads polyp, tools"):
            call()
    mask, boxes = prediction.overlay(4, ["polyp", "far"])
    np.testing.assert_array_equal(mask, prediction.mask(4, head="polyp")[0])
    assert set(boxes["head"]) <= {"far"} and prediction.overlay(4, [])[0] is None
    traces = {trace.name for trace in frame_timeline(prediction).data}
    assert {"polyp", "tools", "box: r"} <= traces


def test_the_command_names_the_mask_heads_where_there_are_several(video, twin, tmp_path, capsys):
    save_model(twin, tmp_path / "model")
    assert main(["predict", str(video), "--model", str(tmp_path / "model"), "--out", str(tmp_path / "p")]) == 0
    assert "frames with masks of polyp, tools" in capsys.readouterr().out


def as_written_before(folder):
    """The folder of a prediction as it was when a model had one mask head and one box head at most."""
    (folder / "hashes.json").unlink()
    boxes = pd.read_parquet(folder / "boxes.parquet").drop(columns="head")
    boxes.to_parquet(folder / "boxes.parquet", index=False)
    about = read_json(folder / "prediction.json")
    del about["maps"]
    write_json(folder / "prediction.json", about)


def test_a_prediction_written_before_heads_had_names_reads_back_the_same(video, model, tmp_path):
    kept = predict_video(video, model, out=tmp_path / "p", progress=False)
    as_written_before(tmp_path / "p")
    back = load_prediction(tmp_path / "p")
    assert list(back.maps) == ["mask"] and back.box_heads == ["box"]
    np.testing.assert_array_equal(back.masks, kept.masks)
    pd.testing.assert_frame_equal(back.boxes_xyxy, kept.boxes_xyxy)


def test_an_old_prediction_that_mixed_masks_of_two_heads_is_refused(video, model, tmp_path):
    predict_video(video, model, out=tmp_path / "p", progress=False)
    as_written_before(tmp_path / "p")
    masks = np.load(tmp_path / "p" / "masks.npy")
    np.save(tmp_path / "p" / "masks.npy", np.repeat(masks, 2, axis=0))
    with pytest.raises(UserError, match="mixed masks of several heads"):
        load_prediction(tmp_path / "p")


@pytest.mark.parametrize("head", ["kind", "signs", "mask", "box"])
def test_a_head_that_gives_no_numbers_is_no_prediction(head, model, video, tmp_path):
    broken = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in broken.heads[head].parameters():
            parameter.fill_(3e38)
    with pytest.raises(UserError, match=rf"head '{head}' of .* gives NaN or infinity for the clip at 0\.00 s"):
        predict_video(video, broken, out=tmp_path / "out", progress=False)
    assert not (tmp_path / "out" / "prediction.json").exists()


@pytest.fixture(scope="module")
def finished(model, video, tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished") / "out"
    predict_video(video, model, out=folder, progress=False)
    (folder / "hashes.json").unlink()  # what has none is refused by what it says
    return folder


ALTERED_JSON = [
    {"frames": "abc"},
    {"frames": [0, 0, 1]},
    {"frame_times_s": [1.0]},
    {"frame_times_s": None},
    {"classes": {"kind": "abc"}},
    {"classes": {}},
    {"heads": ["nothing"]},
    {"heads": 5},
    {"maps": ["absent"]},
    {"maps": [3]},
    {"video": {}},
    {"video": {"fps": "1/0"}},
    {"provenance": []},
]


@pytest.mark.parametrize("change", ALTERED_JSON)
def test_an_altered_prediction_json_is_refused(change, finished, tmp_path):
    folder = shutil.copytree(finished, tmp_path / "altered")
    write_json(folder / "prediction.json", read_json(folder / "prediction.json") | change)
    with pytest.raises(UserError, match=r"altered.*Predict again into another folder"):
        load_prediction(folder)


@pytest.mark.parametrize("name", ["prediction.json", "clips.parquet", "boxes.parquet", "masks.npy"])
@pytest.mark.parametrize("spoil", ["empty", "half", "text", "absent"])
def test_a_damaged_file_of_a_prediction_is_refused(name, spoil, finished, tmp_path):
    folder = shutil.copytree(finished, tmp_path / "damaged")
    path = folder / name
    whole = path.read_bytes()
    if spoil == "absent":
        path.unlink()
    else:
        path.write_bytes({"empty": b"", "half": whole[: len(whole) // 2], "text": b"[" * 50_000}[spoil])
    with pytest.raises(UserError, match="redict"):
        load_prediction(folder)


def test_masks_of_another_size_and_tables_of_other_columns_are_refused(finished, tmp_path):
    folder = shutil.copytree(finished, tmp_path / "masks")
    np.save(folder / "masks.npy", np.load(folder / "masks.npy")[:-1])
    with pytest.raises(UserError, match="the masks of mask are of shape"):
        load_prediction(folder)
    for name, change in (
        ("clips", lambda table: table.drop(columns="start_s")),
        ("clips", lambda table: table.assign(**{"kind.a": np.nan})),
        ("clips", lambda table: table.assign(**{"kind.a": "x"})),
        ("boxes", lambda table: table.drop(columns="x1")),
        ("boxes", lambda table: table.assign(x1="left")),
    ):
        folder = shutil.copytree(finished, tmp_path / "tables", dirs_exist_ok=True)
        change(pd.read_parquet(folder / f"{name}.parquet")).to_parquet(folder / f"{name}.parquet")
        with pytest.raises(UserError, match="was altered"):
            load_prediction(folder)


def test_a_damaged_part_is_computed_again(model, video, tmp_path):
    whole = predict_video(video, model, out=tmp_path / "whole", batch_clips=1, progress=False)
    steps = prediction_steps(video, model, out=tmp_path / "out", batch_clips=1)
    next(steps), next(steps)
    steps.close()
    (part,) = (tmp_path / "out" / "parts").glob("part_*.npz")
    part.write_bytes(part.read_bytes()[:-400] + bytes(400))
    repeat = predict_video(video, model, out=tmp_path / "out", batch_clips=1, progress=False)
    assert all(np.array_equal(repeat.scores[head], values) for head, values in whole.scores.items())
