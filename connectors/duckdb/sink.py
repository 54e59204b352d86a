"""A pipeline's table in a DuckDB file as `engine.protocols.Sink`, and its shards.

A commit is one transaction: the shard's position is moved where it still has the expected value and the
shard's owner is still this one, then rows and failures are written. Of two owners one changes no row of
the positions and is told ShardLost.

Rows wait in memory as Arrow tables until the commit; nothing touches the file before. Partial aggregates are
combined while they wait. Not here: SQL (`catalog`, `commit`, `upsert`, `aggregate`), threads and the file
(`database`).
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import duckdb
import pyarrow as pa

from connectors.duckdb import aggregate, catalog
from connectors.duckdb.aggregate import Aggregate
from connectors.duckdb.catalog import Binding, Shard
from connectors.duckdb.commit import FILE_LEDGER, Append, ShardCommit
from connectors.duckdb.database import Database
from connectors.duckdb.ledger import Ledger
from connectors.duckdb.pending import COPIED_BYTES_MAX, TABLE_BYTES, Pending, compact
from connectors.duckdb.schema import (
    TableName,
    arrow_columns,
    conform,
    create_table,
    plain,
    require_same,
    table_columns,
)
from connectors.duckdb.upsert import Upsert
from engine.batch import Stream
from engine.errors import ConfigError, InternalError, ShardLost
from engine.protocols import Clock, FailedRecord, Outcome

#: A table that is there, and the schema that rows for it have.
Ready = tuple[Append | Upsert | Aggregate, pa.Schema]

#: The durable schema under this name is the one that the table is made from.
ROWS = "rows"


def _no_phase(phase: str) -> None:
    del phase


class DuckDBSink:
    """One table of a DuckDB file, bound to one pipeline and one stream.

    ``table`` is a name or ``schema.name``; the table is made when the schema `ROWS` is adopted, at the latest
    with the first rows. ``mode`` "append" adds rows. "upsert" merges changes by the columns ``key``: the last
    by ``order_by`` stays, a row whose boolean ``delete_column`` is true deletes (see `connectors.duckdb.upsert`
    for what is later than what). A row without a key is refused on write: `engine.errors.RowsRefused`.
    "aggregate" takes rows for partial aggregates: the table has one row for each value of the columns ``key``, and
    every other column is merged by its entry in ``aggregates`` (see `connectors.duckdb.aggregate`).

    A shard's commit is due ``commit_interval_max_seconds`` after its first pending write, or at once when
    ``commit_bytes_max`` are pending. ``phase`` hears, in the writing thread, "recovering", "begin", "written" and
    "committed". Raises ConfigError for settings that cannot be.
    """

    def __init__(
        self,
        database: Database,
        *,
        pipeline: str,
        table: str,
        clock: Clock,
        mode: Literal["append", "upsert", "aggregate"] = "append",
        key: Sequence[str] = (),
        aggregates: Mapping[str, str] | None = None,
        order_by: str = "_offset",
        delete_column: str = "_deleted",
        commit_interval_max_seconds: float = 1.0,
        commit_bytes_max: int = 67_108_864,
        on_recreated_topic: Literal["stop", "restart"] = "stop",
        phase: Callable[[str], None] | None = None,
        ledger: Ledger = FILE_LEDGER,
    ) -> None:
        aggregates = {} if aggregates is None else dict(aggregates)
        faults = _faults(mode, key, aggregates)
        if faults:
            raise ConfigError(f"DuckDB sink of pipeline {pipeline}", faults)
        self.database = database
        self.ledger = ledger
        self.table = TableName.parse(table)
        self.commit_interval_max_seconds = commit_interval_max_seconds
        self.commit_bytes_max = commit_bytes_max
        self.clock = clock
        self.phase = phase if phase is not None else _no_phase
        self.target: Append | Upsert | Aggregate | None = None
        self._mode = mode
        self._key = tuple(key)
        self._aggregates = aggregates
        self._order_by = order_by
        self._delete_column = delete_column
        self._restart = on_recreated_topic == "restart"
        self._binding = Binding(
            pipeline,
            str(self.table),
            mode,
            self._key,
            order_by if mode == "upsert" else "",
            aggregate.canonical(aggregates),
        )
        self._stream: Stream | None = None
        self._rows_schema: pa.Schema | None = None
        self._partitions_at_start = 0

    async def open(self, stream: Stream) -> None:
        await self.database.open()
        try:
            self._partitions_at_start, ready = await self.database.run(
                lambda connection: self._bind(connection, stream)
            )
        except BaseException:
            await self.database.close()
            raise
        self._stream = stream
        if ready is not None:
            self.target, self._rows_schema = ready

    @property
    def partitions_at_start(self) -> int:
        return self._partitions_at_start

    async def adopt_schema(self, name: str, schema: pa.Schema) -> pa.Schema:
        """The durable schema of that name. Adopting `ROWS` makes the table, or compares the one there is.

        Raises SinkMismatch, which lists the columns that differ; then nothing is adopted.
        """

        def adopt(connection: duckdb.DuckDBPyConnection) -> tuple[pa.Schema, Ready | None]:
            durable = catalog.adopt(connection, self._binding.pipeline, name, schema)
            return durable, self._ready_table(connection, durable) if name == ROWS else None

        durable, ready = await self.database.run(adopt)
        if ready is not None:
            self.target, self._rows_schema = ready
        return durable

    async def schema(self, name: str) -> pa.Schema | None:
        return await self.database.run(lambda connection: catalog.adopted(connection, self._binding.pipeline, name))

    async def position(self, partition: int) -> int | None:
        shard = self._shard(partition)
        return await self.database.run(lambda connection: catalog.position(connection, shard))

    async def acquire(self, partition: int) -> DuckDBShard:
        shard, owner = self._shard(partition), str(uuid.uuid4())

        def take_over(connection: duckdb.DuckDBPyConnection) -> tuple[int | None, bytes]:
            self.phase("recovering")
            position = self.ledger.take_over(connection, shard, owner, self.clock.time())
            return position, catalog.state(connection, shard)

        return DuckDBShard(self, shard, owner, *await self.database.run(take_over))

    async def close(self) -> None:
        """Let go of the file; idempotent. The last sink's close writes the WAL into it."""
        if self._stream is not None:
            self._stream = None
            await self.database.close()

    async def take(self, rows: pa.Table) -> pa.Table:
        """``rows`` in the shape of the table, checked; the first ones make the table."""
        if self._rows_schema is None:
            await self.adopt_schema(ROWS, rows.schema)
            assert self._rows_schema is not None
        if not rows.schema.equals(self._rows_schema):
            # Casting copies columns: too long for the event loop.
            rows = await asyncio.to_thread(conform, self.table, rows, self._rows_schema)
        if isinstance(self.target, Upsert):
            self.target.require_values(rows)
        elif isinstance(self.target, Aggregate):
            rows = self.target.partial(rows)
            if rows.nbytes <= COPIED_BYTES_MAX:
                rows = compact(rows)
        return rows

    def pending(self) -> Pending:
        """Where a shard's outcomes wait for their commit."""
        return Pending(TABLE_BYTES if self._mode == "aggregate" else 0)

    def _shard(self, partition: int) -> Shard:
        if self._stream is None:
            raise InternalError(f"the sink of table {self.table} is not open")
        stream = self._stream
        return Shard(self._binding.pipeline, stream.cluster_id, stream.topic, stream.topic_id, partition)

    def _bind(self, connection: duckdb.DuckDBPyConnection, stream: Stream) -> tuple[int, Ready | None]:
        partitions, restarted = catalog.bind(connection, self._binding, stream, restart=self._restart)
        durable = catalog.adopted(connection, self._binding.pipeline, ROWS)
        if durable is None:
            return partitions, None
        ready = self._ready_table(connection, durable)
        if restarted and isinstance(ready[0], Upsert):
            ready[0].restart(connection)
        return partitions, ready

    def _ready_table(self, connection: duckdb.DuckDBPyConnection, durable: pa.Schema) -> Ready:
        """Make the table, or see that the one there is has the durable schema."""
        rows_schema = stored = plain(durable)
        target: Append | Upsert | Aggregate = Append(self.table)
        if self._mode == "aggregate":
            target = Aggregate.over(self.table, self._key, self._aggregates, rows_schema)
            stored = target.schema
        elif self._mode == "upsert":
            target = Upsert.over(self.table, self._key, self._order_by, self._delete_column, rows_schema)
            stored = target.stored(rows_schema)
        expected = arrow_columns(connection, self.table, stored)
        found = table_columns(connection, self.table)
        if found is None:
            create_table(connection, self.table, expected)
        else:
            require_same(self.table, expected, found)
        if isinstance(target, Upsert):
            target.create_side_table(connection, expected)
        return target, rows_schema


