"""Rules of the engine and of the DuckDB commit, each left out on purpose: a named test has to notice.

The Parquet protocol has its own table of this kind (`tests/simulation/test_parquet_protocol.py`).
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from connectors.duckdb import commit
from connectors.memory.sink import MemoryShardWriter
from engine import attempts, lanes, processing
from engine.attempts import Work
from engine.failing import Policy
from engine.lanes import Lanes
from engine.protocols import ShardWriter
from engine.shard import Shard
from engine.windows import WindowChain
from tests.conformance.sink_suite import STREAM, SinkSuite
from tests.conformance.test_sink_duckdb import DuckDBStorage
from tests.unit import test_lanes, test_mapping_model, test_pool, test_shard, test_tumbling
from tests.unit.engine_world import EngineWorld

#: A test that does not end has failed.
SECONDS_MAX = 1.0

#: What a test that fails raises: an assertion of its own, `pytest.raises` in vain, or the engine's own error.
FAILURES = (AssertionError, pytest.fail.Exception, Exception)

Test = Callable[[], Coroutine[Any, Any, object]]


async def fails(test: Test) -> None:
    """``test`` fails under the mutation at hand; it passes without it, as its own run shows."""
    try:
        async with asyncio.timeout(SECONDS_MAX):
            await test()
    except FAILURES as failure:
        print(f"noticed by {type(failure).__name__}: {str(failure).splitlines()[:1]}")
        return
    pytest.fail("the mutation was not noticed")


async def test_duckdb_without_the_owner_in_the_compare_and_set(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A position that is compared without its owner lets a zombie commit."""
    compared = "AND p.owner = m.owner "
    assert compared in commit._COMPARE_AND_SET
    monkeypatch.setattr(commit, "_COMPARE_AND_SET", commit._COMPARE_AND_SET.replace(compared, ""))
    storage = DuckDBStorage(tmp_path / "out.db")
    sink = storage.sink()
    await sink.open(STREAM)
    await fails(lambda: SinkSuite().test_a_zombie_is_fenced_before_any_commit_of_the_new_owner(sink, storage))
    await sink.close()


async def test_a_sink_without_fencing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Owners that are not fenced are noticed by the shard that another one takes."""
    monkeypatch.setattr(MemoryShardWriter, "_require_owned", lambda _writer: None)
    await fails(lambda: test_shard.test_another_owner_ends_this_one(EngineWorld()))


async def test_group_offset_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Group offsets that go ahead of the sink, and decide where a shard begins, lose what a full disk refused."""
    begin, commit_shard = Shard._begin, Shard._commit

    async def begin_at_the_group_offset(shard: Shard, writer: ShardWriter) -> None:
        await begin(shard, writer)
        offset = await shard._tools.source.committed(shard.partition)
        if offset is not None:
            shard._read = shard._processed = offset
            await shard._tools.source.seek(shard.partition, offset)

    async def group_first(shard: Shard, writer: ShardWriter) -> None:
        if writer.due_at() is not None and shard._processed is not None:
            await shard._tools.source.commit({shard.partition: shard._processed})
        await commit_shard(shard, writer)

    monkeypatch.setattr(Shard, "_begin", begin_at_the_group_offset)
    monkeypatch.setattr(Shard, "_commit", group_first)
    await fails(lambda: test_shard.test_a_full_disk_stops_the_shard(EngineWorld()))


async def test_drain_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stop that abandons at once does not let the batch at hand finish."""
    monkeypatch.setattr(Shard, "stop", Shard.abandon)
    await fails(test_pool.test_a_drain_lets_the_batch_at_hand_finish)


async def test_a_stop_without_a_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    """A shard that is released without its last commit has handled records in vain."""
    work = Shard._work

    async def work_and_forget(shard: Shard, writer: ShardWriter) -> None:
        await work(shard, writer)
        await writer.release()

    monkeypatch.setattr(Shard, "_work", work_and_forget)
    await fails(lambda: test_shard.test_stop_commits_what_is_written(EngineWorld()))


async def test_a_topic_that_is_not_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without asking what the topic is, records of one made anew follow those of the old one."""

    async def unasked(_check: object) -> None:
        return

    monkeypatch.setattr("engine.positions.StreamCheck.run", unasked)
    await fails(lambda: test_shard.test_a_topic_made_anew_stops_before_its_records_are_committed(EngineWorld()))


async def test_bad_records_that_are_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """A shard without a destination that does not stop passes a bad record."""
    monkeypatch.setattr(Policy, "stops", property(lambda _policy: False))
    await fails(lambda: test_shard.test_without_a_destination_nothing_passes_a_bad_record(EngineWorld()))


def of_a_script(**changes: object) -> test_mapping_model.Rules:
    given = {"lanes": 1, "bisects": False, "retries": 1, "batch_size": 4, "fate": "report", "ages": False}
    return test_mapping_model.Rules(**{**given, **changes})  # type: ignore[arg-type]


def owned(rules: test_mapping_model.Rules, script: list[str]) -> None:
    """One owner of the model's shard, over eight records of three keys."""
    model = test_mapping_model.Mapping()
    model.begin()
    try:
        model.produce([(key, "fine") for key in (b"a", b"b", b"c", b"a", b"b", b"c", b"a", b"b")])
        model.own(rules, script, None)
        model.every_record_is_accounted_for_once()
    finally:
        model.teardown()


async def test_lanes_that_are_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """A position that passes what a slow lane has yet to do."""
    monkeypatch.setattr(Lanes, "_prefix", lambda lanes: lanes._ledger[-1].end if lanes._ledger else lanes._position)
    await fails(lambda: test_lanes.test_a_slow_lane_holds_up_no_other(EngineWorld()))


async def test_keys_that_change_their_lane(monkeypatch: pytest.MonkeyPatch) -> None:
    """A key's records in more than one lane come out of order."""
    numbers = itertools.count()
    monkeypatch.setattr(lanes, "lane_of", lambda _key, count: next(numbers) % count)
    with pytest.raises(FAILURES):
        await asyncio.to_thread(owned, of_a_script(lanes=2), [])


@pytest.mark.parametrize(
    ("name", "broken"),
    [
        ("_is_exhausted", lambda _work, segment: segment.attempts > 0),
        ("_tried", lambda _work, segment, error: setattr(segment, "failure", error)),
    ],
)
async def test_retries_that_are_not_counted(monkeypatch: pytest.MonkeyPatch, name: str, broken: object) -> None:
    """Records that are given up before their retries are used, or never."""
    monkeypatch.setattr(Work, name, broken)
    model = asyncio.to_thread(owned, of_a_script(retries=2), ["raise"] * 60)
    with pytest.raises((*FAILURES, TimeoutError)):
        await asyncio.wait_for(model, 30)


async def test_a_cut_that_forgets_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    """A partial response whose reported records are taken for handled."""
    monkeypatch.setattr(processing, "before", lambda batch, _offset: batch)
    monkeypatch.setattr(attempts, "before", lambda batch, _offset: batch)
    with pytest.raises(FAILURES):
        await asyncio.to_thread(owned, of_a_script(), ["report"])


async def test_a_window_without_its_state(monkeypatch: pytest.MonkeyPatch) -> None:
    """A state that is not committed with the position is lost with the owner."""
    monkeypatch.setattr(WindowChain, "committed", lambda _chain: b"")
    world = EngineWorld(clock=test_tumbling.ManualClock(test_tumbling.NOW))
    await fails(lambda: test_tumbling.test_a_window_goes_on_with_the_next_owner(world))
