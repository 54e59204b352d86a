"""`MemorySink`: rows and positions in a `MemoryStore`, with the commit semantics of the durable sinks.

The store outlives its sinks, so that a restart can be played. An owner is fenced by the next one's takeover,
a commit takes place only where it continues the shard's position, and nothing uncommitted is ever visible.
For tests, and for trying a pipeline; nothing here survives the process.
"""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import pyarrow as pa

from engine.batch import Stream
from engine.errors import HeadraceError, InternalError, RecreatedTopic, RowsRefused, ShardLost, SinkMismatch
from engine.protocols import Clock, Counts, FailedRecord, Outcome

#: The name under which the schema of the rows is kept; the first write adopts it where nobody did.
ROWS = "rows"


@dataclass(slots=True)
class StoredShard:
    """One shard: every committed outcome in order, who may commit, and what is delivered."""

    position: int | None = None
    owner: str | None = None
    outcomes: list[Outcome] = field(default_factory=list)
    commits: list[tuple[int, int, Counts]] = field(default_factory=list)
    delivered: int = -1  #: the offset of the last failure that was marked
    state: bytes = b""

    @property
    def failures(self) -> list[FailedRecord]:
        return [failure for outcome in self.outcomes for failure in outcome.failures]


@dataclass(slots=True)
class MemoryStore:
    """What a sink leaves behind. ``refusal``, when set, is raised by what would change it, as by a full disk."""

    pipeline: str | None = None
    stream: Stream | None = None
    topic_ids: list[str] = field(default_factory=list)  #: of every incarnation of the topic, oldest first
    partitions_at_start: int = 0
    schemas: dict[str, pa.Schema] = field(default_factory=dict)
    shards: dict[tuple[str, int], StoredShard] = field(default_factory=dict)
    refusal: HeadraceError | None = None

    def shard(self, partition: int) -> StoredShard:
        """The shard of the topic that the store is bound to now."""
        assert self.stream is not None
        return self.shards.setdefault((self.stream.topic_id, partition), StoredShard())

    def table(self, partition: int) -> pa.Table | None:
        """The committed rows of a shard in order; None when there are none."""
        tables = [outcome.rows for outcome in self.shard(partition).outcomes if outcome.rows is not None]
        return pa.concat_tables(tables) if tables else None


class MemorySink:
    """`engine.protocols.Sink` over a store.

    A commit is due ``commit_interval_max_seconds`` after its first write, or at ``commit_bytes_max``.
    ``refuses`` names rows of a table that are not taken, by index and with the reason. ``step`` is awaited
    before each step takes effect, and after a commit, with its name: tests let others run there, or die.
    """

    def __init__(
        self,
        store: MemoryStore,
        *,
        pipeline: str,
        clock: Clock,
        commit_interval_max_seconds: float = 1.0,
        commit_bytes_max: int = 67_108_864,
        on_recreated_topic: Literal["stop", "restart"] = "stop",
        refuses: Callable[[pa.Table], Mapping[int, str]] | None = None,
        step: Callable[[str], Awaitable[None]] | None = None,
    ) -> None:
        self.store = store
        self.clock = clock
        self.commit_interval_max_seconds = commit_interval_max_seconds
        self.commit_bytes_max = commit_bytes_max
        self._pipeline = pipeline
        self._on_recreated_topic = on_recreated_topic
        self._refuses = refuses
        self._step = step
        self._stream: Stream | None = None

    async def open(self, stream: Stream) -> None:
        await self.take_step("open")
        self._check(stream)
        if self.store.stream is None or self.store.stream.topic_id != stream.topic_id:
            self.store.pipeline = self._pipeline
            self.store.partitions_at_start = stream.partitions
            self.store.stream = stream
            self.store.topic_ids.append(stream.topic_id)
        self._stream = stream

    @property
    def partitions_at_start(self) -> int:
        return self.store.partitions_at_start

    async def adopt_schema(self, name: str, schema: pa.Schema) -> pa.Schema:
        await self.take_step("schema")
        return self.store.schemas.setdefault(name, schema.remove_metadata())

    async def schema(self, name: str) -> pa.Schema | None:
        return self.store.schemas.get(name)

    async def position(self, partition: int) -> int | None:
        return self._shard(partition).position

    async def acquire(self, partition: int) -> MemoryShardWriter:
        await self.take_step("takeover")
        shard = self._shard(partition)
        shard.owner = uuid.uuid4().hex
        return MemoryShardWriter(self, partition, shard)

    async def close(self) -> None:
        self._stream = None

    async def take_step(self, name: str) -> None:
        if self._step is not None:
            await self._step(name)
        if self.store.refusal is not None and name != "committed":
            raise self.store.refusal

    def take(self, rows: pa.Table) -> pa.Table:
        """``rows``, checked against the durable schema. Raises InternalError or RowsRefused."""
        schema = self.store.schemas.setdefault(ROWS, rows.schema.remove_metadata())
        if not rows.schema.equals(schema):
            raise InternalError(f"the sink of {self._pipeline} has the columns {schema}, not {rows.schema}")
        refused = self._refuses(rows) if self._refuses is not None else {}
        if refused:
            raise RowsRefused(list(refused), list(refused.values()))
        return rows

    def _shard(self, partition: int) -> StoredShard:
        if self._stream is None:
            raise InternalError(f"the sink of {self._pipeline} is not open")
        return self.store.shards.setdefault((self._stream.topic_id, partition), StoredShard())

    def _check(self, stream: Stream) -> None:
        known = self.store.stream
        if known is None:
            return
        theirs = (self.store.pipeline, known.cluster_id, known.topic)
        ours = (self._pipeline, stream.cluster_id, stream.topic)
        if theirs != ours:
            raise SinkMismatch(
                f"the sink belongs to pipeline {theirs[0]!r}, cluster {theirs[1]}, topic {theirs[2]!r}; "
                f"this is pipeline {ours[0]!r}, cluster {ours[1]}, topic {ours[2]!r}"
            )
        is_new = stream.topic_id not in self.store.topic_ids
        if known.topic_id != stream.topic_id and not (is_new and self._on_recreated_topic == "restart"):
            raise RecreatedTopic(
                f"the sink holds topic {known.topic!r} with the id {known.topic_id}; it has {stream.topic_id} now",
                hint='set source.on_recreated_topic = "restart" to read the new topic from its start',
            )


