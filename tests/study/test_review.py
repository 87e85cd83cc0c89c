"""Decisions on the findings of a study are never lost, belong to the right finding, and are refused if unreadable."""

import csv
import re

import numpy as np
import pandas as pd
import pytest

from endofm_lab.errors import UserError
from endofm_lab.study.review import CONFIRM, OPEN, REJECT, REVIEW, decide, list_findings, read_review, with_decisions


def table(*rows):
    """Findings: (finding, start_s, end_s, frame), ten frames a second."""
    columns = ["finding", "start_s", "end_s", "frame"]
    findings = pd.DataFrame(rows, columns=columns).assign(head="finding", score=0.1 + 0.2)
    findings["time_s"] = findings["frame"] / 10
    findings.insert(0, "number", np.arange(1, len(findings) + 1))
    return findings


POLYP, ULCER = ("polyp", 1.0, 3.0, 20), ("ulcer", 5.0, 6.0, 50)


def decisions(folder, findings):
    return with_decisions(findings, read_review(folder))["decision"].tolist()


def test_the_last_decision_counts_and_earlier_ones_stay_in_the_file(tmp_path):
    findings = table(POLYP, ULCER)
    assert decisions(tmp_path, findings) == [OPEN, OPEN]
    decide(tmp_path, findings.iloc[0], CONFIRM, "flat, 5 mm")
    before = (tmp_path / REVIEW).read_bytes()
    decide(tmp_path, findings.iloc[0], REJECT, 'a fold, "not" a polyp,\nsecond line')
    decide(tmp_path, findings.iloc[1], CONFIRM)
    decide(tmp_path, findings.iloc[1], OPEN)
    assert (tmp_path / REVIEW).read_bytes().startswith(before)
    review = with_decisions(findings, read_review(tmp_path))
    assert review["decision"].tolist() == [REJECT, OPEN]
    assert review.loc[0, "remark"] == 'a fold, "not" a polyp,\nsecond line'
    assert read_review(tmp_path)["decision"].tolist() == [CONFIRM, REJECT, CONFIRM, OPEN]
    assert read_review(tmp_path)["score"].tolist() == [0.1 + 0.2] * 4


def test_a_decision_holds_for_the_segment_around_its_frame_however_the_scores_are_smoothed(tmp_path):
    decide(tmp_path, table(POLYP).iloc[0], CONFIRM)
    assert decisions(tmp_path, table(("polyp", 0.5, 4.0, 33))) == [CONFIRM]
    assert decisions(tmp_path, table(("polyp", 1.0, 2.0, 12), ("polyp", 2.0, 3.0, 25))) == [OPEN, CONFIRM]
    assert decisions(tmp_path, table(("ulcer", 1.0, 3.0, 20)))[0] == OPEN, "another finding at the same time"


def test_a_decision_outside_every_segment_is_still_listed(tmp_path):
    decide(tmp_path, table(POLYP).iloc[0], CONFIRM, "sure")
    review = with_decisions(table(ULCER), read_review(tmp_path))
    assert review[["number", "finding", "decision", "remark"]].values.tolist() == [
        [1, "ulcer", OPEN, ""],
        [2, "polyp", CONFIRM, "sure"],
    ]
    decide(tmp_path, table(POLYP).iloc[0], OPEN)
    assert len(with_decisions(table(ULCER), read_review(tmp_path))) == 1


def test_listing_adds_new_findings_and_withdraws_no_decision(tmp_path):
    list_findings(tmp_path, table(POLYP, ULCER))
    decide(tmp_path, table(POLYP).iloc[0], REJECT)
    updated = list_findings(tmp_path, table(("polyp", 0.0, 4.0, 30), ULCER))  # other smoothing, other best frame
    assert updated["decision"].tolist() == [REJECT, OPEN]
    assert read_review(tmp_path)["frame"].tolist() == [20, 50, 20, 30]
    assert decisions(tmp_path, table(("polyp", 0.0, 4.0, 30))) == [REJECT]


