"""`endofm-lab app` and `endofm-lab notebooks`: servers on this machine only, unless the user says otherwise."""

import filecmp
import importlib.util
import ipaddress
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import webbrowser
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from endofm_lab.cli.command import Output, command
from endofm_lab.errors import UserError
from endofm_lab.files import bundled

APP = bundled("app") / "serve.py"
LESSONS = bundled("notebooks")
LOOPBACK = ("127.0.0.1", "localhost", "::1")
# An environment variable, since command lines can be read by every user of the machine.
PASSWORD = "ENDOFM_LAB_PASSWORD"  # noqa: S105
EVERYWHERE = ("0.0.0.0", "::")  # noqa: S104  (addresses that ask for --allow-host and a password)
_SHORTEST_PASSWORD = 12


def command_line(port: int, headless: bool, host: str = "127.0.0.1", names: Sequence[str] = LOOPBACK) -> list[str]:
    """The command line that serves the app at an address, by default on loopback.

    Args:
        port: the port it listens on.
        headless: serve without opening a browser.
        host: address to listen at.
        names: host names under which it is answered.

    Raises:
        UserError: Streamlit is not installed.
    """
    require("streamlit", "app", "The app")
    options = ["--server.address", host, "--server.port", str(port), "--server.headless", str(headless).lower()]
    for name in names:
        options += ["--server.allowedHosts", name]
    return [sys.executable, "-m", "streamlit", "run", str(APP), *options]


def require(module: str, extra: str, wanted_by: str) -> None:
    """Check that an optional part of the installation is there.

    Raises:
        UserError: it is not; the sentence names the command that installs it.
    """
    if importlib.util.find_spec(module) is None:
        raise UserError(f"{wanted_by} needs {module}, which is missing here: run `pip install 'endofm-lab[{extra}]'`.")


@command()
def app(
    output: Output,
    port: int = 8501,
    headless: bool = False,
    host: str | None = None,
    allow_host: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = (),
) -> None:
    """Open the app in the browser. It answers on 127.0.0.1 only, and sends nothing anywhere.

    With --host or --allow-host others can reach it: then it asks for a password, which is taken from the environment
    variable ENDOFM_LAB_PASSWORD or made and printed. docs/serving.md shows it behind a reverse proxy.

    Args:
        port: the port it listens on.
        headless: serve without opening a browser.
        host: address to listen at, for a server that others use; by default 127.0.0.1.
        allow_host: a host name under which it is answered, besides this machine's own; may be given several times.
    """
    names = [*LOOPBACK, *allowed_names(host, allow_host)]
    address = host or "127.0.0.1"
    shared = host is not None or bool(allow_host)
    environment = dict(os.environ)
    if shared:
        environment[PASSWORD] = password()
    with socket.socket() as probe:
        if address in LOOPBACK and probe.connect_ex(("127.0.0.1", port)) == 0:
            raise UserError(f"Port {port} is in use: choose another with --port.")
    server = subprocess.Popen(command_line(port, True, address, names), env=environment)
    try:
        url = f"http://{'127.0.0.1' if address in EVERYWHERE else bracketed(address)}:{port}"
        wait_until_it_answers(url, server)
        output.say(f"The app is at {url} (Ctrl-C ends it).")
        if shared and PASSWORD not in os.environ:
            output.say(f"The password is {environment[PASSWORD]}")
        if not (headless or shared):
            webbrowser.open(url)
        raise SystemExit(server.wait())
    finally:
        stop(server)


@command(positional=("into",))
def notebooks(
    output: Output,
    into: Path = Path("endofm_lab_lessons"),
    reset: bool = False,
    port: int = 8888,
    headless: bool = False,
) -> None:
    """Copy the lessons into a folder of yours and open them in JupyterLab. It answers on 127.0.0.1 only.

    Lessons that you changed stay as they are.

    Args:
        into: where your copies of the lessons lie.
        reset: bring the original lessons back in place of those that you changed.
        port: the port it listens on.
        headless: serve without opening a browser.
    """
    require("jupyterlab", "notebooks", "The lessons")
    copied, changed = copy_lessons(into, reset)
    output.say(f"{len(copied)} lessons were copied to {into.absolute()}.") if copied else None
    if changed:
        what = "Brought back as they were" if reset else "Yours, changed, and left as they are (--reset undoes it)"
        output.say(f"{what}: {', '.join(changed)}.")
    raise SystemExit(subprocess.run(lessons_command(into, port, headless)).returncode)


