"""The first start of the app, and its access control."""

import http.client
import os
import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from urllib.error import URLError
from urllib.parse import urlencode
from urllib.request import urlopen

import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from endofm_lab.cli.serve import APP, LOOPBACK, allowed_names, command_line, lessons_command, password
from endofm_lab.errors import UserError


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def served(line, folder, path="/_stcore/health", **environment):
    """A running server: its output's path; it is stopped at the end."""
    environment = {
        **os.environ,
        "PYTHONUNBUFFERED": "1",
        "HOME": str(folder),
        "BROWSER": "true",
        "DISPLAY": "",
        **environment,
    }
    port = int(re.search(r"port[= ](\d+)", " ".join(line)).group(1))
    with (folder / "printed").open("w") as output:
        server = subprocess.Popen(
            line, cwd=APP.parents[1], env=environment, stdin=subprocess.PIPE, stdout=output, stderr=output
        )
    try:
        for _ in range(300):
            assert server.poll() is None, (folder / "printed").read_text()
            try:
                urlopen(f"http://127.0.0.1:{port}{path}", timeout=5).close()
                break
            except (URLError, ConnectionError, TimeoutError):
                time.sleep(0.2)
        else:
            raise AssertionError((folder / "printed").read_text())
        yield folder / "printed"
    finally:
        server.send_signal(signal.SIGTERM)
        try:
            server.wait(20)
        finally:
            server.kill()


def request(port, path="/", method="GET", body=None, **headers):
    """Status, headers and text of an answer on a loopback port."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read().decode("utf-8", "replace")
    finally:
        connection.close()


def stream_status(port, host, origin=None, cookie=None):
    """The status with which the app's websocket is opened (101) or refused under a host name."""
    headers = {"Cookie": cookie} if cookie else {}
    with socket.create_connection(("127.0.0.1", port)) as raw:
        try:
            with connect(
                f"ws://{host}:{port}/_stcore/stream", sock=raw, origin=origin, additional_headers=headers, proxy=None
            ):
                return 101
        except InvalidStatus as refused:
            return refused.response.status_code


@pytest.fixture(scope="module")
def app(tmp_path_factory):
    """The app as a new user starts it: its port, and the path of what it printed."""
    port = free_port()
    with served(command_line(port, headless=False), tmp_path_factory.mktemp("app")) as output:
        yield port, output


def test_the_app_answers_under_this_machines_names_only(app):
    """A page on the web whose host name points to 127.0.0.1 must not reach the app: neither pages nor the websocket."""
    port, _ = app
    for host in ("attacker.invalid", f"attacker.invalid:{port}", "127.0.0.1.attacker.invalid", "localhost@a", ""):
        for path in ("/", "/_stcore/health", "/_stcore/host-config", "/media/x.png"):
            status, _, text = request(port, path, Host=host)
            assert status in (400, 421), (host, path)
            assert status == 400 or "does not accept the host name" in text
    for host in (f"127.0.0.1:{port}", f"localhost:{port}", f"[::1]:{port}", "LOCALHOST"):
        assert request(port, Host=host)[0] == 200, host
    assert stream_status(port, "attacker.invalid") == 421
    assert stream_status(port, "attacker.invalid", f"http://attacker.invalid:{port}") == 421
    assert stream_status(port, "127.0.0.1", f"http://attacker.invalid:{port}") == 403
    assert stream_status(port, "127.0.0.1", f"http://127.0.0.1:{port + 1}") == 403
    assert stream_status(port, "127.0.0.1", f"http://127.0.0.1:{port}") == 101
    assert stream_status(port, "localhost", f"http://localhost:{port}") == 101
    assert request(port, "/login", "POST", "password=x", Origin="http://attacker.invalid")[0] == 403


def test_the_first_start_asks_no_questions_and_answers(app):
    """Streamlit would ask a new user for an e-mail address, and wait; it would also offer to
    install skills for agents, in the terminal and over every page."""
    port, output = app
    assert request(port, "/_stcore/health")[2] == "ok"
    printed = output.read_text().lower()
    assert "mail" not in printed and "skills" not in printed


