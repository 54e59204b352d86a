"""The watch over the event loop: what it counts, and that a blocked loop is seen."""

from __future__ import annotations

import asyncio
import time

import pytest

from engine.clock import SystemClock
from engine.loop_watch import LOOK_SECONDS, LoopWatch


class Late(SystemClock):
    """A clock whose sleeps are late by the given times, the last of which never ends."""

    def __init__(self, *late: float) -> None:
        self._late = list(late)
        self._now = 0.0

    def monotonic(self) -> float:
        return self._now

    async def sleep(self, seconds: float) -> None:
        if not self._late:
            raise asyncio.CancelledError
        self._now += seconds + self._late.pop(0)


@pytest.mark.parametrize(
    ("late", "longest", "count"),
    [
        ((), 0.0, 0),
        ((0.001, 0.004, 0.002), 0.004, 0),
        ((0.011, 0.001, 0.050, 0.012), 0.050, 3),
    ],
)
async def test_the_longest_and_how_often(late: tuple[float, ...], longest: float, count: int) -> None:
    """The longest time is kept, and each one above the bound is counted."""
    watch = LoopWatch(Late(*late))
    with pytest.raises(asyncio.CancelledError):
        await watch.run()
    found = watch.statistics()
    assert found.blocked_seconds_max == pytest.approx(longest)
    assert found.blocked_count == count


async def test_a_loop_that_is_blocked_is_seen() -> None:
    """Against the real clock: a call that does not give the loop back shows with its length."""
    watch = LoopWatch(SystemClock())
    running = asyncio.create_task(watch.run())
    await asyncio.sleep(2 * LOOK_SECONDS)
    time.sleep(0.2)  # noqa: ASYNC251 - this is what is to be seen
    await asyncio.sleep(2 * LOOK_SECONDS)
    running.cancel()
    found = watch.statistics()
    assert found.blocked_seconds_max > 0.2 - 2 * LOOK_SECONDS
    assert found.blocked_count >= 1
