"""The clock that production runs on."""

from __future__ import annotations

import asyncio
import time


class SystemClock:
    """`engine.protocols.Clock` over the operating system."""

    def monotonic(self) -> float:
        return time.monotonic()

    def time(self) -> float:
        return time.time()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
