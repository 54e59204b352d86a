"""What the hand-written loop does with the real data: access log lines, and change events of a table.

As with the rest of the loop: good, and no more careful than such a script is. Times of lines are read for those
that are kept; changes of a key stand in one partition, so that the last of a batch wins and no position is kept.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import re
from pathlib import Path
from typing import Any

import duckdb
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
from aiokafka import TopicPartition

from benchmarks.systems.aiokafka_work import Records, Work
from benchmarks.systems.job import Job
from functions.etl import RUNWAYS

LINE = re.compile(r'(\S+) (\S+) (.*?) \[([^\]]+)\] "(.*)" (\d{3}) (\d+|-)\s*')
FAILURES = pa.schema(
    [
        *((name, pa.string()) for name in ("host", "ident", "user")),
        ("ts", pa.timestamp("us", tz="UTC")),
        *((name, pa.string()) for name in ("method", "path", "protocol")),
        ("status", pa.int16()),
        ("bytes", pa.int64()),
    ]
)


class Logs(Work):
    """Lines of status 400 to 599, typed, in Parquet files."""

    def __init__(self, job: Job, tag: str) -> None:
        super().__init__(job, tag)
        self.rows: list[dict[str, Any]] = []
        self.files = 0

    async def take(self, partition: TopicPartition, records: Records) -> None:
        match = LINE.fullmatch
        for record in records:
            found = match(record.value.decode())
            if found is None:
                raise ValueError(f"{record.value!r} is no line of an access log")
            if found[6] >= "400":
                self.rows.append(_row(found))

    async def settle(self) -> None:
        rows, self.rows = self.rows, []
        if rows:
            path = self.job.directory / f"{self.tag}-{self.files:05}.parquet"
            self.files += 1
            await asyncio.to_thread(_write, path, rows)


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    pq.write_table(pa.Table.from_pylist(rows, schema=FAILURES), path, compression="zstd")


def _row(found: re.Match[str]) -> dict[str, Any]:
    host, ident, user, time, request, status, size = found.groups()
    method, _, rest = request.partition(" ")
    path, _, protocol = rest.rpartition(" ") if " HTTP/" in rest else (rest, "", "")
    return {
        "host": host,
        "ident": None if ident == "-" else ident,
        "user": None if user == "-" else user,
        "ts": dt.datetime.strptime(time, "%d/%b/%Y:%H:%M:%S %z"),
        "method": method,
        "path": path,
        "protocol": protocol or None,
        "status": int(status),
        "bytes": 0 if size == "-" else int(size),
    }


class Changes(Work):
    """The last change of each key of a batch, merged into a DuckDB table in one transaction."""

    async def start(self) -> None:
        self.database = duckdb.connect(str(self.job.directory / "runways.db"))
        columns = ", ".join(f'"{name}" {kind}' for name, kind in RUNWAYS.items())
        self.database.execute(f"CREATE TABLE runways ({columns}, PRIMARY KEY (id))")
        self.last: dict[str, dict[str, Any] | None] = {}

    async def take(self, partition: TopicPartition, records: Records) -> None:
        loads, last = orjson.loads, self.last
        for record in records:
            change = loads(record.value)
            after = change["after"]
            if after is None:
                last[change["before"]["id"]] = None
            else:
                last[after["id"]] = after

    async def settle(self) -> None:
        last, self.last = self.last, {}
        if last:
            await asyncio.to_thread(self.merge, last)

    def merge(self, last: dict[str, dict[str, Any] | None]) -> None:
        gone = pa.table({"id": [key for key, row in last.items() if row is None]}, pa.schema([("id", pa.string())]))
        schema = pa.schema([(name, pa.string()) for name in RUNWAYS])
        kept = pa.Table.from_pylist([row for row in last.values() if row is not None], schema=schema)
        casts = ", ".join(
            f'"{name}"' if kind == "VARCHAR" else f"""nullif("{name}", '')::{kind}"""
            for name, kind in RUNWAYS.items()
        )
        database = self.database
        database.register("gone", gone)
        database.register("kept", kept)
        database.execute("BEGIN")
        database.execute("DELETE FROM runways WHERE id IN (SELECT id::BIGINT FROM gone)")
        database.execute(f"INSERT OR REPLACE INTO runways SELECT {casts} FROM kept")
        database.execute("COMMIT")

    async def finish(self) -> None:
        self.database.close()
