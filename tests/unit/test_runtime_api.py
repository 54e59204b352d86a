"""The Runtime API as clients meet it, over real sockets: what AWS's clients do, and what no client should."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import re
import socket
import time
import tracemalloc
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import h11
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.errors import FunctionError
from functions.environments import peers, runtime_api, turns
from functions.environments.contract import PAYLOAD_BYTES_MAX
from functions.environments.runtime_api import RuntimeApi
from functions.environments.turns import reported, trace_id

ROOT = "/2018-06-01/runtime/"
NEXT = f"{ROOT}invocation/next"
ARN = "arn:aws:lambda:eu-west-1:000000000000:function:fn"
EVENT = b'{"Records":[]}'


async def anybody(peer: runtime_api.Address, own: runtime_api.Address) -> bool:
    return True


@contextlib.asynccontextmanager
async def served(admits: runtime_api.Admits = anybody) -> AsyncIterator[tuple[RuntimeApi, int]]:
    """A running API and its port; no task of it is left afterwards."""
    before = asyncio.all_tasks()
    api = RuntimeApi(arn=ARN, admits=admits)
    address = await api.open()
    try:
        yield api, int(address.rpartition(":")[2])
    finally:
        await asyncio.wait_for(api.close(), 5)
        assert asyncio.all_tasks() <= before


class Client:
    """One raw connection, whose answers are read by h11's client side."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def to(cls, port: int) -> Client:
        return cls(*await asyncio.open_connection("127.0.0.1", port))

    def send(self, method: str, path: str, body: bytes = b"", **headers: str) -> None:
        lines = [f"{method} {path} HTTP/1.1", "Host: 127.0.0.1", f"Content-Length: {len(body)}"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        self.writer.write("\r\n".join([*lines, "", ""]).encode() + body)

    async def answer(self, method: str = "POST") -> tuple[int, dict[str, str], bytes]:
        """Status, headers in lower case, and body of the next answer that is not 1xx."""
        http = h11.Connection(h11.CLIENT)
        http.send(h11.Request(method=method, target="/", headers=[("Host", "x")]))
        http.send(h11.EndOfMessage())
        found: h11.Response | None = None
        body = b""
        async with asyncio.timeout(5):
            while True:
                event = http.next_event()
                if event is h11.NEED_DATA:
                    # Byte-wise at most up to this answer's end: what follows belongs to the next one.
                    http.receive_data(await self.reader.read(1 if found is None else 65536))
                elif isinstance(event, h11.Response):
                    found = event
                elif isinstance(event, h11.Data):
                    body += event.data
                elif isinstance(event, h11.EndOfMessage):
                    assert found is not None
                    headers = {name.decode(): value.decode() for name, value in found.headers}
                    return found.status_code, headers, body

    async def call(
        self, method: str, path: str, body: bytes = b"", **headers: str
    ) -> tuple[int, dict[str, str], bytes]:
        self.send(method, path, body, **headers)
        return await self.answer(method)

    async def at_end(self) -> bool:
        """Whether the server closes without another byte."""
        async with asyncio.timeout(5):
            try:
                return await self.reader.read() == b""
            except ConnectionResetError:
                return True

    async def close(self) -> None:
        self.writer.close()
        with contextlib.suppress(OSError):
            await self.writer.wait_closed()


@contextlib.asynccontextmanager
async def client_of(port: int) -> AsyncIterator[Client]:
    client = await Client.to(port)
    try:
        yield client
    finally:
        await client.close()


def path_of(request_id: str, what: str = "response") -> str:
    return f"{ROOT}invocation/{request_id}/{what}"


def deadline() -> int:
    return int(time.time() * 1000) + 30_000


async def until(condition: Any) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 - the state of the server, which tells nobody
            await asyncio.sleep(0.001)


async def given_one(api: RuntimeApi, client: Client, request_id: str = "r-1") -> asyncio.Task[bytes]:
    """An invocation under way, which ``client`` has been given."""
    invoking = asyncio.create_task(api.invoke(request_id, deadline(), EVENT))
    status, _, body = await client.call("GET", NEXT)
    assert (status, body) == (200, EVENT)
    return invoking


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


async def test_a_client_that_sends_without_end_while_it_waits_is_not_read_without_end() -> None:
    """What is sent ahead is bounded; the rest stays in the client's socket."""
    async with served() as (api, port), client_of(port) as client:
        client.send("GET", NEXT)
        await asyncio.wait_for(api.initialised(), 5)
        client.writer.write(b"x" * 50_000_000)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(client.writer.drain(), 0.3)
        held = client.writer.transport.get_write_buffer_size()  # type: ignore[attr-defined]
        assert held > 30_000_000
        client.writer.transport.abort()


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


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_response_above_6_mb_fails_the_invocation_and_nothing_else(chunked: bool) -> None:
    """It is read to its end, so that the client gets to know: 413; the connection can go on."""
    body = b"x" * (PAYLOAD_BYTES_MAX + 1)
    async with served() as (api, port), client_of(port) as client:
        invoking = await given_one(api, client)
        if chunked:
            head = f"POST {path_of('r-1')} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
            client.writer.write(head.encode() + b"%x\r\n" % len(body) + body + b"\r\n0\r\n\r\n")
        else:
            client.send("POST", path_of("r-1"), body)
        status, _, said = await client.answer()
        assert (status, json.loads(said)["errorType"]) == (413, "RequestEntityTooLarge")
        with pytest.raises(
            FunctionError, match=r"exceeded maximum allowed payload size \(6291456 bytes\)"
        ) as raised:
            await invoking
        assert raised.value.error_type == "Function.ResponseSizeTooLarge"
        again = await given_one(api, client, "r-2")
        assert (await client.call("POST", path_of("r-1"), body))[0] == 400
        assert (await client.call("POST", path_of("r-2"), b"1"))[0] == 202
        assert await again == b"1"


async def test_a_client_that_asks_before_it_sends_too_much_need_not_send_it() -> None:
    """Expect: 100-continue is answered by 413, and the connection is over."""
    async with served() as (api, port), client_of(port) as client:
        invoking = await given_one(api, client)
        head = (
            f"POST {path_of('r-1')} HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 99999999\r\n\r\n"
        )
        client.writer.write(head.encode())
        status, headers, _ = await client.answer()
        assert (status, headers["connection"]) == (413, "close")
        with pytest.raises(FunctionError, match="payload size"):
            await invoking
        assert await client.at_end()


async def test_a_client_that_asks_before_it_sends_is_told_to() -> None:
    """curl does so for bodies of a megabyte."""
    async with served() as (api, port), client_of(port) as client:
        invoking = await given_one(api, client)
        head = f"POST {path_of('r-1')} HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n"
        client.writer.write(head.encode())
        assert await asyncio.wait_for(client.reader.readuntil(b"\r\n\r\n"), 5) == b"HTTP/1.1 100 \r\n\r\n"
        client.writer.write(b"true")
        assert (await client.answer())[0] == 202
        assert await invoking == b"true"


def streamed(parts: list[bytes], **trailers: str) -> bytes:
    names = ", ".join(name.replace("_", "-") for name in trailers)
    head = f"POST {path_of('r-1')} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nTrailer: {names}\r\n"
    head += "Lambda-Runtime-Function-Response-Mode: streaming\r\n\r\n"
    ends = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in trailers.items())
    return (
        head.encode()
        + b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts)
        + f"0\r\n{ends}\r\n".encode()
    )


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


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"GET / HTTP/1.1\r\n" + b"x" * 1_300_000, 431),
        (b"GET / HTTP/1.1\r\n\r\n", 400),  # no host
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\r\n\r\n", 400),  # TLS
        (b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\n", 501),
        (b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", 400),
    ],
)
async def test_a_client_that_breaks_the_protocol_is_told_and_loses_its_connection(sent: bytes, status: int) -> None:
    """Another client's invocation goes on beside it."""
    async with served() as (api, port), client_of(port) as client, client_of(port) as broken:
        invoking = await given_one(api, client)
        broken.writer.write(sent)
        assert (await broken.answer())[0] == status
        assert await broken.at_end()
        assert (await client.call("POST", path_of("r-1"), b"1"))[0] == 202
        assert await invoking == b"1"


