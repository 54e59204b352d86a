"""The Runtime API as clients meet it, over real sockets: what AWS's clients do, turn by turn.

What no client should do is in test_runtime_api_bounds.
"""

from __future__ import annotations

import asyncio
import base64
import json
import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import FunctionError
from functions.environments import turns
from functions.environments.contract import PAYLOAD_BYTES_MAX
from functions.environments.inside import trace_id
from functions.environments.turns import reported
from tests.unit.runtime_api_client import (
    ARN,
    EVENT,
    NEXT,
    ROOT,
    client_of,
    deadline,
    given_one,
    path_of,
    served,
    streamed,
    until,
)


async def test_the_first_next_ends_the_init_phase_and_blocks_until_there_is_an_invocation() -> None:
    """The event comes with the headers that a runtime builds its context from, and with no others."""
    async with served() as (api, port), client_of(port) as client:
        client.send("GET", NEXT)
        await asyncio.wait_for(api.initialised(), 5)
        due = deadline()
        invoking = asyncio.create_task(api.invoke("r-1", due, EVENT))
        status, headers, body = await client.answer()
        assert (status, body) == (200, EVENT)
        trace = headers.pop("lambda-runtime-trace-id")
        assert re.fullmatch(r"Root=1-[0-9a-f]{8}-[0-9a-f]{24};Sampled=0", trace)
        assert headers == {
            "content-type": "application/json",
            "content-length": str(len(EVENT)),
            "lambda-runtime-aws-request-id": "r-1",
            "lambda-runtime-deadline-ms": str(due),
            "lambda-runtime-invoked-function-arn": ARN,
        }
        status, _, body = await client.call("POST", path_of("r-1"), b'{"done":true}')
        assert (status, json.loads(body)) == (202, {"status": "OK"})
        assert await invoking == b'{"done":true}'


async def test_one_connection_serves_any_number_of_invocations() -> None:
    """Keep-alive: bodies of any bytes come through as they are, none at all included."""
    async with served() as (api, port), client_of(port) as client:
        for number, body in enumerate([b"", b"null", b"\x00\xff" * 100, b"x" * PAYLOAD_BYTES_MAX]):
            invoking = await given_one(api, client, f"r-{number}")
            assert (await client.call("POST", path_of(f"r-{number}"), body))[0] == 202
            assert await invoking == body


async def test_a_second_next_before_the_answer_gives_the_same_invocation() -> None:
    """As AWS's emulator does: a client whose first answer was lost is not stuck."""
    async with served() as (api, port), client_of(port) as client, client_of(port) as other:
        invoking = await given_one(api, client)
        status, headers, body = await other.call("GET", NEXT)
        assert (status, body, headers["lambda-runtime-aws-request-id"]) == (200, EVENT, "r-1")
        assert (await other.call("POST", path_of("r-1"), b"1"))[0] == 202
        assert await invoking == b"1"


async def test_an_invocation_goes_to_one_waiting_connection_and_the_next_to_the_other() -> None:
    """Several connections may wait; the one that waited longest is served first."""
    async with served() as (api, port), client_of(port) as first, client_of(port) as second:
        first.send("GET", NEXT)
        await asyncio.wait_for(api.initialised(), 5)
        second.send("GET", NEXT)
        await until(lambda: len(api._turns._waiting) == 2)
        for request_id, client in (("r-1", first), ("r-2", second)):
            invoking = asyncio.create_task(api.invoke(request_id, deadline(), EVENT))
            assert (await client.answer())[1]["lambda-runtime-aws-request-id"] == request_id
            assert (await client.call("POST", path_of(request_id), b"1"))[0] == 202
            assert await invoking == b"1"


async def test_an_invocation_passes_over_a_client_that_is_gone() -> None:
    """A connection that closes while it waits takes nothing with it."""
    async with served() as (api, port), client_of(port) as second:
        async with client_of(port) as first:
            first.send("GET", NEXT)
            await asyncio.wait_for(api.initialised(), 5)
        second.send("GET", NEXT)
        await until(lambda: len(api._connections) == 1 and len(api._turns._waiting) == 1)
        invoking = asyncio.create_task(api.invoke("r-1", deadline(), EVENT))
        assert (await second.answer())[2] == EVENT
        assert (await second.call("POST", path_of("r-1"), b"1"))[0] == 202
        assert await invoking == b"1"


