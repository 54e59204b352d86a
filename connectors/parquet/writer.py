"""One owned shard of a Parquet sink: rows gathered into staged files, and their commit.

One commit closes all files of its shard: one for each Hive partition, or a single one.
Not here: the commit protocol (`connectors.parquet.log`), which rows share a file (`connectors.parquet.partitions`).
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from connectors.parquet.encodings import writer
from connectors.parquet.failures import FailureFiles, dump_failures
from connectors.parquet.files import StagedFile
from connectors.parquet.filesystem import reaching
from connectors.parquet.log import ShardLog
from connectors.parquet.manifest import FileEntry
from connectors.parquet.partitions import Key, split
from engine.errors import InternalError, ShardLost, SinkUnavailable
from engine.protocols import Clock, Counts, FailedRecord, Outcome

#: A failures file is read whole, so a commit is due when one has grown to this.
FAILURES_BYTES_MAX = 8 * 1024 * 1024

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class WriterOptions:
    """What all writers of a sink share."""

    file_bytes_max: int
    file_age_max_seconds: float
    row_group_bytes_max: int
    waiting_bytes_max: int
    hive_partitions_open_max: int
    keys: tuple[Key, ...]
    compression: str


@dataclass(frozen=True, slots=True)
class RowSchema:
    """The schema of a sink's rows: as the files have it, and its fingerprint in manifests."""

    files: pa.Schema
    fingerprint: str


