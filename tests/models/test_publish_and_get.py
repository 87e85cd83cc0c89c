import hashlib
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from huggingface_hub import ModelCard
from huggingface_hub.errors import OfflineModeIsEnabled

import endofm_lab as lab
from endofm_lab.cli.main import main
from endofm_lab.familiarity.statistics import Familiarity
from endofm_lab.model.card import HeadSpec
from endofm_lab.model.video_model import build_frame_model
from endofm_lab.models import fetch
from endofm_lab.models.building import choose_start


@pytest.fixture
def model(tmp_path):
    network = build_frame_model("vit_micro", {"mask": HeadSpec("mask", ("lesion",))})
    network.card = replace(
        network.card,
        name="Polyp segmenter",
        data={"description": "Kvasir-SEG", "licence": "Research only", "generated": False},
        audit="No leakage found.",
        metrics=({"name": "dice", "value": 0.89, "interval": [0.87, 0.91], "data": "kvasir-seg", "split": "test"},),
        intended_use="Research.",
        limits=("Has seen polyps only.",),
    )
    width = network.backbone.width
    network.familiarity = Familiarity(np.zeros(width, np.float32), np.eye(width, dtype=np.float32), 1.0)
    return lab.save_model(network, tmp_path / "models" / "mine")


def test_a_published_folder_holds_the_model_and_a_page_in_the_hubs_format(model, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("ENDOFM_LAB_MODELS", str(model.parent))
    out = tmp_path / "published"
    assert main(["models", "publish", "mine", "--out", str(out), "--owner", "me"]) == 0
    assert {path.name for path in out.iterdir()} == {
        "model.safetensors",
        "card.json",
        "familiarity.safetensors",
        "README.md",
    }
    assert lab.load_model(out).card == lab.load_model("mine").card
    page = ModelCard.load(out / "README.md")
    assert page.data.license == "other" and page.data.metrics == ["dice"] and "endoscopy" in page.data.tags
    for words in (
        "- dice: 0.890 [0.870, 0.910] (kvasir-seg, test)",
        "Licence: Research only",
        "## Intended use\n\nResearch.",
        "- Has seen polyps only.",
        "## Audit\n\nNo leakage found.",
        "from_pretrained('hf:me/mine')",
        "not for diagnosis",
    ):
        assert words in page.text, words
    assert main(["models", "publish", "mine", "--out", str(out)]) == 2
    assert "is not an empty folder" in capsys.readouterr().err


class Hub:
    """A Hub with one repository; the weights come from the disk in place of the network."""

    def __init__(self, folder, monkeypatch):
        names = ("model.safetensors", "familiarity.safetensors")
        self.content = {name: (folder / name).read_bytes() for name in names}
        monkeypatch.setattr("huggingface_hub.HfApi", lambda: self)
        monkeypatch.setattr(fetch, "download", self.download)
        self.fetched = []

    def model_info(self, name, files_metadata):
        files = [
            SimpleNamespace(
                rfilename=name, size=len(content), lfs=SimpleNamespace(sha256=hashlib.sha256(content).hexdigest())
            )
            for name, content in self.content.items()
        ]
        return SimpleNamespace(sha="c0ffee", card_data={"license": "cc-by-4.0"}, siblings=files)

    def download(self, source, target):
        self.fetched.append(source.url)
        content = self.content[target.name]
        target.write_bytes(content)
        yield len(content), len(content)


def test_a_hub_model_is_fetched_only_when_asked_and_agreed_to_and_then_known_by_its_id(
    model, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("ENDOFM_LAB_MODELS", str(tmp_path / "other"))
    hub = Hub(model, monkeypatch)
    with pytest.raises(lab.UserError, match=r"is not on this machine. `endofm-lab models get hf://me/mine`"):
        lab.load_model("hf://me/mine")
    assert main(["models", "get", "hf://me/mine"]) == 2
    shown = capsys.readouterr().err
    assert "Nothing was fetched" in shown and "Licence: cc-by-4.0" in shown and "SHA-256" in shown and not hub.fetched
    assert main(["models", "get", "hf://me/mine", "--agree"]) == 0
    assert "/me/mine/resolve/c0ffee/model.safetensors" in hub.fetched[0]
    assert lab.load_model("hf://me/mine").card == lab.load_model(model).card
    assert any(entry.name == "me--mine" and entry.state == "built" for entry in lab.models.list())
    assert [url.rpartition("/")[2] for url in hub.fetched] == ["model.safetensors", "familiarity.safetensors"]
    assert lab.load_model("hf://me/mine").familiarity.limit == 1.0


def test_the_initial_weights_of_a_recipe_are_fetched_by_the_name_of_the_recipe(model, tmp_path, monkeypatch):
    monkeypatch.setenv("ENDOFM_LAB_MODELS", str(tmp_path / "other"))
    hub = Hub(model, monkeypatch)
    list(lab.models.get("polyp-segmenter", agree=True))
    assert "/timm/vit_small_patch14_dinov2.lvd142m/resolve/" in hub.fetched[0]
    recipe = lab.models.load_model_recipe("polyp-segmenter")
    assert choose_start(recipe, None)[0].name == "image weights"
    with pytest.raises(lab.UserError, match="names no weights on the Hugging Face Hub"):
        list(lab.models.get("polypdiag"))


def test_without_a_network_get_says_so(monkeypatch):
    def offline(*_, **__):
        raise OfflineModeIsEnabled("offline")

    monkeypatch.setattr("huggingface_hub.HfApi", lambda: SimpleNamespace(model_info=offline))
    with pytest.raises(lab.UserError, match=r"me/mine cannot be reached on the Hub \(offline\)"):
        next(lab.models.get("hf://me/mine"))
    with pytest.raises(lab.UserError, match="the form is hf://owner/name"):
        next(lab.models.get("hf://me/mine/more"))
