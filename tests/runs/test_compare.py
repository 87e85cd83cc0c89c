"""Run folders, their comparison, and the paper table."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from endofm_lab.cli.command import Output
from endofm_lab.cli.main import main
from endofm_lab.cli.train import show_run
from endofm_lab.files import read_json
from endofm_lab.metrics.classification import f1
from endofm_lab.metrics.intervals import bootstrap_difference, bootstrap_interval
from endofm_lab.model.card import SCRATCH
from endofm_lab.reports.comparison import write_comparison
from endofm_lab.runs.compare import compare
from endofm_lab.runs.run import RunError, read_run, write_run
from endofm_lab.tasks.phases import Phases
from tests.builders import made_run

TASKS = ["classification", "segmentation", "detection", "phases"]


@pytest.mark.parametrize("task", TASKS)
def test_a_written_run_reads_back_and_measures_the_same(tmp_path, task):
    run = made_run("a", task, seeds=(0, 1))
    write_run(tmp_path / "a", run)
    back = read_run(tmp_path / "a")
    samples, second = run.samples(n=20), back.samples(n=20)
    assert second.values == samples.values
    for name, values in samples.samples.items():
        np.testing.assert_array_equal(values, second.samples[name])
    report = json.loads((tmp_path / "a" / "report.json").read_text())
    keys = {"run", "task", "method", "initialisation", "seeds", "protocol", "test", "unit", "metrics", "audit"}
    assert set(report) == keys | {"provenance"}
    assert report["unit"] == {"kind": "patient", "n": 20, "words": "20 patients"}
    for name, row in report["metrics"].items():
        assert row["value"] == pytest.approx(samples.values[name])
        assert row["units"] == 20
        assert row["seed_std"] == pytest.approx(run.seed_std()[name])


@pytest.mark.parametrize("task", TASKS)
def test_the_better_run_comes_first_whatever_the_order(task):
    runs = [made_run("weak", task, skill=0.5), made_run("strong", task, skill=3.0 if task != "phases" else 1.0)]
    for order in (runs, runs[::-1]):
        comparison = compare(order, n=100)
        assert comparison.ranked
        assert [(line.rank, line.run.run) for line in comparison.lines] == [(1, "strong"), (2, "weak")]
        assert comparison.lines[1].to_best[comparison.by].value < 0
        assert comparison.lines[0].to_best is None


def test_values_intervals_and_the_paired_test_are_those_of_the_bootstrap():
    strong, weak = made_run("strong", skill=2.0), made_run("weak", skill=0.5)
    comparison = compare([weak, strong], n=200, seed=3)
    arrays = [
        (run.predictions["target"].to_numpy() == 1, run.predictions["score_polyp"].to_numpy() > 0.5)
        for run in (strong, weak)
    ]
    groups = strong.predictions["patient"].to_numpy()
    assert comparison.lines[0].metrics["f1"] == bootstrap_interval(f1, groups, *arrays[0], n=200, seed=3)
    assert comparison.lines[1].to_best["f1"] == bootstrap_difference(f1, groups, *arrays, n=200, seed=3)


def test_a_metric_where_less_is_more_ranks_the_other_way():
    runs = [made_run("weak", "segmentation", skill=0.5), made_run("strong", "segmentation", skill=3.0)]
    comparison = compare(runs, by="hd95_px", n=20)
    assert comparison.lines[0].run.run == "strong"
    assert comparison.lines[0].metrics["hd95_px"].value < comparison.lines[1].metrics["hd95_px"].value


def test_seeds_are_averaged_and_their_deviation_is_given():
    run = made_run("a", seeds=(0, 1, 2))
    values = []
    for _, part in run.predictions.groupby("seed"):
        values.append(f1(part["target"] == 1, part["score_polyp"] > 0.5))
    line = compare([run], n=20).lines[0]
    assert line.metrics["f1"].value == pytest.approx(np.mean(values))
    assert line.seed_std["f1"] == pytest.approx(np.std(values, ddof=1))
    assert f"] ±{np.std(values, ddof=1):.3f} |" in compare([run], n=20).to_markdown()


def test_the_order_of_rows_in_a_file_changes_nothing():
    run = made_run("a", seeds=(0, 1))
    mixed = replace(run, predictions=run.predictions.sample(frac=1, random_state=0))
    a, b = run.samples(n=30), mixed.samples(n=30)
    for name in a.values:
        assert b.values[name] == pytest.approx(a.values[name])
        np.testing.assert_allclose(b.samples[name], a.samples[name])
    assert compare([run, replace(mixed, run="b")], n=5).ranked


def changed(run, **columns):
    return replace(run, predictions=run.predictions.assign(**columns))


def test_runs_that_cannot_be_ranked_are_shown_without_ranks_and_every_reason_is_named():
    a, b = made_run("a"), made_run("b", skill=2.0)
    protocol = {"dataset": "made", "chosen_on": "test", "input": {"frames": 16}, "budget": 5}
    cases = [
        (
            replace(b, test={"fingerprint": "xyz", "split": "patient-wise"}),
            ["test fingerprint differs: a has abc, b has xyz"],
        ),
        (replace(b, test={"fingerprint": "abc", "split": "released"}), ["test split differs: a has patient-wise"]),
        (
            replace(b, protocol=protocol),
            [
                "protocol 'chosen_on' differs: a has validation, b has test",
                "protocol 'input.frames' differs: a has 8, b has 16",
                "protocol 'budget' differs: a has not given, b has 5",
            ],
        ),
        (replace(b, predictions=b.predictions.iloc[3:]), ["test items differ: a has 60, b has 57, 57 are common"]),
        (
            changed(b, target=1 - b.predictions["target"]),
            ["the same test items have other patients or truths in a than in b"],
        ),
        (
            changed(b, patient="one"),
            ["The test set has 1 patient:", "the same test items have other patients or truths in a than in b"],
        ),
    ]
    for second, reasons in cases:
        comparison = compare([a, second], n=5)
        assert not comparison.ranked
        assert [line.run.run for line in comparison.lines] == ["a", "b"]  # as given, though b is better
        assert all(line.rank is None and line.to_best is None for line in comparison.lines)
        assert "rank" not in comparison.cells()[0]
        assert not any("to_best" in name for name in comparison.table())
        assert len(comparison.reasons) == len(reasons)
        for reason in reasons:
            assert f"Not ranked: {reason}" in comparison.to_markdown()


def test_a_few_patients_give_no_ranks_and_fewer_give_no_intervals(tmp_path):
    for n, words in ((2, "no interval is given below 5 units"), (9, "intervals from so few units are too narrow")):
        runs = [made_run("a", n_patients=n), made_run("b", skill=3.0, n_patients=n)]
        comparison = compare(runs, n=50)
        text = comparison.to_markdown()
        assert not comparison.ranked and all(line.rank is None and line.to_best is None for line in comparison.lines)
        assert f"Not ranked: The test set has {n} patients:" in text and words in text
        assert np.isnan(comparison.lines[0].metrics["f1"].low) == ("Brackets" not in text) == (n < 5)
        assert comparison.table()["unit"].tolist() == [f"{n} patients"] * 2 and "to_best" not in " ".join(
            comparison.table()
        )
    assert compare([made_run("a", n_patients=10), made_run("b", n_patients=10)], n=5).ranked


def test_the_unit_is_named_in_the_report_the_table_and_the_notes(tmp_path):
    unit = {"kind": "sequence", "n": 20, "words": "20 sequences; patients unknown"}
    write_run(tmp_path, made_run("a", unit=unit))
    assert json.loads((tmp_path / "report.json").read_text())["unit"] == unit
    comparison = compare([read_run(tmp_path)], n=5)
    assert comparison.table()["unit"].tolist() == ["20 sequences; patients unknown"]
    assert "(a: 20 sequences; patients unknown)" in comparison.to_markdown()
    assert "20 sequences; patients unknown" in [cell for row in comparison.cells()[1] for cell in row]


def test_a_report_from_before_units_were_named_speaks_of_patients(tmp_path):
    write_run(tmp_path, made_run("a", audit={"findings": [], "verdict": "No leakage found."}))
    report = json.loads((tmp_path / "report.json").read_text())
    for metric in report["metrics"].values():
        metric["patients"] = metric.pop("units")
    del report["unit"]
    (tmp_path / "report.json").write_text(json.dumps(report))
    assert read_run(tmp_path).units_in_words == "20 patients"
    show_run(tmp_path, Output())


def test_the_terminal_shows_where_a_run_began_in_a_few_words(tmp_path, capsys):
    words = "107 of the backbone's 107 tensors come from demo (model folder); 14 tensors were not taken: heads.box"
    write_run(tmp_path, made_run("a", initialisation=words, audit={"findings": [], "verdict": "No leakage found."}))
    show_run(tmp_path, Output())
    assert "; demo, 107/107 tensors\n" in capsys.readouterr().out
    assert made_run("a", initialisation=SCRATCH["words"]).start == "from scratch"


def test_moved_true_boxes_are_another_test_set():
    a, b = made_run("a", "detection"), made_run("b", "detection")
    boxes = b.predictions["true_boxes"].map(lambda cell: [[x + 1 for x in box] for box in cell])
    assert compare([a, b], n=2).ranked
    assert compare([a, changed(b, true_boxes=boxes)], n=2).reasons


def test_the_files_hold_the_table_and_escape_what_comes_from_the_runs(tmp_path):
    a = made_run("<script>alert(1)</script>", skill=2.0, audit={"findings": ["2 patients | in train & test"]})
    paths = write_comparison(compare([a, made_run("b|c")], n=20), tmp_path)
    assert [path.name for path in paths] == [f"comparison.{ending}" for ending in ("md", "csv", "tex", "html", "json")]
    markdown, _, tex, page, _ = (path.read_text() for path in paths)
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
    assert "2 patients | in train &amp; test" in page
    assert "<script>" not in markdown
    assert "b\\|c" in markdown
    assert "2 patients \\| in train" in markdown
    table = pd.read_csv(paths[1])
    assert table["rank"].tolist() == [1, 2]
    assert np.isnan(table["f1_to_best"][0])
    assert {"f1", "f1_low", "f1_high", "f1_seed_std", "f1_to_best_p", "ece", "brier", "auc"} <= set(table)
    assert table["run"].tolist() == ["<script>alert(1)</script>", "b|c"]
    origin = read_json(paths[4])["provenance"]
    for text in (markdown, tex, page):
        assert all(str(origin[name]) in text for name in ("endofm_lab", "python", "host", "device"))
    assert tex.splitlines()[-1].startswith("% Provenance: endofm_lab ")
    assert "Provenance" not in paths[1].read_text()
    facts = read_json(paths[4])
    assert list(facts["sources"]) == table["run"].tolist() and facts["runs"][0]["f1"] == pytest.approx(table["f1"][0])
    lines = [line for line in markdown.splitlines() if line.startswith("|")]
    assert len({line.replace("\\|", "").count("|") for line in lines}) == 1  # every row has every column


def test_undefined_values_and_left_out_resamples_are_said():
    run = made_run("a", n_patients=6)
    target = [0] * 15 + [1] * 3
    comparison = compare([changed(run, target=target)], n=200)
    assert "auc is not defined in " in comparison.to_markdown()
    comparison = compare([changed(run, target=0)], n=10)
    assert "a: auc is not defined on this test set." in comparison.to_markdown()
    assert "not defined" in comparison.cells()[1][0]


def test_labels_that_exclude_nothing_are_compared_too():
    run = made_run("a")
    table = run.predictions.rename(columns={"target": "target_polyp"}).assign(
        target_normal=1 - run.predictions["target"]
    )
    comparison = compare([replace(run, predictions=table)], n=10).lines[0].metrics
    single = compare([run], n=10).lines[0].metrics
    assert comparison["auc"].value == pytest.approx(single["auc"].value)
    assert "ece" not in comparison


def test_phases_are_measured_per_video_and_resampled_per_patient():
    run = made_run("a", "phases", n_patients=6)
    rows = run.predictions.assign(patient=lambda t: t["video"].str[-1].astype(int) // 2)
    patients, metrics = Phases.measured(rows)
    assert patients.tolist() == [0, 0, 1, 1, 2, 2]
    assert metrics(np.ones(6))["accuracy"] == pytest.approx(
        (rows["target"] == rows["predicted"]).groupby(rows["video"]).mean().mean()
    )


def test_what_cannot_be_compared_is_refused():
    a = made_run("a")
    with pytest.raises(RunError, match="no runs to compare"):
        compare([])
    with pytest.raises(RunError, match="Several runs are called a"):
        compare([a, made_run("a")])
    with pytest.raises(RunError, match=r"different tasks \(classification, segmentation\)"):
        compare([a, made_run("b", "segmentation")])
    with pytest.raises(RunError, match="no metric 'dice'; choose one of f1"):
        compare([a], by="dice", n=2)


def test_an_unfinished_or_broken_run_is_named(tmp_path):
    run = made_run("a")
    write_run(tmp_path, run)
    report = json.loads((tmp_path / "report.json").read_text())
    (tmp_path / "report.json").write_text(json.dumps({k: v for k, v in report.items() if k != "protocol"}))
    with pytest.raises(RunError, match=r"report\.json lacks protocol"):
        read_run(tmp_path)
    (tmp_path / "report.json").write_text("{")
    with pytest.raises(RunError, match="cannot be read"):
        read_run(tmp_path)
    (tmp_path / "report.json").unlink()
    with pytest.raises(RunError, match=r"has no report\.json; give the folder of a finished run"):
        read_run(tmp_path)
    write_run(tmp_path, run)
    (tmp_path / "predictions.parquet").write_bytes(b"PAR1")
    with pytest.raises(RunError, match=r"predictions\.parquet"):
        read_run(tmp_path)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("metrics", 5),
        ("seeds", "01"),
        ("seeds", [None]),
        ("protocol", []),
        ("test", {}),
        ("task", ["x"]),
        ("run", None),
    ],
)
def test_an_altered_report_is_refused(key, value, tmp_path):
    write_run(tmp_path, made_run("a"))
    report = json.loads((tmp_path / "report.json").read_text())
    (tmp_path / "report.json").write_text(json.dumps(report | {key: value}))
    with pytest.raises(RunError, match=key):
        read_run(tmp_path)


def test_altered_predictions_of_a_run_are_refused(tmp_path):
    write_run(tmp_path, made_run("a"))
    table = pd.read_parquet(tmp_path / "predictions.parquet")
    for spoiled in (table.drop(columns="unit"), table.drop(columns="seed"), table.assign(seed="a")):
        spoiled.to_parquet(tmp_path / "predictions.parquet")
        with pytest.raises(RunError):
            read_run(tmp_path)
    (tmp_path / "predictions.parquet").write_bytes(b"PAR1")
    with pytest.raises(RunError, match="Parquet table"):
        read_run(tmp_path)


def test_the_file_names_its_units_as_what_they_are_and_files_of_older_versions_are_read(tmp_path):
    unit = {"kind": "sequence", "n": 20, "words": "20 sequences; patients unknown"}
    run = made_run("a", unit=unit)
    write_run(tmp_path, run)
    table = pd.read_parquet(tmp_path / "predictions.parquet")
    assert table.columns[:4].tolist() == ["seed", "row", "unit", "unit_kind"] and "patient" not in table
    assert set(table["unit_kind"]) == {"sequence"} and table["unit"].tolist() == run.predictions["patient"].tolist()
    pd.testing.assert_frame_equal(read_run(tmp_path).predictions, run.predictions)
    run.predictions.to_parquet(tmp_path / "predictions.parquet")  # as an older version wrote it
    pd.testing.assert_frame_equal(read_run(tmp_path).predictions, run.predictions)


def test_a_run_that_breaks_the_contract_is_not_written(tmp_path):
    run = made_run("a", seeds=(0, 1))
    table = run.predictions
    cases = [
        (replace(run, task="regression"), "task is 'regression'"),
        (replace(run, protocol={"dataset": "x"}), "protocol lacks chosen_on"),
        (replace(run, test={"split": "x"}), "test lacks fingerprint"),
        (replace(run, audit={}), "audit lacks findings"),
        (replace(run, seeds=(0, 1, 2)), r"of seeds \[0, 1\], the report says \[0, 1, 2\]"),
        (replace(run, predictions=table.drop(columns="target")), "lack the columns target"),
        (replace(run, predictions=table.drop(columns=["score_polyp", "score_normal"])), "lack score_<class>"),
        (replace(run, predictions=table.iloc[:0]), "have no rows"),
        (replace(run, predictions=table.iloc[1:]), "1 test items are not predicted by every seed"),
        (replace(run, predictions=pd.concat([table, table.iloc[:2]])), "2 rows are repeated"),
        (changed(run, patient=None), "120 rows have no unit"),
    ]
    for bad, message in cases:
        with pytest.raises(RunError, match=message):
            write_run(tmp_path / "bad", bad)
    assert not (tmp_path / "bad").exists()


def test_the_command_prints_the_table_and_writes_the_files(tmp_path, capsys):
    for name, skill in (("strong", 2.0), ("weak", 0.5)):
        write_run(tmp_path / name, made_run(name, skill=skill))
    assert main(["compare", str(tmp_path / "weak"), str(tmp_path / "strong"), "--out", str(tmp_path / "out")]) == 0
    text = capsys.readouterr().out
    assert text.index("| 1    | strong") < text.index("| 2    | weak")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "comparison.csv",
        "comparison.html",
        "comparison.json",
        "comparison.md",
        "comparison.tex",
    ]


def test_a_run_whose_metric_is_not_defined_comes_last():
    silent = made_run("silent", "detection")
    silent = changed(silent, scores=[[0.0]] * len(silent.predictions))
    comparison = compare([silent, made_run("b", "detection")], by="centre_precision", n=5)
    assert [line.run.run for line in comparison.lines] == ["b", "silent"]
    assert "| 2    | silent" in comparison.to_markdown()
    assert "silent: centre_precision is not defined on this test set." in comparison.to_markdown()
