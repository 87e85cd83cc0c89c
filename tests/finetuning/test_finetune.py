import json
import os
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from endofm_lab.cli.main import main
from endofm_lab.data.manifest import read_manifest, write_manifest
from endofm_lab.data.phantom_set import PRESETS
from endofm_lab.errors import ManifestError, UserError
from endofm_lab.files import read_json
from endofm_lab.finetuning.config import FinetuneConfig
from endofm_lab.finetuning.evaluate import evaluate
from endofm_lab.finetuning.finetune import finetune
from endofm_lab.finetuning.fitting import HeadTraining, layer_groups
from endofm_lab.finetuning.start import Start
from endofm_lab.model.card import HeadSpec
from endofm_lab.model.loading.load import load_model, save_model
from endofm_lab.model.transformer import build_backbone
from endofm_lab.predict import predict_video
from endofm_lab.runs.compare import compare
from endofm_lab.runs.run import read_run
from endofm_lab.tasks import TASKS
from endofm_lab.tasks.classification import Classification
from endofm_lab.tasks.clips import ClipData
from endofm_lab.tasks.scoring import clip_scores
from endofm_lab.tasks.segmentation import Segmentation
from endofm_lab.video.clips import ClipSpec

SCRATCH = Start("scratch", size="micro")
TINY = PRESETS["tiny"]  # patients per split, each with four findings


@pytest.fixture(scope="module")
def probe(phantom, tmp_path_factory):
    config = FinetuneConfig(phantom, tmp_path_factory.mktemp("probe") / "probe", method="linear probe", start=SCRATCH)
    return config, list(finetune(config))


def full(phantom, out, **settings):
    return FinetuneConfig(phantom, out, start=SCRATCH, steps=4, batch=4, validate_every=2, clips=1, **settings)


def edited(phantom, folder, change):
    """A copy of the phantom whose manifest went through ``change``."""
    shutil.copytree(phantom.parent, folder, dirs_exist_ok=True)
    table = read_manifest(phantom).table.copy()
    return write_manifest(change(table), folder / "changed.csv").path


def test_a_linear_probe_leaves_a_run_and_a_model_that_gives_its_scores(phantom, probe):
    config, records = probe
    run = read_run(config.out)
    assert run.method == "linear probe" and run.initialisation.startswith("Random")
    assert run.protocol["chosen_on"] == "validation" and run.audit["findings"] == []
    start, *tried, chosen = records
    assert start["initialisation"] == run.initialisation and "24 train" in start["split"] and start["audit"]
    assert chosen["validation"] == max(r["validation"] for r in tried)
    model = load_model(config.out / "seed-0" / "model")
    manifest = read_manifest(phantom)
    head = model.card.heads["label"]
    scores = clip_scores(model, "label", Classification().examples(manifest, "test", head), config.clips).mean(1)
    written = run.predictions[[f"score_{name}" for name in head.classes]].to_numpy()
    np.testing.assert_allclose(scores, written, atol=1e-6)
    np.testing.assert_allclose(written.sum(1), 1, atol=1e-6)
    assert model.card.audit and model.card.data["fingerprint"] == manifest.fingerprint
    assert model.card.data["generated"] is True
    assert {m["name"] for m in model.card.metrics} >= {"f1", "auc"}


def test_a_model_that_is_evaluated_again_gives_the_same_numbers(phantom, probe, tmp_path, capsys):
    config, records = probe
    model = config.out / "seed-0" / "model"
    run = evaluate(model, phantom, tmp_path / "again")
    pd.testing.assert_frame_equal(run.predictions, read_run(config.out).predictions, atol=1e-6)
    assert run.audit["findings"] == [] and "LEAK" not in run.audit["verdict"]
    assert main(["evaluate", str(model), str(phantom), "--out", str(tmp_path / "told")]) == 0
    output = capsys.readouterr().out
    assert f"{records[-1]['test']['auc']:.3f}" in output and run.audit["verdict"] in output
    assert main(["evaluate", str(model), str(phantom), "--out", str(tmp_path / "told")]) == 0
    assert f"{records[-1]['test']['auc']:.3f}" in capsys.readouterr().out, "a finished run is read back"
    assert main(["evaluate", str(model), str(phantom), "--out", str(tmp_path / "told"), "--clips", "1"]) == 2
    assert "clips is 3 there, 1 here" in capsys.readouterr().err
    elsewhere = edited(phantom, tmp_path / "other", lambda t: t.assign(device="x"))
    assert "CANNOT TELL" in evaluate(model, elsewhere, tmp_path / "elsewhere").audit["verdict"]


