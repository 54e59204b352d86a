"""The on-failure topic, on a real broker."""

from __future__ import annotations

import asyncio
import dataclasses
import time
import uuid
from pathlib import Path

import orjson
import pytest
from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient

from connectors.kafka.broker import Broker
from connectors.kafka.destination import KafkaDestination
from connectors.kafka.settings import KafkaSettings
from engine.batch import Stream
from engine.clock import SystemClock
from engine.errors import DestinationUnavailable, UserError
from engine.protocols import FailedRecord
from functions.failures import Documents, from_document
from tests.conftest import ExternalBroker, TopicFactory

pytestmark = [pytest.mark.broker, pytest.mark.slow]


def record(offset: int, *, key: bytes | None = b"k", value: bytes | None = b"{") -> FailedRecord:
    headers = (("h", b"\xff"),)
    return FailedRecord(3, offset, 1_700_000_000_000, key, value, headers, "why", "MalformedJson", 2, "request")


def parsed(message: ConsumerRecord) -> FailedRecord:
    return from_document(orjson.loads(message.value)).record


async def read(bootstrap: str, topic: str) -> list[ConsumerRecord]:
    consumer = AIOKafkaConsumer(
        bootstrap_servers=bootstrap, enable_auto_commit=False, isolation_level="read_committed"
    )
    await consumer.start()
    try:
        shard = TopicPartition(topic, 0)
        consumer.assign([shard])
        await consumer.seek_to_beginning(shard)
        end = (await consumer.end_offsets([shard]))[shard]
        found: list[ConsumerRecord] = []
        async with asyncio.timeout(30):
            while len(found) < end:
                found += (await consumer.getmany(shard, timeout_ms=1_000)).get(shard, [])
        return found
    finally:
        await consumer.stop()


def destination(
    bootstrap: str, topic: str, source: str, *, kind: str = "kafka", **arguments: float
) -> KafkaDestination:
    stream = Stream("cluster", source, "topic-id", 4)
    return KafkaDestination(
        KafkaSettings(bootstrap, broker_wait_seconds_max=10.0),
        topic,
        pipeline="p",
        stream_of=lambda: stream,
        clock=SystemClock(),
        document=Documents("p", kind, "arn", to_topic=True),
        **arguments,
    )


@pytest.fixture
async def missing(broker: Broker | ExternalBroker):  # type: ignore[no-untyped-def]
    """The name of a topic that does not exist; deleted if the test makes it."""
    name = f"failed-{uuid.uuid4().hex[:12]}"
    yield name
    admin = AIOKafkaAdminClient(bootstrap_servers=broker.bootstrap)
    await admin.start()
    await admin.delete_topics([name])
    await admin.close()


async def test_records_arrive_whole(broker: Broker | ExternalBroker, topic: TopicFactory, missing: str) -> None:
    """The topic is made, and each record comes with its key, its document and its identity in the headers."""
    target = destination(broker.bootstrap, missing, await topic())
    sent = [record(1), record(2, key=None), record(3, key=b"", value=None), record(4, value=bytes(range(256)))]
    await target.open()
    await target.open()
    await target.deliver(sent)
    await target.close()
    await target.close()
    await target.deliver([record(5)])  # a destination that was closed opens again
    await target.close()
    found = await read(broker.bootstrap, missing)
    assert [parsed(message) for message in found] == [*sent, record(5)]
    assert [message.key for message in found] == [b"k", None, b"", b"k", b"k"]
    headers = dict(found[1].headers)
    assert headers["headrace.pipeline"] == b"p"
    assert headers["headrace.topic_id"] == b"topic-id"
    assert (headers["headrace.partition"], headers["headrace.offset"]) == (b"3", b"2")
    assert time.time() * 1000 - found[0].timestamp < 600_000


@pytest.mark.parametrize("kind", ["kafka", "kinesis", "firehose", "dynamodb"])
async def test_a_large_record_fits(
    broker: Broker | ExternalBroker, topic: TopicFactory, missing: str, kind: str
) -> None:
    """The topic that is made takes the document of a record of the largest size that cannot be compressed."""
    source = await topic(config={"max.message.bytes": "6000000"})
    random = b"".join(uuid.uuid4().bytes for _ in range(5_000_000 // 16))
    target = destination(broker.bootstrap, missing, source, kind=kind)
    sent = [
        record(1, value=random),
        record(2, key=random),
        dataclasses.replace(record(3), headers=(("h", random),)),
    ]
    for each in sent:
        await target.deliver([each])
    await target.close()
    assert [parsed(message) for message in await read(broker.bootstrap, missing)] == sent


async def test_documents_are_those_of_the_sinks_when_nothing_is_said(
    broker: Broker | ExternalBroker, topic: TopicFactory, missing: str
) -> None:
    """A destination that is given no maker of documents sends the plain form, which is read as well."""
    stream = Stream("cluster", await topic(), "topic-id", 4)
    target = KafkaDestination(
        KafkaSettings(broker.bootstrap), missing, pipeline="p", stream_of=lambda: stream, clock=SystemClock()
    )
    await target.deliver([record(1)])
    await target.close()
    assert [parsed(message) for message in await read(broker.bootstrap, missing)] == [record(1)]


async def test_the_source_itself_is_refused(broker: Broker | ExternalBroker, topic: TopicFactory) -> None:
    """Failed records are not sent to the topic that they came from."""
    source = await topic()
    with pytest.raises(UserError, match=source):
        await destination(broker.bootstrap, source, source).open()


async def test_a_record_too_large_is_a_refusal(broker: Broker | ExternalBroker, topic: TopicFactory) -> None:
    """A topic with a small limit refuses the record; smaller ones still go through afterwards."""
    small = await topic(name="small", config={"max.message.bytes": "2000"})
    target = destination(broker.bootstrap, small, await topic())
    value = b"".join(uuid.uuid4().bytes for _ in range(200))
    with pytest.raises(DestinationUnavailable, match=r"large.*\n.*max\.message\.bytes"):
        await target.deliver([record(1, value=value)])
    await target.deliver([record(2)])
    await target.close()
    assert [parsed(message).offset for message in await read(broker.bootstrap, small)] == [2]


async def test_a_broker_that_dies_and_returns(tmp_path: Path) -> None:
    """While the broker is away a delivery ends in its bound, and after its return the next one arrives."""
    async with Broker(tmp_path / "broker", port=0, brief=True) as broker:
        target = destination(broker.bootstrap, "failed", "source", deliver_seconds_max=3.0)
        await target.deliver([record(1)])
        await asyncio.to_thread(broker.kill)
        started = time.monotonic()
        with pytest.raises(DestinationUnavailable, match="failed"):
            await target.deliver([record(2)])
        assert time.monotonic() - started < 15
        await asyncio.to_thread(broker.start)
        await target.deliver([record(2)])
        await target.close()
        offsets = {parsed(message).offset for message in await read(broker.bootstrap, "failed")}
        assert sorted(offsets) == [1, 2]


async def test_no_broker_is_a_refusal() -> None:
    """Without a broker, opening ends in the bound with the address in the message."""
    target = KafkaDestination(
        KafkaSettings("127.0.0.1:1", broker_wait_seconds_max=0.2),
        "failed",
        pipeline="p",
        stream_of=lambda: Stream("c", "s", "i", 1),
        clock=SystemClock(),
    )
    with pytest.raises(DestinationUnavailable, match=r"127\.0\.0\.1:1"):
        await target.open()
    await target.close()