def copy_lessons(into: Path, reset: bool = False) -> tuple[list[str], list[str]]:
    """Copy the lessons that are not in a folder yet; with ``reset`` those that were changed there as well.

    Returns:
        Names of the lessons that were copied because they were missing, and of those that had been changed.

    Raises:
        UserError: the folder is where the lessons come from.
    """
    if into.resolve() == LESSONS.resolve():
        raise UserError(f"{into} is where the lessons come from: choose another folder for your copies.")
    into.mkdir(parents=True, exist_ok=True)
    copied, changed = [], []
    for lesson in sorted(LESSONS.glob("*.ipynb")):
        mine = into / lesson.name
        if not mine.exists():
            copied.append(lesson.name)
        elif filecmp.cmp(lesson, mine, shallow=False):
            continue
        else:
            changed.append(lesson.name)
            if not reset:
                continue
        shutil.copyfile(lesson, mine)
    return copied, changed


def lessons_command(folder: Path, port: int, headless: bool) -> list[str]:
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


def allowed_names(host: str | None, allow_host: Sequence[str]) -> list[str]:
    """The host names that the user gave, in lower case and without brackets.

    Raises:
        UserError: a name that is none, or an address for all networks without a name.
    """
    names = []
    for name in [*([host] if host else []), *allow_host]:
        plain = name.strip("[]").lower()
        if not (is_address(plain) or re.fullmatch(r"[a-z0-9]([a-z0-9.-]{0,252}[a-z0-9])?", plain)):
            raise UserError(f"{name!r} is not a host name: give one such as ward.example.org, without port and path.")
        names.append(plain)
    if host and host.strip("[]") in EVERYWHERE:
        if not allow_host:
            raise UserError(f"--host {host} listens in every network: say with --allow-host NAME how others call it.")
        names.remove(host.strip("[]"))
    return names


def is_address(text: str) -> bool:
    """Whether a text is an IP address."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def bracketed(address: str) -> str:
    """An address as it stands in a URL."""
    return f"[{address.strip('[]')}]" if ":" in address else address


def password() -> str:
    """The user's password, or a new one of 128 bits.

    Raises:
        UserError: the user's is too short.
    """
    given = os.environ.get(PASSWORD)
    if given is None:
        return secrets.token_urlsafe(16)
    if len(given) < _SHORTEST_PASSWORD:
        raise UserError(
            f"The password in {PASSWORD} has {len(given)} characters; at least {_SHORTEST_PASSWORD} are needed. "
            "Without that variable one is made and printed."
        )
    return given


def free_port(port: int) -> int:
    """The first port from a number on that nobody listens on.

    Raises:
        UserError: fifty in a row are in use.
    """
    for candidate in range(port, port + 50):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", candidate)) != 0:
                return candidate
    raise UserError(f"Ports {port} to {port + 49} are all in use: choose another with --port.")


def wait_until_it_answers(url: str, server: subprocess.Popen, limit_s: float = 90) -> None:
    """Wait for the app's first answer.

    Raises:
        UserError: it stopped, or did not answer in time.
    """
    end = time.monotonic() + limit_s
    while time.monotonic() < end:
        if server.poll() is not None:
            raise UserError(f"The app stopped with exit code {server.returncode}: run `endofm-lab app` to see why.")
        try:
            with urllib.request.urlopen(f"{url}/_stcore/health", timeout=2) as answer:  # noqa: S310  (our own http url)
                if answer.status == 200:
                    return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.3)
    raise UserError(f"The app did not answer at {url} within {limit_s:.0f} s: run `endofm-lab app` to see why.")


def stop(server: subprocess.Popen) -> None:
    """End a server."""
    server.terminate()
    server.wait(timeout=20)
