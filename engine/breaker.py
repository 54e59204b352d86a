"""A circuit breaker for a shard: it stops the shard when too many of its last records failed.

A failing dependency or a new format else sends a whole topic to the on-failure destination, record by record.
"""

from __future__ import annotations

from collections import deque

from engine.errors import DataError
from engine.protocols import Counts


class Breaker:
    """Looks at the last ``records`` of one shard that were handled or failed; trips above ``share_max``."""

    def __init__(self, *, share_max: float, records: int) -> None:
        assert 0 < share_max <= 1
        self._share_max = share_max
        self._records = records
        self._last: deque[tuple[int, int]] = deque()  # of each outcome: records, failed ones
        self._seen = self._failed = 0

    def trips(self, label: str, counts: Counts) -> DataError | None:
        """Count an outcome; the error that stops the shard, if it is one too many."""
        seen = counts.handled + counts.failed
        if not seen:
            return None
        self._last.append((seen, counts.failed))
        self._seen += seen
        self._failed += counts.failed
        while self._seen - self._last[0][0] >= self._records:
            gone, failed = self._last.popleft()
            self._seen -= gone
            self._failed -= failed
        # A share of fewer records says nothing yet.
        if self._seen < self._records or self._failed <= self._share_max * self._seen:
            return None
        return DataError(
            f"{label}: {self._failed} of the last {self._seen} records failed, more than "
            f"failed_share_max = {self._share_max:g}",
            hint="they are reported; mend the cause, start again, and send them again with headrace dlq replay",
        )
