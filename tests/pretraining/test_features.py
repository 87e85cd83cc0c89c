"""Features of a frozen teacher, and image models as what learns: masks, the loss, runs, resume, what is refused."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import endofm_lab as lab
from endofm_lab.cli.main import main
from endofm_lab.data.manifest import write_manifest
from endofm_lab.errors import UserError
from endofm_lab.files import read_json
from endofm_lab.model.frame import FrameBackbone, build_frame_backbone, frame_input
from endofm_lab.model.loading.load import save_model
from endofm_lab.model.transformer import build_backbone
from endofm_lab.model.video_model import build_frame_model, model_on
from endofm_lab.pretraining.features import FeatureConfig, Features
from endofm_lab.pretraining.masked import block_mask
from endofm_lab.pretraining.trainer import pretrain, resume
from endofm_lab.pretraining.vicreg import VicregConfig
from endofm_lab.pretraining.views import ViewSpec
from endofm_lab.reports.pretraining import health_of, report_run
from tests.pretraining.runs import micro

COLOURS = {"normal": (190, 120, 90), "polyp": (120, 190, 90), "ulcer": (90, 90, 200)}
STILLS = ViewSpec(
    clip_s=0.1, global_frames=(1, 1), local_frames=(), global_shift=0, global_px=56, local_px=56, jitter=0.0, grey=0.0
)  # fmt: skip


@pytest.fixture(scope="module")
def stills(tmp_path_factory):
    """Pictures whose class is their colour: a manifest without any video."""
    root, random, rows = tmp_path_factory.mktemp("stills"), np.random.default_rng(0), []
    for split in ("train", "val"):
        for n in range(12):
            label = list(COLOURS)[n % 3]
            noise = random.integers(-40, 40, (9, 9, 3)).repeat(8, axis=0).repeat(8, axis=1)
            name = f"{split}_{n}.png"
            Image.fromarray((np.array(COLOURS[label]) + noise).clip(0, 255).astype(np.uint8)).save(root / name)
            rows.append((name, 0.0, 0.0, label, f"{split}{n // 3}", "made", split))
    columns = ["video", "start_s", "end_s", "label", "patient", "dataset", "split"]
    write_manifest(pd.DataFrame(rows, columns=columns), root / "manifest.csv")
    return root / "manifest.csv"


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """The folder of an image model with other pictures and other patches than the student's."""
    torch.manual_seed(1)
    path = tmp_path_factory.mktemp("models") / "teacher"
    save_model(build_frame_model("dinov3_micro"), path)
    return path


def image_run(stills, out, teacher, **settings):
    config = micro(stills, out, objective="features", image_model="eva02_micro", views=STILLS)
    config = replace(config, features=FeatureConfig(str(teacher)), lr=0.1, weight_decay=(0.0, 0.0), lr_end=1e-3)
    return replace(config, **settings)


@pytest.mark.parametrize("share", [0.1, 0.4, 0.75])
def test_block_masks_cover_exactly_their_share_in_blocks(share):
    torch.manual_seed(0)
    masks = block_mask(512, 14, share)
    assert (masks.flatten(1).sum(1) == round(share * 196)).all()
    neighbours = F.conv2d(masks[:, None].float(), torch.ones(1, 1, 3, 3), padding=1)[:, 0][masks]
    assert (neighbours == 1).float().mean() < 0.05  # hardly a masked patch without a masked neighbour
    assert masks.any(0).all()  # every place is masked now and then


@pytest.mark.parametrize("T", [1, 2])
def test_the_loss_is_the_cosine_to_the_teacher_at_hidden_patches_only(T):
    torch.manual_seed(0)
    student, _ = build_frame_backbone("eva02_micro")
    teacher, _ = build_frame_backbone("dinov2_micro")
    inputs = frame_input(student.config), frame_input(teacher.config)
    module = Features(student, teacher, *inputs, share=0.4).eval()
    views = [torch.randn(2, 3, T, 56, 56), torch.randn(2, 3, T, 56, 56)]
    expected = []
    for part, frames in enumerate(views):
        torch.manual_seed(5 + part)
        mask = block_mask(2, 4, 0.4)
        hidden = frames.clone()
        for b, y, x in mask.nonzero().tolist():
            hidden[b, :, :, 14 * y : 14 * y + 14, 14 * x : 14 * x + 14] = module.mask_pixels[:, None]
        predicted = module.project(student(hidden).patches)
        mean, std = (torch.tensor(v)[:, None, None, None] for v in (inputs[0].mean, inputs[0].std))
        to_mean, to_std = (torch.tensor(v)[:, None, None, None] for v in (inputs[1].mean, inputs[1].std))
        target = teacher((frames * std + mean - to_mean) / to_std).patches
        variance = target.var(-1, unbiased=False, keepdim=True)
        target = (target - target.mean(-1, keepdim=True)) / (variance + 1e-5).sqrt()
        for b, y, x in mask.nonzero().tolist():
            cosines = [F.cosine_similarity(predicted[b, t, y, x], target[b, t, y, x], dim=0) for t in range(T)]
            expected.append((1 - torch.stack(cosines).mean()) / (2 * mask.sum()))
    total = torch.zeros(())
    for part in module.parts(views):
        torch.manual_seed(5 + part)
        total = total + module(views, part, 0)["loss"]
    torch.testing.assert_close(total, torch.stack(expected).sum(), atol=1e-5, rtol=1e-4)
    total.backward()
    assert all(p.grad is None for p in teacher.parameters()) and module.mask_pixels.grad.abs().max() > 0
    assert all(p.grad is not None for p in student.parameters())
    assert module.recent.rows().shape == (2, 32)


