"""The sink of a pipeline that writes nowhere: the group offset is its checkpoint.

At least once, as on AWS: the handler has effects of its own, and a batch that was handled but not yet
committed is handled again after a crash. Failed records reach the destination before the commit that
passes them. Group commits are fenced by the group's generation.
Not here: pipelines whose shards have a state. A group offset holds none, so those keep both in a topic of
headrace's own (`connectors.kafka.sink`).
"""

from __future__ import annotations

import pyarrow as pa

from engine.batch import Stream
from engine.errors import HandlerError
from engine.protocols import Clock, Destination, FailedRecord, Outcome, ShardWriter, Source

#: Rows have nowhere to go in a pipeline without a sink, whatever its checkpoint is.
ROWS_REFUSED = "the handler returned rows, but the pipeline has no sink to write them to"


class CheckpointSink:
    """`engine.protocols.Sink` over a source's group offsets. Rows are refused: they would have nowhere to go."""

    def __init__(
        self,
        source: Source,
        destination: Destination | None,
        clock: Clock,
        *,
        commit_interval_max_seconds: float = 1.0,
    ) -> None:
        self._source = source
        self._destination = destination
        self._clock = clock
        self._commit_interval_max_seconds = commit_interval_max_seconds
        self._schemas: dict[str, pa.Schema] = {}
        self._partitions = 0

    async def open(self, stream: Stream) -> None:
        self._partitions = stream.partitions

    @property
    def partitions_at_start(self) -> int:
        return self._partitions

    async def adopt_schema(self, name: str, schema: pa.Schema) -> pa.Schema:
        return self._schemas.setdefault(name, schema)

    async def schema(self, name: str) -> pa.Schema | None:
        return self._schemas.get(name)

    async def position(self, partition: int) -> int | None:
        return await self._source.committed(partition)

    async def acquire(self, partition: int) -> ShardWriter:
        return _Writer(
            partition,
            await self._source.committed(partition),
            self._source,
            self._destination,
            self._clock,
            self._commit_interval_max_seconds,
        )

    async def close(self) -> None:
        return


class _Writer:
    def __init__(
        self,
        partition: int,
        position: int | None,
        source: Source,
        destination: Destination | None,
        clock: Clock,
        interval_seconds: float,
    ) -> None:
        self._partition = partition
        self._position = position
        self._source = source
        self._destination = destination
        self._clock = clock
        self._interval_seconds = interval_seconds
        self._written: int | None = None
        self._written_at = 0.0
        self._failures: list[FailedRecord] = []

    @property
    def position(self) -> int | None:
        return self._position

    @property
    def state(self) -> bytes:
        """Always empty: there is nothing to keep one in."""
        return b""

    @property
    def pending_bytes(self) -> int:
        return sum(len(record.value or b"") + len(record.key or b"") for record in self._failures)

    def due_at(self) -> float | None:
        if self._written is None:
            return None
        return self._written_at + self._interval_seconds

    async def write(self, outcome: Outcome) -> None:
        last = self._position if self._written is None else self._written
        assert last is None or outcome.start == last, f"{last} is not followed by {outcome.start}"
        assert outcome.state is None, "a group offset has no room for a state"
        if outcome.rows is not None and outcome.rows.num_rows:
            raise HandlerError(ROWS_REFUSED)
        if self._written is None:
            self._written_at = self._clock.monotonic()
        self._written = outcome.end
        self._failures.extend(outcome.failures)

    async def commit(self) -> int:
        assert self._written is not None
        if self._failures and self._destination is not None:
            await self._destination.deliver(self._failures)
            self._failures = []
        await self._source.commit({self._partition: self._written})
        self._position, self._written = self._written, None
        return self._position

    async def failures(self, records_max: int) -> tuple[int, list[FailedRecord]]:
        return 0, []

    async def delivered(self, mark: int) -> None:
        raise AssertionError("failures of this sink are delivered by its commit")

    async def release(self) -> None:
        self._written = None
        self._failures = []
