"""Figures of attention and embeddings, and the two commands that write them."""

from fractions import Fraction

import numpy as np
import pandas as pd
import pytest
import torch

from endofm_lab.cli.main import main
from endofm_lab.data.manifest import write_manifest
from endofm_lab.errors import UserError
from endofm_lab.explain.attention import look
from endofm_lab.explain.embeddings import load_store
from endofm_lab.figures.attention import (
    blend,
    film_strip,
    frame_names,
    head_grid,
    head_statistics,
    overlay,
    patch_picker,
    temporal_matrices,
)
from endofm_lab.figures.embeddings import picture_sheet, scatter
from endofm_lab.figures.export import export
from endofm_lab.figures.style import WIDEST_PX
from endofm_lab.model.loading.load import save_model
from endofm_lab.video.reader import write_video
from tests.explain.models import small_clip, small_model


def test_the_highest_patch_is_the_yellowest_and_negative_values_stay_dark():
    frames = np.zeros((2, 4, 4, 3), np.uint8)
    values = torch.tensor([[[0.0, 1.0], [-5.0, 0.5]], [[0.0, 0.0], [0.0, 0.0]]])
    shown = blend(frames, values, smooth=False)
    yellow = (np.array([253, 231, 37]) * 0.75).round()
    np.testing.assert_allclose(shown[0, 0, 3], yellow, atol=1)
    assert (shown[0, 3, 0] == shown[0, 0, 0]).all() and (shown[1] == shown[0, 0, 0]).all()
    assert shown[0, 3, 3].sum() < shown[0, 0, 3].sum()


def test_the_slider_has_a_step_per_frame_and_each_step_its_picture():
    frames = np.random.default_rng(0).integers(0, 255, (3, 16, 16, 3), dtype=np.uint8)
    figure = overlay(frames, torch.rand(3, 2, 2), [0.0, 0.5, 0.5])
    names = [step.label for step in figure.layout.sliders[0].steps]
    assert names == ["0.00 s", "0.50 s (1)", "0.50 s (2)"] == [frame.name for frame in figure.frames]
    assert len({frame.data[0].source for frame in figure.frames}) == 3
    assert frame_names(2, None) == ["frame 0", "frame 1"]


def test_markers_lie_on_their_patches():
    figure = patch_picker(np.zeros((20, 40, 3), np.uint8), torch.arange(8.0).view(2, 4), (1, 2))
    markers = figure.data[1]
    assert (markers.x[6], markers.y[6]) == (25.0, 15.0) and list(markers.customdata[6]) == [1, 2]
    assert (figure.layout.shapes[0].x0, figure.layout.shapes[0].y0) == (20.0, 10.0)


def test_every_figure_draws_and_exports_alone(tmp_path):
    maps = look(small_model(), small_clip())
    frames = np.zeros((4, 32, 32, 3), np.uint8)
    figures = [
        film_strip(frames, maps.rollout()),
        head_grid(frames[0], {f"head {k}": maps.in_space(0, k)[0] for k in range(2)}),
        temporal_matrices({"a": maps.in_time(0), "b": maps.rollout_in_time()}, [0, 1, 2, 3]),
        temporal_matrices({name: maps.in_time(0) for name in "abcd"}),
        picture_sheet([frames[0]] * 3, ["a", "b", "c"]),
        head_statistics(maps.statistics()),
    ]
    for number, figure in enumerate(figures):
        page = export(figure, tmp_path / f"{number}.html").read_text()
        assert "Plotly.newPlot" in page and "cdn.plot.ly" not in page.split("</script>")[-2][-2000:]
        assert "#0000" not in figure.to_json().lower(), "Streamlit would replace this colour"
        assert (figure.layout.width or 0) <= WIDEST_PX
    with pytest.raises(UserError, match="html, png, svg, pdf"):
        export(figures[0], tmp_path / "figure.gif")


def test_the_map_of_embeddings_says_which_row_each_marker_is():
    rows = pd.DataFrame({"video": list("abcd"), "label": ["x", "y", "x", ""], "time_s": [0.0, 1.0, 2.0, 3.0]})
    figure = scatter(np.arange(8).reshape(4, 2), rows, "label")
    assert {trace.name: list(trace.customdata) for trace in figure.data} == {"(not known)": [3], "x": [0, 2], "y": [1]}
    assert list(scatter(np.arange(8).reshape(4, 2), rows, "time_s").data[0].customdata) == [0, 1, 2, 3]
    with pytest.raises(UserError, match="The columns are video, label, time_s"):
        scatter(np.zeros((4, 2)), rows, "device")
    with pytest.raises(UserError, match="at least one clip"):
        picture_sheet([], [])


@pytest.fixture
def noise(tmp_path):
    frames = np.random.default_rng(0).integers(0, 255, (12, 48, 64, 3), dtype=np.uint8)
    write_video(tmp_path / "noise.mp4", frames, Fraction(6))
    save_model(small_model(), tmp_path / "model")
    return tmp_path


def test_explain_writes_a_report_and_the_numbers(noise, capsys):
    arguments = ["explain", str(noise / "noise.mp4"), "--out", str(noise / "out"), "--model", str(noise / "model")]
    assert main(arguments) == 0
    page = (noise / "out" / "report.html").read_text()
    assert "Rollout" in page and "Completeness error" in page and "not for diagnosis" in page
    with np.load(noise / "out" / "maps.npz") as maps:
        assert maps["rollout"].shape == (4, 2, 2) and maps["time"].shape == (2, 4, 4)
        assert maps["integrated_gradients"].shape == maps["grad_cam"].shape == (4, 2, 2)
    assert main([*arguments, "--head", "finding", "--label", "cancer"]) == 2
    assert "choose one of normal, polyp, ulcer" in capsys.readouterr().err


def test_embed_prints_what_the_vectors_tell(noise, capsys):
    rows = [{"video": "noise.mp4", "start_s": n / 6, "end_s": n / 6 + 1, "label": "ab"[n % 2]} for n in range(6)]
    table = pd.DataFrame(rows).assign(patient=[f"p{n}" for n in range(6)], dataset="noise", split="train")
    write_manifest(table, noise / "manifest.csv")
    arguments = [str(noise / "manifest.csv"), "--out", str(noise / "store"), "--model", str(noise / "model")]
    assert main(["embed", *arguments]) == 0
    assert "6 clips (1 patient) embedded by small" in capsys.readouterr().out
    assert len(load_store(noise / "store")) == 6 and (noise / "store" / "pca.npz").exists()
