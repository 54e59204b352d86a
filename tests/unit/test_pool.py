"""The shard pool: owners come and go with assignments, drains have an end, and every record is written once."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import threading
import time
from collections.abc import AsyncIterator, Mapping

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import engine.delivery
import engine.pool
from connectors.memory import MemorySource
from engine.budget import ByteBudget
from engine.clock import SystemClock
from engine.deadline import Deadline
from engine.errors import (
    BrokerUnavailable,
    DataError,
    ExternalError,
    ShardLost,
    SinkUnavailable,
)
from engine.pool import GroupOffsets, ShardPool
from engine.protocols import Counts, Fault, Invocation, Result
from tests.clock import ManualClock
from tests.unit.engine_world import TOPIC, EngineWorld, FunctionHandler, copy, failing, policy, rows_of

SECONDS_MAX = 20.0


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pools look around and take shards up again soon."""
    monkeypatch.setattr(engine.pool, "LOOK_SECONDS", 0.005)
    monkeypatch.setattr(engine.pool, "LOOK_ELSEWHERE_SECONDS", 0.005)
    monkeypatch.setattr(engine.pool, "RESTART_SECONDS", 0.001)
    monkeypatch.setattr(engine.delivery, "RETRY_SECONDS", 0.01)


def live(partitions: int = 1) -> EngineWorld:
    return EngineWorld(partitions, SystemClock())


async def until(condition: object) -> None:
    """Poll until a condition holds; pools look at real time."""
    assert callable(condition)
    deadline = time.monotonic() + SECONDS_MAX
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        await asyncio.sleep(0.002)


@contextlib.asynccontextmanager
async def running(pool: ShardPool) -> AsyncIterator[tuple[asyncio.Event, asyncio.Task[None]]]:
    """A pool that runs; stopped, and awaited, at the end."""
    stopping = asyncio.Event()
    task = asyncio.create_task(pool.run(stopping))
    try:
        yield stopping, task
    finally:
        stopping.set()
        await asyncio.wait_for(asyncio.gather(task, return_exceptions=True), SECONDS_MAX)


async def finish(pool: ShardPool) -> None:
    async with asyncio.timeout(SECONDS_MAX):
        await pool.run(asyncio.Event())


async def test_a_run_to_the_end_ends_when_everything_is_committed() -> None:
    """Caught up means that the ends at the start are committed in the sink, also of empty partitions."""
    world = live(3)
    world.append(0, 30)
    world.append(2, 7)
    await finish(await world.pool(FunctionHandler(copy), until_caught_up=True))
    assert [world.rows(partition) for partition in range(3)] == [list(range(30)), [], list(range(7))]
    assert world.position(1) == 0


async def test_two_members_catch_up_together() -> None:
    """Each ends once all shards are there, its own and those of the other."""
    world = live(3)
    for partition in range(3):
        world.append(partition, 50)
    pools = [await world.pool(FunctionHandler(copy), until_caught_up=True) for _ in range(2)]
    await asyncio.gather(*(finish(pool) for pool in pools))
    assert [world.rows(partition) for partition in range(3)] == [list(range(50))] * 3


async def test_a_member_without_shards_catches_up_too() -> None:
    """With more members than partitions the idle one waits for the sink to be there."""
    world = live(1)
    world.append(0, 20)
    pools = [await world.pool(FunctionHandler(copy), until_caught_up=True) for _ in range(3)]
    await asyncio.gather(*(finish(pool) for pool in pools))
    assert world.rows() == list(range(20))


async def test_a_failed_shard_leaves_the_others_going() -> None:
    """One partition stops before its bad record; the others are read to their ends; the error is kept."""
    world = live(3)
    for partition in range(3):
        world.append(partition, 10)

    def function(invocation: Invocation) -> Result:
        if invocation.batch.partition == 1:
            return failing(4)(invocation)  # type: ignore[return-value]
        return copy(invocation)

    pool = await world.pool(FunctionHandler(function), until_caught_up=True)
    await finish(pool)
    assert [len(world.rows(partition)) for partition in range(3)] == [10, 4, 10]
    assert list(pool.errors) == [1]
    assert isinstance(pool.errors[1], DataError)


async def test_a_pool_ends_when_no_shard_can_go_on() -> None:
    """Without anything left to do there is no point in staying in the group."""
    world = live(2)
    for partition in range(2):
        world.append(partition, 3)
    pool = await world.pool(FunctionHandler(failing(0)))
    await finish(pool)
    assert sorted(pool.errors) == [0, 1]