def test_a_table_filled_in_by_hand_is_read(tmp_path):
    list_findings(tmp_path, table(POLYP, ULCER))
    text = (tmp_path / REVIEW).read_text().splitlines()
    text[1] = text[1].removesuffix(",,,,") + ",Confirm ,seen twice,,"
    (tmp_path / REVIEW).write_text("\ufeff" + "\r\n".join(text), encoding="utf-8")  # without a line break at the end
    assert decisions(tmp_path, table(POLYP, ULCER)) == [CONFIRM, OPEN]
    decide(tmp_path, table(ULCER).iloc[0], REJECT)
    assert decisions(tmp_path, table(POLYP, ULCER)) == [CONFIRM, REJECT]


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda text: text.replace(",", ";"), "commas and the columns"),
        (lambda text: text.replace("confirm", "maybe"), "line 2: The decision is 'maybe'"),
        (lambda text: text.replace(",20,", ",twenty,"), "twenty"),
        (lambda text: "", "commas and the columns"),
    ],
)
def test_a_table_that_cannot_be_read_is_refused_and_left_as_it_is(tmp_path, spoil, words):
    decide(tmp_path, table(POLYP).iloc[0], CONFIRM)
    text = spoil((tmp_path / REVIEW).read_text())
    (tmp_path / REVIEW).write_text(text)
    with pytest.raises(UserError, match=words):
        read_review(tmp_path)
    with pytest.raises(UserError, match=REVIEW):
        decide(tmp_path, table(ULCER).iloc[0], REJECT)
    assert (tmp_path / REVIEW).read_text() == text


def test_a_decision_that_cannot_be_stored_is_an_error(tmp_path):
    with pytest.raises(UserError, match="'perhaps'"):
        decide(tmp_path, table(POLYP).iloc[0], "perhaps")
    (tmp_path / "a file").write_text("in the folder's place")
    with pytest.raises(UserError, match="not stored"):
        decide(tmp_path / "a file", table(POLYP).iloc[0], CONFIRM)


def test_cells_that_a_spreadsheet_would_run_are_written_as_text_and_read_back_unchanged(tmp_path):
    texts = ["=cmd|' /C calc'!A0", "+1+1", "-2+3", "@SUM(A1)", "'=quoted", "''@twice", "'plain", "-0.5", "a=b", ""]
    for number, text in enumerate(texts):
        finding = {"head": text, "finding": text, "start_s": -1.5, "end_s": 2.0, "frame": number, "time_s": 0.5}
        decide(tmp_path, {**finding, "score": 0.75}, CONFIRM, text)
    read = read_review(tmp_path)
    assert list(read["head"]) == list(read["finding"]) == list(read["remark"]) == texts
    assert list(read["start_s"]) == [-1.5] * len(texts), "numbers stay numbers"
    with (tmp_path / REVIEW).open(newline="") as file:
        cells = [cell for row in csv.reader(file) for cell in row]
    runs = [cell for cell in cells if cell[:1] in tuple("=+-@") and not re.fullmatch(r"-[0-9.]+", cell)]
    assert not runs and "'=cmd|' /C calc'!A0" in cells and "-1.5" in cells


def test_a_table_of_an_older_version_is_read_and_completed_by_the_column_for_the_reader(tmp_path):
    decide(tmp_path, table(POLYP).iloc[0], REJECT, "=fold")
    text = (tmp_path / REVIEW).read_text()
    (tmp_path / REVIEW).write_text("\n".join(line.rpartition(",")[0] for line in text.splitlines()) + "\n")
    assert decisions(tmp_path, table(POLYP, ULCER)) == [REJECT, OPEN]
    decide(tmp_path, table(ULCER).iloc[0], CONFIRM, by=" A. Reader ")
    seen = with_decisions(table(POLYP, ULCER), read_review(tmp_path))
    assert seen[["decision", "remark", "decided_by"]].values.tolist() == [
        [REJECT, "=fold", ""],
        [CONFIRM, "", "A. Reader"],
    ]
