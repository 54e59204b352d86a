"""That every record is accounted for: what `account` says, and that a running engine never gives it a reason."""

import asyncio
import dataclasses
import time

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.batch import Batch
from engine.clock import SystemClock
from engine.metrics import account
from engine.metrics.accounting import settled
from engine.protocols import Counts, Fault, Invocation, Result
from engine.shard import Shard
from engine.status import ShardStatus
from tests.unit.engine_world import EngineWorld, FunctionHandler, rows_of
from tests.unit.metrics_world import engine, pipeline, shard

SECONDS_MAX = 20.0


class EveryThird:
    """A filter that lets a third of the records go."""

    def select(self, batch: Batch) -> np.ndarray:
        return batch.offsets % 3 != 0

    def warm(self) -> None:
        return


def status_of(owner: Shard) -> ShardStatus:
    """A shard's own numbers, as a snapshot has them."""
    known = owner.statistics()
    return ShardStatus(**{each.name: getattr(known, each.name) for each in dataclasses.fields(ShardStatus)})


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    batch_size=st.integers(1, 20),
    lanes=st.sampled_from([1, 3]),
    failing=st.sampled_from([4, 5, 7]),
    dropping=st.sampled_from([2, 5, 7]),
    every=st.integers(1, 4),
)
async def test_a_running_shard_is_accounted_for_at_every_moment(
    batch_size: int, lanes: int, failing: int, dropping: int, every: int
) -> None:
    """Filtered, failed, dropped, aborted and handled records of a shard add up, exactly so at its end."""
    world = EngineWorld(clock=SystemClock())
    log = world.topic.partitions[0]
    world.append(0, 40)
    aborted = world.topic.begin()
    for _ in range(5):
        aborted.append(log, b"never")
    aborted.abort()
    world.append(0, 30)
    calls = 0
    said: list[str] = []

    def function(invocation: Invocation) -> Result:
        nonlocal calls
        calls += 1
        said.extend(account(engine(pipeline("p", shards=(status_of(owner),)))))
        if calls % every == 1:
            raise ValueError("now and then a whole attempt fails")
        offsets = invocation.batch.records.column("offset").to_pylist()
        faults = [offset for offset in offsets if offset % failing == 0]
        dropped = [offset for offset in offsets if offset % dropping == 0 and offset not in faults]
        return Result(
            rows=rows_of(invocation.batch, [*faults, *dropped]),
            faults=[Fault(offset, "bad") for offset in faults],
            dropped=len(dropped),
        )

    options = {"batch_size": batch_size, "lanes": lanes, "choose": EveryThird(), "destination": world.destination}
    async with world.shard(FunctionHandler(function), target=log.end, **options) as (owner, task):
        deadline = time.monotonic() + SECONDS_MAX
        while not owner.is_caught_up:
            assert not task.done()
            assert time.monotonic() < deadline
            said.extend(account(engine(pipeline("p", shards=(status_of(owner),)))))
            await asyncio.sleep(0)
        final = status_of(owner)
    assert said == []
    assert account(engine(pipeline("p", shards=(final,)))) == []
    assert final.position == final.read == log.end == final.counts.total
    assert settled(final.counts) == final.records == 70
    assert min(final.counts.handled, final.counts.filtered, final.counts.failed, final.counts.absent) > 0


def test_a_sound_snapshot_is_accounted_for() -> None:
    """Nothing is said while records are in flight, and nothing once all of them are committed."""
    under_way = shard(0, position=40, read=100, records=95, counts=Counts(handled=40, absent=5))
    at_rest = shard(
        1, position=100, read=100, records=90, counts=Counts(handled=60, filtered=25, failed=5, absent=10)
    )
    assert account(engine(pipeline("clicks", shards=(under_way, at_rest)))) == []


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (shard(3, position=100, read=100, records=90, counts=Counts(handled=89)), "of 90 polled records 89"),
        (shard(3, position=50, read=100, records=40, counts=Counts(handled=41)), "41 records are settled, 40 were"),
        (shard(3, position=101, read=100, records=1), "position 101 is beyond 100"),
        (shard(3, position=50, read=100, records=60, counts=Counts(absent=101)), "101 offsets are settled"),
        (shard(3, position=50, read=100, records=60, counts=Counts(handled=5, failed=-1)), "failed is -1"),
        (shard(3, position=None, read=None, records=60, counts=Counts(handled=5)), "before its position was known"),
    ],
)
def test_a_shard_that_does_not_add_up_is_named(wrong: ShardStatus, said: str) -> None:
    """A record that is in none of the outcomes, or in two, shows with its pipeline and partition."""
    lines = account(engine(pipeline("clicks", shards=(wrong,))))
    assert any(said in line and line.startswith("clicks[3]: ") for line in lines)


def test_a_pipeline_has_its_shards_counts() -> None:
    """Totals below those of the owned shards, or above what was polled, are violations."""
    one = shard(0, position=50, read=100, records=60, counts=Counts(handled=50))
    lines = account(engine(pipeline("clicks", shards=(one,), records=55, counts=Counts(handled=49))))
    assert lines == [
        "clicks: handled is 49, its shards alone have 50",
        "clicks: 55 records were polled, by its shards alone 60",
    ]
    lines = account(engine(pipeline("clicks", shards=(), records=5, counts=Counts(handled=6))))
    assert lines == ["clicks: 6 records are settled, 5 were polled"]
