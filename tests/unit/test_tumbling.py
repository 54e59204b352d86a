"""Tumbling windows of a shard: which records they hold, what they hand on, and that a crash changes neither."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import BrokerUnavailable, InternalError
from engine.protocols import Invocation, Result
from engine.windows import WINDOW_STATE_BYTES_MAX, WindowChain
from tests.clock import ManualClock, until
from tests.unit.engine_world import EngineWorld, FunctionHandler, policy

BASE_MS = 1_700_000_000_000 // 60_000 * 60_000
NOW = BASE_MS / 1000 + 100_000


class Adder:
    """A handler of windows: counts records in its state, and notes what each window came to."""

    def __init__(self) -> None:
        self.finals: list[tuple[int, int]] = []
        self.calls: list[tuple[int, list[bytes], bool, bool]] = []

    def __call__(self, invocation: Invocation) -> Result:
        window = invocation.window
        assert window is not None
        assert window.end - window.start in (30, 60)
        values = invocation.batch.records.column("value").to_pylist()
        state = json.loads(window.state)
        self.calls.append((window.start - BASE_MS // 1000, values, window.is_final, window.is_terminated_early))
        count = state.get("count", 0) + len(values)
        if window.is_final and not window.is_terminated_early:
            self.finals.append((window.start - BASE_MS // 1000, count))
            return Result(rows=[{"window": window.start, "count": count}], state=b"{}")
        return Result(state=json.dumps({"count": count}).encode())


def produce(world: EngineWorld, *seconds: float) -> None:
    log = world.topic.partitions[0]
    for second in seconds:
        log.append(b"%d" % log.end, timestamp_ms=BASE_MS + int(second * 1000))


@pytest.fixture
def world() -> EngineWorld:
    return EngineWorld(clock=ManualClock(NOW))


async def caught_up(world: EngineWorld, function: object, *, seconds: int = 60, **options: object) -> None:
    target = world.topic.partitions[0].end
    handler = FunctionHandler(function)  # type: ignore[arg-type]
    options = {"tumbling_seconds": seconds, "tumbling_wait_seconds": 1e9, **options}
    async with world.shard(handler, target=target, **options) as (shard, task):
        await until(lambda: shard.is_caught_up or task.done())
        if task.done():
            await task


async def test_each_window_hands_its_state_on_and_ends_once(world: EngineWorld) -> None:
    """A batch is cut where a window ends; the next record brings the final invocation, without records."""
    produce(world, 1, 2, 59, 61, 62, 130)
    function = Adder()
    await caught_up(world, function, batch_size=4)
    assert function.finals == [(0, 3), (60, 2)]
    assert [(start, len(values), final) for start, values, final, _ in function.calls] == [
        (0, 3, False),
        (0, 0, True),
        (60, 1, False),
        (60, 1, False),
        (60, 0, True),
        (120, 1, False),
    ]


async def test_a_window_goes_on_with_the_next_owner(world: EngineWorld) -> None:
    """The state is committed with the position: a restart loses nothing of a window and counts nothing twice."""
    function = Adder()
    produce(world, 1, 2)
    await caught_up(world, function)
    produce(world, 3, 61)
    await caught_up(world, function)
    assert function.finals == [(0, 3)]
    assert json.loads(world.store.shard(0).state) == {
        "seconds": 60,
        "start": BASE_MS // 1000 + 60,
        "state": {"count": 1},
    }


async def test_late_records_count_in_the_open_window(world: EngineWorld) -> None:
    """A window that has ended is not opened again."""
    produce(world, 61, 2, 62, 125)
    function = Adder()
    await caught_up(world, function)
    assert function.finals == [(60, 3)]


async def test_a_record_from_the_future_keeps_no_window_open(world: EngineWorld) -> None:
    """A producer's clock that is years ahead must not swallow what comes after it."""
    produce(world, 10**9, 10**9 + 1)
    function = Adder()
    await caught_up(world, function)
    await world.clock.advance(60)  # type: ignore[attr-defined]
    produce(world, 100_070)
    await caught_up(world, function)
    assert [count for _, count in function.finals] == [2]


