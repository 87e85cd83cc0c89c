"""Studies say which frames look unlike what the model learned: in tables, findings, timeline, report and JSON."""

import json
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

import endofm_lab.study.study as study_module
from endofm_lab.cli.main import main
from endofm_lab.familiarity.statistics import familiarity_of
from endofm_lab.figures.study import study_timeline
from endofm_lab.model.loading.load import save_model
from endofm_lab.reports.study import write_study_report
from endofm_lab.study.findings import findings, top_frames
from endofm_lab.study.study import load_study, run_study, study_steps
from endofm_lab.video.reader import open_video, write_video
from endofm_lab.video.transforms import to_input
from tests.builders import frame_model

VERSION_1 = Path(__file__).parents[1] / "goldens" / "version_1"
N, FROM = 80, 50  # frames of the video; from this one on they are of another kind


def picture(at):
    """A smooth pattern that drifts; uint8 (48, 64, 3)."""
    y, x = np.mgrid[:48, :64]
    waves = [np.sin((x + 3 * at) / 7 + c) * np.cos((y + at) / (5 + c)) for c in range(3)]
    return np.stack([wave * 80 + 127 for wave in waves], -1).astype(np.uint8)


def untrained():
    return frame_model(np.stack([picture(at) for at in range(0, N, 10)]))


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setattr(study_module, "PART_FRAMES", 32)


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    path = tmp_path_factory.mktemp("video") / "study.mp4"
    strange = np.random.default_rng(0).integers(0, 2, (N, 6, 8, 3), dtype=np.uint8).repeat(8, 1).repeat(8, 2) * 255
    write_video(path, (strange[at] if at >= FROM else picture(at) for at in range(N)), Fraction(10))
    return path


@pytest.fixture(scope="module")
def model(video):
    """A model whose statistics are those of the first frames of the video."""
    network = untrained()
    with open_video(video) as reader:
        clips = torch.cat([to_input(reader.read([at]), network.card.input) for at in range(FROM)])
    features = network.answer(clips)[1].numpy()
    network.familiarity = familiarity_of(features, features, np.arange(FROM), {"train_clips": FROM})
    return network


@pytest.fixture(scope="module")
def study(video, model, tmp_path_factory):
    return run_study(video, model, tmp_path_factory.mktemp("study") / "out", progress=False)


def test_frames_of_another_kind_are_unfamiliar_and_the_table_has_the_distance(study):
    strange = study.unfamiliar_frames()
    assert strange[FROM:].all() and strange[:FROM].mean() <= 0.06
    assert np.array_equal(study.table()["distance"], study.distance)
    assert study.familiarity_text().startswith(f"{strange.sum()} of {N} frames look unlike what the model learned")
    assert study.familiarity_summary()["unfamiliar_frames"] == strange.sum()


def test_a_study_that_was_stopped_and_read_back_has_the_same_distances(video, model, study, tmp_path):
    steps = study_steps(video, model, tmp_path / "out", True)
    next(steps)
    next(steps)
    steps.close()
    part = load_study(tmp_path / "out", unfinished=True)
    assert len(part.distance) == 32 and not part.finished
    whole = run_study(video, model, tmp_path / "out", skip_near_duplicates=True, progress=False)
    np.testing.assert_allclose(whole.distance, study.distance[whole.stands_for], rtol=1e-4)
    assert np.array_equal(load_study(tmp_path / "out").distance, whole.distance)
    written = json.loads((tmp_path / "out" / "study.json").read_text())["familiarity"]
    assert written == whole.familiarity_summary() and written["unfamiliar_frames"] >= N - FROM


def test_findings_and_best_frames_leave_unfamiliar_frames_out_unless_they_are_asked_for(study):
    scores = np.zeros((N, 2), np.float32)
    scores[[5, 20, FROM + 5, FROM + 20], 0] = 0.9, 0.8, 0.95, 0.85
    study = replace(study, scores={"signs": scores}, distance=np.where(np.arange(N) < FROM, 0.5, 2.0))
    every, shown = findings(study, 1, unfamiliar=True), findings(study, 1)
    assert every[["frame", "familiar"]].values.tolist() == [[55, "no"], [5, "yes"], [70, "no"], [20, "yes"]]
    assert shown[["number", "frame", "familiar"]].values.tolist() == [[1, 5, "yes"], [2, 20, "yes"]]
    assert top_frames(study, "signs", 2, 1.0)["frame"].tolist()[:2] == [5, 20]
    assert top_frames(study, "signs", 2, 1.0, unfamiliar=True)["frame"].tolist()[:2] == [55, 5]


def test_the_timeline_is_grey_and_the_report_says_why(study, tmp_path):
    figure = study_timeline(study)
    (last,) = {(shape.x0, shape.x1) for shape in figure.layout.shapes if shape.x1 > FROM / 10}
    assert FROM / 10 - 0.3 <= last[0] <= FROM / 10 and last[1] == pytest.approx(N / 10)
    assert "unfamiliar" in [trace.name for trace in figure.data]
    page = write_study_report(study, tmp_path).read_text()
    assert study.familiarity_text() in page and "the timeline is grey there" in page
    familiar = study_timeline(replace(study, distance=np.zeros(N)))
    assert not familiar.layout.shapes and "unfamiliar" not in [trace.name for trace in familiar.data]


def test_studies_without_statistics_say_that_familiarity_is_unknown(video, tmp_path):
    old, new = load_study(VERSION_1 / "study"), run_study(video, untrained(), tmp_path / "out", progress=False)
    for study in (old, new):
        assert study.distance is None and not study.unfamiliar_frames().any()
        assert study.familiarity_text().startswith("Familiarity unknown")
        assert set(findings(study, 1, 0.0)["familiar"]) <= {"unknown"} and "distance" not in study.table()
        assert study.familiarity_summary()["unfamiliar_frames"] is None


def test_the_command_line_counts_unfamiliar_frames(video, model, tmp_path, capsys):
    save_model(model, tmp_path / "model")
    command = ["study", str(video), "--model", str(tmp_path / "model"), "--out", str(tmp_path / "out")]
    assert main(command) == 0 and "look unlike what the model learned" in capsys.readouterr().out
    assert main([*command, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["familiarity"]["unfamiliar_frames"] >= N - FROM
