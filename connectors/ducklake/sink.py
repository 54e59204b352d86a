"""A pipeline's table in a lake as `engine.protocols.Sink`: the DuckDB sink over another ledger, for appending only.

A commit is one transaction of the lake, and so one snapshot: rows, positions, failed records and states are of one
piece at every moment, and in every snapshot that is kept. Not here: how that is written (`ledger`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import duckdb
import pyarrow as pa

from connectors.duckdb.commit import Append
from connectors.duckdb.sink import DuckDBSink, Ready
from connectors.ducklake.database import LakeDatabase
from connectors.ducklake.ledger import insert
from engine.errors import SinkMismatch
from engine.protocols import Clock


@dataclass(frozen=True, slots=True)
class LakeAppend(Append):
    """Rows are added: few to the catalogue's file, many in a Parquet file of each commit."""

    def store(self, connection: duckdb.DuckDBPyConnection, rows: Sequence[pa.Table]) -> None:
        insert(connection, self.table.sql, pa.concat_tables(rows))


class DuckLakeSink(DuckDBSink):
    """One table of a lake, bound to one pipeline and one stream. Rows are only ever added.

    The settings, phases and errors are those of `connectors.duckdb.DuckDBSink` in mode "append".
    """

    def __init__(
        self,
        database: LakeDatabase,
        *,
        pipeline: str,
        table: str,
        clock: Clock,
        commit_interval_max_seconds: float = 5.0,
        commit_bytes_max: int = 67_108_864,
        on_recreated_topic: Literal["stop", "restart"] = "stop",
        phase: Callable[[str], None] | None = None,
    ) -> None:
        super().__init__(
            database,
            pipeline=pipeline,
            table=table,
            clock=clock,
            commit_interval_max_seconds=commit_interval_max_seconds,
            commit_bytes_max=commit_bytes_max,
            on_recreated_topic=on_recreated_topic,
            phase=phase,
            ledger=database.ledger,
        )

    def _ready_table(self, connection: duckdb.DuckDBPyConnection, durable: pa.Schema) -> Ready:
        try:
            _target, schema = super()._ready_table(connection, durable)
        except (duckdb.InvalidInputException, duckdb.NotImplementedException) as error:
            types = ", ".join(f"{field.name} {field.type}" for field in durable)
            raise SinkMismatch(
                f"table {self.table}: DuckLake has no columns for the rows' schema ({types}): {error}",
                hint="Give those columns another type: lists in place of arrays of a fixed size.",
            ) from error
        return LakeAppend(self.table), schema
