"""Runs: learn, resume bit for bit, save a model that says what it is, refuse what cannot go on."""

import json
import os
import shutil

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

import endofm_lab as lab
from endofm_lab.cli.main import main
from endofm_lab.data.manifest import write_manifest
from endofm_lab.errors import ManifestError, UserError
from endofm_lab.files import read_json
from endofm_lab.pretraining.config import PRESETS, from_json, stored_settings, to_json, with_settings
from endofm_lab.pretraining.corpus import Mixture
from endofm_lab.pretraining.features import FeatureConfig
from endofm_lab.pretraining.trainer import pretrain, resume, run_config
from endofm_lab.reports.pretraining import REFERENCE, health_of, reference_for, report_run
from endofm_lab.training.checkpoints import Checkpoints
from endofm_lab.training.loop import read_log
from tests.pretraining.runs import SETTINGS, losses, micro


@pytest.mark.parametrize("objective", ["dino", "masked", "vcl"])
def test_a_run_killed_and_resumed_has_the_losses_of_the_whole(manifest, tmp_path, objective):
    whole = losses(lab.pretrain(micro(manifest, tmp_path / "whole", objective=objective)))
    assert len(set(whole)) == 6
    run = pretrain(micro(manifest, tmp_path / "cut", objective=objective))
    for _ in range(3):
        next(run)
    shutil.copytree(tmp_path / "cut", tmp_path / "killed")
    run.close()
    assert losses(resume(tmp_path / "killed")) == whole[2:]
    assert losses(resume(tmp_path / "cut")) == whole[3:]
    assert losses(read_log(tmp_path / "killed" / "log.jsonl")) == whole


def test_the_public_name_is_the_function_however_often_it_is_asked_for(manifest, tmp_path):
    for n in range(2):
        assert next(lab.pretrain(micro(manifest, tmp_path / str(n))))["step"] == 0


def test_a_finished_run_leaves_a_model_that_says_what_it_is(manifest, tmp_path):
    config = micro(manifest, tmp_path / "run", probe=manifest, probe_every=3)
    records = list(pretrain(config))
    assert records[2]["knn"] >= 0 and records[-1]["rankme"] >= 1 and "knn" not in records[1]
    model = lab.load_model(tmp_path / "run" / "model")
    card = model.card
    assert card.initialisation["words"].startswith("Random")
    assert card.data["fingerprint"] == lab.read_manifest(manifest).fingerprint and card.data["generated"]
    assert card.audit and card.input.size_px == 32
    assert {m["name"].split(", ")[-1] for m in card.metrics} == {"untrained", "trained"}
    assert model.backbone(torch.zeros(1, 3, 2, 32, 32)).cls.shape == (1, 32)


def test_a_run_starts_from_the_model_of_another_and_says_so(manifest, tmp_path):
    list(pretrain(micro(manifest, tmp_path / "first", steps=2)))
    start = str(tmp_path / "first" / "model")
    list(pretrain(micro(manifest, tmp_path / "second", steps=2, initialisation=start)))
    words = read_json(tmp_path / "second" / "config.json")["initialisation"]["words"]
    assert "tensors come from dino pre-training" in words


def test_a_folder_with_another_run_is_refused(manifest, tmp_path):
    next(pretrain(micro(manifest, tmp_path)))
    with pytest.raises(UserError, match=r"other settings: config.batch is 4 there, 2 here; config.seed is 0 there, 3"):
        next(pretrain(micro(manifest, tmp_path, seed=3, batch=2)))
    with pytest.raises(UserError, match="no pre-training run"):
        run_config(tmp_path / "nothing")


def test_several_manifests_are_mixed_by_weight_and_resumed_exactly(manifest, tmp_path, monkeypatch):
    table = lab.read_manifest(manifest).table
    second = manifest.with_name("second.csv")
    write_manifest(table[table["label"] == "polyp"].assign(dataset="other"), second)
    draws = []
    monkeypatch.setattr(
        Mixture, "name", lambda self, index: draws.append(self._of(index)[0].manifest.path.name) or f"{index}"
    )
    settings = {"others": (second,), "weights": (3.0, 1.0)}
    whole = losses(pretrain(micro(manifest, tmp_path / "whole", **settings)))
    assert draws.count("manifest.csv") == 18 and draws.count("second.csv") == 6
    run = pretrain(micro(manifest, tmp_path / "cut", **settings))
    for _ in range(3):
        next(run)
    run.close()
    assert losses(resume(tmp_path / "cut")) == whole[3:]
    described = read_json(tmp_path / "cut" / "config.json")
    assert [(part["n_clips"], part["share"]) for part in described["manifests"]] == [(8, 0.75), (4, 0.25)]
    report_run(tmp_path / "cut")
    assert "75.0% of the training clips: manifest.csv (8 clips)" in (tmp_path / "cut" / "report.html").read_text(
        "utf-8"
    )
    with pytest.raises(UserError, match=r"config.weights is \[3.0, 1.0\] there, \[1.0, 1.0\] here"):
        next(pretrain(micro(manifest, tmp_path / "cut", others=(second,), weights=(1.0, 1.0))))
    write_manifest(table[table["label"] == "normal"], second)
    with pytest.raises(UserError, match="different manifest_2"):
        next(pretrain(micro(manifest, tmp_path / "cut", **settings)))
    second.unlink()


