"""Several invocations of one shard at a time: who waits for whom, what may be committed, and what is held."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import numpy as np
import pytest

from engine.batch import Batch
from engine.errors import DataError, HandlerError
from engine.lanes import lane_of
from engine.protocols import Invocation, Result
from tests.clock import ManualClock, turns, until
from tests.unit.engine_world import EngineWorld, FunctionHandler, copy, policy, rows_of

SINK = {"commit_interval_max_seconds": 0.0}


@pytest.fixture
def world() -> EngineWorld:
    return EngineWorld()


def keys_of(count: int, lanes: int = 2) -> list[bytes]:
    """One key for each of ``lanes`` lanes, in the order of the lanes."""
    found: dict[int, bytes] = {}
    number = 0
    while len(found) < lanes:
        key = b"k%d" % number
        found.setdefault(lane_of(key, lanes), key)
        number += 1
    return [found[index % lanes] for index in range(count)]


def produce(world: EngineWorld, keys: list[bytes | None], size: int = 1) -> None:
    log = world.topic.partitions[0]
    for key in keys:
        log.append(b"%d" % log.end + b"." * (size - 1), key=key)


class Gate:
    """A handler that holds the lane of one key until it is let go."""

    def __init__(self, held: bytes, then: Callable[[Invocation], Result] = copy) -> None:
        self.held = held
        self.open = asyncio.Event()
        self.seen: list[list[int]] = []
        self.under_way = self.most = 0
        self._then = then

    async def __call__(self, invocation: Invocation) -> Result:
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        try:
            if invocation.batch.records.column("key")[0].as_py() == self.held:
                await self.open.wait()
            self.seen.append(invocation.batch.offsets.tolist())
            return self._then(invocation)
        finally:
            self.under_way -= 1


async def test_a_slow_lane_holds_up_no_other(world: EngineWorld) -> None:
    """The other lane's later records are handled; only what lies before the slow record is committed."""
    slow, fast = keys_of(2)
    produce(world, [fast, fast, slow, fast, fast, fast])
    gate = Gate(slow)
    async with world.shard(FunctionHandler(gate), lanes=2, batch_size=1, sink=SINK):
        await until(lambda: len(gate.seen) == 5)
        await turns()
        assert (world.position(), world.rows()) == (2, [0, 1])
        gate.open.set()
        await until(lambda: world.position() == 6)
    assert world.rows() == [0, 1, 2, 3, 4, 5]
    assert gate.most == 2


async def test_a_batch_across_the_prefix_is_split_by_record(world: EngineWorld) -> None:
    """Of one invocation's rows those before the slow record are committed, the others wait."""
    slow, fast = keys_of(2)
    produce(world, [fast, slow, fast])
    gate = Gate(slow)
    async with world.shard(FunctionHandler(gate), lanes=2, batch_size=10, sink=SINK):
        await until(lambda: gate.seen == [[0, 2]])
        await until(lambda: world.rows() == [0])
        assert world.position() == 1
        gate.open.set()
        await until(lambda: world.position() == 3)
    assert world.rows() == [0, 1, 2]


async def test_rows_of_a_whole_batch_are_not_split(world: EngineWorld) -> None:
    """An aggregate of an invocation is committed when every record before its last one is settled."""
    slow, fast = keys_of(2)
    produce(world, [fast, slow, fast])
    gate = Gate(slow, lambda invocation: Result(rows=[{"count": len(invocation.batch)}]))
    async with world.shard(FunctionHandler(gate), lanes=2, batch_size=10, sink=SINK):
        await until(lambda: gate.seen == [[0, 2]])
        await turns()
        assert world.position() == 0
        gate.open.set()
        await until(lambda: world.position() == 3)
    assert sorted(world.store.table(0).column("count").to_pylist()) == [1, 2]  # type: ignore[union-attr]


async def test_what_waits_behind_a_slow_lane_is_bounded(world: EngineWorld) -> None:
    """At lane_bytes_max the shard stops fetching, and goes on when the lane does."""
    slow, fast = keys_of(2)
    produce(world, [slow, *[fast] * 400], size=1_000)
    gate = Gate(slow)
    async with world.shard(
        FunctionHandler(gate), lanes=2, batch_size=5, lane_bytes_max=50_000, fetch_records_max=10, sink=SINK
    ) as (shard, _):
        await until(lambda: len(gate.seen) > 3)
        for _ in range(20):
            await turns()
        read = shard.statistics().read
        assert read is not None
        assert read < 200, "records were fetched without a bound"
        gate.open.set()
        await until(lambda: world.position() == 401)
    assert world.rows() == list(range(401))