class _OpenFile:
    """A staged Parquet file and the rows that wait for its next row group."""

    def __init__(self, staged: StagedFile, schema: pa.Schema, compression: str) -> None:
        self.staged = staged
        self.rows = 0
        self.waiting_bytes = 0
        self._schema = schema
        self._compression = compression
        self._waiting: list[pa.Table] = []
        self._writer: pq.ParquetWriter | None = None

    def add(self, table: pa.Table) -> None:
        self._waiting.append(table)
        self.rows += table.num_rows
        self.waiting_bytes += table.nbytes

    def flush(self, row_group_bytes_max: int) -> None:
        if not self._waiting:
            return
        table = pa.concat_tables(self._waiting)
        rows_max = max(1, table.num_rows * row_group_bytes_max // max(1, self.waiting_bytes))
        if self._writer is None:
            self._writer = writer(self.staged, self._schema, table, self._compression)
        self._writer.write_table(table, row_group_size=rows_max)
        self._waiting.clear()
        self.waiting_bytes = 0

    def finish(self, row_group_bytes_max: int) -> None:
        self.flush(row_group_bytes_max)
        assert self._writer is not None, "a file is opened for its first rows"
        self._writer.close()
        self.staged.finish()

    def abandon(self) -> None:
        if self._writer is not None:
            self._writer.is_open = False  # else it writes a footer when it is collected
        self.staged.abandon()


@dataclass(slots=True)
class _Pending:
    """What was written since the last commit."""

    since: float
    start: int
    end: int
    counts: Counts = field(default_factory=Counts)
    rows_out: int = 0
    open: dict[str, _OpenFile] = field(default_factory=dict)
    finished: list[tuple[str, StagedFile, int]] = field(default_factory=list)
    failures: StagedFile | None = None
    full: bool = False
    staged_bytes: int = 0
    waiting_bytes: int = 0
    committing: bool = False
    fingerprint: str | None = None
    state: bytes | None = None


class ParquetShardWriter:
    """`engine.protocols.ShardWriter` of one shard. After SinkUnavailable it is of no more use: acquire anew."""

    def __init__(
        self,
        log: ShardLog,
        clock: Clock,
        options: WriterOptions,
        row_schema: Callable[[pa.Schema], RowSchema],
        released: Callable[[ParquetShardWriter], None],
        owned: Callable[[], int],
    ) -> None:
        self._log = log
        self._clock = clock
        self._options = options
        self._row_schema = row_schema
        self._on_release = released
        self._owned = owned
        self._failures = FailureFiles(log.filesystem, log.layout.failures, log.temporary)
        self._pending: _Pending | None = None
        self._broken: Exception | None = None
        self._released = False
        # A cancelled call goes on in its thread; the next one, a release for instance, waits for it.
        self._lock = threading.Lock()

    @property
    def position(self) -> int | None:
        return self._log.position

    @property
    def state(self) -> bytes:
        return self._log.state

    @property
    def pending_bytes(self) -> int:
        pending = self._pending
        return 0 if pending is None else pending.waiting_bytes + len(pending.state or b"")

    def due_at(self) -> float | None:
        pending = self._pending
        if pending is None:
            return None
        full = pending.full or pending.staged_bytes >= self._options.file_bytes_max
        return self._clock.monotonic() if full else pending.since + self._options.file_age_max_seconds

    async def write(self, outcome: Outcome) -> None:
        await self._call(lambda: self._write(outcome))

    async def commit(self) -> int:
        return await self._call(self._commit)

    async def failures(self, records_max: int) -> tuple[int, Sequence[FailedRecord]]:
        return await self._call(lambda: self._failures.pending(records_max))

    async def delivered(self, mark: int) -> None:
        await self._call(lambda: self._delivered(mark))

    async def release(self) -> None:
        await asyncio.to_thread(self._release)

    async def _call(self, work: Callable[[], T]) -> T:
        return await asyncio.to_thread(self._guarded, work)

    def _guarded(self, work: Callable[[], T]) -> T:
        with self._lock:
            if self._released:
                raise InternalError(f"{self._log.layout.home}: the writer of this shard was released")
            if self._broken is not None:
                raise self._broken
            try:
                with reaching(self._log.layout.root):
                    return work()
            except SinkUnavailable as error:
                self._broken = self._lost() or error
                raise self._broken from error
            except ShardLost as error:
                self._broken = error
                raise

    def _lost(self) -> ShardLost | None:
        """The shard's loss, if that is why a call failed: the new owner clears away what this one staged."""
        with contextlib.suppress(OSError):
            return self._log.lost_error() if self._log.lost() else None
        return None

    def _write(self, outcome: Outcome) -> None:
        self._check(outcome)
        rows = outcome.rows if outcome.rows is not None and outcome.rows.num_rows else None
        schema = None if rows is None else self._row_schema(rows.schema)
        limit = self._options.hive_partitions_open_max
        parts = [] if rows is None else split(rows, self._options.keys, limit)
        if outcome.start == outcome.end and rows is None and outcome.state is None and self._end is not None:
            return
        pending = self._begin(outcome.start)
        try:
            if schema is not None:
                pending.fingerprint = schema.fingerprint
                self._add_rows(pending, schema.files, parts)
            if outcome.failures:
                self._add_failures(pending, outcome.failures)
        except BaseException as error:
            # Part of the outcome is in the files: they must never be committed.
            self._broken = error if isinstance(error, InternalError) else InternalError(
                f"{self._log.layout.home}: a write failed half-way ({error})"
            )  # fmt: skip
            raise
        pending.end = outcome.end
        pending.counts += outcome.counts
        pending.rows_out += 0 if rows is None else rows.num_rows
        if outcome.state is not None:
            pending.state = outcome.state

    @property
    def _end(self) -> int | None:
        return self._log.position if self._pending is None else self._pending.end

    def _check(self, outcome: Outcome) -> None:
        name = f"{self._log.layout.topic}-{self._log.layout.partition}"
        if self._end is not None and outcome.start != self._end:
            raise InternalError(f"{name}: an outcome starts at {outcome.start}, the one before ends at {self._end}")
        last = outcome.start - 1
        for record in outcome.failures:
            if not last < record.offset < outcome.end:
                raise InternalError(
                    f"{name}: failed offset {record.offset} is out of order or outside of "
                    f"[{outcome.start}, {outcome.end})"
                )
            last = record.offset

    def _begin(self, start: int) -> _Pending:
        if self._pending is None:
            self._pending = _Pending(self._clock.monotonic(), start, start)
            self._log.say("staging")
        return self._pending

    def _add_rows(self, pending: _Pending, schema: pa.Schema, parts: Sequence[tuple[str, pa.Table]]) -> None:
        options = self._options
        if len(pending.open.keys() | {path for path, _ in parts}) > options.hive_partitions_open_max:
            self._finish_open(pending)
            pending.full = True
        for path, table in parts:
            file = pending.open.get(path)
            if file is None:
                file = pending.open[path] = _OpenFile(self._log.stage("rows"), schema, options.compression)
            file.add(table)
        pending.waiting_bytes = sum(file.waiting_bytes for file in pending.open.values())
        bytes_max = min(options.row_group_bytes_max, self._fair_share())
        while pending.waiting_bytes > bytes_max:
            largest = max(pending.open.values(), key=lambda file: file.waiting_bytes)
            pending.waiting_bytes -= largest.waiting_bytes
            largest.flush(options.row_group_bytes_max)
        staged = [file.staged for file in pending.open.values()] + [file for _, file, _ in pending.finished]
        pending.staged_bytes = sum(file.bytes for file in staged)

    def _fair_share(self) -> int:
        """What of this shard may wait for its row group, now that so many shards are owned here."""
        return self._options.waiting_bytes_max // max(1, self._owned())

    def _finish_open(self, pending: _Pending) -> None:
        while pending.open:
            path, file = next(iter(pending.open.items()))
            file.finish(self._options.row_group_bytes_max)
            pending.finished.append((path, file.staged, file.rows))
            del pending.open[path]
        pending.waiting_bytes = 0

    def _add_failures(self, pending: _Pending, records: Sequence[FailedRecord]) -> None:
        if pending.failures is None:
            pending.failures = self._log.stage("failures")
        pending.failures.write(dump_failures(records))
        pending.full = pending.full or pending.failures.bytes >= FAILURES_BYTES_MAX

    def _commit(self) -> int:
        pending = self._pending
        if pending is None:
            if self._log.position is None:
                raise InternalError(f"{self._log.layout.home}: there is nothing to commit, and no position yet")
            return self._log.position
        try:
            self._commit_pending(pending)
        except Exception as error:
            self._broken = error  # its files may be committed or not: only a new owner can tell
            raise
        self._pending = None
        return pending.end

    def _commit_pending(self, pending: _Pending) -> None:
        self._finish_open(pending)
        if pending.failures is not None:
            pending.failures.finish()
        pending.committing = True
        self._log.commit(
            pending.start,
            pending.end,
            pending.counts,
            files=self._entries(pending),
            failures=self._failures_entry(pending),
            rows_out=pending.rows_out,
            schema=pending.fingerprint,
            state=pending.state,
        )

    def _entries(self, pending: _Pending) -> list[FileEntry]:
        stem = self._log.layout.public_stem(pending.start, pending.end, self._log.seq + 1)
        entries = []
        counts: dict[str, int] = {}
        for path, file, rows in pending.finished:
            count = counts[path] = counts.get(path, -1) + 1
            name = f"{stem}-{count}.parquet" if count else f"{stem}.parquet"
            entries.append(FileEntry(file.path.name, f"{path}/{name}" if path else name, rows, file.bytes))
        return entries

    def _failures_entry(self, pending: _Pending) -> FileEntry | None:
        if pending.failures is None:
            return None
        layout = self._log.layout
        public = layout.failures / layout.failures_name(pending.start, pending.end)
        file = pending.failures
        return FileEntry(
            file.path.name, public.relative_to(layout.root).as_posix(), pending.counts.failed, file.bytes
        )

    def _delivered(self, mark: int) -> None:
        if self._log.lost():
            raise self._log.lost_error()
        self._failures.delivered(mark)

    def _release(self) -> None:
        with self._lock:
            self._released = True
            self._on_release(self)
            pending, self._pending = self._pending, None
            # Once a commit has begun its files may be committed, whatever it raised: recovery knows.
            if pending is None or pending.committing:
                return
            with contextlib.suppress(Exception):
                for file in pending.open.values():
                    file.abandon()
                for _, staged, _ in pending.finished:
                    staged.abandon()
                if pending.failures is not None:
                    pending.failures.abandon()
