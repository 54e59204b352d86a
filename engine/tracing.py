"""OpenTelemetry traces: a span for each invocation, exported by OTLP over HTTP. Off, it costs a call and no more.

Attributes follow the semantic conventions for messaging (Kafka) and functions (faas). The context comes from the
records' headers (W3C Trace Context, ``traceparent`` and ``tracestate``): it is the span's parent where every record
of the batch has the same one, else each distinct one is a link. Of an error the type is recorded and nothing else:
its text may quote a record.

opentelemetry is imported only where traces are on. Its processor's own thread exports, from a bounded queue; what
the collector does not take is lost and counted, and holds nothing up. Not here: spans of fetching and of commits.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections.abc import Mapping, Sequence
from contextvars import ContextVar, Token
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import urlsplit

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from engine import logs
from engine.batch import Batch
from engine.config_serving import TracingConfig
from engine.context import Context
from engine.errors import Throttled
from engine.failing import error_type
from engine.protocols import Result

if TYPE_CHECKING:
    from opentelemetry.context import Context as TraceContext
    from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import Link, Span

log = logging.getLogger("headrace.tracing")

#: Spans that wait for the collector, those of one request, and how long a span waits for others.
QUEUE_SPANS_MAX = 4_096
EXPORT_SPANS_MAX = 512
EXPORT_DELAY_SECONDS = 1.0

#: One request to the collector, tries included; and all that the end of a run waits for.
EXPORT_SECONDS_MAX = 10.0
CLOSE_SECONDS_MAX = 3.0

#: Records of one batch whose headers are looked at; with more there may be another context, so all are links.
SCANNED_RECORDS_MAX = 10_000

#: Longer headers are no trace contexts: the first has 55 bytes, the second is to be cut at 512 by who sends it.
TRACEPARENT_BYTES_MAX = 256
TRACESTATE_BYTES_MAX = 2_048

#: A function may call its errors anything.
ERROR_TYPE_CHARACTERS_MAX = 200

#: How often it is said that spans are lost.
SAY_SECONDS = 60.0

_LAMBDA: ContextVar[str | None] = ContextVar("headrace_lambda_trace", default=None)


class InvocationSpan(Protocol):
    """Around one invocation: ``with tracer.invocation(...) as span``. An exception passes through it, noted."""

    @property
    def trace_id(self) -> str | None:
        """32 hexadecimal digits; None where traces are off."""

    def took(self, result: Result) -> None:
        """Note what the function made of the batch."""

    def __enter__(self) -> InvocationSpan: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class Tracer(Protocol):
    """The spans of one pipeline."""

    def invocation(self, batch: Batch, context: Context, attempt: int) -> InvocationSpan:
        """A span for the ``attempt``-th call (from 1) of the function with the records of ``batch``."""


class _NoSpan:
    __slots__ = ()
    trace_id = None

    def took(self, result: Result) -> None:
        return

    def __enter__(self) -> _NoSpan:
        return self

    def __exit__(self, *_error: object) -> None:
        return


class NoTracer:
    """Traces are off."""

    __slots__ = ()
    _span = _NoSpan()

    def invocation(self, batch: Batch, context: Context, attempt: int) -> InvocationSpan:
        return self._span


OFF = NoTracer()


def lambda_header() -> str | None:
    """The invocation's trace as X-Ray writes it (``_X_AMZN_TRACE_ID``); None outside of a traced invocation."""
    return _LAMBDA.get()


@dataclass(frozen=True, slots=True)
class TracingStatistics:
    """Spans of this run: ended and chosen, taken by the collector, and refused by it or dropped before it."""

    ended: int
    exported: int
    lost: int


