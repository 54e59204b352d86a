"""The owner of a shard: starts, windows, commits, failures, lost and renewed topics, and how it ends."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import itertools
from collections.abc import Sequence

import pyarrow as pa
import pytest

from connectors.memory import MemoryDestination
from engine.errors import (
    DataError,
    ExternalError,
    HandlerError,
    InternalError,
    LostOffsets,
    RecreatedTopic,
    ShardLost,
    SinkUnavailable,
    UserError,
)
from engine.protocols import Counts, FailedRecord, Invocation, Result
from engine.shard import Shard
from engine.shard_tools import State
from tests.clock import ManualClock, turns, until
from tests.unit.engine_world import TOPIC, EngineWorld, FunctionHandler, copy, failing, policy, rows_of


@pytest.fixture
def world() -> EngineWorld:
    return EngineWorld()


def clock_of(world: EngineWorld) -> ManualClock:
    assert isinstance(world.clock, ManualClock)
    return world.clock


async def test_records_reach_the_sink_once_and_in_order(world: EngineWorld) -> None:
    """Every record is a row of its partition, in order, and the position is behind the last one."""
    world.append(0, 57)
    async with world.shard(FunctionHandler(copy), target=57) as (shard, _):
        await until(lambda: shard.is_caught_up)
    assert world.rows() == list(range(57))
    assert world.position() == 57


async def test_a_restart_goes_on_at_the_position(world: EngineWorld) -> None:
    """The next owner reads nothing that is committed, and everything that is not."""
    world.append(0, 20)
    async with world.shard(FunctionHandler(copy), target=20) as (shard, _):
        await until(lambda: shard.is_caught_up)
    world.append(0, 5)
    handler = FunctionHandler(copy)
    async with world.shard(handler, target=25) as (shard, _):
        await until(lambda: shard.is_caught_up)
    assert world.rows() == list(range(25))
    assert [call.batch.start for call in handler.invocations] == [20]


async def test_a_quiet_topic_is_invoked_within_its_window(world: EngineWorld) -> None:
    """A partial batch waits for its window, no longer, when nothing else arrives."""
    clock = clock_of(world)
    handler = FunctionHandler(copy)
    async with world.shard(handler, window_seconds=5.0, batch_size=100):
        await turns()
        world.append(0, 3)
        await turns()
        await clock.advance(4.9)
        assert handler.invocations == []
        await clock.advance(0.2)
        assert [len(call.batch) for call in handler.invocations] == [3]


async def test_a_full_batch_does_not_wait_for_its_window(world: EngineWorld) -> None:
    """As many records as a batch holds are handled at once; the rest waits."""
    handler = FunctionHandler(copy)
    async with world.shard(handler, window_seconds=50.0, batch_size=4):
        world.append(0, 9)
        await until(lambda: len(handler.invocations) == 2)
        await turns()
        assert [len(call.batch) for call in handler.invocations] == [4, 4]


async def test_a_commit_comes_when_the_sink_says_so(world: EngineWorld) -> None:
    """What is written waits for the sink's own interval, also when nothing more arrives."""
    clock = clock_of(world)
    async with world.shard(FunctionHandler(copy), sink={"commit_interval_max_seconds": 30.0}):
        world.append(0, 3)
        await clock.advance(29.0)
        assert world.rows() == []
        await clock.advance(1.5)
        assert world.rows() == [0, 1, 2]


async def test_stop_commits_what_is_written(world: EngineWorld) -> None:
    """A stop does not wait for the interval, and loses nothing that was handled."""
    world.append(0, 3)
    async with world.shard(FunctionHandler(copy), sink={"commit_interval_max_seconds": 3_000.0}) as (shard, task):
        await until(lambda: shard.statistics().batches == 1)
        shard.stop()
        await task
        assert world.rows() == [0, 1, 2]
        assert shard.statistics().state is State.RELEASED


