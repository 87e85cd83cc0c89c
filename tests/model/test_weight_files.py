"""Weights that must not be read: wrong shapes, missing tensors, unsafe pickles, truncated files, other files."""

import argparse
import os
import pathlib
import pickle
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from endofm_lab.errors import CheckpointError
from endofm_lab.model.loading.load import inspect_checkpoint, load_model, load_state, load_strictly
from endofm_lab.model.transformer import VideoTransformer
from tests.model import weight_layouts as made
from tests.model.weight_layouts import write

# --- strictness


def tampered(tmp_path, change):
    state = made.backbone_state()
    change(state)
    torch.save(state, tmp_path / "tampered.pth")
    return tmp_path / "tampered.pth"


def test_a_wrong_shape_is_named_with_both_shapes(tmp_path):
    path = tampered(tmp_path, lambda s: s.update({"blocks.1.attn.qkv.weight": torch.zeros(380, 128)}))
    with pytest.raises(CheckpointError, match=r"blocks\.1\.attn\.qkv\.weight has shape \(380, 128\).*\(384, 128\)"):
        load_model(path)
    assert "blocks.1.attn.qkv.weight" in inspect_checkpoint(path).problems[0]


def test_missing_and_unexpected_tensors_are_named(tmp_path):
    path = tampered(tmp_path, lambda s: (s.pop("norm.bias"), s.update({"blocks.0.extra": torch.zeros(3)})))
    with pytest.raises(CheckpointError, match=r"lacks norm\.bias and also has blocks\.0\.extra"):
        load_model(path)
    report = inspect_checkpoint(path)
    assert report.missing == ("norm.bias",) and report.unexpected == ("blocks.0.extra",)


def test_nan_is_named(tmp_path):
    path = tampered(tmp_path, lambda s: s["blocks.0.mlp.fc1.bias"].__setitem__(5, torch.nan))
    with pytest.raises(CheckpointError, match=r"blocks\.0\.mlp\.fc1\.bias holds NaN"):
        load_model(path)


@pytest.mark.parametrize(
    ("dtype", "words"), [(torch.int64, "int64"), (torch.bool, "bool"), (torch.complex64, "complex64")]
)
def test_numbers_of_another_kind_are_no_weights(dtype, words, tmp_path):
    path = tampered(tmp_path, lambda s: s.update({"blocks.0.mlp.fc1.bias": s["blocks.0.mlp.fc1.bias"].to(dtype)}))
    with pytest.raises(
        CheckpointError, match=rf"fc1\.bias holds numbers of the type {words}, but the model needs float32"
    ):
        load_model(path)
    assert words in inspect_checkpoint(path).problems[0]


def test_weights_beyond_float32_are_refused(tmp_path):
    path = tampered(tmp_path, lambda s: s.update({"norm.bias": torch.full((128,), 1e300, dtype=torch.float64)}))
    with pytest.raises(CheckpointError, match=r"norm\.bias holds NaN, infinity or numbers that are too large"):
        load_model(path)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_another_precision_are_read(dtype, tmp_path):
    path = tampered(tmp_path, lambda s: s.update({"norm.bias": s["norm.bias"].to(dtype)}))
    assert load_model(path).backbone.norm.bias.dtype == torch.float32


def test_a_block_with_an_absurd_number_is_refused_before_memory_is_taken(tmp_path):
    path = tampered(tmp_path, lambda s: s.update({"blocks.1000000000.norm1.bias": s.pop("blocks.1.norm1.bias")}))
    with pytest.raises(CheckpointError, match="has a block 1000000000, but only 3 blocks in all"):
        load_model(path)
    assert "1000000000" in inspect_checkpoint(path).problems[0]


def test_an_absurdly_long_name_of_a_tensor_gives_a_short_message(tmp_path):
    path = tampered(tmp_path, lambda s: s.update({"x" * 1_000_000: torch.zeros(1)}))
    with pytest.raises(CheckpointError, match=r"whose name has 1,000,000 letters") as refused:
        load_model(path)
    assert len(str(refused.value)) <= 500


def test_a_position_embedding_that_is_no_square_grid_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="pos_embed has 7 places"):
        load_model(tampered(tmp_path, lambda s: s.update({"pos_embed": torch.zeros(1, 7, 128)})))


