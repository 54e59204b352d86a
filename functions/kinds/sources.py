"""What the events of one pipeline say beside their records, and the whole event of a batch.

Not here: what one record becomes (`kinesis`, `kafka`, `dynamodb`, `firehose`), and calling the handler (`events`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from engine.batch import Batch
from engine.protocols import Window
from functions.environments.contract import EventKind
from functions.kinds import dynamodb, firehose, kafka, kinesis, texts

_BUILD: dict[EventKind, Callable[..., dict[str, object]]] = {
    "kinesis": kinesis.build_event,
    "kafka": kafka.build_event,
    "dynamodb": dynamodb.build_event,
    "firehose": firehose.build_event,
}


@dataclass(frozen=True, slots=True)
class EventSource:
    """Where a function's events come from, in AWS's words.

    ``role`` names the function's role in Kinesis events. ``arn`` replaces the ARN that is made of the topic's
    name; Kafka events have no other. ``bootstrap_servers`` (comma-joined) and ``event_source`` are for Kafka.
    """

    kind: EventKind
    region: str
    role: str = "headrace"
    arn: str | None = None
    bootstrap_servers: str = ""
    event_source: str = kafka.EVENT_SOURCES[0]

    def envelope(self, batch: Batch, invocation_id: str) -> dict[str, object]:
        """What the event module has to know beside the records of ``batch``; JSON can carry it."""
        match self.kind:
            case "kinesis":
                return kinesis.envelope(self._kinesis(batch.topic))
            case "kafka":
                source = kafka.KafkaSource(self.bootstrap_servers, self.event_source, self.arn)
                return kafka.envelope(source, batch.topic, log_append_time=batch.log_append_time)
            case "dynamodb":
                return dynamodb.envelope(self._dynamodb(batch.topic))
            case "firehose":
                stream = firehose.DeliveryStream(batch.topic, self.region, self.arn)
                return firehose.envelope(stream, invocation_id)

    def window_members(self, batch: Batch, window: Window) -> dict[str, object]:
        """What an event in a tumbling window has beside its records (developer guide, "Tumbling windows")."""
        arn = self.arn
        if self.kind == "kinesis":
            arn = self._kinesis(batch.topic).arn
        elif self.kind == "dynamodb":
            arn = self._dynamodb(batch.topic).arn
        return {
            "window": {"start": _iso(window.start), "end": _iso(window.end)},
            "state": texts.loads(window.state) if window.state else {},
            "shardId": kinesis.shard_id(batch.partition),
            **({} if arn is None else {"eventSourceARN": arn}),
            "isFinalInvokeForWindow": window.is_final,
            "isWindowTerminatedEarly": window.is_terminated_early,
        }

    def _kinesis(self, topic: str) -> kinesis.KinesisStream:
        return kinesis.KinesisStream(topic, self.region, self.role, self.arn)

    def _dynamodb(self, topic: str) -> dynamodb.DynamoStream:
        return dynamodb.DynamoStream(topic, self.region, self.arn)


def _iso(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def event_of(
    kind: EventKind, batch: Batch, envelope: Mapping[str, object], extra: Mapping[str, object] | None = None
) -> dict[str, object]:
    """The whole event, as the function's own process would build it."""
    columns = [
        batch.records.column(name).to_pylist() for name in ("offset", "timestamp", "key", "value", "headers")
    ]
    return {**_BUILD[kind](envelope, batch.partition, *columns), **(extra or {})}
