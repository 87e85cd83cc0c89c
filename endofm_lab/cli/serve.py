"""The commands `endofm-lab app` and `notebooks`, which serve this machine only unless the user allows others."""

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
# An environment variable, because every user of the machine can read command lines.
PASSWORD = "ENDOFM_LAB_PASSWORD"  # noqa: S105
EVERYWHERE = ("0.0.0.0", "::")  # noqa: S104  (addresses that need --allow-host and a password)
_SHORTEST_PASSWORD = 12


def command_line(port: int, headless: bool, host: str = "127.0.0.1", names: Sequence[str] = LOOPBACK) -> list[str]:
    """The command line that serves the app at an address, by default on loopback.

    Args:
        port: the port that the app listens on.
        headless: serve without opening a browser.
        host: the address that the app listens on.
        names: the host names that the app accepts.

    Raises:
        UserError: Streamlit is not installed.
    """
    require("streamlit", "app", "The app")
    options = ["--server.address", host, "--server.port", str(port), "--server.headless", str(headless).lower()]
    options += ["--runner.magicEnabled", "false"]  # no page shows bare expressions; rewriting every page takes a while
    for name in names:
        options += ["--server.allowedHosts", name]
    return [sys.executable, "-m", "streamlit", "run", str(APP), *options]


def require(module: str, extra: str, wanted_by: str) -> None:
    """Check that an optional package is installed.

    Raises:
        UserError: the package is missing; the message names the command that installs it.
    """
    if importlib.util.find_spec(module) is None:
        raise UserError(f"{wanted_by} needs {module}, which is not installed. Run `pip install 'endofm-lab[{extra}]'`.")


@command()
def app(
    output: Output,
    port: int = 8501,
    headless: bool = False,
    host: str | None = None,
    allow_host: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = (),
) -> None:
    """Open the app in the browser. It answers on 127.0.0.1 only and sends no data to other machines.

    With --host or --allow-host other machines can reach the app, and it asks for a password. The password is taken from
    the environment variable ENDOFM_LAB_PASSWORD; without this variable a password is generated and printed.
    docs/serving.md explains how to run the app behind a reverse proxy.

    Args:
        port: port that the server listens on.
        headless: serve without opening a browser.
        host: address to listen on, for a server that others use; by default 127.0.0.1.
        allow_host: a host name that the app accepts besides this machine's own; may be given several times.
    """
    names = [*LOOPBACK, *allowed_names(host, allow_host)]
    address = host or "127.0.0.1"
    shared = host is not None or bool(allow_host)
    environment = dict(os.environ)
    if shared:
        environment[PASSWORD] = password()
    with socket.socket() as probe:
        if address in LOOPBACK and probe.connect_ex(("127.0.0.1", port)) == 0:
            raise UserError(f"Port {port} is in use. Choose another port with --port.")
    server = subprocess.Popen(command_line(port, True, address, names), env=environment)
    try:
        url = f"http://{'127.0.0.1' if address in EVERYWHERE else bracketed(address)}:{port}"
        wait_until_it_answers(url, server)
        output.say(f"The app is running at {url}. Press Ctrl-C to stop it.")
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
    site: Path | None = None,
    only: tuple[str, ...] = (),
) -> None:
    """Copy the lessons into a folder of your own and open them in JupyterLab, which answers on 127.0.0.1 only.

    Lessons that you changed are not overwritten. With --site the original lessons are executed and written as pages
    with their results, and JupyterLab is not started.

    Args:
        into: folder for your copies of the lessons.
        reset: restore the original lessons; your changes in them are lost.
        port: port that the server listens on.
        headless: serve without opening a browser.
        site: folder for a static site of the executed lessons, which needs no network; a stopped command continues.
        only: numbers of the lessons to execute for the site, such as 01 05; by default all.
    """
    require("jupyterlab", "notebooks", "The lessons")
    if only and site is None:
        raise UserError("--only chooses lessons for the site. Give the folder of the site with --site.")
    if site is not None:
        from endofm_lab.course.site import write_site  # loads Plotly

        pages = write_site(LESSONS, site, only)
        output.written(pages[0])
        output.result({"pages": pages})
        return
    copied, changed = copy_lessons(into, reset)
    if copied:
        output.say(f"{len(copied)} lessons were copied to {into.absolute()}.")
    if changed:
        action = "Restored to the original" if reset else "Not overwritten, because you changed them (see --reset)"
        output.say(f"{action}: {', '.join(changed)}.")
    raise SystemExit(subprocess.run(lessons_command(into, port, headless)).returncode)