async def test_what_a_client_sends_ahead_is_served_in_order() -> None:
    """Pipelined requests wait for their turn, also behind a next that blocks."""
    async with served() as (api, port), client_of(port) as client:
        client.send("GET", NEXT)
        client.send("POST", path_of("r-1"), b"[1]")
        await asyncio.wait_for(api.initialised(), 5)
        client.send("GET", "/elsewhere")
        assert await asyncio.wait_for(api.invoke("r-1", deadline(), EVENT), 5) == b"[1]"
        data = b""
        while data.count(b"HTTP/1.1 ") < 3:
            data += await asyncio.wait_for(client.reader.read(65536), 5)
        assert re.findall(rb"HTTP/1.1 (\d+)", data) == [b"200", b"202", b"404"]


@pytest.mark.parametrize(
    ("body", "header", "expected"),
    [
        (
            b'{"errorMessage":"no \xc3\xbc","errorType":"KeyError","requestId":"","stackTrace":["  a","  b"]}',
            "Unhandled",
            ("no ü", "KeyError", ["  a", "  b"]),
        ),
        (b'{"errorMessage":"m","errorType":"E","trace":["at x"]}', None, ("m", "E", ["at x"])),
        (b'{"errorMessage":"m","errorType":""}', "Runtime.Odd", ("m", "Runtime.Odd", [])),
        (b'{"errorMessage":["m"],"errorType":5,"stackTrace":"x"}', "Odd", ('["m"]', "5", [])),
        (b'{"stackTrace":[{"line":1}]}', None, ("", "Function.Unknown", ['{"line":1}'])),
        (b"plain text", "Odd", ("plain text", "Odd", [])),
        (b"[1]", None, ("[1]", "Function.Unknown", [])),
        (b"", None, ("the runtime reported an error without a message", "Function.Unknown", [])),
    ],
)
async def test_an_error_is_raised_with_what_the_runtime_says_of_it(
    body: bytes, header: str | None, expected: tuple[str, str, list[str]]
) -> None:
    """The body's members come first, then the header, then AWS's name for an unknown fault."""
    async with served() as (api, port), client_of(port) as client:
        invoking = await given_one(api, client)
        headers = {} if header is None else {"Lambda_Runtime_Function_Error_Type": header}
        assert (await client.call("POST", path_of("r-1", "error"), body, **headers))[0] == 202
        with pytest.raises(FunctionError) as raised:
            await invoking
        assert (raised.value.message, raised.value.error_type, raised.value.stack_trace) == expected


async def test_an_error_with_a_megabyte_of_cause_for_x_ray_is_taken() -> None:
    """AWS's Python client puts up to 1 MB into one header; a deep recursion does that."""
    async with served() as (api, port), client_of(port) as client:
        invoking = await given_one(api, client)
        cause = {"Lambda_Runtime_Function_XRay_Error_Cause": "x" * (1024 * 1024 - 1)}
        assert (await client.call("POST", path_of("r-1", "error"), b"{}", **cause))[0] == 202
        with pytest.raises(FunctionError):
            await invoking


async def test_an_init_error_is_the_fault_of_the_init_phase_and_comes_before_its_end_only() -> None:
    """After an init error nothing is served; after the first next there is no init error any more."""
    async with served() as (api, port), client_of(port) as client:
        error = b'{"errorMessage":"no module","errorType":"Runtime.ImportModuleError"}'
        assert (await client.call("POST", f"{ROOT}init/error", error))[0] == 202
        with pytest.raises(FunctionError, match="no module") as raised:
            await api.initialised()
        assert raised.value.error_type == "Runtime.ImportModuleError"
        assert (await client.call("POST", f"{ROOT}init/error", error))[0] == 403
        assert (await client.call("GET", NEXT))[0] == 403
        with pytest.raises(FunctionError, match="no module"):
            await api.invoke("r-1", deadline(), EVENT)
    async with served() as (api, port), client_of(port) as client:
        invoking = await given_one(api, client)
        status, _, body = await client.call("POST", f"{ROOT}init/error", error)
        assert (status, json.loads(body)["errorType"]) == (403, "InvalidStateTransition")
        assert (await client.call("POST", path_of("r-1"), b"1"))[0] == 202
        assert await invoking == b"1"


