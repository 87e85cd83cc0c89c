import json
import shutil

import pytest

import endofm_lab as lab
from endofm_lab.cli.main import main
from endofm_lab.data.manifest import read_manifest
from endofm_lab.folders.run_folder import FolderInUseError
from endofm_lab.integrity import check_folder
from endofm_lab.models.shelf import state_of
from endofm_lab.runs.run import read_run
from tests.models.made_data import kvasir_from_phantom, micro_recipe


@pytest.fixture(scope="module")
def data(phantom, tmp_path_factory):
    return kvasir_from_phantom(phantom, tmp_path_factory.mktemp("data") / "made-kvasir")


@pytest.fixture(scope="module")
def built(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("built")
    recipe, out = micro_recipe(folder), folder / "model"
    records = list(lab.models.build(recipe, data, out, incomplete="accept"))
    return recipe, out, records


def test_a_build_leaves_a_model_whose_card_says_what_it_is_made_of_and_what_it_reached(data, built):
    _, out, records = built
    model = lab.load_model(out)
    card = model.card
    assert card.name == "Micro segmenter" and card.heads["mask"].kind == "mask"
    assert "Research and educational use" in card.data["licence"] and "kvasir-seg@" in card.data["recipe"]
    assert card.intended_use == "Tests." and card.limits[0] == "Knows made pictures only."
    assert "not all of the data set" in card.limits[1]
    assert "no leakage found" in card.audit and "21 pictures" in card.audit and "LEAKAGE" not in card.audit
    dice, run = card.metrics[0], read_run(out / "build" / "run")
    assert dice["name"] == "dice" and dice["split"] == "test" and len(run.predictions) >= 3
    last = records[-1]["built"]
    assert last["metrics"]["dice"]["value"] == dice["value"] and "as expected" in last["expected"][0]
    assert check_folder(out).whole
    stage = next(record for record in records if record.get("stage") == "familiarity")
    assert "training clips" in stage["words"] and model.familiarity.width == model.backbone.width
    assert model.familiarity.about["val_clips"] >= 3 and card.familiarity_sha256 is not None


def test_near_duplicates_are_on_one_side_of_the_split(built):
    table = read_manifest(built[1] / "build" / "prepared" / "split.csv").table
    names = table["video"].str.extract(r"(\w+)\.jpg")[0]
    pair = table[names.isin(["made0", "again0"])]
    assert len(pair) == 2 and pair["split"].nunique() == 1 and pair["sequence"].str.startswith("near-dup").all()
    assert set(table["split"]) == {"train", "val", "test"}


def test_a_finished_build_is_read_back_and_another_request_is_refused(data, built):
    recipe, out, records = built
    repeat = list(lab.models.build(recipe, data, out, incomplete="accept"))
    assert repeat == records[-1:]
    with pytest.raises(lab.UserError, match=r"seed is 0 there, 1 here"):
        list(lab.models.build(recipe, data, out, incomplete="accept", seed=1))


def test_a_build_that_was_stopped_goes_on_and_gives_the_same_weights(data, built, tmp_path):
    recipe, out, _ = built
    stopped = lab.models.build(recipe, data, tmp_path / "model", incomplete="accept")
    for record in stopped:
        if record.get("step") == 1:
            break
    stopped.close()
    assert state_of(tmp_path / "model") == "stopped"
    list(lab.models.build(recipe, data, tmp_path / "model", incomplete="accept"))
    weights = [(folder / "model.safetensors").read_bytes()[-5000:] for folder in (out, tmp_path / "model")]
    assert weights[0] == weights[1]


def test_a_second_build_in_the_same_folder_is_refused(data, built, tmp_path):
    running = lab.models.build(built[0], data, tmp_path / "model", incomplete="accept")
    next(running)
    with pytest.raises(FolderInUseError, match="is being worked on by process"):
        next(lab.models.build(built[0], data, tmp_path / "model", incomplete="accept"))
    assert state_of(tmp_path / "model").startswith("being built by process")
    running.close()


def test_a_data_set_that_is_not_as_published_is_refused_and_can_be_accepted_afterwards(data, built, tmp_path):
    with pytest.raises(lab.UserError, match=r"is not kvasir-seg@\d as published \(files: 21 instead of 800"):
        list(lab.models.build(built[0], data, tmp_path / "model"))
    assert state_of(tmp_path / "model") == "not built"
    first = next(iter(lab.models.build(built[0], data, tmp_path / "model", incomplete="accept")))
    assert first["stage"] == "start" and "scratch" in first["words"]


def test_data_that_is_missing_or_changed_is_named(data, built, tmp_path):
    with pytest.raises(lab.UserError, match=r"is not a folder\. Give the folder of the unpacked data set"):
        next(lab.models.build(built[0], tmp_path / "absent", tmp_path / "model"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(lab.UserError, match="images"):
        list(lab.models.build(built[0], tmp_path / "empty", tmp_path / "model"))
    copy = shutil.copytree(data, tmp_path / "copy")
    with pytest.raises(lab.UserError, match=r"data is .*made-kvasir"):
        list(lab.models.build(built[0], copy, built[1], incomplete="accept"))
    with pytest.raises(lab.UserError, match="inside the data set"):
        next(lab.models.build(built[0], copy, copy / "model"))


def test_weights_that_are_not_there_are_never_fetched_and_may_be_given(data, built, tmp_path):
    with pytest.raises(lab.UserError, match="no such file"):
        list(lab.models.build(built[0], data, tmp_path / "a", start="absent.safetensors", incomplete="accept"))
    only = micro_recipe(tmp_path, replace={"source: scratch": "source: hf:nobody/none", "size: micro": "lr: 1.0e-3"})
    with pytest.raises(lab.UserError, match=r"is on this machine\. Give a file with --start"):
        next(lab.models.build(only, data, tmp_path / "b"))
    with pytest.raises(lab.UserError, match="has no start from scratch"):
        next(lab.models.build(only, data, tmp_path / "b", start="scratch"))


def test_the_command_line_builds_and_the_model_is_known_by_its_name(data, built, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("ENDOFM_LAB_MODELS", str(tmp_path / "models"))
    command = ["models", "build", built[0], "--data", str(data), "--incomplete", "accept"]
    assert main([*command, "--json"]) == 0
    entry = json.loads(capsys.readouterr().out)
    assert entry["name"] == "micro-segmenter" and entry["metrics"]["dice"]["value"] is not None
    assert lab.load_model("micro-segmenter").card.name == "Micro segmenter"
    assert main(["models", "list"]) == 0
    listed = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert " built " in listed["micro-segmenter"] and "dice" in listed["micro-segmenter"]
    assert "not built" in listed["polyp-segmenter"] and "in the package" in listed["demo"]
    assert main(["models", "show", "micro-segmenter"]) == 0 and "Micro segmenter" in capsys.readouterr().out


def test_a_model_whose_card_was_edited_is_listed_as_changed_and_not_loaded(built, tmp_path, monkeypatch):
    monkeypatch.setenv("ENDOFM_LAB_MODELS", str(tmp_path))
    folder = shutil.copytree(built[1], tmp_path / "micro-segmenter", ignore=shutil.ignore_patterns("build"))
    card = json.loads((folder / "card.json").read_text())
    (folder / "card.json").write_text(json.dumps({**card, "limits": []}))
    (entry,) = [entry for entry in lab.models.list() if entry.name == "micro-segmenter"]
    assert entry.state.startswith("changed: ") and "limits was" in entry.state
    with pytest.raises(lab.UserError, match="was changed after the model was saved: limits was"):
        lab.load_model("micro-segmenter")
