"""The app as a newcomer starts it."""

import os
import socket
import subprocess
import time
from urllib.error import URLError
from urllib.request import urlopen

from endofm_lab.cli.app import APP, command


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_the_first_start_of_a_new_user_asks_nothing_and_answers(tmp_path):
    """Streamlit would ask whoever has never used it for an e-mail address, and wait; it would also offer to
    install skills for agents, in the terminal and over every page."""
    port = free_port()
    environment = {**os.environ, "HOME": str(tmp_path), "BROWSER": "true", "DISPLAY": ""}
    with (tmp_path / "printed").open("w") as output:
        server = subprocess.Popen(
            command(port, headless=False), cwd=APP.parents[1], env=environment, stdin=subprocess.PIPE, stdout=output
        )
    try:
        for _ in range(300):
            try:
                with urlopen(f"http://127.0.0.1:{port}/_stcore/health", timeout=5) as answer:
                    assert answer.read() == b"ok"
                break
            except URLError:
                time.sleep(0.2)
        else:
            raise AssertionError((tmp_path / "printed").read_text())
    finally:
        server.kill()
        server.wait()
    printed = (tmp_path / "printed").read_text().lower()
    assert "mail" not in printed and "skills" not in printed