async def test_every_commit_accounts_for_its_offsets(world: EngineWorld) -> None:
    """Handled, dropped, failed and absent add up to the range of each commit; ranges are contiguous."""
    log = world.topic.partitions[0]
    world.append(0, 10)
    aborted = world.topic.begin()
    for _ in range(4):
        aborted.append(log, b"x")
    aborted.abort()
    world.append(0, 10)
    log.compact([2, 3])

    def function(invocation: Invocation) -> Result:
        result = failing(5, 17)(invocation)
        assert isinstance(result, Result)
        offsets = [row["_offset"] for row in result.rows or []]
        kept = [row for row in rows_of(invocation.batch, [6]) if row["_offset"] in offsets]
        return Result(rows=kept, faults=result.faults, dropped=int(6 in offsets))

    options = {"destination": world.destination, "batch_size": 3, "fetch_records_max": 4}
    async with world.shard(FunctionHandler(function), target=25, **options) as (shard, _):
        await until(lambda: shard.is_caught_up)
    commits = world.store.shard(0).commits
    assert commits[0][:2] == (0, 0)
    for (_, before, _), (start, end, counts) in itertools.pairwise(commits):
        assert before == start
        assert counts.total == end - start
    assert sum((counts for _, _, counts in commits), Counts()) == Counts(15, 0, 1, 2, 7)
    assert world.rows() == [0, 1, 4, 7, 8, 9, 15, 16, 18, 19, 20, 21, 22, 23, 24]
    assert world.failures() == [5, 17]


async def test_a_log_of_nothing_but_absent_offsets_is_caught_up_with(world: EngineWorld) -> None:
    """Ranges without rows move the committed position; the handler hears nothing of them."""
    transaction = world.topic.begin()
    for _ in range(3):
        transaction.append(world.topic.partitions[0], b"x")
    transaction.abort()
    handler = FunctionHandler(copy)
    async with world.shard(handler, target=4) as (shard, _):
        await until(lambda: shard.is_caught_up)
    assert (world.position(), handler.invocations) == (4, [])


async def test_failed_records_are_delivered_after_their_commit(world: EngineWorld) -> None:
    """A destination hears of failures once they are committed, though the commit comes long after the batch."""
    clock = clock_of(world)
    world.append(0, 5)
    options = {"destination": world.destination, "sink": {"commit_interval_max_seconds": 30.0}}
    async with world.shard(FunctionHandler(failing(1, 3)), **options) as (shard, _):
        await until(lambda: shard.statistics().batches == 1)
        await clock.advance(5.0)
        assert world.destination.records == []
        await clock.advance(26.0)
        await until(lambda: len(world.destination.records) == 2)
        record = world.destination.records[0]
        assert (record.partition, record.offset, record.value, record.attempts) == (0, 1, b"1", 1)
        assert record.reason == "1 is bad"
    assert world.rows() == [0, 2, 4]


class HangingDestination(MemoryDestination):
    """Takes records and never says so."""

    async def deliver(self, records: Sequence[FailedRecord]) -> None:
        await asyncio.Event().wait()


async def test_a_destination_that_hangs_holds_up_no_rows(world: EngineWorld) -> None:
    """Rows go on being read, written and committed, and a stop waits for it no longer than a moment."""
    world.append(0, 9)
    options = {"destination": HangingDestination(), "rules": policy(reports=True), "batch_size": 3}
    sink = {"commit_interval_max_seconds": 0.0}
    async with world.shard(FunctionHandler(failing(1)), sink=sink, **options) as (shard, task):
        await until(lambda: shard.statistics().position == 9)
        assert shard.statistics().undelivered
        assert world.rows() == [0, *range(2, 9)]
        shard.abandon()
        await task


async def test_undelivered_failures_are_the_next_owners(world: EngineWorld) -> None:
    """A refusing destination holds nothing up; what it missed is brought by the next owner."""
    world.append(0, 5)
    world.destination.refusing = True
    async with world.shard(FunctionHandler(failing(1)), destination=world.destination) as (shard, _):
        await clock_of(world).advance(2.0)
        await until(lambda: world.destination.refusals > 0)
        assert world.rows() == [0, 2, 3, 4]
        assert shard.statistics().undelivered
    world.destination.refusing = False
    async with world.shard(FunctionHandler(copy), destination=world.destination):
        await until(lambda: [record.offset for record in world.destination.records] == [1])


