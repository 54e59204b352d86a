"""Who may have what: host names, origins, tokens, sessions, and the headers that tell a browser to be strict.

`Guard` stands before the whole application. `Gate` knows the token and who has logged in. A page in some other tab
must not be able to use a user's engine: so requests have to name a host that is expected (against DNS rebinding),
changes need a header that no foreign page can send, and a foreign origin is refused. Not here: TLS, which a
proxy has.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import ipaddress
import logging
import os
import re
import secrets
import time
from collections import OrderedDict, deque
from collections.abc import Sequence
from http.cookies import CookieError, SimpleCookie

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from engine.config_serving import LOOPBACK, WebConfig
from engine.errors import UserError
from engine.web import documents

log = logging.getLogger("headrace.web")

TOKEN_VARIABLE = "HEADRACE_WEB_TOKEN"  # noqa: S105 - the name of a variable
TOKEN_CHARACTERS_MIN = 16

#: Sessions of browsers: how many, and how long.
SESSIONS_MAX = 256
SESSION_SECONDS_MAX = 12 * 3600

#: Wrong tokens from one address within the window; after them all tokens from there are refused for its rest.
WRONG_MAX = 10
WRONG_SECONDS = 60.0
ADDRESSES_MAX = 1_024

#: A wrong token is answered late, unless so many wait already.
WRONG_DELAY_SECONDS = 0.5
DELAYED_MAX = 16

#: Open to those who have not logged in yet: the page itself, which has no data in it, and its login.
_OPEN = re.compile(r"/|/favicon\.ico|/static/.*|/api/login", re.DOTALL)

POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data: blob:",
        "font-src 'self'",
        "connect-src 'self'",
        "manifest-src 'self'",
        "form-action 'self'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
    )
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}


def refusal(status: int, error: str, hint: str | None = None, headers: dict[str, str] | None = None) -> Response:
    """What every error looks like: ``{error, hint}``."""
    content = documents.encode({"error": error, "hint": hint})
    return Response(content, status, headers, media_type="application/json")


def token_of(settings: WebConfig) -> str | None:
    """The token that users have to know. Raises UserError where one is needed and missing, or too short."""
    token = settings.token.get_secret_value() if settings.token is not None else os.environ.get(TOKEN_VARIABLE)
    if not token:
        if is_loopback(settings.host):
            return None
        raise UserError(
            f"web.host = {settings.host!r} can be reached by others, and the page has no token",
            hint=f"set web.token, or {TOKEN_VARIABLE}, to {TOKEN_CHARACTERS_MIN} characters or more; "
            'or leave web.host at "127.0.0.1"',
        )
    if len(token) < TOKEN_CHARACTERS_MIN:
        raise UserError(f"{TOKEN_VARIABLE} is too short: {TOKEN_CHARACTERS_MIN} characters are the least")
    return token


def is_loopback(host: str) -> bool:
    address = _address(host)
    return host.lower() in LOOPBACK or (address is not None and address.is_loopback)


class Gate:
    """The token, the sessions of those who have shown it, and how often somebody has shown a wrong one."""

    def __init__(self, token: str | None, cookie: str) -> None:
        self._token = None if token is None else _digest(token)
        self.cookie = cookie
        self._sessions: OrderedDict[bytes, float] = OrderedDict()
        self._wrong: OrderedDict[str, deque[float]] = OrderedDict()
        self._delayed = 0

    @property
    def is_open(self) -> bool:
        return self._token is None

    def is_limited(self, address: str) -> bool:
        """Whether too many wrong tokens came from there lately."""
        wrong = self._wrong.get(address)
        while wrong and wrong[0] < time.monotonic() - WRONG_SECONDS:
            wrong.popleft()
        return wrong is not None and len(wrong) >= WRONG_MAX

    def takes(self, token: str) -> bool:
        """Whether it is the token; takes as long for every other one."""
        return self._token is not None and hmac.compare_digest(_digest(token), self._token)

    async def wrong(self, address: str) -> None:
        """Remember a wrong token, and take one's time."""
        self._wrong.setdefault(address, deque(maxlen=WRONG_MAX)).append(time.monotonic())
        self._wrong.move_to_end(address)
        while len(self._wrong) > ADDRESSES_MAX:
            self._wrong.popitem(last=False)
        if self._delayed < DELAYED_MAX:
            self._delayed += 1
            try:
                await asyncio.sleep(WRONG_DELAY_SECONDS)
            finally:
                self._delayed -= 1

    def begin_session(self) -> str:
        """A new session's value, which says nothing of the token."""
        session = secrets.token_urlsafe(32)
        self._sessions[_digest(session)] = time.monotonic() + SESSION_SECONDS_MAX
        while len(self._sessions) > SESSIONS_MAX:
            self._sessions.popitem(last=False)
        return session

    def end_session(self, session: str) -> None:
        self._sessions.pop(_digest(session), None)

    def session_of(self, headers: Headers) -> str | None:
        """The value of the cookie, if any."""
        try:
            cookies: SimpleCookie = SimpleCookie(headers.get("cookie", ""))
        except CookieError:
            return None
        return cookies[self.cookie].value if self.cookie in cookies else None

    def has_session(self, headers: Headers) -> bool:
        session = self.session_of(headers)
        if session is None:
            return False
        until = self._sessions.get(_digest(session))
        return until is not None and time.monotonic() < until


