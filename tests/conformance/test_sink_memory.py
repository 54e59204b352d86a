"""The sink suite over the sink in memory."""

from __future__ import annotations

import pytest

from connectors.memory import MemorySink, MemoryStore
from engine.clock import SystemClock
from tests.conformance.sink_suite import SinkStorage, SinkSuite
from tests.conformance.state_suite import StateSuite


class MemoryStorage:
    def __init__(self) -> None:
        self.store = MemoryStore()

    def sink(self, *, pipeline: str = "p", on_recreated_topic: str = "stop") -> MemorySink:
        return MemorySink(
            self.store,
            pipeline=pipeline,
            clock=SystemClock(),
            on_recreated_topic=on_recreated_topic,  # type: ignore[arg-type]
        )

    def rows(self) -> list[tuple[int, int, str]]:
        tables = [outcome.rows for shard in self.store.shards.values() for outcome in shard.outcomes]
        rows = [row for table in tables if table is not None for row in table.to_pylist()]
        return [(row["_partition"], row["_offset"], row["text"]) for row in rows]


class TestMemorySink(SinkSuite):
    @pytest.fixture
    def storage(self) -> SinkStorage:
        return MemoryStorage()


class TestMemoryState(StateSuite):
    @pytest.fixture
    def storage(self) -> SinkStorage:
        return MemoryStorage()
