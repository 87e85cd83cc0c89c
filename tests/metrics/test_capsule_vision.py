"""Capsule Vision scores against a restatement in plain Python, the published team's file, and every way to be wrong."""

import json
import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from endofm_lab.cli.main import main
from endofm_lab.metrics.capsule_vision import (
    CLASSES,
    SubmissionError,
    read_probabilities,
    score,
    score_files,
    submission_problems,
    write_submission,
)


def made_case(n=120, seed=0):
    """Targets of all ten classes and probabilities that lean towards them, rounded so that ties occur."""
    draw = np.random.default_rng(seed)
    target = np.concatenate([np.arange(10), draw.choice(10, n - 10, p=[0.02] * 3 + [0.04] * 3 + [0.7] + [0.04] * 3)])
    raw = (
        np.round(draw.dirichlet(np.full(10, 0.3), n) * 10)
        + 4 * np.eye(10)[target] * (draw.random(n) < 0.6)[:, None]
        + 0.1
    )
    return target, raw / raw.sum(1, keepdims=True)


def restated(target, probabilities):
    """The challenge's numbers from pairs and counts."""

    def counts(truth, predicted):
        pairs = list(zip(truth, predicted, strict=True))
        return [sum(p == pair for p in pairs) for pair in [(True, True), (False, True), (True, False), (False, False)]]

    def auc(truth, column):
        positive = [c for t, c in zip(truth, column, strict=True) if t]
        negative = [c for t, c in zip(truth, column, strict=True) if not t]
        return sum((p > n) + 0.5 * (p == n) for p in positive for n in negative) / (len(positive) * len(negative))

    def divide(a, b):
        return a / b if b else 0.0

    best = [max(range(10), key=lambda k: row[k]) for row in probabilities]
    aucs, whole, single = [], [], {}
    for k, name in enumerate(CLASSES):
        truth = [t == k for t in target]
        column = [row[k] for row in probabilities]
        aucs.append(auc(truth, column))
        tp, fp, fn, tn = counts(truth, [b == k for b in best])
        precision, recall = divide(tp, tp + fp), divide(tp, tp + fn)
        f1 = divide(2 * precision * recall, precision + recall)
        whole.append((precision, recall, f1, divide(tn, tn + fp)))
        tp, fp, fn, tn = counts(truth, [c >= 0.5 for c in column])
        precision, recall = divide(tp, tp + fp), divide(tp, tp + fn)
        single[name] = {
            "precision": precision,
            "recall": recall,
            "f1_score": divide(2 * precision * recall, precision + recall),
            "specificity": divide(tn, tn + fp),
            "accuracy": (tp + tn) / len(target),
            "auc": aucs[-1],
        }
    precision, recall, f1, specificity = (sum(column) / 10 for column in zip(*whole, strict=True))
    mean_auc = sum(aucs) / 10
    return {
        "mean_auc": mean_auc,
        "balanced_accuracy": recall,
        "avg_precision": precision,
        "avg_sensitivity": recall,
        "avg_f1": f1,
        "avg_specificity": specificity,
        "class_wise_metrics": single,
        "ranking_score": (mean_auc + recall) / 2,
    }


def largest_difference(expected, actual):
    if isinstance(expected, dict):
        return max(largest_difference(value, actual[key]) for key, value in expected.items())
    return abs(expected - actual)


def submission(n=12):
    target, probabilities = made_case(n)
    table = pd.DataFrame(probabilities, columns=list(CLASSES))
    table.insert(0, "image_path", [f"test/{k:03d}.jpg" for k in range(n)])
    labels = pd.DataFrame({"image": [f"{k:03d}.jpg" for k in range(n)], "class": [CLASSES[k] for k in target]})
    return table, labels


@pytest.mark.parametrize("seed", range(4))
def test_every_number_equals_the_restatement(seed):
    target, probabilities = made_case(seed=seed)
    assert largest_difference(restated(target, probabilities), score(target, probabilities)) < 1e-12


def test_a_probability_of_exactly_one_half_counts_as_predicted():
    probabilities = np.eye(10)
    probabilities[0] = [0.5, 0.5, 0, 0, 0, 0, 0, 0, 0, 0]
    by_class = score(np.arange(10), probabilities)["class_wise_metrics"]
    assert by_class["Angioectasia"]["recall"] == 1
    assert by_class["Bleeding"]["precision"] == 0.5


def test_a_class_without_images_is_none_and_left_out_of_the_means():
    result = score(np.arange(9), np.eye(10)[:9])
    assert result["class_wise_metrics"]["Worms"]["auc"] is None
    assert result["class_wise_metrics"]["Worms"]["recall"] is None
    assert (result["mean_auc"], result["balanced_accuracy"], result["errors_above_0.9"]) == (1, 1, None)
    json.dumps(result, allow_nan=False)


