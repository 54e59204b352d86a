"""A pipeline without a sink: the group offset is its checkpoint, and failed records come before the commit."""

from __future__ import annotations

import asyncio

import pyarrow as pa
import pytest

from connectors.memory import MemoryCluster, MemoryDestination, MemorySource
from engine.checkpoint import CheckpointSink
from engine.errors import DestinationUnavailable, HandlerError, ShardLost
from engine.protocols import Counts, FailedRecord, Outcome
from tests.clock import ManualClock
from tests.unit.engine_world import TOPIC


class Member:
    """A group member that owns the only partition, and the sink over its offsets."""

    def __init__(self, cluster: MemoryCluster) -> None:
        self.clock = ManualClock()
        self.source = MemorySource(cluster, topic=TOPIC, group_id="g", clock=self.clock)
        self.destination = MemoryDestination()
        self.sink = CheckpointSink(self.source, self.destination, self.clock, commit_interval_max_seconds=5.0)
        self.owns = asyncio.Event()

    async def assigned(self, partitions: frozenset[int]) -> None:
        if partitions:
            self.owns.set()

    async def revoked(self, partitions: frozenset[int]) -> None:
        self.owns.clear()

    async def join(self) -> Member:
        await self.sink.open(await self.source.open())
        await self.source.join(self)
        await asyncio.wait_for(self.owns.wait(), 10)
        return self


@pytest.fixture
def cluster() -> MemoryCluster:
    cluster = MemoryCluster()
    cluster.create(TOPIC)
    return cluster


def failed(offset: int) -> Outcome:
    record = FailedRecord(0, offset, 0, None, b"v", (), "bad", "E", 1)
    return Outcome(offset, offset + 1, None, Counts(failed=1), [record])


async def test_the_group_offset_is_the_position(cluster: MemoryCluster) -> None:
    """What is committed is found by the next member; before the first commit there is no position."""
    member = await Member(cluster).join()
    writer = await member.sink.acquire(0)
    assert (writer.position, writer.due_at()) == (None, None)
    await writer.write(Outcome(3, 3, None, Counts()))
    assert await writer.commit() == 3
    await writer.write(Outcome(3, 8, None, Counts(handled=5)))
    assert writer.due_at() == member.clock.monotonic() + 5.0
    assert await member.sink.position(0) == 3
    assert await writer.commit() == 8
    await member.source.close()
    other = await Member(cluster).join()
    assert (await other.sink.acquire(0)).position == await other.sink.position(0) == 8
    await other.source.close()


async def test_failed_records_are_delivered_before_the_commit_that_passes_them(cluster: MemoryCluster) -> None:
    """A destination that refuses holds the commit back; nothing is passed unreported."""
    member = await Member(cluster).join()
    writer = await member.sink.acquire(0)
    await writer.write(failed(0))
    assert writer.pending_bytes > 0
    member.destination.refusing = True
    with pytest.raises(DestinationUnavailable):
        await writer.commit()
    assert await member.sink.position(0) is None
    member.destination.refusing = False
    assert await writer.commit() == 1
    assert [record.offset for record in member.destination.records] == [0]
    assert writer.pending_bytes == 0
    await member.source.close()


async def test_rows_have_nowhere_to_go(cluster: MemoryCluster) -> None:
    """A handler that returns rows to a pipeline without a sink is told so, instead of losing them."""
    member = await Member(cluster).join()
    writer = await member.sink.acquire(0)
    with pytest.raises(HandlerError, match="no sink"):
        await writer.write(Outcome(0, 1, pa.table({"a": [1]}), Counts(handled=1)))
    assert writer.due_at() is None
    await member.source.close()


async def test_a_member_that_lost_its_session_commits_nothing(cluster: MemoryCluster) -> None:
    """The group's fencing is the sink's."""
    member = await Member(cluster).join()
    writer = await member.sink.acquire(0)
    await writer.write(Outcome(0, 5, None, Counts(handled=5)))
    await member.source.expire()
    with pytest.raises(ShardLost):
        await writer.commit()
    assert await member.sink.position(0) is None
    await member.source.close()


async def test_a_group_offset_holds_no_state(cluster: MemoryCluster) -> None:
    """There never is one, and an outcome that has one is a mistake of whoever built the pipeline."""
    member = await Member(cluster).join()
    writer = await member.sink.acquire(0)
    for state in (b"{}", b""):
        with pytest.raises(AssertionError, match="no room"):
            await writer.write(Outcome(0, 1, None, Counts(handled=1), state=state))
    await writer.write(Outcome(0, 1, None, Counts(handled=1)))
    assert await writer.commit() == 1
    assert writer.state == b""
    await member.source.close()
