"""The owner of one shard: from the position that the sink gives, through fetch, batch, handler and commit.

One task for each assigned partition. Nothing here crosses shards but the byte budget.
"""

from __future__ import annotations

import asyncio
import enum
import logging
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar

from engine.batch import Batch, join
from engine.batching import Batcher
from engine.budget import ByteBudget
from engine.delivery import Delivery
from engine.errors import HeadraceError, InternalError, RowsRefused
from engine.positions import Positions
from engine.processing import Processed, Processor, Stopping
from engine.protocols import Clock, Counts, Destination, OffsetOutOfRange, Outcome, ShardWriter, Sink, Source

T = TypeVar("T")

log = logging.getLogger("headrace.shard")

#: A shard looks at its timers at least this often, in seconds.
IDLE_SECONDS_MAX = 1.0


async def unless(event: asyncio.Event, work: Coroutine[Any, Any, T]) -> T | None:
    """The result of ``work``, or None when ``event`` comes first; ``work`` is then cancelled."""
    working = asyncio.ensure_future(work)
    waiting = asyncio.ensure_future(event.wait())
    try:
        await asyncio.wait({working, waiting}, return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else None
    finally:
        for task in (working, waiting):
            if not task.done():
                task.cancel()
        await asyncio.wait({working, waiting})
        if not working.cancelled() and (error := working.exception()) is not None and event.is_set():
            log.debug("ended by %r while being stopped", error)


#: What is copied on the event loop; more takes longer than handing it to a thread.
JOIN_INLINE_BYTES_MAX = 64 * 1024

#: A batch while it is handled, and the columns that it becomes.
HANDLED_COPIES = 2

#: How long a shard that is given up waits for deliveries under way.
LAST_DELIVERY_SECONDS = 2.0


class State(enum.StrEnum):
    STARTING = "starting"
    RUNNING = "running"
    STOPPED = "stopped"  #: gave up by itself, with an error
    RELEASED = "released"


@dataclass(frozen=True, slots=True)
class ShardStatistics:
    """``position`` is committed, ``read`` fetched: each the offset after the last one. Counts are of this run."""

    partition: int
    state: State
    position: int | None
    read: int | None
    records: int
    batches: int
    rows: int
    commits: int
    counts: Counts
    undelivered: bool
    error: str | None


@dataclass(frozen=True, slots=True)
class ShardTools:
    """What the shards of a pipeline share."""

    name: str
    source: Source
    sink: Sink
    processor: Processor
    positions: Positions
    destination: Destination | None
    batcher: Callable[[], Batcher]
    budget: ByteBudget
    clock: Clock
    fetch_records_max: int
    shard_bytes_max: int
    on_commit: Callable[[int, int], None]
    outage_seconds_max: float
    phase: Callable[[str], None] | None = None


class Shard:
    """``target`` is the offset at which the shard counts as caught up; there it commits without waiting."""

    def __init__(self, partition: int, tools: ShardTools, *, target: int | None = None) -> None:
        self.partition = partition
        self.target = target
        self.error: HeadraceError | None = None
        self._tools = tools
        self._stopping = asyncio.Event()
        self._abandoning = asyncio.Event()
        self._batcher = tools.batcher()
        self._state = State.STARTING
        self._position: int | None = None
        self._read: int | None = None
        self._processed: int | None = None
        self._delivery: Delivery | None = None
        self._delivering: asyncio.Task[None] | None = None
        self._has_failures = False  # among what is written and not committed
        self._records = self._batches = self._rows = self._commits = 0
        self._counts = Counts()

    @property
    def label(self) -> str:
        return f"{self._tools.name}[{self.partition}]"

    @property
    def is_caught_up(self) -> bool:
        """The target is committed in the sink and nothing waits to be delivered."""
        if self.target is None or self._position is None or self._delivery is None:
            return False
        return self._position >= self.target and not self._delivery.pending

    def statistics(self) -> ShardStatistics:
        return ShardStatistics(
            partition=self.partition,
            state=self._state,
            position=self._position,
            read=self._read,
            records=self._records,
            batches=self._batches,
            rows=self._rows,
            commits=self._commits,
            counts=self._counts,
            undelivered=self._delivery is not None and self._delivery.pending,
            error=None if self.error is None else self.error.message,
        )

    @property
    def is_stopping(self) -> bool:
        return self._stopping.is_set()

    async def pause(self, seconds: float) -> None:
        """Wait for so long, but no longer than until the shard is asked to stop."""
        await unless(self._stopping, self._tools.clock.sleep(seconds))

    def stop(self) -> None:
        """Ask the owner to finish the batch at hand, commit, and release."""
        self._stopping.set()

    def abandon(self) -> None:
        """Ask the owner to leave the batch at hand to the next one, commit what came before it, and release."""
        self._stopping.set()
        self._abandoning.set()

    async def run(self) -> None:
        """Own the shard until `stop`. Raises what ends it: ShardLost, or the error that it cannot pass.

        What is committed stays; what is not is read again by the next owner.
        """
        writer: ShardWriter | None = None
        try:
            writer = await self._tools.sink.acquire(self.partition)
            self._delivery = Delivery(
                self.label,
                writer,
                self._tools.destination,
                self._tools.clock,
                refused_seconds_max=self._tools.outage_seconds_max if self.target is not None else None,
            )
            await self._begin(writer)
            self._state = State.RUNNING
            await self._work(writer)
            await self._commit(writer)
            await self._finish_delivering()
        except HeadraceError as error:
            self.error = error
            raise
        except Exception as error:
            self.error = InternalError(f"{self.label}: {type(error).__name__}: {error}")
            raise self.error from error
        finally:
            self._state = State.RELEASED if self.error is None else State.STOPPED
            self._tools.budget.report(self, 0)
            if self._delivering is not None:
                self._delivering.cancel()
                await asyncio.gather(self._delivering, return_exceptions=True)
            if writer is not None:
                await writer.release()

    async def _begin(self, writer: ShardWriter) -> None:
        """Where to start: the sink says; on the very first start the configuration does, and the sink keeps it."""
        position = writer.position
        start = await self._tools.positions.resolve_start(self.partition) if position is None else position
        # Offsets mean something in one topic only, whatever has its name by now.
        await self._tools.positions.check.run()
        if position is None:
            await writer.write(Outcome(start, start, None, Counts()))
            position = await writer.commit()
            assert position == start
            log.info("%s: starts at offset %d", self.label, position)
        else:
            log.info("%s: goes on at offset %d", self.label, position)
        self._position = self._read = self._processed = position
        await self._tools.source.seek(self.partition, position)
        self._deliver()

    async def _work(self, writer: ShardWriter) -> None:
        while not self._stopping.is_set():
            await self._fetch(writer)
            while not self._stopping.is_set() and (parts := self._take(writer)):
                if not await self._handle(writer, parts):
                    return
                if self._is_commit_due(writer):
                    await self._commit(writer)
            if self._is_commit_due(writer):
                await self._commit(writer)
            self._deliver()

    def _deliver(self) -> None:
        """Have failures brought to the destination, beside the work: one that hangs holds up no rows."""
        if self._delivering is not None:
            if not self._delivering.done():
                return
            self._delivering.result()
        assert self._delivery is not None
        delivery = asyncio.ensure_future(self._delivery.run()) if self._delivery.is_due else None
        self._delivering = delivery

    async def _finish_delivering(self) -> None:
        """Give a released shard's failures a moment; what is left is the next owner's."""
        self._deliver()
        if self._delivering is not None and not self._abandoning.is_set():
            await asyncio.wait({self._delivering}, timeout=LAST_DELIVERY_SECONDS)

    @staticmethod
    async def _joined(parts: list[Batch]) -> Batch:
        """One batch from its parts, copied beside the loop where that takes a while."""
        if sum(part.nbytes for part in parts[1:]) < JOIN_INLINE_BYTES_MAX:
            return join(parts)
        return await asyncio.to_thread(join, parts)

    def _take(self, writer: ShardWriter) -> list[Batch]:
        held = self._report(writer)
        reached = self.target is not None and self._read is not None and self._read >= self.target
        pressed = held >= self._tools.shard_bytes_max or self._tools.budget.is_exceeded
        return self._batcher.take(self._tools.clock.monotonic(), flush=reached or pressed)

    async def _fetch(self, writer: ShardWriter) -> None:
        """Read on, unless the shard or the process holds too much; wait no longer than the next timer."""
        if self._report(writer) >= self._tools.shard_bytes_max:
            return
        if self._tools.budget.is_exceeded:
            await self._tools.budget.wait(self._until_timer(writer))
            return
        try:
            # What is there already is taken without the tasks that waiting needs.
            batch = await self._tools.source.fetch(
                self.partition, records_max=self._tools.fetch_records_max, seconds_max=0.0
            )
            if batch is None:
                fetch = self._tools.source.fetch(
                    self.partition, records_max=self._tools.fetch_records_max, seconds_max=self._until_timer(writer)
                )
                batch = await unless(self._stopping, fetch)
        except OffsetOutOfRange as error:
            await self._commit(writer)
            batch = await self._tools.positions.beyond(self.partition, error.offset)
            await self._tools.source.seek(self.partition, batch.end)
        if batch is None:
            return
        assert batch.start == self._read, f"{self.label}: read {self._read}, got a batch from {batch.start}"
        self._read = batch.end
        self._records += len(batch)
        if self._tools.phase is not None:
            self._tools.phase("fetch")
        self._batcher.add(batch, self._tools.clock.monotonic())

    def _until_timer(self, writer: ShardWriter) -> float:
        now = self._tools.clock.monotonic()
        timers = [timer for timer in (self._batcher.due_at(), writer.due_at()) if timer is not None]
        return max(0.0, min([IDLE_SECONDS_MAX, *(timer - now for timer in timers)]))

    async def _handle(self, writer: ShardWriter, parts: list[Batch]) -> bool:
        """Take a batch to the writer once there is room for what is made of it: about as much again."""
        size = HANDLED_COPIES * sum(part.nbytes for part in parts)
        budget = self._tools.budget
        if not budget.admits(self, size) and await unless(self._abandoning, budget.admit(self, size)) is None:
            return False
        try:
            return await self._process(writer, await self._joined(parts))
        finally:
            budget.done(self)

    async def _process(self, writer: ShardWriter, batch: Batch) -> bool:
        """Take a batch to the writer; False when it was left to the next owner."""
        assert batch.start == self._processed, f"{self.label}: {self._processed} is not followed by {batch.start}"
        try:
            done = await unless(self._abandoning, self._tools.processor.run(batch, self._stopping))
            if done is not None:
                done = await self._write(writer, batch, done)
        except Stopping:
            return False
        if done is None:
            log.warning(
                "%s: left offsets %d to %d, which were being handled", self.label, batch.start, batch.end - 1
            )
            return False
        outcome = done.outcome
        self._processed = outcome.end
        self._batches += 1
        self._rows += 0 if outcome.rows is None else outcome.rows.num_rows
        self._counts += outcome.counts
        self._has_failures = self._has_failures or bool(outcome.failures)
        log.debug(
            "%s: offsets %d to %d: %s, %d rows",
            *(self.label, outcome.start, outcome.end, outcome.counts),
            0 if outcome.rows is None else outcome.rows.num_rows,
        )
        if done.error is not None:
            await self._commit(writer)
            raise done.error
        return True

    async def _write(self, writer: ShardWriter, batch: Batch, done: Processed) -> Processed | None:
        """What was written: ``done``, or less where the sink refused rows; None when that was abandoned."""
        while done.outcome.start < done.outcome.end:
            try:
                await writer.write(done.outcome)
            except RowsRefused as refusal:
                # Each round leaves fewer rows, so this ends.
                rest = self._tools.processor.refused(batch, done.outcome, refusal, self._stopping)
                kept = await unless(self._abandoning, rest)
                if kept is None:
                    return None
                done = kept
            else:
                break
        return done

    def _is_commit_due(self, writer: ShardWriter) -> bool:
        due_at = writer.due_at()
        if due_at is None:
            return False
        if due_at <= self._tools.clock.monotonic() or self._tools.budget.is_largest(self):
            return True
        if self._report(writer) >= self._tools.shard_bytes_max:
            return True
        return self.target is not None and self._processed is not None and self._processed >= self.target

    async def _commit(self, writer: ShardWriter) -> None:
        """Commit what is written. Committed positions only ever grow."""
        if writer.due_at() is None:
            return
        # Records of a topic that was made anew under the same name must not follow those of the old one.
        await self._tools.positions.check.run()
        position = await writer.commit()
        assert position == self._processed, f"{self.label}: wrote up to {self._processed}, committed {position}"
        assert self._position is not None
        assert position >= self._position
        self._position = position
        self._commits += 1
        if self._has_failures:
            assert self._delivery is not None
            self._delivery.ask()
            self._has_failures = False
        self._report(writer)
        self._tools.on_commit(self.partition, position)

    def _report(self, writer: ShardWriter) -> int:
        held = self._batcher.nbytes + writer.pending_bytes
        self._tools.budget.report(self, held)
        return held
