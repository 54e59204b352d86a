"""Pipelines whose rows go to a topic: the whole command, owners that fight, and what a reader of the topic sees."""

from __future__ import annotations

import asyncio
import threading
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import orjson
import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition

from connectors.kafka.broker import Broker
from connectors.kafka.cluster import Cluster
from connectors.kafka.partitioning import Partitioner
from connectors.kafka.settings import KafkaSettings
from connectors.kafka.sink import KafkaSink, MessageFormat, read_positions, state_topic_of
from connectors.kafka.topics import target_topic
from engine import config_file
from engine.batch import Stream
from engine.clock import SystemClock
from engine.compose import position
from engine.errors import ShardLost, SinkMismatch, UserError
from tests.conformance.sink_suite import failed_record, outcome, rows_of
from tests.conftest import ExternalBroker, TopicFactory
from tests.integration.kafka_output import committed
from tests.integration.support import Project, pipeline, value_of

pytestmark = [pytest.mark.broker]

STREAM = Stream("cluster-1", "clicks", "topic-id-1", 2)


@pytest.fixture
def project(tmp_path: Path, broker: Broker | ExternalBroker) -> Project:
    return Project(tmp_path, broker.bootstrap)


def sink_of(bootstrap: str, name: str, **settings: object) -> KafkaSink:
    return KafkaSink(
        KafkaSettings(bootstrap),
        pipeline=name,
        topic=f"{name}-out",
        clock=SystemClock(),
        **settings,  # type: ignore[arg-type]
    )


@pytest.fixture
async def sink(broker: Broker | ExternalBroker) -> AsyncIterator[KafkaSink]:
    sink = sink_of(broker.bootstrap, f"p{uuid.uuid4().hex[:12]}")
    await sink.open(STREAM)
    yield sink
    await sink.close()


def found(messages: list[object]) -> list[tuple[int, int, str]]:
    rows = [orjson.loads(message.value) for message in messages]  # type: ignore[attr-defined]
    return sorted((row["_partition"], row["_offset"], row["text"]) for row in rows)


async def test_a_pipeline_writes_a_topic_once(project: Project, topic: TopicFactory) -> None:
    """Two runs over a growing topic: every record once, keyed as Kafka does it, positions and group at the ends."""
    name = await topic(partitions=3)
    sink = {"type": "kafka", "topic": f"{name}-out", "key": "user", "omit": ["_timestamp"], "partitions": 5}
    project.configure({name: pipeline(name, sink, on_failure="failed.jsonl")})
    for run in range(2):
        ids = range(run * 30, run * 30 + 30)
        values = {
            n: [orjson.dumps({"id": i, "user": f"user {i % 7}"}) for i in ids if i % 3 == n] for n in range(3)
        }
        await project.produce(name, {**values, 0: [*values[0], b"no JSON"]})
        ended = await project.run()
        assert ended.code == 0, ended.err
    messages = await committed(project.bootstrap, f"{name}-out")
    rows = [orjson.loads(message.value) for message in messages]
    assert sorted(row["id"] for row in rows) == list(range(60))
    assert set(rows[0]) == {"id", "user", "_rest", "_partition", "_offset"}
    partitioner = Partitioner(5)
    for message, row in zip(messages, rows, strict=True):
        assert message.key == row["user"].encode()
        assert message.partition == partitioner.partition(message.key)
    assert [value_of(failure) for failure in project.failures()] == [b"no JSON"] * 2
    shown = await position.show(config_file.load(project.directory / "headrace.toml"), name)
    assert [(shard.position, shard.lag) for shard in shown] == [(22, 0), (20, 0), (20, 0)]


async def test_a_position_is_moved_forward_only(project: Project, topic: TopicFactory) -> None:
    """`headrace position set` goes through the sink: a start is set, a skip confirmed, a way back refused."""
    name = await topic()
    config = config_file.load(project.configure({name: pipeline(name, {"type": "kafka", "topic": f"{name}-out"})}))
    await project.produce(name, {0: [orjson.dumps({"id": i}) for i in range(9)]})
    assert [shard.position for shard in await position.show(config, name)] == [None]
    await position.move(config, name, 2)
    for target, skip in ((4, False), (1, True)):
        with pytest.raises(UserError, match="no position was moved"):
            await position.move(config, name, target, skip=skip)
    await position.move(config, name, 4, skip=True)
    assert [shard.position for shard in await position.show(config, name)] == [4]
    assert (await project.run()).code == 0
    messages = await committed(project.bootstrap, f"{name}-out")
    assert [orjson.loads(message.value)["id"] for message in messages] == [4, 5, 6, 7, 8]


