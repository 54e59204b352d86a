"""The sink suite over a table of a DuckLake."""

from __future__ import annotations

from pathlib import Path

import pytest

from connectors.ducklake import DuckLakeSink, LakeDatabase
from engine.clock import SystemClock
from tests.conformance.sink_suite import SinkStorage, SinkSuite
from tests.conformance.state_suite import StateSuite


class DuckLakeStorage:
    def __init__(self, path: Path) -> None:
        self.database = LakeDatabase(path)

    def sink(self, *, pipeline: str = "p", on_recreated_topic: str = "stop") -> DuckLakeSink:
        return DuckLakeSink(
            self.database,
            pipeline=pipeline,
            table="clicks",
            clock=SystemClock(),
            on_recreated_topic=on_recreated_topic,  # type: ignore[arg-type]
        )

    def rows(self) -> list[tuple[int, int, str]]:
        # In the process that writes, a second connection sees what a reader sees: whole snapshots.
        with self.database.lending.cursor() as connection:
            if ("clicks",) not in connection.execute("SELECT table_name FROM duckdb_tables()").fetchall():
                return []
            return connection.execute("SELECT _partition, _offset, text FROM clicks").fetchall()


class TestDuckLakeSink(SinkSuite):
    @pytest.fixture
    def storage(self, tmp_path: Path) -> SinkStorage:
        return DuckLakeStorage(tmp_path / "lake.duckdb")


class TestDuckLakeState(StateSuite):
    @pytest.fixture
    def storage(self, tmp_path: Path) -> SinkStorage:
        return DuckLakeStorage(tmp_path / "lake.duckdb")
