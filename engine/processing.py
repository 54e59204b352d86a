"""One batch of a shard through decode, handler and retries, to an Outcome that accounts for every offset.

It knows nothing of where records come from or where rows go; `engine.shard` does that.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from engine.batch import Batch
from engine.batching import Payload
from engine.context import Context
from engine.errors import DataError, HandlerError, HeadraceError, RowsRefused
from engine.output import Output
from engine.protocols import Clock, Counts, FailedRecord, Handler, Invocation, Outcome, Result
from engine.values import Decoder

log = logging.getLogger("headrace.processing")

#: A failed record carries at most this much of what the handler said.
REASON_CHARACTERS_MAX = 2_000


class Stopping(Exception):
    """The shard is being given up; the batch at hand is left to the next owner."""


@dataclass(frozen=True, slots=True)
class Policy:
    """What to do with what fails.

    ``retries_max`` does not count the first attempt; -1 retries for ever (as on AWS). ``reports``: there is
    an on-failure destination. ``drops``: without one, let failed records go, as AWS does, instead of stopping.
    ``record_bytes_max`` bounds a record's value, ``payload_bytes_max`` what it adds to an invocation's payload.
    """

    retries_max: int
    backoff_seconds: float
    backoff_seconds_max: float
    record_bytes_max: int
    payload_bytes_max: int
    reports: bool
    drops: bool


@dataclass(frozen=True, slots=True)
class Cause:
    """Why a record failed; ``attempts`` counts the invocations that it was part of."""

    reason: str
    error_type: str = "RecordFault"
    attempts: int = 0


class DecoderSource(Protocol):
    async def decoder(self, batch: Batch) -> Decoder:
        """The pipeline's decoder; ``batch`` is what to infer it from when it is not yet known."""


@dataclass(frozen=True, slots=True)
class Processed:
    """``outcome`` of a batch or of its head; then ``error`` says why the shard cannot pass its end."""

    outcome: Outcome
    error: HeadraceError | None = None


