"""Where a fine-tuning starts: image models of timm beside video transformers, and what is refused."""

from dataclasses import replace

import pytest
import torch

import endofm_lab as lab
from endofm_lab.cli.main import main
from endofm_lab.errors import CheckpointError, UserError
from endofm_lab.finetuning.config import FinetuneConfig
from endofm_lab.finetuning.finetune import finetune
from endofm_lab.finetuning.fitting import HeadTraining, layer_groups
from endofm_lab.finetuning.start import Start
from endofm_lab.model.card import HeadSpec
from endofm_lab.model.paper.hybrid import HybridTransformer
from endofm_lab.model.transformer import build_backbone
from endofm_lab.model.video_model import build_frame_model, model_on
from endofm_lab.runs.run import read_run

LABEL = HeadSpec("multiclass", ("normal", "polyp"))


@pytest.fixture(scope="module")
def phantom(tmp_path_factory):
    return lab.write_phantom(tmp_path_factory.mktemp("phantom"), preset="tiny", progress=False)


@pytest.fixture(scope="module")
def frame_model(tmp_path_factory):
    torch.manual_seed(3)
    return lab.save_model(build_frame_model("vit_micro"), tmp_path_factory.mktemp("model") / "frames")


@pytest.mark.parametrize("name", ["eva02_micro", "vit_micro", "dinov3_micro", "convnext_micro"])
def test_the_layers_of_an_image_model_hold_every_parameter_once_and_learn_faster_upwards(name):
    model = build_frame_model(name, {"label": LABEL})
    groups = layer_groups(model, 0.5)
    scale = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
    assert sorted(id(p) for group in groups for p in group["params"]) == sorted(id(p) for p in model.parameters())
    rates = {name: scale[id(p)] for name, p in model.named_parameters()}
    assert rates["heads.label.linear.weight"] == 1
    of_blocks = [value for name, value in rates.items() if "blocks." in name]
    assert max(of_blocks) == 0.5 and of_blocks == sorted(of_blocks)
    embedding = "stem" if name.startswith("convnext") else "patch_embed"
    assert all(value == min(rates.values()) for name, value in rates.items() if embedding in name)


def test_an_image_model_is_fine_tuned_from_the_command_line_frame_by_frame(phantom, frame_model, tmp_path, capsys):
    options = ["--steps", "2", "--batch", "2", "--clips", "1"]
    assert main(["finetune", str(phantom), "--out", str(tmp_path / "run"), "--start", str(frame_model), *options]) == 0
    assert "tensors come from vit_tiny_patch16_224" in capsys.readouterr().out
    tuned = lab.load_model(tmp_path / "run" / "seed-0" / "model")
    assert tuned.card.backbone["kind"] == "timm" and tuned.card.clip == lab.ClipSpec(n_frames=1, stride=1)
    before = lab.load_model(frame_model).backbone.state_dict()
    assert not torch.equal(before["net.norm.weight"], tuned.backbone.state_dict()["net.norm.weight"])


@pytest.mark.parametrize(
    ("task", "method"),
    [("classification", "attentive probe"), ("segmentation", "full"), ("detection", "frozen"), ("phases", "full")],
)
def test_an_image_model_takes_part_in_every_task(phantom, frame_model, tmp_path, task, method):
    start = Start(str(frame_model), n_frames=2, stride=1)
    config = FinetuneConfig(phantom, tmp_path / "run", task=task, method=method, start=start, steps=1, batch=2)
    records = list(finetune(config))
    assert records[-1]["test"] and read_run(config.out).seeds == (0,)
    assert lab.load_model(config.out / "seed-0" / "model").card.clip.n_frames == 2


def test_a_new_head_starts_on_the_weights_of_the_source_and_other_sizes_are_resized(frame_model):
    source = lab.load_model(frame_model).backbone.state_dict()
    model = Start(str(frame_model)).build("label", LABEL, seed=0)
    assert all(torch.equal(tensor, source[name]) for name, tensor in model.backbone.state_dict().items())
    larger = Start(str(frame_model), image_px=96).build("label", LABEL, seed=0)
    assert larger.card.input.size_px == 96 and larger.card.initialisation["resized"][0]["key"] == "net.pos_embed"
    assert larger.predict(torch.randn(1, 3, 2, 96, 96))["label"].shape == (1, 2)


def test_an_image_model_starts_from_scratch_or_from_a_file_of_its_weights(tmp_path):
    fresh = Start("scratch", size="timm:eva02_micro").build("label", LABEL, seed=0)
    assert fresh.card.backbone["kind"] == "timm" and "Random" in fresh.card.initialisation["words"]
    path = tmp_path / "weights.pth"
    torch.save(fresh.backbone.net.state_dict(), path)
    read = Start(str(path), size="timm:eva02_micro").build("label", LABEL, seed=1)
    assert read.card.initialisation["words"].startswith("weights.pth: all")
    assert all(torch.equal(a, b) for a, b in zip(read.backbone.parameters(), fresh.backbone.parameters(), strict=True))


def test_a_model_with_a_convolutional_stem_is_a_start_for_light_heads(tmp_path):
    torch.manual_seed(0)
    stem = HybridTransformer.around(build_backbone("micro"), stem_width=32, stem_units=(1, 1, 1))
    folder = lab.save_model(model_on(stem, {}, "hybrid"), tmp_path / "hybrid")
    model = Start(str(folder)).build("mask", HeadSpec("mask", ("lesion",)), seed=0)
    assert model.card.backbone["kind"] == "hybrid_transformer"
    assert all(torch.equal(a, b) for a, b in zip(model.backbone.parameters(), stem.parameters(), strict=True))
    loss = HeadTraining(model, "mask", frozen=False)(
        {"clip": torch.randn(1, 3, 2, 64, 64), "mask": torch.zeros(1, 1, 2, 64, 64)}, None, 0
    )["loss"]
    loss.backward()
    assert model.backbone.stem.conv.weight.grad.abs().max() > 0


def test_what_does_not_go_with_an_image_model_is_refused_in_a_sentence(frame_model):
    start = Start(str(frame_model))
    with pytest.raises(UserError, match=r"kind 'timm', but adapters and a transunet's stem need"):
        start.build("label", LABEL, seed=0, adapters=True)
    with pytest.raises(UserError, match=r"kind 'timm', but adapters and a transunet's stem need"):
        start.build("mask", HeadSpec("mask", ("lesion",), form="transunet"), seed=0)
    with pytest.raises(CheckpointError, match="this is a model of single frames"):
        start.build("box", HeadSpec("box", ("polyp",), form="stft"), seed=0)
    with pytest.raises(UserError, match="has its own"):
        replace(start, size="micro").build("label", LABEL, seed=0)
    with pytest.raises(UserError, match="no image model 'nothing'"):
        Start("scratch", size="timm:nothing").build("label", LABEL, seed=0)
