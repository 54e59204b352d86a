"""Lambda handlers for `benchmarks.environments`: with the standard library alone, as many are written.

Each says what it found, so that the answers of all invocations are checked. Not here: the handler of the workload
``handler``, which takes orjson (`benchmarks.systems.handler`).
"""

from __future__ import annotations

import base64
import json
from typing import Any


def empty(_event: object, _context: object) -> None:
    """What an invocation costs beside the handler."""


def lengths(event: dict[str, Any], _context: object) -> int:
    """Bytes of all records."""
    return sum(len(base64.b64decode(record["kinesis"]["data"])) for record in event["Records"])


def documents(event: dict[str, Any], _context: object) -> int:
    """The sum of all ``event_id``."""
    return sum(json.loads(base64.b64decode(record["kinesis"]["data"]))["event_id"] for record in event["Records"])
