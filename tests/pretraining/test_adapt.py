"""Adapting image models: draws, classes, augmentation, masks, and both stages on a small set of pictures."""

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from endofm_lab.data.labels import read_mapping
from endofm_lab.data.manifest import read_manifest, write_manifest
from endofm_lab.errors import ManifestError
from endofm_lab.model.card import HeadSpec
from endofm_lab.model.frame import build_frame_backbone, frame_input
from endofm_lab.model.video_model import build_frame_model
from endofm_lab.pretraining.adapt import (
    AdaptConfig,
    MaskedFeatures,
    adapt_masked,
    block_mask,
)
from endofm_lab.pretraining.frames import FrameCorpus

pytestmark = pytest.mark.slow  # both training stages: run with `pytest -m slow -n 0`

COLOURS = {"normal": (190, 120, 90), "polyp": (120, 190, 90), "ulcer": (90, 90, 200)}
COUNTS = {"normal": 24, "polyp": 6, "ulcer": 3}
MAPPING = """
title: two classes
targets: [normal, abnormal]
datasets:
  made:
    labels:
      normal: normal
      polyp: abnormal
      ulcer: null
"""


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    """Small pictures whose class is their colour; three patients in validation."""
    root, random, rows = tmp_path_factory.mktemp("set"), np.random.default_rng(0), []
    for split, factor in (("train", 1), ("val", 1)):
        for label, count in COUNTS.items():
            for n in range(count * factor):
                noise = random.integers(-40, 40, (72, 72, 3))
                picture = (np.array(COLOURS[label]) + noise).clip(0, 255).astype(np.uint8)
                name = f"{split}_{label}_{n}.png"
                Image.fromarray(picture).save(root / name)
                rows.append((name, 0.0, 0.0, label, f"{split}{n % 3}", "made", split))
    columns = ["video", "start_s", "end_s", "label", "patient", "dataset", "split"]
    write_manifest(pd.DataFrame(rows, columns=columns), root / "manifest.csv")
    return read_manifest(root / "manifest.csv")


def make_model(classes=("normal", "polyp", "ulcer")):
    torch.manual_seed(0)
    return build_frame_model("eva02_micro", {"finding": HeadSpec("multiclass", classes)})


def corpora(manifest, model, **settings):
    train = FrameCorpus(manifest, "train", model.card.input, augment=True, balanced=True, **settings)
    return train, FrameCorpus(manifest, "val", model.card.input, classes=train.classes, **settings)


def test_a_mapping_decides_on_classes_and_leaves_rows_out(manifest, tmp_path):
    (tmp_path / "two.yaml").write_text(MAPPING)
    model = make_model()
    corpus = FrameCorpus(manifest, "train", model.card.input, mapping=read_mapping(tmp_path / "two.yaml"))
    assert corpus.classes == ("normal", "abnormal") and corpus.counts.tolist() == [24, 6] and corpus.left_out == 3
    assert FrameCorpus(manifest, "train", model.card.input).counts.tolist() == list(COUNTS.values())
    with pytest.raises(ManifestError, match="class 'ulcer'"):
        FrameCorpus(manifest, "train", model.card.input, classes=("normal", "polyp"))


def test_a_sample_is_a_function_of_its_index_and_seed(manifest):
    train, val = corpora(manifest, make_model())
    state = torch.random.get_rng_state()
    one, again, other = train.sample(3, 7)[0], train.sample(3, 7)[0], train.sample(3, 8)[0]
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(one, again) and not torch.equal(one, other) and one.shape == (3, 1, 56, 56)
    assert torch.equal(val.sample(3, 7)[0], val.sample(3, 8)[0])
    assert len(train) == 72 and train.name(71).startswith("train_ulcer")


@pytest.mark.parametrize("share", [0.1, 0.4, 0.75])
def test_block_masks_cover_exactly_their_share_in_blocks(share):
    torch.manual_seed(0)
    masks = block_mask(512, 14, share)
    assert (masks.flatten(1).sum(1) == round(share * 196)).all()
    alone = F.conv2d(masks[:, None].float(), torch.ones(1, 1, 3, 3), padding=1)[:, 0][masks]
    assert (alone == 1).float().mean() < 0.05  # hardly a masked patch without a masked neighbour
    assert masks.any(0).all()  # every place is masked now and then


def test_the_masked_loss_is_the_cosine_to_the_teacher_at_masked_patches_only():
    torch.manual_seed(0)
    student, _ = build_frame_backbone("eva02_micro")
    teacher, _ = build_frame_backbone("dinov2_micro")
    inputs = frame_input(student.config), frame_input(teacher.config)
    module = MaskedFeatures(student, teacher, *inputs).eval()
    frames = torch.randn(2, 3, 1, 56, 56)
    torch.manual_seed(5)
    loss = module((frames, torch.zeros(2)), None, 0)["loss"]
    torch.manual_seed(5)
    mask = block_mask(2, 4, 0.4)
    hidden = frames.clone()
    for b, y, x in mask.nonzero().tolist():
        hidden[b, :, 0, 14 * y : 14 * y + 14, 14 * x : 14 * x + 14] = module.mask_pixels
    predicted = module.project(student(hidden).patches[:, 0])
    mean, std = (torch.tensor(v)[:, None, None, None] for v in (inputs[0].mean, inputs[0].std))
    to_mean, to_std = (torch.tensor(v)[:, None, None, None] for v in (inputs[1].mean, inputs[1].std))
    target = teacher((frames * std + mean - to_mean) / to_std).patches[:, 0]
    target = (target - target.mean(-1, keepdim=True)) / (target.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    cosines = [F.cosine_similarity(predicted[b, y, x], target[b, y, x], dim=0) for b, y, x in mask.nonzero().tolist()]
    torch.testing.assert_close(loss, 1 - torch.stack(cosines).mean(), atol=1e-5, rtol=1e-4)
    loss.backward()
    assert all(p.grad is None for p in teacher.parameters()) and module.mask_pixels.grad.abs().max() > 0


def test_the_masked_stage_brings_the_student_nearer_to_its_teacher(manifest, tmp_path):
    torch.manual_seed(0)
    model = make_model()
    teacher, _ = build_frame_backbone("dinov2_micro")
    module = MaskedFeatures(model.backbone, teacher, model.card.input, frame_input(teacher.config))
    train, _ = corpora(manifest, model)
    log = list(adapt_masked(module, train, AdaptConfig(epochs=8, batch=12, lr=2e-3), tmp_path / "mim"))
    assert np.mean([r["loss"] for r in log[-4:]]) < 0.5 * np.mean([r["loss"] for r in log[:4]])
