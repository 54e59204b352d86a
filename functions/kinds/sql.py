"""The kind `sql`: a DuckDB query over `batch`, the decoded columns.

Not here: decoding values and writing rows; this DuckDB has no file, and nothing outlives a call.

The query runs in a private in-memory database that can reach no file, no network and no Python variable,
and whose settings are locked. Each call has a cursor, and so a `batch`, of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import json

import duckdb
import pyarrow as pa

from engine.errors import HandlerError
from engine.protocols import Invocation, Result
from functions.kinds.arrow import check_names
from functions.kinds.calling import Caller

_LABEL = "the query (kind sql)"


class SqlHandler:
    """An `engine.protocols.Handler` over a query.

    ``schema`` is that of the columns, where it is known: then a query that names a missing column is refused
    here. ``memory_bytes_max`` bounds DuckDB's memory. Raises HandlerError for a query that is not one
    SELECT, or that cannot be planned.
    """

    wants_columns = True

    def __init__(
        self,
        query: str,
        *,
        timeout_seconds: float,
        concurrency_max: int,
        schema: pa.Schema | None = None,
        memory_bytes_max: int | None = None,
    ) -> None:
        self._query = query
        self._database = _database(memory_bytes_max)
        _check_select(self._database, query)
        if schema is not None:
            self.check(schema)
        self._caller = Caller(
            self._run, name="query", timeout_seconds=timeout_seconds, concurrency_max=concurrency_max
        )

    def check(self, schema: pa.Schema) -> None:
        """Plan the query over columns of that schema. Raises HandlerError."""
        prefix = "EXPLAIN "
        with self._database.cursor() as cursor:
            cursor.register("batch", schema.empty_table())
            try:
                cursor.execute(prefix + self._query)
            except duckdb.Error as error:
                raise _explained(error, self._query, skip=len(prefix)) from error

    async def open(self) -> None:
        """Nothing to do: the query has been planned, where its columns are known."""

    async def invoke(self, invocation: Invocation) -> Result:
        assert invocation.columns is not None, "this kind wants columns"
        cursors: list[duckdb.DuckDBPyConnection] = []
        return await self._caller.call(
            lambda: (cursors, invocation.columns),
            _result,
            interrupt=lambda: _interrupt(cursors),
        )

    def _run(self, cursors: list[duckdb.DuckDBPyConnection], columns: pa.RecordBatch) -> pa.Table:
        with self._database.cursor() as cursor:
            cursors.append(cursor)  # for the loop's side, should the deadline pass
            cursor.register("batch", columns)
            try:
                return cursor.execute(self._query).to_arrow_table()
            except duckdb.Error as error:
                raise _explained(error, self._query) from error

    async def close(self) -> None:
        await self._caller.close()
        await asyncio.to_thread(self._database.close)


def _interrupt(cursors: list[duckdb.DuckDBPyConnection]) -> None:
    for cursor in cursors:
        with contextlib.suppress(duckdb.Error):  # closed a moment ago
            cursor.interrupt()


def _result(table: object) -> Result:
    assert isinstance(table, pa.Table)
    check_names(_LABEL, table)
    return Result(table)


def _database(memory_bytes_max: int | None) -> duckdb.DuckDBPyConnection:
    database = duckdb.connect(":memory:", config={"enable_external_access": "false"})
    database.execute("SET GLOBAL python_enable_replacements = false")
    database.execute("SET GLOBAL errors_as_json = true")
    database.execute("SET GLOBAL TimeZone = 'UTC'")
    # Shards run beside each other already; a second thread for one batch takes twice the processor time.
    database.execute("SET GLOBAL threads = 1")
    if memory_bytes_max is not None:
        database.execute(f"SET GLOBAL memory_limit = '{memory_bytes_max}B'")
    database.execute("SET GLOBAL lock_configuration = true")
    return database


def _check_select(database: duckdb.DuckDBPyConnection, query: str) -> None:
    try:
        statements = database.extract_statements(query)
    except duckdb.Error as error:
        raise _explained(error, query) from error
    if len(statements) != 1 or statements[0].type != duckdb.StatementType.SELECT:
        kinds = ", ".join(statement.type.name for statement in statements) or "nothing"
        raise HandlerError(
            f"{_LABEL} has to be one SELECT, got {kinds}",
            hint="the batch's rows are the table `batch`: SELECT ... FROM batch",
        )


def _explained(error: duckdb.Error, query: str, *, skip: int = 0) -> HandlerError:
    """DuckDB's error with its place in the query: line and column, from 1. ``skip`` precedes the query."""
    text = str(error)
    kind, _, detail = text.partition(": ")
    try:
        fields = json.loads(detail)
        message = f"{kind}: {fields['exception_message']}"
        position = int(fields["position"]) - skip if "position" in fields else None
    except (ValueError, KeyError, TypeError):
        message, position = text, None
    if position is None:
        return HandlerError(f"{_LABEL}: {message}")
    before = query.encode()[: max(0, position)].decode(errors="replace")
    line = before.count("\n")
    column = len(before) - (before.rfind("\n") + 1)
    shown = (query.splitlines() or [""])[line : line + 1]
    mark = "".join(f"\n  {text}\n  {' ' * column}^" for text in shown)
    return HandlerError(f"{_LABEL}, line {line + 1}, column {column + 1}: {message}{mark}")
