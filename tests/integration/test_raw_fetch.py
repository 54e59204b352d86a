"""Fetching as bytes from a real broker: what comes is what aiokafka gives, and what goes wrong is lived through.

Answers that a single healthy broker never gives are made from real ones, by a client that alters them.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
import uuid
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition, errors
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.client import AIOKafkaClient

from connectors.kafka.broker import Broker
from connectors.kafka.fetcher import POLL_SECONDS_MAX, Fetcher
from connectors.kafka.records import batch_of
from connectors.kafka.settings import KafkaSettings
from engine.batch import RECORDS, Batch, join
from engine.clock import SystemClock
from engine.errors import CorruptRecords, ExternalError, ShardLost
from engine.protocols import OffsetOutOfRange
from tests.conftest import TopicFactory

pytestmark = [pytest.mark.broker, pytest.mark.slow]

SECONDS_MAX = 60.0

#: Fields of a partition's part of an answer, version 11.
PARTITION, CODE, REPLICA, DATA = 0, 1, 6, 7

Alter = Callable[[Any], None]


class AlteringClient(AIOKafkaClient):  # type: ignore[misc]
    """A client whose fetches `before` and `alter` may spoil, one after the other."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.before: list[Exception] = []
        self.alter: list[Alter] = []
        self.sent: list[tuple[float, int]] = []

    async def send(self, node_id: int, request: Any, *, group: int = 0) -> Any:
        if not hasattr(request, "_isolation_level") or group == 0:
            return await super().send(node_id, request, group=group)
        self.sent.append((time.monotonic(), node_id))
        if self.before:
            raise self.before.pop(0)
        response = await super().send(node_id, request, group=group)
        has_data = any(part[DATA] for _, parts in response.topics for part in parts)
        if self.alter and (has_data or getattr(self.alter[0], "always", False)):
            response.topics = [(name, [list(part) for part in parts]) for name, parts in response.topics]
            self.alter.pop(0)(response)
        return response


def settings(bootstrap: str) -> KafkaSettings:
    return KafkaSettings(bootstrap, broker_wait_seconds_max=SECONDS_MAX, metadata_age_ms_max=500)


@contextlib.asynccontextmanager
async def fetching(bootstrap: str, topic: str, **options: Any) -> AsyncIterator[Fetcher]:
    fetcher = Fetcher(settings(bootstrap), topic=topic, clock=SystemClock(), **options)
    await fetcher.open()
    try:
        yield fetcher
    finally:
        await fetcher.close()


@contextlib.asynccontextmanager
async def producing(bootstrap: str, **options: Any) -> AsyncIterator[AIOKafkaProducer]:
    producer = AIOKafkaProducer(bootstrap_servers=bootstrap, metadata_max_age_ms=500, **options)
    await producer.start()
    try:
        yield producer
    finally:
        await producer.stop()


async def produce(
    bootstrap: str,
    topic: str,
    values: list[bytes | None],
    *,
    partition: int = 0,
    headers: Any = None,
    **options: Any,
) -> None:
    async with producing(bootstrap, **options) as producer:
        sent = [
            await producer.send(
                topic,
                value,
                key=[b"", b"k%d" % at, None][at % (3 if value is not None else 2)],
                partition=partition,
                timestamp_ms=1_000 + at,
                headers=headers[at % len(headers)] if headers else None,
            )
            for at, value in enumerate(values)
        ]
        await asyncio.gather(*sent)


async def end_of(bootstrap: str, topic: str, partition: int = 0, *, read_committed: bool = True) -> int:
    isolation = "read_committed" if read_committed else "read_uncommitted"
    consumer = AIOKafkaConsumer(bootstrap_servers=bootstrap, isolation_level=isolation)
    await consumer.start()
    try:
        shard = TopicPartition(topic, partition)
        return cast(int, (await consumer.end_offsets([shard]))[shard])
    finally:
        await consumer.stop()


