"""Traces: spans as a collector gets them, their parents and links from records' headers, and being off."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from engine import logs
from engine.batch import Batch, from_rows, join
from engine.config_serving import TracingConfig
from engine.errors import FunctionError, Throttled
from engine.protocols import Fault, Result
from engine.tracing import OFF, SCANNED_RECORDS_MAX, Tracing, carriers, lambda_header
from tests.unit.engine_world import context

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = "b7ad6b7169203331"
SAMPLED = f"00-{TRACE}-{PARENT}-01".encode()
UNSAMPLED = f"00-{TRACE}-{PARENT}-00".encode()

Headers = Sequence[tuple[str, bytes | None]]


def traced(number: int) -> bytes:
    """A context of its own for each number."""
    return f"00-{number + 1:032x}-{number + 1:016x}-01".encode()


def batch(*headers: Headers, start: int = 7) -> Batch:
    """A batch with a record for each list of headers."""
    rows = [(start + at, 0, None, b"secret payload", each) for at, each in enumerate(headers)]
    return from_rows("clicks", 3, rows, start=start, end=start + len(rows))


class Collector:
    """What an OTLP receiver was sent. ``status`` is what it answers; while ``hanging`` is set it does not."""

    def __init__(self) -> None:
        self.requests: list[ExportTraceServiceRequest] = []
        self.headers: list[dict[str, str]] = []
        self.status = 200
        self.hanging = threading.Event()
        self.go_on = threading.Event()
        self.url = ""

    @property
    def spans(self) -> list[Any]:
        return [
            span
            for request in self.requests
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]

    def resource(self) -> dict[str, Any]:
        return attributes(self.requests[0].resource_spans[0].resource)


def attributes(holder: Any) -> dict[str, Any]:
    """The attributes of a span or a resource as plain values."""
    return {
        each.key: getattr(each.value, each.value.WhichOneof("value"))
        for each in holder.attributes
        if each.value.WhichOneof("value")
    }


@contextmanager
def collecting() -> Iterator[Collector]:
    collector = Collector()

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if collector.hanging.is_set():
                collector.go_on.wait(10)
            if collector.status == 200:
                assert self.path == "/v1/traces"
                collector.headers.append(dict(self.headers))
                collector.requests.append(ExportTraceServiceRequest.FromString(body))
            self.send_response(collector.status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_arguments: object) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
    server.daemon_threads = True
    collector.url = f"http://127.0.0.1:{server.server_port}/v1/traces"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield collector
    finally:
        collector.go_on.set()
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def collector() -> Iterator[Collector]:
    with collecting() as running:
        yield running


@asynccontextmanager
async def tracing(collector: Collector, seconds_max: float = 10.0, **settings: Any) -> AsyncIterator[Tracing]:
    on = Tracing(TracingConfig(enabled=True, endpoint=collector.url, **settings), version="1.2")
    yield on
    await on.close(seconds_max)


def tracer(on: Tracing) -> Any:
    return on.tracer("web", function="count", group="headrace-web")


async def test_a_span_says_what_was_invoked_with_what(collector: Collector) -> None:
    """Name, kind, parent, the conventions' attributes and ours, as the collector decodes them; no payload."""
    given = context()
    headers = [("traceparent", SAMPLED), ("tracestate", b"vendor=1")]
    async with tracing(collector) as on:
        with tracer(on).invocation(batch(headers, headers), given, 2) as span:
            span.took(Result())
            assert span.trace_id == TRACE
    (sent,) = collector.spans
    assert (sent.name, sent.kind) == ("count", 5)  # SPAN_KIND_CONSUMER
    assert (sent.trace_id.hex(), sent.parent_span_id.hex(), sent.trace_state) == (TRACE, PARENT, "vendor=1")
    assert (len(sent.links), sent.status.code, len(sent.events)) == (0, 0, 0)
    assert attributes(sent) == {
        "messaging.system": "kafka",
        "messaging.operation.type": "process",
        "messaging.operation.name": "process",
        "messaging.consumer.group.name": "headrace-web",
        "messaging.destination.name": "clicks",
        "messaging.destination.partition.id": "3",
        "messaging.batch.message_count": 2,
        "faas.name": "count",
        "faas.trigger": "pubsub",
        "faas.invocation_id": given.aws_request_id,
        "headrace.pipeline": "web",
        "headrace.offset.first": 7,
        "headrace.offset.last": 8,
        "headrace.attempt": 2,
        "headrace.outcome": "handled",
    }
    assert {"service.name": "headrace", "service.version": "1.2"}.items() <= collector.resource().items()
    assert b"secret payload" not in collector.requests[0].SerializeToString()
    assert on.statistics() == type(on.statistics())(1, 1, 0)


