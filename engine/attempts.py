"""The way of one batch through its function: attempts, pauses, bisecting, partial failures, giving up.

As an event source mapping does it (AWS Lambda developer guide, "Kinesis: error handling" and "Reporting batch
item failures"): a batch that fails is tried again as a whole, or halved where that is asked for, which
uses up no retry; a response that reports records is cut before the lowest of them, and the rest, with the
retries that are left, is tried again. Order holds throughout: nothing is handled before what precedes it is
handled or given up.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import pyarrow as pa
import pyarrow.compute as pc

from engine.batch import Batch
from engine.errors import HandlerError, HeadraceError, RowsRefused, Throttled
from engine.failing import ITEM_FAILURES, Cause, causes_of, describe, error_type
from engine.processing import Prepared, Processor, before
from engine.protocols import Counts, Outcome, Window

log = logging.getLogger("headrace.processing")


class Stopping(Exception):
    """The shard is being given up; the batch at hand is left to the next owner."""


@dataclass(frozen=True, slots=True)
class Processed:
    """``outcome`` of ``batch``, the next part of the work; then ``error`` says why the shard cannot pass its end.

    ``state`` is what a tumbling window's invocation returned.
    """

    batch: Batch
    outcome: Outcome
    error: HeadraceError | None = None
    state: bytes | None = None
    trace_id: str | None = None  #: of its invocation, where traces are on


@dataclass(slots=True)
class _Segment:
    """Records that are tried together. ``attempts`` counts invocations, ``retries`` what they used up."""

    batch: Batch
    attempts: int = 0
    retries: int = 0
    failure: Exception | None = None
    request_id: str | None = None
    trace_id: str | None = None
    is_pausing: bool = False  # before the next attempt
    prepared: Prepared | None = None
    expired: dict[int, Cause] = field(default_factory=dict)
    causes: Mapping[int, Cause] = field(default_factory=dict)  # of records that no attempt took

    def part(self, batch: Batch) -> _Segment:
        """Some of the records, with what is known of them."""
        causes = {offset: cause for offset, cause in self.causes.items() if batch.start <= offset < batch.end}
        return _Segment(batch, self.attempts, self.retries, self.failure, self.request_id, causes=causes)


class Work:
    """One batch on its way. `step` until `is_done`; the outcomes that come out are contiguous and cover it.

    ``window`` is what its invocations are told; it may be changed between steps.
    """

    def __init__(self, processor: Processor, batch: Batch, *, window: Window | None = None) -> None:
        self.window = window
        self._processor = processor
        self._policy = processor.policy
        self._segments = deque([_Segment(batch)])
        self._error: HeadraceError | None = None  # behind what is left
        self._label = f"{processor.name}: {batch.topic}-{batch.partition}"

    @property
    def is_done(self) -> bool:
        return not self._segments

    @property
    def _is_final(self) -> bool:
        """A window's last invocation happens without records too."""
        return self.window is not None and self.window.is_final

    async def step(self, stopping: asyncio.Event) -> Processed | None:
        """What came of the next part; None after a failure that is tried again: the next step waits before it.

        Raises Stopping when ``stopping`` is set while it waits.
        """
        segment = self._segments[0]
        if not len(segment.batch) and not self._is_final:
            return self._settled(segment, self._processor.outcome(segment.batch, None, {}, 0))
        if segment.failure is not None and self._is_exhausted(segment):
            return self._gave_up(segment, segment.failure)
        if segment.is_pausing:
            await self._pause(segment, stopping)
        prepared = await self._prepared(segment)
        if prepared.causes and self._policy.stops:
            return self._stop_before(segment, prepared.causes)
        if not prepared.passing and not self._is_final:
            return self._settled(segment, self._of(segment, None, prepared.causes, prepared.dropped))
        # Each attempt is an invocation of its own, with its own request id and deadline.
        context = self._processor.context()
        segment.request_id = context.aws_request_id
        span = self._processor.tracer.invocation(prepared.call.batch, context, segment.attempts + 1)
        segment.trace_id = span.trace_id
        try:
            with span:
                result, rows = await self._processor.call(prepared, segment.batch, context, self.window)
                span.took(result)
        except Exception as error:
            if isinstance(error, HeadraceError) and not isinstance(error, HandlerError):
                raise  # the sink's: no other attempt of the handler would mend it
            return self._failed(segment, error)
        self._processor.measures.retries += segment.attempts > 0
        segment.attempts += 1
        if result.failed_from is not None:
            return self._cut(segment, result.failed_from, rows, result.state)
        found = {
            fault.offset: Cause(fault.reason, attempts=segment.attempts, request_id=segment.request_id)
            for fault in result.faults
        }
        if found and self._policy.stops:
            return self._stop_before(segment, found)
        causes = {**prepared.causes, **found}
        return self._settled(
            segment, self._of(segment, rows, causes, prepared.dropped + result.dropped), result.state
        )

    async def _prepared(self, segment: _Segment) -> Prepared:
        old = self._processor.expired(segment.batch, segment.attempts, segment.failure)
        expired = {offset: segment.causes.get(offset, cause) for offset, cause in old.items()}
        if segment.prepared is None or expired.keys() != segment.expired.keys():
            segment.prepared = await self._processor.prepare(segment.batch, expired)
            segment.expired = expired
            segment.causes = segment.prepared.causes
        return segment.prepared

    def _of(self, segment: _Segment, rows: pa.Table | None, causes: Mapping[int, Cause], dropped: int) -> Outcome:
        return self._processor.outcome(segment.batch, rows, causes, dropped)

    def _settled(self, segment: _Segment, outcome: Outcome, state: bytes | None = None) -> Processed:
        assert self._segments[0] is segment
        self._segments.popleft()
        return Processed(segment.batch, outcome, self._error if self.is_done else None, state, segment.trace_id)

    def _stop_before(self, segment: _Segment, causes: Mapping[int, Cause]) -> Processed | None:
        """What lies before the first fault is still done, alone; then the shard stops."""
        head, self._error = self._processor.stops_at(segment.batch, causes)
        rest = segment.part(head)
        self._segments = deque([rest])
        if len(head):
            return None
        return self._settled(rest, self._processor.outcome(head, None, {}, 0))

    def _cut(
        self, segment: _Segment, failed_from: int, rows: pa.Table | None, state: bytes | None
    ) -> Processed | None:
        """A partial failure: what lies before ``failed_from`` is handled, the rest is tried again.

        Bisecting, that is a split, which uses up no retry; a first record that is reported is set apart.
        """
        head = before(segment.batch, failed_from)
        rest = segment.part(segment.batch.tail(len(head)))
        reported = _Reported(f"the handler reported the record at offset {failed_from}")
        self._segments[0] = rest
        if self._policy.bisects and len(rest.batch) > 1:
            rest.failure = reported
            self._processor.measures.splits += 1
            if not len(head):
                self._segments.popleft()
                self._segments.extendleft([rest.part(rest.batch.tail(1)), rest.part(rest.batch.head(1))])
        else:
            self._tried(rest, reported)
        if not len(head):
            return None
        causes = {offset: cause for offset, cause in segment.causes.items() if offset < failed_from}
        return Processed(head, self._processor.outcome(head, rows, causes, 0), None, state, segment.trace_id)

    def _failed(self, segment: _Segment, error: Exception) -> Processed | None:
        if isinstance(error, Throttled):
            segment.failure, segment.is_pausing = error, True  # the function has not run
            return None
        self._processor.measures.retries += segment.attempts > 0
        segment.attempts += 1
        if self._policy.bisects and len(segment.batch) > 1 and error_type(error) != ITEM_FAILURES:
            half = len(segment.batch) // 2
            self._processor.measures.splits += 1
            parts = (segment.batch.head(half), segment.batch.tail(half))
            self._segments.popleft()
            segment.failure = error
            self._segments.extendleft(segment.part(part) for part in reversed(parts))
            log.warning(
                "%s %s: attempt %d failed: %s; trying its halves",
                *(self._label, span(segment.batch), segment.attempts, describe(error)),
                extra=_about(segment, error),
            )
            return None
        self._tried(segment, error)
        return self._gave_up(segment, error) if self._is_exhausted(segment) else None

    def _tried(self, segment: _Segment, error: Exception) -> None:
        segment.failure, segment.is_pausing = error, True
        segment.retries += 1

    def _is_exhausted(self, segment: _Segment) -> bool:
        return 0 <= self._policy.retries_max < segment.retries

    async def _pause(self, segment: _Segment, stopping: asyncio.Event) -> None:
        assert segment.failure is not None
        segment.is_pausing = False
        tries = max(1, segment.retries)
        policy = self._policy
        wait = min(policy.backoff_seconds * 2 ** min(tries - 1, 32), policy.backoff_seconds_max)
        limit = "without limit" if policy.retries_max < 0 else f"of {policy.retries_max + 1}"
        log.warning(
            "%s %s: attempt %d (%s) failed: %s; next in %.1f s",
            *(self._label, span(segment.batch), segment.retries, limit, describe(segment.failure), wait),
            extra=_about(segment, segment.failure),
        )
        try:
            async with asyncio.timeout(wait):
                await stopping.wait()
        except TimeoutError:
            return
        raise Stopping

    def _gave_up(self, segment: _Segment, failure: Exception) -> Processed:
        batch, attempts = segment.batch, segment.attempts
        if self._policy.stops:
            times = "once" if attempts == 1 else f"{attempts} times"
            self._error = HandlerError(
                f"{self._label} {span(batch)}: the handler failed {times}, at last with {describe(failure)}",
                hint="mend it, or set source.destination_config.on_failure to report such batches and go on",
            )
            self._error.__cause__ = failure
            self._segments.clear()
            return Processed(batch, Outcome(batch.start, batch.start, None, Counts()), self._error)
        # A record that the decoder let go cannot be told from its neighbours here, so it is reported with them.
        cause = Cause(describe(failure), error_type(failure), attempts, segment.request_id)
        causes = dict.fromkeys(batch.records.column("offset").to_pylist(), cause)
        causes |= segment.causes
        if not causes:
            log.error("%s: a window was given up after %d attempts: %s", self._label, attempts, describe(failure))
        return self._settled(segment, self._processor.outcome(batch, None, causes, 0))


