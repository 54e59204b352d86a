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

#: Whole numbers up to here are exact as floats; beyond them only Python's own division is.
EXACT_MS_MAX = 2**53

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
    seconds = [timestamp / 1000 for timestamp in timestamps]
    return _event(stream, partition, offsets, seconds, map(partition_key, keys), values)


def _event(
    stream: KinesisStream,
    partition: int,
    offsets: Iterable[int],
    seconds: Iterable[float],
    keys: Iterable[str],
    values: Iterable[bytes | None],
) -> dict[str, object]:
    arn, role_arn, aws_region = stream.arn, stream.role_arn, stream.region
    shard = f"{shard_id(partition)}:"
    records = []
    for offset, arrival, key, value in zip(offsets, seconds, keys, values, strict=True):
        sequence = f"{SEQUENCE_PREFIX}{offset:019d}"
        records.append(
            {
                "kinesis": {
                    "kinesisSchemaVersion": "1.0",
                    "partitionKey": key,
                    "sequenceNumber": sequence,
                    "data": b2a_base64(value, newline=False).decode("ascii") if value else "",
                    "approximateArrivalTimestamp": arrival,
                },
                "eventSource": "aws:kinesis",
                "eventVersion": "1.0",
                "eventID": shard + sequence,
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
    milliseconds = timestamps.to_numpy()
    exact = len(milliseconds) == 0 or (milliseconds.min() > -EXACT_MS_MAX and milliseconds.max() < EXACT_MS_MAX)
    return _event(
        KinesisStream(batch.topic, region(), role),
        batch.partition,
        offsets.to_numpy().tolist(),
        (milliseconds / 1000).tolist() if exact else [each / 1000 for each in milliseconds.tolist()],
        map(partition_key, keys.to_pylist()),
        values.to_pylist(),
    )
