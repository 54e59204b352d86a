"""A lake of a test: its sink, outcomes of it, and what a reader finds once nobody writes."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import cache
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from connectors.ducklake import DuckLakeSink, LakeDatabase
from connectors.ducklake.attaching import instance, leave, use
from engine.batch import Stream
from engine.clock import SystemClock
from engine.protocols import Counts, FailedRecord, Outcome, ShardWriter

STREAM = Stream("cluster", "clicks", "id-1", 2)


def sink_over(database: LakeDatabase, **settings: object) -> DuckLakeSink:
    given = {"pipeline": "p", "table": "clicks", "clock": SystemClock(), **settings}
    return DuckLakeSink(database, **given)  # type: ignore[arg-type]


@asynccontextmanager
async def opened(path: Path, **settings: object) -> AsyncIterator[DuckLakeSink]:
    sink = sink_over(LakeDatabase(path), **settings)
    await sink.open(STREAM)
    try:
        yield sink
    finally:
        await sink.close()


def outcome(start: int, end: int, *, failures: Sequence[FailedRecord] = (), state: bytes | None = None) -> Outcome:
    """One row for each offset that did not fail."""
    failed = {failure.offset for failure in failures}
    ids = [offset for offset in range(start, end) if offset not in failed]
    counts = Counts(handled=len(ids), failed=len(failed))
    return Outcome(start, end, pa.table({"id": pa.array(ids, pa.int64())}), counts, list(failures), state)


def failure(offset: int, value: bytes = b"\xff\x00'") -> FailedRecord:
    return FailedRecord(0, offset, 1_700_000_000_000, None, value, (("h", b"\x00"),), "no\n'", "ValueError", 2)


async def committed(shard: ShardWriter, *outcomes: Outcome) -> int:
    for each in outcomes:
        await shard.write(each)
    return await shard.commit()


@cache
def _reader() -> duckdb.DuckDBPyConnection:
    # To load the extension takes longer than most tests do.
    return instance(Path(tempfile.gettempdir()) / "headrace-reader", {})


def read(path: Path, sql: str) -> list[tuple[Any, ...]]:
    """What a query finds in a lake that nobody has open; `open_lake` is the way of the product."""
    connection = _reader()
    use(connection, path, "READ_ONLY")
    try:
        return connection.execute(sql).fetchall()
    finally:
        leave(connection)


def data_files(path: Path) -> list[Path]:
    return sorted(path.with_name(path.name + ".files").rglob("*.parquet"))
