"""The owner of one shard: from the position that the sink gives, through fetch, batch, handler and commit.

One task for each assigned partition. Nothing here crosses shards but the byte budget.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any, TypeVar

from engine.attempts import Processed, Stopping, Work, refused
from engine.batch import Batch, empty_records, join
from engine.delivery import Delivery
from engine.errors import HandlerError, HeadraceError, InternalError, RowsRefused
from engine.lanes import HANDLED_COPIES, Lanes
from engine.protocols import (
    Counts,
    OffsetOutOfRange,
    Outcome,
    ShardWriter,
)
from engine.shard_tools import ShardStatistics, ShardTools, State
from engine.windows import WindowChain, WindowWork

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

#: How long a shard that is given up waits for deliveries under way.
LAST_DELIVERY_SECONDS = 2.0


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
        self._lanes: Lanes | None = None
        self._windows: WindowChain | None = None
        self._breaker = tools.breaker() if tools.breaker is not None else None
        self._wake = asyncio.Event()  # something to look at: a lane has done something, or the shard stops
        self._fetching: asyncio.Task[Batch | None] | None = None
        self._handled_at = tools.clock.monotonic()
        self._state = State.STARTING
        self._position: int | None = None
        self._read: int | None = None
        self._processed: int | None = None
        self._delivery: Delivery | None = None
        self._delivering: asyncio.Task[None] | None = None
        self._has_failures = False  # among what is written and not committed
        self._records = self._batches = self._rows = self._commits = 0
        self._counts = Counts()
        self._end: int | None = None  # of the topic, as last told
        self._last_timestamp: int | None = None  # of the last record read
        self._moved_at = tools.clock.monotonic()  # when the position moved, or had nothing before it
        self._held_bytes = 0

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
            end=self._end,
            iterator_age_seconds=self._iterator_age(),
            stalled_seconds=self._tools.clock.monotonic() - self._moved_at if self._is_behind else 0.0,
            held_bytes=self._held_bytes,
        )

    @property
    def _is_behind(self) -> bool:
        """There are records that are not committed."""
        return self._end is not None and (self._position is None or self._position < self._end)

    def _iterator_age(self) -> float:
        if not self._is_behind or self._last_timestamp is None:
            return 0.0
        return max(0.0, self._tools.clock.time() - self._last_timestamp / 1000)

    def saw_end(self, end: int) -> None:
        """The topic ends at ``end`` now, for what `statistics` says of lag."""
        self._end = end
        if not self._is_behind:
            self._moved_at = self._tools.clock.monotonic()

    @property
    def is_stopping(self) -> bool:
        return self._stopping.is_set()

    async def pause(self, seconds: float) -> None:
        """Wait for so long, but no longer than until the shard is asked to stop."""
        await unless(self._stopping, self._tools.clock.sleep(seconds))

    def stop(self) -> None:
        """Ask the owner to finish the batch at hand, commit, and release."""
        self._stopping.set()
        self._wake.set()

    def abandon(self) -> None:
        """Ask the owner to leave the batch at hand to the next one, commit what came before it, and release."""
        self._stopping.set()
        self._abandoning.set()
        self._wake.set()

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
            await self._end_tasks()
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
        if writer.state and not self._tools.window_seconds:
            log.warning(
                "%s: a tumbling window was open when windows were taken out of the configuration: its state of %d "
                "bytes is given up, and its function hears no end of it",
                *(self.label, len(writer.state)),
            )
            await writer.write(Outcome(position, position, None, Counts(), state=b""))
            await writer.commit()
        if self._tools.window_seconds:
            self._windows = WindowChain.restored(self._tools.window_seconds, writer.state)
        if self._tools.lanes > 1:
            self._lanes = Lanes(
                self._tools.lanes,
                processor=self._tools.processor,
                batcher=self._tools.batcher,
                budget=self._tools.budget,
                start=position,
                wake=self._wake.set,
            )
        await self._tools.source.seek(self.partition, position)
        self._deliver()

    async def _work(self, writer: ShardWriter) -> None:
        if self._lanes is not None:
            await self._work_in_lanes(writer, self._lanes)
            return
        while not self._stopping.is_set():
            await self._fetch(writer)
            while not self._stopping.is_set() and (parts := self._take(writer)):
                if not await self._handle(writer, parts):
                    return
                if self._is_commit_due(writer):
                    await self._commit(writer)
            if not await self._close_window(writer):
                return
            if self._is_commit_due(writer):
                await self._commit(writer)
            self._deliver()

    async def _work_in_lanes(self, writer: ShardWriter, lanes: Lanes) -> None:
        while not self._stopping.is_set() and lanes.error is None:
            self._wake.clear()
            await self._fetch(writer)
            held = self._report(writer)
            lanes.start(self._tools.clock.monotonic(), flush=self._is_pressed(held))
            await self._write_settled(writer, lanes)
            self._deliver()
        # What is under way is finished, unless it takes too long; what it leaves unsettled is the next owner's.
        await unless(self._abandoning, lanes.finish())
        await self._write_settled(writer, lanes)
        if lanes.error is not None:
            await self._commit(writer)
            raise lanes.error

    async def _write_settled(self, writer: ShardWriter, lanes: Lanes) -> None:
        done = lanes.settled()
        if done is not None:
            await self._write(writer, done)
        if self._is_commit_due(writer):
            await self._commit(writer)

    async def _end_tasks(self) -> None:
        if self._lanes is not None:
            await self._lanes.close()
        if self._fetching is not None:
            self._fetching.cancel()
            await asyncio.gather(self._fetching, return_exceptions=True)

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
        return self._batcher.take(self._tools.clock.monotonic(), flush=self._is_pressed(self._report(writer)))

    def _is_pressed(self, held: int) -> bool:
        """Batches are not waited for: the end is reached, or there is no room."""
        reached = self.target is not None and self._read is not None and self._read >= self.target
        return reached or self._is_full(held) or self._tools.budget.is_exceeded

    def _is_full(self, held: int) -> bool:
        if held >= self._tools.shard_bytes_max:
            return True
        return self._lanes is not None and self._lanes.nbytes >= self._tools.lane_bytes_max

    async def _fetch(self, writer: ShardWriter) -> None:
        """Read on, unless the shard or the process holds too much; wait no longer than the next timer."""
        if self._is_full(self._report(writer)):
            if self._lanes is not None and self._lanes.is_busy:
                await self._woken(self._until_timer(writer))
            return
        if self._tools.budget.is_exceeded:
            await self._tools.budget.wait(self._until_timer(writer))
            return
        try:
            # What is there already is taken without the tasks that waiting needs.
            batch = None if self._fetching is not None else await self._fetched(0.0)
            if batch is None:
                batch = await self._awaited(self._until_timer(writer))
        except OffsetOutOfRange as error:
            if self._lanes is not None:
                await unless(self._abandoning, self._lanes.finish())
                await self._write_settled(writer, self._lanes)
            await self._commit(writer)
            batch = await self._tools.positions.beyond(self.partition, error.offset)
            await self._tools.source.seek(self.partition, batch.end)
        if batch is None:
            return
        assert batch.start == self._read, f"{self.label}: read {self._read}, got a batch from {batch.start}"
        self._read = batch.end
        self._records += len(batch)
        if len(batch):
            self._last_timestamp = batch.records.column("timestamp")[-1].as_py()
        if self._tools.phase is not None:
            self._tools.phase("fetch")
        batch = await self._filtered(batch)
        into = self._batcher if self._lanes is None else self._lanes
        into.add(batch, self._tools.clock.monotonic())

    async def _fetched(self, seconds_max: float) -> Batch | None:
        return await self._tools.source.fetch(
            self.partition, records_max=self._tools.fetch_records_max, seconds_max=seconds_max
        )

    async def _awaited(self, seconds_max: float) -> Batch | None:
        """What comes in that time; without lanes nothing but a stop cuts it short."""
        if self._lanes is None:
            return await unless(self._stopping, self._fetched(seconds_max))
        # A fetch is not given up for each wake: it goes on beside the lanes.
        if self._fetching is None:
            self._fetching = asyncio.ensure_future(self._fetched(IDLE_SECONDS_MAX))
        waking = asyncio.ensure_future(self._wake.wait())
        try:
            await asyncio.wait({self._fetching, waking}, timeout=seconds_max, return_when=asyncio.FIRST_COMPLETED)
        finally:
            waking.cancel()
        if not self._fetching.done():
            return None
        fetching, self._fetching = self._fetching, None
        return fetching.result()

    async def _woken(self, seconds_max: float) -> None:
        try:
            async with asyncio.timeout(seconds_max):
                await self._wake.wait()
        except TimeoutError:
            return

    async def _filtered(self, batch: Batch) -> Batch:
        """The batch without the records that match no filter, which count as filtered."""
        choose = self._tools.filter
        if choose is None or not len(batch):
            return batch
        if batch.nbytes < JOIN_INLINE_BYTES_MAX:
            kept = choose.select(batch)
        else:
            kept = await asyncio.to_thread(choose.select, batch)
        return batch.only(kept, filters=True)

    def _until_timer(self, writer: ShardWriter) -> float:
        now = self._tools.clock.monotonic()
        waiting = self._batcher if self._lanes is None else self._lanes
        timers = [timer for timer in (waiting.due_at(), writer.due_at()) if timer is not None]
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
        """Take a batch to the writer; False when it, or its end, was left to the next owner."""
        assert batch.start == self._processed, f"{self.label}: {self._processed} is not followed by {batch.start}"
        if len(batch):
            self._handled_at = self._tools.clock.monotonic()
        if self._windows is None:
            return await self._carry_out(writer, batch, Work(self._tools.processor, batch))
        work = WindowWork(self._tools.processor, self._windows, batch, seconds=self._tools.window_seconds)
        return await self._carry_out(writer, batch, work)

    async def _close_window(self, writer: ShardWriter) -> bool:
        """End a window that is over when no record has come for a while."""
        chain, clock = self._windows, self._tools.clock
        if chain is None or chain.start is None or not self._batcher.is_empty or chain.end > clock.time():
            return True
        if (
            clock.monotonic() - self._handled_at < self._tools.window_wait_seconds
            or not await self._is_at_the_end()
        ):
            return True
        assert self._processed is not None
        at = self._processed
        topic = self._tools.positions.stream.topic
        nothing = Batch(topic, self.partition, at, at, empty_records())
        work = WindowWork(self._tools.processor, chain, nothing, seconds=self._tools.window_seconds, closes=True)
        return await self._carry_out(writer, nothing, work)

    async def _is_at_the_end(self) -> bool:
        """The topic has no record that was not read: silence alone may be the broker's, or this process's."""
        try:
            ends = await self._tools.source.end_offsets([self.partition])
        except HeadraceError as error:
            log.debug("%s: its window stays open: %s", self.label, error)
            return False
        return self._read is not None and self._read >= ends[self.partition]

    async def _carry_out(self, writer: ShardWriter, batch: Batch, work: Work | WindowWork) -> bool:
        try:
            while not work.is_done:
                done = await unless(self._abandoning, work.step(self._stopping))
                if done is not None:
                    await self._write(writer, done)
                elif self._abandoning.is_set():
                    raise Stopping
                # What is handled does not wait for what fails.
                if done is None or (not work.is_done and self._is_commit_due(writer)):
                    await self._commit(writer)
        except Stopping:
            log.warning(
                "%s: left offsets %d to %d, which were being handled",
                *(self.label, self._processed, batch.end - 1),
            )
            return False
        return True

    async def _write(self, writer: ShardWriter, done: Processed) -> None:
        """Have the writer take what was done, or less where the sink refuses rows.

        Raises what the shard cannot pass, once everything before it is committed.
        """
        while done.outcome.start < done.outcome.end or done.outcome.state is not None:
            try:
                await writer.write(done.outcome)
            except RowsRefused as refusal:
                # Each round leaves fewer rows, so this ends.
                done = refused(self._tools.processor, done, refusal)
            except HandlerError:  # nothing of it can be written, but what came before it can
                await self._commit(writer)
                raise
            else:
                break
        outcome = done.outcome
        self._processed = outcome.end
        self._batches += 1
        self._rows += 0 if outcome.rows is None else outcome.rows.num_rows
        self._counts += outcome.counts
        self._has_failures = self._has_failures or bool(outcome.failures)
        if outcome.failures and self._tools.on_failed is not None:
            self._tools.on_failed(outcome.failures)
        log.debug(
            "%s: offsets %d to %d: %s, %d rows",
            *(self.label, outcome.start, outcome.end, outcome.counts),
            0 if outcome.rows is None else outcome.rows.num_rows,
            extra={"offset": outcome.start, "offset_end": outcome.end, "trace_id": done.trace_id},
        )
        error = done.error
        if error is None and self._breaker is not None:
            error = self._breaker.trips(self.label, outcome.counts)
        if error is not None:
            await self._commit(writer)
            raise error

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
        started = self._tools.clock.monotonic()
        position = await writer.commit()
        now = self._tools.clock.monotonic()
        self._tools.processor.measures.commit.add(now - started)
        assert position == self._processed, f"{self.label}: wrote up to {self._processed}, committed {position}"
        assert self._position is not None
        assert position >= self._position
        if position > self._position:
            self._moved_at = now
        self._position = position
        self._commits += 1
        if self._has_failures:
            assert self._delivery is not None
            self._delivery.ask()
            self._has_failures = False
        self._report(writer)
        self._tools.on_commit(self.partition, position)

    def _report(self, writer: ShardWriter) -> int:
        waiting = self._batcher if self._lanes is None else self._lanes
        held = self._held_bytes = waiting.nbytes + writer.pending_bytes
        self._tools.budget.report(self, held)
        return held
