"""What the engine asks of the outside world: Source, Sink, Handler, Destination, Clock.

Connectors implement them, the composition root puts them together, tests give their own.
Nothing here does any work.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from engine.batch import Batch, Stream
from engine.context import Context

#: The largest state of a shard: what AWS allows a tumbling window (1 MB of 1024 KB), and what is kept around it.
STATE_BYTES_MAX = 1024 * 1024 + 4096


class Clock(Protocol):
    """Time, passed in so that tests own it."""

    def monotonic(self) -> float:
        """Seconds that never go back; for deadlines and ages."""

    def time(self) -> float:
        """Seconds since the epoch."""

    async def sleep(self, seconds: float) -> None: ...


class Filter(Protocol):
    """Which records of a batch are handled at all."""

    def select(self, batch: Batch) -> NDArray[np.bool_]:
        """True for each record that is kept. No record ever makes it raise; may be called in any thread."""

    def warm(self) -> None:
        """Load compiled code, or compile it, which takes seconds the first time on a machine. Blocks."""


class ShardListener(Protocol):
    """Hears which partitions this member owns. Both calls return only when the change has been made."""

    async def assigned(self, partitions: frozenset[int]) -> None: ...

    async def revoked(self, partitions: frozenset[int]) -> None: ...


class Source(Protocol):
    """One topic, read as a member of one consumer group. Partitions are shards.

    Calls that reach outside raise `engine.errors.BrokerUnavailable` when the broker stays away.
    """

    async def open(self) -> Stream:
        """Connect and say what the topic is; joins no group. Raises UserError for an unknown topic."""

    async def describe(self) -> Stream:
        """What the topic is now: it may have been made anew, or have grown."""

    async def join(self, listener: ShardListener) -> None:
        """Join the group. From here on ``listener`` is told of assignments and revocations."""

    async def leave(self) -> None:
        """Leave the group: ``listener.revoked`` is awaited for what is still owned."""

    async def beginning_offsets(self, partitions: Sequence[int]) -> dict[int, int]: ...

    async def end_offsets(self, partitions: Sequence[int]) -> dict[int, int]:
        """Last stable offsets: where a read_committed reader ends."""

    async def offsets_at(self, partitions: Sequence[int], timestamp_ms: int) -> dict[int, int]:
        """The first offsets whose records are not older than ``timestamp_ms``, else the end."""

    async def seek(self, partition: int, offset: int) -> None:
        """Start to fetch an owned partition at ``offset``. Nothing is fetched before."""

    async def fetch(self, partition: int, *, records_max: int, seconds_max: float) -> Batch | None:
        """The next records of an owned partition, or None when none came in ``seconds_max``.

        The batch starts where the last one ended. It may be empty and still move the position (control
        records, aborted transactions). Raises `OffsetOutOfRange` when the log no longer has the position.
        """

    async def commit(self, positions: Mapping[int, int]) -> None:
        """Commit group offsets, for lag tools; fenced by the group's generation."""

    async def committed(self, partition: int) -> int | None:
        """The group offset of a partition."""

    async def close(self) -> None: ...


class OffsetOutOfRange(Exception):
    """A fetch position that the log does not hold: ``offset`` of ``partition``."""

    def __init__(self, partition: int, offset: int) -> None:
        super().__init__(f"partition {partition} has no offset {offset}")
        self.partition = partition
        self.offset = offset


@dataclass(frozen=True, slots=True)
class Fault:
    """One record that cannot be passed: its offset and why, in a sentence."""

    offset: int
    reason: str


@dataclass(frozen=True, slots=True)
class FailedRecord:
    """A record that failed for good, whole, so that it can be delivered and sent again.

    Its identity is pipeline, cluster, topic id, partition and offset: deliveries are at least once, and
    a second copy is known by it. ``reason`` is a sentence, ``error_type`` a class or condition name,
    ``attempts`` the number of invocations that the record was part of (0: it never reached the function).
    """

    partition: int
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes | None], ...]
    reason: str
    error_type: str
    attempts: int
    request_id: str | None = None  #: of the last invocation that the record was part of


@dataclass(frozen=True, slots=True)
class Counts:
    """Where the offsets of a range went. Every offset is in exactly one of these."""

    handled: int = 0  #: given to the function, which took it
    filtered: int = 0  #: matched no filter pattern
    dropped: int = 0  #: let go on purpose, by configuration or by the function
    failed: int = 0  #: reported on failure
    absent: int = 0  #: compacted, control, aborted, or lost with leave

    @property
    def total(self) -> int:
        return self.handled + self.filtered + self.dropped + self.failed + self.absent

    def __add__(self, other: Counts) -> Counts:
        return Counts(
            self.handled + other.handled,
            self.filtered + other.filtered,
            self.dropped + other.dropped,
            self.failed + other.failed,
            self.absent + other.absent,
        )


