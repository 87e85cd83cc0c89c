"""Access control: refuse requests under foreign host names or from other sites, and ask for a password if one is set.

The owner of a web page can let its host name point to 127.0.0.1; the page could then reach the app as if the app were
its own server (DNS rebinding). So the app answers only requests under known names, for HTTP and websockets alike.
"""

import asyncio
import hashlib
import hmac
import html
import secrets
import time
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any
from urllib.parse import parse_qs, urlsplit

from endofm_lab import NOTICE

LOOPBACK = ("127.0.0.1", "localhost", "::1")
COOKIE = "endofm_lab_session"
SESSION_S = 12 * 3600
OPEN_PATHS = ("/_stcore/health",)  # reveals only that the app is running
_LONGEST_FORM = 4096  # bytes

# A second line of defence after `texts.plain`: browsers load nothing from other servers for a page of the app, show it
# in no frame of another site, and do not tell other sites where a visitor came from.
_POLICY = "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; object-src 'none'; base-uri 'self'; "
_HEADERS = [
    (b"content-security-policy", (_POLICY + "form-action 'self'; frame-ancestors 'self'").encode()),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
]

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


def hostname(host: str) -> str | None:
    """The name in a Host header without its port, in lower case; None if the header is malformed."""
    try:
        parts = urlsplit(f"//{host}")
        _ = parts.port  # raises an error if the port is malformed
    except ValueError:
        return None
    if parts.netloc != host or "@" in host or not parts.hostname:
        return None
    return parts.hostname.rstrip(".")


def is_known(host: str | None, hosts: Sequence[str]) -> bool:
    """Whether a Host header contains one of the names ``hosts``."""
    return host is not None and hostname(host) in hosts


class Guard:
    """ASGI middleware that answers only known host names, and asks for a password if one is set.

    Args:
        app: the application behind the guard.
        hosts: host names without ports that the app accepts.
        password: the password for visitors; without one, everybody who can reach the app under one of the names can
            use it.
    """

    def __init__(self, app: Any, hosts: Sequence[str], password: str | None = None) -> None:
        self.app, self.hosts = app, [name.lower() for name in hosts]
        self._password = None if password is None else _digest(password)
        self._sessions: dict[str, float] = {}  # token -> end of the session on the monotonic clock
        self._attempts = asyncio.Semaphore(4)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or pass it on to the application."""
        if scope["type"] not in ("http", "websocket"):
            return await self.app(scope, receive, send)
        if refusal := self._refusal(scope):
            return await _answer(scope, send, *refusal)
        if self._password is None or scope["path"] in OPEN_PATHS or self._is_signed_in(scope):
            return await self.app(scope, receive, _with_policy(send))
        if scope["type"] == "http" and scope["method"] == "POST" and scope["path"] == "/login":
            return await self._sign_in(scope, receive, send)
        return await _answer(scope, send, 401, _page())

    def _refusal(self, scope: Scope) -> tuple[int, str] | None:
        """Status and message for a request under an unknown name or from another site; None for permitted requests."""
        hosts = _header(scope, b"host")
        host = hosts[0] if len(hosts) == 1 else None
        if not is_known(host, self.hosts):
            sentence = f"The app does not accept the host name {html.escape(ascii(host)[:80])}."
            return 421, f"{sentence} To allow a name, start the app with `endofm-lab app --allow-host NAME`."
        changes = scope["type"] == "websocket" or scope["method"] not in ("GET", "HEAD", "OPTIONS")
        if changes and any(urlsplit(origin).netloc != host for origin in _header(scope, b"origin")):
            return 403, "This request came from another site and was refused. Open the app at its own address."
        return None

    def _is_signed_in(self, scope: Scope) -> bool:
        time_s = time.monotonic()
        self._sessions = {token: ends for token, ends in self._sessions.items() if ends > time_s}
        cookies = [part.strip().partition("=") for line in _header(scope, b"cookie") for part in line.split(";")]
        return any(name == COOKIE and token in self._sessions for name, _, token in cookies)

    async def _sign_in(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check the password of a form. A wrong password costs one second; at most four are checked at a time."""
        form = await _body(receive)
        password = parse_qs(form.decode("utf-8", "replace")).get("password", [""])[0]
        async with self._attempts:
            if not hmac.compare_digest(_digest(password), self._password):
                await asyncio.sleep(1)
                return await _answer(scope, send, 401, _page("The password is wrong."))
        token = secrets.token_urlsafe(32)
        self._sessions[token] = time.monotonic() + SESSION_S
        secure = "; Secure" if scope["scheme"] == "https" else ""
        cookie = f"{COOKIE}={token}; Path=/; Max-Age={SESSION_S}; HttpOnly; SameSite=Strict{secure}"
        await _answer(scope, send, 303, "", [(b"location", b"/"), (b"set-cookie", cookie.encode())])


def _digest(text: str) -> bytes:
    """The hash of a text; all hashes have the same length, so comparing them does not reveal the password's length."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


def _header(scope: Scope, name: bytes) -> list[str]:
    return [value.decode("latin-1") for key, value in scope["headers"] if key.lower() == name]


def _with_policy(send: Send) -> Send:
    """A function that sends responses with the security headers added."""

    async def send_bound(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", []), *_HEADERS]}
        await send(message)

    return send_bound


async def _body(receive: Receive) -> bytes:
    """The first bytes of a request's body; the login form is never longer."""
    body = b""
    while len(body) <= _LONGEST_FORM:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            break
    return body[:_LONGEST_FORM]


async def _answer(
    scope: Scope, send: Send, status: int, text: str, headers: Sequence[tuple[bytes, bytes]] = ()
) -> None:
    """Send a page, or refuse a websocket with the same status."""
    kind = "http" if scope["type"] == "http" else "websocket.http"
    if kind == "websocket.http" and "websocket.http.response" not in scope.get("extensions", {}):
        return await send({"type": "websocket.close", "code": 1008})
    body = text.encode()
    response_headers = [
        (b"content-type", b"text/html; charset=utf-8" if text.startswith("<") else b"text/plain; charset=utf-8"),
        (b"content-length", str(len(body)).encode()),
        (b"cache-control", b"no-store"),
        *_HEADERS,
        *headers,
    ]
    await send({"type": f"{kind}.response.start", "status": status, "headers": response_headers})
    await send({"type": f"{kind}.response.body", "body": body})


def _page(sentence: str = "") -> str:
    """The page that asks for the password."""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>endofm_lab</title><style>'
        "body { font: 16px/1.5 'Segoe UI', Helvetica, Arial, sans-serif; max-width: 24rem; margin: 20vh auto; }"
        "input, button { font: inherit; padding: .4rem .6rem; } .wrong { color: #b3261e; }</style></head><body>"
        f"<h1>endofm_lab</h1><p>{html.escape(NOTICE)}</p>"
        f'<p class="wrong" role="alert">{html.escape(sentence)}</p><form method="post" action="/login">'
        '<label>Password <input type="password" name="password" autofocus autocomplete="current-password"></label> '
        "<button>Sign in</button></form></body></html>"
    )
