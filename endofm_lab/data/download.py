"""Fetch one file over https: agreed to first, resumable, of the stated size and checksum, or not at all; unpack it.

Nothing calls this module but the commands `endofm-lab data get` and `endofm-lab models get`.
"""

import http.client
import re
import shutil
import stat
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any
from urllib.parse import urlsplit

from endofm_lab import __version__
from endofm_lab.data.prepare.layouts import find_layout
from endofm_lab.data.prepare.recipes import Recipe, RecipeError, load_recipe
from endofm_lab.data.prepare.scan import walk
from endofm_lab.errors import UserError
from endofm_lab.files import atomic_path, fits, reading, sha256_of
from endofm_lab.folders.run_folder import claim

LOOPBACK = ("127.0.0.1", "::1", "localhost")
_BLOCK, _TIMEOUT_S, _ATTEMPTS, _PAUSE_S = 1 << 20, 30.0, 5, 1.0
_BROKEN = (http.client.HTTPException, ConnectionError, TimeoutError, urllib.error.URLError)


@dataclass(frozen=True)
class Source:
    """One file to fetch, with everything that is shown before.

    Attributes:
        url: https; http for this machine alone.
        size_bytes: exact size.
        sha256: of the file, 64 hexadecimal digits.
        licence: terms of use, as stated by whoever offers the file.
        hosts: further hosts that the address may be redirected to, with their subdomains; by default only its own.
    """

    url: str
    size_bytes: int
    sha256: str
    licence: str
    hosts: tuple[str, ...] = ()

    def text(self) -> str:
        """What is agreed to, a line each."""
        size = f"{self.size_bytes / 1e6:,.1f} MB"
        return f"Source: {self.url}\nSize: {size}\nSHA-256: {self.sha256}\nLicence: {self.licence}"


def refuse_unless_agreed(source: Source, agree: bool) -> None:
    """Refuse to fetch what was not agreed to.

    Raises:
        UserError: the message shows source, size, checksum and licence.
    """
    if not agree:
        raise UserError(f"Nothing was fetched. If you agree to the licence, add --agree.\n{source.text()}")


def download(source: Source, target: Path) -> Iterator[tuple[int, int]]:
    """Fetch a file; yields the bytes that are there and those of the whole file. A call after a stop goes on.

    Raises:
        UserError: the address, a redirection, the size or the checksum is not as stated, the disk is too small, or the
            connection breaks off again and again; ``target`` is then as it was.
    """
    _check_address(source.url, source)
    if target.is_file() and sha256_of(target) == source.sha256:
        yield source.size_bytes, source.size_bytes
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.{source.sha256[:8]}.download")
    offset = part.stat().st_size if part.exists() else 0
    if (free := shutil.disk_usage(target.parent).free) < source.size_bytes - offset:
        raise UserError(
            f"{target.name} needs {source.size_bytes - offset:,} more bytes, but {target.parent} has {free:,} free. "
            "Make room, or choose another folder."
        )
    attempt = 0
    while (offset := part.stat().st_size if part.exists() else 0) < source.size_bytes:
        try:
            yield from _read(source, part, offset)
        except urllib.error.HTTPError as error:
            raise _refused(source, error) from error
        except _BROKEN as error:
            _count_attempt(source, error, attempt := attempt + 1)
        else:
            attempt += part.stat().st_size <= offset
            if attempt >= _ATTEMPTS:
                raise UserError(f"{source.url} sends nothing. Try again later.")
    if part.stat().st_size > source.size_bytes or sha256_of(part) != source.sha256:
        part.unlink()
        raise UserError(
            f"{source.url} gave a file with another SHA-256 than {source.sha256}: it was changed, or damaged on its "
            "way. Nothing was kept. Try again; if it happens again, ask whoever offers the file."
        )
    part.replace(target)


