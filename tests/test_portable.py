"""Models outside the lab: ONNX and torch.export, pytrees, the Hub, scikit-learn."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from huggingface_hub.errors import HfHubHTTPError
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from torch.utils import _pytree as pytree

import endofm_lab as lab
from endofm_lab import portable
from endofm_lab.cli.main import main
from endofm_lab.errors import CheckpointError, UserError
from endofm_lab.model.transformer import build_backbone
from endofm_lab.model.video_model import model_on

HEADS = {
    "label": lab.HeadSpec("multiclass", ("a", "b"), temperature=2.0),
    "mask": lab.HeadSpec("mask", ("x",)),
}


@dataclass(frozen=True)
class PairConfig:
    width: int = 8
    patch_px: int = 8
    image_px: int = 32
    frames: int = 4


class Pairs(lab.Encoder):
    """Tokens of two frames each, without CLS."""

    kind = "pairs"
    Config = PairConfig
    has_cls = False
    frames_per_token = 2

    def __init__(self, config):
        super().__init__(config)
        self.embed = torch.nn.Conv3d(3, config.width, (2, 8, 8), stride=(2, 8, 8))

    def layers(self):
        return [self.embed]

    def forward(self, clip, attention=False):
        return lab.VideoTokens(None, self.embed(clip).movedim(1, -1), frames_per_token=2)


def made_model(depth):
    torch.manual_seed(0)
    model = model_on(build_backbone("micro", depth=depth), HEADS, "micro").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


@pytest.fixture(scope="module")
def model():
    return made_model(2)


def test_a_program_of_torch_gives_the_scores_of_the_model_for_clips_of_any_number_and_length(model, tmp_path):
    done = lab.export(model, tmp_path / "m.pt2")
    assert done.any_batch and done.any_length and done.largest_difference < 1e-5
    files = {"card.json": ""}
    module = torch.export.load(tmp_path / "m.pt2", extra_files=files).module()
    clip = torch.randn(3, 3, 7, 64, 64)
    actual, expected = module(clip), model.predict(clip)
    assert list(actual) == ["label", "mask"] and all(
        torch.allclose(actual[k], expected[k], atol=1e-5) for k in expected
    )
    assert json.loads(files["card.json"]) == model.card.to_json()
    assert "any number of clips of any length" in str(done)


def test_features_of_an_encoder_from_outside_are_exported_too(tmp_path):
    done = lab.export(model_on(Pairs(PairConfig()), {}, "pairs"), tmp_path / "m.pt2", "features")
    assert done.outputs == ("feature", "patches") and done.largest_difference < 1e-5


@pytest.mark.parametrize("depth", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_onnx_gives_the_scores_of_the_model(tmp_path, capsys, depth):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    model = made_model(depth)
    lab.save_model(model, tmp_path / "model")
    assert main(["export", str(tmp_path / "model"), str(tmp_path / "m.onnx")]) == 0
    assert "largest difference to the model" in capsys.readouterr().out
    session = onnxruntime.InferenceSession(str(tmp_path / "m.onnx"), providers=["CPUExecutionProvider"])
    clip = torch.randn(1, 3, 6, 64, 64)
    actual = dict(zip(("label", "mask"), session.run(None, {"clip": clip.numpy()}), strict=True))
    expected = model.predict(clip)
    assert all(np.allclose(actual[name], expected[name], atol=1e-4) for name in expected)
    card = json.loads(session.get_modelmeta().custom_metadata_map["card"])
    assert card["heads"]["label"]["classes"] == ["a", "b"]


def test_a_file_that_differs_is_not_written(tmp_path, monkeypatch):
    runner = portable._runner
    monkeypatch.setattr(
        portable, "_runner", lambda path, ending: lambda clip: [x + 0.01 for x in runner(path, ending)(clip)]
    )
    with pytest.raises(UserError, match=r"differs from pairs by 0\.01.*more than 0\.001, and was not written"):
        lab.export(model_on(Pairs(PairConfig()), {}, "pairs"), tmp_path / "m.pt2", "features")
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_exported_is_refused_in_a_sentence(model, tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"ends in '\.pt'; choose \.onnx or \.pt2"):
        lab.export(model, tmp_path / "m.pt")
    with pytest.raises(UserError, match="no head, and so no scores"):
        lab.export(model_on(build_backbone("micro"), {}, "bare"), tmp_path / "m.pt2")
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(UserError, match=r"ONNX needs onnx, .*pip install 'endofm-lab\[export\]'"):
        lab.export(model, tmp_path / "m.onnx")


def test_outputs_and_tokens_are_pytrees(model):
    output = model(torch.randn(1, 3, 4, 64, 64), attention=True)
    leaves, shape = pytree.tree_flatten(output)
    assert all(isinstance(leaf, torch.Tensor) for leaf in leaves if leaf is not None) and len(leaves) > 5
    copy = pytree.tree_unflatten(leaves, shape)
    assert copy.logits["mask"] is output.logits["mask"] and copy.tokens.frames_per_token == 1
    halved = pytree.tree_map(lambda x: x / 2 if isinstance(x, torch.Tensor) else x, output)
    assert torch.equal(halved.tokens.cls, output.tokens.cls / 2)
    assert len(halved.tokens.temporal) == len(output.tokens.temporal)


def test_a_model_is_saved_and_read_in_the_manner_of_hugging_face(model, tmp_path):
    folder = model.save_pretrained(tmp_path / "model")
    copy = lab.VideoModel.from_pretrained(folder)
    assert copy.card == model.card and torch.equal(copy.backbone.cls_token, model.backbone.cls_token)
    with pytest.raises(CheckpointError, match="no such file or folder"):
        lab.VideoModel.from_pretrained(tmp_path / "nothing")


class FakeApi:
    """What `push_to_hub` calls, without a network."""

    calls: ClassVar[list] = []
    error: ClassVar[Exception | None] = None

    def __init__(self, token):
        self.token = token

    def create_repo(self, name, **options):
        if self.error:
            raise self.error
        self.calls.append((name, options, self.token))

    def upload_folder(self, repo_id, folder_path, allow_patterns, commit_message):
        lab.load_model(folder_path)  # whole, and its parts belong together
        readme = (Path(folder_path) / "README.md").read_text(encoding="utf-8")
        self.calls.append((repo_id, allow_patterns, commit_message, readme))


def test_a_model_is_uploaded_with_its_card_and_a_page(model, monkeypatch):
    monkeypatch.setattr("huggingface_hub.HfApi", FakeApi)
    assert model.push_to_hub("me/micro", token="t") == "https://huggingface.co/me/micro"
    created, uploaded = FakeApi.calls
    assert created == ("me/micro", {"private": True, "exist_ok": True}, "t")
    files = ["model.safetensors", "card.json", "familiarity.safetensors"]
    assert uploaded[:3] == ("me/micro", [*files, "README.md"], "micro")
    assert "from_pretrained('hf:me/micro')" in uploaded[3] and "not for diagnosis" in uploaded[3]
    with pytest.raises(UserError, match="'micro' is not a name on the Hugging Face Hub"):
        model.push_to_hub("micro")
    monkeypatch.setattr(FakeApi, "error", OSError("no route to host"))
    with pytest.raises(UserError, match=r"me/micro was not uploaded \(no route to host\)"):
        model.push_to_hub("me/micro")
    assert issubclass(HfHubHTTPError, Exception)


def test_features_go_through_a_pipeline_of_scikit_learn(phantom, model, tmp_path):
    manifest = lab.read_manifest(phantom)
    rows = manifest.rows("train").iloc[:6]
    videos = [manifest.resolve(name) for name in rows["video"]]
    lab.save_model(model, tmp_path / "model")
    probe = make_pipeline(lab.FeatureExtractor(tmp_path / "model", batch=4), LogisticRegression())
    answers = clone(probe).fit(videos, [0, 1] * 3).predict(videos)
    assert len(answers) == 6 and set(answers) <= {0, 1}
    extractor = lab.FeatureExtractor(model, batch=4).fit(videos)
    features = extractor.transform(videos)
    frames = lab.read_clip(videos[2], model.card.clip, "centre").frames
    with torch.inference_mode():
        expected = model.backbone(lab.to_input(frames, model.card.input)).pooled()[0].numpy()
    assert features.shape == (6, 32) and features.dtype == np.float32
    assert np.allclose(features[2], expected, atol=1e-4) and np.allclose(
        extractor.transform([frames])[0], expected, atol=1e-4
    )
    assert list(extractor.get_feature_names_out()[:2]) == ["feature0", "feature1"]
    assert extractor.transform([]).shape == (0, 32) and "FeatureExtractor" in repr(extractor)
    for wrong, sentence in ((str(videos[0]), "is one video; give a list"), ([frames / 2], "give uint8 RGB frames")):
        with pytest.raises(UserError, match=sentence):
            extractor.transform(wrong)