@pytest.mark.parametrize(
    "sent", [b"GET / HT", b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nab"], ids=["head", "body"]
)
async def test_a_client_that_is_too_slow_loses_its_connection(sent: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Heads and bodies have a time within which they are whole; a connection that is idle has none."""
    monkeypatch.setattr(runtime_api, "HEAD_SECONDS_MAX", 0.05)
    monkeypatch.setattr(runtime_api, "BODY_SECONDS_MAX", 0.05)
    async with served() as (_, port), client_of(port) as idle, client_of(port) as slow:
        slow.writer.write(sent)
        assert await slow.at_end()
        assert (await idle.call("GET", "/"))[0] == 404


async def test_the_response_of_the_current_invocation_has_until_its_deadline(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A function may stream its response for as long as it may run."""
    monkeypatch.setattr(runtime_api, "BODY_SECONDS_MAX", 0.01)
    async with served() as (api, port), client_of(port) as client, client_of(port) as slow:
        invoking = await given_one(api, client)
        begin = "HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\ntr"
        client.writer.write(f"POST {path_of('r-1')} {begin}".encode())
        slow.writer.write(f"POST {path_of('r-2')} {begin}".encode())
        assert await slow.at_end()
        client.writer.write(b"ue")
        assert (await client.answer())[0] == 202
        assert await invoking == b"true"


async def test_connections_are_bounded() -> None:
    """One more than the limit is closed at once; when one goes there is room again."""
    async with served() as (api, port), contextlib.AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(client_of(port)) for _ in range(runtime_api.CONNECTIONS_MAX)]
        await until(lambda: len(api._connections) == runtime_api.CONNECTIONS_MAX)
        async with client_of(port) as beyond:
            assert await beyond.at_end()
        await clients.pop().close()
        await until(lambda: len(api._connections) < runtime_api.CONNECTIONS_MAX)
        async with client_of(port) as again:
            assert (await again.call("GET", "/"))[0] == 404


async def test_who_is_not_admitted_gets_no_byte() -> None:
    """The question is asked with the connection's two ends, before anything is read."""
    asked: list[tuple[runtime_api.Address, runtime_api.Address]] = []

    async def nobody(peer: runtime_api.Address, own: runtime_api.Address) -> bool:
        asked.append((peer, own))
        return False

    async with served(nobody) as (_, port), client_of(port) as client:
        own = client.writer.get_extra_info("sockname")
        client.send("GET", NEXT)
        assert await client.at_end()
        assert asked == [(own, ("127.0.0.1", port))]


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


VALID = [
    f"GET {NEXT} HTTP/1.1\r\nHost: x\r\n\r\n".encode(),
    f"POST {path_of('r-1')} HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{{}}".encode(),
    f"POST {path_of('r-9', 'error')} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    + b"2\r\n{}\r\n0\r\n\r\n",
    f"POST {ROOT}init/error HTTP/1.0\r\nContent-Length: 0\r\n\r\n".encode(),
    b"CONNECT x:1 HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n",
]


@st.composite
def hostile(draw: st.DrawFn) -> list[bytes]:
    """Random bytes, or requests with bytes changed, left out and put in; in pieces."""
    data = bytearray(
        draw(st.one_of(st.binary(max_size=200), st.lists(st.sampled_from(VALID), max_size=3).map(b"".join)))
    )
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(data)))
        data[at : at + draw(st.integers(0, 4))] = draw(st.binary(max_size=4))
    cut = draw(st.integers(0, len(data)))
    return [bytes(data[:cut]), bytes(data[cut:])]


@settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(hostile(), min_size=1, max_size=4))
def test_no_bytes_break_the_server_or_a_neighbour(attacks: list[list[bytes]]) -> None:
    """While clients send anything at all, another's invocation is served; nothing stays behind."""

    async def attack(port: int, pieces: list[bytes]) -> None:
        async with client_of(port) as client:
            for piece in pieces:
                client.writer.write(piece)
                with contextlib.suppress(ConnectionError):
                    await client.writer.drain()

    async def run() -> None:
        faults: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: faults.append(context))
        async with served() as (api, port), client_of(port) as client:
            client.send("GET", NEXT)
            await asyncio.wait_for(api.initialised(), 5)
            await asyncio.gather(*(attack(port, pieces) for pieces in attacks))
            await until(lambda: len(api._connections) == 1)
            assert len(api._turns._waiting) == 1
            invoking = asyncio.create_task(api.invoke("r-2", deadline(), EVENT))
            assert (await client.answer())[2] == EVENT
            assert (await client.call("POST", path_of("r-2"), b"1"))[0] == 202
            assert await invoking == b"1"
        assert faults == []

    asyncio.run(run())


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


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def test_descriptors_do_not_pile_up() -> None:
    """Many servers with many connections later there are as many open files as before."""
    before = open_files()
    for _ in range(20):
        async with served() as (api, port):
            clients = [await Client.to(port) for _ in range(5)]
            clients[0].send("GET", NEXT)
            await asyncio.wait_for(api.initialised(), 5)
        for client in clients:
            await client.close()
    assert open_files() == before


