"""A benchmark from its file to its table: shared features, stopping and going on, added rows, and what is refused."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import endofm_lab as lab
from endofm_lab.benchmarking.table import OTHER, Row, flat_table, table_of
from endofm_lab.cli.main import main
from endofm_lab.data.manifest import absolute_paths, read_manifest, write_manifest
from endofm_lab.errors import UserError
from endofm_lab.explain.embeddings import load_store
from endofm_lab.familiarity.degradations import DEGRADATIONS
from endofm_lab.finetuning.config import FinetuneConfig
from endofm_lab.finetuning.finetune import finetune
from endofm_lab.folders.run_folder import FolderInUseError, claim
from endofm_lab.integrity import check_folder
from endofm_lab.runs.run import read_run, run_folders
from endofm_lab.tasks.budgets import within_budget
from tests.builders import lively, made_run

FILE = """
encoders:
  first: {start: scratch, size: micro, image_px: 32, n_frames: 2, seed: 1}
tasks:
  findings: {manifest: MANIFEST, clips: 1}
  motion: {manifest: MANIFEST, label: motion, clips: 1, methods: [knn]}
methods: [knn, linear probe]
budgets: [all, 3 patients]
degradations: [darkness]
"""


@pytest.fixture(scope="module")
def file(phantom, tmp_path_factory):
    path = tmp_path_factory.mktemp("benchmark") / "benchmark.yaml"
    path.write_text(FILE.replace("MANIFEST", str(phantom)))
    return path


@pytest.fixture(scope="module")
def second():
    return lively("micro", image_px=32, frames=2)


@pytest.fixture(scope="module")
def finished(file, second, tmp_path_factory):
    out = tmp_path_factory.mktemp("finished") / "out"
    records = list(lab.benchmark(file, out, encoders={"second": second}))
    return out, records


def test_a_benchmark_leaves_a_run_per_cell_and_one_table(finished, phantom):
    out, records = finished
    result = records[-1]["result"]
    assert len(result["rows"]) == len(records[0]["plan"]["cells"]) == len(run_folders(out / "runs")) == 2 * 2 * (2 + 1)
    assert result == json.loads((out / "benchmark.json").read_text()) and check_folder(out).whole
    table = pd.read_csv(out / "benchmark.csv")
    assert len(table) == 12 and {"encoder", "budget", "value", "low", "rank", "seconds", "darkness value"} <= set(table)
    row = next(row for row in result["rows"] if row["folder"] == "runs/findings/all/first-linear-probe")
    run = read_run(out / row["folder"])
    assert run.initialisation.endswith(
        "; the origin of first: Random: every tensor as it was built, nothing was read from a file."
    )
    assert "not taken" not in run.initialisation
    assert row["value"] == run.samples(n=1).values["f1"] and row["rank"] is None and row["low"] is None
    assert row["seconds"] > 0 and row["peak_mb"] > 100 and row["features_s"] > 0 and row["trained"] == 33 * 4
    assert row["parameters"] == sum(p.numel() for p in lively("micro", image_px=32, frames=2).parameters())
    assert row["audit"].startswith("No leakage found") and "2 patients" in row["unit"]
    assert row["degraded"]["darkness"]["change"] == pytest.approx(row["degraded"]["darkness"]["value"] - row["value"])
    assert "no rank" in result["tasks"]["findings"]["not_ranked"]["all"][0]
    assert result["tasks"]["findings"]["training"]["3 patients"]["units"] == 3
    page = (out / "benchmark.html").read_text()
    for words in (
        "No leakage found",
        "Under made degradations",
        "training units",
        "first",
        "Not ranked (all, 3 patients)",
    ):
        assert words in page


def test_features_are_computed_once_for_all_tasks_methods_and_budgets(finished, phantom):
    out, records = finished
    stores = [path.parent for path in out.rglob("store.json")]
    assert sorted(path.parent.name for path in stores) == ["first", "second"]
    n_rows = len(read_manifest(phantom).table.drop_duplicates(["video", "start_s", "end_s"]))
    assert {len(load_store(path)) for path in stores} == {n_rows}
    assert [record["done"] for record in records if "features" in record].count(n_rows) == 2


def test_a_cell_has_the_numbers_of_finetune_alone(finished, phantom, second, tmp_path):
    out, _ = finished
    list(finetune(FinetuneConfig(phantom, tmp_path / "run", method="knn", clips=1, budget="3 patients"), start=second))
    cell, alone = read_run(out / "runs/findings/3-patients/second-knn"), read_run(tmp_path / "run")
    pd.testing.assert_frame_equal(cell.predictions, alone.predictions, atol=1e-6)
    assert (cell.protocol, cell.test, cell.method) == (alone.protocol, alone.test, alone.method)


def test_a_benchmark_that_was_stopped_goes_on_to_the_same_numbers(finished, file, tmp_path):
    whole, out = finished[0], tmp_path / "out"
    steps, n_cells = lab.benchmark(file, out), 0
    for record in steps:
        n_cells += "test" in record
        if n_cells == 2:
            break
    steps.close()
    assert check_folder(out).kind == "unfinished job"
    before = {path: (out / path / "report.json").stat().st_mtime_ns for path in _below(out / "runs", out)}
    records = list(lab.benchmark(file, out))
    assert len(records[0]["plan"]["done"]) == len(before) >= 1
    assert not {f"runs/{record['cell']}" for record in records if "cell" in record} & set(before)
    for path in _below(out / "runs", out) + _below(out / "degraded", out):
        assert (out / path / "predictions.parquet").read_bytes() == (whole / path / "predictions.parquet").read_bytes()
        assert path not in before or (out / path / "report.json").stat().st_mtime_ns == before[path]
    assert [set(record) for record in lab.benchmark(file, out)] == [{"plan"}, {"result"}], "nothing is computed again"


def _below(folder, out):
    return [str(path.relative_to(out)) for path in run_folders(folder)]


def test_another_file_and_a_second_process_are_refused(finished, file, second, tmp_path):
    out, _ = finished
    other = tmp_path / "other.yaml"
    other.write_text(file.read_text().replace("seed: 1", "seed: 2"))
    with pytest.raises(UserError, match=r"a benchmark with other settings: encoder.first.seed is 1 there, 2 here"):
        list(lab.benchmark(other, out, encoders={"second": second}))
    with pytest.raises(UserError, match=r"encoders is \[\"first\", \"second\"\] there"):
        list(lab.benchmark(file, out))
    (tmp_path / "free").mkdir()
    with claim(tmp_path / "free", {}, "a benchmark"), pytest.raises(FolderInUseError):
        list(lab.benchmark(file, tmp_path / "free", encoders={"second": second}))


def test_finished_runs_and_other_benchmarks_join_the_table(finished, file, phantom, second, tmp_path, capsys):
    out = tmp_path / "out"
    shutil.copytree(finished[0], out)
    own, other = tmp_path / "own", tmp_path / "evaluated"
    list(finetune(FinetuneConfig(phantom, own, method="knn", clips=1), start=second))
    lab.evaluate(finished[0] / "runs/findings/3-patients/first-linear-probe", None, other)
    both = list(lab.benchmark(file, out, encoders={"second": second}, add=[own, other]))[-1]["result"]
    added = {row["source"]: row for row in both["rows"] if row["source"]}
    assert len(both["rows"]) == 14 and added["own"]["budget"] == "all" and added["evaluated"]["budget"] == "3 patients"
    assert added["own"]["task"] == "findings" and added["own"]["method"] == "nearest neighbours"
    assert check_folder(out).whole and "added from" in (out / "benchmark.html").read_text()
    again = list(lab.benchmark(file, out, encoders={"second": second}, add=[finished[0]]))[-1]["result"]
    assert len(again["rows"]) == 14 + 12, "rows that were added before stay"
    joined = [row for row in again["rows"] if row["source"] == "out"]
    assert {row["encoder"] for row in joined} == {"first", "second"} and all(row["seconds"] for row in joined)
    assert list(lab.benchmark(file, out, encoders={"second": second}))[-1]["result"] == again


def test_added_rows_with_other_test_rows_or_damage_are_refused(finished, file, phantom, second, tmp_path):
    out, table = tmp_path / "out", absolute_paths(read_manifest(phantom))
    shutil.copytree(finished[0], out)

    def refused(folder, match):
        with pytest.raises(UserError, match=match):
            list(lab.benchmark(file, out, encoders={"second": second}, add=[folder]))
        assert not (out / "added").exists() and check_folder(out).whole and (out / "hashes.json").is_file()

    write_manifest(table[(table["split"] != "test") | (table["label"] != "ulcer")], tmp_path / "fewer.csv")
    list(finetune(FinetuneConfig(tmp_path / "fewer.csv", tmp_path / "fewer", method="knn", clips=1), start=second))
    refused(tmp_path / "fewer", "tested on other rows .* than findings, motion of this benchmark")
    shutil.copytree(finished[0] / "runs/motion/all/first-knn", tmp_path / "altered")
    refused(tmp_path, "neither a finished run nor a finished benchmark")
    (tmp_path / "altered" / "seed-0" / "predictions.parquet").unlink()
    refused(tmp_path / "altered", r"is not whole: seed-0/predictions\.parquet")
    (tmp_path / "altered" / "hashes.json").unlink()
    refused(tmp_path / "altered", "has no hashes")
    refused(tmp_path / "nothing", "is not a folder")


def test_the_command_plans_runs_and_prints_the_table(file, tmp_path, capsys, monkeypatch):
    config = tmp_path / "one.yaml"
    text = file.read_text().replace("[all, 3 patients]", "[all]").replace("[darkness]", "[]")
    config.write_text(text.replace("methods: [knn, linear probe]", "methods: [knn]"))
    line = ["benchmark", str(config), "--out", str(tmp_path / "out")]
    assert main([*line, "--dry-run"]) == 0
    text = capsys.readouterr().out
    assert (
        "Audit: No leakage found" in text
        and "2 cells, of which 0 are done" in text
        and "findings/all/first-knn" in text
    )
    assert not (tmp_path / "out").exists()
    assert main(line) == 0
    text = capsys.readouterr().out
    assert "findings/all/first-knn: seed 0, f1" in text and "| first   | knn" in text and "benchmark.html" in text
    assert main([*line, "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["rows"]) == 2
    assert main(["benchmark", str(tmp_path / "none.yaml"), "--out", str(tmp_path / "no")]) == 2
    assert "There is no benchmark file" in capsys.readouterr().err


def test_a_rank_needs_a_difference_that_holds_and_enough_patients():
    def rows(**changes):
        runs = [("best", 3.0), ("near", 2.9), ("far", 0.1)]
        return [
            Row("task", "all", name, "linear", "", made_run(name, skill=skill, n_patients=40, **changes), {}, {})
            for name, skill in runs
        ]

    table, reasons = table_of(rows())
    assert reasons == {"task": {"all": []}}
    ranks = {row["encoder"]: row["rank"] for row in table}
    assert ranks["best"] == ranks["near"] == 1 and ranks["far"] == 3, "the first two cannot be told apart"
    best = max(table, key=lambda row: row["value"])
    far = next(row for row in table if row["encoder"] == "far")
    assert best["to_best"] is None and far["to_best_high"] < 0 and far["low"] < far["value"] < far["high"]
    few = [Row(**{**vars(row), "run": made_run(row.encoder, n_patients=9)}) for row in rows()]
    table, reasons = table_of(few)
    assert {row["rank"] for row in table} == {None} and "no rank" in reasons["task"]["all"][0]
    other = [Row(**{**vars(row), "budget": OTHER}) for row in rows()]
    assert {row["rank"] for row in table_of(other)[0]} == {None}
    assert len(flat_table(table)) == 3


def test_a_degraded_row_shows_the_same_fault_each_time(phantom):
    from endofm_lab.benchmarking.robustness import DegradedExample
    from endofm_lab.tasks.classification import Classification

    manifest, task = read_manifest(phantom), Classification()
    example = task.examples(manifest, "test", task.head(manifest))[0]
    for fault in DEGRADATIONS:
        with DegradedExample(**vars(example), fault=fault).open() as reader, example.open() as clean:
            frames, original = reader.read([0, 1]), clean.read([0, 1])
            assert frames.shape == original.shape and np.abs(frames.astype(int) - original).mean() > 1
            np.testing.assert_array_equal(frames[1], reader.read([1])[0])
            assert reader.info == clean.info


def test_budgets_of_a_benchmark_are_those_of_finetune(finished, phantom):
    cell = read_run(finished[0] / "runs/motion/3-patients/first-knn")
    part = within_budget(read_manifest(phantom), "3 patients", "motion")
    assert cell.protocol["train"] == type(part)(part.rows("train"), Path()).fingerprint