async def test_values_pass_through_as_they_came(project: Project, topic: TopicFactory) -> None:
    """With ``record``, keys and values of the source go to the output byte by byte."""
    name = await topic()
    sink = {"type": "kafka", "topic": f"{name}-out", "key": "_key", "value": "_value"}
    project.configure({name: pipeline(name, sink, schema={"record": True})})
    values = [orjson.dumps({"id": i}) + b" " * i for i in range(20)]
    await project.produce(name, {0: values})
    ended = await project.run()
    assert ended.code == 0, ended.err
    messages = await committed(project.bootstrap, f"{name}-out")
    assert [(message.key, message.value) for message in messages] == [(b"k", value) for value in values]


async def test_a_row_that_is_too_large_costs_only_itself(project: Project, topic: TopicFactory) -> None:
    """A message beyond the output topic's max.message.bytes is a failed record; its neighbours are written."""
    name = await topic()
    settings = KafkaSettings(project.bootstrap)
    await target_topic(settings, SystemClock(), f"{name}-out", partitions=1, config={"max.message.bytes": "2000"})
    sink = {"type": "kafka", "topic": f"{name}-out", "compression": "none"}
    project.configure({name: pipeline(name, sink, on_failure="failed.jsonl")})
    values = [orjson.dumps({"id": i, "text": "x" * (5000 if i == 3 else 5)}) for i in range(6)]
    await project.produce(name, {0: values})
    ended = await project.run()
    assert ended.code == 0, ended.err
    messages = await committed(project.bootstrap, f"{name}-out")
    assert [orjson.loads(message.value)["id"] for message in messages] == [0, 1, 2, 4, 5]
    [failure] = project.failures()
    assert (failure["offset"], failure["error_type"]) == (3, "RowRefused")
    assert "takes 2,000" in failure["reason"]


async def test_an_owner_that_wakes_with_an_open_transaction_is_fenced(
    broker: Broker | ExternalBroker, sink: KafkaSink
) -> None:
    """A paused owner has sent its rows and not ended the transaction: it commits nothing, the next one goes on."""
    reached, woken, paused = threading.Event(), threading.Event(), []

    def phase(name: str) -> None:
        if name == "written":
            reached.set()
            assert woken.wait(60)

    def zombie() -> None:
        async def run() -> None:
            own = sink_of(broker.bootstrap, sink.pipeline, phase=phase)
            await own.open(STREAM)
            writer = await own.acquire(0)
            await writer.write(outcome(0, 5))
            with pytest.raises(ShardLost):
                await writer.commit()
            with pytest.raises(ShardLost):
                await writer.commit()
            await own.close()
            paused.append(writer.position)

        asyncio.run(run())

    thread = threading.Thread(target=zombie)
    thread.start()
    assert await asyncio.to_thread(reached.wait, 60)
    writer = await sink.acquire(0)
    assert writer.position is None
    await writer.write(outcome(0, 3))
    await writer.commit()
    woken.set()
    await asyncio.to_thread(thread.join, 60)
    assert paused == [None]
    await writer.write(outcome(3, 6))
    assert await writer.commit() == 6
    assert found(await committed(broker.bootstrap, sink.topic)) == rows_of(0, 0, 6)
    # The rows of the zombie are in the log, for whoever reads uncommitted.
    assert await everything(broker.bootstrap, sink) == 5 + 6


async def everything(bootstrap: str, sink: KafkaSink) -> int:
    consumer = AIOKafkaConsumer(bootstrap_servers=bootstrap, auto_offset_reset="earliest")
    await consumer.start()
    try:
        shards = [TopicPartition(sink.topic, number) for number in range(sink.partitions)]
        consumer.assign(shards)
        ends = await consumer.end_offsets(shards)
        count = 0
        async with asyncio.timeout(60):
            while any([await consumer.position(shard) < end for shard, end in ends.items()]):
                count += sum(len(records) for records in (await consumer.getmany(timeout_ms=100)).values())
        return count
    finally:
        await consumer.stop()


async def test_an_open_transaction_of_the_dead_is_ended_by_the_next_owner(
    broker: Broker | ExternalBroker, sink: KafkaSink
) -> None:
    """An owner that is cancelled in the middle of a commit is of no more use; nothing of it shows."""
    writer = await sink.acquire(1)
    await writer.write(outcome(0, 4, partition=1))
    ending: asyncio.Task[int] | None = None

    def phase(name: str) -> None:
        if name == "written" and ending is not None:
            ending.cancel()

    sink.phase = phase
    ending = asyncio.create_task(writer.commit())
    with pytest.raises(asyncio.CancelledError):
        await ending
    with pytest.raises(Exception, match="not known"):
        await writer.commit()
    sink.phase = lambda _name: None
    again = await sink.acquire(1)
    assert again.position in (None, 4), "whole or not at all"
    if again.position is None:
        await again.write(outcome(0, 4, partition=1))
        await again.commit()
    assert found(await committed(broker.bootstrap, sink.topic)) == rows_of(1, 0, 4)