def test_the_folder_of_a_run_is_evaluated_with_its_own_manifest_and_settings(phantom, probe, tmp_path, capsys):
    config, _ = probe
    assert main(["evaluate", str(config.out), "--out", str(tmp_path / "again"), "--json"]) == 0
    output = json.loads(capsys.readouterr().out)
    run, second = read_run(config.out), read_run(tmp_path / "again")
    pd.testing.assert_frame_equal(second.predictions, run.predictions, atol=1e-6)
    assert (second.method, second.seeds, second.protocol) == (run.method, run.seeds, run.protocol)
    report = read_json(config.out / "report.json")
    assert output["metrics"]["auc"]["value"] == pytest.approx(report["metrics"]["auc"]["value"], abs=1e-6)
    assert not any("differ" in reason for reason in compare([run, second], n=20).reasons)
    assert main(["evaluate", str(config.out), "--out", str(tmp_path / "other"), "--clips", "1"]) == 0
    assert read_run(tmp_path / "other").protocol["clips"] == 1
    assert main(["evaluate", str(config.out / "seed-0" / "model"), "--out", str(tmp_path / "none")]) == 2
    assert "Give a manifest" in capsys.readouterr().err and not (tmp_path / "none").exists()


def test_the_command_tells_start_split_audit_and_result_and_predict_opens_the_model(phantom, tmp_path, capsys):
    options = [
        "--task",
        "segmentation",
        "--start",
        "scratch",
        "--size",
        "micro",
        "--n-frames",
        "1",
        "--stride",
        "1",
        "--steps",
        "1",
        "--batch",
        "2",
    ]
    assert main(["finetune", str(phantom), "--out", str(tmp_path / "run"), *options]) == 0
    output = capsys.readouterr().out
    assert "Initialisation: Random" in output and "24 train, 8 val, 8 test" in output
    assert output.count("Audit: ") == 2 and "dice" in output and "For research only" in output
    video = phantom.parent / read_manifest(phantom).rows("test")["video"][0]
    prediction = predict_video(video, tmp_path / "run" / "seed-0" / "model", progress=False)
    assert len(prediction.masks) == TINY.n_frames, "a model of single frames sees every frame"


def test_a_split_by_name_is_the_one_that_is_used(phantom, tmp_path):
    def released(table):
        swapped = table["split"].replace({"val": "test", "test": "val"})
        return table.assign(split="", split_released=swapped)

    changed = edited(phantom, tmp_path, released)
    config = FinetuneConfig(changed, tmp_path / "run", method="knn", start=SCRATCH, split_name="released")
    list(finetune(config))
    run = read_run(config.out)
    expected = set(read_manifest(phantom).rows("val")["patient"])
    assert {patient.split("/")[1] for patient in run.predictions["patient"]} == expected
    assert run.test["split"] == "released"
    with pytest.raises(UserError, match="has no split 'paper'"):
        next(finetune(replace(config, split_name="paper", out=tmp_path / "other")))


def test_runs_of_two_methods_on_one_manifest_are_measured_alike_but_two_patients_give_no_ranks(
    phantom, probe, tmp_path
):
    config = FinetuneConfig(phantom, tmp_path / "knn", method="knn", start=SCRATCH)
    list(finetune(config))
    compared = compare([read_run(probe[0].out), read_run(config.out)])
    assert [reason.split(":")[0] for reason in compared.reasons] == ["The test set has 2 patients"]
    assert "difference to the first" not in compared.to_markdown()


