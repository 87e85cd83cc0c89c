"""Files of a study that were altered by hand or damaged: every one is a sentence with exit code 2, none a traceback."""

import json
import shutil
from fractions import Fraction

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from endofm_lab.cli.main import main
from endofm_lab.errors import UserError
from endofm_lab.folders.hashes import HASHES
from endofm_lab.model.card import HeadSpec
from endofm_lab.model.loading.load import save_model
from endofm_lab.model.video_model import build_frame_model
from endofm_lab.study import study as studies
from endofm_lab.study.review import REVIEW, read_review
from endofm_lab.video.reader import write_video


@pytest.fixture(scope="module")
def studies_folder(tmp_path_factory):
    """A video, a model, a finished study without hashes (so that its content is looked at), and a stopped one."""
    root = tmp_path_factory.mktemp("studies")
    torch.manual_seed(0)
    model = build_frame_model("vit_micro", {"finding": HeadSpec("multiclass", ("normal", "polyp"))})
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    save_model(model, root / "model")
    random = np.random.default_rng(0)
    write_video(root / "video.mp4", [random.integers(0, 255, (48, 64, 3), np.uint8) for _ in range(20)], Fraction(10))
    studies.run_study(root / "video.mp4", root / "model", root / "whole", progress=False)
    (root / "whole" / HASHES).unlink()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(studies, "PART_FRAMES", 8)
        steps = studies.study_steps(root / "video.mp4", root / "model", root / "stopped")
        for _ in range(3):
            next(steps)
        steps.close()
    return root


def edited(path, change):
    value = json.loads(path.read_text())
    changed = change(value)
    path.write_text(json.dumps(value if changed is None else changed))


def with_columns(path, change):
    change(pd.read_parquet(path)).to_parquet(path)


JSON = {
    "a list": lambda value: [value],
    "nothing": lambda value: {},
    "video of another type": lambda value: value.get("about", value).update(video=[1, 2]),
    "a rate that is none": lambda value: value.get("about", value)["video"].update(fps="1/0"),
    "frames below zero": lambda value: value.get("about", value)["video"].update(n_frames=-4),
    "classes as text": lambda value: value.get("about", value).update(classes="polyp"),
    "no video": lambda value: value.get("about", value).pop("video") and None,
}
TABLES = {
    "no rows": lambda table: table.iloc[:0],
    "no times": lambda table: table.drop(columns=table.columns[:2]),
    "text for numbers": lambda table: table.assign(**{table.columns[-1]: "high"}),
    "rows lost in the middle": lambda table: table.drop(index=table.index[5:9]),
    "rows twice": lambda table: pd.concat([table, table.iloc[-3:]]),
}


def refused(capsys, folder, *args):
    """The sentence of a command that ends with exit code 2."""
    assert main([*map(str, args), "--out", str(folder)]) == 2
    message = capsys.readouterr().err
    assert "Traceback" not in message
    sentence = message.strip().rpartition("\n")[2]  # behind the bar
    assert sentence.startswith("Error: ") and len(sentence) < 700
    return sentence


@pytest.mark.parametrize("kind", JSON)
def test_an_altered_study_json_is_a_sentence(studies_folder, tmp_path, capsys, kind):
    folder = shutil.copytree(studies_folder / "whole", tmp_path / "study")
    edited(folder / "study.json", JSON[kind])
    with pytest.raises(UserError):
        studies.load_study(folder)
    refused(capsys, folder, "study", studies_folder / "video.mp4", "--model", studies_folder / "model")


@pytest.mark.parametrize("kind", TABLES)
def test_an_altered_table_of_frames_is_a_sentence(studies_folder, tmp_path, capsys, kind):
    folder = shutil.copytree(studies_folder / "whole", tmp_path / "study")
    with_columns(folder / "frames.parquet", TABLES[kind])
    with pytest.raises(UserError):
        studies.load_study(folder)
    refused(capsys, folder, "study", studies_folder / "video.mp4", "--model", studies_folder / "model")


@pytest.mark.parametrize("kind", JSON)
def test_an_altered_job_json_of_a_stopped_study_is_a_sentence(studies_folder, tmp_path, kind):
    folder = shutil.copytree(studies_folder / "stopped", tmp_path / "study")
    edited(folder / "job.json", JSON[kind])
    with pytest.raises(UserError):
        studies.load_study(folder, unfinished=True)


@pytest.mark.parametrize("kind", ["cut off", "empty", "another array", "arrays of another length"])
def test_an_altered_part_of_a_stopped_study_is_a_sentence_or_is_made_again(studies_folder, tmp_path, monkeypatch, kind):
    monkeypatch.setattr(studies, "PART_FRAMES", 8)
    folder = shutil.copytree(studies_folder / "stopped", tmp_path / "study")
    part = sorted((folder / "parts").glob("part_*.npz"))[0]
    if kind in ("cut off", "empty"):
        part.write_bytes(part.read_bytes()[: 40 if kind == "cut off" else 0])
    elif kind == "another array":
        np.savez(part, something=np.zeros(3))
    else:
        arrays = dict(np.load(part))
        np.savez(part, **{name: values[:3] if values.ndim else values for name, values in arrays.items()})
    with pytest.raises(UserError):
        studies.load_study(folder, unfinished=True)
    try:
        result = studies.run_study(studies_folder / "video.mp4", studies_folder / "model", folder, progress=False)
    except UserError:
        return
    whole = studies.load_study(studies_folder / "whole")
    np.testing.assert_array_equal(result.times_s, whole.times_s)
    np.testing.assert_allclose(result.scores["finding"], whole.scores["finding"], atol=1e-5)


@pytest.mark.parametrize("text", ["", "a,b\n1,2\n", "\x00\x01", "frame\nten\n"])
def test_an_altered_review_is_a_sentence(studies_folder, tmp_path, text):
    folder = shutil.copytree(studies_folder / "whole", tmp_path / "study")
    (folder / REVIEW).write_text(text)
    with pytest.raises(UserError, match=REVIEW):
        read_review(folder)


@pytest.mark.parametrize("rate", ["nan", "inf", "-inf", "0", "-25", "1e400"])
@pytest.mark.parametrize("command", ["study", "predict"])
def test_a_frame_rate_that_is_no_number_is_a_sentence_before_anything_is_written(
    studies_folder, tmp_path, capsys, rate, command
):
    message = refused(
        capsys,
        tmp_path / "out",
        command,
        studies_folder / "video.mp4",
        "--model",
        studies_folder / "model",
        f"--fps={rate}",
    )
    assert "fps" in message or "frames per second" in message
    assert not (tmp_path / "out").exists()
