"""Weights in and out: every layout, strictness, safety, model folders, the hub, inspection."""

import argparse
import json
import pathlib
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from endofm_lab.cli.main import main
from endofm_lab.errors import CheckpointError
from endofm_lab.files import sha256_of
from endofm_lab.model import weight_files
from endofm_lab.model.loading import locate
from endofm_lab.model.loading.formats import config_of
from endofm_lab.model.loading.load import inspect_checkpoint, load_model, load_state, save_model
from endofm_lab.model.transformer import BackboneConfig, VideoTransformer
from endofm_lab.model.video_model import build_model
from endofm_lab.video.clips import ClipSpec
from endofm_lab.video.transforms import IMAGENET
from tests.goldens.weights_from_names import input_for, state_dict_for, tensor_for
from tests.model import weight_layouts as made
from tests.model.weight_layouts import card, saved, write

GOLDENS = pathlib.Path(__file__).parents[1] / "goldens"
CLIP = torch.randn(1, 3, 4, 32, 32, generator=torch.Generator().manual_seed(7))


# --- layouts


@pytest.mark.parametrize("name", made.WRITERS)
def test_every_layout_is_recognised_and_gives_the_backbone_under_our_names(name, tmp_path):
    path, layout = write(name, tmp_path)
    checkpoint = load_state(path)
    assert checkpoint.layout == layout
    config = made.IMAGE_CONFIG if "image" in layout else made.CONFIG
    expected = made.backbone_state(0, config)
    if layout == "segmenter":
        expected = {k: v for k, v in expected.items() if k.startswith(("cls_token", "blocks.", "norm."))}
    else:
        assert config_of(checkpoint) == replace(config, drop_path=0.1)
    assert checkpoint.backbone.keys() == expected.keys()
    for key, tensor in expected.items():
        assert torch.equal(checkpoint.backbone[key], tensor), key
    assert len(checkpoint.backbone) + len(checkpoint.rest) == len(checkpoint.tensors)


@pytest.mark.parametrize("name", ["Endo-FM", "TimeSformer", "PolypDiag", "plain video"])
def test_load_model_computes_what_the_file_was_written_from(name, tmp_path):
    path, layout = write(name, tmp_path)
    rng = torch.random.get_rng_state()
    model = load_model(path)
    assert torch.equal(torch.random.get_rng_state(), rng), "loading must not disturb the caller's random numbers"
    reference = VideoTransformer(made.CONFIG).eval()
    reference.load_state_dict(made.backbone_state())
    with torch.no_grad():
        output, tokens = model(CLIP), reference(CLIP)
    assert not model.training and torch.equal(output.tokens.cls, tokens.cls)
    assert model.card.weights_sha256 == load_state(path).sha256 == model.card.initialisation["sha256"]
    content = torch.load(path, weights_only=False) if path.suffix != ".safetensors" else {}
    if layout == "timesformer":
        weights = content["model_state"]["model.head.weight"], content["model_state"]["model.head.bias"]
        assert torch.allclose(output.logits["action"], tokens.cls @ weights[0].T + weights[1], atol=1e-5)
        assert model.card.input.mean == (0.45, 0.45, 0.45) and model.card.clip == ClipSpec(n_frames=4, stride=32)
    elif layout == "polypdiag":
        weights = content["state_dict"]["module.linear.weight"], content["state_dict"]["module.linear.bias"]
        assert torch.allclose(output.logits["polypdiag"], tokens.cls @ weights[0].T + weights[1], atol=1e-5)
        assert len(model.card.heads["polypdiag"].classes) == 2
    else:
        assert output.logits == {} and model.card.input.mean == IMAGENET.mean


def test_the_teacher_is_taken_and_the_rest_is_named_not_used(tmp_path):
    checkpoint = load_state(made.training_checkpoint(tmp_path / "endo_fm.pth"))
    assert (checkpoint.network, checkpoint.networks) == ("teacher", ("teacher", "student"))
    student = made.backbone_state(1)
    assert not any(torch.equal(checkpoint.backbone[k], student[k]) for k in student)
    assert set(checkpoint.ignored) == {"optimizer", "epoch", "args", "dino_loss", "fp16_scaler"}
    assert checkpoint.settings == {"arch": "vit_base", "data_path": "corpus", "epoch": 29}
    assert "student" in str(inspect_checkpoint(checkpoint.path))


