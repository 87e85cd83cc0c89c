"""The pages for three situations: their commands and programs are copied out of the text and run on the phantom."""

import os
import re
import shlex
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from endofm_lab.cli.main import main
from endofm_lab.data.manifest import read_manifest
from endofm_lab.files import read_json
from endofm_lab.training.loop import read_log
from tests.model import weight_layouts as made
from tests.pretraining.runs import SETTINGS

ROOT = Path(__file__).resolve().parents[1]
PAGES = {name: (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8") for name in
         ("your_own_videos", "released_weights", "on_a_cluster")}  # fmt: skip


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGES[page], re.S)


def commands(page: str) -> list[list[str]]:
    """The commands of a page as lists of words, without those for other programs."""
    lines = [line for block in blocks(page, "sh") for line in block.splitlines()]
    return [words[1:] for words in map(shlex.split, lines) if words[0] == "endofm-lab"]


@pytest.fixture
def reader(phantom, tmp_path, monkeypatch):
    """The folder of a reader with the phantom as ``corpus`` and a video of it; the phantom itself is not changed."""
    (tmp_path / "corpus").symlink_to(phantom.parent)
    (tmp_path / "video.mp4").symlink_to(next((phantom.parent / "videos").glob("p0000_polyp*")))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_your_own_videos_go_from_a_table_to_a_tested_model_and_predictions(reader, phantom, capsys):
    (reader / "videos").mkdir()
    table = read_manifest(phantom).table
    numbers = {patient: number for number, patient in enumerate(dict.fromkeys(table["patient"]), 1)}
    rows = []
    for (patient, label), clips in table[table["label"].isin(("normal", "polyp"))].groupby(["patient", "label"]):
        for number, video in enumerate(clips["video"]):
            name = f"videos/p{numbers[patient]:03}_{number + 5 * (label == 'normal')}.mp4"
            (reader / name).symlink_to(phantom.parent / video)
            rows.append((name, label))
    pd.DataFrame(rows, columns=["file", "finding"]).to_csv("labels.csv", sep=";", index=False)
    for words in commands("your_own_videos"):
        assert main(words) == 0, f"{words}: {capsys.readouterr().err}"
    assert read_manifest("mine/manifest.csv").table["patient"].nunique() == table["patient"].nunique()
    patients = read_manifest("mine/split.csv").table.groupby("split")["patient"].unique()
    assert not set(patients["train"]) & set(patients["test"]) and set(patients.index) == {"train", "val", "test"}
    first, second = read_json("runs/probe/report.json"), read_json("runs/probe-again/report.json")
    assert first["metrics"]["auc"]["value"] == pytest.approx(second["metrics"]["auc"]["value"])
    assert {path.name for path in Path("predictions").iterdir()} == {"p001_0", "p002_0"}
    assert Path("reports/audit.html").is_file() and Path("reports/comparison/comparison.csv").is_file()
    (program,) = blocks("your_own_videos", "python")
    capsys.readouterr()
    exec(compile(program, "your_own_videos", "exec"), {})
    assert "polyp" in (output := capsys.readouterr().out) and "| auc" in output.lower()


def test_released_weights_are_inspected_used_and_trained_from(reader, capsys):
    """Small weights with the released names stand in for the files of the authors."""
    for name in ("Endo-FM", "DINO", "PolypDiag"):
        made.write(name, reader)
    table = read_manifest("corpus/manifest.csv").table
    finding = table["label"].map({"normal": "normal"}).fillna("abnormal")
    table["video"] = [f"corpus/{video}" for video in table["video"]]
    outputs = {}
    for words in commands("released_weights"):
        if words[:2] == ["evaluate", "polypdiag.pth"]:
            table.drop(columns=["masks", "boxes"]).assign(finding=finding).to_csv("labelled.csv", index=False)
            words = [word.replace("corpus/manifest.csv", "labelled.csv") for word in words]
        assert main(words) == 0, f"{words}: {capsys.readouterr().err}"
        outputs[" ".join(words[:4])] = capsys.readouterr().out
    assert "teacher" in outputs["inspect endo_fm.pth"]
    assert "the model has no head" in outputs["predict video.mp4 --model endo_fm.pth"]
    assert "normal" in outputs["predict video.mp4 --model polypdiag.pth"]
    assert "endo_fm.pth" in read_json("runs/endo_fm/report.json")["initialisation"]
    (program,) = blocks("released_weights", "python")
    exec(compile(program, "released_weights", "exec"), {})
    assert "torch.Size([1, 128]) torch.Size([1, 4, 2, 2, 128])" in capsys.readouterr().out


