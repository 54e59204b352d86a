"""One deadline, handed down a whole path instead of a timeout for each step of it."""

from __future__ import annotations

from engine.protocols import Clock


class Deadline:
    def __init__(self, clock: Clock, seconds: float) -> None:
        assert seconds >= 0
        self._clock = clock
        self._seconds = seconds
        self._at = clock.monotonic() + seconds

    @property
    def seconds_left(self) -> float:
        """Never below 0."""
        return max(0.0, self._at - self._clock.monotonic())

    def share(self, part: float) -> float:
        """Seconds until ``part`` (0 to 1) of the whole time has gone; never below 0."""
        return max(0.0, self.seconds_left - (1.0 - part) * self._seconds)