async def test_records_of_several_traces_are_links(collector: Collector) -> None:
    """Each distinct context once, in the order of the records, at most links_max; the span begins a trace."""
    several = [[("traceparent", traced(at // 2))] for at in range(10)]
    async with tracing(collector, links_max=3) as on:
        with tracer(on).invocation(batch(*several), context(), 1):
            pass
        with tracer(on).invocation(batch([("traceparent", traced(0))], []), context(), 1):
            pass
    many, partial = collector.spans
    assert [link.trace_id.hex() for link in many.links] == [f"{at + 1:032x}" for at in range(3)]
    assert many.parent_span_id == b""
    assert many.trace_id.hex() not in {f"{at + 1:032x}" for at in range(5)}
    assert [link.span_id.hex() for link in partial.links] == [f"{1:016x}"]  # one record has no context
    assert partial.parent_span_id == b""


async def test_the_parent_decides_what_is_sampled(collector: Collector) -> None:
    """A parent that is not sampled has no spans sent; one that is has, however small the share of others."""
    async with tracing(collector, sample_share=1e-12) as on:
        for headers in ([("traceparent", UNSAMPLED)], [], [("traceparent", SAMPLED)]):
            with tracer(on).invocation(batch(headers), context(), 1) as span:
                assert span.trace_id is not None
    assert [span.trace_id.hex() for span in collector.spans] == [TRACE]
    assert on.statistics().ended == 1


@pytest.mark.parametrize(
    ("error", "outcome", "name"),
    [
        (ValueError("secret payload"), "failed", "ValueError"),
        (FunctionError("secret payload", "Sandbox.Timedout"), "failed", "Sandbox.Timedout"),
        (Throttled("no environment"), "throttled", "Throttled"),
        (asyncio.CancelledError(), "cancelled", None),
    ],
)
async def test_an_error_passes_and_is_noted_by_its_type(
    collector: Collector, error: BaseException, outcome: str, name: str | None
) -> None:
    """The type alone: a message may quote a record. A cancelled invocation is no error."""
    async with tracing(collector) as on:
        with pytest.raises(type(error)), tracer(on).invocation(batch([]), context(), 1):
            raise error
    (sent,) = collector.spans
    assert attributes(sent)["headrace.outcome"] == outcome
    assert attributes(sent).get("error.type") == name
    assert (sent.status.code, sent.status.message) == ((2, name) if name else (0, ""))
    assert b"secret payload" not in sent.SerializeToString()


@pytest.mark.parametrize("result", [Result(failed_from=8), Result(faults=[Fault(7, "secret payload")])])
async def test_reported_records_make_an_outcome_partial(collector: Collector, result: Result) -> None:
    """Whichever way the function reports them."""
    async with tracing(collector) as on:
        with tracer(on).invocation(batch([], []), context(), 1) as span:
            span.took(result)
    found = attributes(collector.spans[0])
    assert found["headrace.outcome"] == "partial"
    assert found.get("headrace.faults") == (len(result.faults) or None)


async def test_what_runs_inside_knows_the_trace(collector: Collector) -> None:
    """As AWS's variable has it, and on log lines, in tasks and threads that are started inside; not afterwards."""
    formatter = logs.JsonFormatter()

    def line() -> str:
        return formatter.format(logging.LogRecord("headrace.x", logging.INFO, "", 0, "hello", (), None))

    async def inside() -> str | None:
        return lambda_header()

    async with tracing(collector) as on:
        with tracer(on).invocation(batch([("traceparent", SAMPLED)]), context(), 1):
            header = await asyncio.create_task(inside())
            assert header == await asyncio.to_thread(lambda_header)
            assert f'"trace_id":"{TRACE}"' in line()
        assert lambda_header() is None
        assert TRACE not in line()
    (sent,) = collector.spans
    assert header == f"Root=1-{TRACE[:8]}-{TRACE[8:]};Parent={sent.span_id.hex()};Sampled=1"


async def test_headers_of_the_requests_come_from_the_environment(
    collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Credentials are given as OpenTelemetry's own variables, and so is the service's name."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20abc")
    monkeypatch.setenv("OTEL_SERVICE_NAME", "shop")
    async with tracing(collector) as on:
        with tracer(on).invocation(batch([]), context(), 1):
            pass
    assert {name.lower(): value for name, value in collector.headers[0].items()}["authorization"] == "Bearer abc"
    assert collector.resource()["service.name"] == "shop"


async def test_a_collector_that_refuses_loses_spans_and_nothing_else(
    collector: Collector, caplog: pytest.LogCaptureFixture
) -> None:
    """It is said once, without credentials of the address; the run goes on."""
    collector.status = 400
    collector.url = collector.url.replace("http://", "http://user:hunter22@")
    async with tracing(collector) as on:
        for _ in range(3):
            with tracer(on).invocation(batch([]), context(), 1):
                pass
    assert on.statistics() == type(on.statistics())(3, 0, 3)
    said = [record.getMessage() for record in caplog.records if record.name == "headrace.tracing"]
    assert sum("does not take traces" in text for text in said) == 1
    assert "hunter22" not in caplog.text


async def test_the_end_waits_no_longer_than_it_may_for_a_collector_that_hangs(collector: Collector) -> None:
    """The last spans are lost then, and counted."""
    collector.hanging.set()
    started = time.monotonic()
    async with tracing(collector, seconds_max=0.2) as on:
        with tracer(on).invocation(batch([]), context(), 1):
            pass
    assert 0.2 <= time.monotonic() - started < 2.0
    assert (on.statistics().ended, on.statistics().exported) == (1, 0)


def test_off_gives_nothing_and_imports_nothing() -> None:
    """The null tracer passes errors on, and opentelemetry is not even imported."""
    with OFF.invocation(batch([]), context(), 1) as span:
        assert (span.trace_id, lambda_header()) == (None, None)
        span.took(Result())
    with pytest.raises(ValueError, match="mine"), OFF.invocation(batch([]), context(), 1):
        raise ValueError("mine")
    program = "import sys, engine.tracing; sys.exit(any(name.startswith('opentelemetry') for name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


HEADER = st.tuples(
    st.sampled_from(["traceparent", "tracestate", "other", "Traceparent"]),
    st.one_of(st.none(), st.binary(max_size=6), st.sampled_from([SAMPLED, traced(1), b"x" * 300, b"\xff"])),
)


def plain(headers: Sequence[Headers], distinct_max: int) -> tuple[list[dict[str, str]], bool]:
    """`carriers` said again, a record at a time."""

    def text(value: bytes | None, bytes_max: int) -> str:
        return value.decode("ascii") if value and value.isascii() and len(value) <= bytes_max else ""

    found: dict[bytes, dict[str, str]] = {}
    every = bool(headers)
    for each in headers:
        last = dict(each)
        if "traceparent" not in last:
            every = False
            continue
        if (key := last["traceparent"] or b"") not in found:
            found[key] = {"traceparent": text(last["traceparent"], 256)}
            if state := text(last.get("tracestate"), 2048):
                found[key]["tracestate"] = state
    return list(found.values())[:distinct_max], every and len(found) == 1


@given(st.lists(st.lists(HEADER, max_size=4), max_size=8), st.integers(1, 4), st.data())
def test_contexts_are_those_of_the_headers(headers: list[Headers], distinct_max: int, data: st.DataObject) -> None:
    """Against a plain reading of the same headers, whole batches and slices of them alike."""
    whole = batch(*headers)
    assert carriers(whole, distinct_max) == plain(headers, distinct_max)
    at = data.draw(st.integers(0, len(headers)))
    assert carriers(whole.tail(at), distinct_max) == plain(headers[at:], distinct_max)
    assert carriers(whole.head(at), distinct_max) == plain(headers[:at], distinct_max)


def test_a_huge_batch_has_links_only() -> None:
    """So many headers are not all looked at; that every record has the same one is then not known."""
    same = [[("traceparent", SAMPLED)]] * SCANNED_RECORDS_MAX
    assert carriers(batch(*same), 9)[1] is True
    more = join([batch(*same, start=0), batch(*same[:1], start=SCANNED_RECORDS_MAX)])
    found, is_one = carriers(more, 9)
    assert (len(found), is_one) == (1, False)