def test_streamlit_alone_refuses_foreign_names_too(tmp_path):
    """Without the guard, main.py is served on loopback only and is protected by Streamlit's own check."""
    port = free_port()
    line = [sys.executable, "-m", "streamlit", "run", str(APP.with_name("main.py")), "--server.port", str(port)]
    with served([*line, "--server.headless", "true"], tmp_path):
        assert stream_status(port, "attacker.invalid") == 403
        assert stream_status(port, "127.0.0.1", f"http://127.0.0.1:{port}") == 101


def test_other_machines_need_the_password_and_an_allowed_name(tmp_path):
    port = free_port()
    line = [sys.executable, "-m", "endofm_lab.cli.main", "app", "--port", str(port), "--headless"]
    with served([*line, "--allow-host", "ward.example", "--allow-host", "second.example"], tmp_path) as output:
        for _ in range(100):
            if match := re.search(r"The password is (\S{20,})", output.read_text()):
                break
            time.sleep(0.1)
        for host in ("ward.example", "second.example", f"127.0.0.1:{port}"):
            status, headers, text = request(port, Host=host)
            assert status == 401 and 'type="password"' in text and headers["Cache-Control"] == "no-store"
        assert request(port, Host="third.example")[0] == 421
        assert request(port, "/media/x.png")[0] == request(port, "/_stcore/host-config")[0] == 401
        assert stream_status(port, "ward.example") == 401
        form = {"Content_Type": "application/x-www-form-urlencoded", "Host": "ward.example"}
        status, headers, text = request(port, "/login", "POST", urlencode({"password": "wrong"}), **form)
        assert status == 401 and "The password is wrong." in text and "Set-Cookie" not in headers
        right = urlencode({"password": match.group(1)})
        status, headers, _ = request(port, "/login", "POST", right, **form)
        assert status == 303 and headers["Location"] == "/"
        assert "HttpOnly" in headers["Set-Cookie"] and "SameSite=Strict" in headers["Set-Cookie"]
        assert "Secure" not in headers["Set-Cookie"]
        behind_tls = request(port, "/login", "POST", right, **form, X_Forwarded_Proto="https")[1]["Set-Cookie"]
        assert behind_tls.endswith("; Secure"), "a reverse proxy on this machine says that the browser came by TLS"
        cookie = headers["Set-Cookie"].split(";")[0]
        assert request(port, Host="ward.example", Cookie=cookie)[0] == 200
        assert stream_status(port, "ward.example", f"http://ward.example:{port}", cookie) == 101
        assert request(port, Host="ward.example", Cookie=f"{cookie}x")[0] == 401


@pytest.mark.parametrize("name", ["", "a b", "https://ward.example", "ward.example/app", "*", "*.example", "a:80"])
def test_an_invalid_host_name_is_refused(name):
    with pytest.raises(UserError, match="not a host name"):
        allowed_names(None, [name])


def test_listening_on_all_networks_needs_a_name():
    with pytest.raises(UserError, match="--allow-host NAME"):
        allowed_names("0.0.0.0", [])
    assert allowed_names("0.0.0.0", ["Ward.Example"]) == ["ward.example"]
    assert allowed_names("10.1.2.3", []) == ["10.1.2.3"]
    assert LOOPBACK == ("127.0.0.1", "localhost", "::1")


def test_a_short_password_is_refused_and_a_missing_one_is_generated(monkeypatch):
    monkeypatch.delenv("ENDOFM_LAB_PASSWORD", raising=False)
    assert len(password()) >= 20 and password() != password()
    monkeypatch.setenv("ENDOFM_LAB_PASSWORD", "short")
    with pytest.raises(UserError, match="at least 12"):
        password()
    monkeypatch.setenv("ENDOFM_LAB_PASSWORD", "long enough for a ward")
    assert password() == "long enough for a ward"


def test_the_lessons_answer_under_this_machines_names_only(tmp_path):
    port = free_port()
    (tmp_path / "lessons").mkdir()
    line = [*lessons_command(tmp_path / "lessons", port, headless=True), "--allow-root"]
    with served(line, tmp_path, "/login"):
        status, _, _ = request(port, "/login", Host="attacker.invalid")
        assert status == 403
        assert request(port, "/api/status", Host=f"attacker.invalid:{port}")[0] == 403
        assert request(port, "/login")[0] == request(port, "/login", Host=f"localhost:{port}")[0] == 200
        assert request(port, "/api/contents")[0] == 403, "a token is needed"
