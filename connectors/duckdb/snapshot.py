"""A read-only copy of a DuckDB file that is being written, made anew every so often, for tools that open files.

A copy is made by one reading transaction, so it is exact to one commit; under a temporary name, flushed, and then
renamed: whoever has the last one open keeps it. One thread does it, beside the writing one; what goes wrong is a
warning, and the next turn comes. Where nothing was committed since the last copy there is none.

Not here: the writer (`database`).
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import duckdb

from connectors.analysis.execution import Execution
from connectors.analysis.lending import Lending
from engine.errors import HeadraceError

_log = logging.getLogger(__name__)

_DATABASE = "headrace_snapshot"


@dataclass(frozen=True, slots=True)
class SnapshotSettings:
    """``path`` of the copy; ``interval_seconds`` from the end of one to the start of the next."""

    path: Path
    interval_seconds: float = 30.0


class Snapshots:
    """Copies of one file. `start` and `close` go with the file; `changed` says that something was committed."""

    def __init__(self, database: Path, settings: SnapshotSettings, lending: Lending) -> None:
        self.path = settings.path.resolve()
        self.made = 0  #: copies, so far
        self.seconds = 0.0  #: that the last one took
        self._database = database
        self._interval_seconds = settings.interval_seconds
        self._lending = lending
        self._changed = threading.Condition()
        self._changes = 1  # what is there at the start has not been copied
        self._copied = 0
        self._closing = False
        self._thread: threading.Thread | None = None

    @property
    def folder(self) -> Path:
        return self.path.parent

    @property
    def draft(self) -> Path:
        """The one file that a copy is made under."""
        return self.path.with_name(f".{self.path.name}.draft")

    def start(self) -> None:
        self._closing = False
        self._thread = threading.Thread(target=self._run, name=f"snapshot-{self.path.name}", daemon=True)
        self._thread.start()

    def changed(self) -> None:
        """Something was committed. Never waits."""
        with self._changed:
            self._changes += 1
            self._changed.notify_all()

    def close(self) -> None:
        """One more copy, where something was committed since the last; idempotent."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closing or self._changes > self._copied)
                changes = self._changes
                if changes == self._copied:
                    return
            began = time.monotonic()
            try:
                self._copy()
            except (duckdb.Error, OSError, HeadraceError) as error:
                _log.warning("%s: no copy to %s: %s", self._database, self.path, str(error).splitlines()[0])
            else:
                self._copied = changes
                self.made += 1
                self.seconds = time.monotonic() - began
            with self._changed:
                if self._changed.wait_for(lambda: self._closing, self._interval_seconds) and (
                    self._changes == self._copied or changes == self._changes
                ):
                    return

    def _copy(self) -> None:
        self._remove_draft()
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            # Not bounded in time: only the end of the file ends it.
            with (
                self._lending.cursor() as cursor,
                Execution(cursor, math.inf, math.inf, self._lending.executions),
            ):
                self._fill(cursor)
            # Only now: this process must not have the copy open while it closes a descriptor of it.
            _flush(self.draft)
            self.draft.replace(self.path)
            _flush(self.folder)
        except BaseException:
            self._remove_draft()
            raise

    def _fill(self, cursor: duckdb.DuckDBPyConnection) -> None:
        own = cursor.execute("SELECT current_database()").fetchone()
        assert own is not None
        draft, name = str(self.draft).replace("'", "''"), own[0].replace('"', '""')
        cursor.execute(f"ATTACH '{draft}' AS {_DATABASE}")
        try:
            cursor.execute(f'COPY FROM DATABASE "{name}" TO {_DATABASE}')
            # The writer's instance checkpoints nothing by itself, and a copy without its WAL would be empty.
            cursor.execute(f"CHECKPOINT {_DATABASE}")
        finally:
            with contextlib.suppress(duckdb.Error):
                cursor.execute(f"DETACH {_DATABASE}")

    def _remove_draft(self) -> None:
        for leftover in (self.draft, self.draft.with_name(self.draft.name + ".wal")):
            leftover.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
