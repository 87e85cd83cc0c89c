"""Where a result comes from: the entry ``provenance`` that every report carries."""

import importlib.metadata
import platform
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from endofm_lab import __version__

PACKAGES = ("torch", "timm", "numpy", "av")
_MODULE = ("endofm_lab", "cli", "main.py")  # where `python -m endofm_lab.cli.main` is


def provenance(device: object = "cpu") -> dict[str, Any]:
    """What a report says about its making, as JSON; nothing in it names the machine or the user.

    Keys: ``endofm_lab`` (version), ``git`` (commit of the library's working tree, with "-dirty" after it if files were
    changed; None for an installed package), ``python``, ``platform``, ``device``, ``packages``, ``command`` (the
    command line, or the name of the script) and ``time`` (UTC).

    Args:
        device: what computed.
    """
    return {
        "endofm_lab": __version__,
        "git": _git(),
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "device": str(device),
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
        "command": _command(),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _command() -> str:
    """The command line of `endofm-lab`, or the name of the program that called the library."""
    program, *args = sys.argv or [""]
    path = Path(program)
    if path.name == "endofm-lab" or path.parts[-3:] == _MODULE:
        return shlex.join(["endofm-lab", *args])
    return path.name or "interactive Python"


@cache
def _git() -> str | None:
    """The commit of the working tree that the library is run from, if there is one."""
    folder = Path(__file__).parent

    def answer(*words: str) -> str:
        finished = subprocess.run(
            ["git", "-C", str(folder), *words], capture_output=True, text=True, timeout=10, check=True
        )
        return finished.stdout.strip()

    try:
        answer("ls-files", "--error-unmatch", "provenance.py")  # and not a package in the folder of another project
        changed = answer("status", "--porcelain", "--untracked-files=no", "--", ".")
        return answer("rev-parse", "HEAD") + ("-dirty" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return None
