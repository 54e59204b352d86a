"""What is done with one batch besides trying again: what may be handled, decoding, the call, and its Outcome.

It knows nothing of where records come from or where rows go (`engine.shard`), nor of what follows a failure
(`engine.attempts`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from engine.batch import Batch
from engine.batching import Payload
from engine.context import Context
from engine.errors import DataError, HandlerError, Throttled
from engine.failing import AGE_EXCEEDED, PAYLOAD_EXCEEDED, Cause, Policy, describe, failed_records
from engine.measures import Measures
from engine.output import Output
from engine.protocols import Clock, Counts, Fault, Handler, Invocation, Outcome, Result, Window
from engine.tracing import OFF, Tracer
from engine.values import Decoder

log = logging.getLogger("headrace.processing")


class DecoderSource(Protocol):
    async def decoder(self, batch: Batch) -> Decoder:
        """The pipeline's decoder; ``batch`` is what to infer it from when it is not yet known."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """A batch ready for its call. ``causes`` fail records before it; ``passing`` ones are left for the function."""

    call: Invocation
    causes: Mapping[int, Cause]
    dropped: int
    passing: int


class Processor:
    """Prepares, calls and accounts for batches of one pipeline; shared by its shards. Holds no state of a shard."""

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
        faults: Callable[[Batch], Sequence[Fault]] | None = None,
        phase: Callable[[str], None] | None = None,
        measures: Measures | None = None,
        tracer: Tracer = OFF,
    ) -> None:
        """``faults`` names the records of which no event can be made, for handlers that have such."""
        assert handler.wants_columns == (decoders is not None)
        self.name = name
        self.policy = policy
        self.clock = clock
        self._handler = handler
        self._decoders = decoders
        self._output = output
        self.context = context
        self._payload = payload
        self._executor = executor
        self._faults = faults
        self._phase = phase
        self.measures = measures if measures is not None else Measures()
        self.tracer = tracer

    async def prepare(self, batch: Batch, expired: Mapping[int, Cause]) -> Prepared:
        """Decode a batch for its call, without the records of ``expired`` and those that are too large."""
        causes = {**self._oversized(batch), **expired}
        kept = without(batch, causes)
        if self._faults is not None and len(kept):
            found = await asyncio.get_running_loop().run_in_executor(self._executor, self._faults, kept)
            causes |= {fault.offset: Cause(fault.reason) for fault in found}
            kept = without(batch, causes)
        if self._decoders is None:
            return Prepared(Invocation(kept, None, self.context()), causes, 0, len(kept))
        decoder = await self._decoders.decoder(kept)
        decoded = await asyncio.get_running_loop().run_in_executor(self._executor, decoder.decode, kept)
        causes |= {fault.offset: Cause(fault.reason) for fault in decoded.faults}
        # Kinds that are called with columns see the faulty records nowhere.
        call = Invocation(without(batch, causes), decoded.columns, self.context())
        return Prepared(call, causes, decoded.dropped, decoded.columns.num_rows)

    def expired(self, batch: Batch, attempts: int, failure: Exception | None) -> dict[int, Cause]:
        """The records of a batch that are older than they may be."""
        limit = self.policy.age_seconds_max
        if limit < 0 or not len(batch):
            return {}
        timestamps = batch.records.column("timestamp").to_numpy()
        now_ms = int(self.clock.time() * 1000)
        old = np.flatnonzero(timestamps < now_ms - limit * 1000)
        last = f"; at last it failed with {describe(failure)}" if failure is not None else ""
        offsets = batch.offsets
        return {
            int(offsets[at]): Cause(
                f"it is {(now_ms - int(timestamps[at])) / 1000:,.0f} s old, more than "
                f"maximum_record_age_in_seconds = {limit}{last}",
                AGE_EXCEEDED,
                attempts,
            )
            for at in old.tolist()
        }

    def _oversized(self, batch: Batch) -> dict[int, Cause]:
        """Records that are too large by themselves, or whose event would be (AWS: MaximumPayloadSizeExceeded)."""
        value_max, payload_max = self.policy.record_bytes_max, self.policy.payload_bytes_max
        if batch.column_bytes("value") <= value_max and self._payload.bound(batch) <= payload_max:
            return {}
        offsets = batch.offsets
        payloads = self._payload.each(batch)
        lengths = pc.fill_null(pc.binary_length(batch.records.column("value")), 0).to_numpy()
        causes = {
            int(offsets[at]): Cause(
                f"it would add {payloads[at]:,} bytes to the invocation's payload, which may have {payload_max:,}",
                PAYLOAD_EXCEEDED,
            )
            for at in np.flatnonzero(payloads > payload_max)
        }
        return causes | {
            int(offsets[at]): Cause(
                f"the value has {lengths[at]:,} bytes, more than record_bytes_max = {value_max:,}"
            )
            for at in np.flatnonzero(lengths > value_max)
        }

    async def call(
        self, prepared: Prepared, batch: Batch, context: Context, window: Window | None
    ) -> tuple[Result, pa.Table | None]:
        """One invocation: its result and its rows, both checked. Raises what the handler raises."""
        if self._phase is not None:
            self._phase("handler")
        call = replace(prepared.call, context=context, window=window)
        result = await self._invoke(call, prepared.passing)
        handled = batch if result.failed_from is None else before(batch, result.failed_from)
        rows = await self._output.align(result.rows, handled)
        _check_failed_have_no_rows(result, rows)
        return result, rows

    async def _invoke(self, call: Invocation, records: int) -> Result:
        """The call itself, measured."""
        started = self.clock.monotonic()
        try:
            result = await self._handler.invoke(call)
            _check(result, call)
        except Throttled:
            self.measures.throttles += 1  # the function has not run
            raise
        except Exception:
            self.measures.attempted(self.clock.monotonic() - started, records, failed=True)
            raise
        self.measures.attempted(self.clock.monotonic() - started, records, failed=False)
        return result

    def outcome(self, batch: Batch, rows: pa.Table | None, causes: Mapping[int, Cause], dropped: int) -> Outcome:
        """What came of a batch, all of it accounted for."""
        failed = len(causes) if self.policy.reports else 0
        counts = Counts(
            handled=len(batch) - len(causes) - dropped,
            filtered=len(batch.filtered),
            dropped=dropped + len(causes) - failed,
            failed=failed,
            absent=batch.absent,
        )
        if causes and not failed:
            first = min(causes)
            log.warning(
                "%s: %s-%d: dropped %d records, the first at offset %d: %s",
                *(self.name, batch.topic, batch.partition, len(causes), first, causes[first].reason),
            )
        failures = failed_records(batch, causes) if failed else ()
        return Outcome(batch.start, batch.end, rows, counts, failures)

    def stops_at(self, batch: Batch, causes: Mapping[int, Cause]) -> tuple[Batch, DataError]:
        """Without a destination nothing may pass the first fault: what lies before it, and why it ends there."""
        first = min(causes)
        error = DataError(
            f"{self.name}: {batch.topic}-{batch.partition} offset {first}: {causes[first].reason}",
            hint="set source.destination_config.on_failure to report such records and go on",
        )
        return before(batch, first), error


