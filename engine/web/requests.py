"""Reading requests: bodies and parameters, bounded and checked before they are used. Not here: answers."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from typing import Any

import orjson
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request

BODY_BYTES_MAX = 1024 * 1024
BODY_SECONDS_MAX = 15.0

#: Of a parameter in the URL, and of a name in a body.
NAME_CHARACTERS_MAX = 1_000

_UUID = re.compile(r"[0-9a-fA-F]{8}-?(?:[0-9a-fA-F]{4}-?){3}[0-9a-fA-F]{12}")


class Refused(HTTPException):
    """A request that is not taken: an HTTP status, and what is wrong with it."""


async def json_body(request: Request) -> dict[str, Any]:
    """The JSON object that a request carries. Raises Refused: 400, 408, 413, 415."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise Refused(415, "the body has to be application/json")
    length = request.headers.get("content-length", "0")
    too_large = Refused(413, f"the body has more than {BODY_BYTES_MAX:,} bytes")
    if not length.isdigit() or int(length[:20]) > BODY_BYTES_MAX:
        raise too_large
    data = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS_MAX):
            async for part in request.stream():
                data += part
                if len(data) > BODY_BYTES_MAX:
                    raise too_large
    except TimeoutError:
        raise Refused(408, f"the body took longer than {BODY_SECONDS_MAX:g} s") from None
    except ClientDisconnect:
        raise Refused(400, "the body ended early") from None
    try:
        body = orjson.loads(bytes(data))
    except orjson.JSONDecodeError as error:
        raise Refused(400, f"the body is not JSON: {error.msg}, character {error.pos}") from None
    if not isinstance(body, dict):
        raise Refused(400, "the body has to be a JSON object")
    return body


def text(body: Mapping[str, Any], name: str, characters_max: int = NAME_CHARACTERS_MAX) -> str:
    """A member that is text, and not empty. Raises Refused."""
    value = body.get(name)
    if not isinstance(value, str) or not value:
        raise Refused(400, f"{name} has to be text")
    if len(value) > characters_max:
        raise Refused(400, f"{name} has more than {characters_max:,} characters")
    return value


def whole(body: Mapping[str, Any], name: str) -> int:
    """A member that is a whole number from 0. Raises Refused."""
    value = body.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**63:
        raise Refused(400, f"{name} has to be a whole number, 0 or more")
    return value


def identifier(value: str) -> str:
    """A query's id, which its client makes. Raises Refused for what is no UUID."""
    if not _UUID.fullmatch(value):
        raise Refused(400, "id has to be a UUID")
    return value.lower()


def limit(request: Request, default: int, most: int) -> int:
    """The parameter ``limit``, at most ``most``. Raises Refused."""
    given = request.query_params.get("limit", str(default))
    if not re.fullmatch(r"[0-9]{1,9}", given) or int(given) < 1:
        raise Refused(400, f"limit has to be a number from 1 to {most}")
    return min(int(given), most)


def parameter(request: Request, name: str) -> str | None:
    """A parameter of the URL; None where it is missing or empty. Raises Refused."""
    given = request.query_params.get(name) or None
    if given is not None and len(given) > NAME_CHARACTERS_MAX:
        raise Refused(400, f"{name} has more than {NAME_CHARACTERS_MAX:,} characters")
    return given
