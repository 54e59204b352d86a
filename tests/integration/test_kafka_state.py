"""States of shards in the state topic of a real broker, and the sink that has nothing else: no rows, no output."""

from __future__ import annotations

import asyncio
import threading
import uuid
from collections.abc import AsyncIterator

import orjson
import pytest

from connectors.kafka.broker import Broker
from connectors.kafka.cluster import Cluster
from connectors.kafka.groups import group_offsets, move_group_offsets
from connectors.kafka.settings import KafkaSettings
from connectors.kafka.sink import KafkaSink, read_positions, state_topic_of
from engine.batch import Stream
from engine.clock import SystemClock
from engine.errors import HandlerError, ShardLost, SinkMismatch
from engine.protocols import STATE_BYTES_MAX, Counts, Outcome
from tests.conformance.sink_suite import outcome
from tests.conformance.state_suite import LARGE, state_alone
from tests.conftest import ExternalBroker, TopicFactory
from tests.integration.kafka_output import committed

pytestmark = [pytest.mark.broker]

STREAM = Stream("cluster-1", "clicks", "topic-id-1", 2)


def sink_of(bootstrap: str, name: str, topic: str | None = None, **settings: object) -> KafkaSink:
    return KafkaSink(
        KafkaSettings(bootstrap),
        pipeline=name,
        topic=topic,
        clock=SystemClock(),
        **settings,  # type: ignore[arg-type]
    )


def given(start: int, end: int, state: bytes | None) -> Outcome:
    return Outcome(start, end, None, Counts(handled=end - start), state=state)


@pytest.fixture
def name() -> str:
    return f"p{uuid.uuid4().hex[:12]}"


@pytest.fixture
async def cluster(broker: Broker | ExternalBroker) -> AsyncIterator[Cluster]:
    cluster = Cluster(KafkaSettings(broker.bootstrap), SystemClock())
    await cluster.open()
    yield cluster
    await cluster.close()


@pytest.fixture
async def sink(broker: Broker | ExternalBroker, name: str) -> AsyncIterator[KafkaSink]:
    sink = sink_of(broker.bootstrap, name, group=f"group-of-{name}")
    await sink.open(STREAM)
    yield sink
    await sink.close()


async def test_a_sink_without_output_makes_one_topic_and_takes_no_rows(
    broker: Broker | ExternalBroker, sink: KafkaSink, cluster: Cluster, name: str
) -> None:
    """Rows are refused as without a sink, and leave nothing behind; the state topic is all that there is."""
    writer = await sink.acquire(0)
    with pytest.raises(HandlerError, match="no sink to write them to"):
        await writer.write(outcome(0, 3))
    assert (writer.due_at(), writer.pending_bytes) == (None, 0)
    await writer.write(given(0, 3, b"{}"))
    assert await writer.commit() == 3
    assert [topic for topic in await cluster.topics() if name in topic] == [state_topic_of(name)]
    with pytest.raises(SinkMismatch, match="no output topic; this is"):
        await sink_of(broker.bootstrap, name, f"{name}-out").open(STREAM)
    place = {"pipeline": name, "output": "", "state_topic": state_topic_of(name)}
    assert await read_positions(cluster, SystemClock(), stream=STREAM, **place) == {0: 3, 1: None}


async def test_the_group_offset_is_of_the_same_transaction(
    broker: Broker | ExternalBroker, cluster: Cluster, name: str, topic: TopicFactory
) -> None:
    """Tools see how far the shard is; the transaction's markers, which make it visible, come a moment later."""
    source, group = await topic(partitions=2), f"group-of-{name}"
    sink = sink_of(broker.bootstrap, name, group=group)
    await sink.open((await cluster.describe(source)).stream)
    writer = await sink.acquire(1)
    await writer.write(given(5, 9, b"{}"))
    await writer.commit()
    async with asyncio.timeout(30):
        while (found := await group_offsets(cluster, group, source, [0, 1])) != {0: None, 1: 9}:
            assert found == {0: None, 1: None}
    await sink.close()