def test_a_file_with_a_student_only_says_so(tmp_path):
    path = made.training_checkpoint(tmp_path / "student.pth", teacher=None)
    assert load_state(path).network == "student"
    assert torch.equal(load_state(path).backbone["cls_token"], made.backbone_state(1)["cls_token"])
    assert "student" in load_model(path).card.initialisation["words"]


def test_the_old_format_of_torch_save_is_read_too(tmp_path):
    path = made.training_checkpoint(tmp_path / "new.pth")
    torch.save(torch.load(path, weights_only=False), tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert torch.equal(load_state(tmp_path / "old.pth").backbone["pos_embed"], made.backbone_state()["pos_embed"])


@pytest.mark.parametrize("name", ["DINO", "DINO full", "timm"])
def test_image_weights_are_an_encoder_of_single_frames_without_a_head(name, tmp_path):
    path = write(name, tmp_path)[0]
    model = load_model(path)
    source = VideoTransformer(made.IMAGE_CONFIG).eval()
    source.load_state_dict(load_state(path).backbone)
    pictures = torch.randn(2, 3, 1, 32, 32)
    with torch.inference_mode():
        assert torch.equal(model.backbone(pictures).cls, source(pictures).cls)
    assert model.card.clip == ClipSpec(n_frames=1, stride=1) and not model.card.heads and not model.training
    assert path.name in model.card.initialisation["words"] and "ImageNet" in model.card.data["description"]
    save_model(model, tmp_path / "kept")
    assert load_model(tmp_path / "kept").card.backbone == model.card.backbone


def released_shapes():
    return json.loads((GOLDENS / "backbone_shapes.json").read_text())


def test_a_file_of_the_released_shapes_is_the_base_model(tmp_path):
    one_number_each = {key: torch.zeros(1).expand(shape) for key, shape in released_shapes().items()}
    tensor = tensor_for("blocks.11.temporal_fc.weight", (768, 768))
    teacher = made.prefixed(one_number_each | {"blocks.11.temporal_fc.weight": tensor}, "backbone.")
    torch.save({"student": made.prefixed(one_number_each, "module.backbone."), "teacher": teacher}, tmp_path / "x.pth")
    model = load_model(tmp_path / "x.pth")
    assert model.backbone.config == BackboneConfig()
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 1) == 121.3
    assert torch.equal(model.backbone.blocks[11].temporal_fc.weight, tensor)


@pytest.mark.parametrize(("name", "n_backbone"), [("segmenter", 243), ("detector", 247)])
def test_files_of_the_released_task_models_are_recognised(name, n_backbone, tmp_path):
    shapes = json.loads((GOLDENS / f"{name}_shapes.json").read_text())
    state = {key: torch.zeros(()).expand(shape) for key, shape in shapes.items()}
    torch.save({"model": state} if name == "detector" else state, tmp_path / "released.pth")
    report = inspect_checkpoint(tmp_path / "released.pth")
    assert report.layout == name and (report.architecture["width"], report.architecture["depth"]) == (768, 12)
    checkpoint = load_state(tmp_path / "released.pth")
    assert len(checkpoint.backbone) == n_backbone and checkpoint.tensors.keys() == shapes.keys()
    assert checkpoint.backbone.keys() <= released_shapes().keys()


@pytest.mark.slow
def test_a_training_checkpoint_of_the_base_model_reproduces_the_released_feature(tmp_path):
    path = tmp_path / "endo_fm.pth"
    teacher = made.prefixed(state_dict_for(released_shapes()), "backbone.")
    torch.save({"teacher": teacher, "args": argparse.Namespace(arch="vit_base")}, path)
    del teacher
    model = load_model(path)
    path.unlink()
    with torch.inference_mode():
        cls = model(input_for("clip_8x224", (1, 3, 8, 224, 224))).tokens.cls
    golden = load_file(GOLDENS / "backbone_clip_8x224.safetensors")["cls"]
    assert (cls - golden).abs().max() < 1e-4


# --- model folders


def test_a_model_folder_gives_back_the_same_model(tmp_path):
    model = saved(tmp_path / "model")
    copy = load_model(tmp_path / "model")
    assert copy.card == model.card and copy.card.fingerprint == model.card.fingerprint
    with torch.inference_mode():
        logits, copy_logits = model(CLIP).logits, copy(CLIP).logits
    assert all(torch.equal(logits[name], copy_logits[name]) for name in ("finding", "area"))
    by_file = load_model(tmp_path / "model" / "model.safetensors")
    assert by_file.card == model.card
    assert sorted(p.name for p in (tmp_path / "model").iterdir()) == ["card.json", "model.safetensors"]