@pytest.mark.parametrize("way", ["_by_netlink", "_by_table"])
def test_the_other_end_of_a_connection_is_found(way: str) -> None:
    """Both ways of asking the kernel give user and inode of the peer's socket, and nothing once it is gone."""
    find = getattr(peers, way)
    with socket.create_server(("127.0.0.1", 0)) as server:
        with socket.create_connection(server.getsockname()) as ours:
            accepted, _ = server.accept()
            inode = os.fstat(ours.fileno()).st_ino
            assert find(ours.getsockname(), server.getsockname()) == (os.geteuid(), inode)
            assert peers.peer_inode(ours.getsockname(), server.getsockname()) == inode
            assert peers.holds(os.getpid(), inode)
            assert peers.session_holds(os.getsid(0), inode)
            assert not peers.holds(os.getppid(), inode)
            assert not peers.session_holds(-1, inode)
            peer = ours.getsockname()
        accepted.close()
        assert peers.peer_inode(peer, server.getsockname()) == 0


def test_where_netlink_is_missing_the_table_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some containers have no sock_diag."""
    monkeypatch.setattr(peers, "_by_netlink", lambda peer, own: None)
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as ours:
        assert peers.peer_inode(ours.getsockname(), server.getsockname()) == os.fstat(ours.fileno()).st_ino


async def test_a_body_without_end_is_not_read_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is too large is read so far and no further; little of it is held meanwhile."""
    monkeypatch.setattr(runtime_api, "DISCARD_BYTES_MAX", 3 * PAYLOAD_BYTES_MAX)
    async with served() as (api, port), client_of(port) as client, client_of(port) as endless:
        invoking = await given_one(api, client)
        head = f"POST {path_of('r-1')} HTTP/1.1\r\nHost: x\r\nContent-Length: 999999999999\r\n\r\n"
        endless.writer.write(head.encode())
        tracemalloc.start()
        try:
            with contextlib.suppress(ConnectionError):
                while not invoking.done():
                    endless.writer.write(b"x" * 65536)
                    await endless.writer.drain()
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak < 2 * PAYLOAD_BYTES_MAX
        with pytest.raises(FunctionError, match="payload size"):
            await invoking
        with contextlib.suppress(ConnectionError):
            assert (await endless.answer())[0] == 413
        endless.writer.transport.abort()