class MemoryShardWriter:
    """`engine.protocols.ShardWriter` of one shard."""

    def __init__(self, sink: MemorySink, partition: int, shard: StoredShard) -> None:
        self._sink = sink
        self._partition = partition
        self._shard = shard
        self._owner = shard.owner
        self._position = shard.position
        self._state = shard.state
        self._end = shard.position
        self._pending: list[Outcome] = []
        self._pending_bytes = 0
        self._since = 0.0

    @property
    def position(self) -> int | None:
        return self._position

    @property
    def state(self) -> bytes:
        return self._state

    @property
    def pending_bytes(self) -> int:
        return self._pending_bytes

    def due_at(self) -> float | None:
        if not self._pending:
            return None
        if self._pending_bytes >= self._sink.commit_bytes_max:
            return self._sink.clock.monotonic()
        return self._since + self._sink.commit_interval_max_seconds

    async def write(self, outcome: Outcome) -> None:
        """Keep an outcome for the next commit, which is where another owner is noticed, as in the durable sinks."""
        await self._sink.take_step("write")
        if self._owner is None:
            raise ShardLost(f"shard {self._partition}: released")
        if self._end is not None and outcome.start != self._end:
            raise InternalError(
                f"shard {self._partition}: [{outcome.start}, {outcome.end}) does not follow {self._end}"
            )
        if outcome.rows is not None:
            rows = self._sink.take(outcome.rows) if outcome.rows.num_rows else None
            outcome = replace(outcome, rows=rows)
        if not self._pending:
            self._since = self._sink.clock.monotonic()
        self._pending.append(outcome)
        self._pending_bytes += 0 if outcome.rows is None else outcome.rows.nbytes
        self._pending_bytes += sum(len(failure.value or b"") for failure in outcome.failures)
        self._pending_bytes += len(outcome.state or b"")
        self._end = outcome.end

    async def commit(self) -> int:
        await self._sink.take_step("commit")
        self._require_owned()
        if self._pending:
            start, end = self._pending[0].start, self._pending[-1].end
            assert self._shard.position in (None, start), f"{start} does not follow {self._shard.position}"
            self._shard.outcomes.extend(self._pending)
            self._shard.commits.append((start, end, sum((each.counts for each in self._pending), Counts())))
            self._shard.position = self._position = end
            given = [each.state for each in self._pending if each.state is not None]
            if given:
                self._shard.state = self._state = given[-1]
            self._forget()
        await self._sink.take_step("committed")
        return self._position if self._position is not None else 0

    async def failures(self, records_max: int) -> tuple[int, Sequence[FailedRecord]]:
        """The mark is the offset of the last failure given."""
        self._require_owned()
        waiting = [failure for failure in self._shard.failures if failure.offset > self._shard.delivered]
        found = waiting[:records_max]
        return (found[-1].offset if found else self._shard.delivered), found

    async def delivered(self, mark: int) -> None:
        self._require_owned()
        self._shard.delivered = max(self._shard.delivered, mark)

    async def release(self) -> None:
        self._owner = None
        self._forget()

    def _require_owned(self) -> None:
        if self._owner is None or self._owner != self._shard.owner:
            self._forget()
            raise ShardLost(f"shard {self._partition}: another owner has taken it")

    def _forget(self) -> None:
        self._pending, self._pending_bytes = [], 0
