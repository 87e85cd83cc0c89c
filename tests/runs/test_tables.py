"""Tables for papers: the published results beside local runs, as Markdown, CSV and LaTeX."""

import io
import re

import pandas as pd

from endofm_lab.cli.main import main
from endofm_lab.files import read_json
from endofm_lab.folders.provenance import provenance
from endofm_lab.runs import tables
from endofm_lab.runs.paper_table import paper_table
from endofm_lab.runs.run import find_runs, write_run
from tests.builders import EVIL, made_run


def polypdiag(name, split="patient-wise", chosen_on="validation"):
    protocol = {"dataset": "PolypDiag", "chosen_on": chosen_on}
    return made_run(name, protocol=protocol, test={"fingerprint": "abc", "split": split})


def test_the_paper_table_has_the_published_rows_and_marks_other_protocols():
    cvc = made_run("c", "segmentation", protocol={"dataset": "CVC-12k", "chosen_on": "validation"})
    text = paper_table([polypdiag("ours"), polypdiag("theirs", "released", "test"), cvc, made_run("other")])
    lines = text.splitlines()
    assert any(
        "Endo-FM (published)" in line and "| 90.7" in line and "| 73.9" in line and "| 84.1" in line for line in lines
    )
    first, second = (next(line for line in lines if line.startswith(f"| {name} (")) for name in ("ours", "theirs"))
    assert "(1) (2)" in first
    assert "(1)" not in second
    assert "- (1) split 'patient-wise' (published: 'released')" in text
    assert "- (2) epoch chosen on validation (published: test)" in text
    assert "- (3) Dice over frames with a lesion" in text
    assert "7 of the 9 test sequences (121 of 171 frames)" in text
    assert text.index("not comparable") < text.index("| other (")


def test_the_paper_table_finds_runs_in_a_folder_and_says_what_it_left_out(tmp_path, capsys):
    write_run(tmp_path / "deep" / "a", polypdiag("a"))
    write_run(tmp_path / "broken", polypdiag("b"))
    (tmp_path / "broken" / "report.json").write_text("{}")
    runs, problems = find_runs(tmp_path)
    assert [run.run for run in runs] == ["a"]
    assert "lacks run, task" in problems[0]
    assert main(["paper-table", "--runs", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert "| a (linear probe; scratch)" in text
    assert "Left out: " in text
    assert main(["paper-table", "--runs", str(tmp_path / "nowhere")]) == 0
    assert "There are no local runs yet." in capsys.readouterr().out


def test_the_paper_table_as_csv_has_a_row_per_value_and_as_latex_its_notes_as_comments(tmp_path, capsys):
    runs = [polypdiag("=a_1"), made_run("other")]
    table = pd.read_csv(io.StringIO(paper_table(runs, "csv"))).set_index("run")
    assert len(table) == 3 * 9 + 2 and table.loc["Endo-FM (published)", "percent"].tolist() == [90.7, 73.9, 84.1]
    row = table.loc["'=a_1 (linear probe; scratch)"]
    expected = runs[0].samples().interval("f1")
    assert [row["percent"], row["low"]] == [round(100 * expected.value, 2), round(100 * expected.low, 2)]
    assert row["differs"].startswith("split 'patient-wise'") and table["differs"].tolist()[-1] == "other data"
    text = paper_table(runs, "latex")
    assert r"=a\_1 (linear probe; scratch) & " in text and "% (1) split 'patient-wise'" in text
    assert text.count(r"\begin{tabular}") == 2 and r"Endo-FM (published) & 90.7 & 73.9 & 84.1 \\" in text
    write_run(tmp_path / "a", runs[0])
    assert main(["paper-table", "--runs", str(tmp_path), "--format", "csv"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("run,data set,task,metric,percent,low,high,differs\n") and "Provenance" not in printed
    pd.testing.assert_frame_equal(
        pd.read_csv(io.StringIO(printed)), pd.read_csv(io.StringIO(paper_table(runs[:1], "csv")))
    )


def test_the_files_of_the_paper_table_name_their_provenance_and_its_csv_stays_a_table(tmp_path, capsys):
    write_run(tmp_path / "runs" / "a", polypdiag("a"))
    out = tmp_path / "table"
    assert main(["paper-table", "--runs", str(tmp_path / "runs"), "--out", str(out), "--format", "latex"]) == 0
    assert "\n% Provenance: endofm_lab " in capsys.readouterr().out
    assert sorted(path.name for path in out.iterdir()) == [f"paper_table.{e}" for e in ("csv", "json", "md", "tex")]
    facts = read_json(out / "paper_table.json")
    assert set(facts["provenance"]) == set(provenance()) and list(facts["sources"]) == ["a"]
    table = pd.read_csv(out / "paper_table.csv")
    assert len(table) == len(facts["values"]) == 3 * 9 + 1 and table["metric"].notna().all()
    for ending, beginning in (("md", "Provenance: "), ("tex", "% Provenance: ")):
        last = (out / f"paper_table.{ending}").read_text().splitlines()[-1]
        assert last.startswith(beginning) and facts["provenance"]["host"] in last


def test_the_command_compare_prints_the_table_in_three_formats(tmp_path, capsys):
    for name in ("a_1", "b&c"):
        write_run(tmp_path / name, made_run(name))
    line = ["compare", str(tmp_path / "a_1"), str(tmp_path / "b&c"), "--format"]
    outputs = {}
    for form in ("markdown", "csv", "latex"):
        assert main([*line, form]) == 0
        outputs[form] = capsys.readouterr().out
    assert (
        outputs["markdown"].startswith("| rank | run") and r"a\_1" in outputs["latex"] and r"b\&c" in outputs["latex"]
    )
    assert set(pd.read_csv(io.StringIO(outputs["csv"]))["run"]) == {"a_1", "b&c"}
    assert main([*line, "word"]) == 2
    assert "--format" in capsys.readouterr().err


def test_every_character_of_a_cell_is_shown_by_latex_as_it_is():
    signs = {v: k for k, v in tables._LATEX.items()}
    pattern = re.compile("|".join(map(re.escape, sorted(signs, key=len, reverse=True))))
    for text in ("50 % of a_b & $x^2$ ~ {c} \\input{x} #1 <b> ±0.1 | 3×4", "[0.1, 0.2]", "*star", "two\nlines", EVIL):
        cell = tables.latex(text)
        assert not re.search(r"(?<!\\)[&%_#]", cell) and not cell.startswith(("[", "*"))
        shown = pattern.sub(lambda match: signs[match.group()], re.sub(r"^\{(.)\}", r"\1", cell))
        assert shown == " ".join(text.split())
    table = tables.latex_table(["a", "b"], [["x & y", "[1]"]])
    assert table.splitlines()[3:6] == [r"  a & b \\", r"  \midrule", r"  x \& y & {[}1] \\"]
