"""The event kinds' handler over any invoker: what it asks for, what it makes of the reply, its versions.

Not here: processes (tests of the environments), and what an answer means (`test_kinds_responses`).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import orjson
import pytest

from engine.batch import Batch, empty_records, from_rows
from engine.context import Context
from engine.errors import FunctionError, HandlerError, Throttled
from engine.protocols import Fault, Invocation, Result, Window
from functions.environments.contract import EventKind, FunctionSpec, Reply, Request
from functions.kinds.events import EventHandler
from functions.kinds.kinesis import sequence_number
from functions.kinds.responses import ItemFailures
from functions.kinds.sources import EventSource, event_of

SPEC = FunctionSpec("orders", "app.handler", (), Path("/srv"), 3.0, 128, "eu-west-1", version=4)
CONTEXT = Context(function_name="orders", memory_limit_in_mb="128", deadline_ms=1_700_000_003_000)
WINDOW = Window(start=1_700_000_000, end=1_700_000_060, state=b'{"n":7}', is_final=True, is_terminated_early=False)


class Near:
    """An invoker in this process: it builds the event as a process would, and calls a function."""

    def __init__(self, function: Callable[[dict[str, object]], bytes]) -> None:
        self._function = function
        self.requests: list[Request] = []
        self.done: list[object] = []

    async def invoke(self, request: Request) -> Reply:
        self.requests.append(request)
        event = event_of(request.kind, request.batch, request.envelope, request.extra)
        return Reply(self._function(json.loads(json.dumps(event))))

    async def warm(self) -> None:
        self.done.append("warm")

    async def replace(self, spec: FunctionSpec) -> None:
        self.done.append(spec)

    async def close(self) -> None:
        self.done.append("close")


def made(
    function: Callable[[dict[str, object]], bytes], kind: EventKind = "kinesis", *, reports: bool = False
) -> tuple[EventHandler, Near]:
    invoker = Near(function)
    source = EventSource(kind, "eu-west-1", role="orders")
    return EventHandler(invoker, SPEC, source, reports_item_failures=reports), invoker


def batch(*values: bytes) -> Batch:
    rows = [(5 + i, 1_700_000_000_000, b"k", value, [("h", b"v")]) for i, value in enumerate(values)]
    return from_rows("clicks", 3, rows, start=5, end=5 + len(rows))


async def test_an_invocation_becomes_a_request_and_its_reply_a_result() -> None:
    """Request id and deadline are the context's; rows come back by way of JSON."""
    handler, invoker = made(lambda event: orjson.dumps({"rows": [{"members": sorted(event)}]}))
    records = batch(b"a", b"b")
    assert await handler.invoke(Invocation(records, None, CONTEXT)) == Result(rows=[{"members": ["Records"]}])
    [request] = invoker.requests
    assert (request.request_id, request.deadline_ms) == (CONTEXT.aws_request_id, CONTEXT.deadline_ms)
    assert (request.kind, request.batch, request.extra) == ("kinesis", records, {})
    assert request.envelope["invokeIdentityArn"] == "arn:aws:iam::000000000000:role/orders"
    assert not handler.wants_columns


async def test_the_members_of_a_window_stand_in_the_event() -> None:
    """Literally, for an invocation without records too; the state goes in and comes out."""
    seen: list[dict[str, object]] = []

    def function(event: dict[str, object]) -> bytes:
        seen.append(event)
        return b'{"state": {"n": 8}}'

    handler, _ = made(function)
    empty = Batch("clicks", 3, 7, 7, empty_records())
    assert await handler.invoke(Invocation(empty, None, CONTEXT, WINDOW)) == Result(state=b'{"n":8}')
    assert seen == [
        {
            "Records": [],
            "window": {"start": "2023-11-14T22:13:20Z", "end": "2023-11-14T22:14:20Z"},
            "state": {"n": 7},
            "shardId": "shardId-000000000003",
            "eventSourceARN": "arn:aws:kinesis:eu-west-1:000000000000:stream/clicks",
            "isFinalInvokeForWindow": True,
            "isWindowTerminatedEarly": False,
        }
    ]


@pytest.mark.parametrize("kind", ["kinesis", "kafka", "dynamodb", "firehose"])
async def test_sizes_are_foretold_with_and_without_a_window(kind: EventKind) -> None:
    """Envelope and records add up to the event."""
    sizes: list[int] = []

    def function(event: dict[str, object]) -> bytes:
        sizes.append(len(orjson.dumps(event)))
        return b'{"state": {}, "records": []}'

    handler, _ = made(function, kind)
    change = b'{"eventName": "INSERT", "dynamodb": {"Keys": {}}}'
    records = batch(*([change] * 3 if kind == "dynamodb" else [b"a", b"bb", b""]))
    for window in (None, WINDOW):
        await handler.invoke(Invocation(records, None, CONTEXT, window))
        assert int(handler.payload_bytes(records).sum()) + handler.envelope_bytes(records, window) == sizes[-1]
    assert int(handler.payload_bytes(records).sum()) <= handler.payload_bytes_bound(records)


