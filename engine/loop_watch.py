"""How long the event loop was blocked: everything that waits for it, heartbeats among it, waited so long.

It wakes every few milliseconds and sees how late it is. Another task's work, a function that holds the interpreter
lock, and a machine that has no processor free all show here alike.
"""

from __future__ import annotations

from dataclasses import dataclass

from engine.protocols import Clock

#: Between two looks. What blocks the loop for less goes unseen now and then.
LOOK_SECONDS = 0.005

#: A loop that is blocked for longer is worth a word.
BLOCKED_SECONDS_MAX = 0.010


@dataclass(frozen=True, slots=True)
class LoopStatistics:
    """The longest time, and how often it was above `BLOCKED_SECONDS_MAX`."""

    blocked_seconds_max: float = 0.0
    blocked_count: int = 0


class LoopWatch:
    """`run` it as a task beside the others; `statistics` any time."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._statistics = LoopStatistics()

    def statistics(self) -> LoopStatistics:
        return self._statistics

    async def run(self) -> None:
        """Watch until cancelled."""
        while True:
            before = self._clock.monotonic()
            await self._clock.sleep(LOOK_SECONDS)
            late = self._clock.monotonic() - before - LOOK_SECONDS
            known = self._statistics
            if late > min(known.blocked_seconds_max, BLOCKED_SECONDS_MAX):
                self._statistics = LoopStatistics(
                    max(known.blocked_seconds_max, late), known.blocked_count + (late > BLOCKED_SECONDS_MAX)
                )
