"""What was fetched, as a Batch. The only place that knows how records of a fetch look."""

from __future__ import annotations

from collections.abc import Sequence

from aiokafka.structs import ConsumerRecord

from engine.batch import Batch, from_rows

#: ConsumerRecord.timestamp_type of the broker's clock (Kafka's TimestampType.LOG_APPEND_TIME).
LOG_APPEND_TIME = 1


def batch_of(
    topic: str, partition: int, records: Sequence[ConsumerRecord[bytes | None, bytes | None]], start: int, end: int
) -> Batch:
    """A batch of ``[start, end)`` from records of aiokafka."""
    return from_rows(
        topic,
        partition,
        ((record.offset, record.timestamp, record.key, record.value, record.headers) for record in records),
        start=start,
        end=end,
        log_append_time=bool(records) and records[0].timestamp_type == LOG_APPEND_TIME,
    )
