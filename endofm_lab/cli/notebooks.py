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
    options = ["--ip=127.0.0.1", f"--port={port}", *(["--no-browser"] if headless else [])]
    raise SystemExit(subprocess.run([sys.executable, "-m", "jupyterlab", str(NOTEBOOKS), *options]).returncode)