async def test_a_run_to_the_end_gives_a_refusing_destination_so_long(world: EngineWorld) -> None:
    """Catching up waits for deliveries, up to its bound; then it ends with an error that is not tried again."""
    world.append(0, 2)
    world.destination.refusing = True
    options = {"destination": world.destination, "outage_seconds_max": 10.0}
    async with world.shard(FunctionHandler(failing(1)), target=2, **options) as (shard, task):
        await until(lambda: world.destination.refusals > 0)
        assert not shard.is_caught_up
        for _ in range(20):
            await clock_of(world).advance(1.0)
        with pytest.raises(ExternalError, match="wait in the sink") as caught:
            await task
        assert not caught.value.retry
    assert world.position() == 2


async def test_without_a_destination_nothing_passes_a_bad_record(world: EngineWorld) -> None:
    """The shard stops before it with the reason, and what lies before it is committed."""
    world.append(0, 10)
    async with world.shard(FunctionHandler(failing(6)), batch_size=4) as (shard, task):
        with pytest.raises(DataError, match="offset 6: 6 is bad") as caught:
            await task
        assert "on_failure" in str(caught.value)
        assert shard.statistics().state is State.STOPPED
    assert world.rows() == [0, 1, 2, 3, 4, 5]
    assert world.position() == 6


async def test_a_handler_that_keeps_failing_stops_the_shard(world: EngineWorld) -> None:
    """After its attempts the batch is named; what was handled before it is committed."""
    world.append(0, 9)

    def function(invocation: Invocation) -> Result:
        if invocation.batch.end > 6:
            raise ValueError("not today")
        return copy(invocation)

    handler = FunctionHandler(function)
    options = {"batch_size": 3, "rules": policy(retries_max=2)}
    async with world.shard(handler, **options) as (_, task):
        with pytest.raises(HandlerError, match=r"offsets 6 to 8.*3 times.*ValueError: not today"):
            await task
    assert world.rows() == [0, 1, 2, 3, 4, 5]
    assert len(handler.invocations) == 2 + 3


async def test_a_stopping_shard_leaves_a_batch_that_is_being_retried(world: EngineWorld) -> None:
    """Between attempts a stop ends the wait, and the batch is the next owner's."""
    world.append(0, 3)

    def function(invocation: Invocation) -> Result:
        raise ValueError("never")

    handler = FunctionHandler(function)
    rules = policy(backoff_seconds=1_000.0, backoff_seconds_max=1_000.0)
    async with world.shard(handler, rules=rules) as (shard, task):
        await until(lambda: len(handler.invocations) == 1)
        shard.stop()
        await task
    assert world.position() == 0


async def test_an_abandoned_batch_is_left_and_what_came_before_is_committed(world: EngineWorld) -> None:
    """A handler that never returns is given up when the time is up."""
    world.append(0, 6)

    async def function(invocation: Invocation) -> Result:
        if invocation.batch.start >= 3:
            await asyncio.Event().wait()
        return copy(invocation)

    options = {"batch_size": 3, "sink": {"commit_interval_max_seconds": 3_000.0}}
    async with world.shard(FunctionHandler(function), **options) as (shard, task):
        await until(lambda: shard.statistics().batches == 1)
        shard.stop()
        await turns()
        assert not task.done()
        shard.abandon()
        await task
    assert world.rows() == [0, 1, 2]


async def test_refused_rows_are_reported_and_the_others_flow(world: EngineWorld) -> None:
    """A row that the sink cannot take fails its record alone."""
    world.append(0, 6)

    def refuses(table: pa.Table) -> dict[int, str]:
        return {at: "four" for at, value in enumerate(table.column("value").to_pylist()) if value == b"4"}

    options = {"destination": world.destination, "sink": {"refuses": refuses}}
    async with world.shard(FunctionHandler(failing(1)), target=6, **options) as (shard, _):
        await until(lambda: shard.is_caught_up)
    assert world.rows() == [0, 2, 3, 5]
    assert [(record.offset, record.reason) for record in world.destination.records] == [
        (1, "1 is bad"),
        (4, "four"),
    ]