def _about(segment: _Segment, error: Exception) -> dict[str, object]:
    """What a line about a failed attempt says beside its text."""
    batch = segment.batch
    return {
        "offset": batch.start,
        "offset_end": batch.end,
        "attempt": segment.attempts,
        "request_id": segment.request_id,
        "trace_id": segment.trace_id,
        "error": error,
    }


def span(batch: Batch) -> str:
    """Which offsets a batch is about, for messages."""
    if batch.start == batch.end:
        return f"the window before offset {batch.start}"
    return f"offsets {batch.start} to {batch.end - 1}"


class _Reported(HandlerError):
    """A response named records that failed."""

    @property
    def error_type(self) -> str:
        return ITEM_FAILURES


def refused(processor: Processor, done: Processed, refusal: RowsRefused) -> Processed:
    """``done`` without the rows that the sink refused; their records count as failed.

    Where failed records stop the shard, it is what can be kept without another call of the function.
    """
    rows = done.outcome.rows
    assert rows is not None
    batch = done.batch
    offsets: list[int] = []
    if "_offset" in rows.column_names:
        offsets = rows.column("_offset").take(pa.array(refusal.rows)).to_pylist()
    if processor.policy.stops:
        return _kept_before(processor, done, refusal, offsets)
    if not offsets:  # rows that name no record fail the batch
        cause = Cause(describe(refusal), type(refusal).__name__, 1)
        causes = dict.fromkeys(batch.records.column("offset").to_pylist(), cause) | causes_of(done.outcome)
        outcome = processor.outcome(batch, None, causes, 0)
    else:
        keep = pc.invert(pc.is_in(rows.column("_offset"), pa.array(offsets, pa.int64())))
        found = {offset: Cause(why, "RowRefused", 1) for offset, why in zip(offsets, refusal.reasons, strict=True)}
        causes = found | causes_of(done.outcome)
        outcome = processor.outcome(batch, rows.filter(keep), causes, done.outcome.counts.dropped)
    return replace(done, outcome=replace(outcome, state=done.outcome.state))


def _kept_before(processor: Processor, done: Processed, refusal: RowsRefused, offsets: list[int]) -> Processed:
    batch, rows = done.batch, done.outcome.rows
    nothing = Outcome(batch.start, batch.start, None, Counts())
    if not offsets:
        error: HeadraceError = HandlerError(
            f"{processor.name}: {batch.topic}-{batch.partition} {span(batch)}: {refusal.message}",
            hint="mend it, or set source.destination_config.on_failure to report such batches and go on",
        )
        return Processed(batch, nothing, error)
    assert rows is not None
    head, error = processor.stops_at(
        batch, {offset: Cause(why) for offset, why in zip(offsets, refusal.reasons, strict=True)}
    )
    if done.outcome.counts.dropped or done.outcome.state is not None:
        return Processed(batch, nothing, error)  # nobody knows what belongs before the fault
    kept = rows.filter(pc.less(rows.column("_offset"), pa.scalar(min(offsets), pa.int64())))
    return Processed(head, processor.outcome(head, kept, {}, 0), error)
