"""A client of the Runtime API that is as raw as needed, and a server for it: what its tests share.

No test is here, and no client of AWS's.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from typing import Any

import h11

from functions.environments import runtime_api
from functions.environments.runtime_api import RuntimeApi

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
