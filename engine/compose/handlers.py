"""Making a handler from what a pipeline's configuration says of it.

Not here: the kinds themselves (`functions.kinds`). The engine sees only `engine.protocols.Handler`.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable

import pyarrow as pa

from engine.batching import KEYS_AND_VALUES, Payload
from engine.errors import HandlerError
from engine.protocols import Handler
from functions.kinds import events
from functions.kinds.arrow import ArrowHandler
from functions.kinds.calling import error_payload
from functions.kinds.kafka import EVENT_SOURCES, KafkaSource
from functions.kinds.loader import load
from functions.kinds.rows import RowsHandler

__all__ = ["ENVELOPE_BYTES_MAX", "KINDS", "build_handler", "error_payload", "payload_of"]

KINDS = ("kinesis", "kafka", "rows", "arrow", "sql")

#: More than any event has around its records: names and addresses; kept free when a batch is closed by size.
ENVELOPE_BYTES_MAX = 16_384

#: The names of the arguments that each kind's function is called with.
_ARGUMENTS = {"rows": ("rows", "context"), "arrow": ("batch", "context")}


def build_handler(
    *,
    kind: str,
    handler: str | None = None,
    query: str | None = None,
    timeout_seconds: float,
    concurrency_max: int,
    function_name: str = "headrace",
    bootstrap_servers: str = "",
    event_source: str = EVENT_SOURCES[0],
    event_source_arn: str | None = None,
    schema: pa.Schema | None = None,
    memory_bytes_max: int | None = None,
) -> Handler:
    """A handler of ``kind``. Imports the user's module, so it may block: not to be called on a running loop.

    ``handler`` ("module.function") is for all kinds but ``sql``, which takes ``query``. ``concurrency_max``
    bounds the calls under way at once, and the threads they run in. ``function_name`` names the function's
    role in Kinesis events. ``bootstrap_servers`` (comma-joined), ``event_source`` and ``event_source_arn`` are
    what Kafka events say. ``schema`` is that of the decoded columns, where it is known, and
    ``memory_bytes_max`` bounds DuckDB's memory; both are for ``sql``.

    Raises HandlerError for an unknown kind, a handler that cannot be loaded, or a query that cannot be planned.
    """
    if kind == "sql":
        if query is None or handler is not None:
            raise HandlerError("kind sql takes a query over `batch`, and no handler")
        # DuckDB takes 30 MB of memory that the other kinds do not need.
        from functions.kinds.sql import SqlHandler

        return SqlHandler(
            query,
            timeout_seconds=timeout_seconds,
            concurrency_max=concurrency_max,
            schema=schema,
            memory_bytes_max=memory_bytes_max,
        )
    if kind not in KINDS:
        near = difflib.get_close_matches(kind, KINDS, n=1)
        raise HandlerError(
            f"there is no handler kind {kind!r}; kinds are {', '.join(KINDS)}",
            hint=f"did you mean {near[0]}?" if near else None,
        )
    if handler is None or query is not None:
        raise HandlerError(f"kind {kind} takes a handler, named module.function, and no query")
    function = load(handler, arguments=_ARGUMENTS.get(kind, ("event", "context")))
    if kind == "kinesis":
        return events.kinesis_handler(
            function,
            name=handler,
            role=function_name,
            timeout_seconds=timeout_seconds,
            concurrency_max=concurrency_max,
        )
    if kind == "kafka":
        _check_event_source(event_source, event_source_arn)
        return events.kafka_handler(
            function,
            name=handler,
            source=KafkaSource(bootstrap_servers, event_source, event_source_arn),
            timeout_seconds=timeout_seconds,
            concurrency_max=concurrency_max,
        )
    made: Callable[..., Handler] = RowsHandler if kind == "rows" else ArrowHandler
    return made(function, name=handler, timeout_seconds=timeout_seconds, concurrency_max=concurrency_max)


def _check_event_source(event_source: str, arn: str | None) -> None:
    if event_source not in EVENT_SOURCES:
        raise HandlerError(f"event source {event_source!r} is none of {', '.join(EVENT_SOURCES)}")
    if (arn is not None) != (event_source == "aws:kafka"):
        raise HandlerError(
            f"event source {event_source!r} {'has no ARN' if arn is not None else 'needs an ARN'}",
            hint='eventSourceArn goes with "aws:kafka", Amazon MSK\'s event source, and only with it',
        )


def payload_of(handler: Handler) -> Payload:
    """What measures the payload of a batch for this handler: its event's bytes, or those of key and value."""
    if isinstance(handler, events.EventHandler):
        return Payload(handler.payload_bytes, handler.payload_bytes_bound)
    return KEYS_AND_VALUES