@pytest.mark.parametrize(
    "stop_after", [pytest.param(1, marks=pytest.mark.slow), 2, pytest.param(3, marks=pytest.mark.slow)]
)
def test_a_run_that_was_stopped_and_resumed_ends_bit_for_bit_as_one_that_was_not(phantom, tmp_path, stop_after):
    whole, stopped = full(phantom, tmp_path / "whole"), full(phantom, tmp_path / "stopped")
    list(finetune(whole))
    running = finetune(stopped)
    for _ in range(1 + stop_after):  # the first record is the seed's start
        next(running)
    running.close()
    if stop_after == 2:  # as if killed after the checkpoint of that step and before its validation was written
        (stopped.out / "seed-0" / "validation.json").unlink()
    list(finetune(stopped))
    weights = [load_model(config.out / "seed-0" / "model").state_dict() for config in (whole, stopped)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    pd.testing.assert_frame_equal(read_run(whole.out).predictions, read_run(stopped.out).predictions)
    assert list(finetune(stopped)) == []


def test_a_run_is_not_overwritten_nor_resumed_with_other_settings(phantom, probe):
    config, _ = probe
    written = (config.out / "report.json").stat().st_mtime_ns
    assert list(finetune(config)) == [], "a finished run is not trained again"
    with pytest.raises(UserError, match=rf"other settings: clips is {config.clips} there, 5 here\."):
        next(finetune(FinetuneConfig(phantom, config.out, method="linear probe", start=SCRATCH, clips=5)))
    with pytest.raises(UserError, match=rf"steps is {config.steps} there, 999 here.*its only test belong to that"):
        next(finetune(replace(config, steps=999)))
    with pytest.raises(UserError, match=r"clips is \d+ there, 5 here; steps is|steps is .*; clips is"):
        next(finetune(replace(config, steps=999, clips=5)))
    assert (config.out / "report.json").stat().st_mtime_ns == written


def test_two_processes_in_a_run_and_a_video_or_a_start_that_was_replaced_are_refused(phantom, tmp_path):
    shutil.copytree(phantom.parent, tmp_path / "data")
    manifest = tmp_path / "data" / phantom.name
    start = SCRATCH.build("label", HeadSpec("multiclass", ("a", "b")), seed=0)
    save_model(start, tmp_path / "start")
    config = FinetuneConfig(manifest, tmp_path / "run", start=Start(str(tmp_path / "start")), steps=4, batch=2)
    running = finetune(config)
    for _ in range(2):
        next(running)
    with pytest.raises(UserError, match="is being worked on by process"):
        next(finetune(config))
    running.close()
    video = next((tmp_path / "data" / "videos").iterdir())
    data, times = bytearray(video.read_bytes()), video.stat()
    video.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    os.utime(video, ns=(times.st_atime_ns, times.st_mtime_ns))
    with pytest.raises(UserError, match=rf"other settings: different files\.videos/{video.name}\."):
        next(finetune(config))
    video.write_bytes(data)
    os.utime(video, ns=(times.st_atime_ns, times.st_mtime_ns))
    with torch.no_grad():
        start.heads["label"].linear.bias += 1
    save_model(start, tmp_path / "start")
    with pytest.raises(UserError, match=r"other settings: different start_weights\."):
        next(finetune(config))


def test_several_seeds_give_mean_and_standard_deviation(phantom, tmp_path):
    config = full(phantom, tmp_path / "run", seeds=(0, 1))
    list(finetune(config))
    report = read_json(config.out / "report.json")
    singles = []
    for seed in (0, 1):
        card = load_model(config.out / f"seed-{seed}" / "model").card
        singles.append({m["name"]: m["value"] for m in card.metrics}["auc"])
    assert report["metrics"]["auc"]["value"] == pytest.approx(np.mean(singles))
    assert report["metrics"]["auc"]["seed_std"] == pytest.approx(np.std(singles, ddof=1))


@pytest.mark.parametrize(("task", "metric"), [("segmentation", "dice"), ("detection", "ap50")])
def test_masks_and_boxes_are_trained_chosen_and_tested(phantom, tmp_path, task, metric):
    config = full(phantom, tmp_path / task, task=task)
    records = list(finetune(config))
    assert [r["step"] for r in records if "validation" in r and "step" in r] == [1, 3]
    run = read_run(config.out)
    assert len(run.predictions) == 4 * TINY.test * TINY.n_frames, "every frame of every test video, once"
    assert not run.predictions["row"].duplicated().any()
    assert metric in records[-1]["test"]
    if task == "detection":
        truth = pd.read_csv(phantom.parent / "boxes.csv")
        videos = set(read_manifest(phantom).rows("test")["video"])
        assert sum(len(b) for b in run.predictions["true_boxes"]) == truth["video"].isin(videos).sum()


def test_several_labels_per_row_are_learned_as_such(phantom, tmp_path):
    changed = edited(phantom, tmp_path, lambda t: t.assign(label=t["label"] + "|" + t["motion"]))
    config = FinetuneConfig(changed, tmp_path / "run", method="linear probe", start=SCRATCH, several_labels=True)
    list(finetune(config))
    columns = list(read_run(config.out).predictions)
    assert {"target_polyp", "target_advancing", "score_polyp", "score_advancing"} <= set(columns)
    with pytest.raises(ManifestError, match=f"{4 * (TINY.train + TINY.val + TINY.test)} rows have several labels"):
        next(finetune(FinetuneConfig(changed, tmp_path / "single", start=SCRATCH)))


def test_a_patient_in_two_splits_is_refused_and_if_accepted_reported(phantom, tmp_path):
    def leak(table):
        rows = table.index[table["split"] == "test"]
        table.loc[rows, "patient"] = table.loc[table["split"] == "train", "patient"].iloc[0]
        return table

    changed = edited(phantom, tmp_path, leak)
    with pytest.raises(ManifestError, match="1 patients or recordings are in more than one split"):
        next(finetune(FinetuneConfig(changed, tmp_path / "refused", start=SCRATCH)))
    assert not (tmp_path / "refused").exists()
    config = FinetuneConfig(
        changed, tmp_path / "accepted", method="linear probe", start=SCRATCH, shared_patients="accept"
    )
    list(finetune(config))
    assert read_run(config.out).audit["findings"]
    assert load_model(config.out / "seed-0" / "model").card.audit.startswith("LEAKAGE")


def test_a_sequence_in_two_splits_is_refused_like_a_patient(phantom, tmp_path):
    def leak(table):
        table = table.assign(patient="", sequence=[f"s{k}" for k in range(len(table))])
        rows = table.index[(table["split"] == "test") | (table.index == table.index[table["split"] == "train"][0])]
        table.loc[rows, "sequence"] = "one operation"
        return table

    with pytest.raises(ManifestError, match="in more than one split: phantom/sequence one operation"):
        next(finetune(FinetuneConfig(edited(phantom, tmp_path, leak), tmp_path / "refused", start=SCRATCH)))


def test_the_frames_of_one_operation_are_tested_as_one_sequence_without_an_interval(phantom, tmp_path):
    def one_operation(table):
        table = table.assign(patient="", sequence=[f"s{k}" for k in range(len(table))])
        table.loc[table["split"] == "test", "sequence"] = "VID75"
        return table

    config = FinetuneConfig(edited(phantom, tmp_path, one_operation), tmp_path / "run", method="knn", start=SCRATCH)
    list(finetune(config))
    report = read_json(config.out / "report.json")
    assert report["unit"] == {"kind": "sequence", "n": 1, "words": "1 sequence; patients unknown"}
    assert all(metric["low"] is metric["high"] is None for metric in report["metrics"].values())


def test_a_class_that_training_never_saw_is_refused_with_the_count(phantom, tmp_path):
    def unseen(table):
        table.loc[(table["split"] == "test") & (table["label"] == "ulcer"), "label"] = "angiectasia"
        return table

    with pytest.raises(
        ManifestError, match=f"{TINY.test} rows of test have a class without training rows: angiectasia"
    ):
        next(finetune(FinetuneConfig(edited(phantom, tmp_path, unseen), tmp_path / "run", start=SCRATCH)))


def test_masks_of_another_size_or_not_binary_are_refused_with_the_count(phantom, tmp_path):
    path = edited(phantom, tmp_path, lambda t: t)
    manifest = read_manifest(path)
    folder = manifest.resolve(manifest.rows("train")["masks"].iloc[0])
    files = sorted(folder.iterdir())
    Image.fromarray(np.full((64, 64), 77, np.uint8)).save(files[0])
    head = Segmentation().head(manifest)
    with pytest.raises(ManifestError, match="1 masks of train are not binary"):
        Segmentation().examples(manifest, "train", head)
    for file in files[:2]:
        Image.fromarray(np.zeros((32, 64), bool)).save(file)
    with pytest.raises(ManifestError, match="2 masks of train differ in size"):
        Segmentation().examples(manifest, "train", head)


def test_masks_that_jpeg_has_blurred_are_refused_by_name_with_the_count(phantom, tmp_path, capsys):
    path = edited(phantom, tmp_path, lambda t: t)
    manifest = read_manifest(path)
    rows = manifest.rows("test")
    folder = manifest.resolve(rows.loc[rows["label"] == "polyp", "masks"].iloc[0])
    shown = [file for file in sorted(folder.iterdir()) if np.asarray(Image.open(file)).any()][:3]
    for file in shown:
        Image.open(file).convert("L").save(file.with_suffix(".jpg"), quality=75)
        file.with_suffix(".jpg").replace(file)  # the names stay in order
    assert main(["finetune", str(path), "--out", str(tmp_path / "run"), "--task", "segmentation"]) == 2
    output = capsys.readouterr().err
    assert "3 masks of test are not binary" in output and shown[0].name in output and folder.name in output
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x2_px": 65.0}, "1 boxes of .* reach outside"),
        ({"x2_px": -1.0}, "1 boxes of .* no area"),
        ({"y1_px": 8.0, "y2_px": 8.0}, "1 boxes of .* no area"),
    ],
)
def test_boxes_outside_or_without_area_are_refused_with_the_count(phantom, tmp_path, change, message):
    path = edited(phantom, tmp_path, lambda t: t)
    boxes = pd.read_csv(tmp_path / "boxes.csv")
    for column, value in change.items():
        boxes.loc[0, column] = value
    boxes.to_csv(tmp_path / "boxes.csv", index=False)
    with pytest.raises(ManifestError, match=message):
        next(finetune(FinetuneConfig(path, tmp_path / "run", task="detection", start=SCRATCH)))


