"""The sink suite over a directory of Parquet files."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from connectors.parquet import ParquetSink
from engine.clock import SystemClock
from tests.conformance.sink_suite import ROWS, SinkStorage, SinkSuite
from tests.conformance.state_suite import StateSuite


class ParquetStorage:
    def __init__(self, path: Path) -> None:
        self._path = path

    def sink(self, *, pipeline: str = "p", on_recreated_topic: str = "stop") -> ParquetSink:
        return ParquetSink(
            self._path,
            pipeline=pipeline,
            clock=SystemClock(),
            on_recreated_topic=on_recreated_topic,  # type: ignore[arg-type]
            checkpoint_every=4,
        )

    def rows(self) -> list[tuple[int, int, str]]:
        tables = [pq.read_table(path).to_pylist() for path in self._path.glob("**/*.parquet")]
        return [tuple(row[name] for name in ROWS.names) for table in tables for row in table]


class TestParquetSink(SinkSuite):
    @pytest.fixture
    def storage(self, tmp_path: Path) -> SinkStorage:
        return ParquetStorage(tmp_path / "out")


class TestParquetState(StateSuite):
    @pytest.fixture
    def storage(self, tmp_path: Path) -> SinkStorage:
        return ParquetStorage(tmp_path / "out")
