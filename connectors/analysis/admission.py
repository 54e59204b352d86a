"""How many queries run at a time: some run, some more wait for a while, the rest hear `Busy`.

Not here: the queries.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator

from engine.errors import ExternalError


class Busy(ExternalError):
    """Too many queries run, or wait, already."""

    retry = True


class Admission:
    """Room for ``queries_max`` at a time; at most ``waiting_max`` wait for it."""

    def __init__(self, queries_max: int, waiting_max: int) -> None:
        self.queries_max = queries_max
        self.waiting_max = waiting_max
        self._changed = threading.Condition()
        self._running = 0
        self._waiting = 0
        self._closed = False

    @contextlib.contextmanager
    def admitted(self, deadline: float) -> Iterator[None]:
        """Holds a place inside of the ``with``. Raises Busy when none was free until ``deadline`` (monotonic)."""
        self._enter(deadline)
        try:
            yield
        finally:
            with self._changed:
                self._running -= 1
                self._changed.notify()

    def close(self) -> None:
        """Whoever waits, or comes later, hears Busy."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _enter(self, deadline: float) -> None:
        with self._changed:
            if self._waiting >= self.waiting_max:
                raise Busy(f"{self._running} queries run and {self._waiting} wait already; ask again later")
            self._waiting += 1
            try:
                while self._running >= self.queries_max and not self._closed:
                    left = deadline - time.monotonic()
                    if left <= 0:
                        raise Busy(
                            f"{self._running} queries run at a time, and none of them ended in time for this one",
                            hint="ask again later, or raise query.queries_max",
                        )
                    self._changed.wait(left)
            finally:
                self._waiting -= 1
            if self._closed:
                raise Busy("no query is taken any more: the engine ends")
            self._running += 1
