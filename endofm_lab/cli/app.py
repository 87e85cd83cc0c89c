"""`endofm-lab app`: the Streamlit app, on this machine only."""

import os
import subprocess
import sys
from pathlib import Path

from endofm_lab.errors import UserError

APP = Path(__file__).resolve().parents[2] / "app" / "main.py"


def command(port: int, headless: bool) -> list[str]:
    """The command line that serves the app on loopback.

    Raises:
        UserError: the app is not beside the library (an installation without the source tree).
    """
    if not APP.exists():
        raise UserError(
            f"The app is not at {APP}: it comes with the source tree, so install with `pip install -e .[app]`."
        )
    options = ["--server.port", str(port), "--server.headless", str(headless).lower()]
    return [sys.executable, "-m", "streamlit", "run", str(APP), *options]


def app(port: int = 8501, headless: bool = False) -> None:
    """Open the app in the browser. It answers on 127.0.0.1 only, and sends nothing anywhere.

    Args:
        port: the port it listens on.
        headless: serve without opening a browser.
    """
    serving = command(port, headless)
    print(f"The app is at http://127.0.0.1:{port} (Ctrl-C ends it).", flush=True)
    raise SystemExit(subprocess.run(serving, cwd=APP.parent.parent, env=os.environ).returncode)
