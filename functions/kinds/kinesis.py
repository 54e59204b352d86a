"""AWS's Kinesis event, built from the raw records of a batch.

Not here: calling the handler (`events`), and the sizes of what is built (`payload`). Needs the standard
library alone, so that `build` can run in a process that has no Arrow.

Shape and key order are those of events recorded on AWS (Lambda developer guide, "Using Lambda with Kinesis").
What differs, because a Kafka record is not a Kinesis record:

- ``sequenceNumber`` is the offset as a decimal string of 56 digits: "49", zeros, the offset. Rising offsets
  give rising numbers, also when compared as text; `offset_of` is the way back.
- ``partitionKey`` is the record's key as UTF-8, else in base64; "null" for a record without a key. On AWS it has
  1 to 256 characters; here it is as long as the key, and empty for an empty one.
- ``data`` of a record without a value is "", as for an empty value.
- Account ids are 000000000000; the region is that of the environment, else us-east-1.
"""

from __future__ import annotations

import os
from binascii import b2a_base64
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from engine.batch import Batch

ACCOUNT = "000000000000"
NULL_KEY = "null"
SEQUENCE_DIGITS = 56
_OFFSET_DIGITS = 19  # of the largest 64-bit offset
SEQUENCE_PREFIX = "49" + "0" * (SEQUENCE_DIGITS - 2 - _OFFSET_DIGITS)


def sequence_number(offset: int) -> str:
    """The sequence number of an offset; 56 digits."""
    return f"{SEQUENCE_PREFIX}{offset:019d}"


def offset_of(sequence: str) -> int:
    """The offset of a sequence number that `sequence_number` made. Raises ValueError for any other text."""
    digits = sequence[len(SEQUENCE_PREFIX) :]
    if sequence[: len(SEQUENCE_PREFIX)] != SEQUENCE_PREFIX or len(digits) != _OFFSET_DIGITS:
        raise ValueError(f"{sequence!r} is not a sequence number of this stream")
    if not (digits.isascii() and digits.isdigit()):
        raise ValueError(f"{sequence!r} is not a sequence number of this stream")
    return int(digits)


def shard_id(partition: int) -> str:
    """Kinesis's name for a partition: 12 digits."""
    return f"shardId-{partition:012d}"


def partition_key(key: bytes | None) -> str:
    """The partition key of a record's key."""
    if key is None:
        return NULL_KEY
    try:
        return key.decode()
    except UnicodeDecodeError:
        return b2a_base64(key, newline=False).decode("ascii")


def region() -> str:
    """AWS_REGION, else AWS_DEFAULT_REGION, else us-east-1."""
    return os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"


@dataclass(frozen=True, slots=True)
class KinesisStream:
    """What all records of one stream share."""

    topic: str
    region: str
    role: str = "headrace"

    @property
    def arn(self) -> str:
        return f"arn:aws:kinesis:{self.region}:{ACCOUNT}:stream/{self.topic}"

    @property
    def role_arn(self) -> str:
        return f"arn:aws:iam::{ACCOUNT}:role/{self.role}"


def build(
    stream: KinesisStream,
    partition: int,
    offsets: Iterable[int],
    timestamps: Iterable[int],
    keys: Iterable[bytes | None],
    values: Iterable[bytes | None],
) -> dict[str, object]:
    """The event of records of one partition; ``timestamps`` are milliseconds. Holds no reference to its input."""
    arn, role_arn, aws_region = stream.arn, stream.role_arn, stream.region
    event_id = f"{shard_id(partition)}:{SEQUENCE_PREFIX}"
    records = []
    for offset, timestamp, key, value in zip(offsets, timestamps, keys, values, strict=True):
        digits = f"{offset:019d}"
        records.append(
            {
                "kinesis": {
                    "kinesisSchemaVersion": "1.0",
                    "partitionKey": NULL_KEY if key is None else partition_key(key),
                    "sequenceNumber": SEQUENCE_PREFIX + digits,
                    "data": b2a_base64(value, newline=False).decode("ascii") if value else "",
                    "approximateArrivalTimestamp": timestamp / 1000,
                },
                "eventSource": "aws:kinesis",
                "eventVersion": "1.0",
                "eventID": event_id + digits,
                "eventName": "aws:kinesis:record",
                "invokeIdentityArn": role_arn,
                "awsRegion": aws_region,
                "eventSourceARN": arn,
            }
        )
    return {"Records": records}


def event(batch: Batch, *, role: str = "headrace") -> dict[str, object]:
    """The event of a batch."""
    offsets, timestamps, keys, values = (batch.records.column(i) for i in range(4))
    return build(
        KinesisStream(batch.topic, region(), role),
        batch.partition,
        offsets.to_pylist(),
        timestamps.to_pylist(),
        keys.to_pylist(),
        values.to_pylist(),
    )