def copy_lessons(into: Path, reset: bool = False) -> tuple[list[str], list[str]]:
    """Copy the lessons that are missing in a folder; with ``reset`` also restore the lessons that were changed there.

    Returns:
        Names of the lessons that were copied because they were missing, and of the lessons that had been changed.

    Raises:
        UserError: the folder contains the original lessons.
    """
    if into.resolve() == LESSONS.resolve():
        raise UserError(f"{into} contains the original lessons. Choose another folder for your copies.")
    into.mkdir(parents=True, exist_ok=True)
    copied, changed = [], []
    for lesson in sorted(LESSONS.glob("*.ipynb")):
        copy = into / lesson.name
        if not copy.exists():
            copied.append(lesson.name)
        elif filecmp.cmp(lesson, copy, shallow=False):
            continue
        else:
            changed.append(lesson.name)
            if not reset:
                continue
        shutil.copyfile(lesson, copy)
    return copied, changed


def lessons_command(folder: Path, port: int, headless: bool) -> list[str]:
    """The command line that serves notebooks on loopback, under this machine's own names only.

    Requests under another host name that points to 127.0.0.1 are refused. JupyterLab contacts no server for news,
    updates or extensions.
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
        UserError: an invalid host name, or an address for all networks without a host name.
    """
    names = []
    for name in [*([host] if host else []), *allow_host]:
        plain = name.strip("[]").lower()
        if not (is_address(plain) or re.fullmatch(r"[a-z0-9]([a-z0-9.-]{0,252}[a-z0-9])?", plain)):
            raise UserError(f"{name!r} is not a host name. Give a name such as ward.example.org without port and path.")
        names.append(plain)
    if host and host.strip("[]") in EVERYWHERE:
        if not allow_host:
            raise UserError(
                f"--host {host} listens on all networks. Give the name of this server with --allow-host NAME."
            )
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
    """An address as it is written in a URL: IPv6 addresses in brackets."""
    return f"[{address.strip('[]')}]" if ":" in address else address


def password() -> str:
    """The user's password, or a generated password of 128 bits.

    Raises:
        UserError: the user's password is too short.
    """
    value = os.environ.get(PASSWORD)
    if value is None:
        return secrets.token_urlsafe(16)
    if len(value) < _SHORTEST_PASSWORD:
        raise UserError(
            f"The password in {PASSWORD} has {len(value)} characters, but at least {_SHORTEST_PASSWORD} are needed. "
            "Choose a longer password, or unset this variable to have a password generated."
        )
    return value


def free_port(port: int) -> int:
    """The first free port, starting at a given number.

    Raises:
        UserError: fifty ports in a row are in use.
    """
    for candidate in range(port, port + 50):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", candidate)) != 0:
                return candidate
    raise UserError(f"The ports {port} to {port + 49} are all in use. Choose another port with --port.")


def wait_until_it_answers(url: str, server: subprocess.Popen, limit_s: float = 90) -> None:
    """Wait until the app answers.

    Raises:
        UserError: the app stopped, or did not answer in time.
    """
    end = time.monotonic() + limit_s
    while time.monotonic() < end:
        if server.poll() is not None:
            raise UserError(f"The app stopped with exit code {server.returncode}. Run `endofm-lab app` to see why.")
        try:
            with urllib.request.urlopen(f"{url}/_stcore/health", timeout=2) as answer:  # noqa: S310  (a local http address)
                if answer.status == 200:
                    return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.3)
    raise UserError(f"The app did not answer at {url} within {limit_s:.0f} s. Run `endofm-lab app` to see why.")


def stop(server: subprocess.Popen) -> None:
    """Stop a server."""
    server.terminate()
    server.wait(timeout=20)