def test_the_order_of_rows_does_not_matter(tmp_path):
    table, labels = submission()
    labels.to_csv(tmp_path / "labels.csv", index=False)
    table.to_csv(tmp_path / "a.csv", index=False)
    table.sample(frac=1, random_state=1).to_csv(tmp_path / "b.csv", index=False)
    assert score_files(tmp_path / "labels.csv", tmp_path / "a.csv") == score_files(
        tmp_path / "labels.csv", tmp_path / "b.csv"
    )


@pytest.mark.parametrize("ending", ["csv", "xlsx"])
def test_a_written_submission_reads_back_and_scores_the_same(tmp_path, ending):
    _, probabilities = made_case(30)
    images = ["=SUM(A1).jpg", *(f"a/b/{k}.jpg" for k in range(29))]
    path = tmp_path / f"submission.{ending}"
    write_submission(path, images, probabilities)
    table = read_probabilities(path)
    assert list(table.index) == images
    np.testing.assert_allclose(table.to_numpy(), probabilities, rtol=0, atol=1e-15)
    raw = pd.read_excel(path) if ending == "xlsx" else pd.read_csv(path)
    assert list(raw.columns) == ["image_path", *CLASSES, "predicted_class"]
    assert list(raw["predicted_class"]) == [CLASSES[k] for k in probabilities.argmax(1)]
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_a_good_submission_has_no_problems():
    assert submission_problems(submission()[0]) == []


def spoil(change):
    table, _ = submission()
    return " ".join(submission_problems(change(table)))


def with_value(row, column, value):
    def change(table):
        table = table.astype({column: object})
        table.loc[row, column] = value
        return table

    return change


def test_every_kind_of_bad_submission_is_found_and_named():
    reordered = ["image_path", *CLASSES[:3], CLASSES[4], CLASSES[3], *CLASSES[5:]]
    problem = spoil(lambda t: t[reordered])
    assert "wrong order: number 4 is 'Foreign Body', but must be 'Erythema'" in problem
    assert "1 class columns are missing: 'Worms'" in spoil(lambda t: t.drop(columns="Worms"))
    problem = spoil(lambda t: t.rename(columns={"Worms": "worms"}))
    assert "missing: 'Worms'" in problem
    assert "unknown: 'worms'" in problem
    assert "no image column" in spoil(lambda t: t.rename(columns={"image_path": "frame"}))
    assert "1 images have more than one row: '002.jpg'" in spoil(lambda t: pd.concat([t, t.iloc[[2]]]))
    assert "NaN probabilities: '001.jpg'" in spoil(with_value(1, "Polyp", np.nan))
    assert "not finite numbers: '001.jpg'" in spoil(with_value(1, "Polyp", "high"))
    assert "not finite numbers: '001.jpg'" in spoil(with_value(1, "Polyp", np.inf))
    assert "1 rows do not sum to one within 0.001: '003.jpg'" in spoil(with_value(3, "Normal", 0.0))
    assert "outside [0, 1]: '003.jpg'" in spoil(with_value(3, "Normal", -0.2))
    assert "1 rows have no image name" in spoil(with_value(3, "image_path", None))
    assert "there are no rows" in spoil(lambda t: t.iloc[:0])
    wrong = submission()[0].assign(predicted_class="Worms")
    assert "predicted_class that is not the most probable" in " ".join(submission_problems(wrong))


def test_several_problems_are_named_at_once():
    table = with_value(1, "Polyp", np.nan)(submission()[0])
    table = pd.concat([table, table.iloc[[2]]])
    assert len(submission_problems(table)) == 2


def test_rounding_to_four_digits_is_accepted_and_to_one_is_not():
    table, _ = submission()
    assert submission_problems(table.round(4)) == []
    assert "do not sum to one" in spoil(lambda t: t.round(1))


def test_missing_and_unknown_images_are_counted(tmp_path):
    table, labels = submission()
    labels.to_csv(tmp_path / "labels.csv", index=False)
    table.iloc[2:].assign(image_path=table["image_path"].replace("test/005.jpg", "test/other.jpg")).to_csv(
        tmp_path / "p.csv", index=False
    )
    with pytest.raises(SubmissionError) as error:
        score_files(tmp_path / "labels.csv", tmp_path / "p.csv")
    assert "3 of 12 labelled images have no row: '000.jpg', '001.jpg', '005.jpg'" in str(error.value)
    assert "1 rows belong to images without a label: 'other.jpg'" in str(error.value)
    assert str(pickle.loads(pickle.dumps(error.value))) == str(error.value)


def test_bad_labels_are_named(tmp_path):
    table, labels = submission()
    table.to_csv(tmp_path / "p.csv", index=False)
    for change, message in [
        (labels.replace({"class": {"Normal": "normal-mucosa"}}), "'normal-mucosa'"),
        (pd.concat([labels, labels.iloc[[0]]]), "more than one row: '000.jpg'"),
        (labels.rename(columns={"class": "label"}), "'image' and 'class' are needed"),
    ]:
        change.to_csv(tmp_path / "labels.csv", index=False)
        with pytest.raises(SubmissionError, match=message):
            score_files(tmp_path / "labels.csv", tmp_path / "p.csv")