def _read(source: Source, part: Path, offset: int) -> Iterator[tuple[int, int]]:
    headers = {"User-Agent": f"endofm-lab/{__version__}", "Accept-Encoding": "identity"}
    request = urllib.request.Request(source.url, headers=headers | ({"Range": f"bytes={offset}-"} if offset else {}))  # noqa: S310  (checked)
    with _opener(source).open(request, timeout=_TIMEOUT_S) as answer:
        offset = offset if answer.status == 206 else 0  # servers without ranges send the whole file again
        _check_size(source, answer, offset)
        with part.open("r+b" if part.exists() else "wb") as file:
            file.seek(offset)
            file.truncate()
            while block := answer.read(_BLOCK):
                if offset + len(block) > source.size_bytes:
                    file.truncate(0)
                    raise UserError(f"{source.url} sends more than the stated {source.size_bytes:,} bytes. Stopped.")
                file.write(block)
                offset += len(block)
                yield offset, source.size_bytes
    # A connection that is closed early looks like an end: the caller asks for what is missing.


def _check_size(source: Source, answer: Any, offset: int) -> None:
    """Refuse an answer that announces another size than the stated one, or another part than the one asked for."""
    announced = answer.headers.get("Content-Length")
    if announced is not None and announced.isdigit() and offset + int(announced) != source.size_bytes:
        raise UserError(
            f"{source.url} announces {offset + int(announced):,} bytes, but {source.size_bytes:,} are stated. Nothing "
            "was kept: the file is another version."
        )
    span = answer.headers.get("Content-Range", "")
    if answer.status == 206 and not span.startswith(f"bytes {offset}-"):
        raise UserError(f"{source.url} sends another part of the file ({span[:60]!r}) than was asked for.")


def _count_attempt(source: Source, error: Exception, attempt: int) -> None:
    if attempt >= _ATTEMPTS:
        raise UserError(
            f"{source.url} broke off {attempt} times ({str(error)[:100]}). What arrived is kept; the same command goes "
            "on from there."
        ) from error
    time.sleep(_PAUSE_S * attempt)


def _refused(source: Source, error: urllib.error.HTTPError) -> UserError:
    remedy = "Look at the page of the file." if error.code not in (401, 403) else "It needs a form or a login first."
    return UserError(f"{source.url} cannot be fetched: the server answers {error.code} {error.reason}. {remedy}")


def _check_address(url: str, source: Source) -> None:
    """Refuse addresses that are not https (http on this machine), or lie on a host that was not agreed to.

    Raises:
        UserError: the message names the address.
    """
    place, source_host = urlsplit(url), urlsplit(source.url).hostname
    host = place.hostname or ""
    if place.scheme != "https" and not (place.scheme == "http" and host in LOOPBACK and source_host in LOOPBACK):
        raise UserError(f"{url[:200]} is not an https address; nothing else is fetched.")
    allowed = host == source_host or any(host == name or host.endswith(f".{name}") for name in source.hosts)
    if not allowed or (host == source_host and place.port != urlsplit(source.url).port):
        raise UserError(f"{source.url} leads to another host, {place.netloc[:100]!r}, which was not agreed to.")


class _SameHost(urllib.request.HTTPRedirectHandler):
    """Follows a redirection only where `_check_address` allows it."""

    def __init__(self, source: Source) -> None:
        self.source = source

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        """The next request, with the same range."""
        _check_address(newurl, self.source)
        return super().redirect_request(req, fp, code, msg, headers, newurl)

    def http_error_302(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Any
    ) -> http.client.HTTPResponse | None:
        """As the base class, but with a sentence for addresses of other kinds (file, ftp)."""
        target = headers.get("location") or headers.get("uri") or ""
        if urlsplit(target).scheme not in ("", "http", "https"):
            _check_address(target, self.source)
        return super().http_error_302(req, fp, code, msg, headers)

    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302  # type: ignore[assignment]


