"""The presets against tables of the released values; what differs on purpose is named by the preset and in the docs."""

from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from endofm_lab.cli.main import main
from endofm_lab.data.manifest import read_manifest
from endofm_lab.errors import UserError
from endofm_lab.finetuning.config import FinetuneConfig
from endofm_lab.finetuning.fitting import learning_rate
from endofm_lab.finetuning.presets import PRESETS
from endofm_lab.folders.plain import to_plain
from endofm_lab.pretraining.config import DIFFERENCES, endo_fm, explained, to_json
from endofm_lab.pretraining.config import PRESETS as PRETRAINING
from endofm_lab.training.schedules import cosine
from endofm_lab.video.augment import draw_scale_jitter, squares
from tests.finetuning.released import RELEASED, RELEASED_PRETRAINING, of_finetuning, value_of

DOCS = Path(__file__).resolve().parents[2] / "docs" / "presets.md"


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_has_the_released_values(name, phantom, tmp_path):
    config = PRESETS[name].build(phantom, tmp_path, "demo")
    epoch = -(-len(read_manifest(phantom).rows("train")) // config.batch)
    values = of_finetuning(to_plain(asdict(config)), epoch)
    assert {key: values[key] for key in RELEASED[name]} == RELEASED[name]


def test_endo_fm_has_the_published_settings():
    found = to_json(endo_fm(Path("m.csv"), Path("out")))
    assert {key: value_of(found, key) for key in RELEASED_PRETRAINING} == RELEASED_PRETRAINING


def test_the_docs_list_every_difference():
    parts = [*(preset.explained(name) for name, preset in PRESETS.items()), *map(explained, PRETRAINING)]
    text = DOCS.read_text(encoding="utf-8")
    for lines in parts:
        assert "\n".join([f"**{lines[0]}**", "", *lines[1:]]) in text, lines[0]
    assert set(DIFFERENCES) == set(PRETRAINING)


def test_a_preset_is_explained_on_the_command_line(capsys):
    assert main(["finetune", "--preset", "polypdiag", "--explain"]) == 0
    assert "- chosen on: Validation chooses" in capsys.readouterr().out
    assert main(["pretrain", "--explain"]) == 0
    assert "it is not the published recipe, which starts from Kinetics-400 weights" in capsys.readouterr().out
    assert main(["finetune", "--explain"]) == 2
    assert "There is no preset ''; choose one of polypdiag, cvc-12k, kumc." in capsys.readouterr().err


def test_without_a_preset_the_schedule_is_what_it_was():
    for steps in (7, 30, 100, 300, 1270):
        config = FinetuneConfig(Path("m"), Path("o"), steps=steps)
        for step in range(0, steps, 3):
            assert learning_rate(config, step, 5) == cosine(step, 5e-4, 0.01 * 5e-4, steps, steps // 10)


def test_the_schedules_of_the_presets():
    def rates(steps, **settings):
        config = FinetuneConfig(Path("m"), Path("o"), steps=steps, lr=1.0, warmup=0.0, floor=0.0, **settings)
        return np.array([learning_rate(config, step, 4) for step in range(steps)])

    per_epoch = rates(80, per_epoch=True)
    assert len(set(per_epoch)) == 20 and per_epoch[0] == 1 and per_epoch[-1] > 0
    assert per_epoch[40] == pytest.approx(0.5)
    np.testing.assert_allclose(rates(10, schedule="poly"), (1 - np.arange(10) / 10) ** 0.9)
    halved = rates(10, schedule="halved", milestones=(4, 8))
    assert halved.tolist() == [1] * 4 + [0.5] * 4 + [0.25] * 2
    with pytest.raises(UserError, match="give milestones for 'halved'"):
        rates(10, schedule="halved")


def test_scale_jitter_cuts_squares_of_the_picture_and_only_mirrors():
    random = np.random.default_rng(0)
    views = [draw_scale_jitter(random, 200, 400, aspect=2.0) for _ in range(200)]
    sides = np.array([view.height for view in views]) / 200
    assert sides.min() >= 0.695 and sides.max() <= 0.88 and sides.max() - sides.min() > 0.15
    assert all(abs(view.height - view.width) <= 1 and not view.overturned for view in views)
    assert all(view.colour == (1.0, 1.0, 1.0) for view in views) and {view.mirrored for view in views} == {True, False}
    squeezed = draw_scale_jitter(random, 200, 200, aspect=2.0)  # reduced to a square: half as wide
    assert abs(squeezed.height - 2 * squeezed.width) <= 2


def test_three_crops_cover_the_long_side():
    assert [(view.left, view.top, view.width) for view in squares(100, 160, 3)] == [
        (0, 0, 100),
        (30, 0, 100),
        (60, 0, 100),
    ]
    (view,) = squares(100, 160, 1)
    assert (view.height, view.width) == (100, 160)
