"""Environments for Python handlers: a process of its own each, spoken to over a socket pair.

Not here: the program at the other end (`child`), what the frames look like (`wire`), how a process starts and ends
(`process`), and how many there are and how long they may take (`pool`).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import random
import signal
import socket
import sys
import time
from collections import deque
from pathlib import Path
from typing import Any

from engine.errors import FunctionError
from functions.environments import wire
from functions.environments.contract import PAYLOAD_BYTES_MAX, FunctionSpec, LogSink, Reply, Request, Times
from functions.environments.process import Process, Spawner, spawner

log = logging.getLogger("headrace.functions")

_READ_BYTES = 256 * 1024
#: The socket's buffers: a batch of common size goes without waiting (the system may allow less).
_SOCKET_BYTES = 1024 * 1024
#: An error's frames are in the body too, each of them bounded.
_BODY_BYTES_MAX = 4 * PAYLOAD_BYTES_MAX

EXIT_ERROR = "Runtime.ExitError"


def variables_of(spec: FunctionSpec, log: LogSink) -> dict[str, str]:
    """The environment variables of a process: the engine's but its own, AWS's, and last the user's.

    Names and values as on AWS (developer guide, "Defined runtime environment variables").
    """
    stream = f"{time.strftime('%Y/%m/%d', time.gmtime())}/[$LATEST]{random.getrandbits(128):032x}"
    given = {name: value for name, value in os.environ.items() if not name.startswith("HEADRACE_")}
    return {
        **given,
        "_HANDLER": spec.handler or "",
        "AWS_DEFAULT_REGION": spec.region,
        "AWS_EXECUTION_ENV": f"AWS_Lambda_python{sys.version_info.major}.{sys.version_info.minor}",
        "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": str(spec.memory_size_mb),
        "AWS_LAMBDA_FUNCTION_NAME": spec.name,
        "AWS_LAMBDA_FUNCTION_VERSION": "$LATEST",
        "AWS_LAMBDA_INITIALIZATION_TYPE": "on-demand",
        "AWS_LAMBDA_LOG_GROUP_NAME": getattr(log, "group_name", f"/aws/lambda/{spec.name}"),
        "AWS_LAMBDA_LOG_STREAM_NAME": getattr(log, "name", stream),
        "AWS_REGION": spec.region,
        "LAMBDA_RUNTIME_DIR": str(Path(__file__).parent),
        "LAMBDA_TASK_ROOT": str(spec.root),
        "LANG": "en_US.UTF-8",
        # Two versions of a module within one second would share their bytecode.
        "PYTHONDONTWRITEBYTECODE": "1",
        "TZ": "UTC",
        **spec.variables,
    }


class PythonStarter:
    """A `contract.Starter` for Python handlers. All of them share the engine's spawner."""

    def __init__(self, processes: Spawner | None = None) -> None:
        self._spawner = processes

    async def start(self, spec: FunctionSpec, log: LogSink) -> PythonEnvironment:
        """Raises FunctionError with the init fault, and OSError where the system has no room for a process."""
        if not spec.root.is_dir():
            raise FunctionError(
                f"the function's folder {str(spec.root)!r} is no folder", "Runtime.InvalidWorkingDir"
            )
        ours, theirs = socket.socketpair()
        try:
            ours.setblocking(False)
            for end, option in ((ours, socket.SO_SNDBUF), (theirs, socket.SO_SNDBUF)):
                end.setsockopt(socket.SOL_SOCKET, option, _SOCKET_BYTES)
            child = str(Path(__file__).with_name("child.py"))
            descriptor = theirs.detach()
            process = await (self._spawner or spawner()).start(
                [sys.executable, "-P", child, str(descriptor), str(os.getpid()), spec.arn],
                root=spec.root,
                variables=variables_of(spec, log),
                log=log,
                inherited=(descriptor,),
            )
        except BaseException:
            ours.close()
            theirs.close()
            raise
        environment = PythonEnvironment(process, ours)
        try:
            await environment.initialised()
        except BaseException:
            await environment.kill()
            raise
        return environment


