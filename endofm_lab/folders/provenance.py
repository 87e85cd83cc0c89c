"""The origin of a result: the entry ``provenance`` of every report."""

import importlib.metadata
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from endofm_lab import __version__

PACKAGES = ("torch", "timm", "numpy", "av")
_MODULE = ("endofm_lab", "cli", "main.py")  # where `python -m endofm_lab.cli.main` is


def provenance(device: object = "cpu") -> dict[str, Any]:
    """The versions, machine, command and time behind a result, as JSON without the name of the user.

    Keys: ``endofm_lab`` (version), ``git`` (commit of the library's working tree, with "-dirty" after it if files were
    changed; None for an installed package), ``python``, ``platform``, ``host`` (name of the machine), ``device``,
    ``packages``, ``command`` (the command line, or the name of the script) and ``time`` (UTC).

    Args:
        device: the device of the computation.
    """
    return {
        "endofm_lab": __version__,
        "git": _git(),
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "host": platform.node(),
        "device": str(device),
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
        "command": _command(),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def in_words(origin: Mapping[str, Any]) -> str:
    """A `provenance` as one line of text, for tables that stand outside a report."""
    versions = {"endofm_lab": origin["endofm_lab"], "git": origin["git"] or "not known", "Python": origin["python"]}
    words = ", ".join(f"{name} {version}" for name, version in (versions | origin["packages"]).items())
    return (
        f"Provenance: {words}, {origin['platform']}, host {origin['host']}, device {origin['device']}, "
        f"{origin['time']}, command: {origin['command']}"
    )


def _command() -> str:
    """The command line of `endofm-lab`, or the name of the program that called the library."""
    program, *args = sys.argv or [""]
    path = Path(program)
    if path.name == "endofm-lab" or path.parts[-3:] == _MODULE:
        return shlex.join(["endofm-lab", *args])
    return path.name or "interactive Python"


@cache
def _git() -> str | None:
    """The commit of the working tree that the library is run from; None for an installed package."""
    folder = Path(__file__).parent

    def output_of(*words: str) -> str:
        finished = subprocess.run(
            ["git", "-C", str(folder), *words], capture_output=True, text=True, timeout=10, check=True
        )
        return finished.stdout.strip()

    try:
        output_of("ls-files", "--error-unmatch", "provenance.py")  # fails for a package inside another project's tree
        changed = output_of("status", "--porcelain", "--untracked-files=no", "--", ".")
        return output_of("rev-parse", "HEAD") + ("-dirty" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return None
