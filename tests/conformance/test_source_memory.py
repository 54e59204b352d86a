"""The source suite over the source in memory, and what only it can be told to do."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

import pytest

from connectors.memory import MemoryCluster, MemorySource, MemoryTopic, Transaction
from engine.clock import SystemClock
from engine.errors import ShardLost
from tests.conformance.source_suite import ALL, PARTITIONS, SourceSuite, World, drain, joined, numbered, read


class Ending:
    """An open transaction of the suite."""

    def __init__(self, transaction: Transaction) -> None:
        self._transaction = transaction

    async def commit(self) -> None:
        self._transaction.commit()

    async def abort(self) -> None:
        self._transaction.abort()


class MemoryWorld:
    topic = "clicks"
    poll_interval_seconds_max = 0.1
    session_seconds = 0.1

    def __init__(self) -> None:
        self.cluster = MemoryCluster()
        self.cluster.create(self.topic, PARTITIONS)
        self.sources: list[MemorySource] = []

    @property
    def log(self) -> MemoryTopic:
        return self.cluster.topics[self.topic]

    def source(self, *, group: str = "g", topic: str | None = None, reachable: bool = True) -> MemorySource:
        cluster = self.cluster if reachable else MemoryCluster(available=False)
        name = topic or self.topic
        group = group if topic is None else f"{group}-{topic}"
        source = MemorySource(cluster, topic=name, group_id=group, clock=SystemClock())
        self.sources.append(source)
        return source

    async def append(
        self, partition: int, values: Sequence[bytes | None], *, key: bytes | None = None, timestamp_ms: int = 1_000
    ) -> None:
        for value in values:
            self.log.partitions[partition].append(value, key=key, timestamp_ms=timestamp_ms)

    async def append_in_transaction(self, partition: int, values: Sequence[bytes], *, commit: bool) -> None:
        transaction = await self.begin(partition, values)
        await (transaction.commit() if commit else transaction.abort())

    async def begin(self, partition: int, values: Sequence[bytes]) -> Ending:
        transaction = self.log.begin()
        for value in values:
            transaction.append(self.log.partitions[partition], value)
        return Ending(transaction)

    async def truncate(self, partition: int, start: int) -> None:
        self.log.partitions[partition].truncate(start)

    async def recreate(self) -> None:
        self.cluster.delete(self.topic)
        self.cluster.create(self.topic, PARTITIONS)

    async def grow(self, partitions: int) -> None:
        self.cluster.grow(self.topic, partitions)


@pytest.fixture
async def memory() -> AsyncIterator[MemoryWorld]:
    world = MemoryWorld()
    yield world
    for source in world.sources:
        await source.close()


class TestMemorySource(SourceSuite):
    @pytest.fixture
    def world(self, memory: MemoryWorld) -> World:
        return memory


async def test_an_expired_member_reads_on_and_commits_nothing(memory: MemoryWorld) -> None:
    """A member whose session ended is not told, as a paused process is not; its commits are refused."""
    await memory.append(0, numbered(5))
    source, owner = await joined(memory)
    await source.seek(0, 0)
    await memory.sources[0].expire()
    other, second = await joined(memory)
    assert owner.owned == ALL == second.owned
    assert len(await drain(source, 0, 0, 5)) > 0
    with pytest.raises(ShardLost):
        await source.commit({0: 5})
    await other.commit({0: 2})
    assert await other.committed(0) == 2


async def test_compacted_offsets_are_absent(memory: MemoryWorld) -> None:
    """What compaction took is accounted for by the ranges."""
    await memory.append(0, numbered(6))
    memory.log.partitions[0].compact([1, 2, 5])
    source, _ = await joined(memory)
    assert [offset for offset, _ in await read(source, 0, 0, 6)] == [0, 3, 4]
    await source.seek(0, 0)
    assert sum(batch.absent for batch in await drain(source, 0, 0, 6)) == 3


async def test_a_lost_tail_is_out_of_range(memory: MemoryWorld) -> None:
    """The end can be lost too, as by an unclean election."""
    await memory.append(0, numbered(6))
    memory.log.partitions[0].truncate_end(2)
    source, _ = await joined(memory)
    assert await source.end_offsets([0]) == {0: 2}
