"""The Lambda handler of the workload ``handler``, called by headrace and by the hand-written loop alike.

It decodes the data of each record of a Kinesis event and adds up ``event_id``. headrace calls it in several
processes, and tells none of them that the topic's end is reached: there each keeps a file of what it has counted
so far, so that a record handled twice, or never, shows in their sum.
"""

from __future__ import annotations

import json
import os
from binascii import a2b_base64
from pathlib import Path
from typing import Any

import orjson

from benchmarks.systems import job

_events = 0
_sum = 0
_file = -1


def total(event: dict[str, Any], _context: object) -> int:
    """The sum of all ``event_id``."""
    found = 0
    for record in event["Records"]:
        found += orjson.loads(a2b_base64(record["kinesis"]["data"]))["event_id"]
    return found


def count(event: dict[str, Any], context: object) -> None:
    """Count the records and add up their ``event_id``."""
    global _events, _sum
    _events += len(event["Records"])
    _sum += total(event, context)


def count_and_tell(event: dict[str, Any], context: object) -> None:
    """`count`, and what this process has counted so far in a file of its own."""
    global _file
    count(event, context)
    if _file < 0:
        _file = os.open(job.read().directory / f"{os.getpid()}.json", os.O_WRONLY | os.O_CREAT)
    os.pwrite(_file, _counted(), 0)  # neither number becomes shorter


def write(path: Path) -> None:
    """Put what has been counted in this process into a file."""
    path.write_bytes(_counted())


def _counted() -> bytes:
    return json.dumps({"events": _events, "sum": _sum}).encode()