class DuckDBShard:
    """`engine.protocols.ShardWriter` of one shard; pending outcomes are kept until their commit is known."""

    def __init__(self, sink: DuckDBSink, shard: Shard, owner: str, position: int | None, state: bytes) -> None:
        self._sink = sink
        self._shard = shard
        self._owner = owner
        self._position = position
        self._state = state
        self._end = position
        self._pending = sink.pending()
        self._pending_since = 0.0
        self._under_way: ShardCommit | None = None
        self._lost: ShardLost | None = None

    @property
    def position(self) -> int | None:
        return self._position

    @property
    def state(self) -> bytes:
        return self._state

    @property
    def pending_bytes(self) -> int:
        return self._pending.nbytes

    def due_at(self) -> float | None:
        if not self._pending:
            return None
        if self._pending.nbytes >= self._sink.commit_bytes_max:
            return self._sink.clock.monotonic()
        return self._pending_since + self._sink.commit_interval_max_seconds

    async def write(self, outcome: Outcome) -> None:
        """Keep an outcome for the next commit. RowsRefused, DataError and SinkMismatch leave it out whole."""
        await self._settle()
        if self._end is not None and outcome.start != self._end:
            raise InternalError(f"{self._shard}: [{outcome.start}, {outcome.end}) does not follow {self._end}")
        rows = outcome.rows
        if rows is not None:
            rows = await self._sink.take(rows) if rows.num_rows else None
        target = self._sink.target
        if isinstance(target, Aggregate) and self._pending.is_worth_combining:
            waiting = self._pending.rows
            self._pending.combined(
                await self._sink.database.run(lambda connection: target.combine(connection, waiting))
            )
        if not self._pending:
            self._pending_since = self._sink.clock.monotonic()
        self._pending.add(outcome, rows)
        self._end = outcome.end

    async def commit(self) -> int:
        """Commit what is pending; 0 when there never was anything. After SinkUnavailable it may be called again."""
        await self._settle()
        if self._pending:
            commit = self._under_way = ShardCommit(
                shard=self._shard,
                owner=self._owner,
                expected=self._position,
                start=self._pending.start,
                end=self._pending.end,
                counts=self._pending.counts,
                rows=self._pending.rows,
                rows_given=self._pending.rows_given,
                failures=self._pending.failures,
                state=self._pending.state,
                target=self._sink.target,
                phase=self._sink.phase,
                now=self._sink.clock.time(),
                ledger=self._sink.ledger,
            )
            self._sink.database.submit(commit)
            await self._settle()
        return self._position if self._position is not None else 0

    async def failures(self, records_max: int) -> tuple[int, Sequence[FailedRecord]]:
        """The mark is the offset after the last failure given, 0 when there is none."""
        await self._settle()

        def read(connection: duckdb.DuckDBPyConnection) -> list[FailedRecord]:
            self._require_owned(connection)
            return self._sink.ledger.undelivered(connection, self._shard, records_max)

        found = await self._sink.database.run(read)
        return (found[-1].offset + 1 if found else 0), found

    async def delivered(self, mark: int) -> None:
        """The rows stay, marked as delivered, so that they can be listed and sent again."""
        await self._settle()

        def write(connection: duckdb.DuckDBPyConnection) -> None:
            self._require_owned(connection)
            self._sink.ledger.mark_delivered(connection, self._shard, mark)

        await self._sink.database.run(write)

    async def release(self) -> None:
        if self._under_way is not None:
            self._sink.database.withdraw(self._under_way)
        self._forget(ShardLost(f"{self._shard}: released"))

    async def _settle(self) -> None:
        """Learn the end of the commit that is under way, if any: a cancelled `commit` leaves one behind."""
        if self._under_way is not None:
            commit = self._under_way
            error = await asyncio.shield(asyncio.wrap_future(commit.done))
            self._under_way = None
            if isinstance(error, ShardLost):
                self._forget(error)
            elif error is not None:
                raise error
            else:
                self._position = commit.end
                self._state = self._state if commit.state is None else commit.state
                self._pending = self._sink.pending()
        if self._lost is not None:
            raise self._lost

    def _require_owned(self, connection: duckdb.DuckDBPyConnection) -> None:
        if not catalog.owned(connection, self._shard, self._owner):
            self._lost = ShardLost(f"{self._shard}: another owner has taken it")
            raise self._lost

    def _forget(self, error: ShardLost) -> None:
        if self._lost is None:
            self._lost = error
        self._pending = self._sink.pending()


def _faults(mode: str, key: Sequence[str], aggregates: Mapping[str, str]) -> list[str]:
    """What is wrong with the settings, each in a sentence."""
    if mode == "aggregate":
        return aggregate.faults(key, aggregates)
    found = []
    if (mode == "upsert") != bool(key):
        takes = "at least one column" if mode == "upsert" else "none"
        found.append(f"key = {list(key)}: mode {mode!r} takes {takes}")
    if aggregates:
        found.append(f'aggregates = {dict(aggregates)}: mode {mode!r} takes none, mode "aggregate" does')
    return found