async def test_an_answer_out_of_turn_or_for_another_invocation_is_refused() -> None:
    """400 for an id that is not the current one, 403 for one that has its answer; the invocation goes on."""
    async with served() as (api, port), client_of(port) as client:
        assert (await client.call("POST", path_of("r-1"), b"1"))[0] == 400
        early = asyncio.create_task(api.invoke("r-0", deadline(), EVENT))
        await until(lambda: api._turns._current is not None)
        assert (await client.call("POST", path_of("r-0"), b"1"))[0] == 403  # nobody has been given it
        api.fail(FunctionError("over", "Test.Over"))
        with pytest.raises(FunctionError, match="over"):
            await early
    async with served() as (api, port), client_of(port) as client:
        invoking = await given_one(api, client)
        for what in ("response", "error"):
            status, _, body = await client.call("POST", path_of("r-2", what), b"{}")
            assert (status, json.loads(body)["errorType"]) == (400, "InvalidRequestID")
        client.send("POST", path_of("r-1"), b"first")
        client.send("POST", path_of("r-1"), b"second")
        assert await invoking == b"first"
        data = b""
        while data.count(b"HTTP/1.1 ") < 2:
            data += await asyncio.wait_for(client.reader.read(65536), 5)
        assert re.findall(rb"HTTP/1.1 (\d+)", data)[0] == b"202"
        assert re.findall(rb"HTTP/1.1 (\d+)", data)[1] in (b"400", b"403")


@pytest.mark.parametrize(
    ("method", "path", "status", "allow"),
    [
        ("GET", "/", 404, None),
        ("GET", "/2015-03-31/functions/function/invocations", 404, None),
        ("GET", f"{ROOT}restore/next", 404, None),
        ("POST", f"{ROOT}restore/error", 404, None),
        ("POST", f"{ROOT}invocation//response", 404, None),
        ("POST", f"{ROOT}invocation/a/b/response", 404, None),
        ("POST", f"{ROOT}invocation/next/", 404, None),
        ("POST", "/2020-01-01/extension/register", 404, None),
        ("POST", NEXT, 405, "GET"),
        ("HEAD", NEXT, 405, "GET"),
        ("GET", f"{ROOT}init/error", 405, "POST"),
        ("DELETE", path_of("r-1"), 405, "POST"),
    ],
)
async def test_there_is_nothing_else(method: str, path: str, status: int, allow: str | None) -> None:
    """Other resources are 404 (SnapStart's among them, as it is off), other methods 405; the connection goes on."""
    async with served() as (_, port), client_of(port) as client:
        for _ in range(2):
            found, headers, body = await client.call(method, path)
            assert (found, headers.get("allow")) == (status, allow)
            assert (body == b"") == (method == "HEAD")


async def test_a_query_does_not_hide_a_resource() -> None:
    """Some clients append one."""
    async with served() as (api, port), client_of(port) as client:
        invoking = asyncio.create_task(api.invoke("r-1", deadline(), EVENT))
        assert (await client.call("GET", f"{NEXT}?x=1"))[0] == 200
        assert (await client.call("POST", f"{path_of('r-1')}?x=1", b"1"))[0] == 202
        assert await invoking == b"1"


async def test_a_streamed_response_is_put_together() -> None:
    """Chunks as they come about, here byte by byte on the wire."""
    async with served() as (api, port), client_of(port) as client:
        invoking = await given_one(api, client)
        for byte in streamed([b'{"a":', b"1}"]):
            client.writer.write(bytes([byte]))
            await client.writer.drain()
        assert (await client.answer())[0] == 202
        assert await invoking == b'{"a":1}'


