"""Downloads against a server on this machine that breaks off, lies and redirects."""

import hashlib
import io
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from endofm_lab.cli.main import main
from endofm_lab.data import download as module
from endofm_lab.data.download import Source, download, get_data, refuse_unless_agreed
from endofm_lab.data.prepare.recipes import list_recipes, recipes_folder
from endofm_lab.errors import UserError

CONTENT = bytes(range(256)) * 2000
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Server(ThreadingHTTPServer):
    """What it was asked for, and how it behaves."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests, self.breaks_after, self.without_ranges, self.archive = [], [], False, b""

    def source(self, path, **changes):
        url = f"http://127.0.0.1:{self.server_address[1]}/{path}"
        return Source(**{"url": url, "size_bytes": len(CONTENT), "sha256": SHA256, "licence": "CC BY 4.0", **changes})


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        server, start = self.server, self.headers.get("Range")
        server.requests.append((self.path, start))
        if self.path.startswith("/to/"):
            self.send_response(302)
            self.send_header("Location", self.path.removeprefix("/to/"))
            self.end_headers()
            return
        if self.path in ("/401", "/404"):
            self.send_error(int(self.path[1:]))
            return
        first = 0 if start is None or server.without_ranges else int(start.removeprefix("bytes=").rstrip("-"))
        content = {
            "/archive": getattr(server, "archive", b""),
            "/other": b"x" + CONTENT[1:],
            "/longer": CONTENT + b"more",
            "/endless": CONTENT * 2,
        }
        body = content.get(self.path, CONTENT)
        self.send_response(206 if first else 200)
        if self.path != "/endless":
            self.send_header("Content-Length", str(len(body) - first))
        if first:
            self.send_header("Content-Range", f"bytes {0 if self.path == '/wrong-part' else first}-{len(body) - 1}/*")
        self.end_headers()
        body = body[first:]
        if server.breaks_after:
            body = body[: server.breaks_after.pop(0)]
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(module, "_PAUSE_S", 0.0)
    monkeypatch.setattr(module, "_BLOCK", 64 * 1024)
    with Server() as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield running
        running.shutdown()


def test_a_file_is_fetched_whole_and_not_again(server, tmp_path):
    shown = list(download(server.source("file"), tmp_path / "a" / "file.zip"))
    assert shown[-1] == (len(CONTENT), len(CONTENT)) and (tmp_path / "a" / "file.zip").read_bytes() == CONTENT
    list(download(server.source("file"), tmp_path / "a" / "file.zip"))
    assert server.requests == [("/file", None)] and len(list((tmp_path / "a").iterdir())) == 1


def test_a_download_that_broke_off_goes_on_from_there(server, tmp_path):
    server.breaks_after = [100_000, 200_000]
    list(download(server.source("file"), tmp_path / "file"))
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert [start for _, start in server.requests] == [None, "bytes=100000-", "bytes=300000-"]


def test_a_download_that_was_stopped_goes_on_in_the_next_call(server, tmp_path):
    running = download(server.source("file"), tmp_path / "file")
    done, _ = next(running)
    running.close()
    assert not (tmp_path / "file").exists()
    list(download(server.source("file"), tmp_path / "file"))
    assert server.requests[1][1] == f"bytes={done}-" and (tmp_path / "file").read_bytes() == CONTENT


def test_a_server_without_ranges_sends_the_file_again(server, tmp_path):
    server.without_ranges, server.breaks_after = True, [100_000]
    list(download(server.source("file"), tmp_path / "file"))
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_a_server_that_breaks_off_again_and_again_is_given_up(server, tmp_path):
    server.breaks_after = [1000] + [0] * 20
    with pytest.raises(UserError, match=r"sends nothing\. Try again later"):
        list(download(server.source("file"), tmp_path / "file"))
    assert not (tmp_path / "file").exists() and len(server.requests) == 6
    server.shutdown()
    server.server_close()
    with pytest.raises(UserError, match=r"broke off 5 times .* the same command goes on from there"):
        list(download(server.source("file"), tmp_path / "file"))


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("other", "gave a file with another SHA-256 than .* Nothing was kept"),
        ("longer", "announces 512,004 bytes, but 512,000 are stated"),
        ("endless", "sends more than the stated 512,000 bytes"),
        ("404", "the server answers 404 .*Look at the page"),
        ("401", "the server answers 401 .*It needs a form or a login first"),
        ("to/https://example.org/file", "leads to another host, 'example.org', which was not agreed to"),
        ("to/http://127.0.0.1:9/file", "leads to another host, '127.0.0.1:9'"),
        ("to/file:///etc/passwd", "file:///etc/passwd is not an https address"),
        ("to/ftp://127.0.0.1/file", "ftp://127.0.0.1/file is not an https address"),
    ],
)
def test_a_server_that_lies_or_redirects_elsewhere_is_refused(server, tmp_path, path, message):
    with pytest.raises(UserError, match=f"(?s){message}"):
        list(download(server.source(path), tmp_path / "file"))
    assert not (tmp_path / "file").exists()
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) == 0


def test_a_redirection_on_the_same_host_is_followed(server, tmp_path):
    list(download(server.source("to//file"), tmp_path / "file"))
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_a_server_that_sends_another_part_is_refused(server, tmp_path):
    server.breaks_after = [1000]
    with pytest.raises(UserError, match="sends another part of the file"):
        list(download(server.source("wrong-part"), tmp_path / "file"))


@pytest.mark.parametrize("url", ["http://example.org/a", "file:///etc/passwd", "ftp://example.org/a"])
def test_only_https_is_fetched(tmp_path, url):
    with pytest.raises(UserError, match=r"is not an https address"):
        list(download(Source(url, 1, SHA256, "free"), tmp_path / "file"))


def test_a_disk_that_is_too_small_is_noticed_before(server, tmp_path):
    with pytest.raises(UserError, match=r"more bytes, but .* free\. Make room"):
        list(download(server.source("file", size_bytes=10**18), tmp_path / "file"))
    assert not server.requests


def test_what_was_not_agreed_to_is_shown_and_not_fetched(server):
    with pytest.raises(UserError, match=rf"(?s)Nothing was fetched.*--agree.*0\.5 MB.*{SHA256}.*CC BY 4\.0"):
        refuse_unless_agreed(server.source("file"), agree=False)
    assert not server.requests


def zipped(entries):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return packed.getvalue()


SET = {f"Kvasir-SEG/{folder}/{name}.jpg": b"picture" for folder in ("images", "masks") for name in ("a1", "b2")}


def with_download(folder, server, content, **changes):
    """A folder with Kvasir-SEG's recipe that has an address on this machine."""
    server.archive = content
    url = server.source("archive").url
    facts = {"url": url, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest(), **changes}
    text = (recipes_folder() / "kvasir-seg.yaml").read_text()
    folder.mkdir()
    (folder / "kvasir-seg.yaml").write_text(text.replace("access: open", f"access: open\ndownload: {facts}"))
    return str(folder)