async def drain(fetcher: Fetcher, partition: int, start: int, end: int, *, records_max: int = 1_000) -> Batch:
    """Everything of ``[start, end)`` as one Batch; the parts are contiguous."""
    batches: list[Batch] = []
    at = start
    async with asyncio.timeout(SECONDS_MAX):
        while at < end:
            batch = await fetcher.take(partition, records_max=records_max, seconds_max=1.0)
            if batch is not None:
                assert batch.start == at < batch.end
                assert len(batch) <= records_max
                assert batch.records.schema == RECORDS
                batch.records.validate(full=True)
                batches.append(batch)
                at = batch.end
    return join(batches)


async def by_aiokafka(bootstrap: str, topic: str, start: int, end: int, *, read_committed: bool) -> Batch:
    """The same by aiokafka's own fetcher and reader."""
    consumer = AIOKafkaConsumer(
        bootstrap_servers=bootstrap,
        auto_offset_reset="none",
        isolation_level="read_committed" if read_committed else "read_uncommitted",
    )
    await consumer.start()
    try:
        shard = TopicPartition(topic, 0)
        consumer.assign([shard])
        consumer.seek(shard, start)
        records: list[Any] = []
        async with asyncio.timeout(SECONDS_MAX):
            while await consumer.position(shard) < end:
                records += (await consumer.getmany(shard, timeout_ms=500)).get(shard, [])
        return batch_of(topic, 0, records, start, await consumer.position(shard))
    finally:
        await consumer.stop()


async def assert_as_aiokafka(bootstrap: str, topic: str, *, start: int = 0, read_committed: bool = True) -> Batch:
    """Read the whole log in both ways, and compare column by column."""
    end = await end_of(bootstrap, topic, read_committed=read_committed)
    expected = await by_aiokafka(bootstrap, topic, start, end, read_committed=read_committed)
    async with fetching(bootstrap, topic, read_committed=read_committed) as fetcher:
        fetcher.seek(0, start)
        found = await drain(fetcher, 0, start, end)
    assert (found.start, found.end) == (expected.start, expected.end)
    for name in RECORDS.names:
        assert pa.chunked_array([found.records.column(name)]).equals(
            pa.chunked_array([expected.records.column(name)])
        ), name
    assert found.log_append_time == expected.log_append_time
    return found


VALUES: list[bytes | None] = [None if at % 11 == 10 else b"%d:" % at + b"v" * (at % 300) for at in range(3_000)]
HEADERS = [[], [("h", b"v")], [("ä€", b""), ("n", b"\x00\xff" * 40)]]


# -- what is read is what aiokafka reads -------------------------------------------------------------------------


@pytest.mark.parametrize("codec", [None, "gzip", "snappy", "lz4", "zstd"])
async def test_every_codec_as_aiokafka_reads_it(broker: Broker, topic: TopicFactory, codec: str | None) -> None:
    """Thousands of records with nulls and headers, from the start and from the middle of a batch."""
    name = await topic()
    await produce(broker.bootstrap, name, VALUES, headers=HEADERS, compression_type=codec)
    found = await assert_as_aiokafka(broker.bootstrap, name)
    assert len(found) == len(VALUES)
    await assert_as_aiokafka(broker.bootstrap, name, start=1_234)


async def test_log_append_time(broker: Broker, topic: TopicFactory) -> None:
    """The broker's clock, and the Batch says that it is."""
    name = await topic(config={"message.timestamp.type": "LogAppendTime"})
    await produce(broker.bootstrap, name, VALUES[:200], compression_type="lz4")
    found = await assert_as_aiokafka(broker.bootstrap, name)
    assert found.log_append_time
    assert min(found.records.column("timestamp").to_pylist()) > 1_000_000


@pytest.mark.parametrize("read_committed", [True, False])
async def test_transactions(broker: Broker, topic: TopicFactory, read_committed: bool) -> None:
    """Committed, aborted, interleaved and open ones, from every offset, for both kinds of readers."""
    name = await topic()
    async with contextlib.AsyncExitStack() as stack:
        a, b, plain = [
            await stack.enter_async_context(producing(broker.bootstrap, compression_type="lz4", **options))
            for options in ({"transactional_id": uuid.uuid4().hex}, {"transactional_id": uuid.uuid4().hex}, {})
        ]
        for outcomes in (("abort", "commit"), ("commit", "abort"), ("abort", "abort")):
            await a.begin_transaction()
            await b.begin_transaction()
            for producer in (a, b, plain, a, b):
                await producer.send_and_wait(name, b"x" * 50, partition=0)
            for producer, outcome in zip((a, b), outcomes, strict=True):
                await getattr(producer, f"{outcome}_transaction")()
        await a.begin_transaction()
        await a.send_and_wait(name, b"open", partition=0)
        end = await end_of(broker.bootstrap, name, read_committed=read_committed)
        for start in range(0, end, 1 if read_committed else 5):
            found = await assert_as_aiokafka(broker.bootstrap, name, start=start, read_committed=read_committed)
            assert found.absent > 0 or start > end - 4
        await a.commit_transaction()