def test_saving_again_replaces_the_model_and_leaves_other_files(tmp_path):
    saved(tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    model = build_model(card(name="second"))
    save_model(model, tmp_path)
    assert load_model(tmp_path).card.name == "second" and (tmp_path / "notes.txt").read_text() == "mine"


def test_a_save_that_fails_leaves_the_model_before(tmp_path, monkeypatch):
    before = saved(tmp_path).card

    def full_disk(*_, **__):
        raise OSError("no space left on device")

    monkeypatch.setattr(weight_files, "save_file", full_disk)
    with pytest.raises(OSError, match="no space"):
        save_model(build_model(card(name="second")), tmp_path)
    assert load_model(tmp_path).card == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["card.json", "model.safetensors"]


def test_weights_that_are_not_those_of_the_card_are_refused(tmp_path):
    saved(tmp_path / "a")
    torch.manual_seed(1)
    save_model(build_model(card()), tmp_path / "b")
    shutil.copy(tmp_path / "b" / "model.safetensors", tmp_path / "a" / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"not the file its card\.json was written for"):
        load_model(tmp_path / "a")


def edited(folder, change):
    """The card of a saved model after somebody edited it."""
    value = json.loads((folder / "card.json").read_text())
    change(value)
    (folder / "card.json").write_text(json.dumps(value))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["heads"]["finding"]["classes"].reverse(), r"heads\.finding\.classes was \[.*now \["),
        (lambda c: c["input"].update(mean=[0.5, 0.5, 0.5]), r"input\.mean was \[0\.485.*now \[0\.5, 0\.5, 0\.5\]"),
        (lambda c: c["clip"].update(stride=4), r"clip\.stride was 2, now 4"),
        (lambda c: c["heads"]["finding"].update(temperature=3.0), r"heads\.finding\.temperature was 1\.5, now 3\.0"),
        (lambda c: c.update(audit="no leakage"), r"audit was absent, now"),
        (lambda c: c.update(weights_sha256=None), "weights_sha256 is missing"),
    ],
)
def test_a_card_that_was_edited_is_refused_and_the_change_is_named(change, message, tmp_path):
    saved(tmp_path)
    edited(tmp_path, change)
    with pytest.raises(CheckpointError, match=rf"was changed after the model was saved: {message}"):
        load_model(tmp_path)
    with pytest.raises(CheckpointError, match="was changed after the model was saved"):
        inspect_checkpoint(tmp_path)


def test_a_model_of_an_older_version_has_no_seal_and_says_so(tmp_path):
    model = saved(tmp_path)
    save_file(load_file(tmp_path / "model.safetensors"), tmp_path / "model.safetensors", metadata={"format": "pt"})
    edited(tmp_path, lambda c: c.update(weights_sha256=sha256_of(tmp_path / "model.safetensors")))
    report = inspect_checkpoint(tmp_path)
    assert report.sealed is False and "not sealed" in str(report)
    copy = load_model(tmp_path)
    save_model(copy, tmp_path)
    report = inspect_checkpoint(tmp_path)
    assert report.sealed is True and "sealed with the weights" in str(report)
    assert load_model(tmp_path).card.heads == model.card.heads


def test_the_demo_is_sealed():
    assert inspect_checkpoint("demo").sealed


@pytest.mark.parametrize("settings", [{"depth": 200, "width": 16384, "heads": 256}, {"depth": 10**9}])
def test_a_card_with_absurd_sizes_is_refused_before_memory_is_taken(settings, tmp_path):
    saved(tmp_path)
    save_file(load_file(tmp_path / "model.safetensors"), tmp_path / "model.safetensors", metadata={"format": "pt"})
    edited(tmp_path, lambda c: (c["backbone"].update(settings), c.update(weights_sha256=None)))
    with pytest.raises(CheckpointError, match=r"but the model wants|depth is 1000000000"):
        load_model(tmp_path)