def test_a_data_set_is_fetched_and_unpacked_when_its_licence_is_agreed_to(server, tmp_path, capsys):
    recipes = with_download(tmp_path / "recipes", server, zipped(SET))
    command = ["data", "get", "kvasir-seg", "--out", str(tmp_path / "set"), "--recipes", recipes]
    assert main(command) == 2
    shown = capsys.readouterr().err
    assert "Nothing was fetched" in shown and "Research and educational use" in shown and not server.requests
    assert main([*command, "--agree", "--quiet"]) == 0
    assert {path.name for path in (tmp_path / "set" / "Kvasir-SEG").iterdir()} == {"images", "masks"}
    assert main([*command, "--agree"]) == 2 and "is not an empty folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"../out.txt": b"x"}, "leads out of its folder"),
        ({"/etc/x": b"x"}, "leads out of its folder"),
        ({"notes.txt": b"x"}, "kvasir-seg"),
        (None, "is not a zip archive"),
    ],
)
def test_an_archive_that_is_no_data_set_leaves_nothing(tmp_path, entries, message):
    (tmp_path / "a.zip").write_bytes(b"no archive" if entries is None else zipped(entries))
    with pytest.raises(UserError, match=message):
        list(get_data("kvasir-seg", tmp_path / "set", file=tmp_path / "a.zip"))
    assert [path.name for path in tmp_path.iterdir()] == ["a.zip"]


def test_an_archive_that_was_fetched_by_hand_is_unpacked(tmp_path):
    (tmp_path / "a.zip").write_bytes(zipped(SET))
    list(get_data("kvasir-seg", tmp_path / "set", file=tmp_path / "a.zip"))
    assert (tmp_path / "set" / "Kvasir-SEG" / "images" / "a1.jpg").read_bytes() == b"picture"


def test_a_wrong_checksum_in_a_recipe_is_named(server, tmp_path):
    recipes = with_download(tmp_path / "recipes", server, zipped(SET), sha256="abc")
    with pytest.raises(UserError, match=r"download\.sha256: expected 64 hexadecimal digits"):
        next(get_data("kvasir-seg", tmp_path / "set", agree=True, recipes=recipes))


@pytest.mark.parametrize("recipe", list_recipes(), ids=lambda recipe: recipe.name)
def test_a_data_set_without_an_address_says_where_to_ask(recipe, tmp_path):
    reason = {"on request": "needs a form or a signature", "open": "downloaded by hand", "dead link": "no longer works"}
    with pytest.raises(UserError, match=reason.get(recipe.facts["access"], "data of your own")):
        next(get_data(recipe.name, tmp_path / "set", agree=True))
    assert not list(tmp_path.iterdir())