async def test_an_idle_window_is_closed_by_time(world: EngineWorld) -> None:
    """When no record comes for a while, a window that is over gets its final invocation and is committed."""
    produce(world, 1, 2)
    function = Adder()
    options = {"tumbling_seconds": 60, "tumbling_wait_seconds": 120.0, "sink": {"commit_interval_max_seconds": 0.0}}
    async with world.shard(FunctionHandler(function), **options) as (_, task):
        await until(lambda: len(function.calls) == 1)
        clock = world.clock
        assert isinstance(clock, ManualClock)
        await clock.advance(119)
        assert function.finals == []
        await clock.advance(3)
        await until(lambda: world.store.shard(0).state == b"" or task.done())
    assert function.finals == [(0, 2)]
    assert world.store.table(0).column("count").to_pylist() == [2]  # type: ignore[union-attr]


async def test_an_idle_window_waits_for_its_end(world: EngineWorld) -> None:
    """Silence alone closes nothing: the window has to be over."""
    clock = ManualClock(BASE_MS / 1000 + 1)
    world = EngineWorld(clock=clock)
    produce(world, 1)
    function = Adder()
    async with world.shard(FunctionHandler(function), tumbling_seconds=60, tumbling_wait_seconds=5.0):
        await until(lambda: len(function.calls) == 1)
        await clock.advance(50)
        assert function.finals == []
        await clock.advance(15)
        await until(lambda: function.finals == [(0, 1)])


async def test_silence_alone_closes_no_window(world: EngineWorld) -> None:
    """While the topic has records that were not read, whatever the reason, the window stays open."""
    produce(world, 1, 2)
    function = Adder()
    options = {"tumbling_seconds": 60, "tumbling_wait_seconds": 5.0}
    async with world.shard(FunctionHandler(function), **options) as (shard, _):
        await until(lambda: len(function.calls) == 1)
        source = shard._tools.source
        ends = source.end_offsets
        clock = world.clock
        assert isinstance(clock, ManualClock)

        async def beyond(partitions: Sequence[int]) -> dict[int, int]:
            return {partition: end + 1 for partition, end in (await ends(partitions)).items()}

        async def away(partitions: Sequence[int]) -> dict[int, int]:
            raise BrokerUnavailable(f"no answer about {partitions}")

        for answer in (beyond, away):
            source.end_offsets = answer  # type: ignore[method-assign]
            await clock.advance(30)
            assert function.finals == []
        source.end_offsets = ends  # type: ignore[method-assign]
        await clock.advance(3)
        await until(lambda: function.finals == [(0, 2)])


async def test_windows_that_are_taken_out_are_given_up_aloud(
    world: EngineWorld, caplog: pytest.LogCaptureFixture
) -> None:
    """A state that nobody will ask for is cleared, and the log says so; it does not come back later."""
    produce(world, 1, 2)
    await caught_up(world, Adder())
    assert world.store.shard(0).state
    produce(world, 3)

    def plain(invocation: Invocation) -> Result:
        assert invocation.window is None
        return Result()

    await caught_up(world, plain, seconds=0)
    assert world.store.shard(0).state == b""
    assert "a tumbling window was open when windows were taken out" in caplog.text


async def test_a_state_that_is_too_large_ends_the_window_early(world: EngineWorld) -> None:
    """It is handed over once more, marked as terminated early, and the same window goes on with a fresh one."""
    produce(world, 1, 2, 61)
    seen = []

    def function(invocation: Invocation) -> Result:
        window = invocation.window
        assert window is not None
        seen.append((window.is_final, window.is_terminated_early, len(window.state), window.start))
        if len(seen) == 1:
            return Result(state=json.dumps({"x": "y" * WINDOW_STATE_BYTES_MAX}).encode())
        return Result(state=b"{}")

    await caught_up(world, function, batch_size=1)
    start = BASE_MS // 1000
    assert [(final, early, at - start) for final, early, _, at in seen] == [
        (False, False, 0),
        (True, True, 0),
        (False, False, 0),
        (True, False, 0),
        (False, False, 60),
    ]
    assert [size for _, _, size, _ in seen][:3] == [2, WINDOW_STATE_BYTES_MAX + 9, 2]


