"""`endofm-lab check`: whole folders pass, every changed, missing or unfinished one is named, reports may be added."""

import json
import shutil
from fractions import Fraction

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from endofm_lab.cli.main import main
from endofm_lab.data.phantom_set import write_phantom
from endofm_lab.errors import UserError
from endofm_lab.explain.embeddings import embed, load_store
from endofm_lab.finetuning.evaluate import evaluate
from endofm_lab.folders import run_folder
from endofm_lab.folders.hashes import HASHES, changes
from endofm_lab.integrity import check_folder
from endofm_lab.model.card import HeadSpec
from endofm_lab.model.loading.load import save_model
from endofm_lab.model.video_model import build_frame_model
from endofm_lab.predict import predict_video, prediction_steps
from endofm_lab.prediction import load_prediction
from endofm_lab.pretraining.trainer import pretrain
from endofm_lab.reports.pretraining import report_run
from endofm_lab.runs.run import read_run
from endofm_lab.study.study import load_study, run_study
from endofm_lab.video.reader import write_video
from tests.pretraining.runs import micro


@pytest.fixture(scope="module")
def folders(phantom, tmp_path_factory):
    """One finished folder of each kind, by kind."""
    root = tmp_path_factory.mktemp("whole")
    torch.manual_seed(0)
    model = build_frame_model(
        "vit_micro", {"finding": HeadSpec("multiclass", ("normal", "polyp", "ulcer", "bleeding"))}
    )
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    save_model(model, root / "model")
    video = root / "video.mp4"
    write_video(video, [np.full((48, 64, 3), 9 * at, np.uint8) for at in range(12)], Fraction(10))
    predict_video(video, root / "model", out=root / "prediction", progress=False)
    run_study(video, root / "model", root / "study", progress=False)
    embed(phantom, root / "model", root / "store", progress=False)
    evaluate(root / "model", phantom, root / "run", clips=1)
    shutil.copytree(phantom.parent, root / "phantom")
    list(pretrain(micro(phantom, root / "pre-training run", steps=2)))
    return root


KINDS = ("model", "prediction", "study", "store", "run", "phantom", "pre-training run")


@pytest.mark.parametrize("kind", KINDS)
def test_a_whole_folder_passes_also_after_it_was_moved_and_a_report_was_added(folders, tmp_path, kind):
    copy = shutil.copytree(folders / kind, tmp_path / "moved")
    (copy / "more.html").write_text("added")
    check = check_folder(copy)
    assert check.whole and check.kind == kind
    if kind != "model":
        assert check.hashes.added == ("more.html",) and check.hashes.n_files >= 2


