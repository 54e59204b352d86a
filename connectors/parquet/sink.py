"""The Parquet sink: a directory of committed files, bound to one pipeline and one topic.

Beside the files it keeps a view of them (`connectors.parquet.view`), made when their schema is known.

Not here: the shards' writers (`connectors.parquet.writer`) and how commits are made (`connectors.parquet.log`).
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import pyarrow as pa

from connectors.parquet.files import Directories
from connectors.parquet.filesystem import FileSystem, OsFileSystem, reaching
from connectors.parquet.identity import Identity, IdentityFiles
from connectors.parquet.joined import RecordLog
from connectors.parquet.layout import ShardLayout, shards_home
from connectors.parquet.log import CHECKPOINT_EVERY, ShardLog, read_chain
from connectors.parquet.partitions import file_schema, parse_keys
from connectors.parquet.view import NAME, publish_view
from connectors.parquet.writer import ParquetShardWriter, RowSchema, WriterOptions
from engine.batch import Stream
from engine.errors import ConfigError, InternalError, RecreatedTopic, SinkMismatch
from engine.protocols import Clock

logger = logging.getLogger("headrace.parquet")

#: The durable schema under this name is that of the rows; the first write adopts it where nobody did.
ROWS = "rows"

COMPRESSIONS = ("zstd", "snappy", "lz4", "gzip", "brotli", "none")


class ParquetSink:
    """`engine.protocols.Sink` over a directory. Several processes may share it; each shard has one owner.

    Files roll when a shard has staged ``file_bytes_max`` bytes, or ``file_age_max_seconds`` after its first
    uncommitted write. Up to ``row_group_bytes_max`` bytes of a shard wait in memory for their row group, and of all
    shards together up to ``waiting_bytes_max``.
    ``partition_by`` names columns, or ``date(<column>)`` for a column's UTC date; one write may go to
    ``hive_partitions_open_max`` partitions, and `engine.errors.RowsRefused` names the rows beyond.
    ``phase`` hears the name of each step of takeovers and commits, in the thread that takes it.
    Raises ConfigError, with all faults, for settings that are none.
    """

    def __init__(
        self,
        path: Path,
        *,
        pipeline: str,
        clock: Clock,
        file_bytes_max: int = 134_217_728,
        file_age_max_seconds: float = 1.0,
        row_group_bytes_max: int = 8_388_608,
        waiting_bytes_max: int = 67_108_864,
        partition_by: Sequence[str] = (),
        hive_partitions_open_max: int = 64,
        on_recreated_topic: Literal["stop", "restart"] = "stop",
        compression: str = "zstd",
        filesystem: FileSystem | None = None,
        phase: Callable[[str], None] | None = None,
        checkpoint_every: int = CHECKPOINT_EVERY,
    ) -> None:
        limits = {
            "file_bytes_max": file_bytes_max,
            "file_age_max_seconds": file_age_max_seconds,
            "row_group_bytes_max": row_group_bytes_max,
            "waiting_bytes_max": waiting_bytes_max,
            "hive_partitions_open_max": hive_partitions_open_max,
            "checkpoint_every": checkpoint_every,
        }
        faults = [f"{name} is {value}; it must be above 0" for name, value in limits.items() if value <= 0]
        if compression not in COMPRESSIONS:
            faults.append(f"compression is {compression!r}; valid are {', '.join(COMPRESSIONS)}")
        if on_recreated_topic not in ("stop", "restart"):
            faults.append(f"on_recreated_topic is {on_recreated_topic!r}; valid are stop, restart")
        if faults:
            raise ConfigError(f"Parquet sink {path}", faults)
        self._options = WriterOptions(
            file_bytes_max, file_age_max_seconds, row_group_bytes_max, waiting_bytes_max, hive_partitions_open_max,
            parse_keys(partition_by), compression,
        )  # fmt: skip
        self._root = path
        self._pipeline = pipeline
        self._clock = clock
        self._on_recreated_topic = on_recreated_topic
        self._filesystem = filesystem or OsFileSystem()
        self._phase = phase
        self._checkpoint_every = checkpoint_every
        self._bound: Identity | None = None
        self._lock = threading.Lock()  # over what follows; calls come from many threads
        self._directories = Directories(self._filesystem, path)
        self._identity_files = IdentityFiles(self._filesystem, path, self._directories)
        self._writers: set[ParquetShardWriter] = set()
        self._rows: tuple[pa.Schema, RowSchema] | None = None
        self._view_lock = threading.Lock()
        self._has_view = False

    async def open(self, stream: Stream) -> None:
        await asyncio.to_thread(self._open, stream)

    @property
    def partitions_at_start(self) -> int:
        return self._identity.partitions_at_start

    async def adopt_schema(self, name: str, schema: pa.Schema) -> pa.Schema:
        return await asyncio.to_thread(self._adopt_schema, name, schema)

    async def schema(self, name: str) -> pa.Schema | None:
        return await asyncio.to_thread(self._schema, name)

    async def position(self, partition: int) -> int | None:
        return await asyncio.to_thread(self._position, partition)

    async def acquire(self, partition: int) -> ParquetShardWriter:
        """Take a shard over. Raises ShardLost when another owner takes it before this one has recovered it."""
        return await asyncio.to_thread(self._acquire, partition)

    async def close(self) -> None:
        """Let go of the shards that were not released."""
        for writer in list(self._writers):
            await writer.release()

    @property
    def _identity(self) -> Identity:
        if self._bound is None:
            raise InternalError(f"the Parquet sink {self._root} is used before it was opened")
        return self._bound

    def _open(self, stream: Stream) -> None:
        with reaching(self._root), self._lock:
            files = self._identity_files
            files.prepare()
            history = files.history()
            if not history:
                bound = files.bind(_identity(self._pipeline, stream, 0))
            elif self._may_restart(history, stream):
                bound = self._restart(history[-1], stream)
            else:
                bound = history[-1]
            files.check(bound, self._pipeline, stream)
            self._bound = bound
            RecordLog(self._filesystem, self._root, self._directories).prepare()
            schema = files.schema(ROWS)
        if schema is not None:
            self._publish_view(schema)

    def _may_restart(self, history: Sequence[Identity], stream: Stream) -> bool:
        """Whether this is the sink's topic made anew, and we are to go on with it.

        An id that the topic had before comes from a member with old metadata: it is no new topic.
        """
        last = history[-1]
        same = (last.pipeline, last.cluster_id, last.topic) == (self._pipeline, stream.cluster_id, stream.topic)
        known = {identity.topic_id for identity in history}
        return same and self._on_recreated_topic == "restart" and stream.topic_id not in known

    def _restart(self, last: Identity, stream: Stream) -> Identity:
        """Begin a new incarnation. What the last one committed is published first, and its owners are fenced."""
        home = shards_home(self._root, last.topic_id)
        partitions = self._filesystem.names(home) if self._filesystem.size(home) is not None else []
        for partition in sorted(partitions, key=int):
            self._log(last, int(partition)).acquire()
        return self._identity_files.bind(_identity(self._pipeline, stream, last.incarnation + 1))

    def _adopt_schema(self, name: str, schema: pa.Schema) -> pa.Schema:
        with reaching(self._root), self._lock:
            adopted = self._identity_files.adopt_schema(name, schema.remove_metadata())
            if name == ROWS:
                self._know_rows(adopted)
        if name == ROWS:
            self._publish_view(adopted)
        return adopted

    def _schema(self, name: str) -> pa.Schema | None:
        with reaching(self._root), self._lock:
            schema = self._identity_files.schema(name)
            if name == ROWS and schema is not None:
                self._know_rows(schema)
            return schema

    def _position(self, partition: int) -> int | None:
        with reaching(self._root):
            return read_chain(self._filesystem, self._layout(self._identity, partition).log).position

    def _acquire(self, partition: int) -> ParquetShardWriter:
        with reaching(self._root):
            latest = self._identity_files.history()[-1]
            if latest.topic_id != self._identity.topic_id:
                raise RecreatedTopic(
                    f"the Parquet sink {self._root} has gone on to topic id {latest.topic_id} of "
                    f"{latest.topic!r}; this member has {self._identity.topic_id}",
                    hint="Start this member again.",
                )
            log = self._log(self._identity, partition)
            log.acquire()
        writer = ParquetShardWriter(
            log, self._clock, self._options, self._row_schema, self._writers.discard, lambda: len(self._writers)
        )
        self._writers.add(writer)
        return writer

    def _log(self, identity: Identity, partition: int) -> ShardLog:
        return ShardLog(
            self._filesystem,
            self._layout(identity, partition),
            self._directories,
            time=self._clock.time,
            phase=self._phase,
            checkpoint_every=self._checkpoint_every,
        )

    def _layout(self, identity: Identity, partition: int) -> ShardLayout:
        return ShardLayout(self._root, identity.topic, identity.topic_id, partition, identity.incarnation)

    def _publish_view(self, schema: pa.Schema) -> None:
        """Make the view, once. Without it the sink is as good: what is wrong is warned of."""
        with self._view_lock:
            if self._has_view or not isinstance(self._filesystem, OsFileSystem):  # DuckDB writes to no other
                return
            self._has_view = True
            try:
                keys = self._options.keys
                publish_view(self._filesystem, self._directories, self._root, self._pipeline, schema, keys)
            except Exception as error:
                logger.warning("%s is not there for readers: %s", self._root / NAME, error)

    def _row_schema(self, schema: pa.Schema) -> RowSchema:
        """What ``schema`` is in the files. Rows of one sink have one schema: the first, durably.

        InternalError for another than this process has used; SinkMismatch for another than an earlier
        process left, since then a configuration has changed.
        """
        rows = self._known_row_schema(schema)
        self._publish_view(schema)
        return rows

    def _known_row_schema(self, schema: pa.Schema) -> RowSchema:
        with self._lock:
            if self._rows is None:
                file_schema(schema, self._options.keys)  # nothing that cannot be written is adopted
                adopted = self._identity_files.adopt_schema(ROWS, schema.remove_metadata())
                if not adopted.equals(schema, check_metadata=False):
                    faults = _differences(adopted, schema)
                    raise SinkMismatch(
                        f"the Parquet sink {self._root} holds rows of another schema: {faults}",
                        hint="Give the new rows a directory of their own, or make them fit.",
                    )
                self._know_rows(adopted)
            assert self._rows is not None
            known, rows = self._rows
            if not known.equals(schema, check_metadata=False):
                raise InternalError(
                    f"rows for the Parquet sink {self._root} do not have its schema: {_differences(known, schema)}"
                )
            return rows

    def _know_rows(self, schema: pa.Schema) -> None:
        fingerprint = hashlib.sha256(schema.serialize().to_pybytes()).hexdigest()[:16]
        self._rows = (schema, RowSchema(file_schema(schema, self._options.keys), fingerprint))


def _identity(pipeline: str, stream: Stream, incarnation: int) -> Identity:
    return Identity(
        pipeline, stream.cluster_id, stream.topic, stream.topic_id, stream.partitions, incarnation
    )  # fmt: skip


def _differences(known: pa.Schema, given: pa.Schema) -> str:
    """The columns in which two schemas differ, in words."""
    faults = []
    for name in dict.fromkeys([*known.names, *given.names]):
        if name not in given.names:
            faults.append(f"column {name!r} is missing")
        elif name not in known.names:
            faults.append(f"column {name!r} is not known")
        elif known.field(name) != given.field(name):
            faults.append(f"column {name!r} is {_column(given, name)}, not {_column(known, name)}")
    return (
        "; ".join(faults) or f"the columns come in the order {', '.join(given.names)}, not {', '.join(known.names)}"
    )


def _column(schema: pa.Schema, name: str) -> str:
    column = schema.field(name)
    return f"{column.type}{'' if column.nullable else ' not null'}"