async def test_a_lane_that_cannot_go_on_stops_the_shard(world: EngineWorld) -> None:
    """Without a destination: what lies before its record is committed, the other lanes finish what they do."""
    slow, fast = keys_of(2)
    produce(world, [fast, slow, fast, fast])

    def function(invocation: Invocation) -> Result:
        if 1 in invocation.batch.offsets:
            raise ValueError("poison")
        return copy(invocation)

    async with world.shard(
        FunctionHandler(function), lanes=2, batch_size=1, rules=policy(retries_max=0), sink=SINK
    ) as (_, task):
        with pytest.raises(HandlerError, match="ValueError: poison"):
            await task
    assert (world.position(), world.rows()) == (1, [0])


async def test_a_lane_that_stops_does_not_wait_for_one_that_is_tried_for_ever(world: EngineWorld) -> None:
    """The shard ends with its error, however long another lane would go on failing."""
    slow, fast = keys_of(2)
    log = world.topic.partitions[0]
    log.append(b"ok", key=slow)
    log.append(b"x" * 100, key=fast)

    def function(invocation: Invocation) -> Result:
        raise ValueError("for ever")

    rules = policy(record_bytes_max=10, backoff_seconds=1_000.0, backoff_seconds_max=1_000.0)
    async with world.shard(FunctionHandler(function), lanes=2, batch_size=1, rules=rules, sink=SINK) as (_, task):
        async with asyncio.timeout(10):
            with pytest.raises(DataError, match="more than record_bytes_max = 10"):
                await task
    assert world.position() == 0


async def test_filtered_records_are_counted_in_no_lane(world: EngineWorld) -> None:
    """Whatever lanes there are, each offset is handled, filtered or absent once."""

    class Odd:
        def select(self, batch: Batch) -> np.ndarray:
            return batch.offsets % 2 == 1

        def warm(self) -> None:
            return

    produce(world, [b"a", b"b", None, b"c", b"\xff"] * 20)
    world.topic.partitions[0].mark()
    async with world.shard(FunctionHandler(copy), lanes=4, choose=Odd(), target=101, batch_size=7, sink=SINK) as (
        shard,
        _,
    ):
        await until(lambda: shard.is_caught_up)
        counts = shard.statistics().counts
    assert world.rows() == list(range(1, 100, 2))
    assert (counts.handled, counts.filtered, counts.absent) == (50, 50, 1)


async def test_a_stop_finishes_what_is_under_way_and_starts_nothing(world: EngineWorld) -> None:
    """Drained like a shard without lanes: the batches at hand are finished and committed."""
    slow, fast = keys_of(2)
    produce(world, [slow, fast, slow, fast])
    gate = Gate(slow)
    async with world.shard(FunctionHandler(gate), lanes=2, batch_size=1, sink=SINK) as (shard, task):
        await until(lambda: gate.under_way == 1 and len(gate.seen) >= 1)
        shard.stop()
        await turns()
        gate.open.set()
        await task
    assert world.rows()[:1] == [0]
    assert 2 not in [offset for offsets in gate.seen for offset in offsets]


async def test_a_stop_during_a_lanes_pause_passes_none_of_its_records(world: EngineWorld) -> None:
    """What a lane was about to try again is left to the next owner, and so is all that waits behind it."""
    failing, fine = keys_of(2)
    produce(world, [failing, fine, failing, fine])
    tried: list[int] = []

    def function(invocation: Invocation) -> Result:
        tried.extend(invocation.batch.offsets.tolist())
        if 0 in invocation.batch.offsets:
            raise ValueError("for now")
        return copy(invocation)

    rules = policy(backoff_seconds=60, backoff_seconds_max=60)
    async with world.shard(FunctionHandler(function), lanes=2, batch_size=1, rules=rules, sink=SINK) as (
        shard,
        task,
    ):
        await until(lambda: {0, 1, 3} <= set(tried))
        await turns()
        shard.stop()
        await task
    assert (world.position(), world.rows()) == (0, [])
    assert 2 not in tried


async def test_lanes_wait_for_the_window_that_batches_have(world: EngineWorld) -> None:
    """Each lane gathers its own batch until the batching window closes."""
    clock = world.clock
    assert isinstance(clock, ManualClock)
    produce(world, keys_of(6))
    calls: list[int] = []

    def function(invocation: Invocation) -> Result:
        calls.append(len(invocation.batch))
        return Result(rows=rows_of(invocation.batch))

    async with world.shard(FunctionHandler(function), lanes=2, window_seconds=1.0):
        await turns()
        assert calls == []
        await clock.advance(1.1)
        await until(lambda: calls == [3, 3])


def test_a_keys_lane_is_the_same_everywhere() -> None:
    """The lane does not depend on the process; records without a key are in that of their partition key."""
    assert [lane_of(key, 10) for key in (b"a", b"b", b"c", b"")] == [7, 1, 5, 0]
    assert lane_of(None, 10) == lane_of(b"null", 10)
