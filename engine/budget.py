"""One bound on the bytes in flight of all shards of the process.

Shards report what they hold; a shard that wants to read more waits while the whole is over the bound. A
shard gives back what it holds before it waits (`engine.shard`), so a wait always ends.
"""

from __future__ import annotations

import asyncio


class ByteBudget:
    def __init__(self, bytes_max: int) -> None:
        assert bytes_max > 0
        self._bytes_max = bytes_max
        self._held: dict[object, int] = {}
        self._total = 0
        self._changed = asyncio.Event()

    @property
    def total(self) -> int:
        """Bytes that all holders report."""
        return self._total

    @property
    def is_exceeded(self) -> bool:
        return self._total >= self._bytes_max

    def is_largest(self, holder: object) -> bool:
        """The whole is over the bound, and nobody holds more than ``holder``: it is the one to give back."""
        return self.is_exceeded and self._held.get(holder, 0) >= max(self._held.values(), default=0)

    def report(self, holder: object, held: int) -> None:
        """Say what ``holder`` holds now, in bytes; 0 forgets it."""
        assert held >= 0
        before = self._held.get(holder, 0)
        if held:
            self._held[holder] = held
        else:
            self._held.pop(holder, None)
        self._total += held - before
        if held < before:
            self._changed.set()

    async def wait(self, seconds_max: float) -> None:
        """Return when the whole is within the bound again, or after ``seconds_max``."""
        try:
            async with asyncio.timeout(seconds_max):
                while self.is_exceeded:
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            return