async def test_a_failed_shard_that_went_elsewhere_does_not_end_the_pool() -> None:
    """What failed and was handed on says nothing about what is owned now."""
    world = live(2)
    world.append(1, 3)
    pool = await world.pool(FunctionHandler(failing(0)))
    async with running(pool) as (_, task):
        await until(lambda: 1 in pool.errors)
        other = await world.pool(FunctionHandler(copy))
        async with running(other):
            await until(lambda: [shard.partition for shard in other.statistics()] == [1])
            await until(lambda: [shard.partition for shard in pool.statistics()] == [0])
            world.append(0, 5)
            await until(lambda: bool(pool.statistics()) and pool.statistics()[0].records == 5)
            assert not task.done()
        world.append(0, 1)
        await until(lambda: len(world.rows(0)) == 4 or 0 in pool.errors)


@pytest.mark.parametrize("kind", ["coroutine", "thread"])
async def test_a_handler_that_never_returns_does_not_stop_a_drain(kind: str) -> None:
    """Within its deadline the drain gives the batch up, commits what came before, and is done."""
    world = live()
    world.append(0, 6)
    let_go = threading.Event()

    async def function(invocation: Invocation) -> Result:
        if invocation.batch.start >= 3:
            await (asyncio.to_thread(let_go.wait) if kind == "thread" else asyncio.Event().wait())
        return copy(invocation)

    options = {"batch_size": 3, "sink": {"commit_interval_max_seconds": 3_000.0}, "drain_seconds_max": 0.4}
    pool = await world.pool(FunctionHandler(function), **options)
    async with running(pool) as (stopping, task):
        await until(lambda: bool(pool.statistics()) and pool.statistics()[0].batches == 1)
        began = time.monotonic()
        stopping.set()
        await asyncio.wait_for(task, SECONDS_MAX)
        assert time.monotonic() - began < 2.0
    let_go.set()
    assert world.rows() == [0, 1, 2]


async def test_a_drain_lets_the_batch_at_hand_finish() -> None:
    """What a handler returns within the deadline is written and committed."""
    world = live()
    world.append(0, 6)
    go_on = asyncio.Event()
    called = asyncio.Event()

    async def function(invocation: Invocation) -> Result:
        called.set()
        await go_on.wait()
        return copy(invocation)

    pool = await world.pool(FunctionHandler(function), drain_seconds_max=10.0)
    async with running(pool) as (stopping, task):
        await asyncio.wait_for(called.wait(), SECONDS_MAX)
        shard, _ = pool._owned[0]
        stopping.set()
        await until(lambda: shard.is_stopping)
        go_on.set()
        await asyncio.wait_for(task, SECONDS_MAX)
    assert world.rows() == list(range(6))


async def test_a_commit_that_never_returns_does_not_stop_a_drain() -> None:
    """A sink that hangs is left at the deadline; what it did not commit is read again."""
    world = live()
    world.append(0, 3)
    hanging = asyncio.Event()
    commits = 0

    async def step(name: str) -> None:
        nonlocal commits
        commits += name == "commit"
        if commits > 1:
            hanging.set()
            await asyncio.Event().wait()

    pool = await world.pool(FunctionHandler(copy), drain_seconds_max=0.3, sink={"step": step})
    async with running(pool) as (stopping, task):
        await until(lambda: bool(pool.statistics()) and pool.statistics()[0].batches == 1)
        stopping.set()
        await asyncio.wait_for(task, SECONDS_MAX)
        assert hanging.is_set()
    assert world.rows() == []
    await finish(await world.pool(FunctionHandler(copy), until_caught_up=True))
    assert world.rows() == [0, 1, 2]


async def test_what_the_source_says_at_the_start_comes_out_as_it_is() -> None:
    """A group that cannot be joined is the broker's error, not one of a task group."""
    world = live()
    pool = await world.pool(FunctionHandler(copy))
    world.cluster.available = False
    with pytest.raises(BrokerUnavailable):
        await finish(pool)


