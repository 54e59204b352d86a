"""One DuckDB file, owned by this process: opening, waiting for its lock, one writing thread, group commit.

A DuckDB file has one writing process. `Database` is shared by all sinks of the process that write to the
file; everything runs in its one thread, so commits are serial and never on the event loop. Commits that
arrive while one is under way go into the next transaction together.

DuckDB holds the file by a POSIX lock, which a process loses when it closes *any* descriptor of the file:
nothing in this process may open the file but DuckDB.

Others of this process read by cursors that the database lends (`connectors.analysis.lending`), and analysts over
the server beside it (`serving`). They share DuckDB's one budget of memory with the commits: a commit that runs out
of it ends all queries and is made once more.

Not here: what a commit writes (`commit`, `upsert`) and headrace's tables (`catalog`).
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import threading
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import duckdb

from connectors.analysis.lending import Lending
from connectors.duckdb import catalog
from connectors.duckdb.commit import ShardCommit, commit_together, conflicting, unusable, was_made
from connectors.duckdb.serving import Server, ServingSettings
from connectors.duckdb.snapshot import Snapshots, SnapshotSettings
from engine.clock import SystemClock
from engine.errors import HeadraceError, InternalError, ShardLost, SinkMismatch, SinkUnavailable
from engine.protocols import Clock

_log = logging.getLogger(__name__)

T = TypeVar("T")

#: A commit, and what it heard when it was tried.
_Tried = tuple[ShardCommit, HeadraceError | None]
_Attempted = tuple[list[_Tried], duckdb.Error | None]

#: How often a standby asks for the lock; bounds the time to take over.
POLL_SECONDS_MIN = 0.05
POLL_SECONDS_MAX = 0.5
#: How often a standby says that it still waits.
LOG_SECONDS = 300.0

#: What queries and commits may put beside the file together, where memory does not hold it.
SPILL_BYTES_MAX = 4 * 1024**3

#: How DuckDB says so; a COMMIT says it by another exception than its own.
_OUT_OF_MEMORY = re.compile(r"Out of Memory|\([\d.]+ \w+/[\d.]+ \w+ used\)")

_HOLDER = re.compile(r"Conflicting lock is held in (.*?) ?\(PID (\d+)\)")


@dataclass(frozen=True, slots=True)
class Statistics:
    """Counts since the file was opened: ``shards`` went through in ``transactions``, ``lost`` were fenced.

    Shards that had to be tried alone count as one transaction together. ``reopened`` counts connections that
    an error made unusable.
    """

    transactions: int
    shards: int
    lost: int
    reopened: int


class _Locked(Exception):
    """Another process holds the file; the text says which, as far as DuckDB told."""


class Database:
    """A DuckDB file. `open` and `close` count: the last close lets go of the file.

    ``lock_wait_seconds_max`` bounds the wait for a file that another process holds: -1 waits forever, 0
    not at all. ``memory_limit_bytes`` and ``threads`` are DuckDB's own limits, for the whole file.

    ``confined``: DuckDB opens no files but those of this one's directory, loads nothing, and keeps its settings.
    ``serving`` and ``snapshot`` are for analysts; both confine. What goes wrong with them is a warning. What memory
    does not hold then goes beside the file, up to ``spill_bytes_max``.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        lock_wait_seconds_max: float = -1,
        memory_limit_bytes: int | None = None,
        threads: int | None = None,
        clock: Clock | None = None,
        confined: bool = False,
        serving: ServingSettings | None = None,
        snapshot: SnapshotSettings | None = None,
        spill_bytes_max: int = SPILL_BYTES_MAX,
    ) -> None:
        # One file by two paths would be opened twice: the lock does not hold within a process.
        self.path = Path(path).resolve()
        self._lock_wait_seconds_max = lock_wait_seconds_max
        self._clock: Clock = clock if clock is not None else SystemClock()
        self._settings: dict[str, str | bool | int | float | list[str]] = {}
        if memory_limit_bytes is not None:
            self._settings["memory_limit"] = f"{memory_limit_bytes}B"
        if threads is not None:
            self._settings["threads"] = threads
        self.lending = Lending(str(self.path))
        self._server = None if serving is None else Server(self.path, serving, self.lending)
        self._snapshots = None if snapshot is None else Snapshots(self.path, snapshot, self.lending)
        self._confined = confined or serving is not None or snapshot is not None
        self._spill_bytes_max = spill_bytes_max
        self._opening = asyncio.Lock()
        self._references = 0
        self._executor: ThreadPoolExecutor | None = None
        self._connection: duckdb.DuckDBPyConnection | None = None  # touched by the executor's thread only
        self._unended: list[duckdb.DuckDBPyConnection] = []  # whose queries no interrupt reaches
        self._ready_lock = threading.Lock()
        self._ready: list[ShardCommit] = []
        self._transactions = self._shards = self._lost = self._reopened = 0

    def statistics(self) -> Statistics:
        return Statistics(self._transactions, self._shards, self._lost, self._reopened)

    @property
    def server(self) -> Server | None:
        """What serves the file to analysts; its ``uri`` is None while it does not."""
        return self._server

    async def open(self) -> None:
        """Take the file for this process, making it where it is missing.

        Waits as a standby while another process has it. Raises SinkUnavailable when the wait is over, or
        when the file cannot be opened.
        """
        async with self._opening:
            if self._references == 0:
                self._executor = ThreadPoolExecutor(1, thread_name_prefix=f"duckdb-{self.path.name}")
                try:
                    await self._connect_or_wait()
                    if self._snapshots is not None:
                        self._snapshots.start()
                except BaseException:
                    executor, self._executor = self._executor, None
                    executor.submit(self._disconnect)
                    executor.shutdown(wait=False)
                    raise
            self._references += 1

    async def close(self) -> None:
        """Give back one `open`. The last one writes everything into the file itself and leaves no WAL."""
        async with self._opening:
            assert self._references > 0, f"{self.path} is not open"
            self._references -= 1
            if self._references:
                return
            executor, self._executor = self._executor, None
            assert executor is not None
            if self._snapshots is not None:
                await asyncio.to_thread(self._snapshots.close)
            await asyncio.get_running_loop().run_in_executor(executor, self._disconnect)
            executor.shutdown(wait=False)

    async def run(self, call: Callable[[duckdb.DuckDBPyConnection], T]) -> T:
        """``call`` in one transaction in the writing thread.

        Raises what it raises; of DuckDB's errors, ShardLost for a conflict with another connection of the
        process and SinkUnavailable for the rest.
        """
        if self._executor is None:
            raise SinkUnavailable(f"DuckDB file {self.path} is not open")
        return await asyncio.get_running_loop().run_in_executor(self._executor, self._call, call)

    def submit(self, commit: ShardCommit) -> None:
        """Queue a commit; ``commit.done`` hears of it. Together with all others that wait by then."""
        if self._executor is None:
            commit.finish(SinkUnavailable(f"DuckDB file {self.path} is not open"))
            return
        # Before anybody waits for it: whoever is told of a commit finds it counted.
        commit.done.add_done_callback(self._count)
        with self._ready_lock:
            self._ready.append(commit)
        self._executor.submit(self._commit_ready)

    def withdraw(self, commit: ShardCommit) -> None:
        """Take back a commit that has not begun; one that has goes on."""
        with self._ready_lock:
            if commit not in self._ready:
                return
            self._ready.remove(commit)
        commit.finish(ShardLost(f"{commit.shard}: let go before its commit began"))

    async def _connect_or_wait(self) -> None:
        loop = asyncio.get_running_loop()
        assert self._executor is not None
        wait_seconds_max = self._lock_wait_seconds_max
        started = self._clock.monotonic()
        logged_at: float | None = None
        pause = POLL_SECONDS_MIN
        while True:
            try:
                await loop.run_in_executor(self._executor, self._connect)
            except _Locked as locked:
                holder = str(locked)
            else:
                if logged_at is not None:
                    _log.warning("%s: taken over from %s", self.path, holder)
                return
            now = self._clock.monotonic()
            if 0 <= wait_seconds_max <= now - started:
                raise SinkUnavailable(
                    f"DuckDB file {self.path} is held by {holder}; waited {now - started:.1f} s for it",
                    hint="One process at a time writes to a DuckDB file. Stop that one, or wait longer.",
                )
            if logged_at is None or now - logged_at >= LOG_SECONDS:
                _log.warning("%s is held by %s: waiting as a standby", self.path, holder)
                logged_at = now
            if wait_seconds_max >= 0:
                pause = min(pause, max(0.0, started + wait_seconds_max - now))
            await self._clock.sleep(pause)
            pause = min(max(pause, POLL_SECONDS_MIN) * 1.5, POLL_SECONDS_MAX)

    # What follows runs in the writing thread.

    def _connect(self) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if not self.path.exists():
                self._create()
            connection = duckdb.connect(self.path, config=self._settings)
        except (FileExistsError, NotADirectoryError) as error:
            raise SinkUnavailable(
                f"DuckDB file {self.path} cannot be made: {error.filename} is not a directory"
            ) from error
        except OSError as error:
            raise SinkUnavailable(f"DuckDB file {self.path} cannot be made: {error}") from error
        except duckdb.Error as error:
            if "Could not set lock" in str(error):
                found = _HOLDER.search(str(error))
                program = f" ({found[1]})" if found and found[1] else ""
                raise _Locked(f"process {found[2]}{program}" if found else "another process") from error
            raise self._unavailable(error) from error
        try:
            # DuckDB 1.5.5: a COMMIT that fails on a full disk leaves its new rows marked as deleted in memory. A
            # checkpoint on close would make the marks durable, and the rows that come to lie there next are lost.
            connection.execute("PRAGMA disable_checkpoint_on_shutdown")
            catalog.prepare(connection)
            self._lend(connection)
        except duckdb.Error as error:
            self._let_go(connection)
            raise self._unavailable(error) from error
        except BaseException:
            self._let_go(connection)
            raise
        self._connection = connection
        # Whoever still makes such a file is too late: the database is there.
        for leftover in self.path.parent.glob(f".{self.path.name}.*.creating*"):
            leftover.unlink(missing_ok=True)

    def _create(self) -> None:
        """Make the file whole and give it its name in one step: one torn by a kill would never open again."""
        draft = self.path.with_name(f".{self.path.name}.{uuid.uuid4().hex}.creating")
        try:
            connection = duckdb.connect(draft, config=self._settings)
            try:
                catalog.prepare(connection)
            finally:
                connection.close()
            # FileExistsError, FileNotFoundError: another process made it first and cleaned up.
            os.link(draft, self.path)
        except (FileExistsError, FileNotFoundError):
            if not self.path.exists():
                raise
        finally:
            draft.unlink(missing_ok=True)
        folder = os.open(self.path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def _lend(self, connection: duckdb.DuckDBPyConnection) -> None:
        """From here on others may read, and nobody reaches another file."""
        served = self._server is not None and self._server.prepare(connection)
        if self._confined:
            folder = self._snapshots.folder if self._snapshots is not None else None
            confine(connection, self.path, folder, self._spill_bytes_max)
        self.lending.opened(connection)
        if served:
            assert self._server is not None
            self._server.start(connection)

    def _let_go(self, connection: duckdb.DuckDBPyConnection) -> None:
        """Close, after everybody else who has the file open in this process."""
        self._end_readers(connection)
        if self.lending.is_lent:
            # It would wait for a query that nothing ends, and the engine's end with it.
            self._unended.append(connection)
            return
        with suppress(duckdb.Error):
            connection.close()

    def _end_readers(self, connection: duckdb.DuckDBPyConnection) -> None:
        # Queries first: the server's end waits for them.
        self.lending.call_back()
        if self._server is not None:
            self._server.stop(connection)

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is None:
            return
        self._end_readers(connection)
        try:
            connection.execute("CHECKPOINT")
        except duckdb.Error as error:
            # The WAL stays then, and is replayed by whoever opens the file next.
            _log.warning("%s: no checkpoint on close: %s", self.path, error)
        self._let_go(connection)

    def _connected(self) -> duckdb.DuckDBPyConnection:
        """The connection, opened again where an error made the last one unusable."""
        if self._connection is None:
            try:
                self._connect()
            except _Locked as locked:
                raise SinkUnavailable(f"DuckDB file {self.path} was let go and is now held by {locked}") from locked
            self._reopened += 1
        assert self._connection is not None
        return self._connection

    def _call(self, call: Callable[[duckdb.DuckDBPyConnection], T]) -> T:
        connection = self._connected()
        try:
            try:
                with catalog.transaction(connection):
                    return call(connection)
            except duckdb.Error as error:
                if not _out_of_memory(error):
                    raise
                with self.lending.memory_yielded() as yielded:
                    if not yielded:
                        raise
                    with catalog.transaction(connection):
                        return call(connection)
        except (duckdb.CatalogException, duckdb.BinderException) as error:
            raise SinkMismatch(f"DuckDB file {self.path} has other tables than expected: {error}") from error
        except duckdb.Error as error:
            if conflicting(error):
                raise ShardLost(
                    f"DuckDB file {self.path}: another owner wrote at the same time: {error}"
                ) from error
            raise self._given_up(error) from error

    def _commit_ready(self) -> None:
        with self._ready_lock:
            commits, self._ready = self._ready, []
        if not commits:
            return
        self._transactions += 1
        try:
            self._commit(self._connected(), commits)
        except duckdb.Error as error:
            failure: HeadraceError = self._given_up(error)
        except HeadraceError as error:
            failure = error
        except Exception as error:
            _log.exception("%s: a commit failed", self.path)
            failure = InternalError(f"DuckDB file {self.path}: a commit failed: {error!r}")
        else:
            failure = InternalError("a commit was neither made nor refused")
        for commit in commits:
            commit.finish(failure)

    def _commit(self, connection: duckdb.DuckDBPyConnection, commits: Sequence[ShardCommit]) -> None:
        """`commit_together`; what finds no memory while others have some is made again without them."""
        again, fault = self._attempt(connection, commits)
        if again:
            with self.lending.memory_yielded() as yielded:
                if yielded:
                    _log.warning("%s: queries were ended, because a commit needed their memory", self.path)
                    again, fault = self._again(again, fault)
        if fault is not None:
            raise fault
        for commit, error in again:
            commit.finish(error)

    def _again(
        self, tried: Sequence[_Tried], fault: duckdb.Error | None
    ) -> tuple[list[_Tried], duckdb.Error | None]:
        """As `_attempt`, of what found no memory: as things are, and then with nothing of what was there before.

        A COMMIT that found no memory may have taken effect before it said so, and what this instance shows then
        need not be in the file: what the file has when it is opened anew is.
        """
        left = list(tried)
        for anew in (fault is not None and unusable(fault), True):
            commits = [commit for commit, _ in left]
            if anew or any(was_made(self._connected(), commit) for commit in commits):
                connection, self._connection = self._connected(), None
                self._let_go(connection)
            made = [commit for commit in commits if was_made(self._connected(), commit)]
            self._tell_of_change()
            for commit in made:
                commit.finish(None)
            left, fault = self._attempt(self._connected(), [each for each in commits if each not in made])
            if not left:
                break
        return left, fault

    def _attempt(self, connection: duckdb.DuckDBPyConnection, commits: Sequence[ShardCommit]) -> _Attempted:
        """Finish what can be. Gives the commits that found no memory, each with what it heard, and what ended all.

        Raises what else ends all.
        """
        tried = [(commit, replace(commit, done=Future())) for commit in commits]
        fault: duckdb.Error | None = None
        try:
            commit_together(connection, [trial for _, trial in tried])
        except duckdb.Error as error:
            if not _out_of_memory(error):
                raise
            fault = error
        self._tell_of_change()
        again: list[_Tried] = []
        for commit, trial in tried:
            heard = trial.done.result() if trial.done.done() else None
            if not trial.done.done() or _out_of_memory(heard):
                again.append((commit, heard))
            else:
                commit.finish(heard)
        return again, fault

    def _tell_of_change(self) -> None:
        """Before anybody hears of a commit: who closes the file then finds that there is something to copy."""
        if self._snapshots is not None:
            self._snapshots.changed()

    def _count(self, done: Future[HeadraceError | None]) -> None:
        with self._ready_lock:
            self._shards += done.result() is None
            self._lost += isinstance(done.result(), ShardLost)

    def _given_up(self, error: duckdb.Error) -> SinkUnavailable:
        """Close what cannot go on (the next call opens it again) and say why."""
        if unusable(error) and self._connection is not None:
            connection, self._connection = self._connection, None
            self._let_go(connection)
        return self._unavailable(error)

    def _unavailable(self, error: duckdb.Error) -> SinkUnavailable:
        text = str(error).strip().splitlines()[0]
        hint = "What was not committed is read again once the file can be written."
        if isinstance(error, duckdb.OutOfMemoryException):
            hint = "Raise the memory limit of the DuckDB file, or commit smaller batches."
        elif "not a valid DuckDB" in text:
            hint = "Give the sink another path, or move that file away."
        return SinkUnavailable(f"DuckDB file {self.path}: {text}", hint=hint)


def _out_of_memory(error: BaseException | None) -> bool:
    """Whether it is that, or came of it: what cleans up in the transaction then fails too, and hides the reason."""
    while error is not None:
        if isinstance(error, duckdb.OutOfMemoryException) or _OUT_OF_MEMORY.search(str(error)):
            return True
        error = error.__cause__ or error.__context__
    return False


def confine(connection: duckdb.DuckDBPyConnection, path: Path, folder: Path | None, spill_bytes_max: int) -> None:
    """Let the instance reach the directory of ``path``, where its own files are, and ``folder``; nothing else.

    Values of times are in UTC from here on, variables of Python are no tables, and no setting can be changed.
    """
    spill = path.with_name(path.name + ".tmp")
    places = {str(each) + os.sep for each in (path.parent, spill, folder) if each is not None}
    listed = ", ".join("'" + place.replace("'", "''") + "'" for place in sorted(places))
    for setting in (
        f"temp_directory = '{str(spill).replace(chr(39), chr(39) * 2)}'",
        f"max_temp_directory_size = '{spill_bytes_max}B'",
        "TimeZone = 'UTC'",
        "autoinstall_known_extensions = false",
        "autoload_known_extensions = false",
        "python_enable_replacements = false",
        f"allowed_directories = [{listed}]",
        "enable_external_access = false",
        "lock_configuration = true",
    ):
        connection.execute(f"SET GLOBAL {setting}")
