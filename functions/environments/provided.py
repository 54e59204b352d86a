"""Environments of any language: a command that speaks the Lambda Runtime API (AWS's "provided" runtimes).

The command runs in a session of its own below the function's root, with AWS's environment variables, and is served
by a `runtime_api.RuntimeApi` of its own. Its init phase ends with its first request for an invocation. Not here:
the API itself, how a process starts and ends (`process`), Python handlers without a client (`python`), and how many
environments there are (`pool`).
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import json
import logging
import os
import shutil
import signal
import sys
from pathlib import Path

import orjson

from engine.errors import FunctionError
from functions.environments import peers, python
from functions.environments.contract import FunctionSpec, LogSink, Reply, Request
from functions.environments.process import Process, Spawner, spawner
from functions.environments.runtime_api import RuntimeApi

log = logging.getLogger("headrace.functions")

#: After the end of a process: for what it had sent before.
LAST_WORDS_SECONDS_MAX = 1.0
#: After an invocation that failed: for the runtime to ask for more, or to end, as many do.
SETTLE_SECONDS_MAX = 1.0
#: Batches of more bytes become JSON in a thread.
INLINE_BYTES_MAX = 32 * 1024

#: Becomes the command, in a process that the kernel kills with the thread that started it, warden or not.
_LAUNCHER = """\
import ctypes, os, sys
parent = int(sys.argv[1])
ctypes.CDLL(None).prctl(1, 9)
if os.getppid() != parent:
    os._exit(1)
try:
    os.execvp(sys.argv[2], sys.argv[2:])
except OSError as error:
    print(f"{sys.argv[2]}: {error.strerror}", file=sys.stderr, flush=True)
    os._exit(126)
"""


def event_json(request: Request) -> bytes:
    """The event of a request, as a runtime in another process gets it."""
    kind = importlib.import_module(f"functions.kinds.{request.kind}")
    batch = request.batch
    columns = [batch.records.column(i).to_pylist() for i in range(batch.records.num_columns)]
    event = {**kind.build_event(request.envelope, batch.partition, *columns), **request.extra}
    try:
        return orjson.dumps(event)
    except TypeError:  # integers beyond 64 bits, which a record's own JSON may have
        return json.dumps(event, separators=(",", ":"), ensure_ascii=False).encode()


def variables_of(spec: FunctionSpec, log: LogSink, address: str) -> dict[str, str]:
    """The environment variables of a command, the user's last: those of Python environments, and the API's address.

    PATH begins with the folder of headrace's own Python, so that ``python -m awslambdaric`` finds what is installed
    there, and no proxy is asked for loopback. AWS_EXECUTION_ENV is absent, as on AWS for provided runtimes.
    """
    given = python.variables_of(spec, log)
    given.pop("AWS_EXECUTION_ENV", None)
    given["PATH"] = os.pathsep.join((str(Path(sys.executable).parent), given.get("PATH", os.defpath)))
    for name in ("NO_PROXY", "no_proxy"):
        given[name] = ",".join(part for part in (given.get(name), "127.0.0.1") if part)
    return {**given, **spec.variables, "AWS_LAMBDA_RUNTIME_API": address}


def command_of(spec: FunctionSpec, path: str | None) -> list[str]:
    """What to start. Raises FunctionError for a folder or a program that is not there.

    A program that is named with a "/" is looked for below the function's root, any other in ``path``.
    """
    if not spec.root.is_dir():
        raise FunctionError(f"the function's folder {str(spec.root)!r} is no folder", "Runtime.InvalidWorkingDir")
    name = spec.command[0]
    program = shutil.which(str(spec.root / name) if "/" in name else name, path=path)
    if program is None:
        raise FunctionError(f"{name!r} is no program: not found, or not executable", "Runtime.InvalidEntrypoint")
    return [sys.executable, "-I", "-S", "-c", _LAUNCHER, str(os.getpid()), program, *spec.command[1:]]


class ProvidedStarter:
    """A `contract.Starter` for functions with ``runtime = "provided"``. All of them share the engine's spawner."""

    def __init__(self, processes: Spawner | None = None) -> None:
        self._spawner = processes

    async def start(self, spec: FunctionSpec, log: LogSink) -> ProvidedEnvironment:
        """Raises FunctionError with the init fault, and OSError where the system has no room for a process."""
        environment = ProvidedEnvironment(spec.arn)
        try:
            variables = variables_of(spec, log, await environment.open())
            command = await asyncio.to_thread(command_of, spec, variables.get("PATH"))
            process = await (self._spawner or spawner()).start(
                command, root=spec.root, variables=variables, log=log
            )
            await environment.initialised(process)
        except BaseException:
            await asyncio.shield(environment.kill())
            raise
        return environment


