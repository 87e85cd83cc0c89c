"""An encoder that the library does not know: the worked example of how one is written, and the proof that it is enough.

It differs from every encoder of the library: a patch is a tubelet of two frames, there is no CLS token, no attention.
The file holds all that its author writes: the class `TubeletEncoder`. The tests are what they get for it.
"""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from einops import rearrange
from torch import Tensor, nn

import endofm_lab as lab
from endofm_lab.data.manifest import read_manifest
from endofm_lab.errors import CheckpointError, UserError
from endofm_lab.explain.attention import look
from endofm_lab.explain.attribution import METHODS
from endofm_lab.explain.targets import similarity_to, target_of
from endofm_lab.files import read_json
from endofm_lab.finetuning.config import FinetuneConfig
from endofm_lab.finetuning.finetune import finetune
from endofm_lab.finetuning.fitting import layer_groups
from endofm_lab.finetuning.start import Start
from endofm_lab.model.card import HeadSpec
from endofm_lab.model.encoder import Encoder, VideoTokens
from endofm_lab.model.video_model import model_on
from endofm_lab.outside import allowing
from endofm_lab.runs.run import read_run

NAME = "tests.model.test_foreign_encoder:TubeletEncoder"


@dataclass(frozen=True)
class TubeletConfig:
    """Sizes of a `TubeletEncoder`: ``depth`` mixing layers over patches of ``tubelet`` frames."""

    width: int = 16
    depth: int = 2
    patch_px: int = 8
    image_px: int = 32
    tubelet: int = 2


class TubeletEncoder(Encoder):
    """A small 3-D convolutional network: tubelets to tokens, then depth-wise mixing in time and space."""

    kind = "tubelet"
    Config = TubeletConfig
    has_cls = False

    def __init__(self, config: TubeletConfig) -> None:
        super().__init__(config)
        D, size = config.width, (config.tubelet, config.patch_px, config.patch_px)
        self.frames_per_token = config.tubelet
        self.embed = nn.Conv3d(3, D, size, stride=size)
        self.mix = nn.ModuleList(nn.Conv3d(D, D, 3, padding=1, groups=D) for _ in range(config.depth))
        self.norm = nn.LayerNorm(D)

    def layers(self) -> list[nn.Module]:
        """Embedding, mixing layers, norm."""
        return [self.embed, *self.mix, self.norm]

    def forward(self, clip: Tensor, attention: bool = False) -> VideoTokens:
        """(B, 3, T, H, W) -> patches (B, T / tubelet, h, w, D)."""
        if clip.shape[2] % self.frames_per_token:
            raise UserError(f"The clip has {clip.shape[2]} frames; give a multiple of {self.frames_per_token}.")
        x = self.embed(clip)
        for mix in self.mix:
            x = x + mix(x).relu()
        return VideoTokens(
            None, self.norm(rearrange(x, "b d t h w -> b t h w d")), frames_per_token=self.frames_per_token
        )