async def test_a_streamed_response_may_end_in_an_error() -> None:
    """Trailers say so: its type, and its body in base64."""
    told = base64.b64encode(b'{"errorMessage":"midway","errorType":"Midway","stackTrace":["f"]}').decode()
    for body, expected in ((told, ("midway", "Midway", ["f"])), ("!", None)):
        async with served() as (api, port), client_of(port) as client:
            invoking = await given_one(api, client)
            client.writer.write(
                streamed(
                    [b'{"a":'],
                    Lambda_Runtime_Function_Error_Type="Streamed.Fault",
                    Lambda_Runtime_Function_Error_Body=body,
                )
            )
            assert (await client.answer())[0] == 202
            with pytest.raises(FunctionError) as raised:
                await invoking
            found = raised.value
            if expected is None:
                assert found.error_type == "Streamed.Fault"
            else:
                assert (found.message, found.error_type, found.stack_trace) == expected


async def test_a_response_that_breaks_off_is_none() -> None:
    """The invocation stays open, and another connection may answer it."""
    async with served() as (api, port), client_of(port) as other:
        async with client_of(port) as client:
            invoking = await given_one(api, client)
            client.writer.write(
                f"POST {path_of('r-1')} HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\ntr".encode()
            )
            await client.writer.drain()
        await until(lambda: len(api._connections) == 1)
        assert not invoking.done()
        assert (await other.call("POST", path_of("r-1"), b"whole"))[0] == 202
        assert await invoking == b"whole"


async def test_the_end_of_the_process_ends_the_invocation_under_way_and_all_later_ones() -> None:
    """`fail` is how the owner of the process tells; the first fault stays."""
    async with served() as (api, port), client_of(port) as client:
        invoking = await given_one(api, client)
        api.fail(FunctionError("exit status 1", "Runtime.ExitError"))
        api.fail(FunctionError("another", "Another"))
        for call in (invoking, api.invoke("r-2", deadline(), EVENT)):
            with pytest.raises(FunctionError, match="exit status 1"):
                await call
    async with served() as (api, _):
        api.fail(FunctionError("exit status 1", "Runtime.ExitError"))
        with pytest.raises(FunctionError, match="exit status 1"):
            await api.initialised()


async def test_a_cancelled_invocation_makes_room_for_the_next() -> None:
    """A late answer for it is refused."""
    async with served() as (api, port), client_of(port) as client:
        invoking = await given_one(api, client)
        invoking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await invoking
        assert (await client.call("POST", path_of("r-1"), b"late"))[0] == 400
        again = await given_one(api, client, "r-2")
        assert (await client.call("POST", path_of("r-2"), b"1"))[0] == 202
        assert await again == b"1"


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.binary(max_size=300), st.one_of(st.none(), st.binary(max_size=300)))
def test_any_reported_error_becomes_one_of_bounded_size(body: bytes, header: bytes | None) -> None:
    """Whatever a runtime posts, there is an error of text to raise."""
    error = reported(body, header, default="Function.Unknown")
    assert error.error_type or header == b""
    assert len(error.error_type) <= turns.TYPE_CHARS_MAX
    assert all(isinstance(frame, str) for frame in error.stack_trace)


def test_a_huge_error_is_cut() -> None:
    """Message, type and frames each have a bound."""
    told = {"errorMessage": "m" * 10**6, "errorType": "t" * 1000, "stackTrace": ["f"] * 5000}
    error = reported(json.dumps(told).encode(), None, default="x")
    assert len(error.message) == turns.MESSAGE_CHARS_MAX
    assert len(error.error_type) == turns.TYPE_CHARS_MAX
    assert len(error.stack_trace) == turns.FRAMES_MAX


def test_trace_ids_differ_and_begin_with_the_time() -> None:
    """Root=1-<seconds>-<24 hexadecimal digits>, not sampled."""
    first, second = trace_id(), trace_id()
    assert first != second
    assert abs(int(first[7:15], 16) - time.time()) < 10
