"""`Registry`: schemas by id from a Confluent-compatible schema registry, over HTTP.

Two calls of the registry's API are used: ``GET /schemas/ids/{id}`` and, for what a schema refers to,
``GET /subjects/{subject}/versions/{version}``. An id means the same schema for ever, so an answer is kept.
The registry's own rendering of Protobuf (``?format=serialized``) is not asked for: some registries lack it, and one
answers it with an error for schemas that it otherwise gives.
Not here: what a schema means, and when one is asked for (`engine.values.wire`).
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import logging
import ssl
import threading
import time
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, quote, urljoin, urlsplit

import orjson

from engine.errors import ConfigError, RegistryUnavailable, UserError
from engine.values.wire import (
    REFERENCES_MAX,
    Reference,
    Registered,
    UnusableSchema,
)

log = logging.getLogger("headrace.registry")

RESPONSE_BYTES_MAX = 16 * 1024 * 1024
SCHEMAS_MAX = 10_000  #: kept; beyond, the oldest is forgotten
UNKNOWN_MAX = 10_000  #: ids kept as unknown
UNKNOWN_SECONDS = 60.0  #: for so long an id that the registry did not know is not asked for again
UNKNOWN_AGAIN_SECONDS = 0.5  #: a follower may not know yet what was registered a moment ago: it is asked twice
UNKNOWN_AGAIN_EVERY_SECONDS = 10.0  #: but not for each of many ids that are none
REDIRECTS_MAX = 3

_READ_BYTES = 65_536
_ACCEPT = "application/vnd.schemaregistry.v1+json, application/json"
_SUBJECT_NOT_FOUND, _VERSION_NOT_FOUND, _SCHEMA_NOT_FOUND = 40401, 40402, 40403  # Confluent's error_code


@dataclass(frozen=True, slots=True)
class _Answer:
    status: int
    body: bytes
    location: str | None


class Registry:
    """Asks one registry. Any number of threads may use it; one request is under way at a time.

    ``timeout_seconds`` bounds a request from its connection to its last byte. Raises ConfigError for an address
    that is none, and for credentials that would cross a network in the clear.
    """

    def __init__(
        self,
        url: str,
        *,
        username: str | None = None,
        password: str | None = None,
        ca_file: Path | None = None,
        timeout_seconds: float = 10.0,
        allow_plaintext_credentials: bool = False,
    ) -> None:
        self._url = _checked(url)
        self._shown = f"{self._url.scheme}://{self._url.netloc}{self._url.path}"
        self._timeout_seconds = timeout_seconds
        self._headers = {"Accept": _ACCEPT, "User-Agent": "headrace", "Connection": "close"}
        if (username is None) != (password is None):
            raise ConfigError("registry", ["username and password go together"])
        if username is not None:
            if ":" in username:
                raise ConfigError("registry", ["username: may hold no colon (HTTP basic authentication)"])
            self._check_plaintext(allow_plaintext_credentials)
            token = base64.b64encode(f"{username}:{password}".encode()).decode("ascii")
            self._headers["Authorization"] = f"Basic {token}"
        self._tls = _tls(self._url, ca_file)
        self._asking = threading.Lock()
        self._schemas: OrderedDict[int, Registered | UnusableSchema] = OrderedDict()
        self._unknown: OrderedDict[int, float] = OrderedDict()
        self._asked_again_at = -UNKNOWN_AGAIN_EVERY_SECONDS

    def schema(self, schema_id: int) -> Registered | None:
        """The schema of that id, or None if the registry has none. Blocks only for ids not asked for before.

        Raises RegistryUnavailable (to be tried again), UserError for credentials that are refused, and
        UnusableSchema for one that refers to what the registry does not have.
        """
        known = self._schemas.get(schema_id)
        if known is None:
            if self._is_known_as_unknown(schema_id):
                return None
            with self._asking:
                known = self._schemas.get(schema_id)
                if known is None and not self._is_known_as_unknown(schema_id):
                    known = self._keep(schema_id, self._fetched(schema_id))
        if isinstance(known, UnusableSchema):
            raise known
        return known

    def _keep(
        self, schema_id: int, found: Registered | UnusableSchema | None
    ) -> Registered | UnusableSchema | None:
        if found is None:
            self._unknown[schema_id] = time.monotonic()
            while len(self._unknown) > UNKNOWN_MAX:
                self._unknown.popitem(last=False)
        else:
            self._schemas[schema_id] = found
            while len(self._schemas) > SCHEMAS_MAX:
                self._schemas.popitem(last=False)
        return found

    def _is_known_as_unknown(self, schema_id: int) -> bool:
        asked = self._unknown.get(schema_id)
        return asked is not None and time.monotonic() - asked < UNKNOWN_SECONDS

    def _fetched(self, schema_id: int) -> Registered | UnusableSchema | None:
        path = f"/schemas/ids/{schema_id}"
        document = self._get(path, _SCHEMA_NOT_FOUND)
        now = time.monotonic()
        if document is None and now - self._asked_again_at > UNKNOWN_AGAIN_EVERY_SECONDS:
            self._asked_again_at = now
            time.sleep(UNKNOWN_AGAIN_SECONDS)
            document = self._get(path, _SCHEMA_NOT_FOUND)
        if document is None:
            return None
        text = self._text(document, path)
        references: dict[str, Reference] = {}
        try:
            self._follow(document, path, references, ())
        except UnusableSchema as error:
            return error
        log.debug("schema %d has %d references", schema_id, len(references))
        kind = document.get("schemaType") or "AVRO"  # the default is left out of the answer
        return Registered(schema_id, str(kind), text, tuple(references.values()))

    def _follow(
        self, document: Mapping[str, Any], path: str, found: dict[str, Reference], above: tuple[str, ...]
    ) -> None:
        """Fetch what a schema refers to, those that others need first."""
        for each in document.get("references") or ():
            try:
                name, subject, version = str(each["name"]), str(each["subject"]), int(each["version"])
            except (TypeError, KeyError, ValueError):
                raise self._unavailable(f"answers {path} with a reference that names no subject") from None
            if name in above:
                raise UnusableSchema(f"its reference {name!r} refers to itself")
            if name in found:
                continue
            if len(found) >= REFERENCES_MAX:
                raise UnusableSchema(f"it refers to more than {REFERENCES_MAX:,} schemas")
            inner = f"/subjects/{quote(subject, safe='')}/versions/{version}"
            below = self._get(inner, _SUBJECT_NOT_FOUND, _VERSION_NOT_FOUND)
            if below is None:
                raise UnusableSchema(f"it refers to version {version} of {subject!r}, which the registry lacks")
            self._follow(below, inner, found, (*above, name))
            found[name] = Reference(name, self._text(below, inner))

    def _text(self, document: Mapping[str, Any], path: str) -> str:
        text = document.get("schema")
        if not isinstance(text, str):
            raise self._unavailable(f"answers {path} without a schema")
        return text

    def _get(self, path: str, *absent: int) -> dict[str, Any] | None:
        """The JSON object at a path, or None where the registry has none, and says so by a code of ``absent``."""
        try:
            answer = self._request(f"{self._url.path.rstrip('/')}{path}")
        except TimeoutError:
            raise self._unavailable(f"gave no answer in {self._timeout_seconds:g} s") from None
        except ssl.SSLCertVerificationError as error:
            raise self._unavailable(
                f"cannot be trusted: {error.verify_message}",
                hint="registry.ca_file names the authority's certificate",
            ) from None
        except (OSError, http.client.HTTPException) as error:
            raise self._unavailable(f"cannot be reached: {type(error).__name__}: {error}") from None
        if answer.status in (401, 403):
            raise UserError(
                f"the schema registry at {self._shown} refuses access (HTTP {answer.status})",
                hint="registry.username and HEADRACE_REGISTRY_PASSWORD are what it is asked with",
            )
        document: Any = None
        with contextlib.suppress(orjson.JSONDecodeError):
            document = orjson.loads(answer.body)
        if answer.status == 404 and isinstance(document, dict) and document.get("error_code") in absent:
            return None
        if answer.status != 200 or not isinstance(document, dict):
            what = "no JSON" if answer.status == 200 else f"HTTP {answer.status}"
            raise self._unavailable(
                f"answers {path} with {what}",
                hint="registry.url takes the registry's path too where it has one, such as /apis/ccompat/v7",
            )
        return document

    def _request(self, target: str) -> _Answer:
        """One answer; a redirect is followed where it stays on the same scheme, host and port."""
        deadline = time.monotonic() + self._timeout_seconds
        for _ in range(REDIRECTS_MAX + 1):
            answer = self._once(target, deadline)
            if answer.location is None:
                return answer
            here = f"{self._url.scheme}://{self._url.netloc}"
            there = urlsplit(urljoin(f"{here}{target}", answer.location))
            if _origin(there) != _origin(self._url):
                raise self._unavailable(
                    f"sends us on to {there.scheme}://{there.hostname}, which is not followed",
                    hint="set registry.url to where it ends, if that is to be trusted",
                )
            target = there.path + (f"?{there.query}" if there.query else "")
        raise self._unavailable(f"redirects more than {REDIRECTS_MAX} times")

    def _once(self, target: str, deadline: float) -> _Answer:
        host, port = self._url.hostname or "", self._url.port
        connection: http.client.HTTPConnection
        if self._tls is not None:
            connection = http.client.HTTPSConnection(host, port, timeout=_left(deadline), context=self._tls)
        else:
            connection = http.client.HTTPConnection(host, port, timeout=_left(deadline))
        try:
            connection.connect()
            connection.request("GET", target, headers=self._headers)
            response = connection.getresponse()
            body = b""
            while True:
                if connection.sock is not None:
                    connection.sock.settimeout(_left(deadline))
                part = response.read1(_READ_BYTES)
                if not part:
                    break
                body += part
                if len(body) > RESPONSE_BYTES_MAX:
                    raise self._unavailable(f"answers with more than {RESPONSE_BYTES_MAX:,} bytes")
                _left(deadline)
            moved = response.getheader("Location") if 300 <= response.status < 400 else None
            return _Answer(response.status, body, moved)
        finally:
            connection.close()

    def _check_plaintext(self, allowed: bool) -> None:
        if self._url.scheme == "https" or _is_loopback(self._url.hostname or ""):
            return
        if not allowed:
            raise ConfigError(
                "registry",
                [
                    f"url: the password would go to {self._url.hostname} in the clear; use https, or set "
                    "allow_plaintext_credentials = true"
                ],
            )
        log.warning("the schema registry's password goes to %s in the clear", self._url.hostname)

    def _unavailable(self, what: str, hint: str | None = None) -> RegistryUnavailable:
        return RegistryUnavailable(f"the schema registry at {self._shown} {what}", hint=hint)


def _checked(url: str) -> SplitResult:
    """The parts of an address. No message shows it whole: it may hold a password."""
    try:
        parts = urlsplit(url)
        port_is_number = parts.port is None or parts.port > 0
    except ValueError:
        raise ConfigError("registry", ["url: is no address, which is http(s)://HOST[:PORT][/PATH]"]) from None
    if parts.scheme not in ("http", "https") or not parts.hostname or not port_is_number:
        raise ConfigError("registry", ["url: is no address, which is http(s)://HOST[:PORT][/PATH]"])
    if parts.username is not None or parts.password is not None:
        raise ConfigError(
            "registry", ["url: may hold no credentials; set username, and HEADRACE_REGISTRY_PASSWORD"]
        )
    if parts.query or parts.fragment:
        raise ConfigError("registry", ["url: may have no query and no fragment"])
    return parts


def _tls(url: SplitResult, ca_file: Path | None) -> ssl.SSLContext | None:
    if url.scheme != "https":
        if ca_file is not None:
            raise ConfigError("registry", ["ca_file goes with an https url"])
        return None
    try:
        return ssl.create_default_context(cafile=str(ca_file) if ca_file is not None else None)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError("registry", [f"ca_file = {str(ca_file)!r}: {error}"]) from None


def _origin(url: SplitResult) -> tuple[str, str | None, int]:
    return url.scheme, url.hostname, url.port or (443 if url.scheme == "https" else 80)


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left
