"""Making a handler from what a pipeline's configuration says of it.

Not here: the kinds themselves (`functions.kinds`). The engine sees only `engine.protocols.Handler`.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import pyarrow as pa

from engine.batch import Batch
from engine.batching import KEYS_AND_VALUES, Payload
from engine.clock import SystemClock
from engine.config import EVENT_KINDS
from engine.errors import HandlerError
from engine.protocols import Clock, Fault, Handler
from functions.environments.contract import EventKind, FunctionSpec, LogSink, OnReport, Report, Starter
from functions.environments.report import report_line
from functions.kinds import kinesis
from functions.kinds.arrow import ArrowHandler
from functions.kinds.calling import error_payload
from functions.kinds.events import EventHandler
from functions.kinds.kafka import EVENT_SOURCES
from functions.kinds.loader import load, locate
from functions.kinds.rows import RowsHandler
from functions.kinds.sources import EventSource

__all__ = [
    "ENVELOPE_BYTES_MAX",
    "KINDS",
    "EventSettings",
    "Report",
    "build_handler",
    "error_payload",
    "faults_of",
    "function_arn",
    "payload_of",
    "report_line",
]

KINDS = ("kinesis", "kafka", "dynamodb", "firehose", "rows", "arrow", "sql")

#: More than any event has around its records (names and addresses) but for a tumbling window's state; kept free
#: when a batch is closed by size.
ENVELOPE_BYTES_MAX = 16_384

#: The names of the arguments that each kind's function is called with.
_ARGUMENTS = {"rows": ("rows", "context"), "arrow": ("batch", "context")}


@dataclass(frozen=True, slots=True, kw_only=True)
class EventSettings:
    """What functions of event kinds are told, and what bounds the processes that they run in.

    ``root`` is where these start and import from (the working directory when left out), ``variables`` are their
    environment variables. ``logs`` gives the log of a new process of the function of that name; without it, output
    is thrown away. ``on_report`` hears of each invocation, ``on_throttle`` of those for which there was no process.
    ``takes_rows``: there is a sink for an answer's rows. ``bootstrap_servers`` (comma-joined) and ``event_source``
    are what Kafka events say, ``event_source_arn`` what all events say.
    """

    function_name: str = "headrace"
    runtime: str = "python"
    command: Sequence[str] = ()
    variables: Mapping[str, str] = field(default_factory=dict, repr=False)
    memory_size_mb: int = 128
    reserved_concurrency: int = 8
    idle_seconds_max: float = 300.0
    root: Path | None = None
    reports_item_failures: bool = False
    takes_rows: bool = True
    bootstrap_servers: str = ""
    event_source: str = EVENT_SOURCES[0]
    event_source_arn: str | None = None
    clock: Clock = field(default_factory=SystemClock)
    logs: Callable[[str], LogSink] | None = None
    on_report: OnReport | None = None
    on_throttle: Callable[[str], None] | None = None


def build_handler(
    *,
    kind: str,
    handler: str | None = None,
    query: str | None = None,
    timeout_seconds: float,
    concurrency_max: int = 1,
    events: EventSettings | None = None,
    schema: pa.Schema | None = None,
    memory_bytes_max: int | None = None,
) -> Handler:
    """A handler of ``kind``. May block (kinds `rows` and `arrow` import the user's module): not for a running loop.

    For all kinds but ``sql``, which takes ``query``, ``handler`` names the function as "module.function"; for
    ``runtime = "provided"`` it is what the program is told, if anything. ``concurrency_max`` bounds the calls
    of `rows`, `arrow` and `sql` under way at once, and the threads they run in; ``events`` is for the event kinds.
    ``schema`` is that of the decoded columns, where it is known, and ``memory_bytes_max`` bounds DuckDB's memory;
    both are for ``sql``.

    Raises HandlerError for an unknown kind, a function that cannot be found or loaded, and a query that cannot be
    planned. Whether a function of an event kind can be imported shows when its first process starts (``open``).
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
    settings = events or EventSettings()
    if query is not None or (handler is None and settings.runtime != "provided"):
        raise HandlerError(f"kind {kind} takes a handler, named module.function, and no query")
    if kind in EVENT_KINDS:
        return _event_handler(cast(EventKind, kind), handler, timeout_seconds, settings)
    if handler is None or settings.runtime != "python":
        raise HandlerError(f"kind {kind} calls a function of this process; other runtimes are for event kinds")
    function = load(handler, arguments=_ARGUMENTS[kind])
    made: Callable[..., Handler] = RowsHandler if kind == "rows" else ArrowHandler
    return made(function, name=handler, timeout_seconds=timeout_seconds, concurrency_max=concurrency_max)


def _event_handler(
    kind: EventKind, handler: str | None, timeout_seconds: float, settings: EventSettings
) -> EventHandler:
    _check_event_source(kind, settings.event_source, settings.event_source_arn)
    starter = _starter(settings.runtime, settings.command)
    region = _region(settings.event_source_arn)
    root = (settings.root or Path.cwd()).absolute()
    name, logs = settings.function_name, settings.logs
    spec = FunctionSpec(
        name=name,
        handler=locate(handler, root) if handler is not None and settings.runtime == "python" else handler,
        command=tuple(settings.command),
        root=root,
        timeout_seconds=timeout_seconds,
        memory_size_mb=settings.memory_size_mb,
        region=region,
        account=kinesis.ACCOUNT,
        variables=settings.variables,
    )
    source = EventSource(
        kind=kind,
        region=region,
        role=name,
        arn=settings.event_source_arn,
        bootstrap_servers=settings.bootstrap_servers,
        event_source=settings.event_source,
    )
    # Processes, HTTP and what else environments need: other kinds do without.
    from functions.environments.pool import EnvironmentPool

    pool = EnvironmentPool(
        spec,
        starter,
        reserved_concurrency=settings.reserved_concurrency,
        idle_seconds_max=settings.idle_seconds_max,
        clock=settings.clock,
        logs=(lambda: logs(name)) if logs is not None else _Nowhere,
        on_report=settings.on_report or _unheard,
        on_throttle=settings.on_throttle,
    )
    return EventHandler(
        pool, spec, source, reports_item_failures=settings.reports_item_failures, takes_rows=settings.takes_rows
    )


def _starter(runtime: str, command: Sequence[str]) -> Starter:
    if (runtime == "provided") != bool(command):
        needs = "needs a command" if runtime == "provided" else "takes no command"
        raise HandlerError(f"runtime {runtime!r} {needs}", hint='a command goes with runtime = "provided"')
    if runtime == "python":
        from functions.environments.python import PythonStarter

        return PythonStarter()
    if runtime == "provided":
        from functions.environments.provided import ProvidedStarter

        return ProvidedStarter()
    raise HandlerError(f"runtime {runtime!r} is neither python nor provided")


class _Nowhere:
    """A log of nothing."""

    def write(self, data: bytes) -> None:
        pass

    def platform(self, line: str) -> None:
        pass


def _unheard(report: object) -> None:
    del report


def _check_event_source(kind: str, event_source: str, arn: str | None) -> None:
    if event_source not in EVENT_SOURCES:
        raise HandlerError(f"event source {event_source!r} is none of {', '.join(EVENT_SOURCES)}")
    if kind == "kafka" and (arn is not None) != (event_source == "aws:kafka"):
        raise HandlerError(
            f"event source {event_source!r} {'has no ARN' if arn is not None else 'needs an ARN'}",
            hint='eventSourceArn goes with "aws:kafka", Amazon MSK\'s event source, and only with it',
        )


def function_arn(function_name: str, event_source_arn: str | None = None) -> str:
    """What a function of that name is called in AWS's words; in the region of its events' source."""
    return f"arn:aws:lambda:{_region(event_source_arn)}:{kinesis.ACCOUNT}:function:{function_name}"


def _region(event_source_arn: str | None) -> str:
    """The region that an ARN names (``arn:aws:kinesis:REGION:...``), else that of the environment."""
    parts = (event_source_arn or "").split(":")
    named = parts[3] if len(parts) > 5 and parts[0] == "arn" else ""
    return named or kinesis.region()


def faults_of(handler: Handler) -> Callable[[Batch], Sequence[Fault]] | None:
    """What finds the records of a batch that no invocation of this handler can hold; None where there are none.

    It parses every value, so it is not for the event loop.
    """
    if isinstance(handler, EventHandler) and handler.kind == "dynamodb":
        return handler.faults
    return None


def payload_of(handler: Handler) -> Payload:
    """What measures the payload of a batch for this handler: its event's bytes, or those of key and value."""
    if isinstance(handler, EventHandler):
        return Payload(handler.payload_bytes, handler.payload_bytes_bound)
    return KEYS_AND_VALUES