class Guard:
    """ASGI: refuses what must not pass, and adds headers to every answer. Faults of the application end here."""

    def __init__(self, app: ASGIApp, gate: Gate, *, host: str, names: Sequence[str]) -> None:
        self._app = app
        self._gate = gate
        self._host = host.lower()
        self._names = {name.lower().rstrip(".") for name in names}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        path: str = scope["path"]
        private = path.startswith("/api/") or path in ("/metrics", "/healthz")
        started = False

        async def send_strictly(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
                if private or "cache-control" not in headers:
                    headers["Cache-Control"] = "no-store"
            await send(message)

        try:
            refused = await self._refused(scope, path)
            await (refused or self._app)(scope, receive, send_strictly)
        except Exception:
            log.exception("%s %s", scope["method"], path)
            if not started:
                await refusal(500, "headrace has failed to answer", "the log says more")(
                    scope, receive, send_strictly
                )

    async def _refused(self, scope: Scope, path: str) -> Response | None:
        headers = Headers(scope=scope)
        if not self._is_expected(headers.get("host", "")):
            return refusal(
                421,
                "this engine is not called by that name",
                "use its address, or add the name to web.names",
            )
        if scope["method"] not in ("GET", "HEAD", "POST"):
            return refusal(405, f"{scope['method'][:20]} is not taken here", None, {"Allow": "GET, HEAD, POST"})
        if scope["method"] == "POST" and (foreign := _foreign(headers)) is not None:
            return foreign
        if path.startswith("/api/") and headers.get("sec-fetch-site", "none") not in ("same-origin", "none"):
            return refusal(403, "another site asked for this")
        return None if _OPEN.fullmatch(path) else await self._unknown(headers, _address_of(scope))

    async def _unknown(self, headers: Headers, address: str) -> Response | None:
        """Refuses whom the gate does not know."""
        gate = self._gate
        scheme, _, token = headers.get("authorization", "").partition(" ")
        if gate.is_open or gate.has_session(headers):
            return None
        if scheme.lower() != "bearer":
            hint = "log in, or send Authorization: Bearer TOKEN"
            return refusal(401, "this engine has a token", hint, {"WWW-Authenticate": "Bearer"})
        if gate.is_limited(address):
            return limited()
        if gate.takes(token.strip()):
            return None
        await gate.wrong(address)
        return refusal(401, "the token is wrong", None, {"WWW-Authenticate": "Bearer"})

    def _is_expected(self, host: str) -> bool:
        """Whether a Host header names this server: its address, localhost, or one of the names; with any port."""
        found = re.fullmatch(r"(\[[0-9a-fA-F:.]+\]|[^:/\[\]@\s]+)(?::\d{1,5})?", host)
        if found is None:
            return False
        name = found[1].strip("[]").lower().rstrip(".")
        if name in ("localhost", self._host) or name in self._names:
            return True
        # A name can be made to point anywhere, an address cannot.
        address, own = _address(name), _address(self._host)
        if address is None:
            return False
        return (
            address == own
            or (own is not None and own.is_unspecified)
            or (is_loopback(self._host) and address.is_loopback)
        )


def limited() -> Response:
    seconds = str(int(WRONG_SECONDS))
    return refusal(429, "too many wrong tokens", f"try again in {seconds} seconds", {"Retry-After": seconds})


def _foreign(headers: Headers) -> Response | None:
    """Refuses changes that another site's page has sent."""
    if headers.get("x-headrace") != "1":
        return refusal(403, "the header X-Headrace is missing", "send X-Headrace: 1")
    origin = headers.get("origin")
    host = headers.get("host", "").lower()
    if origin is not None and origin.lower() not in (f"http://{host}", f"https://{host}"):
        return refusal(403, "another site asked for this")
    return None


def _address_of(scope: Scope) -> str:
    client = scope.get("client")
    return client[0] if client else ""


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).digest()