async def test_a_shard_begins_where_its_group_stands(
    broker: Broker | ExternalBroker, cluster: Cluster, name: str, topic: TopicFactory
) -> None:
    """A pipeline whose checkpoint was the group offset gets a state and goes on; its own position then decides."""
    source, group = await topic(partitions=2), f"group-of-{name}"
    stream = (await cluster.describe(source)).stream
    await move_group_offsets(cluster, group, source, {0: 7})
    sink = sink_of(broker.bootstrap, name, group=group)
    await sink.open(stream)
    assert [await sink.position(n) for n in (0, 1, 5)] == [7, None, None]
    writer = await sink.acquire(0)
    assert (writer.position, writer.state) == (7, b"")
    assert list((await writer.failures(10))[1]) == []
    await writer.write(given(7, 9, b"{}"))
    assert await writer.commit() == 9
    await move_group_offsets(cluster, group, source, {0: 2})
    assert (await sink.acquire(0)).position == await sink.position(0) == 9
    await sink.close()
    anew = Stream(stream.cluster_id, source, "another-id", 2)
    again = sink_of(broker.bootstrap, name, group=group, on_recreated_topic="restart")
    await again.open(anew)
    assert await again.position(0) is None
    assert (await again.acquire(0)).position is None
    await again.close()
    unlike = sink_of(broker.bootstrap, f"{name}-rows", f"{name}-out", group=group)
    await unlike.open(stream)
    assert await unlike.position(0) is None, "the position of rows is in the transaction of the rows"
    await unlike.close()


async def test_a_source_of_small_records_may_have_a_large_state(
    broker: Broker | ExternalBroker, cluster: Cluster, name: str, topic: TopicFactory
) -> None:
    """The state topic takes a megabyte whatever the source's max.message.bytes is."""
    source = await topic(config={"max.message.bytes": "2000"})
    sink = sink_of(broker.bootstrap, name)
    await sink.open((await cluster.describe(source)).stream)
    writer = await sink.acquire(0)
    state = bytes(range(256)) * (STATE_BYTES_MAX // 256)
    await writer.write(given(0, 1, state))
    await writer.commit()
    assert (await sink.acquire(0)).state == state
    await sink.close()


async def test_a_state_that_is_cleared_can_be_compacted_away(
    broker: Broker | ExternalBroker, sink: KafkaSink
) -> None:
    """Its record has no value, and is in the transaction of the position that comes after it."""
    writer = await sink.acquire(0)
    for end, state in ((1, b"{}"), (2, b""), (3, None)):
        await writer.write(given(end - 1, end, state))
        await writer.commit()
    records = await committed(broker.bootstrap, state_topic_of(sink.pipeline))
    kinds = [(orjson.loads(record.key)[0], record.value) for record in records if record.partition == 1]
    assert [kind for kind, _value in kinds] == ["state", "position", "state", "position", "position"]
    assert [value for kind, value in kinds if kind == "state"] == [b"{}", None]


@pytest.mark.parametrize("alone", [True, False])
async def test_an_owner_that_wakes_with_an_open_transaction_leaves_no_state(
    broker: Broker | ExternalBroker, sink: KafkaSink, alone: bool
) -> None:
    """A paused owner has sent its state and not ended the transaction: the next one has the old, and fences it."""
    first = await sink.acquire(0)
    await first.write(given(0, 4, b"old"))
    await first.commit()
    reached, woken, seen = threading.Event(), threading.Event(), []

    def phase(name: str) -> None:
        if name == "written":
            reached.set()
            assert woken.wait(60)

    def zombie() -> None:
        async def run() -> None:
            own = sink_of(broker.bootstrap, sink.pipeline, phase=phase)
            await own.open(STREAM)
            writer = await own.acquire(0)
            await writer.write(state_alone(4, LARGE) if alone else given(4, 9, LARGE))
            with pytest.raises(ShardLost):
                await writer.commit()
            seen.append((writer.position, writer.state))
            await own.close()

        asyncio.run(run())

    thread = threading.Thread(target=zombie)
    thread.start()
    assert await asyncio.to_thread(reached.wait, 60)
    owner = await sink.acquire(0)
    assert (owner.position, owner.state) == (4, b"old")
    woken.set()
    await asyncio.to_thread(thread.join, 60)
    assert seen == [(4, b"old")]
    await owner.write(given(4, 6, b"new"))
    await owner.commit()
    taken = await sink.acquire(0)
    assert (taken.position, taken.state) == (6, b"new")


async def test_a_commit_whose_end_is_unknown_is_whole_or_not_at_all(sink: KafkaSink) -> None:
    """Cancelled before its transaction ended: the next owner has both, position and state, or neither."""
    writer = await sink.acquire(1)
    await writer.write(given(0, 4, b"old"))
    await writer.commit()
    await writer.write(given(4, 8, b"new"))
    ending: asyncio.Task[int] | None = None

    def phase(name: str) -> None:
        if name == "written" and ending is not None:
            ending.cancel()

    sink.phase = phase
    ending = asyncio.create_task(writer.commit())
    with pytest.raises(asyncio.CancelledError):
        await ending
    sink.phase = lambda _name: None
    taken = await sink.acquire(1)
    assert (taken.position, taken.state) in ((4, b"old"), (8, b"new"))