async def test_refused_rows_stop_a_shard_without_a_destination(world: EngineWorld) -> None:
    """The shard stops before the record of the refused row."""
    world.append(0, 6)

    def refuses(table: pa.Table) -> dict[int, str]:
        return {at: "four" for at, value in enumerate(table.column("value").to_pylist()) if value == b"4"}

    async with world.shard(FunctionHandler(copy), sink={"refuses": refuses}) as (_, task):
        with pytest.raises(DataError, match="offset 4: four"):
            await task
    assert world.rows() == [0, 1, 2, 3]


async def test_rows_before_a_refused_one_are_kept_without_another_call(world: EngineWorld) -> None:
    """Rows that name their records are told apart: what lies before the fault is committed as it was."""
    world.append(0, 6)
    handler = FunctionHandler(copy)

    def refuses(table: pa.Table) -> dict[int, str]:
        return {4: "four"} if table.num_rows > 4 else {}

    async with world.shard(handler, sink={"refuses": refuses}) as (_, task):
        with pytest.raises(DataError, match="offset 4: four"):
            await task
    assert (world.rows(), world.position(), len(handler.invocations)) == ([0, 1, 2, 3], 4, 1)


async def test_what_is_handled_does_not_wait_for_what_fails(world: EngineWorld) -> None:
    """While a batch is tried again and again, the batches before it are committed, whatever the interval."""
    world.append(0, 4)

    def function(invocation: Invocation) -> Result:
        if invocation.batch.start >= 2:
            raise ValueError("poison")
        return copy(invocation)

    rules = policy(backoff_seconds=1_000.0, backoff_seconds_max=1_000.0)
    handler = FunctionHandler(function)
    async with world.shard(handler, rules=rules, batch_size=2, sink={"commit_interval_max_seconds": 1_000.0}):
        await until(lambda: world.position() == 2)
    assert world.rows() == [0, 1]


async def test_a_sink_that_refuses_the_schema_is_not_the_handlers_fault(world: EngineWorld) -> None:
    """What the sink says while a schema is adopted ends the shard; the handler is not tried again."""
    world.append(0, 3)
    handler = FunctionHandler(copy)

    async def step(name: str) -> None:
        if name == "schema":
            raise SinkUnavailable("read-only")

    async with world.shard(handler, sink={"step": step}) as (_, task):
        with pytest.raises(SinkUnavailable, match="read-only"):
            await task
    assert len(handler.invocations) == 1


async def test_a_full_disk_stops_the_shard(world: EngineWorld) -> None:
    """A sink that cannot write ends the shard with what it said; nothing is lost."""
    world.append(0, 3)
    async with world.shard(FunctionHandler(copy)) as (shard, task):
        await until(lambda: shard.statistics().batches == 1)
        world.store.refusal = SinkUnavailable("no space left")
        await clock_of(world).advance(2.0)
        with pytest.raises(SinkUnavailable):
            await task
    world.store.refusal = None
    async with world.shard(FunctionHandler(copy), target=3) as (shard, _):
        await until(lambda: shard.is_caught_up)
    assert world.rows() == [0, 1, 2]


async def test_another_owner_ends_this_one(world: EngineWorld) -> None:
    """After a takeover nothing of this owner is committed."""
    world.append(0, 3)
    async with world.shard(FunctionHandler(copy), sink={"commit_interval_max_seconds": 30.0}) as (shard, task):
        await until(lambda: shard.statistics().batches == 1)
        world.store.shard(0).owner = "another"
        await clock_of(world).advance(31.0)
        with pytest.raises(ShardLost):
            await task
    assert world.rows() == []


