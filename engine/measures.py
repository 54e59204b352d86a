"""Counters of what a pipeline does, added to on the event loop: for an attempt or commit, never for a record."""

from __future__ import annotations

import bisect
from dataclasses import dataclass, field

from engine.status import BATCH_BOUNDS, DURATION_BOUNDS, Distribution


class Histogram:
    """Counts values in classes; memory does not grow."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._total = 0.0

    def add(self, value: float) -> None:
        self._counts[bisect.bisect_left(self._bounds, value)] += 1
        self._total += value

    def distribution(self) -> Distribution:
        return Distribution(self._bounds, tuple(self._counts), self._total)


@dataclass(slots=True)
class Measures:
    """What a pipeline's attempts and commits came to in this run."""

    invocations: int = 0
    errors: int = 0
    throttles: int = 0
    retries: int = 0
    splits: int = 0
    duration: Histogram = field(default_factory=lambda: Histogram(DURATION_BOUNDS))
    batch_records: Histogram = field(default_factory=lambda: Histogram(BATCH_BOUNDS))
    commit: Histogram = field(default_factory=lambda: Histogram(DURATION_BOUNDS))

    def attempted(self, seconds: float, records: int, *, failed: bool) -> None:
        """Count one attempt of a function."""
        self.invocations += 1
        self.errors += failed
        self.duration.add(seconds)
        self.batch_records.add(records)
