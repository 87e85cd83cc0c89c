"""A pre-training that is called again with changed settings, and one that goes on from its model."""

import pytest

import endofm_lab as lab
from endofm_lab.cli.main import main
from endofm_lab.training.loop import read_log
from tests.pretraining.runs import SETTINGS, write_clips


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    return write_clips(tmp_path_factory.mktemp("clips"))


def test_changed_settings_are_refused_by_name_and_the_model_goes_on_in_a_run_of_its_own(manifest, tmp_path, capsys):
    first, second = str(tmp_path / "first"), str(tmp_path / "second")
    line = ["pretrain", str(manifest), "--out", first, *SETTINGS, "--steps", "4"]
    assert main(line) == 0
    before = read_log(tmp_path / "first" / "log.jsonl")
    for changed, sentence in (
        (["--lr", "0.5"], "config.lr is"),
        (["--steps", "8"], "config.steps is 4 there, 8 here"),
        (["--batch", "2"], "config.batch is 4 there, 2 here"),
    ):
        capsys.readouterr()
        assert main([*line, *changed]) == 2
        printed = capsys.readouterr()
        assert sentence in printed.err and "Report: " not in printed.out
    assert main(["pretrain", first, "--steps", "8"]) == 2
    printed = capsys.readouterr()
    assert "config.steps is 4 there, 8 here. It cannot be extended, because the momentum" in printed.err
    assert "published recipe" not in printed.out and main(["check", first]) == 0
    assert read_log(tmp_path / "first" / "log.jsonl") == before
    assert main(line) == 0 and read_log(tmp_path / "first" / "log.jsonl") == before
    longer = [*SETTINGS, "--steps", "4", "--start", f"{first}/model"]
    assert main(["pretrain", str(manifest), "--out", second, *longer]) == 0
    assert "tensors come from" in lab.load_model(f"{second}/model").card.initialisation["words"]