async def test_an_unforeseen_error_is_internal(world: EngineWorld) -> None:
    """What nobody meant to raise names itself and the shard."""

    async def step(name: str) -> None:
        if name == "write":
            raise RuntimeError("oops")

    async with world.shard(FunctionHandler(copy), sink={"step": step}) as (_, task):
        with pytest.raises(InternalError, match=r"p\[0\].*RuntimeError: oops"):
            await task


async def test_latest_is_committed_before_the_first_fetch(world: EngineWorld) -> None:
    """Where LATEST was, stays the start, also for a run that ended before it handled anything."""
    world.append(0, 5)
    async with world.shard(FunctionHandler(copy), starting_position="LATEST"):
        await until(lambda: world.position() == 5)
    world.append(0, 2)
    async with world.shard(FunctionHandler(copy), target=7, starting_position="LATEST") as (shard, _):
        await until(lambda: shard.is_caught_up)
    assert world.rows() == [5, 6]


async def test_a_timestamp_is_a_start(world: EngineWorld) -> None:
    """The first record that is not older than it is the first one read."""
    log = world.topic.partitions[0]
    for stamp in (1_000, 2_000, 3_000):
        log.append(b"x", timestamp_ms=stamp)
    at = dt.datetime.fromtimestamp(1.5, dt.UTC)
    options = {"starting_position": "AT_TIMESTAMP", "starting_position_timestamp": at}
    async with world.shard(FunctionHandler(copy), target=3, **options) as (shard, _):
        await until(lambda: shard.is_caught_up)
    assert world.rows() == [1, 2]
    assert world.store.shard(0).commits[0][:2] == (1, 1)


async def test_a_partition_found_later_starts_at_its_earliest_offset(world: EngineWorld) -> None:
    """LATEST holds for the partitions that there were; nothing in a new one is skipped."""
    await world.tools(FunctionHandler(copy))
    world.cluster.grow(TOPIC, 2)
    world.append(1, 4)
    options = {"partition": 1, "target": 4, "starting_position": "LATEST"}
    async with world.shard(FunctionHandler(copy), **options) as (shard, _):
        await until(lambda: shard.is_caught_up)
    assert world.rows(1) == [0, 1, 2, 3]


async def stand_at(world: EngineWorld, count: int) -> None:
    """Bring the shard's position to ``count``, with as many records."""
    world.append(0, count)
    async with world.shard(FunctionHandler(copy), target=count) as (shard, _):
        await until(lambda: shard.is_caught_up)


async def test_lost_offsets_stop_by_default(world: EngineWorld) -> None:
    """A log that starts beyond the position is said with what was lost."""
    await stand_at(world, 5)
    world.append(0, 10)
    world.topic.partitions[0].truncate(9)
    async with world.shard(FunctionHandler(copy)) as (_, task):
        with pytest.raises(LostOffsets, match="4 offsets, 5 to 8, are lost: the log starts at 9"):
            await task
    assert world.position() == 5


async def test_lost_offsets_may_be_left_behind(world: EngineWorld, caplog: pytest.LogCaptureFixture) -> None:
    """With "earliest" the gap is reported, counted as absent, and the rest is read."""
    await stand_at(world, 5)
    world.append(0, 10)
    world.topic.partitions[0].truncate(9)
    async with world.shard(FunctionHandler(copy), target=15, on_lost_offsets="earliest") as (shard, _):
        await until(lambda: shard.is_caught_up)
        assert shard.statistics().counts.absent == 4
    assert world.rows() == [0, 1, 2, 3, 4, 9, 10, 11, 12, 13, 14]
    assert "5 to 8, are lost" in caplog.text


