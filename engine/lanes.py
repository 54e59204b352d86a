"""Several invocations of one shard at a time, in order for each key: what AWS calls a parallelization factor.

A shard's records are dealt to lanes by their key, so that a key's records stay in one lane, in order. Each lane
gathers batches of its own and takes them through the function one after the other. What comes out is put
together again: only what every lane has passed, up to an offset, leaves as one `Processed`, so that the
committed part of the shard is contiguous, record by record, whatever the lanes have done beyond it.
"""

from __future__ import annotations

import asyncio
import zlib
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from engine.attempts import Processed, Stopping, Work
from engine.batch import NO_OFFSETS, Batch, join
from engine.batching import Batcher
from engine.budget import ByteBudget
from engine.processing import Processor
from engine.protocols import Counts, Outcome

#: The lane of records without a key is that of this key, which is also their partition key in Kinesis events.
NULL_KEY = b"null"

#: A batch while it is handled, and the columns that it becomes.
HANDLED_COPIES = 2


def lane_of(key: bytes | None, count: int) -> int:
    """The lane of a key among ``count``; the same in every process."""
    return zlib.crc32(NULL_KEY if key is None else key) % count


class _Lane:
    """``offsets`` are those of the records at hand that are not settled yet."""

    def __init__(self, batcher: Batcher) -> None:
        self.batcher = batcher
        self.task: asyncio.Task[None] | None = None
        self.pieces: deque[_Piece] = deque()
        self.offsets: NDArray[np.int64] = NO_OFFSETS
        self.handling_bytes = 0

    @property
    def is_busy(self) -> bool:
        return self.task is not None and not self.task.done()

    @property
    def first_unsettled(self) -> int | None:
        """Every record of this lane before this offset is settled; None: all are."""
        return int(self.offsets[0]) if len(self.offsets) else self.batcher.first_offset


@dataclass(frozen=True, slots=True)
class _Piece:
    """What came of some records of a lane, the first and the last of which have these offsets."""

    first: int
    last: int
    batch: Batch
    outcome: Outcome

    @property
    def is_splittable(self) -> bool:
        """Each row and each failure is known to be of one record."""
        rows = self.outcome.rows
        return self.outcome.counts.dropped == 0 and (rows is None or "_offset" in rows.column_names)