@pytest.fixture(scope="module")
def phantom(tmp_path_factory):
    return lab.write_phantom(tmp_path_factory.mktemp("phantom"), preset="tiny", progress=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An untrained model with a head of every kind, saved."""
    torch.manual_seed(0)
    heads = {
        "label": HeadSpec("multiclass", ("normal", "polyp")),
        "mask": HeadSpec("mask", ("lesion",)),
        "box": HeadSpec("box", ("polyp",)),
    }
    model = model_on(TubeletEncoder(TubeletConfig()), heads, "tubelets")
    model.card = replace(model.card, clip=lab.ClipSpec(n_frames=4, stride=2))
    return lab.save_model(model, tmp_path_factory.mktemp("model") / "tubelets")


@pytest.fixture(scope="module")
def model(folder):
    return lab.load_model(folder, allow=[TubeletEncoder])


@pytest.fixture(scope="module")
def video(phantom):
    manifest = read_manifest(phantom)
    return manifest.resolve(manifest.rows("test")["video"][0])


@pytest.fixture(scope="module")
def clip(model, video):
    return lab.to_input(lab.read_clip(video, model.card.clip, 0.0).frames, model.card.input)


def test_a_saved_model_is_read_only_by_a_class_that_the_caller_names(folder, model):
    backbone = read_json(folder / "card.json")["backbone"]
    assert backbone == {"kind": "tubelet", **vars(TubeletConfig()), "class": NAME}
    for allowed in (NAME, "tests.model.test_foreign_encoder", "tests"):
        by_name = lab.load_model(folder, allow=allowed)
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), by_name.parameters(), strict=True))
    for names in ((), ["test"], ["tests.model.test_foreign"], ["json"], [f"{NAME}s"]):
        with pytest.raises(CheckpointError, match=r"tubelets needs tests\.model.*only if you allow it"):
            lab.load_model(folder, allow=names)


def test_a_prediction_has_masks_and_boxes_of_every_frame_that_a_tubelet_shows(model, clip, video):
    scores = model.predict(clip)
    assert scores["label"].shape == (1, 2)
    assert scores["mask"].shape == (1, 1, 4, 16, 16) and scores["box"].shape == (1, 5, 4, 4, 4)
    assert torch.equal(scores["mask"][:, :, 0], scores["mask"][:, :, 1])
    assert not torch.equal(scores["mask"][:, :, 1], scores["mask"][:, :, 2])
    prediction = lab.predict_video(video, model, progress=False)
    assert len(prediction.scores["label"]) == len(prediction.times_s) and len(prediction.masks) == len(
        prediction.frames
    )


def test_the_feature_of_a_clip_is_the_mean_over_patches_and_embeddings_say_so(model, clip, phantom, tmp_path):
    tokens = model.backbone(clip)
    assert tokens.cls is None and torch.equal(tokens.pooled(), tokens.patches.mean(dim=(1, 2, 3)))
    store = lab.embed(phantom, model, tmp_path / "store", progress=False)
    assert store.vectors.shape[1] == 16 and np.isfinite(store.vectors).all()
    assert store.about["vector"] == "mean over all patches, as the backbone has no CLS token"


def test_attention_is_refused_in_a_sentence_and_gradients_and_occlusion_answer(model, clip):
    with pytest.raises(UserError, match=r"'tubelet'.*no attention.*occlusion, which works for every model\.$"):
        look(model, clip)
    target = target_of(model, "label", "polyp")
    for name in ("occlusion", "gradient x input", "integrated gradients"):
        values = METHODS[name](model, clip, target).values
        assert values.shape == (4, 4, 4) and values.isfinite().all() and values.abs().max() > 0
    with pytest.raises(UserError, match=r"has none\. Use occlusion"):
        METHODS["Grad-CAM"](model, clip, target)
    assert float(similarity_to(model, clip).score(clip).detach()) == pytest.approx(1.0, abs=1e-5)


def test_learning_rates_fall_along_its_layers(model):
    scale = {id(p): group["lr_scale"] for group in layer_groups(model, 0.5) for p in group["params"]}
    assert scale.keys() == {id(p) for p in model.parameters()}
    backbone = model.backbone
    assert [scale[id(layer.weight)] for layer in (backbone.norm, *backbone.mix, backbone.embed)] == [
        1,
        0.25,
        0.5,
        0.125,
    ]


@pytest.mark.parametrize(
    ("task", "method"),
    [
        ("classification", "full"),
        ("classification", "attentive probe"),
        ("classification", "knn"),
        ("segmentation", "full"),
        ("detection", "frozen"),
    ],
)
def test_it_is_fine_tuned_for_every_kind_of_head(phantom, folder, tmp_path, task, method):
    start = Start(str(folder))
    config = FinetuneConfig(
        phantom, tmp_path / "run", task=task, method=method, start=start, steps=2, batch=2, validate_every=2, clips=1
    )
    with allowing(NAME):
        records = list(finetune(config))
    assert "tensors come from tubelets" in records[0]["initialisation"]
    assert read_run(config.out).method and records[-1]["test"]
    if method != "knn":
        trained = lab.load_model(config.out / "seed-0" / "model", allow=[NAME])
        assert trained.card.clip.n_frames == 4 and len(trained.card.heads) == 1


def test_what_it_cannot_do_is_refused_in_a_sentence(folder):
    start = Start(str(folder))
    head = HeadSpec("multiclass", ("a", "b"))
    with pytest.raises(UserError, match=r"kind 'tubelet', but adapters"), allowing(NAME):
        start.build("label", head, seed=0, adapters=True)
    with pytest.raises(UserError, match=r"Clips have 3 frames, but a token of .* shows 2"), allowing(NAME):
        replace(start, n_frames=3).build("label", head, seed=0)
    with pytest.raises(CheckpointError, match="needs a backbone with a convolutional stem"):
        model_on(TubeletEncoder(TubeletConfig()), {"mask": HeadSpec("mask", ("a",), form="transunet")}, "x")
