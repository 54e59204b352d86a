"""A clock that the test owns: time passes only when the test says so."""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import Callable

#: Turns of the event loop that work without real waits may take.
TURNS_MAX = 50_000


class ManualClock:
    """`engine.protocols.Clock`. It starts at 1,000 s, also since the epoch."""

    def __init__(self, now: float = 1_000.0) -> None:
        self._now = now
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._numbers = itertools.count()

    def monotonic(self) -> float:
        return self._now

    def time(self) -> float:
        return self._now

    async def sleep(self, seconds: float) -> None:
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        waking = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self._now + seconds, next(self._numbers), waking))
        await waking

    async def advance(self, seconds: float) -> None:
        """Let time pass, waking each sleeper at its time, and what it wakes get on with it."""
        end = self._now + seconds
        await turns()
        while self._sleepers and self._sleepers[0][0] <= end:
            at, _, waking = heapq.heappop(self._sleepers)
            self._now = max(self._now, at)
            if not waking.done():
                waking.set_result(None)
                await turns()
        self._now = end
        await turns()


async def turns(count: int = 40) -> None:
    """Let everything that can run do so, for some turns of the event loop."""
    for _ in range(count):
        await asyncio.sleep(0)


async def until(condition: Callable[[], bool]) -> None:
    """Turn the event loop until ``condition`` holds; for work that waits for nothing real."""
    for _ in range(TURNS_MAX):
        if condition():
            return
        await asyncio.sleep(0)
    raise AssertionError(f"it did not come about in {TURNS_MAX} turns")
