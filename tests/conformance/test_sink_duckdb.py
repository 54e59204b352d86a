"""The sink suite over a table of a DuckDB file: of rows, and of aggregates that count how often a row came."""

from __future__ import annotations

from pathlib import Path

import duckdb
import pyarrow as pa
import pytest

from connectors.duckdb import Database, DuckDBSink
from engine.clock import SystemClock
from engine.protocols import Sink
from tests.conformance.sink_suite import STREAM, SinkStorage, SinkSuite
from tests.conformance.state_suite import StateSuite


class DuckDBStorage:
    query = "SELECT _partition, _offset, text FROM clicks"

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
            return connection.execute(self.query).fetchall()


class TestDuckDBSink(SinkSuite):
    @pytest.fixture
    def storage(self, tmp_path: Path) -> SinkStorage:
        return DuckDBStorage(tmp_path / "out.db")


class TestDuckDBState(StateSuite):
    @pytest.fixture
    def storage(self, tmp_path: Path) -> SinkStorage:
        return DuckDBStorage(tmp_path / "out.db")


#: A group's columns by those of the suite's rows, which the sink takes for a trace and drops.
NAMES = {"_partition": "shard", "_offset": "number", "text": "text"}


class CountingSink(DuckDBSink):
    """Makes a group of each row, so that a row that is stored twice is one with a count of 2."""

    async def take(self, rows: pa.Table) -> pa.Table:
        groups = rows.rename_columns([NAMES.get(name, name) for name in rows.column_names])
        return await super().take(groups.append_column("count", pa.array([1] * rows.num_rows, pa.int64())))


class AggregateStorage(DuckDBStorage):
    query = "SELECT shard, number, text FROM (SELECT *, unnest(range(count)) FROM clicks)"

    def sink(self, *, pipeline: str = "p", on_recreated_topic: str = "stop") -> DuckDBSink:
        return CountingSink(
            self._database,
            pipeline=pipeline,
            table="clicks",
            clock=SystemClock(),
            mode="aggregate",
            key=list(NAMES.values()),
            aggregates={"count": "count"},
            on_recreated_topic=on_recreated_topic,  # type: ignore[arg-type]
        )


class TestDuckDBAggregates(SinkSuite):
    @pytest.fixture
    def storage(self, tmp_path: Path) -> SinkStorage:
        return AggregateStorage(tmp_path / "out.db")

    async def test_a_schema_keeps_what_its_fields_say(self, sink: Sink, storage: SinkStorage) -> None:
        """As in the suite, with the columns that a table of aggregates has to have."""
        marked = pa.field("text", pa.string(), metadata={b"headrace.type": b"JSON"})
        numbers = [pa.field(name, pa.int64()) for name in ("shard", "number", "count")]
        for name in ("value", "rows"):
            await sink.adopt_schema(name, pa.schema([marked, *numbers]))
        other = storage.sink()
        await other.open(STREAM)
        for name in ("value", "rows"):
            found = await other.schema(name)
            assert found is not None
            assert found.equals(pa.schema([marked, *numbers]), check_metadata=True)
        await other.close()
