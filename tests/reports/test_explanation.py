"""The explanation of a clip: every map comes with its trust figures, or with the reason why it is missing."""

from fractions import Fraction

import numpy as np
import pytest

from endofm_lab.errors import UserError
from endofm_lab.model.card import HeadSpec
from endofm_lab.model.video_model import build_frame_model
from endofm_lab.reports.explanation import DEFAULT_METHODS, explain, explanation_figures, write_explanation
from endofm_lab.video.reader import write_video
from tests.explain.models import small_model


@pytest.fixture(scope="module")
def noise(tmp_path_factory):
    path = tmp_path_factory.mktemp("videos") / "noise.mp4"
    frames = np.random.default_rng(0).integers(0, 255, (12, 48, 64, 3), dtype=np.uint8)
    write_video(path, frames, Fraction(6))
    return path


def test_each_default_method_comes_with_its_trust_figures(noise, tmp_path):
    explanation = explain(noise, small_model())
    assert len(explanation.attributions) == len(DEFAULT_METHODS) and not explanation.refused
    assert all(np.isfinite([entry.curves.gap, entry.randomised]).all() for entry in explanation.attributions)
    report, numbers = write_explanation(explanation, tmp_path)
    page = report.read_text()
    assert page.count("Insertion minus deletion") == len(DEFAULT_METHODS)
    with np.load(numbers) as maps:
        assert set(maps) == set(explanation.arrays())
    methods = {entry.attribution.method for entry in explanation.attributions}
    assert methods < set(explanation_figures(explanation))


def test_the_report_names_what_a_model_cannot_show(noise, tmp_path):
    model = build_frame_model("vit_micro", {"finding": HeadSpec("multiclass", ("normal", "polyp"))})
    explanation = explain(noise, model)
    assert explanation.maps is not None and "rollout_by_norms" not in explanation.rollouts
    page = write_explanation(explanation, tmp_path)[0].read_text()
    assert all(name in page and "Not shown" in page for name in explanation.refused)


def test_an_unknown_method_is_refused_by_name(noise):
    with pytest.raises(UserError, match=r"'guess'\. The methods are attention relevance"):
        explain(noise, small_model(), methods=["guess"])
