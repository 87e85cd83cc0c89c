"""The page Comparison without a browser: what it shows of finished runs, and when it refuses to rank them."""

from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from endofm_lab.runs.run import write_run
from tests.builders import made_run

APP = Path(__file__).resolve().parents[2] / "app"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ENDOFM_LAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.syspath_prepend(str(APP))
    return tmp_path / "cache"


def page(*runs, root):
    for run in runs:
        write_run(root / run.run, run)
    app = AppTest.from_file(str(APP / "screens" / "comparison.py"), default_timeout=280).run()
    assert not app.exception, app.exception
    return app


def texts(app):
    return "\n".join(element.value for element in app.markdown)


def test_runs_of_one_protocol_are_ranked_with_intervals_and_a_paired_test(cache):
    app = page(made_run("weak", skill=0.5), made_run("strong", skill=3.0), root=cache / "runs")
    table = app.dataframe[0].value
    assert table["run"].tolist() == ["strong", "weak"] and table["rank"].tolist() == ["1", "2"]
    assert "[" in table["f1"][0] and table["difference to the first"][1].startswith("-") and table["p"][1]
    assert not app.warning
    assert [b.label for b in app.download_button] == ["Table as Markdown", "Table as CSV", "Table as HTML"]
    assert len(app.get("plotly_chart")) == 3, "intervals, class by class, reliability"
    shown = texts(app).replace("\\", "")
    assert "Endo-FM (published)" in shown and "strong: 20 patients, weak: 20 patients" in shown


def test_runs_can_be_ranked_by_another_metric(cache):
    app = page(made_run("weak", skill=0.5), made_run("strong", skill=3.0), root=cache / "runs")
    next(s for s in app.sidebar.selectbox if s.label == "Rank by").set_value("brier").run()
    assert app.dataframe[0].value.columns[5] == "brier"
    assert "Lower is better: brier, ece" in texts(app).replace("\\", "")


def test_runs_of_another_protocol_are_not_ranked_and_the_page_says_why(cache):
    second = made_run("other", test={"fingerprint": "xyz", "split": "released"})
    app = page(made_run("first"), second, root=cache / "runs")
    warning = app.warning[0].value.replace("\\", "")
    assert "not ranked" in warning and "test fingerprint differs: first has abc, other has xyz" in warning
    assert "rank" not in app.dataframe[0].value


def test_one_task_is_compared_at_a_time(cache):
    app = page(made_run("a"), made_run("b", "segmentation"), made_run("c", "detection"), root=cache / "runs")
    assert app.dataframe[0].value["run"].tolist() == ["a"]
    app.button_group[0].set_value("detection").run()
    assert not app.exception
    assert app.dataframe[0].value["run"].tolist() == ["c"] and "ap50" in app.dataframe[0].value
    assert len(app.get("plotly_chart")) == 2, "intervals and class by class"


def test_a_run_that_cannot_be_read_is_named_and_an_empty_folder_says_how_to_make_one(cache):
    app = page(root=cache / "runs")
    assert "endofm-lab finetune" in app.info[0].value
    write_run(cache / "runs" / "broken", made_run("broken"))
    (cache / "runs" / "broken" / "report.json").write_text("{}")
    app.run()
    assert not app.exception and "broken" in app.warning[0].value


def test_names_from_files_are_shown_as_text(cache):
    app = page(made_run("![x](http://example.org/x.png)", method="<b>bold</b>"), root=cache / "runs" / "a")
    assert "](http" not in texts(app) and "<b>" not in texts(app)