def _opener(source: Source) -> urllib.request.OpenerDirector:
    """An opener for http and https alone, through the proxy of the environment if there is one."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        _SameHost(source),
    ):
        opener.add_handler(handler)
    return opener


def get_data(
    name: str,
    out: str | Path,
    agree: bool = False,
    file: str | Path | None = None,
    recipes: str | Path | None = None,
) -> Iterator[tuple[int, int]]:
    """Fetch a data set and unpack it; yields the bytes that are there and those of the whole archive.

    The archive lies in ``OUT.get``, from which a call after a stop goes on.

    Args:
        name: name of a data recipe, or path of one.
        out: folder of the unpacked data set; absent or empty.
        agree: the licence is agreed to; without it, nothing is fetched and everything is shown.
        file: a zip archive that was fetched by hand, for data sets that need a form.
        recipes: folder of recipes other than the project's.

    Raises:
        UserError: the recipe has no address (the message says where to ask), the licence is not agreed to, the archive
            is damaged or does not hold the data set, or ``out`` contains files.
    """
    recipe, out = load_recipe(name, recipes), Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} already exists and is not an empty folder. Choose a new one.")
    if file is None:
        source = source_of(recipe)
        refuse_unless_agreed(source, agree)
        with claim(
            out.with_name(f"{out.name}.get"), {"url": source.url, "sha256": source.sha256}, "a download"
        ) as work:
            yield from download(source, work / "archive.zip")
            _unpack(work / "archive.zip", out, recipe)
    else:
        _unpack(Path(file), out, recipe)
        yield (size := Path(file).stat().st_size), size


def source_of(recipe: Recipe) -> Source:
    """Where a data set can be fetched.

    Raises:
        UserError: it needs a form, or its recipe states no address with a checksum; the message says what to do.
    """
    facts = recipe.facts
    entry, access = facts.get("download"), facts["access"]
    if entry is not None and access == "open":
        _check_download(recipe.path, entry)
        licence = str(facts["licence"] or "not known")
        return Source(entry["url"], entry["bytes"], entry["sha256"], licence, tuple(entry.get("hosts", ())))
    reasons = {
        "open": "its recipe states no address with a SHA-256, so it has to be downloaded by hand",
        "on request": "it needs a form or a signature",
        "dead link": "its address no longer works",
        "yours": "it is data of your own",
    }
    page = facts.get("page") or "the paper"
    note = " ".join(str(facts.get("access_note") or "").split())
    raise UserError(
        f"{recipe.name} cannot be fetched: {reasons[access]}. See {page}.{f' {note}' if note else ''} Licence: "
        f"{facts['licence'] or 'not known'} Then unpack the archive, or give it with --file ARCHIVE.zip."
    )


def _check_download(path: Path, entry: Any) -> None:
    """Refuse a recipe's address, size and checksum in another form."""
    types = {"url": str, "bytes": int, "sha256": str}
    complete = isinstance(entry, dict) and set(types) <= set(entry) <= {*types, "hosts"}
    if not complete or not fits(entry.get("hosts", []), list[str]):
        raise RecipeError(f"{path.name}, download: expected url, bytes, sha256 and possibly hosts, found {entry!r}.")
    for name, kind in types.items():
        if not fits(entry[name], kind):
            raise RecipeError(f"{path.name}, download.{name}: {entry[name]!r} has the wrong form.")
    if not re.fullmatch(r"[0-9a-f]{64}", entry["sha256"]):
        raise RecipeError(f"{path.name}, download.sha256: expected 64 hexadecimal digits.")


def _unpack(archive: Path, out: Path, recipe: Recipe) -> None:
    """Unpack a zip archive into a folder that appears when it is complete and holds the data set."""
    if not archive.is_file() or not zipfile.is_zipfile(archive):
        raise UserError(f"{archive} is not a zip archive. Unpack it by hand and give the folder to --data or --root.")
    with reading(archive, "Fetch it again."), zipfile.ZipFile(archive) as packed:
        entries = packed.infolist()
        for entry in entries:
            path = PurePosixPath(entry.filename.replace("\\", "/"))
            if (
                path.is_absolute()
                or ".." in path.parts
                or ":" in entry.filename
                or stat.S_ISLNK(entry.external_attr >> 16)
            ):
                raise UserError(
                    f"{archive} holds {entry.filename[:100]!r}, which leads out of its folder. Not unpacked."
                )
        size, free = sum(entry.file_size for entry in entries), shutil.disk_usage(archive.parent).free
        if size > free:
            raise UserError(f"{archive} unpacks to {size:,} bytes, but {free:,} are free. Make room first.")
        if out.exists():
            out.rmdir()
        with atomic_path(out) as folder:
            packed.extractall(folder)
            if recipe.layouts:
                find_layout(recipe, walk(folder)[0])
