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
        self._handling: dict[object, int] = {}
        self._total = 0
        self._changed = asyncio.Event()

    @property
    def total(self) -> int:
        """Bytes that all holders report."""
        return self._total

    @property
    def bytes_max(self) -> int:
        return self._bytes_max

    @property
    def is_exceeded(self) -> bool:
        return self._total >= self._bytes_max

    def is_largest(self, holder: object) -> bool:
        """The whole is over the bound, and nobody keeps more than ``holder``: it is the one to give back."""
        return self.is_exceeded and self._held.get(holder, 0) >= max(self._held.values(), default=0)

    def report(self, holder: object, held: int) -> None:
        """Say what ``holder`` holds now, in bytes, beside what it was admitted with; 0 forgets it."""
        assert held >= 0
        before = self._held.get(holder, 0)
        if held:
            self._held[holder] = held
        else:
            self._held.pop(holder, None)
        self._total += held - before
        if held < before:
            self._changed.set()

    def admits(self, holder: object, size: int) -> bool:
        """Count ``size`` bytes more until `done`, if they fit. One holder is always let in, whatever it brings."""
        assert holder not in self._handling
        if self._handling and self._total + size > self._bytes_max:
            return False
        self._handling[holder] = size
        self._total += size
        return True

    async def admit(self, holder: object, size: int) -> bool:
        """Wait until `admits` says yes."""
        while not self.admits(holder, size):
            self._changed.clear()
            await self._changed.wait()
        return True

    def done(self, holder: object) -> None:
        """What ``holder`` was admitted with is let go; nothing happens where it was not."""
        self._total -= self._handling.pop(holder, 0)
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