@pytest.mark.parametrize(
    ("name", "content"), [("x.csv", b""), ("x.xlsx", b"not a zip"), ("x.csv", b"\xff\xfe\x00\x01")]
)
def test_a_file_that_is_no_table_is_an_error_that_names_it(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SubmissionError, match=name):
        read_probabilities(tmp_path / name)
    with pytest.raises(SubmissionError, match="does not exist"):
        read_probabilities(tmp_path / "absent.csv")


def test_a_bad_submission_is_not_written(tmp_path):
    with pytest.raises(SubmissionError, match="do not sum to one"):
        write_submission(tmp_path / "s.csv", ["a.jpg"], np.full((1, 10), 0.2))
    with pytest.raises(SubmissionError, match=r"shape \(1, 9\), but must have shape \(1, 10\)"):
        write_submission(tmp_path / "s.csv", ["a.jpg"], np.full((1, 9), 1 / 9))
    with pytest.raises(SubmissionError, match=r"'\.txt'; use \.xlsx or \.csv"):
        write_submission(tmp_path / "s.txt", ["a.jpg"], np.full((1, 10), 0.1))
    assert list(tmp_path.iterdir()) == []


def test_the_command_prints_a_table_or_json_and_can_write_the_spreadsheet(tmp_path, capsys):
    table, labels = submission(40)
    table = table.round(6)  # a spreadsheet keeps 16 digits: ties must not hang on the 17th
    labels.to_csv(tmp_path / "labels.csv", index=False)
    table.to_csv(tmp_path / "p.csv", index=False)
    expected = score_files(tmp_path / "labels.csv", tmp_path / "p.csv")
    arguments = ["--labels", str(tmp_path / "labels.csv"), "--probabilities", str(tmp_path / "p.csv")]
    assert main(["score", "capsule-vision", *arguments, "--json", "--submission", str(tmp_path / "s.xlsx")]) == 0
    assert json.loads(capsys.readouterr().out) == expected
    assert score_files(tmp_path / "labels.csv", tmp_path / "s.xlsx") == expected
    assert main(["score", "capsule-vision", *arguments]) == 0
    text = capsys.readouterr().out
    assert f"{expected['ranking_score']:.4f}" in text
    assert "Lymphangiectasia" in text


@pytest.mark.real_data
def test_the_published_team_file_scores_to_its_published_metrics():
    if "ENDOFM_LAB_DATA" not in os.environ:
        pytest.skip("ENDOFM_LAB_DATA is not set")
    folder = Path(os.environ["ENDOFM_LAB_DATA"]) / "label-lists" / "capsule-vision-2024"
    if not folder.is_dir():
        pytest.skip(f"{folder} is absent")
    result = score_files(folder / "test_labels.csv", folder / "test_probabilities_PuppyOps.csv")
    expected = json.loads((folder / "test_metrics_PuppyOps.json").read_text())
    assert largest_difference(expected, result) < 1e-9
    assert result["ece"] == pytest.approx(0.041, abs=5e-4)
    assert result["errors_above_0.9"] == pytest.approx(0.18, abs=5e-3)


def test_image_names_that_a_spreadsheet_would_run_are_text_in_csv_and_read_as_they_were(tmp_path):
    names = ["=HYPERLINK(1).jpg", "@a.jpg", "-1+1.jpg", "+b.jpg", "'=c.jpg", "plain.jpg"]
    probabilities = np.full((len(names), 10), 0.1)
    write_submission(tmp_path / "s.csv", names, probabilities)
    lines = (tmp_path / "s.csv").read_text().splitlines()[1:]
    assert not [line for line in lines if line[0] in "=+-@"] and lines[0].startswith("'=HYPERLINK(1).jpg,0.1,")
    read = read_probabilities(tmp_path / "s.csv")
    assert list(read.index) == names
    np.testing.assert_array_equal(read.to_numpy(), probabilities)


def archive(path, entries):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in entries.items():
            file.writestr(name, content)


def test_a_spreadsheet_that_is_damaged_or_would_fill_the_memory_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "s.xlsx"
    for entries in ({}, {"[Content_Types].xml": "<Types"}, {"xl/workbook.xml": "no XML"}):
        archive(path, entries)
        with pytest.raises(SubmissionError, match="not a table that can be read"):
            score_files(path, path)
    monkeypatch.setattr("endofm_lab.data.foreign_tables._MOST_UNPACKED", 1_000_000)
    archive(path, {"xl/worksheets/sheet1.xml": b" " * 2_000_000})
    with pytest.raises(SubmissionError, match="unpacks to 2,000,000 bytes"):
        score_files(path, path)