async def test_two_members_that_adopt_at_once_agree(broker: Broker | ExternalBroker, sink: KafkaSink) -> None:
    """Schemas adopted at the same moment through two sinks: all get the one that is first in the log."""
    other = sink_of(broker.bootstrap, sink.pipeline)
    await other.open(STREAM)
    schemas = [outcome(0, 1).rows.schema.remove(n) for n in (0, 1)]  # type: ignore[union-attr]
    got = await asyncio.gather(
        *(each.adopt_schema("value", schema) for each, schema in zip([sink, other], schemas, strict=True))
    )
    assert got[0] == got[1]
    assert await sink.schema("value") == await other.schema("value") == got[0]
    await other.close()


async def test_a_partition_that_the_source_gains_has_a_state(
    broker: Broker | ExternalBroker, sink: KafkaSink
) -> None:
    """A shard beyond those that the topic had at first is acquired, committed and found again."""
    assert await sink.position(7) is None
    writer = await sink.acquire(7)
    await writer.write(outcome(0, 2, partition=7))
    assert await writer.commit() == 2
    assert await sink.position(7) == 2


async def test_failures_beyond_what_memory_holds_are_read_again(
    broker: Broker | ExternalBroker, sink: KafkaSink, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Failed records that are not kept come from the state topic, whole and in order."""
    monkeypatch.setattr("connectors.kafka.sink.state.FAILURE_BYTES_MAX", 500)
    writer = await sink.acquire(0)
    await writer.write(outcome(0, 10, failed=list(range(10))))
    await writer.commit()
    mark, records = await writer.failures(4)
    assert list(records) == [failed_record(offset) for offset in range(4)]
    await writer.delivered(mark)
    _, records = await (await sink.acquire(0)).failures(100)
    assert list(records) == [failed_record(offset) for offset in range(4, 10)]


async def test_positions_are_read_without_a_sink(broker: Broker | ExternalBroker, sink: KafkaSink) -> None:
    """`read_positions` sees what is committed, makes nothing, and refuses what belongs to another topic."""
    writer = await sink.acquire(1)
    await writer.write(outcome(0, 3, partition=1))
    await writer.commit()
    cluster = Cluster(KafkaSettings(broker.bootstrap), SystemClock())
    await cluster.open()
    try:
        place = {"pipeline": sink.pipeline, "output": sink.topic, "state_topic": state_topic_of(sink.pipeline)}
        assert await read_positions(cluster, SystemClock(), stream=STREAM, **place) == {0: None, 1: 3}
        nowhere = {**place, "state_topic": "there-is-none"}
        assert await read_positions(cluster, SystemClock(), stream=STREAM, **nowhere) == {0: None, 1: None}
        assert "there-is-none" not in await cluster.topics()
        with pytest.raises(SinkMismatch, match="orders"):
            await read_positions(cluster, SystemClock(), stream=Stream("cluster-1", "orders", "x", 2), **place)
    finally:
        await cluster.close()


async def test_what_cannot_be_is_refused_before_any_row(broker: Broker | ExternalBroker) -> None:
    """The source as output, a key that the rows do not have, and a state topic that forgets."""
    name = f"p{uuid.uuid4().hex[:12]}"
    with pytest.raises(UserError, match="own source"):
        await sink_of(broker.bootstrap, name).open(Stream("c", f"{name}-out", "t", 1))
    keyed = sink_of(broker.bootstrap, name, message_format=MessageFormat(key="user"))
    await keyed.open(STREAM)
    writer = await keyed.acquire(0)
    with pytest.raises(SinkMismatch, match='key = "user": the rows have _partition, _offset, text'):
        await writer.write(outcome(0, 2))
    assert await keyed.schema("rows") is None
    await keyed.close()
    other = f"p{uuid.uuid4().hex[:12]}"
    await target_topic(KafkaSettings(broker.bootstrap), SystemClock(), state_topic_of(other), partitions=3)
    with pytest.raises(SinkMismatch, match=r"cleanup\.policy = delete"):
        await sink_of(broker.bootstrap, other).open(STREAM)
