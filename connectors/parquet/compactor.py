"""Compaction of a sink's small files: beside a run, every so often, or once, as a command.

One process at a time compacts a directory: it holds a lock on a file for as long as it does so. Where locks do not
work (some network file systems) the records' own rule still has one of two compactors lose.
Not here: the order of what is done (`connectors.parquet.compaction`), and the choice (`connectors.parquet.plan`).
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import fcntl
import logging
import os
import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from connectors.parquet.compaction import INPUTS_MAX, Compaction, count_inputs
from connectors.parquet.filesystem import OsFileSystem, reaching
from connectors.parquet.join import ParquetJoiner
from connectors.parquet.joined import CompactionLost, Entry, Record, newest_record
from connectors.parquet.layout import HIDDEN, compaction_home
from connectors.parquet.plan import Group, Rules, groups, scan
from connectors.parquet.view import NAME as VIEW_FILE
from engine.errors import HeadraceError
from engine.protocols import Clock

logger = logging.getLogger("headrace.parquet")

#: What is joined under one record: a crash or a lost race throws away no more than this.
BATCH_FILES_MAX = 2_000
BATCH_BYTES_MAX = 268_435_456

#: The least pause between two passes of a run.
PAUSE_SECONDS_MIN = 1.0


@dataclass(frozen=True, slots=True)
class Plan:
    """What a pass would join: files, and bytes, by now; ``files_total`` are all public files."""

    groups: tuple[Group, ...]
    files_total: int

    @property
    def files(self) -> int:
        return sum(len(group.files) for group in self.groups)

    @property
    def bytes(self) -> int:
        return sum(group.bytes for group in self.groups)


@dataclass(frozen=True, slots=True)
class Done:
    """What a pass has joined: ``files`` of ``bytes_before`` into ``outputs`` of ``bytes_after``, with ``rows``.

    ``wake_at`` is when there is more to be cleared up, in seconds since the epoch; None if there is not.
    ``is_whole`` is False where some was left for later, because too much waits to be removed.
    """

    files: int = 0
    outputs: int = 0
    rows: int = 0
    bytes_before: int = 0
    bytes_after: int = 0
    wake_at: float | None = None
    is_whole: bool = True


class Stopped(Exception):
    """The pass was asked to end; what it had not committed is thrown away."""


class Compactor:
    """Compacts the sink in ``root``. ``run`` is for a task beside a run; the other methods block."""

    def __init__(
        self,
        root: Path,
        *,
        clock: Clock,
        file_bytes_target: int,
        files_min: int,
        interval_seconds: float,
        retired_seconds_min: float,
        row_group_bytes_max: int = 8_388_608,
        compression: str = "zstd",
        eager: bool = False,
        phase: Callable[[str], None] | None = None,
    ) -> None:
        self.root = root
        self._clock = clock
        self._rules = Rules(file_bytes_target, files_min, eager)
        self._interval_seconds = interval_seconds
        self._filesystem = OsFileSystem()
        self._stopping = threading.Event()
        self._compaction = Compaction(
            self._filesystem,
            root,
            ParquetJoiner(row_group_bytes_max, compression),
            time=clock.time,
            retired_seconds_min=retired_seconds_min,
            is_read=lambda: is_open(root / VIEW_FILE),
            phase=phase,
        )

    async def run(self) -> None:
        """Compact every ``interval_seconds`` until cancelled; what fails is warned of and tried again."""
        while True:
            wake_at = await self._pass_in_thread()
            pause = self._interval_seconds
            if wake_at is not None:
                pause = min(pause, max(PAUSE_SECONDS_MIN, wake_at - self._clock.time()))
            await self._clock.sleep(pause)

    async def _pass_in_thread(self) -> float | None:
        work = asyncio.ensure_future(asyncio.to_thread(self._guarded_pass))
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            self._stopping.set()  # it ends within a row group
            await asyncio.wait([work])
            raise

    def _guarded_pass(self) -> float | None:
        try:
            done = self.compact()
        except Stopped:
            return None
        except HeadraceError as error:
            logger.warning("the files of %s are not compacted now: %s", self.root, error)
            return None
        except Exception as error:
            logger.warning("the files of %s are not compacted now: %r", self.root, error, exc_info=True)
            return None
        if done is not None and done.outputs:
            logger.info("%s: %d files were joined into %d, %d rows", self.root, done.files, done.outputs, done.rows)
        return None if done is None else done.wake_at

    @property
    def is_sink(self) -> bool:
        """Whether the directory is a sink of headrace."""
        return (self.root / HIDDEN).is_dir()

    def plan(self) -> Plan:
        """What `compact` would do now. Changes nothing. Raises SinkUnavailable."""
        with reaching(self.root):
            record = newest_record(self._filesystem, self.root)
            return self._plan(record or Record(0))

    def compact(self, progress: Callable[[Done], None] | None = None) -> Done | None:
        """Finish what was begun, then join what there is to join; None while another process compacts.

        ``progress`` hears what has been done so far after each commit. Raises SinkUnavailable, and Stopped.
        """
        if not self.is_sink:
            return Done()
        with reaching(self.root), self._locked() as is_ours:
            if not is_ours:
                return None
            try:
                record = self._compaction.advance()
                return self._compact(record, progress)
            except CompactionLost:
                return None

    def finish(self) -> Done | None:
        """Finish what was begun and remove what is due; None while another process compacts."""
        if not self.is_sink:
            return Done()
        with reaching(self.root), self._locked() as is_ours:
            if not is_ours:
                return None
            try:
                return Done(wake_at=self._compaction.wake_at(self._compaction.advance()))
            except CompactionLost:
                return None

    def stop(self) -> None:
        """Have a pass under way in another thread end soon, by Stopped."""
        self._stopping.set()

    def _compact(self, record: Record, progress: Callable[[Done], None] | None) -> Done:
        plan, total = self._plan(record), Done()
        room = INPUTS_MAX - count_inputs(record)
        for batch in batches(plan.groups):
            room -= sum(len(group.files) for group in batch)
            if room < 0:
                total = dataclasses.replace(total, is_whole=False)
                break
            before = {entry.id for entry in record.entries}
            record = self._compaction.join(record, batch, self._check)
            total = _plus(total, [entry for entry in record.entries if entry.id not in before], batch)
            if progress is not None:
                progress(total)
        return dataclasses.replace(total, wake_at=self._compaction.wake_at(record))

    def _check(self) -> None:
        if self._stopping.is_set():
            raise Stopped

    def _plan(self, record: Record) -> Plan:
        files = scan(self._filesystem, self.root)
        busy = record.files | self._compaction.unjoinable
        return Plan(tuple(groups(files, self._rules, busy)), len(files))

    @contextlib.contextmanager
    def _locked(self) -> Iterator[bool]:
        """Whether this process holds the lock meanwhile; it goes with the process, however that ends."""
        home = compaction_home(self.root)
        home.mkdir(exist_ok=True)
        descriptor = os.open(home / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
            else:
                yield True
        finally:
            os.close(descriptor)


def is_open(database: Path) -> bool:
    """Whether another process has a DuckDB file open, and so a lock on it. False where nobody can tell."""
    # struct flock of Linux on 64 bits: type, whence, start, length, process.
    asked = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
    try:
        descriptor = os.open(database, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        found = fcntl.fcntl(descriptor, fcntl.F_GETLK, asked)
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return bool(struct.unpack("hhqqi4x", found)[0] != fcntl.F_UNLCK)


def batches(planned: Sequence[Group]) -> Iterator[Sequence[Group]]:
    """Groups that are committed together."""
    batch: list[Group] = []
    files = size = 0
    for group in planned:
        if batch and (files + len(group.files) > BATCH_FILES_MAX or size + group.bytes > BATCH_BYTES_MAX):
            yield batch
            batch, files, size = [], 0, 0
        batch.append(group)
        files += len(group.files)
        size += group.bytes
    if batch:
        yield batch


def _plus(total: Done, entries: Sequence[Entry], batch: Sequence[Group]) -> Done:
    """``total`` with what was made of ``batch``; entries that were given up count for nothing."""
    active = [entry for entry in entries if entry.state == "active"]
    joined = {path for entry in active for path in entry.inputs}
    sizes = (file.bytes for group in batch for file in group.files if file.path in joined)
    return dataclasses.replace(
        total,
        files=total.files + len(joined),
        outputs=total.outputs + len(active),
        rows=total.rows + sum(entry.rows for entry in active),
        bytes_before=total.bytes_before + sum(sizes),
        bytes_after=total.bytes_after + sum(entry.bytes for entry in active),
    )