def test_learning_rates_fall_from_the_head_to_the_embeddings_and_every_tensor_is_in_one_group():
    model = SCRATCH.build("label", _two_classes(), seed=0)
    groups = layer_groups(model, 0.5)
    counted = [id(p) for group in groups for p in group["params"]]
    assert sorted(counted) == sorted(id(p) for p in model.parameters())
    scale = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
    rates = {name: scale[id(p)] for name, p in model.named_parameters()}
    assert rates["heads.label.linear.weight"] == rates["backbone.norm.weight"] == 1
    assert rates["backbone.blocks.1.mlp.fc1.weight"] == 0.5
    assert rates["backbone.blocks.0.mlp.fc1.weight"] == 0.25
    assert rates["backbone.pos_embed"] == rates["backbone.patch_embed.proj.weight"] == 0.125


def test_a_frozen_backbone_does_not_learn_and_stays_in_evaluation():
    training = HeadTraining(SCRATCH.build("label", _two_classes(), seed=0), "label", frozen=True).train()
    assert not training.model.backbone.training and training.model.heads.training
    loss = training({"clip": torch.randn(2, 3, 4, 64, 64), "target": torch.tensor([0, 1])}, None, 0)["loss"]
    loss.backward()
    learned = {name for name, p in training.model.named_parameters() if p.grad is not None}
    assert learned == {"heads.label.linear.weight", "heads.label.linear.bias"}