def test_an_image_model_comes_nearer_to_its_teacher_resumes_and_is_kept(stills, teacher, tmp_path):
    config = image_run(stills, tmp_path / "run", teacher, steps=30, save_every=20, probe=stills)
    run = pretrain(config)
    records = [next(run) for _ in range(20)]
    run.close()
    whole = [r["loss"] for r in pretrain(replace(config, out=tmp_path / "whole"))]
    records += list(resume(config.out))
    assert [r["loss"] for r in records] == whole
    assert sum(whole[-5:]) < 0.8 * sum(whole[:5])
    assert health_of(config.out).state == "healthy"
    assert "image_model" in report_run(config.out).read_text()
    model = lab.load_model(config.out / "model")
    assert isinstance(model.backbone, FrameBackbone) and model.card.input.size_px == 56
    assert model.card.name.startswith("features pre-training") and "knn" in model.card.metrics[0]["name"]


def test_the_command_line_reaches_image_models_and_their_teachers(stills, teacher, tmp_path, capsys):
    options = ["--preset", "images", "--image-model", "eva02_micro", "--views.global-px", "56", "--start", "scratch"]
    options += ["--features.teacher", str(teacher), "--steps", "2", "--batch", "4", "--precision", "float32"]
    out = tmp_path / "run"
    assert main(["pretrain", str(stills), "--out", str(out), *options, "--workers", "0", "--trackers"]) == 0
    assert "Report:" in capsys.readouterr().out
    assert read_json(out / "config.json")["config"]["objective"] == "features"
    assert main(["pretrain", str(stills), "--preset", "images", "--out", str(tmp_path / "other")]) == 2
    assert "no teacher" in capsys.readouterr().err and not (tmp_path / "other").exists()


def test_a_video_transformer_learns_from_a_video_transformer(manifest, tmp_path):
    torch.manual_seed(2)
    save_model(model_on(build_backbone("micro", image_px=32), {}, "teacher"), tmp_path / "teacher")
    config = micro(manifest, tmp_path / "run", objective="features", features=FeatureConfig(str(tmp_path / "teacher")))
    losses = [record["loss"] for record in pretrain(config)]
    assert len(set(losses)) == 6 and all(0 < loss < 2 for loss in losses)


@pytest.mark.parametrize("objective", ["dino", "vcl", "vicreg"])
def test_the_other_objectives_teach_image_models_too(stills, teacher, tmp_path, objective):
    settings = {"vicreg": VicregConfig(width=32, hidden=32), "steps": 4, "save_every": 2, "lr": 1e-3}
    config = image_run(stills, tmp_path / "run", teacher, objective=objective, **settings)
    whole = [record["loss"] for record in pretrain(config)]
    assert len(set(whole)) == 4
    assert isinstance(lab.load_model(config.out / "model").backbone, FrameBackbone)


def test_an_image_model_starts_from_the_model_of_another_run(stills, teacher, tmp_path):
    list(pretrain(image_run(stills, tmp_path / "first", teacher, steps=2)))
    start = str(tmp_path / "first" / "model")
    list(pretrain(image_run(stills, tmp_path / "second", teacher, steps=1, initialisation=start)))
    words = read_json(tmp_path / "second" / "config.json")["initialisation"]["words"]
    assert "tensors come from features pre-training" in words


def test_what_cannot_work_is_refused_in_a_sentence(stills, teacher, tmp_path):
    with pytest.raises(UserError, match=r"masked needs the mask token.*objective features"):
        image_run(stills, tmp_path, teacher, objective="masked")
    with pytest.raises(UserError, match="pictures of one size"):
        image_run(stills, tmp_path, teacher, objective="dino", views=replace(STILLS, local_frames=(1,), local_px=28))
    with pytest.raises(UserError, match="57 px do not divide into patches of 14 px"):
        image_run(stills, tmp_path, teacher, views=replace(STILLS, global_px=57))
    with pytest.raises(UserError, match="no teacher"):
        next(pretrain(image_run(stills, tmp_path, teacher, features=FeatureConfig())))
    with pytest.raises(UserError, match=r"share is 1\.5"):
        FeatureConfig(share=1.5)