async def test_a_compacted_topic(broker: Broker, topic: TopicFactory) -> None:
    """Gaps within and between batches are absent, and counted."""
    config = {
        "cleanup.policy": "compact",
        "segment.ms": "100",
        "min.cleanable.dirty.ratio": "0.0",
        "min.compaction.lag.ms": "0",
        "delete.retention.ms": "0",
    }
    name = await topic(config=config)
    deadline = time.monotonic() + SECONDS_MAX
    while True:
        async with producing(broker.bootstrap, compression_type="lz4") as producer:
            for at in range(300):
                await producer.send(name, b"v%d" % at, key=b"k%d" % (at % 7 if at % 10 else 100 + at), partition=0)
        found = await assert_as_aiokafka(broker.bootstrap, name)
        if found.absent:
            break
        assert time.monotonic() < deadline, "the broker compacts nothing"
        await asyncio.sleep(0.5)
    for start in range(0, found.end, max(1, found.end // 20)):
        await assert_as_aiokafka(broker.bootstrap, name, start=start)


# -- bounds, order and turns -------------------------------------------------------------------------------------


async def test_what_is_held_is_bounded(broker: Broker, topic: TopicFactory) -> None:
    """Partitions that nobody takes from are fetched up to the bound, and read on when somebody does."""
    name = await topic(partitions=2)
    values: list[bytes | None] = [b"%06d" % at + bytes(1_000) for at in range(20_000)]
    for partition in (0, 1):
        await produce(broker.bootstrap, name, values, partition=partition)
    bound = 4 * 1024 * 1024
    async with fetching(broker.bootstrap, name, held_bytes_max=bound) as fetcher:
        for partition in (0, 1):
            fetcher.seek(partition, 0)
        first = await drain(fetcher, 0, 0, 100, records_max=100)
        deadline = time.monotonic() + SECONDS_MAX
        while (before := fetcher.statistics).held_bytes < bound // 2:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.01)
        await asyncio.sleep(5 * POLL_SECONDS_MAX)  # in which more would come, if anything asked for it
        after = fetcher.statistics
        assert after.held_bytes <= bound
        assert after.response_bytes - before.response_bytes <= bound
        assert len(first) == 100
        for partition, start in ((0, 100), (1, 0)):
            whole = await drain(fetcher, partition, start, 20_000)
            assert whole.records.column("value").to_pylist() == values[start:]
        assert fetcher.statistics.held_bytes == 0


async def test_a_backlog_does_not_keep_others_waiting(broker: Broker, topic: TopicFactory) -> None:
    """While one partition has a backlog that is not taken, another's new records come at once, and a large one."""
    name = await topic(partitions=3, config={"max.message.bytes": str(4 * 1024 * 1024)})
    await produce(broker.bootstrap, name, [bytes(1_000)] * 20_000, partition=0)
    await produce(broker.bootstrap, name, [bytes(3_000_000)], partition=2, max_request_size=4 * 1024 * 1024)
    async with fetching(broker.bootstrap, name, held_bytes_max=2 * 1024 * 1024) as fetcher:
        for partition in range(3):
            fetcher.seek(partition, 0)
        assert len(await drain(fetcher, 2, 0, 1)) == 1
        async with producing(broker.bootstrap) as producer:
            waits = []
            for at in range(20):
                began = time.monotonic()
                await producer.send_and_wait(name, b"new", partition=1)
                await drain(fetcher, 1, at, at + 1)
                waits.append(time.monotonic() - began)
        assert sorted(waits)[10] < POLL_SECONDS_MAX
        assert len(await drain(fetcher, 0, 0, 20_000)) == 20_000


async def test_seeking_back_and_away(broker: Broker, topic: TopicFactory) -> None:
    """After a seek nothing of what was fetched before comes; a dropped partition is lost to who waits for it."""
    name = await topic()
    await produce(broker.bootstrap, name, VALUES)
    async with fetching(broker.bootstrap, name) as fetcher:
        for start in (0, 2_000, 5, 2_999, 0):
            fetcher.seek(0, start)
            assert (await drain(fetcher, 0, start, 3_000, records_max=700)).start == start
        waiting = asyncio.create_task(fetcher.take(0, records_max=1, seconds_max=SECONDS_MAX))
        await asyncio.sleep(0)
        fetcher.drop(0)
        with pytest.raises(ShardLost):
            await waiting
        with pytest.raises(ShardLost):
            await fetcher.take(0, records_max=1, seconds_max=0.1)


# -- what goes wrong ---------------------------------------------------------------------------------------------


def client_of(fetcher: Fetcher) -> AlteringClient:
    return cast(AlteringClient, fetcher._client)


def always(alter: Alter) -> Alter:
    alter.always = True  # type: ignore[attr-defined]
    return alter


def refuse(code: int) -> Alter:
    @always
    def alter(response: Any) -> None:
        for _, parts in response.topics:
            for part in parts:
                part[CODE], part[DATA] = code, b""

    return alter


async def test_errors_that_pass_are_waited_out(broker: Broker, topic: TopicFactory) -> None:
    """Lost connections, timeouts, leaders that moved and errors that nobody knows delay, and lose nothing."""
    name = await topic()
    await produce(broker.bootstrap, name, VALUES)
    async with fetching(broker.bootstrap, name, client=AlteringClient, held_bytes_max=1) as fetcher:
        client = client_of(fetcher)
        client.before = [errors.KafkaConnectionError("gone"), errors.RequestTimedOutError(), OSError("reset")]
        codes = [6, 3, 5, 9, 56, 74, 76, 78, -1, 1_000]
        client.alter = [refuse(code) for code in codes]
        fetcher.seek(0, 0)
        assert (await drain(fetcher, 0, 0, 3_000)).records.column("value").to_pylist() == VALUES
        assert not client.before
        assert not client.alter
        assert fetcher.statistics.failures == 3


async def test_flipped_bits_are_named(broker: Broker, topic: TopicFactory) -> None:
    """A damaged answer is an error with its place, every time it comes damaged; undamaged it is read on."""
    name = await topic()
    await produce(broker.bootstrap, name, VALUES[:100], compression_type="zstd")

    def flip(response: Any) -> None:
        part = response.topics[0][1][0]
        data = bytearray(part[DATA])
        data[-3] ^= 4
        part[DATA] = bytes(data)

    async with fetching(broker.bootstrap, name, client=AlteringClient) as fetcher:
        client_of(fetcher).alter = [flip, flip]
        fetcher.seek(0, 0)
        at = 0
        for _ in range(2):
            with pytest.raises(CorruptRecords, match="checksum") as caught:
                at = (await drain(fetcher, 0, at, 100)).end
            assert (caught.value.topic, caught.value.partition) == (name, 0)
            assert 0 <= caught.value.offset < 100
        assert (await drain(fetcher, 0, 0, 100)).records.column("value").to_pylist() == VALUES[:100]


async def test_errors_that_do_not_pass_are_raised(broker: Broker, topic: TopicFactory) -> None:
    """Out of range, not authorized, damaged on the broker's disk: each is raised, and can be tried again."""
    name = await topic()
    await produce(broker.bootstrap, name, VALUES[:10])
    expected: list[tuple[int, type[Exception]]] = [(1, OffsetOutOfRange), (29, ExternalError), (2, CorruptRecords)]
    async with fetching(broker.bootstrap, name, client=AlteringClient) as fetcher:
        client_of(fetcher).alter = [refuse(code) for code, _ in expected]
        fetcher.seek(0, 4)
        for _, error in expected:
            with pytest.raises(error):
                await drain(fetcher, 0, 4, 10)
        assert len(await drain(fetcher, 0, 4, 10)) == 6


async def test_throttling_is_respected(broker: Broker, topic: TopicFactory) -> None:
    """A broker that asks for patience is asked nothing for as long."""
    name = await topic()
    await produce(broker.bootstrap, name, VALUES[:10])

    @always
    def throttle(response: Any) -> None:
        response.throttle_time_ms = 700

    async with fetching(broker.bootstrap, name, client=AlteringClient) as fetcher:
        client = client_of(fetcher)
        client.alter = [throttle]
        fetcher.seek(0, 0)
        await drain(fetcher, 0, 0, 10)
        assert await fetcher.take(0, records_max=1, seconds_max=1.0) is None
        assert client.sent[1][0] - client.sent[0][0] >= 0.7
        assert fetcher.statistics.throttled_seconds == 0.7


async def test_a_replica_that_is_named_and_fails(broker: Broker, topic: TopicFactory) -> None:
    """A replica nearby is believed while it is known and answers; out of range there asks the leader again."""
    name = await topic()
    await produce(broker.bootstrap, name, VALUES[:10])

    def prefer(node: int) -> Alter:
        @always
        def alter(response: Any) -> None:
            for part in response.topics[0][1]:
                part[REPLICA], part[DATA] = node, b""

        return alter

    async with fetching(broker.bootstrap, name, client=AlteringClient, rack="here") as fetcher:
        client = client_of(fetcher)
        leader = client.cluster.leader_for_partition(TopicPartition(name, 0))
        client.alter = [prefer(leader + 70), prefer(leader), refuse(1)]
        fetcher.seek(0, 0)
        assert len(await drain(fetcher, 0, 0, 10)) == 10
        assert {node for _, node in client.sent} == {leader}  # the other is no broker
        assert not client.alter


async def test_out_of_range_on_both_sides(broker: Broker, topic: TopicFactory) -> None:
    """Beyond the end is an error with the position, and so it stays."""
    name = await topic()
    await produce(broker.bootstrap, name, VALUES[:10])
    async with fetching(broker.bootstrap, name) as fetcher:
        fetcher.seek(0, 77)
        for _ in range(2):
            with pytest.raises(OffsetOutOfRange) as caught:
                await drain(fetcher, 0, 77, 78)
            assert (caught.value.partition, caught.value.offset) == (0, 77)


async def test_a_broker_that_dies_and_comes_back(tmp_path: Path) -> None:
    """Reading goes on where it was, and what comes while it is away arrives afterwards."""
    async with Broker(tmp_path / "broker", port=0, brief=True) as broker:
        admin = AIOKafkaAdminClient(bootstrap_servers=broker.bootstrap)
        await admin.start()
        await admin.create_topics([NewTopic("t", 1, 1)])
        await admin.close()
        await produce(broker.bootstrap, "t", VALUES[:100])
        async with fetching(broker.bootstrap, "t") as fetcher:
            fetcher.seek(0, 0)
            await drain(fetcher, 0, 0, 100)
            await asyncio.to_thread(broker.kill)
            assert await fetcher.take(0, records_max=1, seconds_max=1.0) is None
            await asyncio.to_thread(broker.start)
            await produce(broker.bootstrap, "t", VALUES[100:200])
            again = await drain(fetcher, 0, 100, 200)
            assert again.records.column("value").to_pylist() == VALUES[100:200]
            assert fetcher.statistics.failures > 0


async def test_the_loop_is_not_blocked_while_much_is_decoded(broker: Broker, topic: TopicFactory) -> None:
    """Decoding happens elsewhere: the loop turns all the time. What it costs at most is measured by a benchmark."""
    name = await topic()
    await produce(broker.bootstrap, name, [bytes(1_000)] * 30_000, compression_type="gzip")
    turns: list[float] = []

    async def turn() -> None:
        while True:
            turns.append(time.monotonic())
            await asyncio.sleep(0)

    async with fetching(broker.bootstrap, name) as fetcher:
        fetcher.seek(0, 0)
        turning = asyncio.create_task(turn())
        await drain(fetcher, 0, 0, 30_000)
        turning.cancel()
    gaps = sorted(after - before for before, after in itertools.pairwise(turns))
    assert gaps[int(len(gaps) * 0.999)] < 0.05