class Lanes:
    """The lanes of one shard, from ``start`` on. ``wake`` is called when something has been settled.

    Belongs to the shard's task; the lanes run in tasks of their own, which `close` ends.
    """

    def __init__(
        self,
        count: int,
        *,
        processor: Processor,
        batcher: Callable[[], Batcher],
        budget: ByteBudget,
        start: int,
        wake: Callable[[], None],
    ) -> None:
        assert count > 1
        self._lanes = [_Lane(batcher()) for _ in range(count)]
        self._processor = processor
        self._budget = budget
        self._wake = wake
        self._ledger: deque[Batch] = deque()  # what was dealt and has not left yet
        self._position = start
        self._error: BaseException | None = None
        self._halting = asyncio.Event()  # lanes end where they would wait for another attempt

    @property
    def nbytes(self) -> int:
        """Bytes held: records that wait or are handled, and what came of them and cannot leave yet."""
        held = sum(batch.nbytes for batch in self._ledger)
        for lane in self._lanes:
            held += lane.batcher.nbytes + lane.handling_bytes
            held += sum(0 if piece.outcome.rows is None else piece.outcome.rows.nbytes for piece in lane.pieces)
        return held

    @property
    def is_busy(self) -> bool:
        return any(lane.is_busy for lane in self._lanes)

    @property
    def error(self) -> BaseException | None:
        """What a lane cannot pass. The others start nothing new; `settled` gives what they have done."""
        return self._error

    def add(self, batch: Batch, now: float) -> None:
        """Deal out what was fetched."""
        count = len(self._lanes)
        if not len(batch):
            dealt = np.zeros(0, np.int64)
        else:
            keys = batch.records.column("key").to_pylist()
            dealt = np.fromiter((lane_of(key, count) for key in keys), np.int64, len(keys))
        self._ledger.append(batch)
        bare = replace(batch, filtered=batch.filtered[:0])
        for index, lane in enumerate(self._lanes):
            lane.batcher.add(bare.only(dealt == index), now)

    def due_at(self) -> float | None:
        """When the next batch of an idle lane closes."""
        due = [lane.batcher.due_at() for lane in self._lanes if not lane.is_busy]
        return min((at for at in due if at is not None), default=None)

    def start(self, now: float, *, flush: bool = False) -> None:
        """Have every idle lane take the batch that is due, if one is (with ``flush``: whatever waits).

        Nothing is taken once the lanes halt: one of them may have left records, which must not be passed.
        """
        for lane in self._lanes:
            if self._halting.is_set() or lane.is_busy:
                continue
            parts = lane.batcher.take(now, flush=flush)
            if not parts:
                continue
            batch = join(parts)
            if not len(batch):
                continue
            lane.offsets, lane.handling_bytes = batch.offsets, batch.nbytes
            lane.task = asyncio.create_task(self._handle(lane, batch))

    async def _handle(self, lane: _Lane, batch: Batch) -> None:
        try:
            await self._budget.admit(lane, HANDLED_COPIES * batch.nbytes)
            work = Work(self._processor, batch)
            while not work.is_done:
                done = await work.step(self._halting)
                if done is not None:
                    self._settle(lane, done)
                self._wake()
        except Stopping:
            return
        except Exception as error:
            self._fail(error)
        finally:
            self._budget.done(lane)
            lane.handling_bytes = 0
            self._wake()

    def _settle(self, lane: _Lane, done: Processed) -> None:
        if done.error is not None:
            self._fail(done.error)
        outcome = done.outcome
        lane.offsets = lane.offsets[np.searchsorted(lane.offsets, outcome.end) :]
        offsets = done.batch.offsets
        if outcome.start < outcome.end and len(offsets):
            lane.pieces.append(_Piece(int(offsets[0]), int(offsets[-1]), done.batch, outcome))

    def settled(self) -> Processed | None:
        """What every lane has passed since the last call, as one outcome; None if that is nothing."""
        position = self._prefix()
        if position == self._position:
            return None
        batch = self._leave(position)
        parts = [part for lane in self._lanes for part in _taken(lane, position)]
        counts = sum((part.counts for part in parts), Counts())
        # What the lanes call absent is mostly each other's; the ledger knows.
        counts = replace(counts, filtered=len(batch.filtered), absent=batch.absent)
        failures = sorted((each for part in parts for each in part.failures), key=lambda each: each.offset)
        rows = [part.rows for part in parts if part.rows is not None]
        outcome = Outcome(batch.start, batch.end, _in_order(rows), counts, failures)
        self._position = position
        return Processed(batch, outcome)

    def _prefix(self) -> int:
        """The offset that every lane has passed, such that no piece that cannot be split lies across it."""
        if not self._ledger:
            return self._position
        unsettled = [first for lane in self._lanes if (first := lane.first_unsettled) is not None]
        position = min(unsettled, default=self._ledger[-1].end)
        whole = [piece for lane in self._lanes for piece in lane.pieces if not piece.is_splittable]
        while True:
            across = [piece.first for piece in whole if piece.first < position <= piece.last]
            if not across:
                return max(position, self._position)
            position = min(across)

    def _leave(self, position: int) -> Batch:
        """The batches up to ``position``, which leave the ledger."""
        leaving = []
        while self._ledger and self._ledger[0].end <= position:
            leaving.append(self._ledger.popleft())
        if self._ledger and self._ledger[0].start < position:
            head, self._ledger[0] = self._ledger[0].split(position)
            leaving.append(head)
        return join(leaving)

    def _fail(self, error: BaseException) -> None:
        self._error = error
        self._halting.set()

    async def finish(self) -> None:
        """Let every lane finish its invocation, and wait for that. Nothing is started, or tried again, any more."""
        self._halting.set()
        tasks = [lane.task for lane in self._lanes if lane.task is not None]
        if tasks:
            await asyncio.wait(tasks)

    async def close(self) -> None:
        """End what the lanes are doing; it is left to the shard's next owner."""
        tasks = [lane.task for lane in self._lanes if lane.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _taken(lane: _Lane, position: int) -> list[Outcome]:
    """What came of the lane's records before ``position``, which leaves the lane."""
    taken = []
    while lane.pieces and lane.pieces[0].last < position:
        taken.append(lane.pieces.popleft().outcome)
    if lane.pieces and lane.pieces[0].first < position:
        head, lane.pieces[0] = _split(lane.pieces[0], position)
        taken.append(head)
    return taken


def _split(piece: _Piece, position: int) -> tuple[Outcome, _Piece]:
    """A piece's outcome before ``position``, and the piece that is left."""
    head, tail = piece.batch.split(position)
    first = _part_of(piece.outcome, head, is_head=True)
    rest = _part_of(piece.outcome, tail, is_head=False)
    return first, _Piece(int(tail.offsets[0]), piece.last, tail, rest)


def _part_of(outcome: Outcome, batch: Batch, *, is_head: bool) -> Outcome:
    position = batch.end if is_head else batch.start
    failures = [each for each in outcome.failures if (each.offset < position) is is_head]
    rows = outcome.rows
    if rows is not None:
        compare = pc.less if is_head else pc.greater_equal
        rows = rows.filter(compare(rows.column("_offset"), pa.scalar(position, pa.int64())))
    counts = Counts(handled=len(batch) - len(failures), failed=len(failures), absent=batch.absent)
    return Outcome(batch.start, batch.end, rows, counts, failures)


def _in_order(tables: list[pa.Table]) -> pa.Table | None:
    """The lanes' rows as one table, in the order of their records where they name them."""
    if not tables:
        return None
    table = pa.concat_tables(tables)
    return table.sort_by("_offset") if "_offset" in table.column_names and len(tables) > 1 else table