class PythonEnvironment:
    """A `contract.Environment`: one process that calls one Python handler."""

    def __init__(self, process: Process, connection: socket.socket) -> None:
        self._process = process
        self._socket = connection
        self._loop = asyncio.get_running_loop()
        self._replies = wire.Replies(_BODY_BYTES_MAX)
        self._unsent: deque[wire.Buffer] = deque()
        self._is_sending = False
        self._is_lost = False
        self._request_id: str | None = ""  # what is waited for; "" is the end of initialisation
        self._answer: asyncio.Future[tuple[dict[str, Any], bytes]] = self._loop.create_future()
        self._loop.add_reader(connection.fileno(), self._read)
        process.ended.add_done_callback(self._ended)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        return self._process.is_alive and not self._is_lost

    def memory_bytes(self) -> int:
        return self._process.memory_bytes()

    async def initialised(self) -> None:
        """Wait for the end of the init phase. Raises FunctionError."""
        header, body = await self._answer
        if header.get("error"):
            raise _error(body)

    async def invoke(self, request: Request) -> Reply:
        if not self.is_alive:
            self._process.end()
            raise exit_fault(await asyncio.shield(self._process.ended))
        assert self._request_id is None, "an environment takes one invocation at a time"
        try:
            frame = wire.request_frame(request)
        except ValueError as error:
            raise FunctionError(str(error), "RequestEntityTooLargeException") from None
        self._request_id = request.request_id
        self._answer = self._loop.create_future()
        began = time.perf_counter_ns()
        self._unsent.extend(frame)
        self._send()
        header, body = await self._answer
        took = time.perf_counter_ns() - began
        if header.get("error"):
            raise _error(body)
        return Reply(body, header.get("typed") is True, _times(took, header.get("times")))

    async def kill(self) -> None:
        await self._process.kill()

    def _send(self) -> None:
        """Send as much as the socket takes, and the rest when it takes more."""
        while self._unsent:
            try:
                sent = self._socket.sendmsg(self._unsent)
            except BlockingIOError:
                if not self._is_sending:
                    self._is_sending = True
                    self._loop.add_writer(self._socket.fileno(), self._send)
                return
            except OSError:  # the process is ending, which is heard of elsewhere
                self._process.end()
                self._unsent.clear()
                break
            while self._unsent and sent >= len(self._unsent[0]):
                sent -= len(self._unsent.popleft())
            if sent:
                self._unsent[0] = memoryview(self._unsent[0])[sent:]
        if self._is_sending:
            self._is_sending = False
            self._loop.remove_writer(self._socket.fileno())

    def _read(self) -> bool:
        """Take what has arrived; false when there was nothing, or nothing more will come."""
        try:
            data = self._socket.recv(_READ_BYTES)
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        if not data:  # it has ended, or has closed what it must not
            self._is_lost = True
            self._loop.remove_reader(self._socket.fileno())
            self._loop.call_later(_LAST_WORDS_SECONDS, self._process.end)
            return False
        try:
            reply = self._replies.take(data)
            if reply is None:
                return True
            if reply[0].get("id") != self._request_id or self._answer.done():
                raise wire.ProtocolError(f"a reply to {str(reply[0].get('id'))[:64]!r}, which nobody waits for")
        except wire.ProtocolError as error:
            log.warning("environment %d is ended: it sent %s", self.pid, error)
            self._loop.remove_reader(self._socket.fileno())
            self._process.end()
            return False
        self._request_id = None
        self._process.read_output()  # what was printed before the answer belongs to it
        self._answer.set_result(reply)
        return True

    def _ended(self, ended: asyncio.Future[int]) -> None:
        while not self._answer.done() and not self._is_lost and self._read():
            pass  # what it said before it ended counts: the fault of its initialisation, for one
        self._loop.remove_reader(self._socket.fileno())
        if self._is_sending:
            self._loop.remove_writer(self._socket.fileno())
        self._socket.close()
        self._unsent.clear()
        if not self._answer.done():
            self._answer.set_exception(exit_fault(ended.result()))
            self._answer.exception()  # nobody may wait any more


#: A process that has closed its end of the socket is ending in most cases, and its exit code is worth having.
_LAST_WORDS_SECONDS = 0.5


def _error(body: bytes) -> FunctionError:
    """What a handler raised, as far as it can be believed."""
    with contextlib.suppress(ValueError, KeyError, TypeError):
        given = json.loads(body)
        return FunctionError(
            str(given["errorMessage"]), str(given["errorType"]), [str(line) for line in given["stackTrace"]]
        )
    return FunctionError("the environment reported an error that cannot be read", "Runtime.Unknown")


def _times(took_ns: int, inside: object) -> Times | None:
    """How an invocation's time was spent; what the process does not tell counts as transfer."""
    if not (isinstance(inside, list) and len(inside) == 3 and all(isinstance(each, int) for each in inside)):
        return None
    build, handler, encode = (each / 1e6 for each in inside)
    return Times(took_ns / 1e6 - build - handler - encode, build, handler, encode)


def exit_fault(status: int) -> FunctionError:
    """AWS's fault for a process that ended; ``status`` is its exit code, or minus the signal that ended it."""
    if status == 0:
        return FunctionError("Runtime exited without providing a reason", EXIT_ERROR)
    reason = f"exit status {status}"
    if status < 0:
        reason = f"signal: {(signal.strsignal(-status) or str(-status)).lower()}"
    return FunctionError(f"Runtime exited with error: {reason}", EXIT_ERROR)
