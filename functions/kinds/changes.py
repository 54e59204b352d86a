"""The engine's look at records of kind `dynamodb`: which of them no event can hold, and what they are called.

Not here: the event itself (`dynamodb`), which another process builds.
"""

from __future__ import annotations

import re

import orjson

from engine.batch import Batch
from engine.protocols import Fault
from functions.kinds import dynamodb
from functions.kinds.kinesis import sequence_number

_LONG_NUMBER = re.compile(rb"\d{%d}" % dynamodb.DIGITS_MAX)


def faults(batch: Batch) -> list[Fault]:
    """The records that are no change, each with why. Takes about two microseconds for a record."""
    found = []
    offsets = batch.records.column("offset").to_pylist()
    for offset, value in zip(offsets, batch.records.column("value").to_pylist(), strict=True):
        if not _is_plainly_fine(value) and (reason := _fault(value)) is not None:
            found.append(Fault(offset, reason))
    return found


def _is_plainly_fine(value: bytes | None) -> bool:
    """Whether a strict parser takes the value and nothing about it needs a second look."""
    if value is None or value.count(b"{") + value.count(b"[") > dynamodb.DEPTH_MAX or _LONG_NUMBER.search(value):
        return False
    try:
        dynamodb.check_change(orjson.loads(value))
    except ValueError:
        return False
    return True


def _fault(value: bytes | None) -> str | None:
    """What the function's process would stumble over."""
    try:
        dynamodb.check_carried(dynamodb.change(value))
    except ValueError as error:
        return str(error)
    return None


def sequence_numbers(batch: Batch) -> dict[str, int]:
    """The lowest offset of each sequence number that the records' event has."""
    found: dict[str, int] = {}
    offsets = batch.records.column("offset").to_pylist()
    for offset, value in zip(offsets, batch.records.column("value").to_pylist(), strict=True):
        given = dynamodb.change(value)["dynamodb"].get("SequenceNumber")
        found.setdefault(given if isinstance(given, str) and given else sequence_number(offset), offset)
    return found
