"""Where models compute: the device of a name, copies on it, and no tensor that stays behind on the CPU.

No GPU is needed: torch's fake tensors have a device and a shape, and refuse operations across devices.
"""

import json

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call

from endofm_lab import UserError
from endofm_lab.cli.main import main
from endofm_lab.model.card import HeadSpec
from endofm_lab.model.loading.load import load_model, model_at
from endofm_lab.model.precision import resolve_device
from endofm_lab.model.transformer import PRESETS, VideoTransformer
from endofm_lab.model.video_model import build_frame_model, model_on
from endofm_lab.predict import predict_video


@pytest.fixture
def two_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)


def test_auto_is_the_first_of_cuda_mps_and_cpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert resolve_device() == torch.device("cpu")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert resolve_device("auto") == torch.device("mps") and resolve_device("cpu") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert resolve_device() == torch.device("cuda") and resolve_device("cuda:1") == torch.device("cuda:1")


def test_a_device_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(UserError, match="The device is 'cuda', but this machine has cpu: torch was installed without"):
        load_model("demo", device="cuda")
    with pytest.raises(UserError, match=r"The device is 'gpu', but this machine has cpu[.] Choose"):
        predict_video("no.mp4", "demo", device="gpu")


def test_a_third_gpu_of_two_is_refused(two_gpus):
    with pytest.raises(UserError, match="this machine has cuda, cpu, cuda:0, cuda:1"):
        resolve_device("cuda:2")


def test_a_model_that_is_handed_over_is_copied_to_the_gpu_and_stays_on_the_cpu(two_gpus, monkeypatch):
    model, moved = load_model("demo"), []
    monkeypatch.setattr(torch.nn.Module, "to", lambda self, place: moved.append((self, place)) or self)
    copy = model_at(model)
    assert copy is not model and moved == [(copy, torch.device("cuda"))]
    assert model_at(model, "cpu") is model and len(moved) == 1
    load_model("demo", device="cuda:1")
    assert moved[-1][1] == torch.device("cuda:1")


HEADS = {
    "finding": HeadSpec("multiclass", ("a", "b")),
    "signs": HeadSpec("multilabel", ("a", "b"), pooling="attention"),
    "mask": HeadSpec("mask", ("polyp",)),
    "box": HeadSpec("box", ("polyp",)),
}


def models():
    video = VideoTransformer(PRESETS["micro"])
    yield load_model("demo")
    yield model_on(video, HEADS, "video")
    yield build_frame_model("vit_micro", {"finding": HEADS["finding"]})


@pytest.mark.parametrize("attention", [False, True])
def test_no_encoder_and_no_head_leaves_a_tensor_on_the_cpu(attention):
    for model in models():
        state = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        T, px = model.card.clip.n_frames, model.card.input.size_px
        with FakeTensorMode():
            on_gpu = {name: torch.empty(t.shape, dtype=t.dtype, device="cuda") for name, t in state.items()}
            clip = torch.empty(1, 3, T, px, px, device="cuda")
            output = functional_call(model, on_gpu, (clip, attention))
            for name, logits in output.logits.items():
                assert logits.device.type == "cuda", name
                scores = model.head(name).scores(logits.float(), model.card.heads[name])
                assert scores.device.type == "cuda", name
            with pytest.raises(RuntimeError, match="device"):  # what the fake tensors are here for
                functional_call(model, on_gpu, (clip.cpu(), attention))


def test_what_computed_is_printed_and_noted(tmp_path, capsys):
    from endofm_lab.data.samples import SAMPLES, sample_video

    video = sample_video(next(iter(SAMPLES)))
    assert main(["predict", str(video), "--out", str(tmp_path / "p"), "--device", "cpu"]) == 0
    assert "Device: cpu." in capsys.readouterr().out
    record = json.loads((tmp_path / "p" / "prediction.json").read_text())["provenance"]
    assert record["device"] == "cpu" and set(record["packages"]) == {"torch", "timm", "numpy", "av"}
    assert record["platform"] and record["time"].endswith("+00:00") and "command" in record and "git" in record
    assert main(["predict", str(video), "--out", str(tmp_path / "q"), "--device", "cuda:7"]) == 2
    assert "The device is 'cuda:7', but this machine has" in capsys.readouterr().err