@dataclass(frozen=True, slots=True)
class Result:
    """What a handler made of a batch.

    ``rows`` go to the sink; ``faults`` name records that the handler could not take (each is reported on
    failure, alone); ``dropped`` counts records it let go on purpose. The other records count as handled.

    ``failed_from`` is the lowest offset that a partial batch response reports: what lies before it is handled,
    and the rest of the batch is tried again. ``state`` is what a tumbling window hands to its next
    invocation, as JSON text; None outside of windows.
    """

    rows: pa.Table | Sequence[Mapping[str, object]] | None = None
    faults: Sequence[Fault] = ()
    dropped: int = 0
    failed_from: int | None = None
    state: bytes | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """Everything that came of the offsets ``[start, end)`` of a shard; a sink takes it whole or not at all.

    ``state`` is the shard's new state, committed with the position (empty: it has none any more); None leaves
    the one that there is. An outcome without offsets may change the state alone.
    """

    start: int
    end: int
    rows: pa.Table | None
    counts: Counts
    failures: Sequence[FailedRecord] = field(default=())
    state: bytes | None = None

    def __post_init__(self) -> None:
        assert self.counts.total == self.end - self.start, (
            f"{self.counts} does not account for the offsets [{self.start}, {self.end})"
        )
        assert self.counts.failed == len(self.failures)
        assert self.state is None or len(self.state) <= STATE_BYTES_MAX


@dataclass(frozen=True, slots=True)
class Window:
    """What an invocation in a tumbling window is told beside its records (developer guide, "Tumbling windows").

    ``start`` and ``end`` are seconds since the epoch, half open; ``state`` is the JSON object that the last
    invocation returned, ``{}`` for the first.
    """

    start: int
    end: int
    state: bytes
    is_final: bool
    is_terminated_early: bool


@dataclass(frozen=True, slots=True)
class Invocation:
    """One call of a handler.

    ``batch`` holds the raw records. ``columns`` holds their decoded values, one row for each record that
    could be decoded, with the trace columns ``_partition``, ``_offset``, ``_timestamp`` where those are on;
    it is None for handlers whose ``wants_columns`` is false. ``context`` is what a Lambda handler gets.
    ``window`` is there for pipelines with tumbling windows; their final invocation may have no records.
    """

    batch: Batch
    columns: pa.RecordBatch | None
    context: Context
    window: Window | None = None


class Handler(Protocol):
    """A function of some kind. Raises anything; what it raises fails the invocation.

    ``wants_columns`` says whether the engine has to decode values for it.
    """

    @property
    def wants_columns(self) -> bool: ...

    async def open(self) -> None:
        """Get ready to be called, before anything is read. Raises HandlerError where it cannot be."""

    async def invoke(self, invocation: Invocation) -> Result: ...

    async def close(self) -> None: ...


class ShardWriter(Protocol):
    """The sink's side of one owned shard. One owner calls it, one call at a time; `failures` and `delivered` may
    be called beside the others.

    Rows that were written but not committed are lost with the writer, and are read again by the next
    owner; nothing of them is ever visible. Each method raises `engine.errors.ShardLost` once another owner
    has moved the position, and `engine.errors.SinkUnavailable` when the medium refuses (full, gone).
    """

    @property
    def position(self) -> int | None:
        """The committed position: the offset after the last one committed. None before the first commit."""

    @property
    def state(self) -> bytes:
        """The committed state of the shard, of whichever owner; empty where there is none."""

    @property
    def pending_bytes(self) -> int:
        """Bytes of memory held by what is written and not committed."""

    def due_at(self) -> float | None:
        """When `commit` is due on the engine's monotonic clock (a size bound: now); None if nothing is pending."""

    async def write(self, outcome: Outcome) -> None:
        """Take an outcome that starts where the last one (or the position) ended.

        A failure here (a full disk) leaves nothing of the outcome behind but garbage that recovery drops.
        """

    async def commit(self) -> int:
        """Make everything written durable and visible, with the position, in one atomic step; the new position."""

    async def failures(self, records_max: int) -> tuple[int, Sequence[FailedRecord]]:
        """Committed failures that are not marked delivered, oldest first, with a mark for `delivered`."""

    async def delivered(self, mark: int) -> None:
        """Failures up to ``mark`` have reached the destination. May be forgotten by a crash: at least once."""

    async def release(self) -> None:
        """Let go of the shard and of what is not committed. Never raises; idempotent."""


class Sink(Protocol):
    """Where rows and positions live. Bound to one pipeline; ``open`` binds it to one stream."""

    async def open(self, stream: Stream) -> None:
        """Take the sink into use; called before the group is joined.

        Waits where another process holds it (a DuckDB file), else raises SinkUnavailable. Raises
        SinkMismatch for a sink of another pipeline, cluster or topic, RecreatedTopic for another topic id.
        """

    @property
    def partitions_at_start(self) -> int:
        """How many partitions the topic had when this sink was first opened for it."""

    async def adopt_schema(self, name: str, schema: pa.Schema) -> pa.Schema:
        """The durable schema of that name: the given one if there was none, else the one already there."""

    async def schema(self, name: str) -> pa.Schema | None:
        """The durable schema of that name, if any."""

    async def position(self, partition: int) -> int | None:
        """The committed position of any partition, whoever owns it."""

    async def acquire(self, partition: int) -> ShardWriter:
        """Become the owner of a shard: fence the last owner, finish what it left, give the position."""

    async def close(self) -> None: ...


class Destination(Protocol):
    """Takes records that failed for good. Delivery is at least once."""

    async def open(self) -> None: ...

    async def deliver(self, records: Sequence[FailedRecord]) -> None:
        """Return when all are durable there. Raises DestinationUnavailable."""

    async def close(self) -> None: ...
