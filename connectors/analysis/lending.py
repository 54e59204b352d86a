"""Cursors of one open DuckDB file for others than its writer, and how they are called back.

DuckDB lets go of a file, and forgets an error that made it unusable, only when the last connection of the process
is closed; and memory is one budget for all of them. So whoever has a cursor ends when the owner says so.

Not here: the writer (`connectors.duckdb.database`), and what is asked.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator

import duckdb

from connectors.analysis.execution import END_SECONDS_MAX, Executions
from connectors.analysis.runner import Runner
from engine.errors import SinkUnavailable

_log = logging.getLogger(__name__)

#: A query that ended so long ago may have been what a commit found no memory for.
RECENT_SECONDS = 5.0


class Lending:
    """Lends cursors between `opened` and `call_back`, which the owner calls; all else is for any thread.

    ``name`` is the file's, for messages.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.executions = Executions()
        self._changed = threading.Condition()
        self._root: duckdb.DuckDBPyConnection | None = None
        self._lent = 0
        self._unended: list[duckdb.DuckDBPyConnection] = []
        self._paused = False
        self._relievers: list[Callable[[duckdb.DuckDBPyConnection], bool]] = []

    def opened(self, connection: duckdb.DuckDBPyConnection) -> None:
        """The file is open; ``connection`` is the owner's."""
        with self._changed:
            assert self._root is None
            self._root = connection.cursor()

    def call_back(self) -> None:
        """End everything that uses a cursor; none is lent until `opened`. Returns when all are closed, or after
        `END_SECONDS_MAX`: DuckDB has expressions and plans that no interrupt reaches. `is_lent` tells.
        """
        with self._changed:
            root, self._root = self._root, None
        if root is None:
            return
        deadline = time.monotonic() + END_SECONDS_MAX
        while True:
            self.executions.end("closed")
            with self._changed:
                if self._changed.wait_for(lambda: self._lent == 0, 0.05):
                    break
            if time.monotonic() > deadline:
                _log.warning("%s: %d queries do not end; the file stays open for them", self.name, self._lent)
                self._unended.append(root)  # to close it, or to let it go, would wait for its cursors
                return
        root.close()

    @property
    def is_lent(self) -> bool:
        """Somebody has a cursor. To close the connection that it comes from waits for it."""
        with self._changed:
            return self._lent > 0

    @contextlib.contextmanager
    def cursor(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """A connection of one's own, closed at the end. Waits while a commit has all the memory.

        Raises SinkUnavailable while the file is not open.
        """
        with self._changed:
            self._changed.wait_for(lambda: not self._paused, END_SECONDS_MAX)
        with self._lend() as cursor:
            yield cursor

    @contextlib.contextmanager
    def _lend(self) -> Iterator[duckdb.DuckDBPyConnection]:
        with self._changed:
            if self._root is None:
                raise SinkUnavailable(f"DuckDB file {self.name} is not open now", hint="ask again in a moment")
            cursor = self._root.cursor()
            self._lent += 1
        try:
            yield cursor
        finally:
            cursor.close()
            with self._changed:
                self._lent -= 1
                self._changed.notify_all()

    def runner(self, *, queries_max: int, seconds_max: float, rows_max: int) -> Runner:
        """Queries over the file."""
        return Runner(
            self.cursor,
            queries_max=queries_max,
            seconds_max=seconds_max,
            rows_max=rows_max,
            executions=self.executions,
        )

    def relieved_by(self, reliever: Callable[[duckdb.DuckDBPyConnection], bool]) -> None:
        """``reliever`` gives memory back, by a cursor, and says whether it had any."""
        self._relievers.append(reliever)

    @contextlib.contextmanager
    def memory_yielded(self) -> Iterator[bool]:
        """End all queries, and let none begin inside of the ``with``; whether there was anything to give.

        That includes what a query had that has just ended, perhaps for want of memory itself.
        """
        with self._changed:
            self._paused = True
        try:
            had = self.executions.ran_within(RECENT_SECONDS)
            self.executions.end("memory")
            with contextlib.suppress(SinkUnavailable), self._lend() as cursor:
                for reliever in self._relievers:
                    had = reliever(cursor) or had
            yield had
        finally:
            with self._changed:
                self._paused = False
                self._changed.notify_all()
