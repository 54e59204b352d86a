"""Queries over one target, each in a thread of its own: admitted, checked, bounded, and ended from outside.

Results are Arrow tables in memory, bounded by rows and bytes. Not here: where the data is, what may be asked
(`check`), and clients.
"""

from __future__ import annotations

import contextlib
import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import AbstractContextManager

import duckdb
import pyarrow as pa

from connectors.analysis.admission import Admission, Busy
from connectors.analysis.check import check, mistake
from connectors.analysis.execution import Cancelled, Execution, Executions
from engine.errors import ExternalError, HeadraceError, UserError

__all__ = ["Busy", "Cancelled", "Connect", "Runner", "Running"]

#: Opens what is asked; a DuckDB connection is its own context manager. Called in the query's thread.
Connect = Callable[[], AbstractContextManager[duckdb.DuckDBPyConnection]]

#: A piece of a result: also how much is read beyond ``rows_max`` and ``bytes_max`` before that is noticed, which is
#: memory that nobody counts. DuckDB makes as many at a time.
BATCH_ROWS = 2_048

#: Of one result, in memory.
RESULT_BYTES_MAX = 268_435_456

#: Queries that wait, for each that may run.
WAITING_SHARE = 8


class Running:
    """A query under way. ``truncated`` is known once `result` has given a table."""

    def __init__(self, identifier: str, sql: str, deadline: float) -> None:
        self.id = identifier
        self.sql = sql
        self.truncated = False
        self.seconds = 0.0  #: from the start to the end, known at the end
        self._deadline = deadline
        self._done: Future[pa.Table] = Future()
        self._lock = threading.Lock()
        self._execution: Execution | None = None
        self._cancelled = False

    @property
    def done(self) -> bool:
        return self._done.done()

    def result(self, timeout: float | None = None) -> pa.Table:
        """The rows. Raises what the query came to: UserError (a mistake, a refusal, too long, too many rows,
        cancelled), ExternalError, Busy; and TimeoutError where nothing is known after ``timeout`` seconds, which
        does not end the query.
        """
        return self._done.result(timeout)

    def cancel(self) -> None:
        """End it, from any thread; `result` then raises Cancelled, unless the result is there already."""
        with self._lock:
            self._cancelled = True
            if self._execution is not None:
                self._execution.cancel()

    def _begin(self, execution: Execution) -> None:
        with self._lock:
            self._execution = execution
            if self._cancelled:
                execution.cancel()


class Runner:
    """Runs queries over what ``connect`` opens; `close` ends them all.

    ``queries_max`` run at a time, others wait; ``seconds_max`` bounds one with its wait; a result of more than
    ``rows_max`` rows or ``bytes_max`` bytes is refused, or cut where that was asked for. ``executions``: those that
    may be told to end together with others.
    """

    def __init__(
        self,
        connect: Connect,
        *,
        queries_max: int,
        seconds_max: float,
        rows_max: int,
        bytes_max: int = RESULT_BYTES_MAX,
        executions: Executions | None = None,
    ) -> None:
        self._executions = executions if executions is not None else Executions()
        self._connect = connect
        self._seconds_max = seconds_max
        self._rows_max = rows_max
        self._bytes_max = bytes_max
        self._admission = Admission(queries_max, queries_max * WAITING_SHARE)
        self._lock = threading.Lock()
        self._under_way: dict[str, tuple[Running, threading.Thread]] = {}
        self._closed = False

    def start(
        self, sql: str, *, identifier: str | None = None, rows_max: int | None = None, truncate: bool = False
    ) -> Running:
        """Start a query; never waits. ``rows_max`` lowers the runner's; ``truncate`` cuts the result instead of
        refusing it. ``identifier`` is made where it is left out. Raises UserError for an identifier under way, and
        Busy where too many run and wait already.
        """
        running = Running(identifier or uuid.uuid4().hex, sql, time.monotonic() + self._seconds_max)
        limit = self._rows_max if rows_max is None else min(rows_max, self._rows_max)
        thread = threading.Thread(
            target=self._run, args=(running, limit, truncate), name="headrace-query", daemon=True
        )
        with self._lock:
            if self._closed:
                raise Busy("no query is taken any more: the engine ends")
            if running.id in self._under_way:
                raise UserError(f"a query {running.id} is under way already")
            if len(self._under_way) >= self._admission.queries_max + self._admission.waiting_max:
                raise Busy(f"{len(self._under_way)} queries run or wait already; ask again later")
            self._under_way[running.id] = (running, thread)
        thread.start()
        return running

    def find(self, identifier: str) -> Running | None:
        """A query under way."""
        with self._lock:
            found = self._under_way.get(identifier)
        return None if found is None else found[0]

    def close(self) -> None:
        """End all queries and take no more; returns when their threads have ended."""
        with self._lock:
            self._closed = True
            under_way = list(self._under_way.values())
        self._admission.close()
        for running, _thread in under_way:
            running.cancel()
        for _running, thread in under_way:
            thread.join()

    def _run(self, running: Running, rows_max: int, truncate: bool) -> None:
        began = time.monotonic()
        try:
            with self._admission.admitted(running._deadline):
                table = self._ask(running, rows_max, truncate)
        except BaseException as error:
            outcome: pa.Table | BaseException = error
        else:
            outcome = table
        running.seconds = time.monotonic() - began
        with self._lock:
            del self._under_way[running.id]
        if isinstance(outcome, BaseException):
            running._done.set_exception(outcome)
        else:
            running._done.set_result(outcome)

    def _ask(self, running: Running, rows_max: int, truncate: bool) -> pa.Table:
        if running._cancelled:
            raise Cancelled("the query was cancelled")
        with contextlib.ExitStack() as stack:
            connection = stack.enter_context(self._connect())
            execution = stack.enter_context(
                Execution(connection, running._deadline, self._seconds_max, self._executions)
            )
            running._begin(execution)
            try:
                question = check(connection, running.sql)
                rows = min(BATCH_ROWS, rows_max + 1) if truncate else BATCH_ROWS
                reader = connection.execute(question.sql).to_arrow_reader(rows)
                return self._read(running, reader, rows_max, truncate)
            except (duckdb.Error, pa.ArrowException) as error:
                raise execution.error() or self._failure(error, running.sql) from None

    def _read(self, running: Running, reader: pa.RecordBatchReader, rows_max: int, truncate: bool) -> pa.Table:
        batches: list[pa.RecordBatch] = []
        rows = nbytes = 0
        for batch in reader:
            rows += batch.num_rows
            nbytes += batch.nbytes
            over = rows > rows_max or nbytes > self._bytes_max
            if over and not truncate:
                raise UserError(
                    f"the result has more than {rows_max:,} rows"
                    if rows > rows_max
                    else f"the result takes more than {self._bytes_max:,} bytes",
                    hint="ask for less: aggregate, or add LIMIT",
                )
            batches.append(batch)
            if over:
                running.truncated = True
                break
        table = pa.Table.from_batches(batches, reader.schema)
        return table.slice(0, rows_max) if truncate else table

    def _failure(self, error: Exception, sql: str) -> HeadraceError:
        if isinstance(error, duckdb.OutOfMemoryException):
            return ExternalError(
                "the query needs more memory than there is for queries",
                hint="ask for less at a time, or raise engine.memory_bytes_max",
            )
        return mistake(error, sql) if isinstance(error, duckdb.Error) else UserError(str(error))