class Processor:
    """Runs batches of one pipeline; shared by its shards. Holds no state of a shard."""

    def __init__(
        self,
        *,
        name: str,
        handler: Handler,
        decoders: DecoderSource | None,
        output: Output,
        policy: Policy,
        context: Callable[[], Context],
        payload: Payload,
        clock: Clock,
        executor: Executor,
        phase: Callable[[str], None] | None = None,
    ) -> None:
        assert handler.wants_columns == (decoders is not None)
        self._name = name
        self._handler = handler
        self._decoders = decoders
        self._output = output
        self._policy = policy
        self._context = context
        self._payload = payload
        self._clock = clock
        self._executor = executor
        self._phase = phase

    async def run(self, batch: Batch, stopping: asyncio.Event) -> Processed:
        """What came of ``batch``. Raises Stopping when ``stopping`` is set between attempts."""
        if not len(batch):
            return Processed(Outcome(batch.start, batch.end, None, Counts(absent=batch.absent)))
        causes = self._oversized(batch)
        kept = without(batch, causes)
        columns: pa.RecordBatch | None = None
        dropped = 0
        passing = len(kept)
        if self._decoders is not None:
            decoder = await self._decoders.decoder(kept)
            decoded = await asyncio.get_running_loop().run_in_executor(self._executor, decoder.decode, kept)
            columns, dropped, passing = decoded.columns, decoded.dropped, decoded.columns.num_rows
            causes |= {fault.offset: Cause(fault.reason) for fault in decoded.faults}
        if causes and self._stops:
            return await self._head(batch, causes, stopping)
        if not passing:
            return Processed(self._outcome(batch, None, causes, dropped))
        # Kinds that are called with columns see the faulty records nowhere; the others get the batch itself.
        call = Invocation(kept if columns is None else without(batch, causes), columns, self._context())
        return await self._invoke(batch, call, causes, dropped, stopping)

    @property
    def _stops(self) -> bool:
        return not self._policy.reports and not self._policy.drops

    def _oversized(self, batch: Batch) -> dict[int, Cause]:
        """Records that are too large by themselves, or whose event would be (AWS: MaximumPayloadSizeExceeded)."""
        value_max, payload_max = self._policy.record_bytes_max, self._policy.payload_bytes_max
        if batch.column_bytes("value") <= value_max and self._payload.bound(batch) <= payload_max:
            return {}
        offsets = batch.records.column("offset").to_numpy()
        payloads = self._payload.each(batch)
        lengths = pc.fill_null(pc.binary_length(batch.records.column("value")), 0).to_numpy()
        causes = {
            int(offsets[at]): Cause(
                f"it would add {payloads[at]:,} bytes to the invocation's payload, which may have {payload_max:,}",
                "MaximumPayloadSizeExceeded",
            )
            for at in np.flatnonzero(payloads > payload_max)
        }
        return causes | {
            int(offsets[at]): Cause(
                f"the value has {lengths[at]:,} bytes, more than record_bytes_max = {value_max:,}"
            )
            for at in np.flatnonzero(lengths > value_max)
        }

    async def _head(self, batch: Batch, causes: Mapping[int, Cause], stopping: asyncio.Event) -> Processed:
        """Without a destination nothing may pass the first fault; what lies before it is still done."""
        first = min(causes)
        error = DataError(
            f"{self._name}: {batch.topic}-{batch.partition} offset {first}: {causes[first].reason}",
            hint="set source.destination_config.on_failure to report such records and go on",
        )
        count = int(np.searchsorted(batch.records.column("offset").to_numpy(), first))
        if count == 0:
            gap = Counts(absent=first - batch.start)
            return Processed(Outcome(batch.start, first, None, gap), error)
        done = await self.run(batch.head(count), stopping)
        return Processed(done.outcome, done.error or error)

    async def _invoke(
        self,
        batch: Batch,
        call: Invocation,
        causes: dict[int, Cause],
        dropped: int,
        stopping: asyncio.Event,
    ) -> Processed:
        attempt = 0
        while True:
            attempt += 1
            try:
                if self._phase is not None:
                    self._phase("handler")
                # Each attempt is an invocation of its own, with its own request id and deadline.
                result = await self._handler.invoke(replace(call, context=self._context()))
                self._check(result, call)
                rows = await self._output.align(result.rows, batch)
                _check_failed_have_no_rows(result, rows)
            except Exception as error:
                if isinstance(error, HeadraceError) and not isinstance(error, HandlerError):
                    raise  # the sink's: no other attempt of the handler would mend it
                failure = error
            else:
                found = {fault.offset: Cause(fault.reason, attempts=attempt) for fault in result.faults}
                if found and self._stops:
                    return await self._head(batch, found, stopping)
                return Processed(self._outcome(batch, rows, causes | found, dropped + result.dropped))
            if 0 <= self._policy.retries_max < attempt:
                return self._gave_up(batch, failure, causes, attempt)
            await self._back_off(batch, failure, attempt, stopping)

    def _check(self, result: Result, call: Invocation) -> None:
        """A handler may speak only of the records that it was given."""
        given = set(call.batch.records.column("offset").to_pylist()) if result.faults else set()
        reported = [fault.offset for fault in result.faults]
        if strangers := [offset for offset in reported if offset not in given]:
            raise HandlerError(f"the handler reported offset {strangers[0]}, which is not in its batch")
        if len(set(reported)) < len(reported):
            raise HandlerError("the handler reported an offset twice")
        count = len(call.batch) if call.columns is None else call.columns.num_rows
        if not 0 <= result.dropped <= count - len(reported):
            raise HandlerError(f"the handler says it dropped {result.dropped} of {count} records")

    async def _back_off(self, batch: Batch, failure: Exception, attempt: int, stopping: asyncio.Event) -> None:
        wait = min(self._policy.backoff_seconds * 2 ** min(attempt - 1, 32), self._policy.backoff_seconds_max)
        limit = "without limit" if self._policy.retries_max < 0 else f"of {self._policy.retries_max + 1}"
        log.warning(
            "%s: %s-%d offsets %d to %d: attempt %d (%s) failed: %s; next in %.1f s",
            *(self._name, batch.topic, batch.partition, batch.start, batch.end - 1, attempt, limit),
            *(describe(failure), wait),
        )
        try:
            async with asyncio.timeout(wait):
                await stopping.wait()
        except TimeoutError:
            return
        raise Stopping

    def _gave_up(self, batch: Batch, failure: Exception, causes: Mapping[int, Cause], attempts: int) -> Processed:
        if self._stops:
            times = "once" if attempts == 1 else f"{attempts} times"
            error = HandlerError(
                f"{self._name}: {batch.topic}-{batch.partition} offsets {batch.start} to {batch.end - 1}: "
                f"the handler failed {times}, at last with {describe(failure)}",
                hint="mend it, or set source.destination_config.on_failure to report such batches and go on",
            )
            error.__cause__ = failure
            return Processed(Outcome(batch.start, batch.start, None, Counts()), error)
        # A record that the decoder let go cannot be told from its neighbours here, so it is reported with them.
        cause = Cause(describe(failure), type(failure).__name__, attempts)
        whole = dict.fromkeys(batch.records.column("offset").to_pylist(), cause)
        return Processed(self._outcome(batch, None, {**whole, **causes}, 0))

    def _outcome(self, batch: Batch, rows: pa.Table | None, causes: Mapping[int, Cause], dropped: int) -> Outcome:
        failed = len(causes) if self._policy.reports else 0
        counts = Counts(
            handled=len(batch) - len(causes) - dropped,
            dropped=dropped + len(causes) - failed,
            failed=failed,
            absent=batch.absent,
        )
        if causes and not failed:
            log.warning("%s: dropped %d records, the first: %s", self._name, len(causes), min(causes.items()))
        failures = failed_records(batch, causes) if failed else ()
        return Outcome(batch.start, batch.end, rows, counts, failures)

    async def refused(
        self, batch: Batch, outcome: Outcome, refusal: RowsRefused, stopping: asyncio.Event
    ) -> Processed:
        """``outcome`` without the rows that the sink refused; their records count as failed."""
        assert outcome.rows is not None
        if "_offset" not in outcome.rows.column_names:
            return self._gave_up(batch, refusal, _causes_of(outcome), 1)
        offsets = outcome.rows.column("_offset").take(pa.array(refusal.rows)).to_pylist()
        reasons = dict(zip(offsets, refusal.reasons, strict=True))
        if self._stops:
            return await self._head(batch, {offset: Cause(why) for offset, why in reasons.items()}, stopping)
        keep = pc.invert(pc.is_in(outcome.rows.column("_offset"), pa.array(list(reasons), pa.int64())))
        causes = {offset: Cause(why, "RowRefused", 1) for offset, why in reasons.items()}
        causes |= _causes_of(outcome)
        dropped = outcome.counts.dropped
        return Processed(self._outcome(batch, outcome.rows.filter(keep), causes, dropped))