@pytest.mark.parametrize(
    ("weights", "sentence"), [((1.0,), "1 weights for 2 manifests"), ((1.0, 0.0), "weight of a manifest is 0.0")]
)
def test_weights_that_do_not_fit_are_refused(manifest, tmp_path, weights, sentence):
    with pytest.raises(UserError, match=sentence):
        micro(manifest, tmp_path, others=(manifest,), weights=weights)


def test_a_second_process_is_refused_while_a_run_goes_on(manifest, tmp_path):
    run = pretrain(micro(manifest, tmp_path))
    next(run)
    with pytest.raises(UserError, match=r"is being worked on by process \d+ here since"):
        next(pretrain(micro(manifest, tmp_path)))
    assert [record["step"] for record in run] == [1, 2, 3, 4, 5]
    assert [record["step"] for record in read_log(tmp_path / "log.jsonl")] == list(range(6))


def test_a_manifest_that_changed_is_refused(manifest, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(manifest.parent, data)
    list(pretrain(micro(data / manifest.name, tmp_path / "run", steps=2)))
    table = pd.read_csv(data / manifest.name)
    write_manifest(table[table.index != 1], data / manifest.name)
    with pytest.raises(UserError, match=r"other settings: different manifest\."):
        next(resume(tmp_path / "run"))


def test_a_run_does_not_go_on_after_a_video_was_replaced_and_names_it(manifest, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(manifest.parent, data)
    path = data / manifest.name
    next(pretrain(micro(path, tmp_path / "run", probe=path)))
    content = (data / "1_polyp.mkv").read_bytes()
    times = (data / "1_polyp.mkv").stat()
    (data / "1_polyp.mkv").write_bytes((data / "1_normal.mkv").read_bytes())
    with pytest.raises(UserError, match=r"other settings: different videos\.1_polyp\.mkv; different probe_videos"):
        next(resume(tmp_path / "run"))
    (data / "1_polyp.mkv").write_bytes(content)
    os.utime(data / "1_polyp.mkv", ns=(times.st_atime_ns, times.st_mtime_ns))
    assert next(resume(tmp_path / "run"))["step"] == 1
    table = pd.read_csv(path)
    write_manifest(table.assign(label=table["label"].to_numpy()[::-1]), data / "probe.csv")
    next(pretrain(micro(path, tmp_path / "probed", probe=data / "probe.csv")))
    write_manifest(table, data / "probe.csv")
    with pytest.raises(UserError, match="different probe"):
        next(resume(tmp_path / "probed"))


def test_a_run_does_not_go_on_after_its_start_or_its_teacher_was_replaced(manifest, tmp_path):
    for name, seed in (("first", 0), ("other", 1)):
        list(pretrain(micro(manifest, tmp_path / name, steps=1, seed=seed)))
    weights, replacement = tmp_path / "first" / "model", tmp_path / "other" / "model"
    started = micro(manifest, tmp_path / "started", initialisation=str(weights))
    taught = micro(
        manifest, tmp_path / "taught", objective="features", features=FeatureConfig(teacher=str(weights), share=0.5)
    )
    for config in (started, taught):
        next(pretrain(config))
    shutil.rmtree(weights)
    assert next(pretrain(started))["step"] == 1  # the checkpoint has the weights
    shutil.copytree(replacement, weights)
    for config, setting in ((started, "start_weights"), (taught, "teacher_weights")):
        with pytest.raises(UserError, match=f"different {setting}"):
            next(pretrain(config))


def test_missing_files_are_listed_before_the_run_begins(manifest, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(manifest.parent, data)
    (data / "1_polyp.mkv").unlink()
    with pytest.raises(ManifestError, match=r"1 of 8 files are missing: 1_polyp\.mkv"):
        next(pretrain(micro(data / manifest.name, tmp_path / "run")))


def test_held_out_rows_are_not_learned_from(manifest, tmp_path):
    next(pretrain(micro(manifest, tmp_path)))
    assert read_json(tmp_path / "config.json")["n_clips"] == 8
    next(pretrain(micro(manifest, tmp_path / "val", split="val")))
    assert read_json(tmp_path / "val" / "config.json")["n_clips"] == 4


def test_an_unreadable_video_is_in_the_report(manifest, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(manifest.parent, data)
    table = pd.read_csv(data / manifest.name)
    (data / "0_polyp.mkv").write_bytes(b"no video")
    fine = table[table["video"] == "1_polyp.mkv"]
    for n in range(100):  # a hundred readable files beside the broken one
        (data / f"copy{n}.mkv").symlink_to(data / "1_polyp.mkv")
    copies = pd.concat([fine.assign(video=f"copy{n}.mkv") for n in range(100)])
    broken = table[table["video"] == "0_polyp.mkv"]
    write_manifest(pd.concat([copies, broken]), data / "many.csv")
    records = list(pretrain(micro(data / "many.csv", tmp_path / "run", steps=26)))
    assert records[-1]["left_out"] == 1
    report_run(tmp_path / "run")
    assert "0_polyp.mkv" in (tmp_path / "run" / "report.html").read_text()
    assert list(read_json(tmp_path / "run" / "report.json")["left_out"]) == ["0_polyp.mkv"]


@pytest.mark.parametrize("preset", list(PRESETS))
def test_configurations_survive_json(tmp_path, preset):
    config = PRESETS[preset](tmp_path / "m.csv", tmp_path / "run")
    assert from_json(json.loads(json.dumps(to_json(config)))) == config


def test_any_setting_can_be_changed_by_its_name(tmp_path):
    config = PRESETS["endo-fm"](tmp_path / "m.csv", tmp_path)
    changed = with_settings(config, {"views.global_px": 112, "batch": 4, "dino.momentum": 1, "steps": 7})
    assert (changed.views.global_px, changed.batch, changed.dino.momentum, changed.steps) == (112, 4, 1.0, 7)
    assert with_settings(config, {"backbone": "small"}).backbone.width == 384
    for wrong in ({"backbone": "huge"}, {"views.globl_px": 1}, {"batches": 1}, {"batch": "many"}, {"views.flip": True}):
        with pytest.raises(UserError):
            with_settings(config, wrong)


def test_the_default_preset_is_the_published_recipe(tmp_path):
    config = PRESETS["endo-fm"](tmp_path / "m.csv", tmp_path)
    assert (config.epochs, config.batch, config.warmup_epochs, config.clip) == (30, 12, 10, 3.0)
    assert config.lr * config.batch / 256 == pytest.approx(2.34375e-5)
    assert config.n_steps(32_896) == 30 * 2741 and config.dino.prototypes == 65_536
    assert config.backbone.width == 768 and len(config.views.local_frames) == 8


def test_the_command_runs_reports_and_resumes(manifest, tmp_path, capsys):
    out = tmp_path / "run"
    assert main(["pretrain", str(manifest), "--out", str(out), *SETTINGS]) == 0
    output = capsys.readouterr().out
    assert "Report:" in output and "Health: too early to say" in output
    assert {p.name for p in out.iterdir()} >= {"report.html", "report.json", "model", "log.jsonl", "checkpoints"}
    assert len(read_log(out / "log.jsonl")) == 8
    assert main(["pretrain", str(out)]) == 0
    assert main(["pretrain", str(tmp_path / "none")]) == 2
    assert main(["pretrain"]) == 2


def test_a_dry_run_prints_the_plan_and_writes_nothing(manifest, tmp_path, capsys):
    out = tmp_path / "run"
    assert main(["pretrain", str(manifest), "--out", str(out), *SETTINGS, "--dry-run"]) == 0
    output = capsys.readouterr().out
    assert '"global_px": 32' in output and "8 steps, 2 per epoch, 4 clips each" in output
    assert "GB at the peak" in output and "s per step (median of 8)" in output
    assert not out.exists()


def test_what_a_fresh_network_says_depends_on_the_clip(manifest, tmp_path):
    """CLS and its position start at zero: nothing in the feature is the same for every clip but what clips share."""
    running = pretrain(micro(manifest, tmp_path, lr=1e-9, lr_end=1e-9))
    next(running)
    running.close()
    weights = load_file(Checkpoints(tmp_path / "checkpoints").all()[-1] / "model.safetensors")
    assert float(weights["teacher.backbone.cls_token"].abs().max()) < 1e-6
    assert float(weights["teacher.backbone.pos_embed"][:, 0].abs().max()) < 1e-6
    assert float(weights["teacher.backbone.pos_embed"][:, 1:].std()) > 0.01


def test_the_shipped_log_is_a_healthy_run_of_the_preset_and_is_drawn_behind_its_like(manifest, tmp_path):
    assert health_of(REFERENCE).state == "healthy"
    shipped = stored_settings(read_json(REFERENCE / "config.json")["config"])
    settings = json.loads(json.dumps(to_json(PRESETS["tiny"](manifest, tmp_path))))
    excluded = {"manifest", "out", "probe", "precision"}  # of the machine
    assert {name: shipped[name] for name in shipped.keys() - excluded} == {
        name: settings[name] for name in settings.keys() - excluded
    }
    log = reference_for(settings)
    assert len(log) == shipped["steps"] and log[-1]["loss"] < 0.8 * log[30]["loss"]
    assert reference_for(settings | {"objective": "dino"}) == [] == reference_for(settings | {"batch": 8})