@pytest.mark.parametrize("kind", KINDS)
def test_every_file_that_lost_a_byte_or_is_gone_is_named(folders, tmp_path, kind):
    files = [path for path in sorted((folders / kind).rglob("*")) if path.is_file()]
    parts = {path: path.relative_to(folders / kind).parts for path in files}
    files = [path for path in files if not any(p.startswith(".") for p in parts[path]) and path.name != HASHES][:8]
    for at, path in enumerate(files):
        for damage in ("changed", "missing"):
            copy = shutil.copytree(folders / kind, tmp_path / f"{at}-{damage}")
            victim = copy / path.relative_to(folders / kind)
            content = bytearray(victim.read_bytes())
            content[len(content) // 2] ^= 1
            victim.unlink() if damage == "missing" else victim.write_bytes(content)
            if kind == "model" and damage == "missing" and path.name == "card.json":
                with pytest.raises(UserError, match="holds no model"):
                    check_folder(copy)
                continue
            check = check_folder(copy) if _known(copy) else None
            assert check is None or not check.whole, f"{victim.name} {damage}"
            if check is not None and kind != "model":
                assert victim.name in check.text() and f"{damage}" in check.text()


def _known(folder):
    try:
        check_folder(folder)
    except UserError:
        return False
    return True


def test_the_command_ends_with_2_for_damage_and_for_an_unfinished_job(folders, tmp_path, capsys):
    assert main(["check", str(folders / "study"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["whole"] is True
    copy = shutil.copytree(folders / "study", tmp_path / "study")
    (copy / "frames.parquet").write_bytes((copy / "frames.parquet").read_bytes()[:-9])
    assert main(["check", str(copy), "--json"]) == 2
    output = json.loads(capsys.readouterr().out)
    assert output["whole"] is False and output["hashes"]["changed"] == ["frames.parquet"]
    steps = prediction_steps(folders / "video.mp4", folders / "model", out=tmp_path / "begun")
    next(steps)
    steps.close()
    assert main(["check", str(tmp_path / "begun")]) == 2
    assert "not finished" in capsys.readouterr().out
    assert main(["check", str(tmp_path)]) == 2
    assert "holds no model" in capsys.readouterr().err


def test_the_report_of_a_pre_training_does_not_make_it_a_run_to_compare(folders, phantom, tmp_path):
    whole = shutil.copytree(folders / "pre-training run", tmp_path / "whole")
    report_run(whole)
    assert check_folder(whole).whole and check_folder(whole).kind == "pre-training run"
    stopped = pretrain(micro(phantom, tmp_path / "stopped", steps=2))
    next(stopped)
    stopped.close()
    report_run(tmp_path / "stopped")
    assert "is not finished" in check_folder(tmp_path / "stopped").text()


def test_a_folder_without_hashes_is_said_to_have_none_and_damaged_hashes_are_damage(folders, tmp_path):
    copy = shutil.copytree(folders / "store", tmp_path / "store")
    (copy / HASHES).write_text('{"sha256": [1]}')
    assert not check_folder(copy).whole
    (copy / HASHES).unlink()
    assert check_folder(copy).whole and "no hashes" in check_folder(copy).text()


def test_the_same_command_again_does_not_bless_what_was_damaged_since(tmp_path):
    manifest = write_phantom(tmp_path / "phantom", "tiny", progress=False)
    masks = sorted((tmp_path / "phantom" / "masks").rglob("*.png"))
    masks[0].write_bytes(b"damaged")
    write_phantom(tmp_path / "phantom", "tiny", progress=False)
    assert changes(manifest.parent).changed == (masks[0].relative_to(manifest.parent).as_posix(),)


def test_a_finished_folder_without_hashes_is_not_sealed_by_the_same_command_again(folders, tmp_path):
    """Whether it is as the job left it, nobody knows: a repeat must not make damage look whole."""
    copy = shutil.copytree(folders / "study", tmp_path / "study")
    (copy / HASHES).unlink()
    run_study(folders / "video.mp4", folders / "model", copy, progress=False)
    assert not (copy / HASHES).exists()
    assert "no hashes: written by an earlier version" in check_folder(copy).text()


def test_a_job_that_was_killed_while_its_hashes_were_written_gets_them_from_the_same_command(folders, tmp_path):
    out = tmp_path / "prediction"
    with pytest.MonkeyPatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(run_folder, "write_hashes", _interrupted)
        predict_video(folders / "video.mp4", folders / "model", out=out, progress=False)
    assert (out / "prediction.json").exists() and not (out / HASHES).exists()
    predict_video(folders / "video.mp4", folders / "model", out=out, progress=False)
    assert changes(out).changed == () and check_folder(out).whole


def _interrupted(*_, **__):
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("kind", "name", "read"),
    [
        ("prediction", "clips.parquet", load_prediction),
        ("study", "frames.parquet", load_study),
        ("store", "rows.parquet", load_store),
        ("run", "predictions.parquet", read_run),
    ],
)
def test_an_edited_result_that_could_be_read_is_refused_by_name(folders, tmp_path, kind, name, read):
    copy = shutil.copytree(folders / kind, tmp_path / kind)
    read(copy)
    table = pd.read_parquet(copy / name)
    table.assign(**{table.columns[-1]: table.iloc[::-1][table.columns[-1]].to_numpy()}).to_parquet(copy / name)
    with pytest.raises(UserError, match=rf"{name} has changed since the job ended"):
        read(copy)
