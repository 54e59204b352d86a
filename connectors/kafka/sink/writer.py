"""One owned shard of the Kafka sink: rows wait as messages, and a commit is one transaction.

The transaction begins when a commit is asked for, after the handler has returned, and holds the rows, the shard's
position and state, its failed records, and at most once a second the group offset. It is never left open while the
shard goes on. After a transaction whose outcome is unknown the writer is of no more use: the next owner's takeover
settles it.

Not here: the requests (`transactions`), what the state topic holds (`state`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import orjson
import pyarrow as pa

from connectors.kafka.sink import batches
from connectors.kafka.sink.batches import RecordBatch
from connectors.kafka.sink.messages import Messages
from connectors.kafka.sink.state import encoded, key_of
from connectors.kafka.sink.transactions import GroupOffset, SinkAway, TransactionalProducer
from engine.checkpoint import ROWS_REFUSED
from engine.deadline import Deadline
from engine.delivery import document
from engine.errors import HandlerError, HeadraceError, InternalError, RowsRefused, ShardLost
from engine.protocols import Counts, FailedRecord, Outcome

if TYPE_CHECKING:
    from connectors.kafka.sink.sink import KafkaSink

#: Group offsets are part of a transaction at most this often.
GROUP_OFFSET_SECONDS = 1.0

#: Ranges without rows and failures show nothing to anybody, states neither; so long they may wait for some.
SILENT_SECONDS_MAX = 1.0

#: Memory that a failure takes beside its key and value.
FAILURE_BYTES = 512

#: How long it may take until what was committed can be read.
VISIBLE_SECONDS_MAX = 10.0
LOOK_SECONDS = 0.01


@dataclass(frozen=True, slots=True)
class _Pending:
    start: int
    end: int
    counts: Counts
    messages: Messages | None
    failures: Sequence[FailedRecord]
    state: bytes | None

    @property
    def nbytes(self) -> int:
        kept = (FAILURE_BYTES + len(failure.key or b"") + len(failure.value or b"") for failure in self.failures)
        return (self.messages.nbytes if self.messages is not None else 0) + sum(kept) + len(self.state or b"")


def _last_state(pending: Sequence[_Pending]) -> bytes | None:
    return next((each.state for each in reversed(pending) if each.state is not None), None)


class KafkaShardWriter:
    """`engine.protocols.ShardWriter` of one shard."""

    def __init__(
        self,
        sink: KafkaSink,
        partition: int,
        producer: TransactionalProducer,
        position: int | None,
        state: bytes,
        busy: asyncio.Lock,
    ) -> None:
        self._sink = sink
        self._partition = partition
        self._producer = producer
        self._position = position
        self._state = state
        self._committed = -1  # by this owner
        self._end = position
        self._pending: list[_Pending] = []
        self._pending_bytes = 0
        self._pending_since = 0.0
        self._shows_since: float | None = None  # since when rows or failures are pending
        self._delivered_before = -1
        self._group_offset_at = float("-inf")
        self._busy = busy  # one transaction of a shard at a time, and none beside a takeover in this process
        self._broken: HeadraceError | None = None

    @property
    def position(self) -> int | None:
        return self._position

    @property
    def state(self) -> bytes:
        return self._state

    @property
    def pending_bytes(self) -> int:
        return self._pending_bytes

    @property
    def where(self) -> str:
        return f"{self._sink.where}, shard {self._partition}"

    def due_at(self) -> float | None:
        if not self._pending:
            return None
        if self._pending_bytes >= self._sink.commit_bytes_max:
            return self._sink.clock.monotonic()
        interval = self._sink.commit_interval_max_seconds
        silent = self._pending_since + max(interval, SILENT_SECONDS_MAX)
        return silent if self._shows_since is None else min(silent, self._shows_since + interval)

    async def write(self, outcome: Outcome) -> None:
        """Keep an outcome as messages. RowsRefused, InternalError and SinkMismatch leave it out whole.

        So does HandlerError, for rows where the sink takes none.
        """
        self._require_usable()
        if self._end is not None and outcome.start != self._end:
            raise InternalError(f"{self.where}: [{outcome.start}, {outcome.end}) does not follow {self._end}")
        messages = None
        if outcome.rows is not None and outcome.rows.num_rows:
            if self._sink.topic is None:
                raise HandlerError(ROWS_REFUSED)
            await self._sink.require_schema(outcome.rows.schema)
            messages = await asyncio.to_thread(self._messages, outcome.rows)
        now = self._sink.clock.monotonic()
        if not self._pending:
            self._pending_since = now
        if self._shows_since is None and (messages is not None or outcome.failures):
            self._shows_since = now
        self._pending.append(
            _Pending(outcome.start, outcome.end, outcome.counts, messages, outcome.failures, outcome.state)
        )
        self._pending_bytes += self._pending[-1].nbytes
        self._end = outcome.end

    async def commit(self) -> int:
        """Commit what is pending; 0 when there never was anything. After an error it is of no more use."""
        self._require_usable()
        async with self._busy:
            self._require_usable()
            if self._pending:
                pending = self._pending
                self._sink.phase("begin")
                made = await asyncio.to_thread(self._built, pending)
                await self._transact(made, self._group_offset(pending[-1].end))
                self._sink.phase("committed")
                self._position = self._committed = pending[-1].end
                if (state := _last_state(pending)) is not None:
                    self._state = state
                self._forget()
        return self._position if self._position is not None else 0

    async def failures(self, records_max: int) -> tuple[int, Sequence[FailedRecord]]:
        """The mark is the offset after the last failure given, 0 when there is none."""
        self._require_usable()
        topic_id = self._sink.stream.topic_id
        await self._visible(topic_id)
        state = await self._sink.log.shard(self._partition)
        pending = sorted(at for at in state.failures.get(topic_id, {}) if at >= self._delivered_before)
        found = await self._sink.log.failures(self._partition, topic_id, pending[:records_max])
        return (found[-1].offset + 1 if found else 0), found

    async def delivered(self, mark: int) -> None:
        """Delivered failures are forgotten; the destination has them."""
        self._require_usable()
        async with self._busy:
            self._require_usable()
            stream = self._sink.stream
            state = await self._sink.log.shard(self._partition)
            pending = [at for at in state.failures.get(stream.topic_id, {}) if at < mark]
            # Without any there is still the question whose shard it is.
            gone = [key_of("failure", stream.topic_id, self._partition, at) for at in pending] or [
                key_of("failure", stream.topic_id, self._partition, -1)
            ]
            made = await asyncio.to_thread(self._state_batches, gone, [None] * len(gone))
            await self._transact(made, None)
            self._delivered_before = max(self._delivered_before, mark)

    async def release(self) -> None:
        if self._broken is None:
            self._broken = ShardLost(f"{self.where}: released")
        self._forget()

    async def _transact(self, made: Sequence[RecordBatch], group_offset: GroupOffset | None) -> None:
        try:
            await self._producer.commit(made, group_offset, ending=lambda: self._sink.phase("written"))
        except BaseException as error:
            unknown = SinkAway(f"{self.where}: what became of its last transaction is not known")
            self._broken = error if isinstance(error, HeadraceError) else unknown
            self._forget()
            raise

    async def _visible(self, topic_id: str) -> None:
        """Wait until the last commit can be read: its markers are written after it is acknowledged."""
        deadline = Deadline(self._sink.clock, VISIBLE_SECONDS_MAX)
        while True:
            state = await self._sink.log.shard(self._partition)
            if state.positions.get(topic_id, -1) >= self._committed:
                return
            if not deadline.seconds_left:
                raise SinkAway(f"{self.where}: its last commit cannot be read yet")
            await asyncio.sleep(LOOK_SECONDS)

    def _forget(self) -> None:
        self._pending, self._pending_bytes, self._shows_since = [], 0, None

    def _require_usable(self) -> None:
        if self._broken is not None:
            raise self._broken

    # -- in a thread ---------------------------------------------------------------------------------------------

    def _messages(self, rows: pa.Table) -> Messages:
        messages = self._sink.format.messages(rows)
        bytes_max = self._sink.message_bytes_max
        refused = batches.too_large(messages, compression=self._sink.compression, bytes_max=bytes_max)
        if refused:
            raise RowsRefused(
                list(refused),
                [
                    f"its message has {size:,} bytes; topic {self._sink.topic!r} takes {bytes_max:,} (compressed)"
                    for size in refused.values()
                ],
            )
        return messages

    def _built(self, pending: Sequence[_Pending]) -> list[RecordBatch]:
        """All of a commit as record batches; the position is the last record of the shard's state."""
        made = []
        stream, now_ms = self._sink.stream, int(self._sink.clock.time() * 1000)
        rows = [each.messages for each in pending if each.messages is not None]
        if rows:
            assert self._sink.topic is not None
            messages = Messages.joined(rows)
            made += batches.build(
                messages,
                self._sink.topic,
                batches.spread(messages, self._sink.partitions, self._sink.next_unkeyed()),
                stamp=self._producer.stamp,
                timestamp_ms=now_ms,
                compression=self._sink.compression,
                bytes_max=self._sink.message_bytes_max,
            )
        keys: list[bytes] = []
        values: list[bytes | None] = []
        for failure in (failure for each in pending for failure in each.failures):
            keys.append(key_of("failure", stream.topic_id, self._partition, failure.offset))
            values.append(orjson.dumps(document(self._sink.pipeline, stream, failure)))
        if (state := _last_state(pending)) is not None:
            keys.append(key_of("state", stream.topic_id, self._partition))
            values.append(state or None)
        start, end = pending[0].start, pending[-1].end
        assert self._position in (None, start), f"{start} does not follow {self._position}"
        counts = sum((each.counts for each in pending), Counts())
        entry = {"start": start, "position": end, "counts": counts, "at": now_ms}
        keys.append(key_of("position", stream.topic_id, self._partition))
        values.append(orjson.dumps(entry))
        return made + self._state_batches(keys, values)

    def _state_batches(self, keys: Sequence[bytes], values: Sequence[bytes | None]) -> list[RecordBatch]:
        now_ms = int(self._sink.clock.time() * 1000)
        return encoded(keys, values, self._sink.log.topic, 1 + self._partition, self._producer.stamp, now_ms)

    def _group_offset(self, offset: int) -> GroupOffset | None:
        now = self._sink.clock.monotonic()
        if self._sink.group is None or now - self._group_offset_at < GROUP_OFFSET_SECONDS:
            return None
        self._group_offset_at = now
        return GroupOffset(self._sink.group, self._sink.stream.topic, self._partition, offset)
