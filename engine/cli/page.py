"""A running engine, asked over HTTP: where its page is, and what it answers. For `headrace top` and `doctor`.

One request on a connection of its own, without proxies or redirects, so that a token goes nowhere else. Not here:
the server (`engine.web`).
"""

from __future__ import annotations

import http.client
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import orjson

from engine.errors import ExternalError, UserError

TOKEN_VARIABLE = "HEADRACE_WEB_TOKEN"  # noqa: S105 - the name of a variable

#: A status of 1,000 shards has about 600 KB.
ANSWER_BYTES_MAX = 64 * 1024 * 1024
_READ_BYTES = 65_536

REQUEST_SECONDS_MAX = 5.0

DEFAULT_FILE = Path("headrace.toml")


class PageUnavailable(ExternalError):
    """Nobody answers there now."""

    retry = True


@dataclass(frozen=True, slots=True)
class Page:
    """Where an engine answers. ``url`` has no path; ``pid`` is None for one that was named by its URL."""

    url: str
    token: str | None = field(default=None, repr=False)
    pid: int | None = None

    def get(self, path: str, *, seconds_max: float = REQUEST_SECONDS_MAX) -> tuple[int, Any]:
        """The status and the JSON document of an answer (200 or 503).

        Raises PageUnavailable, UserError where the token is wrong or the address is no page of headrace.
        """
        status, body = self._request(path, seconds_max)
        if status == http.HTTPStatus.UNAUTHORIZED:
            how = "none is set" if self.token is None else "another one is set"
            raise UserError(f"{self.url} asks for its token, and {how}", hint=f"set {TOKEN_VARIABLE} to web.token")
        if status not in (http.HTTPStatus.OK, http.HTTPStatus.SERVICE_UNAVAILABLE):
            raise UserError(f"{self.url}{path} answers with status {status}", hint="is that headrace's page?")
        try:
            return status, orjson.loads(body)
        except orjson.JSONDecodeError:
            raise UserError(f"{self.url}{path} answers no JSON", hint="is that headrace's page?") from None

    def _request(self, path: str, seconds_max: float) -> tuple[int, bytes]:
        parts = urlsplit(self.url)
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        connection = kind(parts.hostname or "", parts.port, timeout=seconds_max)
        deadline = time.monotonic() + seconds_max
        headers = {"Accept": "application/json", "Connection": "close"}
        if self.token is not None:
            headers["Authorization"] = f"Bearer {self.token}"
        body = bytearray()
        try:
            connection.request("GET", path, headers=headers)
            answer = connection.getresponse()
            while chunk := answer.read(_READ_BYTES):
                body += chunk
                if len(body) > ANSWER_BYTES_MAX:
                    raise PageUnavailable(f"{self.url}{path}: an answer of more than {ANSWER_BYTES_MAX:,} bytes")
                if time.monotonic() > deadline:
                    raise PageUnavailable(f"{self.url}{path}: no whole answer within {seconds_max:g} s")
        except (OSError, http.client.HTTPException) as error:
            raise PageUnavailable(f"{self.url} does not answer: {_text(error)}") from None
        finally:
            connection.close()
        return answer.status, bytes(body)


def page_of(file: Path | None, url: str | None) -> Page:
    """The page of the engine that runs for ``file``, or at ``url``. Reads files; asks nobody.

    Without either: of headrace.toml in this directory, else of the one engine that this user runs. Raises
    UserError where none runs, or its page is off.
    """
    if url is not None:
        if file is not None:
            raise UserError("FILE and --url exclude each other")
        return Page(_checked(url), os.environ.get(TOKEN_VARIABLE))
    from engine.web import runfile

    if file is None and not DEFAULT_FILE.exists():
        running = runfile.all()
        if len(running) != 1:
            raise UserError(
                f"{len(running) or 'no'} engines run here"
                + "".join(f"\n  {each.config}" + (f" at {each.url}" if each.url else "") for each in running),
                hint="name the configuration of one, or its page with --url",
            )
        found = running[0]
    else:
        wanted = file or DEFAULT_FILE
        given = runfile.find(wanted)
        if given is None:
            others = dict.fromkeys(str(each.config) for each in runfile.all())
            raise UserError(
                f"no engine of this user runs for {wanted}"
                + "".join(f"\n  one does for {each}" for each in others),
                hint=f"start it with `headrace run {wanted}`, or name a page elsewhere with --url",
            )
        found = given
    if not found.url:
        raise UserError(
            f"the engine of {found.config} runs (process {found.pid}), and its page is off",
            hint="set web.enabled = true",
        )
    return Page(found.url.rstrip("/"), found.token or os.environ.get(TOKEN_VARIABLE), found.pid)


def _checked(url: str) -> str:
    try:
        parts = urlsplit(url)
        host, _port = parts.hostname, parts.port
    except ValueError:
        host = None
    if not host or parts.scheme not in ("http", "https") or parts.path not in ("", "/") or parts.query:
        raise UserError("--url is no address of a page; valid is http://HOST:PORT")
    if parts.username is not None:
        raise UserError(f"--url holds credentials; the token goes into {TOKEN_VARIABLE}")
    return f"{parts.scheme}://{parts.netloc}"


def _text(error: BaseException) -> str:
    return getattr(error, "strerror", None) or str(error).strip() or type(error).__name__
