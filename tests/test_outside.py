"""Classes from outside the library: what is allowed, what is found, and objects in every place that takes them."""

from dataclasses import replace
from typing import ClassVar

import pytest
import torch
from torch import nn

import endofm_lab as lab
from endofm_lab.cli.main import main
from endofm_lab.errors import UserError
from endofm_lab.model.transformer import VideoTransformer
from endofm_lab.outside import allowing, class_named, name_of
from endofm_lab.runs.compare import compare
from endofm_lab.runs.run import RunError

NAME = "tests.test_outside:OwnHead"


class OwnHead(lab.Head):
    """Two layers in place of one."""

    answer: ClassVar = "clip"

    def __init__(self, width: int, n_classes: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(width, 8), nn.ReLU(), nn.Linear(8, n_classes))

    def forward(self, tokens):
        return self.layers(tokens.pooled())

    def loss(self, logits, batch):
        return nn.functional.cross_entropy(logits.float(), batch["target"])

    def scores(self, logits, spec):
        return logits.softmax(dim=-1)


class Confidence(lab.Measure):
    """The mean of the largest score."""

    name = "confidence"

    @classmethod
    def of(cls, rows):
        largest = rows[[name for name in rows if name.startswith("score_")]].max(axis=1).to_numpy()
        return lambda weights: weights @ largest / weights.sum(axis=-1)


class Worse(Confidence):
    name = "doubt"
    lower_is_better = True


@pytest.mark.parametrize("permission", [NAME, "tests.test_outside", ["tests"], [OwnHead], OwnHead])
def test_a_class_is_found_by_every_name_that_allows_it(permission):
    with allowing(permission):
        assert class_named(NAME, lab.Head, "card") is OwnHead
    with pytest.raises(UserError, match=r"card needs tests.test_outside:OwnHead.*allow=\['tests'\].*--allow"):
        class_named(NAME, lab.Head, "card")


@pytest.mark.parametrize("permission", ["test", "tests.test_out", "outside", "tests.test_outside:Own", [Confidence]])
def test_a_name_that_is_only_similar_allows_nothing(permission):
    with allowing(permission), pytest.raises(UserError, match="only if you allow it"):
        class_named(NAME, lab.Head, "card")


@pytest.mark.parametrize("name", ["os.system", "os:system('x')", "a b:C", "a:", ":b", "a:b:c", "a..b:C", "x" * 300, 7])
def test_a_name_of_another_form_is_never_imported(name):
    with allowing(["os", "a"]), pytest.raises(UserError, match="must have the form 'module:Class'"):
        class_named(name, lab.Head, "card")


def test_what_is_allowed_must_be_there_and_keep_the_contract():
    with allowing("nowhere"), pytest.raises(UserError, match=r"nowhere:Head, which cannot be imported .*PYTHONPATH"):
        class_named("nowhere:Head", lab.Head, "card")
    with allowing("tests"), pytest.raises(UserError, match=r"is not Task: derive its class from endofm_lab\.tasks"):
        class_named(NAME, lab.Task, "card")
    for wrong in ("", "my package", "../x", "a:b:c", None):
        with pytest.raises(UserError, match="cannot be allowed"), allowing([wrong]):
            pass


def test_classes_of_the_library_need_no_name_and_local_classes_cannot_have_one():
    class Local(lab.Head):
        pass

    assert name_of(VideoTransformer) is None and name_of(OwnHead) == NAME
    with pytest.raises(UserError, match="defined inside a function"):
        name_of(Local)


def test_a_class_saved_by_a_script_is_read_by_the_class_itself():
    with allowing(OwnHead):
        assert class_named("__main__:OwnHead", lab.Head, "card") is OwnHead
    with pytest.raises(UserError, match="saved from a script or notebook: give the class itself"):
        class_named("__main__:OwnHead", lab.Head, "card")


def test_a_head_and_a_metric_of_ones_own_go_with_a_task_of_the_library(phantom, tmp_path):
    start = lab.Start("scratch", size="micro", n_frames=2)
    config = lab.FinetuneConfig(
        phantom, tmp_path / "run", start=start, steps=2, batch=2, validate_every=1, clips=1, chosen_by="confidence"
    )
    records = list(lab.finetune(config, head=OwnHead, metrics=[Confidence, Worse]))
    assert records[-1]["chosen_by"] == "confidence" and records[-1]["test"]["confidence"] > 0
    run = lab.read_run(tmp_path / "run", allow="tests")
    assert run.method == "full fine-tuning, OwnHead" and run.lower_is_better >= {"doubt", "brier"}
    assert "confidence" in run.samples(n=20).values and len(repr(run)) < 500
    model = lab.load_model(tmp_path / "run" / "seed-0" / "model", allow=NAME)
    assert isinstance(model.head("label"), OwnHead) and replace(model.card) == model.card
    assert torch.allclose(model.predict(torch.zeros(1, 3, 2, 64, 64))["label"].sum(), torch.tensor(1.0))
    second = lab.evaluate(model, phantom, tmp_path / "again", clips=1)
    assert "confidence" not in second.samples(n=20).values
    with pytest.raises(RunError, match="Not every run has the metric confidence, doubt"):
        compare([run, second])
    line = ["evaluate", str(tmp_path / "run" / "seed-0" / "model"), str(phantom), "--out", str(tmp_path / "terminal")]
    assert main([*line, "--clips", "1", "--allow", "tests", "--metrics", "tests.test_outside:Confidence"]) == 0
    assert "confidence" in lab.read_run(tmp_path / "terminal", allow="tests").samples(n=20).values
    with pytest.raises(UserError, match="chosen_by is 'doubt'"):
        list(lab.finetune(replace(config, out=tmp_path / "x", chosen_by="doubt"), metrics=[Worse]))
    with pytest.raises(UserError, match="The head is OwnHead, but 'knn' has its own"):
        next(lab.finetune(replace(config, out=tmp_path / "y", method="knn"), head=OwnHead))


def test_a_model_in_memory_is_fine_tuned_as_from_its_folder(phantom, tmp_path):
    torch.manual_seed(0)
    model = lab.load_model("demo")
    folder = lab.save_model(model, tmp_path / "model")
    small = {"steps": 2, "batch": 2, "validate_every": 2, "clips": 1}
    from_folder = lab.FinetuneConfig(phantom, tmp_path / "folder", start=lab.Start(str(folder), n_frames=2), **small)
    in_memory = lab.FinetuneConfig(phantom, tmp_path / "memory", start=lab.Start(n_frames=2), **small)
    actual, expected = list(lab.finetune(in_memory, start=model)), list(lab.finetune(from_folder))
    assert [r.get("loss") for r in actual] == [r.get("loss") for r in expected]
    assert "model of endofm_lab in memory" in actual[0]["initialisation"]
    with torch.no_grad():
        model.backbone.cls_token.add_(1)
    with pytest.raises(UserError, match="start_weights"):
        next(lab.finetune(in_memory, start=model))