def test_the_page_about_clusters_has_one_script_that_bash_understands():
    script = blocks("on_a_cluster", "bash")[0]
    assert script.startswith("#!/bin/bash\n#SBATCH") and "--requeue" in script and "--signal=B:USR1@" in script
    assert subprocess.run(["bash", "-n"], input=script, text=True, check=False).returncode == 0
    (line,) = [line for block in blocks("on_a_cluster", "sh") for line in block.splitlines() if "sbatch" in line]
    assert line.startswith("sbatch job.sh pretrain corpus/manifest.csv --out ")


@pytest.fixture
def job(reader):
    """The script of the page, beside stand-ins for `endofm-lab` on the path and for Slurm's `scontrol`."""
    (reader / "bin").mkdir()
    for name, text in {
        "bin/endofm-lab": f'#!/bin/bash\nexec "{sys.executable}" -m endofm_lab.cli.main "$@"\n',
        "bin/scontrol": f'#!/bin/bash\necho "$@" >> "{reader}/queue"\n',
        "job.sh": blocks("on_a_cluster", "bash")[0],
    }.items():
        (reader / name).write_text(text)
        (reader / name).chmod(stat.S_IRWXU)

    def start(restarts: int) -> subprocess.Popen[str]:
        line = next(line for block in blocks("on_a_cluster", "sh") for line in block.splitlines() if "sbatch" in line)
        longer = {"--steps": "400", "--save-every": "1000"}
        changes = [longer.get(before, word) for before, word in zip(["", *SETTINGS], SETTINGS, strict=False)][2:]
        variables = {"SLURM_JOB_ID": "71", "SLURM_RESTART_COUNT": str(restarts), "PYTHONPATH": str(ROOT)}
        path = {"PATH": f"{reader / 'bin'}{os.pathsep}{os.environ['PATH']}"}
        words = ["bash", *shlex.split(line)[1:], *changes]
        return subprocess.Popen(words, env=os.environ | variables | path, cwd=reader, stderr=subprocess.PIPE, text=True)

    return start


def wait_for_steps(log: Path, n: int) -> None:
    end = time.monotonic() + 250
    while len(read_log(log)) < n:
        assert time.monotonic() < end, "the training does not begin"
        time.sleep(0.2)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", ["SIGUSR1", "SIGTERM"])
def test_a_job_saves_at_a_signal_is_requeued_before_its_end_and_goes_on(job, reader, name):
    log = reader / "runs" / "first" / "log.jsonl"
    first = job(0)
    wait_for_steps(log, 3)
    first.send_signal(getattr(signal, name))
    assert first.wait(120) == 130, first.stderr.read()
    done = len(read_log(log))
    saved = [int(path.name.removeprefix("step-")) for path in (log.parent / "checkpoints").iterdir()]
    assert saved == [done] and 3 <= done < 400
    queue = reader / "queue"
    assert (queue.read_text() if queue.is_file() else "") == ("requeue 71\n" if name == "SIGUSR1" else "")
    second = job(1)
    wait_for_steps(log, done + 2)
    second.send_signal(signal.SIGTERM)
    assert second.wait(120) == 130, second.stderr.read()
    assert [record["step"] for record in read_log(log)] == list(range(len(read_log(log))))
