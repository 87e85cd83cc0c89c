"""Backbone, heads and card together; cards as JSON."""

import copy
import json
from dataclasses import replace
from fractions import Fraction

import pytest
import torch
from torch import nn

from endofm_lab.errors import CheckpointError, UserError
from endofm_lab.model.card import HeadSpec, ModelCard
from endofm_lab.model.transformer import PRESETS, BackboneConfig, VideoTransformer
from endofm_lab.model.video_model import VideoModel, build_model
from endofm_lab.video.clips import ClipSpec
from endofm_lab.video.transforms import IMAGENET

HEADS = {
    "finding": HeadSpec("multiclass", ("normal", "polyp", "ulcer")),
    "signs": HeadSpec("multilabel", ("blood", "bubbles"), temperature=2.0),
    "area": HeadSpec("mask", ("polyp",)),
    "place": HeadSpec("box", ("polyp", "ulcer")),
}
CARD = ModelCard(
    name="micro",
    backbone=VideoTransformer.describe(PRESETS["micro"]),
    input=replace(IMAGENET, size_px=64),
    clip=ClipSpec(n_frames=4, fps=Fraction(30000, 1001)),
    heads=HEADS,
    initialisation={"words": "Random.", "new": ["cls_token"]},
    data={"description": "phantom", "fingerprint": "ab", "generated": True, "split": "by patient"},
    audit="no patient on two sides",
    metrics=({"name": "AUC", "value": 0.97, "interval": [0.95, 0.99], "split": "test", "seed": 0},),
)
CLIPS = torch.randn(2, 3, 4, 64, 64, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = build_model(CARD)
    with torch.no_grad():  # zero-initialised parts would hide what passes through them
        for p in model.parameters():
            p.add_(0.05 * torch.randn_like(p))
    return model.eval()


def test_each_head_gives_logits_of_its_shape(model):
    output = model(CLIPS)
    assert output.tokens.cls.shape == (2, 32)
    shapes = {name: tuple(logits.shape) for name, logits in output.logits.items()}
    assert shapes == {"finding": (2, 3), "signs": (2, 2), "area": (2, 1, 4, 16, 16), "place": (2, 6, 4, 4, 4)}
    assert output.tokens.spatial is None
    assert len(model(CLIPS, attention=True).tokens.spatial) == 2


def test_scores_are_those_of_the_formulas(model):
    with torch.inference_mode():  # as predict does: attention in training takes another path to the same numbers
        logits = model(CLIPS).logits
    scores = model.predict(CLIPS)
    exp = logits["finding"].exp()
    assert torch.allclose(scores["finding"], exp / exp.sum(1, keepdim=True), atol=1e-6)
    assert torch.allclose(scores["signs"], 1 / (1 + (-logits["signs"] / 2).exp()), atol=1e-6)
    assert torch.allclose(scores["area"], 1 / (1 + (-logits["area"]).exp()), atol=1e-6)
    assert torch.equal(scores["place"], logits["place"])
    assert all(s.dtype == torch.float32 and not s.requires_grad for s in scores.values())


def test_temperature_softens_a_multiclass_head(model):
    before = model.predict(CLIPS)["finding"]
    heads = HEADS | {"finding": replace(HEADS["finding"], temperature=3.0)}
    model.card = replace(model.card, heads=heads)
    after = model.predict(CLIPS)["finding"]
    assert torch.allclose(after, (before.log() / 3).softmax(1), atol=1e-6)


def test_every_parameter_receives_a_gradient(model):
    sum(logits.square().sum() for logits in model(CLIPS).logits.values()).backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []


def test_evaluation_is_repeatable_and_clips_do_not_see_each_other(model):
    with torch.inference_mode():
        together, repeat = model(CLIPS).logits, model(CLIPS).logits
        singles = [model(CLIPS[i : i + 1]).logits for i in range(2)]
    for name, logits in together.items():
        assert torch.equal(logits, repeat[name])
        assert (logits - torch.cat([a[name] for a in singles])).abs().max() < 1e-5


def test_the_card_describes_the_backbone_that_is_there(model):
    wrong = VideoModel(model.backbone, model.heads, replace(CARD, backbone={}))
    assert wrong.card.backbone == VideoTransformer.describe(PRESETS["micro"]) and wrong.card == CARD


def test_heads_and_card_must_agree(model):
    heads = nn.ModuleDict({"other": nn.Identity()})
    with pytest.raises(CheckpointError, match="'other'"):
        VideoModel(model.backbone, heads, CARD)


@pytest.mark.parametrize(
    ("backbone", "message"),
    [
        ({"kind": "perceiver"}, "'perceiver'"),
        ({}, "kind None"),
        (VideoTransformer.describe(BackboneConfig()) | {"wings": 2}, "unknown setting wings"),
        (VideoTransformer.describe(BackboneConfig()) | {"width": "wide"}, "wrong type"),
        (VideoTransformer.describe(BackboneConfig()) | {"width": 1e9, "heads": 1}, "width is 1000000000.0"),
        (VideoTransformer.describe(BackboneConfig()) | {"depth": 10**9}, "depth is 1000000000"),
        (VideoTransformer.describe(BackboneConfig()) | {"depth": 1.5}, "depth is 1.5"),
        (VideoTransformer.describe(BackboneConfig()) | {"depth": float("nan")}, "depth is nan"),
        (VideoTransformer.describe(BackboneConfig()) | {"mlp_ratio": float("inf")}, "mlp_ratio is inf"),
    ],
)
def test_an_unknown_backbone_is_refused(backbone, message):
    with pytest.raises(CheckpointError, match=message):
        build_model(replace(CARD, backbone=backbone))


@pytest.mark.parametrize("name", ["", "a.b", "a b", "forward", "keys"])
def test_a_head_needs_a_usable_name(name):
    with pytest.raises(CheckpointError, match="A head cannot be called"):
        build_model(replace(CARD, heads={name: HEADS["finding"]}))


# --- cards


def test_a_card_survives_json():
    copy = ModelCard.from_json(json.loads(json.dumps(CARD.to_json())))
    assert copy == CARD and copy.fingerprint == CARD.fingerprint
    assert copy.clip.fps == Fraction(30000, 1001) and copy.heads["signs"].temperature == 2.0
    for clip in (ClipSpec(stride=32), ClipSpec(duration_s=5.0), ClipSpec(fps=12.5)):
        card = replace(CARD, clip=clip)
        assert ModelCard.from_json(card.to_json()).fingerprint == card.fingerprint


def test_every_change_changes_the_fingerprint():
    changed = [
        replace(CARD, name="x"),
        replace(CARD, weights_sha256="0" * 64),
        replace(CARD, input=IMAGENET),
        replace(CARD, heads=HEADS | {"signs": replace(HEADS["signs"], temperature=2.1)}),
    ]
    assert len({card.fingerprint for card in [CARD, *changed]}) == 5


@pytest.mark.parametrize(
    ("where", "key"),
    [
        ((), "extra"),
        (("input",), "crop"),
        (("clip",), "speed"),
        (("heads", "finding"), "loss"),
        (("initialisation",), "mood"),
        (("data",), "owner"),
        (("metrics", 0), "p"),
    ],
)
def test_unknown_keys_are_refused_by_name(where, key):
    value = copy.deepcopy(CARD.to_json())
    at = value
    for step in where:
        at = at[step]
    at[key] = 1
    with pytest.raises(CheckpointError, match=rf"my card.*unknown key '{key}'"):
        ModelCard.from_json(value, "my card")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("name", None, "lacks 'name'"),
        ("clip", {"n_frames": 8}, "exactly one of stride, fps and duration_s"),
        ("clip", {"n_frames": 8, "fps": "fast"}, "wrong form"),
        ("input", {"size_px": 64, "mean": 0.5, "std": [1, 1, 1]}, "mean is 0.5, but must be"),
        ("input", {"size_px": 64, "mean": [0.5, 0.5], "std": [1, 1, 1]}, "mean is .0.5, 0.5., but must be"),
        ("input", {"size_px": 64, "mean": [123.7, 116.3, 103.5], "std": [1, 1, 1]}, "for pixels from 0 to 1"),
        ("input", {"size_px": 64, "mean": [float("nan")] * 3, "std": [1, 1, 1]}, "finite numbers"),
        ("input", {"size_px": 64, "mean": [0.5] * 3, "std": [1e-30, 1, 1]}, "std is"),
        ("input", {"size_px": 64, "mean": [0.5] * 3, "std": [1, 1, -1]}, "std is"),
        ("input", {"size_px": 10**9, "mean": [0.5] * 3, "std": [1, 1, 1]}, "size_px is 1000000000"),
        ("input", {"size_px": "64", "mean": [0.5] * 3, "std": [1, 1, 1]}, "size_px is '64'"),
        ("clip", {"n_frames": 10**9, "stride": 1}, "n_frames is 1000000000"),
        ("clip", {"n_frames": True, "stride": 1}, "n_frames is True"),
        ("clip", {"n_frames": 8, "fps": "nan"}, "wrong form"),
        ("metrics", 5, "metrics is 5"),
        ("metrics", [{"name": "f1", "value": float("inf")}], "value is inf"),
        ("metrics", [{"name": "f1", "value": "high"}], "value is 'high'"),
        ("name", ["a"], "name is"),
        ("audit", 3, "audit is 3"),
        ("weights_sha256", 3, "weights_sha256 is 3"),
        ("initialisation", {"words": 3}, "initialisation is"),
        ("heads", {"a": {"kind": "multiclass", "classes": "abc"}}, "classes is 'abc'"),
        ("heads", {"a": {"kind": "multiclass", "classes": [1, 2]}}, "classes is"),
        ("heads", {"a": {"kind": ["multiclass"], "classes": ["x"]}}, "kind is"),
        ("heads", {"a": {"kind": "multiclass", "classes": ["x"], "temperature": float("nan")}}, "temperature is nan"),
        ("heads", {"a": {"kind": "multiclass", "classes": ["x"], "temperature": 1e-300}}, "temperature 1e-300"),
        ("heads", {"a": {"kind": "multiclass", "classes": ["x"], "temperature": "2"}}, "temperature is '2'"),
        ("heads", ["a"], "must be an object"),
        ("input", [64], "must be an object"),
        ("backbone", "base", "backbone must be an object"),
        ("heads", {"a": {"kind": "multiclass"}}, "lacks 'classes'"),
        ("heads", {"a": {"kind": "regression", "classes": ["x"]}}, "'regression'"),
        ("heads", {"a": {"kind": "multiclass", "classes": ["x", "x"]}}, "all different"),
        ("heads", {"a": {"kind": "mask", "classes": ["x"], "temperature": 2}}, "temperature 2"),
        ("heads", {"a": {"kind": "multiclass", "classes": ["x"], "temperature": 0}}, "temperature 0"),
        ("initialisation", {}, "lacks 'words'"),
    ],
)
def test_malformed_cards_are_refused(key, value, message):
    card = CARD.to_json() | {key: value}
    if value is None:
        card.pop(key)
    with pytest.raises(CheckpointError, match=message):
        ModelCard.from_json(card)


# --- numbers that are none


@pytest.mark.parametrize("name", ["finding", "signs", "area", "place"])
def test_a_head_that_gives_no_numbers_is_named_with_its_clip(name):
    model = build_model(CARD).eval()
    with torch.no_grad():
        for parameter in model.heads[name].parameters():
            parameter.fill_(3e38)
    clips = torch.randn(2, 3, 4, 64, 64)
    clips[0] = 0
    with pytest.raises(UserError, match=rf"head '{name}' of .* gives NaN or infinity for the clip at 0.00 s"):
        model.predict(clips, ["the clip at 0.00 s", "the clip at 1.00 s"])