async def test_a_failed_final_invocation_holds_the_shard(world: EngineWorld) -> None:
    """It is tried again under the mapping's policy, and nothing comes before it."""
    produce(world, 1, 61)
    function, failures = Adder(), [0]

    def failing(invocation: Invocation) -> Result:
        assert invocation.window is not None
        if invocation.window.is_final and failures[0] < 3:
            failures[0] += 1
            raise ValueError("not yet")
        return function(invocation)

    await caught_up(world, failing, rules=policy(retries_max=-1))
    assert (failures[0], function.finals) == (3, [(0, 1)])
    assert [final for _, _, final, _ in function.calls] == [False, True, False]


async def test_a_final_invocation_that_is_given_up_lets_the_shard_go_on(world: EngineWorld) -> None:
    """With a destination the retries end; there is no record to report, so the log says it."""
    produce(world, 1, 61)

    def failing(invocation: Invocation) -> Result:
        assert invocation.window is not None
        if invocation.window.is_final:
            raise ValueError("never")
        return Result(state=b"{}")

    rules = policy(retries_max=1, reports=True)
    await caught_up(world, failing, rules=rules, destination=world.destination)
    assert (world.position(), world.failures()) == (2, [])


async def test_a_changed_window_length_begins_with_the_next_window(world: EngineWorld) -> None:
    """The window that is open ends where it was to end."""
    function = Adder()
    produce(world, 1)
    await caught_up(world, function, seconds=60)
    produce(world, 40, 61, 95)
    await caught_up(world, function, seconds=30)
    assert function.finals == [(0, 2), (60, 1)]


def test_a_state_that_cannot_be_read_is_said() -> None:
    """Whatever is in the sink, it is not taken for an empty chain."""
    with pytest.raises(InternalError, match="cannot be read"):
        WindowChain.restored(60, b'{"start": 1}')


@settings(max_examples=60, deadline=None)
@given(
    seconds=st.lists(st.integers(0, 400), min_size=1, max_size=30),
    sizes=st.lists(st.integers(1, 7), min_size=1, max_size=4),
    script=st.lists(st.sampled_from(["ok", "ok", "raise", "report"]), max_size=12),
)
def test_windows_are_those_of_a_plain_oracle(seconds: list[int], sizes: list[int], script: list[str]) -> None:
    """Whatever batches, failures and owners there are, each window's count is that of a plain loop."""
    world = EngineWorld(clock=ManualClock(NOW))
    function = Adder()
    left = list(script)

    def scripted(invocation: Invocation) -> Result:
        decision = left.pop(0) if left else "ok"
        values = invocation.batch.records.column("value").to_pylist()
        if decision == "raise":
            raise ValueError("as the script says")
        if decision == "report" and len(values) > 1:
            part = invocation.batch.head(len(values) // 2)
            kept = function(Invocation(part, None, invocation.context, invocation.window))
            return Result(failed_from=int(invocation.batch.offsets[len(values) // 2]), state=kept.state)
        return function(invocation)

    async def run() -> None:
        for index, size in enumerate(sizes):
            start, end = (len(seconds) * at // len(sizes) for at in (index, index + 1))
            produce(world, *seconds[start:end])
            await caught_up(world, scripted, batch_size=size)

    asyncio.run(run())
    expected: list[list[int]] = []
    for second in seconds:
        start = second // 60 * 60
        if not expected or start > expected[-1][0]:
            expected.append([start, 0])
        expected[-1][1] += 1
    assert function.finals == [(start, count) for start, count in expected[:-1]]
