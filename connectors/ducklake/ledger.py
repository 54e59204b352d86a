"""Positions and failed records in a lake, and what makes a transaction's files durable before its COMMIT.

DuckLake flushes its catalogue on COMMIT and never the data files that it names: after a loss of power positions
would be there and rows would not. `LakeLedger.seal` flushes them, and their directories, first.

Few rows go into the catalogue's file itself (DuckLake calls that inlining), so that a quiet stream does not make a
file for each handful; they go there as SQL text, which is slow for large values, so those never do.
"""

# ruff: noqa: S608 - only quoted identifiers, literals and names of this package are put into statements.

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import duckdb
import pyarrow as pa

from connectors.duckdb import catalog
from connectors.duckdb.catalog import IS_SHARD, Shard
from connectors.duckdb.ledger import MOVE, MOVED
from connectors.duckdb.schema import registered
from engine.errors import InternalError, ShardLost
from engine.protocols import FailedRecord

#: An insert of more rows or bytes than these makes a file. 72 MB as SQL text took 6 s and 900 MB of memory.
INLINED_ROWS_MAX = 100
INLINED_BYTES_MAX = 65_536

#: Files are known by the time in their names; so much may a clock go back within a transaction.
CLOCK_SECONDS_MAX = 60.0

_COMPARE_AND_SET = f"UPDATE headrace.positions AS p SET {MOVE}"


class LakeLedger:
    """Of the lake whose data files are in ``data_path``; for the one thread that writes to it."""

    def __init__(self, data_path: Path, *, fsync: Callable[[int], None] = os.fsync) -> None:
        self.data_path = data_path
        self._fsync = fsync
        self._sealed_at = time.time()
        self._sealed: set[str] = set()  # files of the last minute
        self._folders: set[str] = set()

    def take_over(self, connection: duckdb.DuckDBPyConnection, shard: Shard, owner: str, now: float) -> int | None:
        found = connection.execute(
            "SELECT first_offset, next_offset, handled + filtered + dropped + failed + absent"
            f" FROM headrace.positions WHERE {IS_SHARD}",
            shard.key,
        ).fetchall()
        if len(found) > 1:
            raise InternalError(f"{shard} has {len(found)} positions in the lake")
        if not found:
            connection.execute(
                "INSERT INTO headrace.positions"
                " SELECT ?, ?, ?, ?, ?, ?, NULL, NULL, 0, 0, 0, 0, 0, 0, 0, make_timestamp(?)",
                [*shard.key, shard.topic, owner, int(now * 1e6)],
            )
            return None
        position = catalog.whole(shard, *found[0])
        connection.execute(
            f"UPDATE headrace.positions SET owner = ?, updated = make_timestamp(?) WHERE {IS_SHARD}",
            [owner, int(now * 1e6), *shard.key],
        )
        return position

    def move(self, connection: duckdb.DuckDBPyConnection, moves: pa.Table) -> list[tuple[str, int, int, int]]:
        with registered(connection, "headrace_moves", moves):
            [(count,)] = connection.execute(_COMPARE_AND_SET).fetchall()
        if count == 0:
            return []
        if count != moves.num_rows:
            # An UPDATE of a lake does not say which rows it met. Each is tried alone now, and one of them is lost.
            raise ShardLost(f"{count} of {moves.num_rows} positions were where they were expected")
        moved = connection.execute(
            f"SELECT {MOVED} FROM headrace.positions AS p WHERE p.owner IN (SELECT unnest(?))",
            [moves.column("owner").to_pylist()],
        ).fetchall()
        if len(moved) != count:
            raise InternalError(f"{count} positions were moved, {len(moved)} are read back")
        return moved

    def keep(self, connection: duckdb.DuckDBPyConnection, failures: pa.Table) -> None:
        insert(connection, "headrace.failures", failures.drop_columns(["delivered"]))

    def set_state(self, connection: duckdb.DuckDBPyConnection, shard: Shard, state: bytes) -> None:
        connection.execute(f"DELETE FROM headrace.states WHERE {IS_SHARD}", shard.key)
        if state:
            with _inlining(connection, len(state) <= INLINED_BYTES_MAX):
                connection.execute("INSERT INTO headrace.states VALUES (?, ?, ?, ?, ?)", [*shard.key, state])

    def undelivered(
        self, connection: duckdb.DuckDBPyConnection, shard: Shard, records_max: int
    ) -> list[FailedRecord]:
        return undelivered(connection, shard, records_max)

    def mark_delivered(self, connection: duckdb.DuckDBPyConnection, shard: Shard, before: int) -> None:
        connection.execute(
            f"UPDATE headrace.positions SET delivered_before = ? WHERE {IS_SHARD} AND delivered_before < ?",
            [before, *shard.key, before],
        )

    def seal(self, connection: duckdb.DuckDBPyConnection) -> None:
        """Flush every data file that the transaction can have written, and the directories that have its name."""
        del connection
        now = time.time()
        since = min(self._sealed_at, now) - CLOCK_SECONDS_MAX
        recent: set[str] = set()
        for folder, files in _folders(str(self.data_path)):
            fresh = {f"{folder}/{name}" for name in files if _made_at(name) >= since}
            unsealed = fresh - self._sealed
            recent |= fresh
            for path in unsealed:
                self._flush(path)
            if unsealed or folder not in self._folders:
                self._flush(folder)
                self._folders.add(folder)
        self._sealed, self._sealed_at = recent, now

    def _flush(self, path: str) -> None:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            self._fsync(descriptor)
        finally:
            os.close(descriptor)


def undelivered(connection: duckdb.DuckDBPyConnection, shard: Shard, records_max: int) -> list[FailedRecord]:
    """The shard's failures from its ``delivered_before`` on, by offset."""
    found = connection.execute(
        "SELECT * EXCLUDE (pipeline, cluster_id, topic, topic_id, failed_at) FROM headrace.failures"
        f' WHERE {IS_SHARD} AND "offset" >= (SELECT max(delivered_before) FROM headrace.positions WHERE {IS_SHARD})'
        ' ORDER BY "offset" LIMIT ?',
        [*shard.key, *shard.key, records_max],
    )
    return catalog.failed_records(found)


def insert(connection: duckdb.DuckDBPyConnection, table: str, rows: pa.Table) -> None:
    """Add rows to ``table``, an SQL name, by the names of their columns."""
    few = rows.num_rows <= INLINED_ROWS_MAX and rows.nbytes <= INLINED_BYTES_MAX
    with registered(connection, "headrace_rows", rows), _inlining(connection, few):
        connection.execute(f"INSERT INTO {table} BY NAME SELECT * FROM headrace_rows")


@contextmanager
def _inlining(connection: duckdb.DuckDBPyConnection, inlined: bool) -> Iterator[None]:
    """Whether inserts go into the catalogue; an option that somebody has given a table stands above this."""
    connection.execute(f"SET ducklake_default_data_inlining_row_limit = {INLINED_ROWS_MAX if inlined else 0}")
    yield


def _folders(root: str) -> Iterator[tuple[str, list[str]]]:
    """Each directory below ``root`` and itself, deepest first, with its files' names."""
    for folder, _folders_in_it, files in os.walk(root, topdown=False):
        yield folder, files


def _made_at(name: str) -> float:
    """The time in the name of one of DuckLake's files (``ducklake-UUID...``, version 7); 0 for any other."""
    if not name.startswith("ducklake-"):
        return 0.0
    try:
        return int(name[9:17] + name[18:22], 16) / 1000
    except ValueError:
        return 0.0
