"""Values on the command line that nobody means: every command works with them as documented, or says what is wrong."""

import _thread
import contextlib
import io
import json
import shutil
import threading
from collections.abc import Iterator
from functools import partial
from itertools import count
from pathlib import Path

import numpy as np

from endofm_lab.cli.main import find, main
from endofm_lab.cli.options import Option
from endofm_lab.errors import UserError
from endofm_lab.metrics import capsule_vision
from tests.faults.campaign import Case
from tests.faults.jobs import JOBS, Inputs

NUMBERS = (
    "nan", "inf", "-inf", "-1", "0", "-0.5", "1e400", "10**3", "1,5", "abc", "", "٣", "0x10", "None", "true", "1/0",
    "1000000000000000000000000000000", "--", "-",
)  # fmt: skip
TEXTS = ("", " ", "nothing-of-this-name", "-", "--", "../..", "a" * 5000, "a\nb", "<b>bold</b>", "=1+1", "é", "%s", "*")
LONG = ("small", "base", "endo-fm", "long-video")  # networks that train longer than a case may take: they are stopped
STOP_S = 8.0
COUNTS = ("batch", "clips", "folds", "workers", "smooth")  # 10^9 of these is refused before memory is taken


def cases(folder: Path, seed: int) -> Iterator[Case]:
    """Each option of each command in turn with values of its kind; the rest of the command line is right."""
    inputs, rng = Inputs(folder / "inputs"), np.random.default_rng(seed)
    lines = _command_lines(inputs, folder)
    options = [(name, option) for name in lines for option in _options(name)]
    for turn in count():
        name, option = options[int(rng.integers(len(options)))] if turn >= len(options) else options[turn]
        value = _value(option, folder, rng)
        words = [*name.split(), *lines[name], option.typed, value]
        yield Case(f"{name} {option.typed} {value[:40]!r}", partial(_is_answered, words, folder / "out", option))


def _command_lines(inputs: Inputs, folder: Path) -> dict[str, list[str]]:
    """A right command line for each command, with ``--json``; all write below one folder."""
    for job in ("evaluate", "study"):
        JOBS[job](inputs, folder / job)
    names = [f"{number}.jpg" for number in range(20)]
    capsule_vision.write_submission(folder / "scores.csv", names, np.full((20, 10), 0.1))
    rows = "".join(f"{name},{capsule_vision.CLASSES[n % 10]}\n" for n, name in enumerate(names))
    (folder / "labels.csv").write_text("image,class\n" + rows)
    out, model = ["--out", str(folder / "out" / "here")], ["--model", str(inputs.model)]
    manifest, video = str(inputs.pictures), str(inputs.video)
    train = ["--steps", "1", "--batch", "2"]
    return {
        "predict": [video, *model, *out],
        "study": [video, *model, *out],
        "embed": [manifest, *model, *out],
        "evaluate": [str(inputs.model), manifest, "--head", "finding", *out],
        "audit": [manifest],
        "data split": [manifest, *out],
        "data check": [manifest],
        "data prepare": ["private-folder", "--root", str(inputs.clips.parent / "videos"), *out],
        "compare": [str(folder / "evaluate"), *out],
        "inspect": [str(inputs.model)],
        "check": [str(folder / "study")],
        "finetune": [manifest, *out, *train, "--start", "scratch", "--size", "micro"],
        "pretrain": [str(inputs.clips), *out, *train, "--preset", "tiny"],
        "score capsule-vision": ["--labels", str(folder / "labels.csv"), "--probabilities", str(folder / "scores.csv")],
    }


def _options(name: str) -> list[Option]:
    first, *words = name.split()
    entry = find(first)
    command = entry[words[0]] if isinstance(entry, dict) else entry
    return [option for option in command.options if option.kind is not bool and not option.positional]


def _value(option: Option, folder: Path, rng: np.random.Generator) -> str:
    """A value of an option: for paths, also folders, files, links that lead nowhere, and names that are too long."""
    text = str(option.kind)
    if "Path" in text:
        (folder / "empty").mkdir(exist_ok=True)
        with contextlib.suppress(FileExistsError):
            (folder / "loop").symlink_to(folder / "loop")
            (folder / "dangling").symlink_to(folder / "nowhere")
        (folder / "file.csv").write_text("not,a,table\n1\n")
        names = (
            "absent",
            "empty",
            "loop",
            "dangling",
            "file.csv",
            "file.csv/below",
            "x" * 300,
            "/".join(["d" * 99] * 60),
        )
        return str(folder / names[int(rng.integers(len(names)))])
    if option.name in COUNTS and rng.random() < 0.2:
        return "1000000000"
    values = NUMBERS if "int" in text or "float" in text else (*TEXTS, *option.choices)
    return values[int(rng.integers(len(values)))]


def _is_answered(words: list[str], out: Path, option: Option) -> bool:
    """Run a command; what it prints is one JSON value and its end says whether it worked.

    A command with a large network is stopped as by Ctrl-C and must end by itself, with the exit code and the sentence
    of a stopped command.
    """
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    output, complaint = io.StringIO(), io.StringIO()
    stop = threading.Timer(STOP_S, _thread.interrupt_main)
    if words[-1] in LONG:
        stop.start()
    try:
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(complaint):
            ended = main([*words, "--json"])
    finally:
        stop.cancel()
    text = complaint.getvalue().strip()
    if ended == 130 and words[-1] in LONG and "Stopped." in text:
        return True
    if ended == 2 and text:
        lines = [line for line in text.splitlines() if line.startswith("Error")]
        if "Traceback" in text or not lines or len(lines[-1]) > 1000:
            raise AssertionError(f"no sentence: {text[-500:]}")
        raise UserError(lines[-1])
    if ended != 0:
        raise AssertionError(f"exit code {ended}: {text[-1500:]}")
    if output.getvalue().strip():
        json.loads(output.getvalue(), parse_constant=_no_number)
    return True


def _no_number(text: str) -> None:
    raise AssertionError(f"{text} is no JSON")
