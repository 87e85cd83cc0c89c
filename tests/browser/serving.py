"""A served app, and how Chromium is started."""

import os
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def served_app(cache: Path, log: Path | None = None):
    """The address of a running app with a cache of its own; it is stopped when the generator goes on.

    ``log`` is a file for what the server writes about errors.
    """
    from endofm_lab.cli.serve import command_line, free_port

    port = free_port(8600)
    environment = {**os.environ, "ENDOFM_LAB_CACHE": str(cache), "PYTHONUNBUFFERED": "1"}
    environment["ENDOFM_LAB_STUDIES"] = str(cache / "studies")
    with (log or Path(os.devnull)).open("wb") as file:
        errors = file if log else None
        server = subprocess.Popen(
            command_line(port, headless=True), cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=errors
        )
    url = f"http://127.0.0.1:{port}"
    end = time.monotonic() + 90
    while time.monotonic() < end:
        assert server.poll() is None, f"the app stopped with {server.returncode}; {sys.executable}"
        try:
            if urllib.request.urlopen(f"{url}/_stcore/health", timeout=2).status == 200:
                break
        except OSError:  # not there yet, or too busy to answer in time
            time.sleep(0.3)
    try:
        yield url
    finally:  # also when the generator is closed
        server.terminate()
        server.wait(timeout=20)
