"""The contract of an objective: those of the table, one from outside, and run folders older than the contract."""

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch

from endofm_lab.cli.main import main
from endofm_lab.errors import UserError
from endofm_lab.files import read_json, write_json
from endofm_lab.model.loading.load import load_model, save_model
from endofm_lab.model.transformer import VideoTransformer, build_backbone
from endofm_lab.model.video_model import model_on
from endofm_lab.pretraining.config import OBJECTIVES, signs_of, to_json
from endofm_lab.pretraining.features import FeatureConfig
from endofm_lab.pretraining.objective import Signs
from endofm_lab.pretraining.trainer import pretrain, resume
from endofm_lab.pretraining.vcl import ContrastConfig
from endofm_lab.reports.pretraining import curves, health_of, report_run
from endofm_lab.training.loop import read_log
from tests.pretraining.runs import micro


@dataclass(frozen=True)
class Own(ContrastConfig):
    """A contrast of another name, whose health is read from another number."""

    name: ClassVar[str] = "own"
    words: ClassVar[str] = "an objective that the table does not hold"

    colour: str = "green"

    def signs(self, config) -> Signs:
        return Signs({"Loss": ("loss",), "Found": ("found",)}, least={"rankme": 1000.0})


OBJECTIVE = Own(hidden=32, width=16, queue=16, momentum=0.9)


def losses(records):
    return [record["loss"] for record in records]


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_of_the_table_answers_the_contract(manifest, tmp_path, name):
    save_model(model_on(build_backbone("micro"), {}, "teacher"), tmp_path / "teacher")
    config = micro(manifest, tmp_path, objective=name, features=FeatureConfig(str(tmp_path / "teacher")))
    objective = config.chosen
    assert objective.name == name and objective.words
    learner = objective.build(VideoTransformer(config.backbone), config, steps=4, steps_per_epoch=2)
    assert isinstance(learner.kept(), VideoTransformer) and learner.units()
    learning = {id(p) for p in learner.parameters() if p.requires_grad}
    for backbone in learner.backbones():
        assert {id(p) for p in backbone.parameters()} <= learning
    assert learner.recent.rows().shape == (0, config.backbone.width)
    assert signs_of({"config": to_json(config)}) == objective.signs(config)


def test_an_objective_from_outside_runs_resumes_and_is_reported(manifest, tmp_path):
    whole = losses(pretrain(micro(manifest, tmp_path / "whole", steps=22), objective=OBJECTIVE))
    config = micro(manifest, tmp_path / "cut", steps=22)
    run = pretrain(config, objective=OBJECTIVE)
    for _ in range(3):
        next(run)
    run.close()
    assert losses(pretrain(config, objective=OBJECTIVE)) == whole[3:]
    described = read_json(config.out / "config.json")
    assert described["config"]["objective"] == "own"
    assert health_of(config.out).state == "collapsed to uniform"  # by the number that it names, here always too low
    assert list(curves(described, read_log(config.out / "log.jsonl")))[:2] == ["Loss", "Found"]
    assert "objective_settings.colour" in report_run(config.out).read_text()
    assert "own pre-training, 22 steps" in (config.out / "model" / "card.json").read_text()


def test_an_objective_from_outside_is_the_same_or_refused(manifest, tmp_path, capsys):
    config = micro(manifest, tmp_path)
    next(pretrain(config, objective=OBJECTIVE))
    with pytest.raises(UserError, match=r"objective_settings.colour is \"green\" there, \"blue\" here"):
        next(pretrain(config, objective=replace(OBJECTIVE, colour="blue")))
    with pytest.raises(UserError, match=r"config.objective is \"own\" there"):
        next(pretrain(config))
    with pytest.raises(UserError, match=r"needs tests\.pretraining.*:Own, which is code from outside"):
        resume(tmp_path)
    assert main(["pretrain", str(tmp_path)]) == 2
    assert "--allow on the command line" in capsys.readouterr().err


def test_an_objective_from_outside_goes_on_where_its_package_is_allowed(manifest, tmp_path):
    whole = losses(pretrain(micro(manifest, tmp_path / "whole"), objective=OBJECTIVE))
    for name in ("python", "terminal"):
        run = pretrain(micro(manifest, tmp_path / name), objective=OBJECTIVE)
        next(run), next(run)
        run.close()
    assert losses(resume(tmp_path / "python", allow="tests")) == whole[2:]
    assert main(["pretrain", str(tmp_path / "terminal"), "--allow", "tests.pretraining", "--quiet"]) == 0
    assert losses(read_log(tmp_path / "terminal" / "log.jsonl")) == whole


def test_a_folder_older_than_the_contract_resumes_and_is_reported(manifest, tmp_path):
    whole = losses(pretrain(micro(manifest, tmp_path / "whole")))
    run = pretrain(micro(manifest, tmp_path / "old"))
    for _ in range(3):
        next(run)
    run.close()
    described = read_json(tmp_path / "old" / "config.json")
    del described["signs"]
    del described["config"]["probe_every"]  # as if that setting were newer than the folder
    write_json(tmp_path / "old" / "config.json", described)
    assert signs_of(described).prototypes == 32
    assert losses(resume(tmp_path / "old")) == whole[3:]
    report_run(tmp_path / "old")


def test_a_name_that_is_in_no_table_is_refused(manifest, tmp_path):
    with pytest.raises(UserError, match="objective is 'simclr'; choose one of dino, masked, vcl"):
        micro(manifest, tmp_path, objective="simclr")


def test_pretraining_starts_from_an_encoder_in_memory_and_goes_on_with_it(manifest, tmp_path):
    torch.manual_seed(0)
    encoder = build_backbone("micro", drop_path=0.2)
    whole = [record["loss"] for record in pretrain(micro(manifest, tmp_path / "whole"), start=encoder)]
    run = pretrain(micro(manifest, tmp_path / "cut"), start=encoder)
    next(run), next(run), next(run)
    run.close()
    assert [record["loss"] for record in resume(tmp_path / "cut")] == whole[3:]
    card = load_model(tmp_path / "cut" / "model").card
    assert "model of endofm_lab in memory" in card.initialisation["words"]
    second = build_backbone("micro", drop_path=0.2)
    with pytest.raises(UserError, match=r"different start\.weights"):
        next(pretrain(micro(manifest, tmp_path / "whole"), start=second))
    with pytest.raises(UserError, match="Views of 32 px do not divide into patches of 24 px"):
        next(pretrain(micro(manifest, tmp_path / "new"), start=build_backbone("micro", patch_px=24, image_px=48)))
    assert all(math.isfinite(loss) for loss in whole)
