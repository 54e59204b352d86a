"""The page's server: a thread with an event loop of its own, so that the engine never waits for a browser.

Started and closed from the engine's loop; both are bounded in time, whoever listens. Not here: what is answered
(`app`), and who may ask (`security`).
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import socket
import struct
import threading

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from engine.config_serving import WebConfig
from engine.errors import ExternalError, UserError
from engine.web.app import build_app
from engine.web.events import TICK_SECONDS, Hub
from engine.web.history import STEP_SECONDS, HistoryRing
from engine.web.security import Gate, Guard, token_of
from engine.web.view import EngineView

log = logging.getLogger("headrace.web")

#: Ports after a taken one that are tried before any free one is.
PORTS_TRIED = 20

CONNECTIONS_MAX = 256
BACKLOG = 128

#: Of a request line with its headers.
HEAD_BYTES_MAX = 32_768

#: A connection without a whole head of a request, the first or a later one, is closed after so long; one that is
#: idle between two, too.
HEAD_SECONDS_MAX = 15.0
IDLE_SECONDS_MAX = 15

#: A client that takes nothing of its answer is left after so long; it is looked three times in it.
TAKE_SECONDS_MAX = 30.0

START_SECONDS_MAX = 10.0

LINGER_NOT = struct.pack("ii", 1, 0)

#: Closing: for answers under way, for the view, and for all of it.
GRACE_SECONDS_MAX = 1
VIEW_CLOSE_SECONDS_MAX = 2.0
CLOSE_SECONDS_MAX = 5.0


class WebServer:
    """Serves ``view``. Raises UserError where ``settings`` ask for an address that needs a token, and have none."""

    def __init__(
        self,
        view: EngineView,
        settings: WebConfig,
        *,
        tick_seconds: float = TICK_SECONDS,
        step_seconds: float = STEP_SECONDS,
    ) -> None:
        self._view = view
        self._settings = settings
        self._tick_seconds = tick_seconds
        self._step_seconds = step_seconds
        self.token = token_of(settings)
        self.url = ""
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping: asyncio.Event | None = None
        self._started = threading.Event()
        self._fault: BaseException | None = None

    async def start(self) -> str:
        """Listen; the URL, without any token. Raises UserError for an address that cannot be listened at."""
        assert self._thread is None, "the server is started already"
        listener = await asyncio.to_thread(bound, self._settings.host, self._settings.port)
        host, port = listener.getsockname()[:2]
        self.url = f"http://{_shown(host)}:{port}"
        self._thread = threading.Thread(target=self._work, args=(listener, port), name="headrace-web", daemon=True)
        self._thread.start()
        if not await asyncio.to_thread(self._started.wait, START_SECONDS_MAX) or self._fault is not None:
            raise ExternalError(f"the page at {self.url} has not started: {self._fault or 'no answer'}")
        if self._settings.port not in (0, port):
            log.warning("port %d is taken by another program", self._settings.port)
        log.info("the page is at %s%s", self.url, " (it asks for the token)" if self.token else "")
        return self.url

    async def close(self) -> None:
        """End all answers, queries and connections. Takes at most `CLOSE_SECONDS_MAX`. Idempotent."""
        thread, self._thread = self._thread, None
        if thread is None:
            return
        if self._loop is not None and self._stopping is not None:
            with contextlib.suppress(RuntimeError):  # the loop has ended by itself
                self._loop.call_soon_threadsafe(self._stopping.set)
        await asyncio.to_thread(thread.join, CLOSE_SECONDS_MAX)
        if thread.is_alive():
            log.warning("the page's server has not ended within %g s; leaving it", CLOSE_SECONDS_MAX)

    # What follows runs in the server's thread.

    def _work(self, listener: socket.socket, port: int) -> None:
        try:
            with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
                runner.run(self._serve(listener, port))
        except BaseException as error:
            self._fault = error
            log.exception("the page's server has ended")
        finally:
            listener.close()
            self._started.set()

    async def _serve(self, listener: socket.socket, port: int) -> None:
        self._loop, self._stopping = asyncio.get_running_loop(), asyncio.Event()
        hub = Hub(self._view, tick_seconds=self._tick_seconds)
        history = HistoryRing(self._step_seconds)
        gate = Gate(self.token, cookie=f"headrace-{port}")  # browsers do not tell ports of one host apart
        server = _server(self._application(gate, hub, history))
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        beside = [
            asyncio.create_task(hub.run()),
            asyncio.create_task(self._sample(history)),
            asyncio.create_task(_leave_who_takes_nothing(server)),
        ]
        stopping = asyncio.create_task(self._stopping.wait())
        self._started.set()  # it listens already; who comes now is answered a moment later
        try:
            await asyncio.wait({serving, stopping, *beside}, return_when=asyncio.FIRST_COMPLETED)
            hub.close()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(VIEW_CLOSE_SECONDS_MAX):
                    await self._view.close()
            server.should_exit = True
            await serving
        finally:
            for connection in list(server.server_state.connections):
                if isinstance(connection, _Protocol):
                    connection.abort()
            for task in (*beside, stopping):
                task.cancel()
            ended = await asyncio.gather(*beside, stopping, return_exceptions=True)
        for outcome in ended:
            if isinstance(outcome, Exception):
                raise outcome

    def _application(self, gate: Gate, hub: Hub, history: HistoryRing) -> ASGIApp:
        app = build_app(self._view, self._settings, gate, hub, history)
        return Guard(app, gate, host=self._settings.host, names=self._settings.names)

    async def _sample(self, history: HistoryRing) -> None:
        """Keep the history, whether anybody looks or not."""
        while True:
            if (moment := self._view.status()) is not None:
                history.add(moment)
            await asyncio.sleep(min(1.0, self._step_seconds))


async def _leave_who_takes_nothing(server: uvicorn.Server) -> None:
    """Without an end. An answer that was handed over whole waits in memory, and would do so for ever."""
    while True:
        await asyncio.sleep(TAKE_SECONDS_MAX / 3)
        for connection in list(server.server_state.connections):
            if isinstance(connection, _Protocol):
                connection.look()


def _server(app: ASGIApp) -> uvicorn.Server:
    config = uvicorn.Config(
        app,
        http=_Protocol,
        ws="none",
        lifespan="off",
        log_config=None,
        log_level=logging.ERROR,  # what clients send wrong is a warning of uvicorn's, for each of their requests
        access_log=False,
        proxy_headers=False,
        server_header=False,
        backlog=BACKLOG,
        timeout_keep_alive=IDLE_SECONDS_MAX,
        timeout_graceful_shutdown=GRACE_SECONDS_MAX,
        h11_max_incomplete_event_size=HEAD_BYTES_MAX,
    )
    return uvicorn.Server(config)


class _Protocol(H11Protocol):
    """uvicorn's, with bounds: on connections, on the time to a request, on leaving what is never taken."""

    _head: asyncio.TimerHandle | None = None  # until the head that has begun is whole
    _left = 0  # of what was sent and not taken, when it was last looked
    _looks = 0  # at nothing being taken

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > CONNECTIONS_MAX:
            transport.abort()
            return
        self._head = self.loop.call_later(HEAD_SECONDS_MAX, self.abort)

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_is_whole()
        super().connection_lost(exc)

    def handle_events(self) -> None:
        super().handle_events()
        if self.scope is not None:
            self.scope["headrace.abort"] = self.abort  # type: ignore[typeddict-unknown-key]
        if self.conn.their_state is not h11.IDLE:
            self._head_is_whole()
        elif self._head is None and self.conn.trailing_data[0]:
            self._head = self.loop.call_later(HEAD_SECONDS_MAX, self.abort)

    def look(self) -> None:
        """Abort where the client has taken nothing for three looks."""
        left = self.transport.get_write_buffer_size()
        self._looks = self._looks + 1 if left and left == self._left else 0
        self._left = left
        if self._looks >= 3:
            self.abort()

    def _head_is_whole(self) -> None:
        if self._head is not None:
            self._head.cancel()
            self._head = None

    def abort(self) -> None:
        """Let go of the connection now, with all that is not sent: in the kernel it would wait for its client."""
        with contextlib.suppress(OSError):
            self.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_NOT)
        self.transport.abort()


def bound(host: str, port: int) -> socket.socket:
    """A listening socket at the port, or at the next free one; 0 is any. Raises UserError, ExternalError."""
    ports = [port, *range(port + 1, min(port + PORTS_TRIED, 65_536)), 0] if port else [0]
    try:
        family, _, _, _, address = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise UserError(f"web.host = {host!r} is no address of this machine: {error.strerror}") from None
    for each in ports:
        listener = socket.socket(family, socket.SOCK_STREAM)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((address[0], each, *address[2:]))
            listener.listen(BACKLOG)
            listener.setblocking(False)
        except OSError as error:
            listener.close()
            if error.errno == errno.EADDRINUSE or (error.errno == errno.EACCES and each != port):
                continue
            raise UserError(
                f"the page cannot listen at web.host = {host!r}, port {each}: {error.strerror}",
                hint="give web.host an address of this machine, and web.port a number above 1023",
            ) from None
        return listener
    raise ExternalError(f"no port at {host} is free")


def _shown(host: str) -> str:
    """The host as a browser of this machine has it."""
    local = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - compared, not bound
    return f"[{local}]" if ":" in local else local