@pytest.mark.parametrize("method", ["ST-Adapter", "attentive probe"])
def test_other_methods_leave_the_backbone_as_it_was_and_a_model_that_loads(phantom, tmp_path, method):
    config = full(phantom, tmp_path / "run", method=method, lr=1e-2)
    list(finetune(config))
    run, model = read_run(config.out), load_model(config.out / "seed-0" / "model")
    assert run.method == method
    adapted = method == "ST-Adapter"
    fresh = SCRATCH.build("label", model.card.heads["label"], seed=0, adapters=adapted)
    before, after = fresh.state_dict(), model.state_dict()
    assert before.keys() == after.keys()
    learned = {name for name in after if not torch.equal(before[name], after[name])}
    assert any(name.startswith("heads.") for name in learned)
    assert any("temporal_adapter" in name for name in learned) == adapted
    assert all(name.startswith("heads.") or "temporal_adapter" in name for name in learned)
    rows = Classification().examples(read_manifest(phantom), "test", model.card.heads["label"])
    scores = clip_scores(model, "label", rows, 1).mean(1)
    written = run.predictions.filter(like="score_").to_numpy()
    np.testing.assert_allclose(scores, written, atol=1e-6)


def test_fresh_adapters_change_nothing_and_trained_ones_mix_neighbouring_frames_only():
    plain = build_backbone("micro", attention="space_only").eval().double()
    adapted = build_backbone("micro", attention="space_only", adapter=16).eval().double()
    adapted.load_state_dict(plain.state_dict(), strict=False)
    clip = torch.randn(1, 3, 6, 64, 64).double()
    torch.testing.assert_close(adapted(clip).patches, plain(clip).patches)
    for p in adapted.parameters():
        p.data += 0.05 * torch.randn_like(p)
    changed = clip.clone()
    changed[:, :, 5] += 1.0
    moved = (adapted(clip).patches - adapted(changed).patches).abs().amax(dim=(0, 2, 3, 4)) > 1e-12
    # two blocks with two adapters each reach four frames
    assert moved.tolist() == [False, True, True, True, True, True]


def test_clips_of_one_frame_from_scratch_have_no_attention_in_time():
    model = Start("scratch", size="micro", n_frames=1).build("label", _two_classes(), 0)
    assert model.backbone.config.attention == "space_only" and model.card.clip.n_frames == 1


