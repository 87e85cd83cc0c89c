"""Video models of torchvision as encoders: the tokens before their classifier, read from files of torchvision."""

from dataclasses import replace

import pandas as pd
import pytest
import torch

import endofm_lab as lab
from endofm_lab.errors import CheckpointError, UserError
from endofm_lab.explain.attention import look
from endofm_lab.finetuning.fitting import layer_groups
from endofm_lab.finetuning.start import Start
from endofm_lab.model.adapters import add_low_rank
from endofm_lab.model.others.torchvision_video import ARCHITECTURES, TorchvisionConfig, TorchvisionVideo
from endofm_lab.runs.run import read_run

MICRO = [name for name in ARCHITECTURES if name.endswith("micro")]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A file of every small model as torchvision's users save it, and the models with their classifiers."""
    folder, made = tmp_path_factory.mktemp("torchvision"), {}
    for name in MICRO:
        torch.manual_seed(0)
        net = ARCHITECTURES[name].build().eval()
        torch.save(net.state_dict(), folder / f"{name}.pth")
        made[name] = folder / f"{name}.pth", net
    return made


def clip_for(name, batch=2):
    known = ARCHITECTURES[name]
    return torch.randn(batch, 3, known.frames, known.image_px, known.image_px)


@torch.inference_mode()
@pytest.mark.parametrize("name", MICRO)
def test_the_classifier_of_torchvision_reads_the_tokens_at_their_place_and_time(files, name):
    path, net = files[name]
    model, clip, known = lab.load_model(path), clip_for(name), ARCHITECTURES[name]
    tokens = model.backbone(clip)
    side = known.image_px // known.patch_px
    assert tokens.patches.shape == (2, known.frames // known.n, side, side, known.width)
    assert (tokens.cls is not None) == known.has_cls and tokens.frames_per_token == known.n
    torch.testing.assert_close(getattr(net, known.classifier)(tokens.pooled()), net(clip))
    changed = clip.clone()
    changed[:, :, -known.n :, -known.patch_px :, : known.patch_px] += 20  # last moment, last row, first column
    moved = (model.backbone(changed).patches - tokens.patches).norm(dim=-1)[0]
    at = (known.frames // known.n - 1, side - 1, 0)
    assert [int(i) for i in torch.unravel_index(moved.argmax(), moved.shape)] == list(at)


def test_grids_of_the_published_models_are_as_the_table_says():
    for name in ARCHITECTURES:
        known, config = ARCHITECTURES[name], TorchvisionConfig(name)
        with torch.device("meta"):
            tokens = TorchvisionVideo(config).eval()(clip_for(name, batch=1))
        side = config.image_px // config.patch_px
        assert tokens.patches.shape == (1, config.frames // known.n, side, side, config.width), name


@pytest.mark.parametrize("name", MICRO)
def test_files_are_recognised_by_their_tensors_and_nothing_else_is_taken(files, tmp_path, name):
    path, net = files[name]
    model, report = lab.load_model(path), lab.inspect_checkpoint(path)
    words, n = model.card.initialisation["words"], len(model.backbone.state_dict())
    assert words.startswith(f"{n} of the backbone's {n} tensors come from {name} (video model of torchvision)")
    assert len(model.card.initialisation["not_taken"]) == 2 and model.card.backbone["architecture"] == name
    assert report.layout == "torchvision" and not report.problems and "published weights of" in report.normalisation
    damaged = {key: tensor for key, tensor in net.state_dict().items() if "norm" not in key and "bn" not in key}
    torch.save(dict(list(damaged.items())[:-3]), tmp_path / "damaged.pth")
    with pytest.raises(CheckpointError):
        lab.load_model(tmp_path / "damaged.pth")


@pytest.mark.parametrize("name", MICRO)
def test_every_parameter_is_in_one_layer_and_gets_a_gradient(files, name):
    model = lab.load_model(files[name][0])
    layers = [id(p) for layer in model.backbone.layers() for p in layer.parameters()]
    assert sorted(layers) == sorted(id(p) for p in model.backbone.parameters())
    assert sum(len(group["params"]) for group in layer_groups(model, 0.5)) == len(layers)
    tokens = model.backbone(clip_for(name))
    (tokens.patches.square().sum() + tokens.pooled().square().sum()).backward()
    assert all(p.grad is not None for p in model.backbone.parameters())


@pytest.mark.parametrize(
    ("name", "task", "method"),
    [
        ("mvit_micro", "classification", "LoRA"),
        ("swin3d_micro", "segmentation", "full"),
        pytest.param("swin3d_micro", "classification", "LoRA", marks=pytest.mark.slow),
        pytest.param("r3d_micro", "detection", "full", marks=pytest.mark.slow),
        pytest.param("r3d_micro", "classification", "frozen", marks=pytest.mark.slow),
    ],
)
def test_it_is_fine_tuned_saved_and_read_again(files, phantom, tmp_path, name, task, method):
    start = Start(str(files[name][0]), image_px=32 if name == "r3d_micro" else None)
    config = lab.FinetuneConfig(
        phantom, tmp_path / "run", task=task, method=method, start=start, steps=2, batch=2, validate_every=2, clips=1
    )
    records = list(lab.finetune(config))
    assert f"come from {name} (video model of torchvision)" in records[0]["initialisation"] and records[-1]["test"]
    folder = config.out / "seed-0" / "model"
    trained = lab.load_model(folder)
    assert isinstance(trained.backbone, TorchvisionVideo) and len(trained.card.heads) == 1
    if task == "classification":
        again = lab.evaluate(folder, phantom, tmp_path / "again", clips=1).predictions
        pd.testing.assert_frame_equal(again, read_run(config.out).predictions, atol=1e-6)


def test_random_weights_start_by_name_and_what_cannot_be_is_refused_in_a_sentence(files):
    head = lab.HeadSpec("multiclass", ("a", "b"))
    start = Start("scratch", size="torchvision:swin3d_micro", image_px=48, n_frames=6)
    model = start.build("label", head, seed=0)
    assert model.backbone(torch.randn(1, 3, 6, 48, 48)).patches.shape == (1, 3, 6, 6, 32)
    assert "Random" in model.card.initialisation["words"] and model.card.input.size_px == 48
    for changes, message in (
        ({"size": "torchvision:x3d"}, "architecture is 'x3d'"),
        ({"n_frames": 5}, r"5 frames of 48 px; swin3d_micro takes multiples of 2 frames"),
        ({"size": "torchvision:mvit_micro"}, r"mvit_micro takes 4 frames of 32 px only"),
        ({"source": "torchvision:swin3d_t", "size": None}, r"Weights of torchvision are not fetched"),
    ):
        with pytest.raises((UserError, CheckpointError), match=message):
            replace(start, **changes).build("label", head, seed=0)
    with pytest.raises(UserError, match=r"'torchvision' has no attention"):
        look(model, torch.randn(1, 3, 6, 48, 48))
    with pytest.raises(UserError, match=r"has no linear maps .* so LoRA has nothing to change"):
        add_low_rank(lab.load_model(files["r3d_micro"][0]).backbone, rank=4, alpha=8)
