"""What every source must do, whatever it reads: subclass `SourceSuite` and give it a ``world`` fixture.

The world is a topic that tests can do anything to, and sources that read it. A fresh one has a topic of
``PARTITIONS`` partitions without records. Not here: how fast a source is.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Protocol

import pytest

from engine.batch import Batch
from engine.errors import BrokerUnavailable, ShardLost, UserError
from engine.protocols import OffsetOutOfRange, Source

PARTITIONS = 3

#: How long any one thing may take that comes by itself.
SECONDS_MAX = 30.0

ALL = frozenset(range(PARTITIONS))


class OpenTransaction(Protocol):
    async def commit(self) -> None: ...

    async def abort(self) -> None: ...


class World(Protocol):
    """A topic, fresh for each test."""

    topic: str

    #: How long a busy member is left alone; 0 where no clock can make a member leave.
    poll_interval_seconds_max: float

    #: How long a silent member is counted on.
    session_seconds: float

    def source(self, *, group: str = "g", topic: str | None = None, reachable: bool = True) -> Source:
        """A source of the topic, closed at the end. One that is not ``reachable`` waits for a second at most."""

    async def append(
        self, partition: int, values: Sequence[bytes | None], *, key: bytes | None = None, timestamp_ms: int = 1_000
    ) -> None: ...

    async def append_in_transaction(self, partition: int, values: Sequence[bytes], *, commit: bool) -> None: ...

    async def begin(self, partition: int, values: Sequence[bytes]) -> OpenTransaction:
        """Records of a transaction that is left open."""

    async def truncate(self, partition: int, start: int) -> None:
        """Move the log start up."""

    async def recreate(self) -> None:
        """Delete the topic and make it anew."""

    async def grow(self, partitions: int) -> None: ...


class Owner:
    """A listener that keeps what it owns, and gives it back only while ``may_revoke`` is set."""

    def __init__(self, name: str = "owner", events: list[tuple[str, str, frozenset[int]]] | None = None) -> None:
        self.name = name
        self.owned: frozenset[int] = frozenset()
        self.assignments = 0
        self.events = [] if events is None else events
        self.may_revoke = asyncio.Event()
        self.may_revoke.set()
        self.while_revoking: Callable[[], object] | None = None
        self._changed = asyncio.Condition()

    async def assigned(self, partitions: frozenset[int]) -> None:
        self.events.append((self.name, "assigned", partitions))
        async with self._changed:
            self.owned |= partitions
            self.assignments += 1
            self._changed.notify_all()

    async def revoked(self, partitions: frozenset[int]) -> None:
        self.events.append((self.name, "revoking", partitions))
        async with self._changed:
            self._changed.notify_all()
        await self.may_revoke.wait()
        if self.while_revoking is not None:
            await self.while_revoking()  # type: ignore[misc]
        self.events.append((self.name, "revoked", partitions))
        async with self._changed:
            self.owned -= partitions
            self._changed.notify_all()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until a condition on this owner holds."""
        async with asyncio.timeout(SECONDS_MAX), self._changed:
            await self._changed.wait_for(condition)

    async def owns(self, partitions: frozenset[int]) -> None:
        await self.until(lambda: self.owned == partitions)


async def joined(world: World, group: str = "g") -> tuple[Source, Owner]:
    """An open source that is a group's only member and owns every partition."""
    source, owner = world.source(group=group), Owner()
    await source.open()
    await source.join(owner)
    await owner.owns(ALL)
    return source, owner


async def drain(source: Source, partition: int, start: int, end: int, *, records_max: int = 1_000) -> list[Batch]:
    """Every batch from ``start`` to ``end``, which are contiguous and none beyond."""
    batches: list[Batch] = []
    at = start
    async with asyncio.timeout(SECONDS_MAX):
        while at < end:
            batch = await source.fetch(partition, records_max=records_max, seconds_max=1.0)
            if batch is not None:
                assert batch.start == at, f"[{batch.start}, {batch.end}) does not follow {at}"
                assert batch.end > batch.start
                assert len(batch) <= records_max
                batches.append(batch)
                at = batch.end
    assert at == end
    return batches


