"""AWS's Kafka event, built from the raw records of a batch.

Not here: calling the handler (`events`), and the sizes of what is built (`payload`). Needs the standard
library alone, so that `build` can run in a process that has no Arrow.

Shape and key order are AWS's (Lambda developer guide, "Using Lambda with Amazon MSK" and "... with
self-managed Apache Kafka"). Header bytes are signed (-128 to 127), as AWS's Java side writes them. A record
without a key or a value has None there: handlers index the key as often as they ask for it. A header
without a value has no bytes, as one with an empty value.
"""

from __future__ import annotations

from binascii import b2a_base64
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from engine.batch import Batch

#: What ``eventSource`` may say. AWS's current documents have the first for self-managed clusters, its older
#: ones and several libraries the second; the third is Amazon MSK's.
EVENT_SOURCES = ("SelfManagedKafka", "aws:SelfManagedKafka", "aws:kafka")


@dataclass(frozen=True, slots=True)
class KafkaSource:
    """What all events of one source share. ``arn`` is Amazon MSK's cluster ARN; self-managed events have none."""

    bootstrap_servers: str = ""
    event_source: str = EVENT_SOURCES[0]
    arn: str | None = None

    def envelope(self, records: object) -> dict[str, object]:
        """The event around its ``records``."""
        head: dict[str, object] = {"eventSource": self.event_source}
        if self.arn is not None:
            head["eventSourceArn"] = self.arn
        return {**head, "bootstrapServers": self.bootstrap_servers, "records": records}


def timestamp_type(log_append_time: bool) -> str:
    return "LOG_APPEND_TIME" if log_append_time else "CREATE_TIME"


def build(
    topic: str,
    partition: int,
    offsets: Iterable[int],
    timestamps: Iterable[int],
    keys: Iterable[bytes | None],
    values: Iterable[bytes | None],
    headers: Iterable[Sequence[Mapping[str, str | bytes | None]] | None],
    *,
    log_append_time: bool = False,
) -> dict[str, list[dict[str, object]]]:
    """An event's ``records`` of one partition. ``timestamps`` are milliseconds; headers are {key, value} maps."""
    clock = timestamp_type(log_append_time)
    records: list[dict[str, object]] = [
        {
            "topic": topic,
            "partition": partition,
            "offset": offset,
            "timestamp": timestamp,
            "timestampType": clock,
            "key": None if key is None else b2a_base64(key, newline=False).decode("ascii"),
            "value": None if value is None else b2a_base64(value, newline=False).decode("ascii"),
            "headers": [{header["key"]: signed(header["value"])} for header in pairs] if pairs else [],  # type: ignore[arg-type]
        }
        for offset, timestamp, key, value, pairs in zip(offsets, timestamps, keys, values, headers, strict=True)
    ]
    return {f"{topic}-{partition}": records}


def signed(value: bytes | None) -> list[int]:
    """Bytes as Java has them: numbers from -128 to 127."""
    return memoryview(value).cast("b").tolist() if value else []


def event(batch: Batch, source: KafkaSource) -> dict[str, object]:
    """The event of a batch."""
    offsets, timestamps, keys, values, headers = (batch.records.column(i) for i in range(5))
    bare = headers.values is None or len(headers.flatten()) == 0
    return source.envelope(
        build(
            batch.topic,
            batch.partition,
            offsets.to_pylist(),
            timestamps.to_pylist(),
            keys.to_pylist(),
            values.to_pylist(),
            [None] * len(batch) if bare else headers.to_pylist(),
            log_append_time=batch.log_append_time,
        )
    )
