"""Names of files, classes and patients are shown as text in figures, and no figure offers to upload itself."""

import ast
import html
import importlib
import json
import runpy
from pathlib import Path

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import plotly.io as pio
import pytest

from endofm_lab.data.splits import holdout
from endofm_lab.errors import UserError
from endofm_lab.figures import style
from endofm_lab.figures.attention import overlay
from endofm_lab.figures.comparison import classes, reliability, ribbons
from endofm_lab.figures.data import class_counts, split_balance
from endofm_lab.figures.embeddings import picture_sheet, scatter
from endofm_lab.figures.export import export, export_all
from endofm_lab.figures.prediction import frame_figure
from endofm_lab.figures.style import CONFIG, tidy
from endofm_lab.reports.html import write_report

HOSTILE = '<a href="http://attacker.invalid">x</a><br><span style="cursor:url(http://attacker.invalid/y.png)">&'
ROOT = Path(__file__).resolve().parents[2]
FRAME = np.zeros((8, 8, 3), np.uint8)


def hostile_figures():
    table = pd.DataFrame({"video": [f"{n}{HOSTILE}.mp4" for n in range(40)], "label": [HOSTILE, "polyp"] * 20})
    table = table.assign(patient=[f"{n}{HOSTILE}" for n in range(40)], split=HOSTILE, sequence="", dataset=HOSTILE)
    boxes = pd.DataFrame([{"x1": 1, "y1": 1, "x2": 4, "y2": 4, "label": HOSTILE, "score": 0.5}])
    measured = [{"class": HOSTILE, "metric": HOSTILE, "items": 3, "value": 0.5, "low": 0.4, "high": 0.6, "units": 12}]
    truth, scores = np.array([0, 1]), np.array([[0.8, 0.2], [0.3, 0.7]])
    return {
        "class counts": class_counts(table, title=HOSTILE),
        "split": split_balance(holdout(table, {"train": 0.5, HOSTILE: 0.5}, 0)),
        "scatter": scatter(np.zeros((40, 2)), table, "label"),
        "sheet": picture_sheet([FRAME], [HOSTILE]),
        "classes": classes({HOSTILE: pd.DataFrame(measured), "another": pd.DataFrame(measured)}),
        "reliability": reliability({HOSTILE: (truth, scores)}),
        "ribbons": ribbons([0, 1, 2], {HOSTILE: [0, 1]}, [HOSTILE, "b"]),
        "frame": frame_figure(FRAME, boxes=boxes, title=HOSTILE),
        "overlay": overlay(FRAME[None], np.ones((1, 2, 2)), title=HOSTILE),
    }


@pytest.mark.parametrize("name", list(hostile_figures()))
def test_foreign_text_in_a_figure_is_not_markup(name):
    figure = hostile_figures()[name].to_plotly_json()
    figure["layout"].pop("template")
    texts = list(texts_of(figure))
    assert any("attacker" in text for text in texts), "the figure shows the text"
    for text in texts:
        assert "<a" not in text and "<span" not in text and "<br><span" not in text, text
        assert "attacker" not in text or html.escape(HOSTILE, quote=False) in text, "no character is lost"


def texts_of(value):
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for name, inner in value.items():
            if name not in ("offsetgroup", "legendgroup", "source"):  # never drawn as text
                yield from texts_of(inner)
    elif isinstance(value, list | tuple | np.ndarray):
        for inner in value:
            yield from texts_of(inner)


def test_ordinary_text_and_the_templates_of_the_project_stay_unchanged():
    figure = tidy(go.Figure(go.Scatter(x=["a", "b"], y=[1, 2], name="polyp", hovertemplate="%{y}<br>c<extra></extra>")))
    assert list(figure.data[0].x) == ["a", "b"] and figure.data[0].name == "polyp"
    assert figure.data[0].hovertemplate == "%{y}<br>c<extra></extra>"


def test_no_display_of_a_figure_offers_to_upload_it(tmp_path):
    figure = tidy(go.Figure(go.Scatter(x=[1], y=[1])))
    assert CONFIG["showSendToCloud"] is False
    pages = [export(figure, tmp_path / "one.html"), write_report(tmp_path / "two.html", "t", [("s", [figure])])]
    for page in pages:
        assert '"showSendToCloud": false' in page.read_text()
    assert CONFIG["plotlyServerURL"] == "", "Plotly changes what it is given"
    assert set(figure.layout.modebar.remove) == {"sendDataToCloud", "editInChartStudio"}, "whoever shows it"


def test_a_notebook_offers_no_upload_of_figures_of_its_own():
    importlib.import_module("IPython")  # as in a notebook, where the style is imported after it
    runpy.run_path(style.__file__)
    figure = go.Figure(go.Scatter(x=[1], y=[1]))
    for name in ("plotly_mimetype", "notebook", "browser", "iframe", "vscode"):
        assert pio.renderers[name].config["showSendToCloud"] is False, name
    shown = pio.renderers["plotly_mimetype"].to_mimebundle(figure.to_dict())
    assert json.loads(json.dumps(shown))["application/vnd.plotly.v1+json"]["config"]["plotlyServerURL"] == ""


def test_every_figure_of_app_and_widgets_is_shown_with_that_configuration():
    calls = {"plotly_chart": 0, "FigureWidget": 0}
    for path in [*(ROOT / "app").rglob("*.py"), ROOT / "endofm_lab" / "widgets.py"]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in calls:
                calls[node.func.attr] += 1
                arguments = {word.arg: ast.unparse(word.value) for word in node.keywords}
                if node.func.attr == "plotly_chart":
                    assert arguments.get("config") in ("CONFIG", "STILL"), f"{path}:{node.lineno}"
    assert calls["plotly_chart"] > 20
    assert calls["FigureWidget"] == 1, "a single function makes the widgets, with this configuration"


@pytest.mark.slow
@pytest.mark.parametrize(("ending", "start"), [("pdf", b"%PDF"), ("svg", b"<svg"), ("png", b"\x89PNG")])
def test_figures_for_papers_are_written_if_a_browser_is_installed(tmp_path, ending, start):
    pytest.importorskip("kaleido")
    figure = frame_figure(FRAME, title="A figure")
    try:
        (path,) = export_all({"A figure, with its name": figure}, tmp_path, ending)
    except UserError as error:
        pytest.skip(str(error))
    assert path.name == f"a-figure-with-its-name.{ending}" and path.read_bytes().startswith(start)