def test_a_folder_without_card_and_a_broken_card_are_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"folder without card\.json"):
        load_model(tmp_path)
    saved(tmp_path)
    (tmp_path / "card.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"card\.json is not readable JSON"):
        load_model(tmp_path)


def test_the_folder_of_a_run_is_answered_by_the_folder_of_its_model(tmp_path):
    model = save_model(build_model(card()), tmp_path / "run" / "seed-0" / "model")
    with pytest.raises(CheckpointError, match=rf"run is the folder of a run. Give the folder of its model: {model}\."):
        load_model(tmp_path / "run")


def test_a_model_is_not_saved_over_a_file(tmp_path):
    (tmp_path / "model").write_text("")
    with pytest.raises(CheckpointError, match="is a file"):
        save_model(build_model(card()), tmp_path / "model")


# --- names and the hub


@pytest.fixture
def no_hub(monkeypatch):
    def fetch(*_, **__):
        raise AssertionError("the network must not be asked")

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)


@pytest.mark.parametrize("name", ["nowhere", "runs/best/model", "weights/endo_fm.pth", "./a/b", "{}/missing"])
def test_a_missing_local_path_is_no_question_to_the_network(name, no_hub, tmp_path):
    with pytest.raises(CheckpointError, match="There is no such file or folder"):
        load_model(name.format(tmp_path))


@pytest.mark.parametrize("name", ["hf:somebody/endo-fm", "somebody/endo-fm"])
def test_without_a_network_a_hub_id_says_what_to_do(name, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError, match=r"(?s)could not be fetched.*download model\.safetensors.*folder's path"):
        load_model(name)


def test_a_hub_model_is_loaded_like_a_folder(tmp_path, monkeypatch):
    model = saved(tmp_path / "hub")
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda repo, **_: str(tmp_path / repo.split("/")[1]))
    assert load_model("hf:somebody/hub").card == model.card
    (tmp_path / "bare").mkdir()
    with pytest.raises(CheckpointError, match=r"has no model\.safetensors"):
        load_model("hf:somebody/bare")
    made.plain_video(tmp_path / "bare" / "model.safetensors")
    assert load_model("hf:somebody/bare").card.initialisation["source"] == "hf:somebody/bare"


@pytest.mark.parametrize("name", ["hf:", "hf:only", "hf:a/b/c", "hf:../x"])
def test_a_malformed_hub_id_is_refused(name, no_hub):
    with pytest.raises(CheckpointError, match="the form is hf:owner/name"):
        load_model(name)


def test_a_packaged_model_that_is_not_there_says_how_to_make_it(tmp_path, monkeypatch):
    monkeypatch.setattr(locate, "PACKAGE_WEIGHTS", tmp_path)
    with pytest.raises(CheckpointError, match="endofm-lab demo train"):
        load_model("demo")
    saved(tmp_path / "demo")
    assert load_model("demo").card.name == "tested"


# --- inspection


@pytest.mark.parametrize("name", made.WRITERS)
def test_inspection_describes_every_layout(name, tmp_path):
    path, layout = write(name, tmp_path)
    report = inspect_checkpoint(path)
    assert report.layout == layout and report.size_bytes == path.stat().st_size and len(report.sha256) == 64
    assert report.architecture["width"] == 128 and report.architecture["depth"] == 2
    assert report.backbone_parameters == sum(t.numel() for t in load_state(path).backbone.values())
    assert json.loads(json.dumps(report.to_json()))["layout"] == layout
    assert bool(report.problems) == (layout == "segmenter")
    names = ("pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias", "time_embed")
    assert report.missing == (names if layout == "segmenter" else ()) and report.unexpected == ()


def test_inspection_of_a_model_folder_shows_its_card(tmp_path):
    saved(tmp_path)
    report = inspect_checkpoint(tmp_path)
    assert report.layout == "own" and not report.problems and "0.485" in report.normalisation
    assert report.initialisation.startswith("Random")


def test_the_command_prints_the_report_or_one_sentence(tmp_path, capsys):
    path, _ = write("Endo-FM", tmp_path)
    assert main(["inspect", str(path)]) == 0
    text = capsys.readouterr().out
    assert "teacher (the file also has: student)" in text and "width 128" in text and load_state(path).sha256 in text
    assert main(["inspect", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["network"] == "teacher"
    assert main(["inspect", str(tmp_path / "missing.pth")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("Error: ") and error.count("\n") == 1


def test_reading_leaves_the_file_as_it_was(tmp_path):
    path, _ = write("Endo-FM", tmp_path)
    before = path.read_bytes()
    model = load_model(path)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(3.0)
    assert path.read_bytes() == before