async def test_what_the_sink_says_about_other_shards_comes_out_as_it_is() -> None:
    """A sink that cannot be asked for a position ends the pool with what it said."""
    world = live(2)
    world.append(1, 3)
    holder = await world.pool(FunctionHandler(lambda _invocation: asyncio.Event().wait()), drain_seconds_max=0.1)  # type: ignore[arg-type,return-value]
    async with running(holder):
        await until(lambda: len(holder.statistics()) == 2)
        tools = await world.tools(FunctionHandler(copy))

        async def position(partition: int) -> int | None:
            raise SinkUnavailable("gone")

        tools.sink.position = position  # type: ignore[method-assign]
        pool = ShardPool(tools, drain_seconds_max=1.0, targets={0: 0, 1: 3})
        with pytest.raises(SinkUnavailable, match="gone"):
            await finish(pool)


@pytest.mark.parametrize("fault", ["raises", "hangs"])
async def test_ends_that_are_not_known_end_nothing(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are only shown: neither a fault of the source's nor an answer that never comes holds up a record."""
    monkeypatch.setattr(engine.pool, "ENDS_SECONDS", 0.005)
    monkeypatch.setattr(engine.pool, "ENDS_SECONDS_MAX", 0.01)
    world = live()
    world.append(0, 20)
    pool = await world.pool(FunctionHandler(copy))
    asked = 0

    async def end_offsets(_partitions: object) -> dict[int, int]:
        nonlocal asked
        asked += 1
        if fault == "hangs":
            await asyncio.Event().wait()
        raise RuntimeError("a bug")

    monkeypatch.setattr(MemorySource, "end_offsets", lambda _self, partitions: end_offsets(partitions))
    async with running(pool) as (_, task):
        await until(lambda: asked > 3 and world.position() == 20)
        assert not task.done()


async def test_a_lost_shard_is_taken_up_again() -> None:
    """An owner that lost its shard asks for the position anew while the group still gives it the partition."""
    world = live()
    world.append(0, 5)
    lost = False

    async def step(name: str) -> None:
        nonlocal lost
        if name == "commit" and not lost and world.position() is not None:
            lost = True
            raise ShardLost("somebody else")

    pool = await world.pool(FunctionHandler(copy), until_caught_up=True, sink={"step": step})
    await finish(pool)
    assert lost
    assert world.rows() == list(range(5))
    assert pool.errors == {}


async def test_a_stop_does_not_wait_for_a_shard_that_is_to_be_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pause before a shard is taken up again ends with the pool."""
    monkeypatch.setattr(engine.pool, "RESTART_SECONDS", 1_000.0)
    world = live()
    attempts = 0

    async def step(name: str) -> None:
        nonlocal attempts
        if name == "takeover":
            attempts += 1
            raise BrokerUnavailable("for a while")

    pool = await world.pool(FunctionHandler(copy), drain_seconds_max=30.0, sink={"step": step})
    async with running(pool) as (stopping, task):
        await until(lambda: attempts > 0)
        await asyncio.sleep(0.01)  # from the error to the pause
        began = time.monotonic()
        stopping.set()
        await asyncio.wait_for(task, SECONDS_MAX)
        assert time.monotonic() - began < 5.0


async def test_a_destination_that_stays_away_ends_a_run_to_the_end() -> None:
    """The wait for deliveries has its bound, and is not begun anew by taking the shard up again."""
    world = live()
    world.append(0, 3)
    world.destination.refusing = True
    options = {"destination": world.destination, "outage_seconds_max": 0.0}
    pool = await world.pool(FunctionHandler(failing(1)), until_caught_up=True, **options)
    await finish(pool)
    assert isinstance(pool.errors[0], ExternalError)
    assert world.position() == 3


async def test_an_outage_ends_a_run_to_the_end() -> None:
    """An error that may pass is waited for only so long where the run has an end."""
    world = live()
    world.append(0, 3)
    pool = await world.pool(FunctionHandler(copy), until_caught_up=True, outage_seconds_max=0.0)
    world.store.refusal = BrokerUnavailable("away")
    await finish(pool)
    assert isinstance(pool.errors[0], BrokerUnavailable)


async def test_an_outage_is_waited_for_in_a_run_without_an_end() -> None:
    """The shard is taken up again until it gets somewhere."""
    world = live()
    world.append(0, 3)
    pool = await world.pool(FunctionHandler(copy), outage_seconds_max=0.0)
    world.store.refusal = BrokerUnavailable("away")
    async with running(pool):
        await asyncio.sleep(0.05)
        assert pool.errors == {}
        world.store.refusal = None
        await until(lambda: world.rows() == [0, 1, 2])


async def test_new_partitions_are_taken_up_from_their_start() -> None:
    """A topic that grows while it is read loses nothing, wherever the pipeline started."""
    world = live(1)
    world.append(0, 5)
    pool = await world.pool(FunctionHandler(copy), starting_position="LATEST")
    async with running(pool):
        await until(lambda: world.position(0) == 5)
        world.cluster.grow(TOPIC, 2)
        world.append(1, 4)
        await until(lambda: world.rows(1) == [0, 1, 2, 3])
    assert world.rows(0) == []


async def test_group_offsets_follow_the_sink() -> None:
    """After a drain the group's offsets are the sink's positions."""
    world = live(2)
    for partition in range(2):
        world.append(partition, 10 + partition)
    await finish(await world.pool(FunctionHandler(copy), until_caught_up=True))
    group = world.cluster.groups["g"]
    assert [group.committed(partition) for partition in range(2)] == [10, 11]


async def test_group_offsets_that_fail_are_committed_later(caplog: pytest.LogCaptureFixture) -> None:
    """A failed group commit is only a warning, and a shard that stands still is not left out of the next."""
    calls: list[Mapping[int, int]] = []

    class Source:
        async def commit(self, positions: Mapping[int, int]) -> None:
            calls.append(dict(positions))
            if len(calls) == 1:
                raise BrokerUnavailable("away")

    clock = ManualClock()
    group = GroupOffsets("p", Source(), clock)  # type: ignore[arg-type]
    group.moved(0, 5)
    group.moved(1, 6)
    await group.flush(Deadline(clock, 5.0))
    assert "away" in caplog.text
    group.moved(1, 8)
    group.forget([0])
    group.moved(2, 1)
    await group.flush(Deadline(clock, 5.0))
    await group.flush(Deadline(clock, 5.0))
    assert calls == [{0: 5, 1: 6}, {1: 8, 2: 1}]


@pytest.mark.parametrize("bytes_max", [1, 2_000, 50_000])
async def test_a_tiny_budget_makes_small_commits_and_never_a_deadlock(bytes_max: int) -> None:
    """Many shards over one small bound all get on: what is held is handled and committed early."""
    world = live(16)
    for partition in range(16):
        world.append(partition, 60, size=100)
    budget = ByteBudget(bytes_max)
    options = {
        "budget": budget,
        "batch_size": 1_000,
        "window_seconds": 1_000.0,
        "fetch_records_max": 20,
        "sink": {"commit_interval_max_seconds": 3_000.0},
    }
    pool = await world.pool(FunctionHandler(copy), **options)
    async with running(pool):
        ends = [list(range(60))] * 16
        if bytes_max < 50_000:  # else the last records rightly wait for their window
            await until(lambda: all(len(world.rows(partition)) >= 40 for partition in range(16)))
        else:
            await until(lambda: sum(len(world.rows(partition)) for partition in range(16)) >= 400)
    assert budget.total == 0
    assert all(rows == ends[0][: len(rows)] for rows in map(world.rows, range(16)))


async def test_a_shard_bound_of_its_own_forces_commits() -> None:
    """A shard that holds its share handles and commits before its window and interval."""
    world = live()
    world.append(0, 40, size=100)
    options = {
        "batch_size": 1_000,
        "window_seconds": 1_000.0,
        "fetch_records_max": 5,
        "shard_bytes_max": 1_000,
        "sink": {"commit_interval_max_seconds": 3_000.0},
    }
    async with running(await world.pool(FunctionHandler(copy), **options)):
        await until(lambda: len(world.rows()) >= 35)


class Chaos:
    """Members of one group over one store, with handlers that fail, sinks that die, and sessions that end."""

    def __init__(self, seed: int, partitions: int) -> None:
        self.random = random.Random(seed)
        self.world = live(partitions)
        self.calm = False
        self._bad = {(partition, offset) for partition in range(partitions) for offset in range(3, 200, 11)}
        self._members: list[tuple[asyncio.Event, asyncio.Task[None], list[bool], MemorySource]] = []

    def append(self) -> None:
        """Records, gaps, and a transaction that is committed or aborted."""
        for log in self.world.topic.partitions:
            for _ in range(self.random.randrange(8)):
                log.append(b"x" * self.random.randrange(40))
            if self.random.random() < 0.5:
                transaction = self.world.topic.begin()
                for _ in range(self.random.randrange(4)):
                    transaction.append(log, b"t")
                transaction.commit() if self.random.random() < 0.5 else transaction.abort()

    async def handle(self, invocation: Invocation) -> Result:
        for _ in range(self.random.randrange(4)):
            await asyncio.sleep(0)
        if not self.calm and self.random.random() < 0.2:
            raise RuntimeError("chaos")
        batch = invocation.batch
        offsets = batch.records.column("offset").to_pylist()
        bad = [offset for offset in offsets if (batch.partition, offset) in self._bad]
        return Result(rows=rows_of(batch, bad), faults=[Fault(offset, "bad") for offset in bad])

    async def join(self) -> None:
        dead = [False]

        async def step(name: str) -> None:
            for _ in range(self.random.randrange(3)):
                await asyncio.sleep(0)
            if dead[0]:
                raise ShardLost("this member is dead")

        tools = await self.world.tools(
            FunctionHandler(self.handle),
            rules=policy(reports=True, backoff_seconds=0.0001),
            destination=self.world.destination,
            batch_size=self.random.choice([1, 3, 50]),
            window_seconds=self.random.choice([0.0, 0.002]),
            fetch_records_max=self.random.choice([2, 7, 100]),
            sink={"step": step, "commit_interval_max_seconds": self.random.choice([0.0, 0.002])},
        )
        stopping = asyncio.Event()
        pool = ShardPool(tools, drain_seconds_max=5.0)
        assert isinstance(tools.source, MemorySource)
        self._members.append((stopping, asyncio.create_task(pool.run(stopping)), dead, tools.source))

    async def leave(self, *, die: bool) -> None:
        """One member drains, or dies at whatever it is doing: nothing it does from then on counts."""
        if not self._members:
            return
        stopping, task, dead, source = self._members.pop(self.random.randrange(len(self._members)))
        if die:
            dead[0] = True
            await source.expire()
        stopping.set()
        await asyncio.wait_for(task, SECONDS_MAX)

    async def expire(self) -> None:
        """One member's session ends and it does not know: it is a zombie until it leaves."""
        if self._members:
            *_, source = self.random.choice(self._members)
            await source.expire()

    async def finish(self) -> None:
        self.calm = True
        while self._members:
            await self.leave(die=False)
        pool = await self.world.pool(
            FunctionHandler(self.handle), destination=self.world.destination, until_caught_up=True
        )
        await finish(pool)
        assert pool.errors == {}

    def check(self) -> None:
        """The oracle: each visible record is a row or a failure of its shard, once, in the log's order."""
        for partition, log in enumerate(self.world.topic.partitions):
            visible = [row[0] for row in log.read(0, 10_000, read_committed=True)[0]]
            bad = [offset for offset in visible if (partition, offset) in self._bad]
            assert self.world.failures(partition) == bad
            assert self.world.rows(partition) == [offset for offset in visible if offset not in bad]
            assert self.world.position(partition) == log.end
            commits = self.world.store.shard(partition).commits
            assert all(before[1] == after[0] for before, after in itertools.pairwise(commits))
            total = sum((counts for _, _, counts in commits), Counts())
            assert total == Counts(len(visible) - len(bad), 0, 0, len(bad), log.end - len(visible))
            delivered = [
                record.offset for record in self.world.destination.records if record.partition == partition
            ]
            assert set(delivered) == set(bad)


ACTIONS = ["append", "append", "join", "join", "leave", "die", "expire", "grow", "wait"]


@settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    seed=st.integers(0, 2**32),
    partitions=st.integers(1, 4),
    actions=st.lists(st.sampled_from(ACTIONS), max_size=14),
)
@pytest.mark.slow
def test_every_record_is_written_once_whatever_happens(seed: int, partitions: int, actions: list[str]) -> None:
    """Failing handlers, rebalances, zombies and deaths: rows and failures are the log, in order, once."""

    async def scenario() -> None:
        chaos = Chaos(seed, partitions)
        chaos.append()
        await chaos.join()
        for action in actions:
            for _ in range(chaos.random.randrange(60)):
                await asyncio.sleep(0)
            if action == "append":
                chaos.append()
            elif action == "join":
                await chaos.join()
            elif action in ("leave", "die"):
                await chaos.leave(die=action == "die")
            elif action == "expire":
                await chaos.expire()
            elif action == "grow" and len(chaos.world.topic.partitions) < 6:
                chaos.world.cluster.grow(TOPIC, len(chaos.world.topic.partitions) + 1)
            elif action == "wait":
                await asyncio.sleep(0.01)
        await chaos.finish()
        chaos.check()

    asyncio.run(scenario())
