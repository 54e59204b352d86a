"""`MemoryDestination`: failed records in a list. For tests, which can make it refuse."""

from __future__ import annotations

from collections.abc import Sequence

from engine.errors import DestinationUnavailable
from engine.protocols import FailedRecord


class MemoryDestination:
    """``records`` holds every delivery, so that one that came twice shows. ``refusing``: raise instead."""

    def __init__(self) -> None:
        self.records: list[FailedRecord] = []
        self.refusing = False
        self.refusals = 0

    async def open(self) -> None:
        return

    async def deliver(self, records: Sequence[FailedRecord]) -> None:
        if self.refusing:
            self.refusals += 1
            raise DestinationUnavailable(f"the memory destination refuses {len(records)} records")
        self.records.extend(records)

    async def close(self) -> None:
        return