class ProvidedEnvironment:
    """A `contract.Environment`: one command and the Runtime API that it is served."""

    def __init__(self, arn: str) -> None:
        self._api = RuntimeApi(arn=arn, admits=self._admits)
        self._process: Process | None = None
        self._started = asyncio.Event()
        self._watch: asyncio.Task[None] | None = None

    async def open(self) -> str:
        """Serve the API; its address."""
        return await self._api.open()

    async def initialised(self, process: Process) -> None:
        """Wait until ``process`` asks for an invocation. Raises FunctionError."""
        self._process = process
        self._watch = asyncio.get_running_loop().create_task(self._until_end(process))
        self._started.set()
        await self._api.initialised()

    @property
    def process(self) -> Process:
        assert self._process is not None, "the environment has not been started"
        return self._process

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def is_alive(self) -> bool:
        return self.process.is_alive

    async def invoke(self, request: Request) -> Reply:
        """The runtime's response to the request's event. Raises FunctionError, and what `event_json` raises."""
        if request.batch.nbytes > INLINE_BYTES_MAX:
            event = await asyncio.to_thread(event_json, request)
        else:
            event = event_json(request)
        try:
            payload = await self._api.invoke(request.request_id, request.deadline_ms, event, request.trace)
        except FunctionError:
            # Many runtimes end after an error, some milliseconds later; the next invocation must not meet that.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(SETTLE_SECONDS_MAX):
                    await self._api.settled()
            raise
        finally:
            self.process.read_output()  # what was printed before the answer belongs to it
        return Reply(payload)

    def memory_bytes(self) -> int:
        return self.process.memory_bytes()

    async def kill(self) -> None:
        if self._process is not None:
            await self._process.kill()
            if self._watch is not None and not self._process.is_alive:
                await asyncio.wait((self._watch,))
        await self._api.close()

    async def _until_end(self, process: Process) -> None:
        """Hear the command's end, end what it left running, and tell whoever waits for it."""
        status = await asyncio.shield(process.ended)
        try:
            # Some may have left the group and lost their parent, as a shell's jobs do.
            await asyncio.to_thread(_kill_session, process.pid)
            # What the process sent before its end is in its sockets and still counts.
            await self._api.drained(LAST_WORDS_SECONDS_MAX)
        finally:
            self._api.fail(python.exit_fault(status))
            await self._api.close()

    async def _admits(self, peer: peers.Address, own: peers.Address) -> bool:
        """Whether a process of this environment's session holds the other end of a connection."""
        await self._started.wait()
        try:
            inode = peers.peer_inode(peer, own)
        except peers.UnknownPeer:
            return True  # documented: where the kernel does not tell, anybody on this machine may talk
        if not inode:
            return False
        return peers.holds(self.pid, inode) or await asyncio.to_thread(peers.session_holds, self.pid, inode)


def _kill_session(session: int) -> None:
    """Kill the processes of a session. Reads all of /proc: for a thread."""
    with contextlib.suppress(OSError):  # no /proc
        for pid in peers.processes_of(session):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