def _causes_of(outcome: Outcome) -> dict[int, Cause]:
    return {old.offset: Cause(old.reason, old.error_type, old.attempts) for old in outcome.failures}


def _check_failed_have_no_rows(result: Result, rows: pa.Table | None) -> None:
    """A record that is reported will be sent again; what it already gave would then be there twice."""
    if not result.faults or rows is None or "_offset" not in rows.column_names:
        return
    failed = pa.array([fault.offset for fault in result.faults], pa.int64())
    both = rows.filter(pc.is_in(rows.column("_offset"), failed))
    if both.num_rows:
        raise HandlerError(f"the handler reported offset {both.column('_offset')[0]} and returned a row of it")


def without(batch: Batch, causes: Mapping[int, object]) -> Batch:
    """The batch without the records of those offsets; its range stays."""
    if not causes:
        return batch
    gone = pa.array(list(causes), pa.int64())
    records = batch.records.filter(pc.invert(pc.is_in(batch.records.column("offset"), gone)))
    return Batch(batch.topic, batch.partition, batch.start, batch.end, records, batch.log_append_time)


def failed_records(batch: Batch, causes: Mapping[int, Cause]) -> list[FailedRecord]:
    """The faulty records of a batch, whole, in the order of their offsets."""
    rows = batch.records.filter(pc.is_in(batch.records.column("offset"), pa.array(list(causes), pa.int64())))
    assert rows.num_rows == len(causes), "a fault names an offset that is not in the batch"
    return [
        FailedRecord(
            partition=batch.partition,
            offset=row["offset"],
            timestamp=row["timestamp"],
            key=row["key"],
            value=row["value"],
            headers=tuple((header["key"], header["value"]) for header in row["headers"] or ()),
            reason=causes[row["offset"]].reason[:REASON_CHARACTERS_MAX],
            error_type=causes[row["offset"]].error_type,
            attempts=causes[row["offset"]].attempts,
        )
        for row in rows.to_pylist()
    ]


def describe(error: BaseException) -> str:
    """An error in one line: its class, unless it is one of ours, and its text."""
    if isinstance(error, HeadraceError):
        return error.message
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__
