"""`endofm-lab notebooks`: the lessons in JupyterLab, on this machine only."""

import subprocess
import sys
from pathlib import Path

from endofm_lab.errors import UserError

NOTEBOOKS = Path(__file__).resolve().parents[2] / "notebooks"


def notebooks(port: int = 8888, headless: bool = False) -> None:
    """Open the lessons in JupyterLab. It answers on 127.0.0.1 only.

    Args:
        port: the port it listens on.
        headless: serve without opening a browser.
    """
    if not NOTEBOOKS.is_dir():
        raise UserError(f"The lessons are not at {NOTEBOOKS}: they come with the source tree; clone it to have them.")
    raise SystemExit(subprocess.run(command(NOTEBOOKS, port, headless)).returncode)


def command(folder: Path, port: int, headless: bool) -> list[str]:
    """The command line that serves notebooks on loopback, under this machine's own names only.

    A page on the web whose host name points to 127.0.0.1 is refused. JupyterLab asks no server for news, updates or
    extensions.
    """
    options = [
        "--ip=127.0.0.1",
        f"--port={port}",
        "--ServerApp.allow_remote_access=False",
        "--ServerApp.local_hostnames=localhost",
        "--LabApp.check_for_updates_class=jupyterlab.handlers.announcements.NeverCheckForUpdate",
        "--LabApp.news_url=None",
        "--LabApp.extension_manager=readonly",
    ]
    return [sys.executable, "-m", "jupyterlab", str(folder), *options, *(["--no-browser"] if headless else [])]
