"""The kinds `kinesis` and `kafka`: a Lambda handler, called with AWS's event and context.

Not here: the events themselves (`kinesis`, `kafka`) and how a function is called (`calling`).

What a handler returns is read as Lambda's event source mappings do (developer guide, "Reporting batch item
failures"): anything that JSON can carry is success. ``batchItemFailures`` is ignored, as on AWS for a mapping
without ReportBatchItemFailures. Beyond AWS, an object's "rows" are rows for the sink.
"""

from __future__ import annotations

import decimal
import json
import logging
from collections.abc import Callable, Mapping, Sequence

from engine.batch import Batch
from engine.errors import HandlerError
from engine.protocols import Invocation, Result
from functions.kinds import kafka, kinesis
from functions.kinds.calling import Caller
from functions.kinds.loader import Function
from functions.kinds.payload import KafkaPayload, KinesisPayload, Sizes
from functions.kinds.rows import check_rows, shown

log = logging.getLogger("headrace.functions")

#: Handlers that have been told once.
_WARNED: set[str] = set()

Build = Callable[[Batch], dict[str, object]]


class EventHandler:
    """An `engine.protocols.Handler` over a Lambda handler.

    ``payload`` knows what each record adds to the event; a batcher uses it to close batches in time.
    """

    wants_columns = False

    def __init__(
        self,
        function: Function,
        *,
        name: str,
        kind: str,
        build: Build,
        payload: KinesisPayload | KafkaPayload,
        timeout_seconds: float,
        concurrency_max: int,
    ) -> None:
        self._label = f"{name} (kind {kind})"
        self._build = build
        self._payload = payload
        self._caller = Caller(function, name=name, timeout_seconds=timeout_seconds, concurrency_max=concurrency_max)

    def envelope_bytes(self, batch: Batch) -> int:
        """Bytes of the event around the records."""
        return self._payload.envelope_bytes(batch)

    def payload_bytes(self, batch: Batch) -> Sizes:
        """Bytes that each record adds to the event."""
        return self._payload.payload_bytes(batch)

    def payload_bytes_bound(self, batch: Batch) -> int:
        """No less than all records add to the event; quick to tell."""
        return self._payload.payload_bytes_bound(batch)

    async def invoke(self, invocation: Invocation) -> Result:
        return await self._caller.call(
            lambda: (self._build(invocation.batch), invocation.context),
            lambda response: read_response(self._label, response),
        )

    async def close(self) -> None:
        await self._caller.close()


def kinesis_handler(
    function: Function, *, name: str, role: str, timeout_seconds: float, concurrency_max: int
) -> EventHandler:
    return EventHandler(
        function,
        name=name,
        kind="kinesis",
        build=lambda batch: kinesis.event(batch, role=role),
        payload=KinesisPayload(role=role),
        timeout_seconds=timeout_seconds,
        concurrency_max=concurrency_max,
    )


def kafka_handler(
    function: Function, *, name: str, source: kafka.KafkaSource, timeout_seconds: float, concurrency_max: int
) -> EventHandler:
    return EventHandler(
        function,
        name=name,
        kind="kafka",
        build=lambda batch: kafka.event(batch, source),
        payload=KafkaPayload(source),
        timeout_seconds=timeout_seconds,
        concurrency_max=concurrency_max,
    )


def read_response(label: str, response: object) -> Result:
    """The result that a handler's response stands for. Raises HandlerError."""
    if response is None or isinstance(response, bytes | str | int | float | decimal.Decimal):
        return Result()
    rows: Sequence[Mapping[str, object]] | None = None
    rest = response
    if isinstance(response, dict) and response.get("batchItemFailures") and label not in _WARNED:
        _WARNED.add(label)
        log.warning("%s returned batchItemFailures, which is ignored: the whole batch counts as handled", label)
    if isinstance(response, dict) and "rows" in response:
        rows = _rows(label, response["rows"])
        rest = {name: value for name, value in response.items() if name != "rows"}
    if not (isinstance(rest, dict | list) and len(rest) == 0):
        _check_json(label, rest)
    return Result(rows=rows)


def _rows(label: str, rows: object) -> Sequence[Mapping[str, object]] | None:
    if rows is None:
        return None
    if not isinstance(rows, list):
        raise HandlerError(
            f'{label} gave {shown(rows)} under "rows"', hint='"rows" has to be a list of objects, or be left out'
        )
    return check_rows(f'{label}, "rows"', rows)


def _check_json(label: str, response: object) -> None:
    """As on AWS (its runtime's MarshalError), a response that JSON cannot carry fails the invocation.

    AWS's encoder takes Decimal, NaN and infinity too.
    """
    try:
        json.dumps(response, default=_decimal)
    except (TypeError, ValueError, RecursionError) as error:
        raise HandlerError(
            f"{label} gave {shown(response)}, which JSON cannot carry: {error}",
            hint='return None, or an object of plain values; rows for the sink go under "rows"',
        ) from error


def _decimal(value: object) -> float:
    if isinstance(value, decimal.Decimal):
        return float(value)
    raise TypeError(f"Object of type {type(value).__name__} is not JSON serializable")
