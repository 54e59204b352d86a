"""The Lambda handler of the workload ``handler``, called by headrace and by the hand-written loop alike.

It decodes the data of each record of a Kinesis event and adds up ``event_id``. In headrace nobody tells a handler
that the topic's end is reached: there it writes its result when it has seen as many events as the job names, and
after each batch beyond them, so that a record handled twice shows in the result.
"""

from __future__ import annotations

import json
import threading
from binascii import a2b_base64
from pathlib import Path
from typing import Any

import orjson

from benchmarks.systems import job

_lock = threading.Lock()
_events = 0
_sum = 0


def count(event: dict[str, Any], _context: object) -> None:
    """Count the records and add up their ``event_id``."""
    global _events, _sum
    records = event["Records"]
    total = 0
    for record in records:
        total += orjson.loads(a2b_base64(record["kinesis"]["data"]))["event_id"]
    with _lock:
        _events += len(records)
        _sum += total


def count_to_the_end(event: dict[str, Any], context: object) -> None:
    """`count`, and the result in a file once all of the job's events were seen."""
    count(event, context)
    with _lock:
        if _events >= _job().events:
            write(_job().directory / "sum.json")


def write(path: Path) -> None:
    """Put what has been counted in this process into a file."""
    path.write_text(json.dumps({"events": _events, "sum": _sum}))


_jobs: list[job.Job] = []


def _job() -> job.Job:
    if not _jobs:
        _jobs.append(job.read())
    return _jobs[0]
