"""A pre-training that is called again with more steps."""

from dataclasses import replace

import pytest

from endofm_lab.errors import UserError
from endofm_lab.files import read_json
from endofm_lab.integrity import check_folder
from endofm_lab.model.loading.load import load_model
from endofm_lab.pretraining.trainer import pretrain
from endofm_lab.pretraining.vicreg import VicregConfig
from endofm_lab.reports.pretraining import report_run
from endofm_lab.training.loop import read_log
from tests.pretraining.runs import losses, micro

LR = 0.1 * 4 / 256


def constant(manifest, out, **settings):
    """A run whose learning rate and weight decay do not fall, and whose objective has no values over the whole run."""
    settings = {"weight_decay": (0.05, 0.05), "lr": 0.1, "lr_end": LR, "vicreg": VicregConfig(width=16, hidden=16)} | (
        settings
    )
    return micro(manifest, out, objective="vicreg", **settings)


def test_an_extended_run_has_the_numbers_of_a_run_of_that_length(manifest, tmp_path):
    whole = list(pretrain(constant(manifest, tmp_path / "whole", steps=7)))
    config = constant(manifest, tmp_path / "run", steps=4)
    first = list(pretrain(config))
    report_run(config.out)
    added = list(pretrain(replace(config, steps=7)))
    assert [record["step"] for record in added] == [4, 5, 6]
    assert losses(first + added) == losses(whole)
    assert losses(read_log(config.out / "log.jsonl")) == losses(whole)
    assert [path.name for path in sorted((config.out / "checkpoints").iterdir())][-1] == "step-00000007"
    assert load_model(config.out / "model").card.name == "vicreg pre-training, 7 steps"
    assert check_folder(config.out).whole
    described = read_json(config.out / "config.json")
    assert described["steps"] == described["config"]["steps"] == 7
    (extension,) = described["extensions"]
    assert extension["words"].startswith("Extended from 4 to 7 steps when 4 were done") and extension["provenance"]
    assert "Extended from 4 to 7 steps" in report_run(config.out).read_text()
    assert check_folder(config.out).whole, "a report that is written again is no damage"
    assert list(pretrain(replace(config, steps=7))) == []
    with pytest.raises(UserError, match=r"config\.steps is 7 there, 4 here"):
        next(pretrain(config))


def test_a_stopped_run_is_extended_by_epochs_too(manifest, tmp_path):
    config = constant(manifest, tmp_path / "run", steps=None, epochs=2)
    running = pretrain(config)
    assert [next(running)["step"] for _ in range(3)] == [0, 1, 2]
    running.close()
    assert [record["step"] for record in pretrain(replace(config, epochs=3))] == [3, 4, 5]


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"lr_end": 1e-6}, r"the learning rate of step 3 was 0\.\d+ and would be 0\.\d+ in the longer run"),
        ({"weight_decay": (0.04, 0.4)}, r"the weight decay of step 1 was"),
        ({"objective": "dino"}, r"the momentum of its teacher in every step depends on the number of steps"),
        ({"objective": "vcl"}, r"the momentum of its key encoder in every step depends"),
    ],
)
def test_a_run_whose_steps_would_have_been_others_is_not_extended(manifest, tmp_path, settings, reason):
    config = replace(constant(manifest, tmp_path / "run", steps=4), **settings)
    list(pretrain(config))
    files = {path: path.read_bytes() for path in config.out.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match=rf"config\.steps is 4 there, 8 here. It cannot be extended, because {reason}"):
        next(pretrain(replace(config, steps=8)))
    with pytest.raises(UserError, match=r"config\.steps is 4 there, 8 here; .*config\.lr is"):
        next(pretrain(replace(config, steps=8, lr=0.2)))
    assert {path: path.read_bytes() for path in config.out.rglob("*") if path.is_file()} == files
