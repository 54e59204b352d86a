"""The Lambda Runtime API, version 2018-06-01, served to one execution environment over HTTP/1.1 on loopback.

A runtime asks for the next invocation, which blocks until there is one, and posts a response or an error for
it (AWS's developer guide, "Using the Lambda runtime API"). Not here: whose turn it is (`turns`), processes
(`provided`) and who may connect (`peers`).

Nothing that a client sends is believed: heads, bodies, connections and the time that they take are bounded, and a
client that breaks the protocol loses its connection and nothing else.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final

import h11

from engine.errors import FunctionError
from functions.environments.contract import PAYLOAD_BYTES_MAX
from functions.environments.inside import trace_id
from functions.environments.turns import Invocation, Turns, out_of_turn, refusal, reported

log = logging.getLogger("headrace.functions")

#: The runtime interface clients put the cause of an error for X-Ray, up to 1 MB, into a header.
HEAD_BYTES_MAX = 1024 * 1024 + 64 * 1024
HEAD_SECONDS_MAX = 10.0
BODY_SECONDS_MAX = 60.0
SEND_SECONDS_MAX = 60.0
#: A body that is too large is read so far, so that the client gets to read why it was refused.
DISCARD_BYTES_MAX = 64 * 1024 * 1024
SMALL_BODY_BYTES_MAX = 64 * 1024
#: What a client may send ahead while it waits for an invocation.
AHEAD_BYTES_MAX = 64 * 1024
CONNECTIONS_MAX = 64
_READ_BYTES = 256 * 1024

_ROOT: Final = b"/2018-06-01/runtime/"
_JSON: Final = b"application/json"
_ERROR_TYPE: Final = b"lambda-runtime-function-error-type"
_ERROR_BODY: Final = b"lambda-runtime-function-error-body"

Headers = Sequence[tuple[bytes, bytes]]
Address = tuple[str, int]

#: Whether a connection from the first address to the second may talk.
Admits = Callable[[Address, Address], Awaitable[bool]]


class RuntimeApi:
    """The API of one environment, on a port of its own.

    ``admits`` is asked about each connection. Belongs to the running event loop; `close` ends all connections.
    """

    def __init__(self, *, arn: str, admits: Admits) -> None:
        self._arn = arn
        self._admits = admits
        self._turns = Turns()
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()

    async def open(self) -> str:
        """Listen on 127.0.0.1; ``host:port`` for AWS_LAMBDA_RUNTIME_API."""
        self._server = await asyncio.start_server(
            self._connected, "127.0.0.1", 0, limit=_READ_BYTES, backlog=CONNECTIONS_MAX
        )
        host, port = self._server.sockets[0].getsockname()
        return f"{host}:{port}"

    async def initialised(self) -> None:
        """Return at the first ``next``. Raises the fault of ``init/error``, or of `fail`."""
        fault = await asyncio.shield(self._turns.initialised)
        if fault is not None:
            raise fault

    async def invoke(self, request_id: str, deadline_ms: int, event: bytes, trace: str | None = None) -> bytes:
        """The body of the runtime's response to ``event``. Raises FunctionError; one call at a time."""
        if self._turns.fault is not None:
            raise self._turns.fault
        answer: asyncio.Future[bytes | FunctionError] = asyncio.get_running_loop().create_future()
        header = (trace or trace_id()).encode()
        self._turns.begin(Invocation(request_id.encode(), deadline_ms, event, answer, header))
        try:
            answered = await answer
        finally:
            self._turns.end()
        if isinstance(answered, FunctionError):
            raise answered
        return answered

    def fail(self, fault: FunctionError) -> None:
        """The process has ended: so does the invocation under way, and there are no more."""
        self._turns.fail(fault)

    async def settled(self) -> None:
        """Return once the runtime has asked for the next invocation, or has failed."""
        await self._turns.settling()

    async def drained(self, seconds_max: float) -> None:
        """Wait until what connections have sent is taken in and they are closed: for a process that has ended."""
        if self._connections:
            await asyncio.wait(self._connections, timeout=seconds_max)

    async def close(self) -> None:
        """Stop to listen and end all connections. Idempotent."""
        if self._server is not None:
            self._server.close()
        while self._connections:
            for task in self._connections:
                task.cancel()
            await asyncio.wait(self._connections)
        if self._server is not None:
            await self._server.wait_closed()
            self._server = None

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._connections) >= CONNECTIONS_MAX:
            writer.transport.abort()
            return
        task = asyncio.get_running_loop().create_task(self._serve(reader, writer))
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, from its first byte to its last; nothing that happens to it leaves here."""
        try:
            peer, own = writer.get_extra_info("peername"), writer.get_extra_info("sockname")
            if not await self._admits(peer, own):
                log.warning("the Runtime API of %s refused a process outside of its environment", self._arn)
                return
            await _Connection(self._turns, self._arn.encode(), reader, writer).serve()
            writer.close()
            async with asyncio.timeout(SEND_SECONDS_MAX):
                await writer.wait_closed()
        except (OSError, TimeoutError, asyncio.CancelledError):
            pass  # the client is gone or too slow, or this server closes; there is nobody to tell
        except Exception:
            log.exception("a connection to the Runtime API of %s failed", self._arn)
        finally:
            writer.transport.abort()


class _Gone(ConnectionError):
    """The client has closed its end."""


class _Connection:
    """One client: requests one after the other, each read whole before it is answered."""

    def __init__(
        self, turns: Turns, arn: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._turns = turns
        self._arn = arn
        self._reader = reader
        self._writer = writer
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=HEAD_BYTES_MAX)
        self._now = asyncio.get_running_loop().time
        self._method = b""

    async def serve(self) -> None:
        try:
            while await self._exchange():
                self._http.start_next_cycle()
        except h11.RemoteProtocolError as error:
            if self._http.our_state in (h11.IDLE, h11.SEND_RESPONSE):
                await self._reply(error.error_status_hint, refusal("InvalidRequest", str(error)))

    async def _exchange(self) -> bool:
        """One request and its answer; whether the connection can take another."""
        if not self._http.trailing_data[0]:
            data = await self._reader.read(_READ_BYTES)
            if not data:
                return False
            self._http.receive_data(data)
        request = await self._event(self._now() + HEAD_SECONDS_MAX)
        if not isinstance(request, h11.Request):
            return False
        self._method = request.method
        route = _Route.of(request.target)
        # A response may be streamed as it comes about.
        seconds_max = max(BODY_SECONDS_MAX, self._turns.seconds_left(route.request_id))
        body, trailers = await self._body(request, route.body_bytes_max, self._now() + seconds_max)
        if route.method is None:
            await self._reply(404, refusal("NotFound", "the Runtime API 2018-06-01 has no such resource"))
        elif request.method != route.method:
            allow = ((b"Allow", route.method),)
            await self._reply(405, refusal("MethodNotAllowed", f"use {route.method.decode()}"), allow)
        elif route.name == b"invocation/next":
            await self._next()
        else:
            await self._reply(*self._posted(route, dict(request.headers), body, dict(trailers)))
        return self._http.our_state is h11.DONE and self._http.their_state is h11.DONE

    async def _next(self) -> None:
        if self._turns.fault is not None:
            await self._reply(403, out_of_turn("the environment has failed"))
            return
        waiter = self._turns.asked()
        try:
            if not waiter.done():
                await self._wait_or_gone(waiter)
            invocation = waiter.result()
            headers = (
                (b"Lambda-Runtime-Aws-Request-Id", invocation.request_id),
                (b"Lambda-Runtime-Deadline-Ms", b"%d" % invocation.deadline_ms),
                (b"Lambda-Runtime-Invoked-Function-Arn", self._arn),
                (b"Lambda-Runtime-Trace-Id", invocation.trace),
            )
            await self._reply(200, invocation.event, headers)
        except BaseException:
            self._turns.undelivered(waiter)
            raise

    async def _wait_or_gone(self, waiter: asyncio.Future[Invocation]) -> None:
        """Wait without limit, but not for a client that has closed its end."""
        while len(self._http.trailing_data[0]) < AHEAD_BYTES_MAX:
            reading = asyncio.ensure_future(self._reader.read(AHEAD_BYTES_MAX))
            try:
                await asyncio.wait((waiter, reading), return_when=asyncio.FIRST_COMPLETED)
            finally:
                reading.cancel()
                await asyncio.wait((reading,))  # a reader takes one call at a time
            if not reading.cancelled():
                data = reading.result()
                if not data:
                    raise _Gone
                self._http.receive_data(data)
            if waiter.done():
                return
        await asyncio.wait((waiter,))

    def _posted(
        self, route: _Route, given: dict[bytes, bytes], body: bytes | None, trailers: dict[bytes, bytes]
    ) -> tuple[int, bytes]:
        """What to say to a response or an error. ``body`` is None when it was too large."""
        if route.name == b"init/error":
            fault = reported(body or b"", given.get(_ERROR_TYPE), default="Runtime.Unknown")
            return self._turns.init_failed(fault)
        answer: bytes | FunctionError
        if route.name == b"error":
            answer = reported(body or b"", given.get(_ERROR_TYPE), default="Function.Unknown")
        elif body is None:
            message = f"Response payload size exceeded maximum allowed payload size ({PAYLOAD_BYTES_MAX} bytes)."
            answer = FunctionError(message, "Function.ResponseSizeTooLarge")
        elif _ERROR_TYPE in trailers or _ERROR_BODY in trailers:
            answer = reported(
                _decoded(trailers.get(_ERROR_BODY)), trailers.get(_ERROR_TYPE), default="Function.Unknown"
            )
        else:
            answer = body
        status, text = self._turns.answered(route.request_id, answer)
        if status == 202 and body is None:
            message = f"Exceeded maximum allowed payload size ({PAYLOAD_BYTES_MAX} bytes)."
            return 413, refusal("RequestEntityTooLarge", message)
        return status, text

    async def _body(self, request: h11.Request, bytes_max: int, until: float) -> tuple[bytes | None, Headers]:
        """The request's body, or None if it is larger than ``bytes_max``, and what follows it."""
        announced = int(dict(request.headers).get(b"content-length", b"0"))
        if announced > bytes_max and self._http.they_are_waiting_for_100_continue:
            return None, ()  # it need not be sent
        parts: list[bytes | bytearray] = []
        size = 0
        while True:
            event = await self._event(until)
            if isinstance(event, h11.Data):
                size += len(event.data)
                if size <= bytes_max:
                    parts.append(event.data)
                else:
                    parts.clear()
                if size > DISCARD_BYTES_MAX:
                    return None, ()
            elif isinstance(event, h11.EndOfMessage):
                return b"".join(parts) if size <= bytes_max else None, list(event.headers)
            else:
                raise _Gone

    async def _event(self, until: float) -> object:
        """The next event, waiting for the client until ``until`` on the loop's clock."""
        while True:
            event = self._http.next_event()
            if event is not h11.NEED_DATA:
                return event
            if self._http.they_are_waiting_for_100_continue:
                go_on = self._http.send(h11.InformationalResponse(status_code=100, headers=[]))
                self._writer.write(go_on or b"")
            async with asyncio.timeout_at(until):
                data = await self._reader.read(_READ_BYTES)
            self._http.receive_data(data)  # none is the end: h11 says whether it may be

    async def _reply(self, status: int, body: bytes, headers: Headers = ()) -> None:
        framing = [(b"Content-Type", _JSON), (b"Content-Length", b"%d" % len(body))]
        if self._http.their_state is not h11.DONE:
            framing.append((b"Connection", b"close"))  # the rest of the request is not read
        head = self._http.send(h11.Response(status_code=status, headers=[*framing, *headers])) or b""
        pieces = [head]
        if self._method != b"HEAD":
            pieces += self._http.send_with_data_passthrough(h11.Data(data=body)) or []
        self._http.send(h11.EndOfMessage())
        self._writer.writelines(pieces)
        async with asyncio.timeout(SEND_SECONDS_MAX):
            await self._writer.drain()


@dataclass(frozen=True, slots=True)
class _Route:
    """A resource: the ``method`` that it takes (None: there is no such resource)."""

    name: bytes
    method: bytes | None
    request_id: bytes = b""

    @property
    def body_bytes_max(self) -> int:
        return PAYLOAD_BYTES_MAX if self.method == b"POST" else SMALL_BODY_BYTES_MAX

    @staticmethod
    def of(target: bytes) -> _Route:
        path = target.partition(b"?")[0]
        if not path.startswith(_ROOT):
            return _Route(path, None)
        name = path.removeprefix(_ROOT)
        if name == b"invocation/next":
            return _Route(name, b"GET")
        if name == b"init/error":
            return _Route(name, b"POST")
        match name.split(b"/"):
            case [b"invocation", request_id, (b"response" | b"error") as last] if request_id:
                return _Route(last, b"POST", request_id)
        return _Route(name, None)


def _decoded(text: bytes | None) -> bytes:
    try:
        return base64.b64decode(text or b"", validate=True)
    except binascii.Error:
        return b""
