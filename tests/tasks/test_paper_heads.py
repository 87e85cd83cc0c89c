"""The heads of the paper from training to prediction, and the released layouts tested directly on official folders."""

import json
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from endofm_lab.cli.main import main
from endofm_lab.data.manifest import read_manifest, write_manifest
from endofm_lab.data.phantom_set import PRESETS
from endofm_lab.data.prepare.prepare import prepare
from endofm_lab.data.prepare.recipes import load_recipe
from endofm_lab.errors import UserError
from endofm_lab.finetuning.config import FinetuneConfig
from endofm_lab.finetuning.evaluate import evaluate
from endofm_lab.finetuning.finetune import finetune
from endofm_lab.finetuning.fitting import layer_groups
from endofm_lab.finetuning.start import Start
from endofm_lab.model.loading.load import load_model
from endofm_lab.predict import predict_video
from endofm_lab.runs.run import read_run
from endofm_lab.tasks import TASKS
from tests.data.trees import build_tree
from tests.model.released_goldens import small_detector_state, small_segmenter_state
from tests.model.weight_layouts import polypdiag

SCRATCH = Start("scratch", size="micro", n_frames=2)
TASK_OF = {"transunet": "segmentation", "stft": "detection"}


def video_of(manifest: Path) -> Path:
    return manifest.parent / read_manifest(manifest).rows("test")["video"].iloc[0]


@pytest.fixture(scope="module")
def patients(phantom, tmp_path_factory):
    """Two rows of each split: the networks are those of the paper, and slow."""
    folder = tmp_path_factory.mktemp("few")
    table = read_manifest(phantom).table.groupby("split").head(2)
    for name in ("videos", "masks", "boxes.csv"):
        (folder / name).symlink_to(phantom.parent / name)
    return write_manifest(table, folder / "manifest.csv").path


@pytest.mark.parametrize("head", TASK_OF)
def test_a_fine_tuned_folder_loads_gives_its_run_again_and_predicts(patients, tmp_path, head):
    options = ["--task", TASK_OF[head], "--head", head, "--start", "scratch", "--size", "micro", "--n-frames", "2"]
    options += ["--steps", "1", "--batch", "2", "--validate-every", "1"]
    assert main(["finetune", str(patients), "--out", str(tmp_path / "run"), *options]) == 0
    folder = tmp_path / "run" / "seed-0" / "model"
    run, model = read_run(tmp_path / "run"), load_model(folder)
    (name, spec), *_ = model.card.heads.items()
    assert spec.form == head and ("TransUNet" if head == "transunet" else "STFT") in run.method
    task = TASKS[TASK_OF[head]]()
    repeat = task.table(model, name, task.examples(read_manifest(patients), "test", spec), [])
    written = run.predictions
    if head == "transunet":
        np.testing.assert_allclose(repeat["iou"], written["iou"], atol=1e-6)
    else:
        for actual, expected in zip(repeat["scores"], written["scores"], strict=True):
            np.testing.assert_allclose(np.array(actual, float), np.array(expected, float), atol=1e-6)
        raw = model.predict(torch.zeros(1, 3, 2, 64, 64))[name]
        assert all(len(scores) for _, scores, _ in model.heads[name].decode(raw, min_score=0.0)[0])
    prediction = predict_video(video_of(patients), folder, every_frame=True, progress=False)
    size = PRESETS["tiny"].size_px
    if head == "transunet":
        assert prediction.masks.shape == (PRESETS["tiny"].n_frames, 1, size, size)
    else:
        assert prediction.masks is None and list(prediction.classes) == [name]


def test_a_released_segmenter_gives_a_mask_for_every_frame_and_for_an_image(phantom, tmp_path):
    torch.save(small_segmenter_state(), tmp_path / "cvc.pth")
    prediction = predict_video(video_of(phantom), tmp_path / "cvc.pth", progress=False)
    assert prediction.masks.shape == (PRESETS["tiny"].n_frames, 1, 64, 64) and prediction.classes == {"mask": ["polyp"]}
    masks = read_manifest(phantom).rows("test")["masks"].iloc[0]
    image = sorted((phantom.parent / masks).iterdir())[0]  # any picture will do
    assert predict_video(image, tmp_path / "cvc.pth", progress=False).masks.shape == (1, 1, 64, 64)


