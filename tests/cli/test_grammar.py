"""All commands share one grammar: their options come from the library, and every mistake is answered by a sentence."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from endofm_lab.cli.command import Command, Output
from endofm_lab.cli.doctor import completion_script
from endofm_lab.cli.main import COMMANDS, find, main
from endofm_lab.cli.options import GRAMMAR
from endofm_lab.cli.train import record_text

ROOT = Path(__file__).resolve().parents[2]


def all_commands() -> dict[str, Command]:
    commands = {}
    for name in COMMANDS:
        command = find(name)
        parts = command if isinstance(command, dict) else {"": command}
        commands |= {f"{name} {part}".strip(): inner for part, inner in parts.items()}
    return commands


@pytest.fixture(scope="module")
def commands():
    return all_commands()


def test_the_command_line_has_at_most_twelve_modules():
    assert len(list((ROOT / "endofm_lab" / "cli").glob("*.py"))) <= 12


def is_column_of_a_table(command, option):
    """In `data import`, options with the placeholder COLUMN name columns of a table that is not a manifest yet."""
    return command == "data import" and option.metavar == "COLUMN" and "column with" in option.help.lower()


def test_an_option_means_the_same_in_every_command(commands):
    for name, (kind, metavar, words) in GRAMMAR.items():
        options = {
            f"{command} {option.typed}": option
            for command, inner in commands.items()
            for option in inner.options
            if option.name == name and not option.positional and not is_column_of_a_table(command, option)
        }
        assert options, f"no command has --{name}"
        for place, option in options.items():
            assert option.help == words, place
            assert kind is None or (option.kind, option.metavar) == (kind, metavar), place
        assert len({str(option.kind) for option in options.values()}) == 1, f"--{name} takes different values"


def test_every_command_has_the_options_json_and_quiet(commands):
    for name, command in commands.items():
        assert {"json", "quiet"} <= {option.name for option in command.options}, name


def test_every_option_is_described_and_shown_without_types_of_python(commands, capsys):
    for name, command in commands.items():
        spellings = [spelling for option in command.options for spelling in option.spellings]
        assert len(spellings) == len(set(spellings)), name
        for option in command.options:
            assert option.help, f"{name} {option.typed}"
        assert main([*name.split(), "--help"]) == 0
        text = capsys.readouterr().out
        assert "{None}" not in text and "PATH" not in text, name


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("predct a.mp4", "There is no command 'predct'. Did you mean predict?"),
        ("data chek m.csv", "There is no command 'data chek'. Did you mean data check?"),
        ("predict a.mp4 --ou x", "endofm-lab predict has no option --ou. Did you mean --out?"),
        ("predict a.mp4", "endofm-lab predict needs --out FOLDER (folder for all results;"),
        ("predict --out x", "endofm-lab predict needs VIDEO [VIDEO ...] (video files"),
        ("predict a.mp4 --out x --batch-clips 2", "--batch-clips is now written --batch."),
        ("predict a.mp4 --out x --batch two", "--batch is 'two', but it must be a whole number."),
        ("predict a.mp4 --out x --batch", "--batch takes N, but 0 values were given."),
        ("predict a.mp4 --out x --precision float31", "There is no --precision value 'float31'. Did you mean float32?"),
        ("explain a.mp4 b.mp4 --out x", "endofm-lab explain takes VIDEO and options. Leave out 'b.mp4'."),
        ("finetune m.csv --out x --method ST-Adapter", "--method 'ST-Adapter' is now written st-adapter."),
        ("finetune m.csv --out x --method adapter", "There is no --method value 'adapter'. Did you mean st-adapter?"),
        (
            "explain a.mp4 --out x --methods grad-cam ocklusion",
            "There is no --methods value 'ocklusion'. Did you mean occlusion?",
        ),
        ("finetune m.csv --out x --resume", "--resume is not needed: the same command continues"),
        ("finetune m.csv --out x --split-name a", "--split-name is now written --split."),
        ("finetune m.csv --out x --label a", "--label is now written --label-column."),
        ("finetune m.csv --out x --seeds 1 b", "--seeds is 'b', but it must be a whole number."),
        ("pretrain m.csv --out x --set batch=3", "--set is not needed"),
        ("pretrain m.csv --out x --initialisation a", "--initialisation is now written --start."),
        ("pretrain m.csv", "endofm-lab pretrain needs --out FOLDER"),
        ("pretrain m.csv --out x --preset tyni", "There is no --preset value 'tyni'. Did you mean tiny?"),
        ("predict a.mp4 --out x --json=True", "--json takes no value, but 1 values were given."),
        ("predict a.mp4 --out -x", "endofm-lab predict has no option -x. If it is a value, write"),
        ("predict a.mp4 -y --out x", "endofm-lab predict has no option -y."),
        (
            "evaluate a m.csv --out x --metrics %s",
            "--metrics names the class '%s'; the name must have the form",
        ),
        ("evaluate a m.csv --out x --metrics os:F2", "--metrics needs os:F2, which is code from outside endofm_lab"),
        ("finetune m.csv --out x --metrics os:name --allow os", "os:name is not Measure: derive its class from"),
        ("pretrain m.csv --out x --views.global-pxx 3", "Did you mean --views.global-px?"),
        ("evaluate", "endofm-lab evaluate needs MODEL"),
        ("evaluate run", "endofm-lab evaluate needs --out FOLDER"),
        ("evaluate run m.csv more --out x", "endofm-lab evaluate takes MODEL MANIFEST and options. Leave out 'more'."),
        ("embed --out x", "endofm-lab embed needs MANIFEST"),
        ("embed m.csv --out x --start a", "endofm-lab embed has no option --start"),
        ("finetune m.csv", "endofm-lab finetune needs --out FOLDER"),
        ("finetune m.csv --out x --modell a", "endofm-lab finetune has no option --modell"),
        ("finetune m.csv --out x --task clasification", "Did you mean classification?"),
        ("finetune m.csv --out x --step 3", "Did you mean --steps?"),
        ("finetune m.csv --out x --devce cpu", "Did you mean --device?"),
        ("finetune m.csv --out x --precision bf16", "Did you mean bfloat16?"),
        ("finetune m.csv --out x --preset polyp-diag", "Did you mean polypdiag?"),
        (
            "pretrain m.csv --out x --size larg",
            "There is no --size value 'larg'. Choose one of micro, tiny, small, base.",
        ),
        ("pretrain m.csv --out x --weight 3 1", "Did you mean --weights?"),
        ("pretrain m.csv --out x --weights three", "--weights is 'three', but it must be a number."),
        ("pretrain m.csv --out x --batch 2.5", "--batch is '2.5', but it must be a whole number."),
        ("data import t.csv --out x", "endofm-lab data import needs --video COLUMN"),
        ("data import --video v --out x", "endofm-lab data import needs TABLE"),
        ("data import t.csv --video v", "endofm-lab data import needs --out FOLDER"),
        ("data import t.csv --video v --out x --patients p", "Did you mean --patient?"),
        ("data improt t.csv", "There is no command 'data improt'. Did you mean data import?"),
        ("data split m.csv", "endofm-lab data split needs --out FOLDER"),
        ("data split m.csv --out x --folds 1", "--folds is 1. Give a number from 2 to 1,000."),
        ("compare --by f1", "endofm-lab compare needs RUN"),
        ("inspect", "endofm-lab inspect needs FILE"),
        ("study --out x", "endofm-lab study needs VIDEO"),
        (
            "phantom x --preset big",
            "There is no --preset value 'big'. Choose one of tiny, tutorial, demo, examinations, examinations-tiny.",
        ),
        ("audit", "endofm-lab audit needs MANIFEST"),
        ("demo shw", "There is no command 'demo shw'. Did you mean demo show?"),
    ],
)
def test_a_mistake_is_answered_by_a_sentence(line, sentence, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(line.split()) == 2
    output = capsys.readouterr()
    assert sentence in output.err and not output.out and "Traceback" not in output.err
    assert output.err.startswith("Error: ") and output.err.strip().endswith((".", "?"))
    assert output.err.count("\n") == 1
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("line", "argument"),
    [
        ("predict a.mp4 --out x --batch two", "--batch"),
        ("predict a.mp4 --out x --batch", "--batch"),
        ("predict a.mp4 --out x --precision float31", "--precision"),
        ("predict a.mp4", "--out"),
        ("inspect", "FILE"),
        ("predict a.mp4 --out x --ou y", "--ou"),
        ("evaluate demo m.csv --out x --clips 1 2", "demo m.csv --out x --clips 1 2"),
        ("pretrain m.csv --out x --views.global-scale 0.5", "--views.global-scale"),
    ],
)
def test_what_only_the_parser_refuses_is_answered_by_a_sentence_as_well(line, argument, capsys, monkeypatch):
    monkeypatch.setattr("endofm_lab.cli.command.check", lambda *_: None)
    assert main(line.split()) == 2
    output = capsys.readouterr()
    assert output.err.startswith(f"Error: endofm-lab {line.split()[0]} ") and f" {argument}. " in output.err
    assert output.err.count("\n") == 1 and not output.out and "--help` describes" in output.err


def test_a_preset_refuses_options_that_contradict_it_and_accepts_the_others(phantom, tmp_path, monkeypatch, capsys):
    line = ["finetune", str(phantom), "--out", str(tmp_path / "run"), "--preset", "polypdiag"]
    assert main([*line, "--steps", "2", "--seeds", "1", "2"]) == 2
    assert "The preset sets --steps to " in capsys.readouterr().err
    configs = []
    monkeypatch.setattr("endofm_lab.cli.train.finetuning", lambda config, *_, **__: configs.append(config) or [])
    monkeypatch.setattr("endofm_lab.cli.train.show_run", lambda *_: None)
    assert main([*line, "--seeds", "1", "2", "--start", "scratch", "--label-column", "motion"]) == 0
    (config,) = configs
    assert config.seeds == (1, 2) and config.start.source == "scratch" and config.optimiser == "sgd"
    assert config.label == "motion" and config.start.stride == 32


def test_every_setting_of_a_pretraining_is_available_on_the_command_line(phantom, tmp_path, monkeypatch):
    configs = []
    monkeypatch.setattr("endofm_lab.cli.train.run", lambda config, *_: configs.append(config))
    line = ["pretrain", str(phantom), "--out", str(tmp_path), "--preset", "tiny", "--size", "micro"]
    assert main([*line, "--views.local-frames", "2", "2", "--dino.no-centring", "--rows", "train", "--trackers"]) == 0
    (config,) = configs
    assert config.views.local_frames == (2, 2) and config.views.global_px == 80 and config.batch == 32
    assert not config.dino.centring and config.split == "train" and config.trackers == ()
    assert config.backbone.width < 192


def test_quiet_and_json_keep_standard_output_clean(phantom, tmp_path, capfd):
    folder = tmp_path / "p"
    shutil.copytree(phantom.parent, folder)
    clips = sorted((folder / "clips").glob("*.json"))
    for option, clip in zip(("--json", "--quiet"), clips, strict=False):  # each command draws and encodes a video
        (folder / "manifest.csv").unlink()
        clip.unlink()
        assert main(["phantom", str(folder), "--preset", "tiny", option]) == 0
        printed = capfd.readouterr().out
        assert json.loads(printed)["rows"] > 0 if option == "--json" else printed == ""


def test_each_of_several_videos_is_predicted_into_its_own_folder(tmp_path, capsys):
    from endofm_lab.data.samples import SAMPLES, sample_video

    video = Path(sample_video(next(iter(SAMPLES))))
    (tmp_path / "videos").mkdir()
    for name in ("a", "b"):
        (tmp_path / "videos" / f"{name}{video.suffix}").write_bytes(video.read_bytes())
    assert main(["predict", str(tmp_path / "videos"), "--out", str(tmp_path / "out"), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert [Path(video["out"]).name for video in result["videos"]] == ["a", "b"]
    assert all((tmp_path / "out" / name / "prediction.json").is_file() for name in ("a", "b"))
    assert main(["predict", str(tmp_path / "videos"), "--out", str(tmp_path / "out")]) == 0
    text = capsys.readouterr().out
    assert text.count("Model: demo") == text.count("Device: ") == 1 and text.count(" with masks") == 2
    twice = [str(tmp_path / "videos" / f"a{video.suffix}"), str(video.with_name(f"a{video.suffix}"))]
    assert main(["predict", *twice, "--out", str(tmp_path / "twice")]) == 2
    (tmp_path / "empty").mkdir()
    assert main(["predict", str(tmp_path / "empty"), "--out", str(tmp_path / "none")]) == 2
    assert "neither videos nor images" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("predict a.mp4 --out x --batch 1000000000", "--batch is 1,000,000,000. Give a number from 1 to 65,536."),
        ("predict a.mp4 --out x --step-s inf", "--step-s is inf. Give a finite number."),
        ("predict a.mp4 --out x --step-s nan", "--step-s is nan. Give a finite number."),
        ("finetune m.csv --out x --workers -1", "--workers is -1. Give a number from 0 to 1,024."),
        ("finetune m.csv --out x --lr inf", "--lr is inf. Give a finite number."),
        ("finetune m.csv --out x --steps 1000000000", "--steps is 1,000,000,000. Give a number from"),
        ("finetune m.csv --out x --clips 1000000000", "--clips is 1,000,000,000. Give a number from"),
        ("pretrain m.csv --out x --seed 1" + "0" * 30, "Give a number from 0 to 9,223,372,036,854,775,807."),
        ("finetune m.csv --out x --seeds 0 -1", "--seeds is -1. Give a number from 0 to 9,223,372,036,854,775,807."),
        ("app --port 99999999", "--port is 99,999,999. Give a number from 0 to 65,535."),
    ],
)
def test_absurd_numbers_are_refused_before_anything_is_done(line, sentence, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(line.split()) == 2
    err = capsys.readouterr().err
    assert sentence in err and err.count("\n") == 1 and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("typed", "completed"),
    [
        ("endofm-lab pre", {"predict", "pretrain"}),
        ("endofm-lab data im", {"import"}),
        ("endofm-lab finetune m.csv --task ph", {"phases"}),
        ("endofm-lab finetune m.csv --label", {"--label-column"}),
        ("endofm-lab data import t.csv --patient", {"--patient", "--patient-from"}),
        ("endofm-lab predict vid", set()),
    ],
)
def test_bash_completes_commands_options_and_choices(typed, completed):
    request = f'COMP_WORDS=({typed}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); _endofm_lab; echo "${{COMPREPLY[@]}}"'
    program = f"{completion_script()}\n{request}"
    assert set(subprocess.check_output(["bash", "-c", program], text=True).split()) == completed


def test_the_metric_that_chooses_is_named_beside_its_value():
    assert record_text({"seed": 0, "l2": 0.1, "validation": 0.94}, "auc") == ["seed 0  l2 0.1  validation auc 0.94"]
    ended = {"seed": 0, "chosen": {"step": 50}, "chosen_by": "dice", "validation": 0.5, "step": 50}
    assert record_text(ended, "dice") == ["seed 0  step 50  chosen step 50  validation dice 0.5"]


def test_a_record_without_words_prints_no_empty_line(capsys):
    Output().say(*record_text({"seed": 0, "step": 3, "loss": 1.0}))
    assert capsys.readouterr().out == ""
