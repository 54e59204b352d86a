"""Tumbling windows: a state that is handed from invocation to invocation of a shard, until its window ends.

As AWS has them (Lambda developer guide, "Tumbling windows"): a record belongs to the window of its timestamp,
a shard has one window open at a time, and each ends with a final invocation without records. What AWS cannot
have, because its records arrive in order: a record that is late counts in the window that is open. The chain's
state is committed with the position, so a window goes on where it was, whoever owns the shard next.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from engine.attempts import Processed, Work
from engine.batch import Batch, empty_records
from engine.errors import InternalError
from engine.processing import Processor
from engine.protocols import Counts, Outcome, Window

#: The largest state that a window may hand on (AWS: 1 MB of 1024 KB); a larger one ends the window early.
WINDOW_STATE_BYTES_MAX = 1024 * 1024

EMPTY = b"{}"


@dataclass(slots=True)
class WindowChain:
    """The windows of one shard. ``start`` is the open one's, in seconds since the epoch; None: none is open."""

    seconds: int
    start: int | None = None
    state: bytes = EMPTY

    @classmethod
    def restored(cls, seconds: int, committed: bytes) -> WindowChain:
        """The chain that `committed` kept; one of another window length is carried on as it was begun."""
        if not committed:
            return cls(seconds)
        try:
            kept = json.loads(committed)  # which keeps whole numbers of any length
            state = json.dumps(kept["state"], separators=(",", ":"), ensure_ascii=False).encode()
            return cls(int(kept["seconds"]), int(kept["start"]), state)
        except (ValueError, KeyError, TypeError) as error:
            raise InternalError(f"the sink's state of a window cannot be read: {error}") from error

    def committed(self) -> bytes:
        """What has to be committed with the position; empty while no window is open."""
        if self.start is None:
            return b""
        return b'{"seconds":%d,"start":%d,"state":%b}' % (self.seconds, self.start, self.state)

    def open_at(self, timestamp_ms: int, now_ms: int) -> None:
        assert self.start is None
        self.start = min(timestamp_ms, now_ms) // 1000 // self.seconds * self.seconds

    def close(self) -> None:
        self.start, self.state = None, EMPTY

    @property
    def end(self) -> int:
        """Seconds since the epoch at which the open window ends."""
        assert self.start is not None
        return self.start + self.seconds

    def window(self, *, final: bool = False, early: bool = False) -> Window:
        assert self.start is not None
        return Window(self.start, self.end, self.state, final, early)

    def leading(self, batch: Batch, now_ms: int) -> int:
        """How many of the first records belong to the open window: all before the first that is beyond it.

        No record is from the future: a producer's wrong clock would else keep its window open until then.
        """
        timestamps = np.minimum(batch.records.column("timestamp").to_numpy(), now_ms)
        beyond = np.flatnonzero(timestamps >= self.end * 1000)
        return int(beyond[0]) if len(beyond) else len(batch)


class WindowWork:
    """One batch on its way through the windows of its shard; used as `engine.attempts.Work` is.

    Without records in ``batch`` and with ``closes`` it ends the window that is open.
    """

    def __init__(
        self, processor: Processor, chain: WindowChain, batch: Batch, *, seconds: int, closes: bool = False
    ) -> None:
        self._processor = processor
        self._chain = chain
        self._seconds = seconds
        self._rest: Batch | None = batch
        self._closes = closes
        self._inner: Work | None = None
        self._terminating: tuple[Work, Processed] | None = None
        self._next()

    @property
    def is_done(self) -> bool:
        return self._inner is None

    async def step(self, stopping: asyncio.Event) -> Processed | None:
        """As `engine.attempts.Work.step`; each outcome carries the chain's state."""
        if self._terminating is not None:
            return await self._terminate(stopping)
        assert self._inner is not None
        window = self._inner.window
        done = await self._inner.step(stopping)
        if done is None:
            return None
        if window is None:
            return self._passed(done)
        if window.is_final:
            self._close()
            return self._passed(done)
        if done.state is not None:
            if len(done.state) > WINDOW_STATE_BYTES_MAX:
                final = Window(window.start, window.end, done.state, is_final=True, is_terminated_early=True)
                self._terminating = (self._work(_nothing(done.batch), final), done)
                return None
            self._carry(done.state)
        return self._passed(done)

    async def _terminate(self, stopping: asyncio.Event) -> Processed | None:
        """The state grew too large: it is handed over once more, and the window goes on with a fresh one."""
        assert self._terminating is not None
        work, held = self._terminating
        done = await work.step(stopping)
        if done is None:
            return None
        self._terminating = None
        if done.error is not None:  # what led here is done over: nothing of it is kept
            self._inner = None
            return Processed(held.batch, _none_of(held.batch), done.error)
        self._carry(EMPTY)
        rows = [table for table in (held.outcome.rows, done.outcome.rows) if table is not None]
        both = replace(held.outcome, rows=pa.concat_tables(rows) if rows else None)
        return self._passed(replace(held, outcome=both))

    def _carry(self, state: bytes) -> None:
        self._chain.state = state
        assert self._inner is not None
        self._inner.window = self._chain.window()

    def _close(self) -> None:
        self._chain.close()
        if self._chain.seconds != self._seconds:
            self._chain.seconds = self._seconds  # the configured length, from the next window on

    def _passed(self, done: Processed) -> Processed:
        assert self._inner is not None
        if done.error is not None:
            self._inner = None
        elif self._inner.is_done:
            self._next()
        return replace(done, outcome=replace(done.outcome, state=self._chain.committed()))

    def _next(self) -> None:
        """The work on the next part: up to the end of a window, or the window's own end."""
        self._inner = None
        batch, chain = self._rest, self._chain
        if self._closes:
            self._closes = False
            assert batch is not None
            self._rest = None
            self._inner = self._work(batch, chain.window(final=True))
            return
        if batch is None:
            return
        if not len(batch):
            self._rest = None
            self._inner = Work(self._processor, batch)
            return
        now_ms = int(self._processor.clock.time() * 1000)
        if chain.start is None:
            chain.open_at(batch.records.column("timestamp")[0].as_py(), now_ms)
        count = chain.leading(batch, now_ms)
        if count == 0:
            self._inner = self._work(_nothing(batch), chain.window(final=True))
            return
        self._rest = batch.tail(count) if count < len(batch) else None
        self._inner = self._work(batch.head(count), chain.window())

    def _work(self, batch: Batch, window: Window) -> Work:
        return Work(self._processor, batch, window=window)


def _nothing(batch: Batch) -> Batch:
    """No records, at the start of ``batch``."""
    return Batch(batch.topic, batch.partition, batch.start, batch.start, empty_records(), batch.log_append_time)


def _none_of(batch: Batch) -> Outcome:
    return Outcome(batch.start, batch.start, None, Counts())
