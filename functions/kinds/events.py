"""The kinds `kinesis`, `kafka`, `dynamodb` and `firehose`: a Lambda function, called with AWS's event and context.

Not here: the events themselves (`sources` and the event modules), the processes that functions run in
(`functions.environments`), and what an answer means (`responses`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

from engine.batch import Batch
from engine.errors import FunctionError, Throttled
from engine.protocols import Fault, Invocation, Result, Window
from engine.tracing import lambda_header
from functions.environments import wire
from functions.environments.contract import EventKind, FunctionSpec, Reply, Request
from functions.kinds import changes, texts
from functions.kinds.payload import EventPayload, Sizes, payload_for
from functions.kinds.responses import read_response
from functions.kinds.sources import EventSource

log = logging.getLogger("headrace.functions")

#: Larger answers are read beside the event loop.
_INLINE_BYTES_MAX = 32 * 1024


class Invoker(Protocol):
    """Calls one function; `functions.environments.pool.EnvironmentPool` is the one there is."""

    async def invoke(self, request: Request) -> Reply:
        """The function's answer. Raises FunctionError or Throttled."""

    async def warm(self) -> None: ...

    async def replace(self, spec: FunctionSpec) -> None: ...

    async def close(self) -> None: ...


class EventHandler:
    """An `engine.protocols.Handler` over a Lambda function.

    It knows what each record adds to the event; a batcher uses it to close batches in time.
    """

    wants_columns = False

    def __init__(
        self,
        invoker: Invoker,
        spec: FunctionSpec,
        source: EventSource,
        *,
        reports_item_failures: bool = False,
        takes_rows: bool = True,
    ) -> None:
        """``takes_rows``: there is a sink; without one a member "rows" of an answer means nothing, as on AWS."""
        self._invoker = invoker
        self._spec = spec
        self._source = source
        self._reports_item_failures = reports_item_failures
        self._takes_rows = takes_rows
        self._payload: EventPayload = payload_for(source)
        self._label = f"{spec.handler or spec.name} (kind {source.kind})"

    @property
    def kind(self) -> EventKind:
        return self._source.kind

    def envelope_bytes(self, batch: Batch, window: Window | None = None) -> int:
        """Bytes of the event around the records; with the members of a tumbling window, if there is one."""
        around = self._payload.envelope_bytes(batch)
        if window is None:
            return around
        members = texts.dumps(self._source.window_members(batch, window))
        return around + len(members) - 1  # without its braces, with a comma

    def payload_bytes(self, batch: Batch) -> Sizes:
        """Bytes that each record adds to the event."""
        return self._payload.payload_bytes(batch)

    def payload_bytes_bound(self, batch: Batch) -> int:
        """No less than all records add to the event; quick to tell."""
        return self._payload.payload_bytes_bound(batch)

    def faults(self, batch: Batch) -> Sequence[Fault]:
        """The records that no event of this kind can hold. The others make up a batch for `invoke`."""
        return changes.faults(batch) if self._source.kind == "dynamodb" else ()

    async def invoke(self, invocation: Invocation) -> Result:
        """Raises FunctionError, Throttled, and what `read_response` raises."""
        reply = await self._invoker.invoke(self._request(invocation))
        if len(reply.payload) > _INLINE_BYTES_MAX:
            return await asyncio.to_thread(self._read, invocation, reply)
        return self._read(invocation, reply)

    def _request(self, invocation: Invocation) -> Request:
        batch, context, window = invocation.batch, invocation.context, invocation.window
        return Request(
            request_id=context.aws_request_id,
            deadline_ms=context.deadline_ms,
            kind=self._source.kind,
            batch=batch,
            envelope=self._source.envelope(batch, context.aws_request_id),
            extra={} if window is None else self._source.window_members(batch, window),
            trace=lambda_header(),
        )

    def _read(self, invocation: Invocation, reply: Reply) -> Result:
        return read_response(
            self._label,
            self._source.kind,
            invocation.batch,
            answer_of(reply),
            reports_item_failures=self._reports_item_failures,
            takes_rows=self._takes_rows,
            window=invocation.window,
        )

    async def open(self) -> None:
        """Start an environment before the first batch. Raises FunctionError with the fault of initialisation.

        What may pass is left to the first invocation, as on AWS: an environment that was too slow (it has the
        function's timeout then), that was killed, or for which there was no room.
        """
        try:
            await self._invoker.warm()
        except FunctionError as error:
            if error.error_type != "Sandbox.Timedout" and not error.message.endswith("signal: killed"):
                raise FunctionError(
                    f"the function cannot be started: {error.error_type}: {error.message}",
                    error.error_type,
                    error.stack_trace,
                    hint="mend it and start again; the function's log has the lines that lead there",
                ) from error
            log.warning("%s: %s; its first invocation starts another", self._label, error.message)
        except Throttled as error:
            log.warning("%s: %s", self._label, error.message)

    async def reload(self) -> None:
        """Use the code that is now there. Invocations that are under way finish on the old one."""
        spec = replace(self._spec, version=self._spec.version + 1)
        await self._invoker.replace(spec)
        self._spec = spec

    async def close(self) -> None:
        await self._invoker.close()


def answer_of(reply: Reply) -> object:
    """What a reply says; one that is no JSON is a text, as a bootstrap that answers "OK" means it."""
    if not reply.payload.strip():
        return None
    if reply.has_typed_values:
        return wire.revived(reply.payload)
    try:
        return texts.loads(reply.payload)
    except ValueError:
        return reply.payload.decode(errors="replace")