async def test_records_that_vanish_under_a_reader_keep_the_rest_in_order(world: EngineWorld) -> None:
    """Retention may pass a shard while a batch of it waits; what waits is handled, then the gap is taken."""
    world.append(0, 12)
    handler = FunctionHandler(copy)
    options = {"batch_size": 100, "window_seconds": 5.0, "fetch_records_max": 4, "on_lost_offsets": "earliest"}
    async with world.shard(handler, **options) as (shard, _):
        await until(lambda: shard.statistics().read is not None and shard.statistics().read >= 4)
        read = shard.statistics().read
        assert read is not None
        world.topic.partitions[0].truncate(max(read, 10))
        await until(lambda: shard.statistics().read == 12)
        await clock_of(world).advance(7.0)
        assert world.position() == 12
    assert world.rows()[:read] == list(range(read))
    assert world.rows()[-2:] == [10, 11]


async def test_a_log_that_lost_its_end_stops(world: EngineWorld) -> None:
    """A position beyond the log is never waited for, whatever on_lost_offsets says."""
    await stand_at(world, 5)
    world.topic.partitions[0].truncate_end(3)
    async with world.shard(FunctionHandler(copy), on_lost_offsets="earliest") as (_, task):
        with pytest.raises(LostOffsets, match="at offset 5, but the log ends at 3"):
            await task


async def test_a_topic_made_anew_stops_before_its_records_are_committed(world: EngineWorld) -> None:
    """Even where the new topic has grown past the old position, none of its records follows the old ones."""
    await stand_at(world, 5)
    async with world.shard(FunctionHandler(copy), sink={"commit_interval_max_seconds": 30.0}) as (shard, task):
        await until(lambda: shard.statistics().position == 5)
        world.cluster.delete(TOPIC)
        world.topic = world.cluster.create(TOPIC, 1)
        world.append(0, 20)
        await clock_of(world).advance(1.0)
        await clock_of(world).advance(31.0)
        with pytest.raises(RecreatedTopic, match="deleted and made anew"):
            await task
    assert world.rows() == [0, 1, 2, 3, 4]


async def test_a_shorter_topic_made_anew_is_told_from_lost_offsets(world: EngineWorld) -> None:
    """A position beyond a new topic's end is not taken for a truncated log."""
    await stand_at(world, 5)
    async with world.shard(FunctionHandler(copy)) as (shard, task):
        await until(lambda: shard.statistics().position == 5)
        world.cluster.delete(TOPIC)
        world.topic = world.cluster.create(TOPIC, 1)
        world.append(0, 2)
        await clock_of(world).advance(2.0)
        with pytest.raises(RecreatedTopic):
            await task


async def test_a_topic_made_anew_is_noticed_on_assignment(world: EngineWorld) -> None:
    """A shard that is taken up after its topic was made anew handles nothing of the new one."""
    await stand_at(world, 5)
    handler = FunctionHandler(copy)
    async with world.shard(handler, partition=0) as (first, task):
        await until(lambda: first.statistics().position == 5)
        first.stop()
        await task
        world.cluster.delete(TOPIC)
        world.topic = world.cluster.create(TOPIC, 1)
        world.append(0, 20)
        again = Shard(0, first._tools)
        with pytest.raises(RecreatedTopic):
            await again.run()
    assert handler.invocations == []


async def test_a_deleted_topic_stops_at_the_next_commit(world: EngineWorld) -> None:
    """Records whose topic is gone are not committed; the error says so."""
    world.append(0, 3)
    async with world.shard(FunctionHandler(copy), sink={"commit_interval_max_seconds": 30.0}) as (shard, task):
        await until(lambda: shard.statistics().batches == 1)
        world.cluster.delete(TOPIC)
        await clock_of(world).advance(31.0)
        with pytest.raises(UserError, match="does not exist"):
            await task
    assert world.store.table(0) is None


async def test_a_cancelled_shard_releases_its_writer(world: EngineWorld) -> None:
    """Cancellation is the last resort of a drain: nothing is committed, and the budget gets its bytes back."""
    world.append(0, 3, size=100)
    tools = await world.tools(FunctionHandler(copy))
    async with world.shard(FunctionHandler(copy), budget=tools.budget, window_seconds=50.0) as (shard, task):
        await until(lambda: shard.statistics().records == 3)
        assert tools.budget.total > 0
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
    assert tools.budget.total == 0
    assert world.position() == 0
