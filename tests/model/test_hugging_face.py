"""Video encoders of transformers: small random models of the real classes, saved by transformers itself."""

import itertools
import json
import pickle
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file

import endofm_lab as lab
from endofm_lab.data.manifest import read_manifest
from endofm_lab.errors import CheckpointError, UserError
from endofm_lab.finetuning.fitting import layer_groups
from endofm_lab.finetuning.start import Start
from endofm_lab.model.card import HeadSpec
from endofm_lab.model.others.hugging_face_config import HuggingFaceConfig, configured
from endofm_lab.runs.run import read_run

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
PREDICTOR = {"pred_hidden_size": 24, "pred_num_attention_heads": 2, "pred_num_hidden_layers": 1}
VJEPA = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
# family -> class that is saved, its configuration, arguments of its call, frames of a token
MODELS = {
    "videomae": ("VideoMAEForVideoClassification", "VideoMAEConfig", {"image_size": 32, "patch_size": 8, **SIZES}, 2),
    "videomae-pretraining": (
        "VideoMAEForPreTraining",
        "VideoMAEConfig",
        {"image_size": 32, "patch_size": 8, "decoder_hidden_size": 12, "decoder_num_hidden_layers": 1, **SIZES},
        2,
    ),
    "vjepa2": ("VJEPA2Model", "VJEPA2Config", {"crop_size": 32, "patch_size": 8, **VJEPA, **PREDICTOR}, 2),
    "timesformer": (
        "TimesformerForVideoClassification",
        "TimesformerConfig",
        {"image_size": 32, "patch_size": 8, **SIZES},
        1,
    ),
    "timesformer-joint": (
        "TimesformerModel",
        "TimesformerConfig",
        {"image_size": 32, "patch_size": 8, "attention_type": "joint_space_time", **SIZES},
        1,
    ),
    "vivit": ("VivitModel", "VivitConfig", {"image_size": 32, "tubelet_size": [2, 8, 8], **SIZES}, 2),
}
PARTS = {  # tensors of the file that are no part of the encoder
    "videomae": {"classifier.weight", "classifier.bias", "fc_norm.weight", "fc_norm.bias"},
    "timesformer": {"classifier.weight", "classifier.bias"},
    "vivit": {"pooler.dense.weight", "pooler.dense.bias"},
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Folder and original model of a family, made when it is first asked for."""
    transformers = pytest.importorskip("transformers")
    made = {}

    def model_of(family):
        if family not in made:
            name, config, settings, _ = MODELS[family]
            frames = "frames_per_clip" if family == "vjepa2" else "num_frames"
            torch.manual_seed(0)
            model = getattr(transformers, name)(getattr(transformers, config)(**settings, **{frames: 4})).eval()
            folder = tmp_path_factory.mktemp("transformers") / family
            with torch.no_grad():
                for parameter in model.parameters():  # biases and positions are zero in a fresh model
                    parameter.add_(0.1 * torch.randn_like(parameter))
            model.save_pretrained(folder)
            made[family] = folder, getattr(model, model.base_model_prefix, model)
        return made[family]

    return model_of


def last_hidden_state(net, clip):
    options = {"skip_predictor": True} if "VJEPA2" in type(net).__name__ else {}
    with torch.inference_mode():
        return net(clip.transpose(1, 2), **options).last_hidden_state


@pytest.mark.parametrize("family", MODELS)
def test_tokens_are_those_of_the_public_class_at_their_place_and_time(saved, family):
    folder, net = saved(family)
    model, (*_, n) = lab.load_model(folder), MODELS[family]
    clip = torch.randn(2, 3, 4, 32, 32)
    expected = last_hidden_state(net, clip)
    with torch.inference_mode():
        tokens = model.backbone(clip)
    has_cls = family.startswith(("timesformer", "vivit"))
    assert (tokens.cls is not None) == has_cls and tokens.frames_per_token == n
    assert tokens.patches.shape == (2, 4 // n, 4, 4, model.backbone.width)
    if has_cls:
        assert torch.equal(tokens.cls, expected[:, 0])
    every = expected[:, has_cls:]
    for t, row, column in ((0, 1, 2), (3, 3, 0)):  # the token that a change of one patch changes most
        changed = clip.clone()
        changed[:, :, t, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8] += 3
        at = (last_hidden_state(net, changed)[:, has_cls:] - every).norm(dim=-1)[0].argmax()
        assert torch.equal(tokens.patches[:, t // n, row, column], every[:, at])
    assert torch.equal(tokens.patches.flatten(1, 3).sort(dim=1).values, every.sort(dim=1).values)


@pytest.mark.parametrize("family", MODELS)
def test_the_initialisation_names_what_was_taken_and_what_was_not(saved, family):
    folder, _ = saved(family)
    model = lab.load_model(folder)
    record, n = model.card.initialisation, len(model.backbone.state_dict())
    assert record["words"].startswith(f"{n} of the backbone's {n} tensors come from {family} (video model of Hugging")
    assert set(record["not_taken"]) == PARTS.get(family, set(record["not_taken"])) and not record["new"]
    assert model.card.clip.n_frames == 4 and model.card.heads == {}
    report = lab.inspect_checkpoint(folder)
    assert not report.problems and not report.missing and not report.unexpected and report.layout == "transformers"
    assert "as no file of a processor is beside the weights" in str(report)


@pytest.mark.parametrize("family", MODELS)
def test_every_parameter_is_in_one_layer_and_gets_a_gradient(saved, family):
    model = lab.load_model(saved(family)[0])
    layers = [[id(p) for p in layer.parameters()] for layer in model.backbone.layers()]
    assert sorted(itertools.chain(*layers)) == sorted(id(p) for p in model.backbone.parameters()) and len(layers) in (
        3,
        4,
    )
    assert sum(len(group["params"]) for group in layer_groups(model, 0.5)) == sum(map(len, layers))
    tokens = model.backbone(torch.randn(1, 3, 4, 32, 32))
    (tokens.patches.square().sum() + tokens.pooled().square().sum()).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.backbone.parameters())


def test_normalisation_and_size_are_those_of_the_processor_beside_the_weights(saved, tmp_path):
    transformers = pytest.importorskip("transformers")
    off = {"do_resize": False, "do_center_crop": False}
    frames = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    for family, name in (("videomae", "VideoMAEImageProcessor"), ("vivit", "VivitImageProcessor")):
        processor = getattr(transformers, name)(**off, image_mean=[0.4, 0.5, 0.6], image_std=[0.2, 0.3, 0.4])
        folder = copied(saved(family)[0], tmp_path / family)
        processor.save_pretrained(folder)
        model = lab.load_model(folder)
        expected = processor(list(frames), return_tensors="pt")["pixel_values"].transpose(1, 2)
        torch.testing.assert_close(lab.to_input(frames, model.card.input), expected.float(), atol=1e-5, rtol=1e-5)
        assert "from preprocessor_config.json" in model.card.data["description"]


def copied(folder, target, **settings):
    """A copy of a folder with other settings in its ``config.json``."""
    target.mkdir()
    (target / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    (target / "config.json").write_text(json.dumps(json.loads((folder / "config.json").read_text()) | settings))
    return target


def test_a_folder_that_does_not_fit_is_refused_with_every_tensor_by_name(saved, tmp_path):
    folder, _ = saved("videomae")
    weights = load_file(folder / "model.safetensors")
    broken = copied(folder, tmp_path / "broken")
    name = "videomae.encoder.layer.1.output.dense.weight"
    weights["videomae.extra"] = weights.pop(name)
    save_file(weights, broken / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"lacks encoder\.layer\.1\.output\.dense\.weight; it also has extra, so"):
        lab.load_model(broken)
    with pytest.raises(CheckpointError, match=r"has in another shape .*patch_embeddings\.projection\.weight"):
        lab.load_model(copied(folder, tmp_path / "patch", patch_size=4))
    with pytest.raises(CheckpointError, match=r"lacks encoder\.layer\.2-3\."):
        lab.load_model(copied(folder, tmp_path / "deep", num_hidden_layers=4))
    for settings, message in (
        ({"model_type": "vit"}, r"model type 'vit'.*videomae, vjepa2, timesformer, vivit"),
        ({"hidden_act": "os.system"}, r"hidden_act is 'os\.system'"),
        ({"hidden_act": "nothing"}, r"cannot be read as VideoMAE \('nothing'\)"),
        ({"hidden_size": 10**9}, r"hidden_size is 1000000000; give a number up to"),
        ({"num_hidden_layers": 3000}, r"more than 256 blocks"),
        ({"num_frames": 100_000}, r"num_frames is 100000; give a number up to"),
        ({"image_size": [32, 64]}, r"only square pictures"),
    ):
        with pytest.raises(CheckpointError, match=message):
            lab.load_model(copied(folder, tmp_path / f"{len(list(tmp_path.iterdir()))}", **settings))


def test_no_code_and_no_pickle_of_a_folder_is_run(saved, tmp_path):
    folder, _ = saved("videomae")
    code = {"auto_map": {"AutoModel": "code.Model"}, "_attn_implementation": "someone/kernels", "torchscript": True}
    foreign = copied(folder, tmp_path / "foreign", **code)
    (foreign / "code.py").write_text("raise SystemExit('run')")
    (foreign / "adapter_config.json").write_text("{}")
    model = lab.load_model(foreign)
    assert model.backbone.net.config._attn_implementation in ("sdpa", "eager")
    (foreign / "model.safetensors").unlink()
    (foreign / "pytorch_model.bin").write_bytes(pickle.dumps({}))
    with pytest.raises(CheckpointError, match=r"has no model\.safetensors\. Pickles .* are not read"):
        lab.load_model(foreign)


def test_weights_of_half_precision_are_read_as_float32(saved, tmp_path):
    folder, _ = saved("vivit")
    half = copied(folder, tmp_path / "half", dtype="bfloat16")
    save_file(
        {name: t.bfloat16() for name, t in load_file(folder / "model.safetensors").items()}, half / "model.safetensors"
    )
    exact, rounded = lab.load_model(folder).state_dict(), lab.load_model(half).state_dict()
    assert all(
        t.dtype == torch.float32 and torch.equal(t, exact[name].bfloat16().float()) for name, t in rounded.items()
    )


TASKS = [
    ("videomae", "classification", "full"),
    ("videomae", "classification", "linear probe"),
    ("vjepa2", "segmentation", "full"),
    ("vivit", "detection", "frozen"),
    ("timesformer", "classification", "attentive probe"),
]


@pytest.mark.parametrize(("family", "task", "method"), TASKS)
def test_it_is_fine_tuned_saved_and_read_again(saved, phantom, tmp_path, family, task, method):
    start = Start(str(saved(family)[0]))
    config = lab.FinetuneConfig(
        phantom, tmp_path / "run", task=task, method=method, start=start, steps=2, batch=2, validate_every=2, clips=1
    )
    records = list(lab.finetune(config))
    assert f"tensors come from {family} (video model of" in records[0]["initialisation"] and records[-1]["test"]
    folder = config.out / "seed-0" / "model"
    trained = lab.load_model(folder)
    assert trained.card.clip.n_frames == 4 and type(trained.backbone).__name__ == "HuggingFaceVideo"
    if task == "classification":
        again = lab.evaluate(folder, phantom, tmp_path / "again", clips=1).predictions
        pd.testing.assert_frame_equal(again, read_run(config.out).predictions, atol=1e-6)
    manifest = read_manifest(phantom)
    video = manifest.resolve(manifest.rows("test")["video"][0])
    prediction = lab.predict_video(video, folder, progress=False)
    assert len(prediction.times_s) and (task != "segmentation" or len(prediction.masks) == len(prediction.frames))


def test_its_vectors_are_stored_and_a_saved_copy_gives_the_same(saved, phantom, tmp_path):
    model = lab.load_model(saved("videomae")[0])
    store = lab.embed(phantom, saved("videomae")[0], tmp_path / "store", progress=False)
    again = lab.embed(phantom, lab.save_model(model, tmp_path / "own"), tmp_path / "again", progress=False)
    assert store.vectors.shape[1] == 32 and np.array_equal(store.vectors, again.vectors)


def test_clips_of_another_length_resize_stored_times_and_say_so(saved, phantom):
    head = HeadSpec("multiclass", ("a", "b"))
    clip = torch.randn(1, 3, 8, 32, 32)
    for family, key in (("vivit", "position_embeddings"), ("timesformer", "time_embeddings")):
        longer = replace(Start(str(saved(family)[0])), n_frames=8).build("label", head, seed=0)
        record = longer.card.initialisation
        assert f"{key} went from" in record["words"] and longer.card.clip.n_frames == 8
        before = lab.load_model(saved(family)[0]).backbone.get_parameter(f"net.embeddings.{key}")
        after = longer.backbone.get_parameter(f"net.embeddings.{key}")
        if family == "vivit":
            assert torch.equal(after[:, 0], before[:, 0])  # CLS
            before, after = (x[:, 1:].unflatten(1, (-1, 16)).mean(dim=2) for x in (before, after))
        torch.testing.assert_close(after[:, 0], before[:, 0])
        torch.testing.assert_close(after.mean(dim=1), before.mean(dim=1))
        assert longer.backbone(clip).patches.shape[1] * longer.backbone.frames_per_token == 8
    for family in ("videomae", "vjepa2"):  # their positions are computed
        longer = replace(Start(str(saved(family)[0])), n_frames=8).build("label", head, seed=0)
        assert not longer.card.initialisation["resized"]
        assert longer.backbone(clip).patches.shape[1] == 4
    larger = replace(Start(str(saved("vjepa2")[0])), image_px=64).build("label", head, seed=0)
    assert larger.backbone(torch.randn(1, 3, 4, 64, 64)).patches.shape == (1, 2, 8, 8, 48)


def test_what_it_cannot_do_is_refused_in_a_sentence(saved):
    head = HeadSpec("multiclass", ("a", "b"))
    model, start = lab.load_model(saved("videomae")[0]), Start(str(saved("videomae")[0]))
    for shape, message in (
        ((1, 3, 8, 32, 32), "8 frames; this VideoMAE takes 4"),
        ((1, 3, 4, 64, 64), r"takes \(B, 3, T, 32, 32\)"),
    ):
        with pytest.raises(UserError, match=message):
            model.backbone(torch.zeros(shape))
    with pytest.raises(UserError, match="positions of this VideoMAE are those of pictures of 32 px"):
        replace(start, image_px=64).build("label", head, seed=0)
    with pytest.raises(UserError, match=r"3 frames.* but tokens of 2 frames"):
        replace(start, n_frames=3).build("label", head, seed=0)
    with pytest.raises(UserError, match="kind 'transformers', but adapters"):
        start.build("label", head, seed=0, adapters=True)
    with pytest.raises(UserError, match="in space only returns no tokens of single frames"):
        configured("timesformer", {"attention_type": "space_only", **SIZES})
    with pytest.raises(UserError, match="architecture is 'swin'"):
        HuggingFaceConfig("swin", 32, 4, {})


def test_without_transformers_the_sentence_names_the_extra(saved, monkeypatch):
    folder, _ = saved("videomae")
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with pytest.raises(CheckpointError, match=r"need the package transformers: pip install 'endofm-lab\[encoders\]'"):
        lab.load_model(folder)
