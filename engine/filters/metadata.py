"""What is known of a record apart from its value, under the keys that patterns may name.

Spelt as the events of `functions.kinds` have it, which this may not import; a test holds the two together. Not
here: what a pattern makes of it (`engine.filters.criteria`).
"""

from __future__ import annotations

import os
from binascii import b2a_base64
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from engine.batch import Batch
from engine.filters.numbers import Number

_ACCOUNT = "000000000000"
_SEQUENCE_PREFIX = "49" + "0" * 35  # 56 digits with the 19 of an offset


@dataclass(frozen=True, slots=True)
class Origin:
    """What all records of a source share, where the configuration says so; None stands for what is made up."""

    event_source_arn: str | None = None
    region: str | None = None
    role: str = "headrace"

    @property
    def aws_region(self) -> str:
        return self.region or os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"


@dataclass(frozen=True, slots=True)
class Constant:
    """One value for all records of a batch."""

    value: Any


#: A value for each record, or one for all.
Column = Sequence[Any] | Constant

Columns = Mapping[str, Callable[[Batch, Origin], Column]]


def sequence_number(offset: int) -> str:
    return f"{_SEQUENCE_PREFIX}{offset:019d}"


def shard_id(partition: int) -> str:
    return f"shardId-{partition:012d}"


def partition_key(key: bytes | None) -> str:
    if key is None:
        return "null"
    try:
        return key.decode()
    except UnicodeDecodeError:
        return b2a_base64(key, newline=False).decode("ascii")


def _offsets(batch: Batch) -> list[int]:
    return batch.records.column("offset").to_pylist()  # type: ignore[no-any-return]


def _timestamps(batch: Batch) -> list[int]:
    return batch.records.column("timestamp").to_pylist()  # type: ignore[no-any-return]


def keys(batch: Batch) -> list[bytes | None]:
    return batch.records.column("key").to_pylist()  # type: ignore[no-any-return]


def _constant(value: object) -> Callable[[Batch, Origin], Column]:
    return lambda batch, origin: Constant(value)


def _seconds(batch: Batch, origin: Origin) -> Column:
    return [Number(repr(each / 1000)) for each in _timestamps(batch)]


def _sequences(batch: Batch, origin: Origin) -> Column:
    return list(map(sequence_number, _offsets(batch)))


def _event_ids(batch: Batch, origin: Origin) -> Column:
    shard = shard_id(batch.partition)
    return [f"{shard}:{sequence_number(offset)}" for offset in _offsets(batch)]


def _kinesis_arn(batch: Batch, origin: Origin) -> Column:
    made = f"arn:aws:kinesis:{origin.aws_region}:{_ACCOUNT}:stream/{batch.topic}"
    return Constant(origin.event_source_arn or made)


#: A Kinesis record, its ``kinesis`` object and what lies around that as one (AWS's documents of 2023).
KINESIS: Columns = {
    "kinesisSchemaVersion": _constant("1.0"),
    "partitionKey": lambda batch, origin: list(map(partition_key, keys(batch))),
    "sequenceNumber": _sequences,
    "approximateArrivalTimestamp": _seconds,
    "eventSource": _constant("aws:kinesis"),
    "eventVersion": _constant("1.0"),
    "eventID": _event_ids,
    "eventName": _constant("aws:kinesis:record"),
    "invokeIdentityArn": lambda batch, origin: Constant(f"arn:aws:iam::{_ACCOUNT}:role/{origin.role}"),
    "awsRegion": lambda batch, origin: Constant(origin.aws_region),
    "eventSourceARN": _kinesis_arn,
}


def _delivery(batch: Batch, origin: Origin) -> Column:
    shard = shard_id(batch.partition)
    return [
        {
            "sequenceNumber": sequence_number(offset),
            "subsequenceNumber": 0,
            "partitionKey": partition_key(key),
            "shardId": shard,
            "approximateArrivalTimestamp": timestamp,
        }
        for offset, key, timestamp in zip(_offsets(batch), keys(batch), _timestamps(batch), strict=True)
    ]


FIREHOSE: Columns = {
    "recordId": _sequences,
    "approximateArrivalTimestamp": lambda batch, origin: _timestamps(batch),
    "kinesisRecordMetadata": _delivery,
}


def _headers(batch: Batch, origin: Origin) -> Column:
    column = batch.records.column("headers")
    names = column.values.field("key").cast(pa.binary()).to_pylist()  # nobody has looked whether they are UTF-8
    values = column.values.field("value").to_pylist()
    pairs = [
        {(name or b"").decode(errors="replace"): list(memoryview(value or b"").cast("b"))}
        for name, value in zip(names, values, strict=True)
    ]
    bounds = column.offsets.to_pylist()
    present = column.is_valid().to_pylist()
    return [pairs[bounds[row] : bounds[row + 1]] if there else [] for row, there in enumerate(present)]


KAFKA: Columns = {
    "topic": lambda batch, origin: Constant(batch.topic),
    "partition": lambda batch, origin: Constant(batch.partition),
    "offset": lambda batch, origin: _offsets(batch),
    "timestamp": lambda batch, origin: _timestamps(batch),
    "timestampType": lambda batch, origin: Constant("LOG_APPEND_TIME" if batch.log_append_time else "CREATE_TIME"),
    "headers": _headers,
}


def dynamodb_record(
    document: Mapping[str, Any], batch: Batch, offset: int, timestamp: int, value: bytes, origin: Origin
) -> dict[str, Any]:
    """A DynamoDB stream record with what the event will fill in where the record's value has it not.

    ``ApproximateCreationDateTime`` becomes a number, as recorded on AWS, also where it is the text of one.
    """
    inner = document.get("dynamodb")
    sequence = sequence_number(offset)
    if isinstance(inner, Mapping):
        sequence = inner.get("SequenceNumber") or sequence
        whole = "NewImage" in inner or "OldImage" in inner
        inner = {
            "ApproximateCreationDateTime": timestamp // 1000,
            "SizeBytes": len(value),
            "StreamViewType": "NEW_AND_OLD_IMAGES" if whole else "KEYS_ONLY",
            **inner,
            "SequenceNumber": sequence,
        }
        inner["ApproximateCreationDateTime"] = as_number(inner["ApproximateCreationDateTime"])
    made = f"arn:aws:dynamodb:{origin.aws_region}:{_ACCOUNT}:table/{batch.topic}/stream/1970-01-01T00:00:00.000"
    filled = {
        "eventID": f"{shard_id(batch.partition)}:{sequence}",
        "eventVersion": "1.1",
        "eventSource": "aws:dynamodb",
        "awsRegion": origin.aws_region,
        "eventSourceARN": origin.event_source_arn or made,
        **document,
    }
    return filled if inner is None else {**filled, "dynamodb": inner}


#: The paths that `dynamodb_record` may fill in or change.
DYNAMODB_FILLED = frozenset(
    (
        "eventID",
        "eventVersion",
        "eventSource",
        "awsRegion",
        "eventSourceARN",
        "dynamodb.ApproximateCreationDateTime",
        "dynamodb.SequenceNumber",
        "dynamodb.SizeBytes",
        "dynamodb.StreamViewType",
    )
)


def as_number(value: object) -> object:
    """A time that is the text of a number as that number, anything else as it is."""
    if not isinstance(value, str):
        return value
    try:
        float(value)
    except ValueError:
        return value
    return Number(value)
