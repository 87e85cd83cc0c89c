"""Probes on stored features, and label budgets, in fine-tuning."""

from dataclasses import replace

import pandas as pd
import pytest

from endofm_lab.cli.main import main
from endofm_lab.data.manifest import absolute_paths, read_manifest, write_manifest
from endofm_lab.errors import ManifestError, UserError
from endofm_lab.explain.embeddings import embed, load_store
from endofm_lab.files import read_json, write_json
from endofm_lab.finetuning.config import FinetuneConfig
from endofm_lab.finetuning.finetune import finetune
from endofm_lab.model.loading.load import load_model, save_model, without_heads
from endofm_lab.model.video_model import VideoModel
from endofm_lab.runs.run import read_run
from tests.builders import lively


@pytest.fixture(scope="module")
def model():
    return without_heads(lively("micro"))


@pytest.fixture(scope="module")
def store(phantom, model, tmp_path_factory):
    return embed(phantom, model, tmp_path_factory.mktemp("features") / "store", clips=2, progress=False)


def config_of(phantom, out, **settings):
    return FinetuneConfig(phantom, out, **{"method": "linear probe", "clips": 2, **settings})


@pytest.mark.parametrize("method", ["linear probe", "knn"])
def test_a_probe_on_stored_features_gives_the_numbers_of_one_that_computes_them(
    phantom, model, store, tmp_path, method, monkeypatch
):
    list(finetune(config_of(phantom, tmp_path / "computed", method=method), start=model))
    monkeypatch.setattr(VideoModel, "forward", lambda *_: pytest.fail("the encoder is not needed"))
    monkeypatch.setattr(
        "endofm_lab.finetuning.fitting.clip_features", lambda *_: pytest.fail("no features are computed")
    )
    list(finetune(config_of(phantom, tmp_path / "read", method=method, features=store.path), start=model))
    computed, read = read_run(tmp_path / "computed"), read_run(tmp_path / "read")
    pd.testing.assert_frame_equal(computed.predictions, read.predictions, atol=1e-5)
    assert (computed.protocol, computed.test, computed.method) == (read.protocol, read.test, read.method)
    if method == "linear probe":
        monkeypatch.undo()
        saved = load_model(tmp_path / "read" / "seed-0" / "model").card.heads["label"]
        assert saved.temperature == pytest.approx(
            load_model(tmp_path / "computed" / "seed-0" / "model").card.heads["label"].temperature, rel=1e-3
        )


def test_a_store_serves_other_labels_and_splits_of_the_same_videos(phantom, model, store, tmp_path):
    table = absolute_paths(read_manifest(phantom))
    swapped = table.assign(split=table["split"].replace({"val": "test", "test": "val"}))
    write_manifest(swapped, tmp_path / "swapped.csv")
    config = config_of(tmp_path / "swapped.csv", tmp_path / "run", label="motion", features=store.path)
    list(finetune(config, start=model))
    assert len(read_run(tmp_path / "run").predictions) == 8


def test_features_that_do_not_fit_are_refused(phantom, model, store, tmp_path):
    def refused(match, **settings):
        with pytest.raises(UserError, match=match):
            list(finetune(config_of(phantom, tmp_path / "run", **{"features": store.path, **settings}), start=model))

    refused("2 clips per row, and this probe reads 3", clips=3)
    refused("only linear probe and knn read stored features", method="frozen")
    refused("only linear probe and knn", crops=3)
    about = read_json(store.path / "store.json")
    other = tmp_path / "other"
    other.mkdir()
    for name in ("vectors.npy", "rows.parquet"):
        (other / name).write_bytes((store.path / name).read_bytes())
    write_json(other / "store.json", {**about, "encoder": "0" * 64})
    refused("features of another encoder, another version", features=other)
    write_json(other / "store.json", {**about, "videos": dict.fromkeys(about["videos"], "changed")})
    refused("lacks 48 clips of train, for example of", features=other)
    write_json(other / "store.json", about)
    table = load_store(other).rows
    table.assign(error="It is damaged.").to_parquet(other / "rows.parquet")
    refused("48 clips of train could not be read: It is damaged", features=other)


def test_stored_clips_are_computed_once_whatever_the_labels(phantom, model, store, tmp_path, capsys):
    manifest = read_manifest(phantom)
    assert len(store) == 2 * len(manifest.table.drop_duplicates(["video", "start_s", "end_s"]))
    relabelled = replace(manifest, table=manifest.table.assign(label="x", split="train"))
    again = embed(relabelled, model, store.path, clips=2, progress=False)
    assert again.about == store.about
    with pytest.raises(UserError, match="give one of them"):
        embed(phantom, model, store.path, clips=2, step_s=1.0)
    with pytest.raises(UserError, match="clips is 0"):
        embed(phantom, model, store.path, clips=0)
    assert (
        main(
            [
                "embed",
                str(phantom),
                "--model",
                str(save_model(model, tmp_path / "model")),
                "--clips",
                "2",
                "--out",
                str(tmp_path / "out"),
                "--quiet",
            ]
        )
        == 0
    )
    assert capsys.readouterr().out == ""


def test_a_run_within_a_label_budget_learns_from_fewer_patients(phantom, model, store, tmp_path):
    whole, part = (config_of(phantom, tmp_path / name, features=store.path) for name in ("whole", "part"))
    list(finetune(whole, start=model))
    records = list(finetune(replace(part, budget="3 patients"), start=model))
    assert "12 train, 8 val, 8 test" in records[0]["split"]
    runs = [read_run(folder) for folder in (tmp_path / "whole", tmp_path / "part")]
    assert runs[0].test == runs[1].test and runs[0].protocol["val"] == runs[1].protocol["val"]
    assert runs[0].protocol["train"] != runs[1].protocol["train"]
    assert "3 patients of train" in load_model(tmp_path / "part" / "seed-0" / "model").card.data["split"]
    with pytest.raises(UserError, match='budget is "3 patients" there, "all" here'):
        list(finetune(part, start=model))
    assert main(["finetune", str(phantom), "--budget", "99 patients", "--out", str(tmp_path / "no")]) == 2
    assert not (tmp_path / "no").exists()
    table = absolute_paths(read_manifest(phantom))
    is_first = table["patient"] == table["patient"][table["split"] == "train"].iloc[0]
    write_manifest(table.assign(label=table["label"].mask(is_first, "rare")), tmp_path / "rare.csv")
    with pytest.raises(ManifestError, match="without a training example"):
        list(
            finetune(
                replace(part, manifest=tmp_path / "rare.csv", out=tmp_path / "rare", budget="1 patient"), start=model
            )
        )