class Tracing:
    """The export of one process: `tracer` for each pipeline, `close` at the end.

    ``exporter`` replaces OTLP over HTTP. Headers of the requests, such as credentials, come from
    OTEL_EXPORTER_OTLP_HEADERS, the service's name from OTEL_SERVICE_NAME (``headrace`` without it).
    """

    def __init__(self, config: TracingConfig, *, version: str = "", exporter: SpanExporter | None = None) -> None:
        self._config = config
        self._counts = _Counts(_shown(config.endpoint))
        self._provider = _provider(config, version, self._counts, exporter)
        log.info("traces go to %s", self._counts.endpoint)

    def tracer(self, pipeline: str, *, function: str, group: str) -> Tracer:
        """Spans of ``pipeline``, which reads as the consumer group ``group``."""
        constant = {
            "messaging.system": "kafka",
            "messaging.operation.type": "process",
            "messaging.operation.name": "process",
            "messaging.consumer.group.name": group,
            "faas.name": function,
            "faas.trigger": "pubsub",
            "headrace.pipeline": pipeline,
        }
        return _Tracer(self._provider, function, constant, self._config.links_max, self._counts)

    def statistics(self) -> TracingStatistics:
        ended, exported = self._counts.ended, self._counts.exported
        return TracingStatistics(ended, exported, self._counts.refused)

    async def close(self, seconds_max: float = CLOSE_SECONDS_MAX) -> None:
        """Export what waits, for at most so long. No span may begin afterwards. Never raises."""
        # A thread of its own: the collector may hang for longer than anybody waits.
        done = threading.Event()
        threading.Thread(target=self._shut_down, args=(done,), name="headrace-traces-end", daemon=True).start()
        await asyncio.to_thread(done.wait, seconds_max)
        lost = self._counts.ended - self._counts.exported
        if lost:
            log.warning("%d of %d spans did not reach %s", lost, self._counts.ended, self._counts.endpoint)

    def _shut_down(self, done: threading.Event) -> None:
        try:
            self._provider.shutdown()
        finally:
            done.set()


class _Counts:
    """What became of spans; written by the loop's thread (``ended``) and by the exporting one (the others)."""

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint
        self.ended = self.exported = self.refused = 0
        self._said_at = -SAY_SECONDS

    def refuse(self, count: int) -> None:
        self.refused += count
        if time.monotonic() - self._said_at >= SAY_SECONDS:
            self._said_at = time.monotonic()
            log.warning("%s does not take traces: %d spans are lost so far", self.endpoint, self.refused)


def _shown(endpoint: str) -> str:
    """The address without what may be a secret."""
    parts = urlsplit(endpoint)
    host = parts.hostname or ""
    return f"{parts.scheme}://{host}" + (f":{parts.port}" if parts.port else "")


def _provider(
    config: TracingConfig, version: str, counts: _Counts, exporter: SpanExporter | None
) -> TracerProvider:
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
    from opentelemetry.sdk.trace.sampling import ParentBasedTraceIdRatio

    class Counting(SpanExporter):
        """Counts what the exporter below takes. Runs in the processor's thread."""

        def __init__(self, below: SpanExporter) -> None:
            self._below = below

        def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
            result = SpanExportResult.FAILURE
            try:
                result = self._below.export(spans)
            except Exception as error:
                log.debug("spans were not exported: %s", type(error).__name__)
            if result is SpanExportResult.SUCCESS:
                counts.exported += len(spans)
            else:
                counts.refuse(len(spans))
            return result

        def shutdown(self) -> None:
            self._below.shutdown()

    # It logs each failed try, with the address; `_Counts` says what matters of it.
    logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
    if exporter is None:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

        exporter = OTLPSpanExporter(endpoint=config.endpoint, timeout=EXPORT_SECONDS_MAX)
    resource = Resource.create({"process.pid": os.getpid(), "service.version": version or None})
    if str(resource.attributes.get("service.name", "")).startswith("unknown_service"):
        resource = resource.merge(Resource({"service.name": "headrace"}))
    provider = TracerProvider(
        sampler=ParentBasedTraceIdRatio(config.sample_share), resource=resource, shutdown_on_exit=False
    )
    provider.add_span_processor(
        BatchSpanProcessor(
            Counting(exporter),
            max_queue_size=QUEUE_SPANS_MAX,
            schedule_delay_millis=EXPORT_DELAY_SECONDS * 1000,
            max_export_batch_size=EXPORT_SPANS_MAX,
        )
    )
    return provider


class _Tracer:
    def __init__(
        self, provider: TracerProvider, function: str, constant: Mapping[str, str], links_max: int, counts: _Counts
    ) -> None:
        from opentelemetry.trace import SpanKind

        self._tracer = provider.get_tracer("headrace")
        self._function = function
        self._constant = constant
        self._links_max = links_max
        self._counts = counts
        self._kind = SpanKind.CONSUMER

    def invocation(self, batch: Batch, context: Context, attempt: int) -> InvocationSpan:
        parent, links = self._context(batch)
        span = self._tracer.start_span(self._function, context=parent, kind=self._kind, links=links)
        if span.is_recording():
            offsets = batch.offsets
            span.set_attributes(
                {
                    **self._constant,
                    "messaging.destination.name": batch.topic,
                    "messaging.destination.partition.id": str(batch.partition),
                    "messaging.batch.message_count": len(batch),
                    "faas.invocation_id": context.aws_request_id,
                    "headrace.offset.first": int(offsets[0]) if len(offsets) else batch.start,
                    "headrace.offset.last": int(offsets[-1]) if len(offsets) else batch.end - 1,
                    "headrace.attempt": attempt,
                }
            )
        return _Span(span, self._counts)

    def _context(self, batch: Batch) -> tuple[TraceContext, list[Link]]:
        """The parent's context (an empty one for none), and what the span is linked with."""
        from opentelemetry.context import Context as TraceContext
        from opentelemetry.trace import Link, get_current_span
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        found, is_one = carriers(batch, max(1, self._links_max))
        nothing = TraceContext()
        contexts = [TraceContextTextMapPropagator().extract(carrier, context=nothing) for carrier in found]
        spans = [get_current_span(each).get_span_context() for each in contexts]
        if is_one and spans[0].is_valid:
            return contexts[0], []
        return nothing, [Link(each) for each in spans if each.is_valid][: self._links_max]


