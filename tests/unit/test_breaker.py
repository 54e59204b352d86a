"""The circuit breaker: how much may fail before a shard stops."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.breaker import Breaker
from engine.errors import DataError
from engine.protocols import Counts, Invocation, Result
from tests.unit.engine_world import EngineWorld, FunctionHandler, policy, rows_of


@given(
    outcomes=st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=40),
    share=st.floats(0.05, 0.95),
    records=st.integers(1, 20),
)
def test_it_trips_where_a_plain_loop_does(outcomes: list[tuple[int, int]], share: float, records: int) -> None:
    """The share is that of the shortest run of last outcomes that has so many records."""
    breaker = Breaker(share_max=share, records=records)
    seen: list[tuple[int, int]] = []
    for handled, failed in outcomes:
        tripped = breaker.trips("p[0]", Counts(handled=handled, failed=failed))
        if handled + failed:
            seen.append((handled + failed, failed))
        total = bad = 0
        for size, wrong in reversed(seen):
            total, bad = total + size, bad + wrong
            if total >= records:
                break
        expected = bool(handled + failed) and total >= records and bad > share * total
        assert (tripped is not None) is expected


async def test_a_shard_stops_once_too_much_failed() -> None:
    """What is reported until then is committed; the message says what to do."""
    world = EngineWorld()
    world.append(0, 40)

    def function(invocation: Invocation) -> Result:
        if invocation.batch.start >= 20:
            raise ValueError("the database is away")
        return Result(rows=rows_of(invocation.batch))

    async with world.shard(
        FunctionHandler(function),
        rules=policy(reports=True, retries_max=0),
        destination=world.destination,
        batch_size=5,
        breaker=lambda: Breaker(share_max=0.5, records=10),
    ) as (_, task):
        with pytest.raises(DataError, match=r"10 of the last 10 records failed.*failed_share_max = 0.5"):
            await task
    assert world.rows() == list(range(20))
    assert world.failures() == list(range(20, 30))
    assert world.position() == 30
