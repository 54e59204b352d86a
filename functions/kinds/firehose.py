"""AWS's event for a Firehose transformation function, built from the raw records of one partition.

Not here: calling the function (`events`), what it answers (`transforms`), and the sizes of what is built
(`payload`). Needs the standard library alone: `build_event` runs in the function's own process.

The shape is AWS's (Firehose developer guide, "Data transformation with Lambda") for a delivery stream whose
source is a Kinesis stream. A record's id is its sequence number, which is its offset, as in `kinesis`; so are
partition key, shard and data.
"""

from __future__ import annotations

from binascii import b2a_base64
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from functions.kinds.kinesis import ACCOUNT, Headers, KinesisStream, partition_key, sequence_number, shard_id


@dataclass(frozen=True, slots=True)
class DeliveryStream:
    """What all records of one delivery stream share. ``given_arn`` replaces the stream's ARN."""

    topic: str
    region: str
    given_arn: str | None = None

    @property
    def arn(self) -> str:
        return self.given_arn or f"arn:aws:firehose:{self.region}:{ACCOUNT}:deliverystream/{self.topic}"


def envelope(stream: DeliveryStream, invocation_id: str) -> dict[str, object]:
    """What `build_event` has to know beside the records; JSON can carry it."""
    return {
        "invocationId": invocation_id,
        "sourceKinesisStreamArn": KinesisStream(stream.topic, stream.region).arn,
        "deliveryStreamArn": stream.arn,
        "region": stream.region,
    }


def build_event(
    envelope: Mapping[str, object],
    partition: int,
    offsets: Iterable[int],
    timestamps: Iterable[int],
    keys: Iterable[bytes | None],
    values: Iterable[bytes | None],
    headers: Iterable[Headers | None],
) -> dict[str, object]:
    """The event of records of one partition; ``timestamps`` are milliseconds. Holds no reference to its input."""
    del headers  # the event has no place for them
    shard = shard_id(partition)
    records = []
    for offset, timestamp, key, value in zip(offsets, timestamps, map(partition_key, keys), values, strict=True):
        sequence = sequence_number(offset)
        records.append(
            {
                "recordId": sequence,
                "approximateArrivalTimestamp": timestamp,
                "data": b2a_base64(value, newline=False).decode("ascii") if value else "",
                "kinesisRecordMetadata": {
                    "sequenceNumber": sequence,
                    "subsequenceNumber": 0,
                    "partitionKey": key,
                    "shardId": shard,
                    "approximateArrivalTimestamp": timestamp,
                },
            }
        )
    return {**envelope, "records": records}
