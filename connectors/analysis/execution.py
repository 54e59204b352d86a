"""One statement on a DuckDB connection, with an end: by a deadline, by `cancel`, or with all `Executions`.

Not here: what may run (`check`) and how many run at a time (`admission`).
"""

from __future__ import annotations

import math
import threading
import time
from types import TracebackType
from typing import Literal

import duckdb

from engine.errors import ExternalError, UserError

#: An interrupt between two statements is lost, so it is given again until the execution has ended.
INTERRUPT_SECONDS = 0.02

#: Of one wait; a deadline may be infinite.
WAIT_SECONDS_MAX = 3_600.0

#: How long executions that were told to end may take to do so, before whoever waits for them goes on.
END_SECONDS_MAX = 10.0

Reason = Literal["late", "cancelled", "memory", "closed"]


class Cancelled(UserError):
    """The query was cancelled by whoever started it, or because the engine ends."""


class MemoryGivenUp(ExternalError):
    """The query was ended because a commit of the engine needed its memory."""

    retry = True


class Execution:
    """Inside of ``with``, what runs on ``connection`` is interrupted at ``deadline`` (monotonic), or earlier.

    It is one of ``among``, which may be told to end together.

    An interrupted statement raises duckdb.InterruptException; `error` says what to make of it. ``seconds_max`` is
    for the message alone.
    """

    def __init__(
        self, connection: duckdb.DuckDBPyConnection, deadline: float, seconds_max: float, among: Executions
    ) -> None:
        self._connection = connection
        self._among = among
        self._deadline = deadline
        self._seconds_max = seconds_max
        self._changed = threading.Condition()
        self._reason: Reason | None = None
        self._ended = False
        self._watch = threading.Thread(target=self._watched, name="headrace-query-watch", daemon=True)

    def __enter__(self) -> Execution:
        self._watch.start()
        self._among.add(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._changed:
            self._ended = True
            self._changed.notify_all()
        self._watch.join()  # no interrupt may meet what the connection does next
        self._among.remove(self)

    def cancel(self) -> None:
        """End it; may be called in any thread, and more than once."""
        self.end("cancelled")

    def error(self) -> UserError | ExternalError | None:
        """Why the execution was ended before its time, None where it was not."""
        if self._reason == "cancelled":
            return Cancelled("the query was cancelled")
        if self._reason == "closed":
            return Cancelled("the query was ended, because the engine closes the file or opens it again")
        if self._reason == "memory":
            return MemoryGivenUp(
                "the query was ended, because the engine needed its memory for a commit",
                hint="ask again, for less at a time, or raise engine.memory_bytes_max",
            )
        if self._reason == "late":
            return UserError(
                f"the query took longer than {self._seconds_max:g} s and was interrupted",
                hint="ask for less at a time, ask a snapshot of the file, or raise query.seconds_max",
            )
        return None

    def end(self, reason: Reason) -> None:
        """End it before its time; the first reason stays."""
        with self._changed:
            if self._reason is None:
                self._reason = reason
            self._changed.notify_all()

    def _watched(self) -> None:
        with self._changed:
            while not self._ended:
                if self._reason is None:
                    left = self._deadline - time.monotonic()
                    if left > 0:
                        self._changed.wait(min(left, WAIT_SECONDS_MAX))
                        continue
                    self._reason = "late"
                self._connection.interrupt()
                self._changed.wait(INTERRUPT_SECONDS)


class Executions:
    """Those under way over one target; any thread may end them all."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._under_way: set[Execution] = set()
        self._ended_at = -math.inf

    def add(self, execution: Execution) -> None:
        with self._changed:
            self._under_way.add(execution)

    def remove(self, execution: Execution) -> None:
        with self._changed:
            self._under_way.discard(execution)
            self._ended_at = time.monotonic()
            self._changed.notify_all()

    def ran_within(self, seconds: float) -> bool:
        """Whether one runs, or ended no longer ago."""
        with self._changed:
            return bool(self._under_way) or time.monotonic() - self._ended_at <= seconds

    def end(self, reason: Reason) -> int:
        """Tell all to end; how many there were. Returns when they have ended, or after `END_SECONDS_MAX`."""
        with self._changed:
            told = set(self._under_way)
            for execution in told:
                execution.end(reason)
            self._changed.wait_for(lambda: not (told & self._under_way), END_SECONDS_MAX)
        return len(told)
