"""AWS's Kafka event, built from the raw records of one partition.

Not here: calling the handler (`events`), what it answers (`responses`), and the sizes of what is built
(`payload`). Needs the standard library alone: `build_event` runs in the function's own process.

Shape and key order are AWS's (Lambda developer guide, "Using Lambda with Amazon MSK" and "... with
self-managed Apache Kafka"). Header bytes are signed (-128 to 127), as AWS's Java side writes them. A record
without a key or a value has None there: handlers index the key as often as they ask for it. A header
without a value has no bytes, as one with an empty value.
"""

from __future__ import annotations

from binascii import b2a_base64
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from functions.kinds.kinesis import Headers

#: What ``eventSource`` may say. AWS's current documents have the first for self-managed clusters, its older
#: ones and several libraries the second; the third is Amazon MSK's.
EVENT_SOURCES = ("SelfManagedKafka", "aws:SelfManagedKafka", "aws:kafka")


@dataclass(frozen=True, slots=True)
class KafkaSource:
    """What all events of one source share. ``arn`` is Amazon MSK's cluster ARN; self-managed events have none."""

    bootstrap_servers: str = ""
    event_source: str = EVENT_SOURCES[0]
    arn: str | None = None


def envelope(source: KafkaSource, topic: str, *, log_append_time: bool) -> dict[str, object]:
    """What `build_event` has to know beside the records; JSON can carry it."""
    head: dict[str, object] = {"eventSource": source.event_source}
    if source.arn is not None:
        head["eventSourceArn"] = source.arn
    clock = "LOG_APPEND_TIME" if log_append_time else "CREATE_TIME"
    return {**head, "bootstrapServers": source.bootstrap_servers, "topic": topic, "timestampType": clock}


def build_event(
    envelope: Mapping[str, object],
    partition: int,
    offsets: Iterable[int],
    timestamps: Iterable[int],
    keys: Iterable[bytes | None],
    values: Iterable[bytes | None],
    headers: Iterable[Headers | None],
) -> dict[str, object]:
    """The event of records of one partition; ``timestamps`` are milliseconds, headers {key, value} maps."""
    event = dict(envelope)
    topic, clock = event.pop("topic"), event.pop("timestampType")
    records: list[dict[str, object]] = [
        {
            "topic": topic,
            "partition": partition,
            "offset": offset,
            "timestamp": timestamp,
            "timestampType": clock,
            "key": None if key is None else b2a_base64(key, newline=False).decode(),
            "value": None if value is None else b2a_base64(value, newline=False).decode(),
            "headers": [{header["key"]: signed(header["value"])} for header in pairs] if pairs else [],  # type: ignore[arg-type]
        }
        for offset, timestamp, key, value, pairs in zip(offsets, timestamps, keys, values, headers, strict=True)
    ]
    event["records"] = {f"{topic}-{partition}": records}
    return event


def signed(value: bytes | None) -> list[int]:
    """Bytes as Java has them: numbers from -128 to 127."""
    return memoryview(value).cast("b").tolist() if value else []