def test_heads_are_not_guessed_for_odd_widths(tmp_path):
    save_file(made.backbone_state(config=replace(made.CONFIG, width=96)), tmp_path / "odd.safetensors")
    with pytest.raises(CheckpointError, match="width 96 is not a multiple of 64"):
        load_model(tmp_path / "odd.safetensors")


def test_a_module_is_untouched_if_its_weights_do_not_fit():
    backbone = VideoTransformer(made.CONFIG)
    before = {k: v.clone() for k, v in backbone.state_dict().items()}
    state = made.backbone_state()
    state.pop("norm.weight")
    with pytest.raises(CheckpointError, match=r"norm\.weight"):
        load_strictly(backbone, state, "somewhere")
    assert all(torch.equal(before[k], v) for k, v in backbone.state_dict().items())


# --- safety


class Harmful:
    """Unpickling this makes a folder."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


class HarmfulBuiltin(Harmful):
    def __reduce__(self):
        return exec, (f"import os; os.mkdir({str(self.marker)!r})",)


@pytest.mark.parametrize("harmful", [Harmful, HarmfulBuiltin])
@pytest.mark.parametrize("form", ["zip", "old", "pickle 2", "pickle 5"])
def test_an_unsafe_pickle_is_refused_by_name_and_not_executed(form, harmful, tmp_path):
    marker, path = tmp_path / "executed", tmp_path / "unsafe.pth"
    content = {"teacher": {"cls_token": torch.zeros(1)}, "args": harmful(marker)}
    if form.startswith("pickle"):
        content.pop("teacher")
        path.write_bytes(pickle.dumps(content, protocol=int(form[-1])))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
    message = r"asks for (posix|nt)\.mkdir" if harmful is Harmful else r"asks for (\w+\.)?exec"
    for read in (load_state, load_model, inspect_checkpoint):
        with pytest.raises(CheckpointError, match="protocols 2 and 3 only" if form == "pickle 5" else message):
            read(path)
    assert not marker.exists()
    if form.startswith("pickle"):
        pickle.loads(path.read_bytes())
    else:
        torch.load(path, weights_only=False)
    assert marker.exists(), "the file must be harmful, or this test shows nothing"


def test_nothing_but_namespace_is_let_through(tmp_path):
    allowed = torch.serialization.get_safe_globals()
    path = made.training_checkpoint(tmp_path / "a.pth", args=argparse.Namespace(data=pathlib.PurePosixPath("corpus")))
    with pytest.raises(CheckpointError, match=r"asks for pathlib[\w.]*PurePosixPath"):
        load_state(path)
    load_state(made.training_checkpoint(path))
    assert set(torch.serialization.get_safe_globals()) == set(allowed), "the process's allow-list must not grow"


@pytest.mark.parametrize("name", ["Endo-FM", "plain video"])
@pytest.mark.parametrize("kept", [0.0, 0.001, 0.5, 0.999])
def test_a_truncated_file_is_an_error_that_names_it(name, kept, tmp_path):
    path, _ = write(name, tmp_path)
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(CheckpointError, match=path.name):
        load_model(path)


@pytest.mark.parametrize(
    "content", [b"hello, I am text", b"\x89PNG\r\n\x1a\n" + bytes(100), bytes(1000), b"PK\x03\x04", b"\x80\x04."]
)
def test_other_files_are_errors_that_name_them(content, tmp_path):
    (tmp_path / "other.pth").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"other\.pth"):
        load_model(tmp_path / "other.pth")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"weight": torch.zeros(3)}, r"patch_embed\.proj\.weight, but has these: weight"),
        ([torch.zeros(3)], "holds a list"),
        ({"epoch": 3, "best": 0.5}, "holds no tensors of a network"),
        ({"a.patch_embed.proj.weight": torch.zeros(3), "b.patch_embed.proj.weight": torch.zeros(3)}, "2 of them"),
    ],
)
def test_weights_of_something_else_are_refused(content, message, tmp_path):
    torch.save(content, tmp_path / "else.pth")
    with pytest.raises(CheckpointError, match=message):
        load_model(tmp_path / "else.pth")


def test_safetensors_with_other_content_are_refused(tmp_path):
    save_file({"embedding": torch.zeros(10, 4)}, tmp_path / "features.safetensors")
    with pytest.raises(CheckpointError, match="embedding"):
        inspect_checkpoint(tmp_path / "features.safetensors")
