"""The commands `endofm-lab doctor`, which checks the installation, and `completion`, for the shell."""

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Literal

from endofm_lab.cli.command import Command, Output, command
from endofm_lab.cli.main import COMMANDS, find
from endofm_lab.files import write_json
from endofm_lab.folders.bill_of_materials import bill_of_materials

Check = tuple[str, bool, str]  # name of the check, whether it passed, and its result or what to do


@command()
def doctor(output: Output, sbom: Path | None = None) -> None:
    """Check Python, torch, precision, decoders, disk and the demo model; exit code 2 if something is missing.

    Args:
        sbom: also write a bill of materials of the installed packages to this file (CycloneDX JSON).
    """
    if sbom is not None:
        write_json(sbom, bill_of_materials())
    functions = (_python, _machine, _packages, _torch, _precision, _decoders, _disk, _demo_model, _optional)
    checks = [check() for check in functions]
    output.result([{"check": name, "ok": ok, "found": text} for name, ok, text in checks])
    output.say(*(f"{'ok ' if ok else 'NO '} {name:<12} {text}" for name, ok, text in checks))
    if not all(ok for _, ok, _ in checks):
        raise SystemExit(2)


def _python() -> Check:
    ok = sys.version_info >= (3, 11)
    version = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    return "Python", ok, version if ok else f"{version}: 3.11 or newer is needed"


def _machine() -> Check:
    from endofm_lab.machine import cores, free_memory_mb, memory_mb

    waiting = os.environ.get("OMP_WAIT_POLICY", "not set")
    text = (
        f"{cores()} of {os.cpu_count()} cores and {memory_mb() / 1024:.1f} GB of memory for this process, "
        f"{free_memory_mb() / 1024:.1f} GB free; OMP_WAIT_POLICY: {waiting}"
    )
    return "machine", True, text


def _packages() -> Check:
    names = ["torch", "torchvision", "timm", "einops", "av", "captum", "plotly", "accelerate"]
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        return "packages", False, f"missing: {', '.join(missing)}; run `pip install -e .[app,notebooks]`"
    return "packages", True, ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names)


def _torch() -> Check:
    import torch

    from endofm_lab.model.precision import resolve_device

    kind = resolve_device().type
    device = {"cuda": "CUDA", "mps": "Apple GPU"}.get(kind, "CPU")
    device += f", {torch.cuda.get_device_name()}" if kind == "cuda" else ""
    start = time.perf_counter()
    product = torch.ones(256, 256) @ torch.ones(256, 256)
    ok = bool((product == 256).all())
    return (
        "torch",
        ok,
        f"{device}, {torch.get_num_threads()} threads, test product in {1e3 * (time.perf_counter() - start):.0f} ms",
    )


def _precision() -> Check:
    import torch

    capability = torch.backends.cpu.get_cpu_capability()
    amx = bool(getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)())
    half = amx or bool(getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)())
    if torch.cuda.is_available():
        half = torch.cuda.is_bf16_supported()
    fast = "bfloat16 in hardware" if half else "no fast bfloat16: float32 is used"
    return "precision", True, f"{fast} (CPU: {capability}{', AMX' if amx else ''})"


def _decoders() -> Check:
    import numpy as np

    from endofm_lab.video.reader import open_video, write_video

    ramp = np.tile(np.arange(64, dtype=np.uint8)[:, None, None] * 3, (1, 64, 3))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "check.mp4"
        write_video(path, [np.roll(ramp, 8 * i, axis=0) for i in range(6)], Fraction(25))
        with open_video(path) as reader:
            ok = reader.info.n_frames == 6 and reader.read([0, 5]).shape == (2, 64, 64, 3)
    readers = [f"{name} {importlib.metadata.version(name)}" for name in ("av", "decord", "decord2") if _installed(name)]
    return "video", ok, f"wrote and read H.264 ({', '.join(readers)})"


def _disk() -> Check:
    free_gb = shutil.disk_usage(Path.cwd()).free / 1e9
    return "disk", free_gb > 1, f"{free_gb:.0f} GB free here" + ("" if free_gb > 1 else ": at least 1 GB is needed")


def _demo_model() -> Check:
    from endofm_lab.errors import UserError
    from endofm_lab.model.loading.load import load_model

    try:
        card = load_model("demo").card
    except UserError as error:
        return "demo model", False, f"{error}"
    return "demo model", True, f"{card.name}, initialisation: {card.initialisation['words']}"


def _optional() -> Check:
    uses = {
        "streamlit": "app",
        "jupyterlab": "notebooks",
        "umap-learn": "UMAP maps",
        "kaleido": "PNG export",
    }
    return "optional", True, ", ".join(f"{name} ({use}): {_yes_or_no(name)}" for name, use in uses.items())


def _yes_or_no(name: str) -> str:
    return "yes" if _installed(name) else "no"


def _installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


_SCRIPT = """\
# Completion for endofm-lab: save this script in ~/.local/share/bash-completion/completions/endofm-lab
_endofm_lab() {
    local current="${COMP_WORDS[COMP_CWORD]}" previous="${COMP_WORDS[COMP_CWORD-1]}" called="" words=""
    [ "$COMP_CWORD" -gt 1 ] && called="${COMP_WORDS[1]}"
    case "$called" in
        %GROUPS%) [ "$COMP_CWORD" -gt 2 ] && called="$called ${COMP_WORDS[2]}" ;;
    esac
    case "$called" in
%WORDS%
    esac
    case "$called $previous" in
%CHOICES%
    esac
    COMPREPLY=($(compgen -W "$words" -- "$current"))
}
complete -o default -F _endofm_lab endofm-lab
"""


@command(positional=("shell",))
def completion(shell: Literal["bash"], output: Output) -> None:
    """Print a script with which the shell completes commands, options and choices; other words complete as files.

    Zsh reads the script too, after `autoload -U +X bashcompinit && bashcompinit`.

    Args:
        shell: the shell.
    """
    script = completion_script()
    output.say(script)
    output.result({"shell": shell, "script": script})


def completion_script() -> str:
    """The script for bash, made from all commands and their options."""
    entries = {name: find(name) for name in COMMANDS}
    groups = [name for name, entry in entries.items() if isinstance(entry, dict)]
    words = {"": [*COMMANDS], **{name: [*entry] for name, entry in entries.items() if isinstance(entry, dict)}}
    words |= {call: _spellings(command) for call, command in _single(entries)}
    choices = {
        f"{call} {option.typed}": [*option.choices]
        for call, command in _single(entries)
        for option in command.options
        if option.choices and not option.positional
    }
    script = _SCRIPT.replace("%GROUPS%", " | ".join(groups))
    return script.replace("%WORDS%", _cases(words)).replace("%CHOICES%", _cases(choices)).rstrip("\n")


def _single(entries: dict[str, Command | dict[str, Command]]) -> Iterator[tuple[str, Command]]:
    """Every command by the words that call it."""
    for name, entry in entries.items():
        if isinstance(entry, dict):
            yield from ((f"{name} {part}", command) for part, command in entry.items())
        else:
            yield name, entry


def _spellings(command: Command) -> list[str]:
    """The words that can follow a command: choices of its positional arguments, and its options."""
    places = [word for option in command.options if option.positional for word in option.choices]
    return places + [word for option in command.options if not option.positional for word in option.spellings]


def _cases(words: dict[str, list[str]]) -> str:
    """The lines of a ``case`` that set the possible words."""
    return "\n".join(f'        "{case}") words="{" ".join(possible)}" ;;' for case, possible in words.items())
