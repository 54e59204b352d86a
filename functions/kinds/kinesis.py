"""AWS's Kinesis event, built from the raw records of one partition.

Not here: calling the handler (`events`), what it answers (`responses`), and the sizes of what is built
(`payload`). Needs the standard library alone: `build_event` runs in the function's own process.

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
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

ACCOUNT = "000000000000"
NULL_KEY = "null"
SEQUENCE_DIGITS = 56
_OFFSET_DIGITS = 19  # of the largest 64-bit offset

SEQUENCE_PREFIX = "49" + "0" * (SEQUENCE_DIGITS - 2 - _OFFSET_DIGITS)

#: A record's headers, as the columns of a batch give them; None and nothing are the same.
Headers = Sequence[Mapping[str, str | bytes | None]]


def sequence_number(offset: int) -> str:
    """The sequence number of an offset; 56 digits."""
    return SEQUENCE_PREFIX + str(offset).zfill(_OFFSET_DIGITS)


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
    """What all records of one stream share. ``given_arn`` replaces the stream's ARN."""

    topic: str
    region: str
    role: str = "headrace"
    given_arn: str | None = None

    @property
    def arn(self) -> str:
        return self.given_arn or f"arn:aws:kinesis:{self.region}:{ACCOUNT}:stream/{self.topic}"

    @property
    def role_arn(self) -> str:
        return f"arn:aws:iam::{ACCOUNT}:role/{self.role}"


def envelope(stream: KinesisStream) -> dict[str, object]:
    """What `build_event` has to know beside the records; JSON can carry it."""
    return {"eventSourceARN": stream.arn, "invokeIdentityArn": stream.role_arn, "awsRegion": stream.region}


def build_event(
    envelope: Mapping[str, object],
    partition: int,
    offsets: Iterable[int],
    timestamps: Iterable[int],
    keys: Iterable[bytes | None],
    values: Iterable[bytes | None],
    headers: Iterable[Headers | None],
) -> dict[str, object]:
    """The event of records of one partition; ``timestamps`` are milliseconds. Holds no reference to its input.

    ``headers`` have no place in this event; they are taken so that all kinds are called alike.
    """
    del headers
    # This is done for every record: a copy is quicker than a new one, and a call would cost a twentieth of it all.
    copy = {
        "kinesis": None,
        "eventSource": "aws:kinesis",
        "eventVersion": "1.0",
        "eventID": None,
        "eventName": "aws:kinesis:record",
        "invokeIdentityArn": envelope["invokeIdentityArn"],
        "awsRegion": envelope["awsRegion"],
        "eventSourceARN": envelope["eventSourceARN"],
    }.copy
    shard = f"{shard_id(partition)}:"
    records: list[dict[str, object]] = []
    add = records.append
    for offset, timestamp, key, value in zip(offsets, timestamps, keys, values, strict=True):
        try:
            name = NULL_KEY if key is None else key.decode()
        except UnicodeDecodeError:
            name = partition_key(key)
        sequence = SEQUENCE_PREFIX + str(offset).zfill(_OFFSET_DIGITS)
        record: dict[str, object] = copy()
        record["kinesis"] = {
            "kinesisSchemaVersion": "1.0",
            "partitionKey": name,
            "sequenceNumber": sequence,
            "data": b2a_base64(value, newline=False).decode() if value else "",
            "approximateArrivalTimestamp": timestamp / 1000,
        }
        record["eventID"] = shard + sequence
        add(record)
    return {"Records": records}