@pytest.mark.parametrize("payload", [b"null", b"", b" \n", b'"done"', b"OK", b"\xff", b'{"n": NaN}', b"[1" * 9000])
async def test_any_reply_is_success_where_nothing_is_read_from_it(payload: bytes) -> None:
    """A runtime may answer with what is no JSON; on AWS nobody looks."""
    handler, _ = made(lambda event: payload)
    assert await handler.invoke(Invocation(batch(b"a"), None, CONTEXT)) == Result()


async def test_a_reply_that_is_no_json_reports_no_failures() -> None:
    """Where failures are looked for, what cannot be read fails the batch."""
    handler, _ = made(lambda event: b"OK", reports=True)
    with pytest.raises(ItemFailures, match=r"^app.handler \(kind kinesis\) gave a str: 'OK'"):
        await handler.invoke(Invocation(batch(b"a"), None, CONTEXT))


async def test_a_large_reply_is_read_like_a_small_one() -> None:
    """Beside the loop, with the same result; numbers keep all their digits."""
    number = 2**70
    for count in (1, 20_000):
        rows = [{"n": number, "_sequence_number": sequence_number(5)}] * count
        payload = json.dumps({"rows": rows, "batchItemFailures": [{"itemIdentifier": sequence_number(6)}]}).encode()
        handler, _ = made(lambda event, payload=payload: payload, reports=True)  # type: ignore[misc]
        result = await handler.invoke(Invocation(batch(b"a", b"b"), None, CONTEXT))
        assert result == Result(rows=[{"n": number, "_offset": 5}] * count, failed_from=6)


async def test_what_the_function_raises_passes_through() -> None:
    """The engine retries and reports it, the same object."""
    error = FunctionError("no such page", "KeyError", ["frame"])

    def function(event: dict[str, object]) -> bytes:
        raise error

    handler, _ = made(function)
    with pytest.raises(FunctionError) as caught:
        await handler.invoke(Invocation(batch(b"a"), None, CONTEXT))
    assert caught.value is error


async def test_reloading_counts_versions() -> None:
    """Each reload is another version of the same function; opening and closing are the invoker's."""
    handler, invoker = made(lambda event: b"")
    await handler.open()
    await handler.reload()
    await handler.reload()
    await handler.close()
    first, second = invoker.done[1:3]
    assert isinstance(first, FunctionSpec)
    assert isinstance(second, FunctionSpec)
    assert (first.version, second.version, second.name) == (5, 6, "orders")
    assert (invoker.done[0], invoker.done[3]) == ("warm", "close")


def test_only_dynamodb_has_records_that_no_event_can_hold() -> None:
    """The other kinds take any bytes."""
    records = batch(b"\xff")
    for kind in ("kinesis", "kafka", "firehose"):
        handler, _ = made(lambda event: b"", kind)  # type: ignore[arg-type]
        assert not handler.faults(records)
    handler, _ = made(lambda event: b"", "dynamodb")
    [fault] = handler.faults(records)
    assert isinstance(fault, Fault)
    assert fault.offset == 5


@pytest.mark.parametrize(
    ("fault", "ends"),
    [
        (FunctionError("Error: Task timed out after 10.00 seconds of initialisation", "Sandbox.Timedout"), False),
        (FunctionError("Error: Runtime exited with error: signal: killed", "Runtime.ExitError"), False),
        (Throttled("no environment can be started"), False),
        (FunctionError("Error: Runtime exited with error: exit status 1", "Runtime.ExitError"), True),
        (FunctionError("Handler 'handler' missing on module 'app'", "Runtime.HandlerNotFound"), True),
        (FunctionError("no such table", "ValueError"), True),
    ],
    ids=["slow", "killed", "no-room", "left", "no-handler", "raised"],
)
async def test_an_init_fault_that_may_pass_ends_no_pipeline(
    fault: HandlerError, ends: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """It is said, and the first invocation starts another environment, as on AWS; a fault of the code is raised."""

    class Failing(Near):
        async def warm(self) -> None:
            raise fault

    handler = EventHandler(Failing(lambda event: b"null"), SPEC, EventSource("kinesis", "eu-west-1", role="orders"))
    if ends:
        with pytest.raises(FunctionError, match=fault.message):
            await handler.open()
    else:
        await handler.open()
        assert fault.message in caplog.text
        assert await handler.invoke(Invocation(batch(b"a"), None, CONTEXT)) == Result()