async def read(
    source: Source, partition: int, start: int, end: int, **options: int
) -> list[tuple[int, bytes | None]]:
    """Offset and value of every record of the range; seeks first."""
    await source.seek(partition, start)
    batches = await drain(source, partition, start, end, **options)
    rows = [row for batch in batches for row in batch.records.to_pylist()]
    return [(row["offset"], row["value"]) for row in rows]


def numbered(count: int, first: int = 0) -> list[bytes]:
    return [b"%d" % at for at in range(first, first + count)]


class SourceSuite:
    """The tests."""

    async def test_open_says_what_the_topic_is(self, world: World) -> None:
        """Name, partitions, and ids that stay the same while nothing happens."""
        source = world.source()
        stream = await source.open()
        assert (stream.topic, stream.partitions) == (world.topic, PARTITIONS)
        assert stream.topic_id
        assert stream.cluster_id
        assert await source.describe() == stream

    async def test_records_come_in_order_without_gaps(self, world: World) -> None:
        """Batches of a partition are contiguous and hold its records in order, each once."""
        await world.append(0, numbered(500))
        await world.append(2, numbered(20, 1000))
        source, _ = await joined(world)
        assert await read(source, 0, 0, 500, records_max=7) == list(enumerate(numbered(500)))
        assert await read(source, 2, 0, 20) == list(enumerate(numbered(20, 1000)))

    async def test_records_come_whole(self, world: World) -> None:
        """Key, value and timestamp are the producer's; null is not empty."""
        await world.append(1, [None, b"", b"\xff\x00"], key=b"k\xfe", timestamp_ms=86_400_000)
        source, _ = await joined(world)
        await source.seek(1, 0)
        rows = [row for batch in await drain(source, 1, 0, 3) for row in batch.records.to_pylist()]
        assert [row["value"] for row in rows] == [None, b"", b"\xff\x00"]
        assert {row["key"] for row in rows} == {b"k\xfe"}
        assert [row["timestamp"] for row in rows] == [86_400_000] * 3

    async def test_a_record_larger_than_a_fetch(self, world: World) -> None:
        """A record that is larger than fetches are meant to be comes all the same, between its neighbours."""
        large = bytes(3 * 1024 * 1024)
        for value in (b"before", large, b"after"):
            await world.append(0, [value])
        source, _ = await joined(world)
        assert await read(source, 0, 0, 3) == [(0, b"before"), (1, large), (2, b"after")]

    async def test_seek_begins_anywhere_and_again(self, world: World) -> None:
        """A shard reads from where its owner sought, also when that is behind what it has read."""
        await world.append(0, numbered(30))
        source, _ = await joined(world)
        assert await read(source, 0, 12, 30) == list(enumerate(numbered(30)))[12:]
        assert await read(source, 0, 3, 30) == list(enumerate(numbered(30)))[3:]

    async def test_nothing_is_fetched_before_seek(self, world: World) -> None:
        """The group offset begins nothing: without a seek no record comes, and then those asked for."""
        await world.append(0, numbered(10))
        first, _ = await joined(world)
        await first.commit({0: 2})
        await first.close()
        source, _ = await joined(world)
        with pytest.raises(ShardLost):
            await source.fetch(0, records_max=10, seconds_max=0.3)
        assert await read(source, 0, 6, 10) == list(enumerate(numbered(10)))[6:]

    async def test_a_group_offset_that_the_log_lost_is_no_hindrance(self, world: World) -> None:
        """A group offset below the log start is not what a shard is told about after it sought elsewhere."""
        await world.append(0, numbered(10))
        first, _ = await joined(world)
        await first.commit({0: 1})
        await first.close()
        await world.truncate(0, 5)
        source, _ = await joined(world)
        assert await read(source, 0, 7, 10) == list(enumerate(numbered(10)))[7:]

    async def test_a_quiet_partition_gives_none_in_time(self, world: World) -> None:
        """A fetch ends with nothing when nothing comes, near the time that it was given."""
        source, _ = await joined(world)
        await source.seek(0, 0)
        began = time.monotonic()
        assert await source.fetch(0, records_max=10, seconds_max=0.3) is None
        assert time.monotonic() - began < 5.0

    async def test_a_waiting_fetch_gets_what_arrives(self, world: World) -> None:
        """What is produced while a fetch waits ends the wait; another partition's wait goes on beside it."""
        source, _ = await joined(world)
        for partition in (0, 1):
            await source.seek(partition, 0)
        async with asyncio.timeout(SECONDS_MAX), asyncio.TaskGroup() as tasks:
            idle = tasks.create_task(source.fetch(1, records_max=10, seconds_max=20.0))
            waiting = tasks.create_task(drain(source, 0, 0, 1))
            await world.append(0, [b"now"])
            (batch,) = await waiting
            assert batch.records.column("value").to_pylist() == [b"now"]
            assert not idle.done()
            idle.cancel()

    async def test_a_log_that_ends_in_a_commit_marker(self, world: World) -> None:
        """The marker is an offset without a record, and the position gets behind it."""
        await world.append_in_transaction(0, [b"a", b"b"], commit=True)
        source, _ = await joined(world)
        assert await source.end_offsets([0]) == {0: 3}
        assert await read(source, 0, 0, 3) == [(0, b"a"), (1, b"b")]

    async def test_a_log_that_ends_in_an_aborted_transaction(self, world: World) -> None:
        """Its records and its marker are absent; the position gets behind them, also from their midst."""
        await world.append(0, [b"kept"])
        await world.append_in_transaction(0, [b"x", b"y", b"z"], commit=False)
        source, _ = await joined(world)
        assert await source.end_offsets([0]) == {0: 5}
        assert await read(source, 0, 0, 5) == [(0, b"kept")]
        assert await read(source, 0, 2, 5) == []

    async def test_a_log_that_ends_in_an_open_transaction(self, world: World) -> None:
        """The end is the last stable offset; what lies beyond comes once the transaction is committed."""
        await world.append(0, [b"kept"])
        transaction = await world.begin(0, [b"later"])
        await world.append(0, [b"behind"])
        source, _ = await joined(world)
        assert await source.end_offsets([0]) == {0: 1}
        assert await read(source, 0, 0, 1) == [(0, b"kept")]
        assert await source.fetch(0, records_max=10, seconds_max=0.3) is None
        await transaction.commit()
        rows = [row for batch in await drain(source, 0, 1, 4) for row in batch.records.to_pylist()]
        assert [(row["offset"], row["value"]) for row in rows] == [(1, b"later"), (2, b"behind")]
        assert await source.end_offsets([0]) == {0: 4}

    async def test_below_the_log_start(self, world: World) -> None:
        """A position that retention passed is out of range, by name; the log's start is known and readable."""
        await world.append(0, numbered(10))
        await world.truncate(0, 6)
        source, _ = await joined(world)
        assert await source.beginning_offsets([0, 1]) == {0: 6, 1: 0}
        await source.seek(0, 3)
        with pytest.raises(OffsetOutOfRange) as caught:
            await drain(source, 0, 3, 10)
        assert (caught.value.partition, caught.value.offset) == (0, 3)
        assert await read(source, 0, 6, 10) == list(enumerate(numbered(10)))[6:]

    async def test_beyond_the_end(self, world: World) -> None:
        """A position that the log never had is out of range too, not a silent wait."""
        await world.append(0, numbered(3))
        source, _ = await joined(world)
        await source.seek(0, 50)
        with pytest.raises(OffsetOutOfRange) as caught:
            await drain(source, 0, 50, 51)
        assert (caught.value.partition, caught.value.offset) == (0, 50)

    async def test_a_topic_made_anew_has_another_id(self, world: World) -> None:
        """The same name stands for another topic, whose log begins at 0."""
        await world.append(0, numbered(3))
        source = world.source()
        before = await source.open()
        await world.recreate()
        after = await source.describe()
        assert (after.topic, after.cluster_id) == (before.topic, before.cluster_id)
        assert after.topic_id != before.topic_id
        assert await source.end_offsets([0]) == {0: 0}

    async def test_offsets_at_a_time(self, world: World) -> None:
        """The first record that is not older; the end where there is none."""
        for stamp in (1_000, 2_000, 3_000):
            await world.append(0, [b"x"], timestamp_ms=stamp)
        source = world.source()
        await source.open()
        for stamp, expected in [(0, 0), (1_000, 0), (1_001, 1), (3_000, 2), (3_001, 3)]:
            assert await source.offsets_at([0, 1], stamp) == {0: expected, 1: 0}

    async def test_members_share_the_partitions(self, world: World) -> None:
        """Members have shares that are disjoint and whole, with two of them, with three, and after one left."""
        sources = [world.source() for _ in range(3)]
        owners = [Owner(str(at)) for at in range(3)]
        for count, (source, owner) in enumerate(zip(sources, owners, strict=True), start=1):
            await source.open()
            await source.join(owner)
            await shared(owners[:count])
        await sources[0].leave()
        assert owners[0].owned == frozenset()
        await shared(owners[1:])

    async def test_a_revocation_is_awaited_before_the_partition_goes_elsewhere(self, world: World) -> None:
        """While one member is still giving its partitions up nobody else is given any."""
        events: list[tuple[str, str, frozenset[int]]] = []
        first, second = Owner("first", events), Owner("second", events)
        one, two = world.source(), world.source()
        await one.open()
        await one.join(first)
        await first.owns(ALL)
        first.may_revoke.clear()
        await two.open()
        await two.join(second)
        await first.until(lambda: ("first", "revoking", ALL) in events)
        assert second.owned == frozenset()
        assert first.owned == ALL
        first.may_revoke.set()
        await shared([first, second])
        given = next(at for at, event in enumerate(events) if event[0] == "second" and event[2])
        assert events.index(("first", "revoked", ALL)) < given

    @pytest.mark.slow
    async def test_a_long_revocation_costs_no_membership(self, world: World) -> None:
        """A member that takes longer than its session to give up is waited for, and gets its share afterwards."""
        one, first = await joined(world)
        first.may_revoke.clear()
        two, second = world.source(), Owner("second")
        await two.open()
        await two.join(second)
        await first.until(lambda: first.events[-1][1] == "revoking")
        await asyncio.sleep(world.session_seconds * 1.5)  # the passing of time is what is tested
        assert second.owned == frozenset()
        await one.commit({0: 0})
        first.may_revoke.set()
        await shared([first, second])
        assert [what for _, what, which in first.events if which] == ["assigned", "revoking", "revoked", "assigned"]

    async def test_leaving_does_not_wait_for_another_members_drain(self, world: World) -> None:
        """A member that owns nothing yet can leave while another one is still giving up."""
        _, first = await joined(world)
        first.may_revoke.clear()
        two, second = world.source(), Owner("second")
        await two.open()
        await two.join(second)
        await first.until(lambda: first.events[-1][1] == "revoking")
        try:
            async with asyncio.timeout(10.0):
                await two.leave()
        finally:
            first.may_revoke.set()
        assert second.owned == frozenset()
        await first.until(lambda: first.assignments == 2)
        await first.owns(ALL)

    async def test_a_revoked_member_may_commit_until_it_has_given_up(self, world: World) -> None:
        """Group offsets can be committed while partitions are being given up, and not for them afterwards."""
        await world.append(0, numbered(10))
        one, first = await joined(world)
        committed: list[bool] = []

        async def commit() -> None:
            if not committed:
                await one.commit({0: 4, 2: 0})
                committed.append(True)

        first.while_revoking = commit
        two, second = world.source(), Owner("second")
        await two.open()
        await two.join(second)
        await shared([first, second])
        assert committed == [True]
        lost = min(second.owned)
        with pytest.raises(ShardLost):
            await one.commit({lost: 1})
        assert await two.committed(2) == 0
        kept = min(first.owned)
        await one.commit({kept: 5})
        assert await one.committed(kept) == 5

    async def test_a_revoked_partition_is_not_read(self, world: World) -> None:
        """Seeking or fetching a partition that went to another member says that it is lost."""
        await world.append(0, numbered(10))
        one, first = await joined(world)
        for partition in ALL:
            await one.seek(partition, 0)
        two, second = world.source(), Owner("second")
        await two.open()
        await two.join(second)
        await shared([first, second])
        lost = min(second.owned)
        with pytest.raises(ShardLost):
            await one.seek(lost, 0)
        with pytest.raises(ShardLost):
            await one.fetch(lost, records_max=1, seconds_max=0.2)

    async def test_leaving_gives_everything_up_first(self, world: World) -> None:
        """Leave awaits the revocation; afterwards nothing can be fetched or committed. Leaving again is nothing."""
        source, owner = await joined(world)
        await source.seek(0, 0)
        await source.leave()
        assert owner.owned == frozenset()
        with pytest.raises(ShardLost):
            await source.fetch(0, records_max=1, seconds_max=0.2)
        await source.leave()
        await source.close()

    async def test_group_offsets_are_kept_for_the_next_member(self, world: World) -> None:
        """What one member committed another finds; a partition without a commit has none."""
        await world.append(1, numbered(9))
        first, _ = await joined(world)
        assert await first.committed(1) is None
        await first.commit({1: 4})
        await first.commit({1: 9, 2: 0})
        assert await first.committed(1) == 9
        await first.close()
        second, _ = await joined(world)
        assert [await second.committed(partition) for partition in range(PARTITIONS)] == [None, 9, 0]

    @pytest.mark.slow
    async def test_busy_and_blocked_members_stay(self, world: World) -> None:
        """A member that fetches nothing, or waits in a fetch, for twice the poll interval keeps what it owns."""
        await world.append(0, numbered(3))
        source, owner = await joined(world)
        wait = 2 * world.poll_interval_seconds_max
        await asyncio.sleep(wait)  # every shard is busy: the passing of time is what is tested
        assert (owner.owned, owner.assignments) == (ALL, 1)
        await source.commit({0: 1})
        await source.seek(1, 0)
        assert await source.fetch(1, records_max=1, seconds_max=wait) is None
        assert (owner.owned, owner.assignments) == (ALL, 1)
        assert await read(source, 0, 0, 3) == list(enumerate(numbered(3)))
        await source.commit({0: 3})

    async def test_an_unknown_topic_is_named_with_its_nearest(self, world: World) -> None:
        """A mistyped topic is the user's, and the message says what it could have been."""
        mistyped = world.topic[:-1] + ("x" if world.topic[-1] != "x" else "y")
        with pytest.raises(UserError, match=mistyped) as caught:
            await world.source(topic=mistyped).open()
        assert world.topic in str(caught.value)

    async def test_no_broker_is_said_in_time(self, world: World) -> None:
        """Without a broker, open gives up within its limit, as something that may pass."""
        began = time.monotonic()
        with pytest.raises(BrokerUnavailable):
            await world.source(reachable=False).open()
        assert time.monotonic() - began < 5.0

    async def test_growth_is_seen_while_running(self, world: World) -> None:
        """New partitions are given to a member that has been there, and are read from their start."""
        source, owner = await joined(world)
        await world.grow(PARTITIONS + 2)
        await owner.owns(frozenset(range(PARTITIONS + 2)))
        assert (await source.describe()).partitions == PARTITIONS + 2
        await world.append(PARTITIONS + 1, numbered(4))
        assert await source.beginning_offsets([PARTITIONS + 1]) == {PARTITIONS + 1: 0}
        assert await read(source, PARTITIONS + 1, 0, 4) == list(enumerate(numbered(4)))


async def shared(owners: Sequence[Owner]) -> None:
    """Wait until the owners have disjoint shares of all partitions, none of them idle that need not be."""
    async with asyncio.timeout(SECONDS_MAX):
        while True:
            shares = [owner.owned for owner in owners]
            whole = frozenset().union(*shares) == ALL and sum(map(len, shares)) == PARTITIONS
            if whole and max(map(len, shares)) - min(map(len, shares)) <= 1:
                return
            await asyncio.sleep(0.01)