@pytest.mark.parametrize("task", ["segmentation", "detection"])
def test_frames_from_memory_are_those_that_were_read(phantom, monkeypatch, task):
    manifest, task = read_manifest(phantom), TASKS[task]()
    head = task.head(manifest)
    model = SCRATCH.build("x", head, seed=0)
    small = replace(model.card.input, size_px=32)
    data = ClipData(task.examples(manifest, "train", head), model.card.clip, small, task)
    first, second = data.collate([data.sample(3, 7)]), data.collate([data.sample(3, 7)])
    monkeypatch.setattr("endofm_lab.tasks.clips.MEMORY", 0)
    unkept = ClipData(data.examples, model.card.clip, small, task)
    for batch in (second, unkept.collate([unkept.sample(3, 7)])):
        assert first.keys() == batch.keys()
        assert all(torch.equal(first[k].nan_to_num(-1.0), batch[k].nan_to_num(-1.0)) for k in first)


def test_boxes_and_masks_of_reduced_frames_still_agree(phantom):
    """The frames are reduced from 64 to 40 px in memory; the box of the mask is the box."""
    manifest = read_manifest(phantom)
    small = replace(SCRATCH.build("x", _two_classes(), seed=0).card.input, size_px=32)
    tasks = [TASKS[name]() for name in ("segmentation", "detection")]
    data = {
        task.name: ClipData(
            task.examples(manifest, "train", task.head(manifest)), ClipSpec(n_frames=2, stride=2), small, task
        )
        for task in tasks
    }
    compared = 0
    for index in range(8):
        mask = data["segmentation"].sample(index, seed=index)["mask"][0] > 0.5
        boxes = data["detection"].sample(index, seed=index)["boxes"]
        for t in range(2):
            if len(boxes[t]) == 1 and mask[t].sum() > 20:
                rows, columns = mask[t].nonzero(as_tuple=True)
                around = torch.tensor([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]) / 32
                np.testing.assert_allclose(boxes[t][0], around.numpy(), atol=2.5 / 32)
                compared += 1
    assert compared >= 5


def test_scratch_needs_a_size_and_other_starts_refuse_one():
    with pytest.raises(UserError, match="for a start from scratch, choose"):
        Start("scratch").build("label", _two_classes(), 0)
    with pytest.raises(UserError, match="has its own"):
        Start("demo", size="tiny").build("label", _two_classes(), 0)


def _two_classes():
    from endofm_lab.model.card import HeadSpec

    return HeadSpec("multiclass", ("a", "b"))


def test_averaged_weights_follow_the_weights_and_are_those_of_the_model(phantom, tmp_path):
    config = full(phantom, tmp_path / "mean", task="segmentation", average=0.5)
    records = list(finetune(config))
    start = config.start.build("mask", HeadSpec("mask", ("lesion",)), seed=0)
    training = HeadTraining(start, "mask", frozen=False, average=0.5)
    name, weight = next((n, p) for n, p in start.named_parameters() if p.ndim > 1)
    before = weight.detach().clone()
    for step in range(3):  # (1 + step) / (10 + step) of the mean stays: 0.1, 2 / 11, 3 / 12
        with torch.no_grad():
            weight.add_(1)
        training.after_step(step)
    expected = [0.0]
    for step in range(3):
        share = min(0.5, (1 + step) / (10 + step))
        expected.append(share * expected[-1] + (1 - share) * (step + 1))
    with training.averaged():
        torch.testing.assert_close(weight.detach() - before, torch.full_like(weight, expected[-1]))
    torch.testing.assert_close(weight.detach() - before, torch.full_like(weight, 3.0))
    second = full(phantom, tmp_path / "plain", task="segmentation")
    plain = list(finetune(second))
    assert [r["loss"] for r in records if "loss" in r] == [r["loss"] for r in plain if "loss" in r]
    models = [load_model(c.out / "seed-0" / "model").state_dict()[name] for c in (config, second)]
    assert not torch.equal(*models)


def test_a_run_with_averaged_weights_that_was_stopped_goes_on_bit_by_bit(phantom, tmp_path):
    whole = full(phantom, tmp_path / "whole", task="segmentation", average=0.5)
    list(finetune(whole))
    config = replace(whole, out=tmp_path / "stopped")
    run = finetune(config)
    for record in run:
        if record.get("step") == 1:
            break
    run.close()
    list(finetune(config))
    a, b = (load_model(c.out / "seed-0" / "model").state_dict() for c in (whole, config))
    assert all(torch.equal(a[name], b[name]) for name in a)