def test_a_new_stem_learns_as_fast_as_the_head_and_every_tensor_is_in_one_group():
    from endofm_lab.model.card import HeadSpec

    model = SCRATCH.build("mask", HeadSpec("mask", ("lesion",), form="transunet"), seed=0)
    groups = layer_groups(model, 0.5)
    assert sorted(id(p) for g in groups for p in g["params"]) == sorted(id(p) for p in model.parameters())
    scale = {id(p): g["lr_scale"] for g in groups for p in g["params"]}
    rates = {name: scale[id(p)] for name, p in model.named_parameters()}
    assert rates["backbone.stem.conv.weight"] == rates["heads.mask.out.weight"] == 1
    assert rates["backbone.blocks.0.mlp.fc1.weight"] == 0.25


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"task": "detection", "head": "transunet"}, "'transunet' for detection"),
        ({"task": "classification", "head": "stft"}, "'stft' for classification"),
        ({"task": "segmentation", "head": "transunet", "method": "frozen"}, "choose 'full'"),
    ],
)
def test_heads_that_do_not_go_with_task_or_method_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        FinetuneConfig(Path("m.csv"), Path("out"), **settings)


def official(name: str, root: Path, cut: str = "no") -> Path:
    """A manifest prepared by the recipe from a made tree in the official layout."""
    recipe = load_recipe(name)
    build_tree(recipe, recipe.layouts[0], root / "disk")
    for file in (root / "disk").rglob("*.xml"):  # the made trees know one class
        file.write_text(file.read_text().replace(">polyp<", ">adenomatous<"))
    fps = 25 if cut != "no" else None
    return prepare(
        name, root / "disk", root / "out", cut=cut, workers=1, layout=recipe.layouts[0].name, fps=fps
    ).manifest


def write_released(name: str, path: Path) -> Path:
    if name == "polypdiag":
        return polypdiag(path)
    state = small_segmenter_state() if name == "cvc-clinicdb" else {"model": small_detector_state()}
    torch.save(state, path)
    return path


@pytest.mark.parametrize(
    ("name", "task", "cut"),
    [
        ("polypdiag", "classification", "no"),
        ("cvc-clinicdb", "segmentation", "no"),
        pytest.param("kumc", "detection", "windows", marks=pytest.mark.slow),
    ],
)
def test_direct_testing_of_released_layouts_on_official_folders(name, task, cut, tmp_path, capsys):
    manifest = official(name, tmp_path, cut)
    weights = write_released(name, tmp_path / "released.pth")
    assert main(["evaluate", str(weights), str(manifest), "--out", str(tmp_path / "run"), "--json"]) == 0
    output = json.loads(capsys.readouterr().out)
    run = read_run(tmp_path / "run")
    assert run.task == output["task"] == task and "CANNOT TELL" in output["audit"]["verdict"]
    rows = read_manifest(manifest).rows("test")
    assert len(rows) and {row.split(":")[0] for row in run.predictions["row"].astype(str)} == set(
        map(str, range(len(rows)))
    )


def test_the_overlap_of_a_released_split_is_told_by_evaluation_and_fine_tuning(tmp_path, capsys):
    manifest = read_manifest(official("cvc-clinicdb", tmp_path))
    table = manifest.table.assign(split_paper=["train|test", "test"][: len(manifest.table)])
    path = write_manifest(table, manifest.root / "leaking.csv").path
    torch.save(small_segmenter_state(), tmp_path / "cvc.pth")
    run = evaluate(tmp_path / "cvc.pth", path, tmp_path / "run", split_name="paper")
    assert "LEAKAGE: 1 of 2 test rows" in run.audit["verdict"] and len(run.audit["findings"]) > 1
    config = FinetuneConfig(path, tmp_path / "fit", task="segmentation", start=SCRATCH, split_name="paper")
    with pytest.raises(UserError, match=r"no rows of val.*LEAKAGE: 1 of 2 test rows"):
        next(finetune(config))


@pytest.mark.real_data
def test_the_released_cvc_12k_split_is_told_to_share_7_of_9_sequences_and_121_of_171_frames(tmp_path, capsys):
    if "ENDOFM_LAB_DATA" not in os.environ:
        pytest.skip("ENDOFM_LAB_DATA is not set: the masks of CVC-ClinicDB are not here.")
    root = Path(os.environ["ENDOFM_LAB_DATA"]) / "cvc-clinicdb-masks"
    manifest = prepare("cvc-clinicdb", root, tmp_path / "out", layout="masks-only", workers=1).manifest
    table = read_manifest(manifest).table
    listed = pd.read_csv(root / "frame_to_sequence.csv", dtype=str).set_index("frame")["sequence"]
    assert table["sequence"].tolist() == listed.loc[table["frame"].astype(str)].tolist() and len(table) == 612
    assert main(["audit", str(manifest), "--split", "endo-fm-released"]) == 0
    output = capsys.readouterr().out
    assert "121 of 171 test rows (70.8 %)" in output and "7 of 9" in output.replace("the ", "")
    options = ["--task", "segmentation", "--split", "endo-fm-released", "--out", str(tmp_path / "run")]
    assert main(["finetune", str(manifest), *options]) == 2
    assert "LEAKAGE: 121 of 171 test rows" in capsys.readouterr().err
