"""The sink suite over a table of a DuckDB file."""

from __future__ import annotations

from pathlib import Path

import duckdb
import pytest

from connectors.duckdb import Database, DuckDBSink
from engine.clock import SystemClock
from tests.conformance.sink_suite import SinkStorage, SinkSuite


class DuckDBStorage:
    def __init__(self, path: Path) -> None:
        self._database = Database(path)

    def sink(self, *, pipeline: str = "p", on_recreated_topic: str = "stop") -> DuckDBSink:
        return DuckDBSink(
            self._database,
            pipeline=pipeline,
            table="clicks",
            clock=SystemClock(),
            on_recreated_topic=on_recreated_topic,  # type: ignore[arg-type]
        )

    def rows(self) -> list[tuple[int, int, str]]:
        # In the process that writes, a second connection sees what a reader sees: whole transactions.
        with duckdb.connect(self._database.path) as connection:
            tables = connection.execute(
                "SELECT table_name FROM duckdb_tables() WHERE schema_name = 'main'"
            ).fetchall()
            if ("clicks",) not in tables:
                return []
            return connection.execute("SELECT _partition, _offset, text FROM clicks").fetchall()


class TestDuckDBSink(SinkSuite):
    @pytest.fixture
    def storage(self, tmp_path: Path) -> SinkStorage:
        return DuckDBStorage(tmp_path / "out.db")
