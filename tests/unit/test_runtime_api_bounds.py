"""The Runtime API against what no client should do: too much, too slow, too many, or no HTTP at all.

Over real sockets; what clients do is in test_runtime_api.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.errors import FunctionError
from functions.environments import runtime_api
from functions.environments.contract import PAYLOAD_BYTES_MAX
from tests.forms import examples
from tests.unit.runtime_api_client import (
    EVENT,
    NEXT,
    ROOT,
    Client,
    client_of,
    deadline,
    given_one,
    path_of,
    served,
    until,
)


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


@settings(
    max_examples=examples(60, 3_000), deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
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