def _check(result: Result, call: Invocation) -> None:
    """A handler may speak only of the records that it was given."""
    named = [fault.offset for fault in result.faults]
    if result.failed_from is not None:
        assert not named, "a response reports records either alone or from one on"
        named.append(result.failed_from)
    given = set(call.batch.records.column("offset").to_pylist()) if named else set()
    if strangers := [offset for offset in named if offset not in given]:
        raise HandlerError(f"the handler reported offset {strangers[0]}, which is not in its batch")
    if len(set(named)) < len(named):
        raise HandlerError("the handler reported an offset twice")
    count = len(call.batch) if call.columns is None else call.columns.num_rows
    if not 0 <= result.dropped <= count - len(named):
        raise HandlerError(f"the handler says it dropped {result.dropped} of {count} records")


def _check_failed_have_no_rows(result: Result, rows: pa.Table | None) -> None:
    """A record that is reported will be sent again; what it already gave would then be there twice."""
    if rows is None:
        return
    if result.failed_from is not None and "_offset" not in rows.column_names:
        raise HandlerError(
            "the handler reported records and returned rows that name none",
            hint="give each row its record's _offset or _sequence_number, so that it is known which rows count",
        )
    if not result.faults or "_offset" not in rows.column_names:
        return
    failed = pa.array([fault.offset for fault in result.faults], pa.int64())
    both = rows.filter(pc.is_in(rows.column("_offset"), failed))
    if both.num_rows:
        raise HandlerError(f"the handler reported offset {both.column('_offset')[0]} and returned a row of it")


def before(batch: Batch, offset: int) -> Batch:
    """The batch up to the record at ``offset``."""
    return batch.head(int(np.searchsorted(batch.offsets, offset)))


def without(batch: Batch, causes: Mapping[int, object]) -> Batch:
    """The batch without the records of those offsets; its range stays."""
    if not causes:
        return batch
    return batch.only(~np.isin(batch.offsets, np.fromiter(causes, np.int64)))