class _Span:
    __slots__ = ("_counts", "_lambda", "_outcome", "_scope", "_span", "_token", "trace_id")

    def __init__(self, span: Span, counts: _Counts) -> None:
        own = span.get_span_context()
        self.trace_id: str | None = f"{own.trace_id:032x}"
        self._span = span
        self._counts = counts
        self._outcome = "handled"
        span_id = f"{own.span_id:016x}"
        sampled = int(own.trace_flags.sampled)
        self._lambda = f"Root=1-{self.trace_id[:8]}-{self.trace_id[8:]};Parent={span_id};Sampled={sampled}"
        self._scope: Any = logs.about(trace_id=self.trace_id, span_id=span_id)
        self._token: Token[str | None] | None = None

    def took(self, result: Result) -> None:
        if result.failed_from is not None or result.faults:
            self._outcome = "partial"
            if result.faults:
                self._span.set_attribute("headrace.faults", len(result.faults))

    def __enter__(self) -> _Span:
        self._token = _LAMBDA.set(self._lambda)
        self._scope.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._scope.__exit__(None, None, None)
        assert self._token is not None
        _LAMBDA.reset(self._token)
        self._finish(error)

    def _finish(self, error: BaseException | None) -> None:
        if not self._span.is_recording():
            self._span.end()
            return
        if isinstance(error, Exception):
            from opentelemetry.trace import StatusCode

            self._outcome = "throttled" if isinstance(error, Throttled) else "failed"
            name = error_type(error)[:ERROR_TYPE_CHARACTERS_MAX]
            self._span.set_attribute("error.type", name)
            self._span.set_status(StatusCode.ERROR, name)
        elif error is not None:
            self._outcome = "cancelled"
        self._span.set_attribute("headrace.outcome", self._outcome)
        self._counts.ended += 1  # before it may be exported
        self._span.end()


def carriers(batch: Batch, distinct_max: int) -> tuple[list[dict[str, str]], bool]:
    """The distinct trace contexts of a batch's headers, in the order of their first records, at most so many.

    Each has ``traceparent`` and perhaps ``tracestate``. The second value is true where every record of the batch
    has the first of them. Of a record with several ``traceparent`` the last counts.
    """
    if not batch.column_bytes("headers"):
        return [], False
    bounds = batch.bounds("headers")[: SCANNED_RECORDS_MAX + 1]
    start = int(bounds[0])
    column = batch.records.column("headers")
    items = column.values.slice(start, int(bounds[-1]) - start)
    keys = items.field("key")
    at = np.flatnonzero(_is(keys, "traceparent"))
    if not len(at):
        return [], False
    record_of = np.searchsorted(bounds - start, at, side="right") - 1
    is_last = np.append(record_of[1:] != record_of[:-1], True)
    at, record_of = at[is_last], record_of[is_last]
    values = pc.fill_null(items.field("value").take(pa.array(at)), b"")
    encoded = values.dictionary_encode()
    _, first = np.unique(encoded.indices.to_numpy(), return_index=True)
    first.sort()
    is_one = len(first) == 1 and len(at) == len(batch)
    has_state = bool(_is(keys, "tracestate").any())
    found = []
    for index in first[:distinct_max].tolist():
        carrier = {"traceparent": _text(values[index].as_py(), TRACEPARENT_BYTES_MAX)}
        if has_state:
            headers = {header["key"]: header["value"] for header in column[int(record_of[index])].as_py()}
            if state := _text(headers.get("tracestate"), TRACESTATE_BYTES_MAX):
                carrier["tracestate"] = state
        found.append(carrier)
    return found, is_one


def _is(keys: pa.Array, name: str) -> Any:
    return pc.fill_null(pc.equal(keys, name), False).to_numpy(zero_copy_only=False)


def _text(value: bytes | None, bytes_max: int) -> str:
    """The header's text; empty where it can be none."""
    if value is None or len(value) > bytes_max or not value.isascii():
        return ""
    return value.decode("ascii")
