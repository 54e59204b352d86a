"""The environments of one function: how many there are, who gets one, how long and how large they may become.

An environment takes one invocation at a time and is kept for the next. What goes wrong in an invocation costs that
invocation and at most its environment. Not here: what an environment is (`python`, `provided`), and what becomes of
reports (`metering`).
"""

from __future__ import annotations

import asyncio
import datetime as dt
import errno
import logging
import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Literal, NoReturn

from engine.errors import FunctionError, Throttled
from engine.protocols import Clock
from functions.environments.contract import (
    INIT_SECONDS_MAX,
    Environment,
    FunctionSpec,
    LogSink,
    OnReport,
    Reply,
    Report,
    Request,
    Starter,
)
from functions.environments.report import init_report_line, report_line

log = logging.getLogger("headrace.functions")

MEMORY_SAMPLE_SECONDS = 0.1
#: Idle environments are looked at so often in ``idle_seconds_max``.
_IDLE_LOOKS = 4
_MB = 1024 * 1024

#: The system has no room for a process: not the function's fault, and it may have some later.
_NO_ROOM = {errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.ENOBUFS}

EXIT_ERROR = "Runtime.ExitError"
TIMED_OUT = "Sandbox.Timedout"
OUT_OF_MEMORY = "Runtime.OutOfMemory"


@dataclass(slots=True, eq=False)
class _Member:
    """One environment. ``init_ms`` is None once it has been reported."""

    environment: Environment
    spec: FunctionSpec
    log: LogSink
    init_ms: float | None
    memory_bytes_max: int = 0
    idle_since: float = 0.0
    is_too_large: bool = False


@dataclass(slots=True)
class _Call:
    """One invocation under way. ``init_ms`` is that of a cold start; ``deadline`` is on the loop's clock."""

    request: Request
    spec: FunctionSpec
    log: LogSink
    started_at: float
    began: float
    deadline: float | None = None
    init_ms: float | None = None
    memory_bytes_max: int = 0


class _SlowInit(Exception):
    """An init phase that was cut off."""


class EnvironmentPool:
    """Calls one function, at most ``reserved_concurrency`` times at once. Belongs to one event loop.

    Environments are started when they are needed, the one that was used last is used next, and one that was not
    used for ``idle_seconds_max`` is ended. Callers wait in order while all are busy. ``logs`` gives the log stream
    of a new environment; ``on_report`` hears of every invocation.
    """

    def __init__(
        self,
        spec: FunctionSpec,
        starter: Starter,
        *,
        reserved_concurrency: int,
        idle_seconds_max: float,
        clock: Clock,
        logs: Callable[[], LogSink],
        on_report: OnReport,
        on_throttle: Callable[[str], None] | None = None,
        memory_sample_seconds: float = MEMORY_SAMPLE_SECONDS,
        init_seconds_max: float = INIT_SECONDS_MAX,
    ) -> None:
        assert reserved_concurrency > 0
        self._spec = spec
        self._starter = starter
        self._idle_seconds_max = idle_seconds_max
        self._clock = clock
        self._logs = logs
        self._on_report = on_report
        self._on_throttle = on_throttle
        self._sample_seconds = memory_sample_seconds
        self._init_seconds_max = init_seconds_max
        self._places = asyncio.Semaphore(reserved_concurrency)  # first come, first served
        self._idle: list[_Member] = []  # the one used last is the last
        self._busy: set[_Member] = set()
        self._starting = 0
        self._has_busy = asyncio.Event()
        self._keepers: list[asyncio.Task[None]] = []
        self._is_closed = False

    @property
    def running(self) -> int:
        """Environments that are busy or starting."""
        return len(self._busy) + self._starting

    @property
    def idle(self) -> int:
        return len(self._idle)

    @property
    def pids(self) -> list[int]:
        """The processes of all environments that have started."""
        return [member.environment.pid for member in (*self._busy, *self._idle)]

    async def warm(self) -> None:
        """Start an environment, unless one is idle. Raises FunctionError with the init fault, or Throttled."""
        async with self._places:
            self._check_open()
            await self._give(self._take_idle() or await self._first(self._spec))

    async def _first(self, spec: FunctionSpec) -> _Member:
        """An environment that nothing waits for yet. Raises FunctionError with the init fault, or Throttled."""
        try:
            return await self._initialise(spec, self._logs(), self._init_seconds_max)
        except _SlowInit:
            message = f"Error: Task timed out after {self._init_seconds_max:.2f} seconds of initialisation"
            raise FunctionError(message, TIMED_OUT) from None
        except FunctionError as error:
            raise _named(error, "") from error

    async def invoke(self, request: Request) -> Reply:
        """The function's answer. Raises FunctionError, and Throttled when no environment can be started.

        An invocation that is cancelled ends its environment: nobody knows what it is doing.
        """
        async with self._places:
            self._check_open()
            member = self._take_idle()
            call = _Call(
                request,
                self._spec if member is None else member.spec,
                self._logs() if member is None else member.log,
                self._clock.time(),
                self._clock.monotonic(),
                init_ms=None if member is None else member.init_ms,  # `warm` has started it, and told nobody
            )
            if member is None:
                member = await self._start(call)
            self._busy.add(member)
            self._has_busy.set()
            try:
                return await self._run(member, call)
            finally:
                try:
                    await self._give(member)
                finally:
                    self._busy.discard(member)

    async def replace(self, spec: FunctionSpec) -> None:
        """Changed code: what starts from now on starts in new environments; what runs ends in its own.

        Raises FunctionError or Throttled when the changed code does not start; then all stays as it was.
        """
        self._check_open()
        # Beside the places: a function that has one, and is busy, can be replaced as well.
        member = await self._first(spec)
        self._spec = spec
        await self._end_idle(lambda _: True)
        await self._give(member)

    async def close(self) -> None:
        """End all environments; invocations under way fail, and so do those that wait. Idempotent."""
        self._is_closed = True
        for keeper in self._keepers:
            keeper.cancel()
        await asyncio.gather(*self._keepers, return_exceptions=True)
        self._keepers.clear()
        await self._end_idle(lambda _: True)
        await asyncio.gather(*(member.environment.kill() for member in list(self._busy)))

    def _check_open(self) -> None:
        if self._is_closed:
            raise Throttled(f"function {self._spec.name!r} was not called: its environments have been closed")

    # Getting an environment.

    def _take_idle(self) -> _Member | None:
        while self._idle:
            member = self._idle.pop()
            if member.environment.is_alive:
                return member
        return None

    async def _start(self, call: _Call) -> _Member:
        """A new environment. As on AWS, an init phase that is too slow is done over inside of the call."""
        try:
            try:
                member = await self._initialise(call.spec, call.log, self._init_seconds_max)
                call.init_ms = member.init_ms
            except _SlowInit:
                call.log.platform(init_report_line(1000 * self._init_seconds_max, "timeout"))
                call.began = self._clock.monotonic()
                call.deadline = asyncio.get_running_loop().time() + call.spec.timeout_seconds
                member = await self._initialise(call.spec, call.log, call.spec.timeout_seconds)
        except _SlowInit:
            self._begin(call)
            self._fail_timeout(call)
        except FunctionError as error:
            took_ms = 1000 * (self._clock.monotonic() - call.began)
            call.log.platform(init_report_line(took_ms, "error", error.error_type))
            self._begin(call)
            self._fail(call, error)
        call.began = self._clock.monotonic() if call.deadline is None else call.began
        return member

    async def _initialise(self, spec: FunctionSpec, log: LogSink, seconds_max: float) -> _Member:
        """A new environment. Raises _SlowInit, FunctionError, Throttled."""
        began = self._clock.monotonic()
        self._starting += 1
        self._keep()
        try:
            async with asyncio.timeout(seconds_max) as timer:
                environment = await self._starter.start(spec, log)
        except TimeoutError:
            if timer.expired():
                raise _SlowInit from None
            raise
        except OSError as error:
            if error.errno in _NO_ROOM:
                if self._on_throttle is not None:
                    self._on_throttle(spec.name)
                raise Throttled(
                    f"function {spec.name!r} was not called: no environment can be started: {error.strerror}",
                    hint="the system is out of processes, memory or open files: lower reserved_concurrency",
                ) from error
            raise FunctionError(f"cannot be started: {error}", "Runtime.InvalidEntrypoint") from error
        finally:
            self._starting -= 1
        return _Member(environment, spec, log, 1000 * (self._clock.monotonic() - began))

    async def _give(self, member: _Member) -> None:
        """Keep an environment for the next call, or end it."""
        is_current = member.spec is self._spec and not self._is_closed
        if is_current and member.environment.is_alive and not member.is_too_large:
            member.idle_since = self._clock.monotonic()
            self._idle.append(member)
        else:
            await member.environment.kill()

    async def _end_idle(self, is_due: Callable[[_Member], bool]) -> None:
        due = [member for member in self._idle if is_due(member)]
        self._idle = [member for member in self._idle if member not in due]
        await asyncio.gather(*(member.environment.kill() for member in due))

    # One invocation.

    def _begin(self, call: _Call) -> None:
        call.log.platform(f"START RequestId: {call.request.request_id} Version: $LATEST")

    async def _run(self, member: _Member, call: _Call) -> Reply:
        now = asyncio.get_running_loop().time()
        deadline = call.deadline if call.deadline is not None else now + call.spec.timeout_seconds
        member.init_ms = None
        self._begin(call)
        deadline_ms = int(1000 * (self._clock.time() + deadline - now))
        timer = asyncio.timeout_at(deadline)
        try:
            async with timer:
                reply = await member.environment.invoke(replace(call.request, deadline_ms=deadline_ms))
            self._measure(member)
        except TimeoutError as error:
            await member.environment.kill()
            call.memory_bytes_max = member.memory_bytes_max
            if timer.expired():
                self._fail_timeout(call)
            self._fail(call, FunctionError(str(error), "TimeoutError"))
        except FunctionError as error:
            self._measure(member)
            call.memory_bytes_max = member.memory_bytes_max
            self._fail(call, _killed() if member.is_too_large else error)
        except BaseException:
            await member.environment.kill()
            raise
        call.memory_bytes_max = member.memory_bytes_max
        if member.is_too_large:
            await member.environment.kill()
            self._fail(call, _killed())
        self._report(call, "success", None)
        return reply

    def _measure(self, member: _Member) -> None:
        """See how large an environment is; one that is too large takes no more invocations."""
        if member.environment.is_alive:
            member.memory_bytes_max = max(member.memory_bytes_max, member.environment.memory_bytes())
            member.is_too_large = member.memory_bytes_max > member.spec.memory_size_mb * _MB

    def _fail_timeout(self, call: _Call) -> NoReturn:
        request_id, seconds = call.request.request_id, call.spec.timeout_seconds
        stamp = dt.datetime.fromtimestamp(self._clock.time(), dt.UTC).isoformat(timespec="milliseconds")
        text = f"Task timed out after {seconds:.2f} seconds"
        call.log.platform(f"{stamp.replace('+00:00', 'Z')} {request_id} {text}")
        self._report(call, "timeout", TIMED_OUT)
        raise FunctionError(f"RequestId: {request_id} Error: {text}", TIMED_OUT)

    def _fail(self, call: _Call, error: FunctionError) -> NoReturn:
        self._report(call, "error", error.error_type)
        raise _named(error, call.request.request_id) from error

    def _report(self, call: _Call, status: Literal["success", "error", "timeout"], error_type: str | None) -> None:
        request_id = call.request.request_id
        duration_ms = 1000 * (self._clock.monotonic() - call.began)
        report = Report(
            function_name=call.spec.name,
            request_id=request_id,
            started_at=call.started_at,
            duration_ms=duration_ms,
            billed_ms=math.ceil(duration_ms + (call.init_ms or 0.0)),
            memory_size_mb=call.spec.memory_size_mb,
            memory_used_mb_max=math.ceil(call.memory_bytes_max / _MB),
            init_ms=call.init_ms,
            status=status,
            error_type=error_type,
        )
        call.log.platform(f"END RequestId: {request_id}")
        call.log.platform(report_line(report))
        self._on_report(report)

    # Beside the invocations.

    def _keep(self) -> None:
        """Start what looks after the environments, once there are some."""
        if not self._keepers and not self._is_closed:
            for keeper in (self._watch_memory, self._retire):
                self._keepers.append(asyncio.create_task(_going_on(keeper, self._spec.name)))

    async def _watch_memory(self) -> None:
        if not self._busy:
            self._has_busy.clear()
        await self._has_busy.wait()
        await self._clock.sleep(self._sample_seconds)
        for member in list(self._busy):
            self._measure(member)
            if member.is_too_large:
                await member.environment.kill()
            await asyncio.sleep(0)  # each look at /proc takes a while

    async def _retire(self) -> None:
        await self._clock.sleep(self._idle_seconds_max / _IDLE_LOOKS)
        before = self._clock.monotonic() - self._idle_seconds_max
        await self._end_idle(lambda member: member.idle_since <= before or not member.environment.is_alive)


async def _going_on(step: Callable[[], Awaitable[None]], name: str) -> None:
    """Do ``step`` again and again; a fault in it is logged and costs one."""
    while True:
        try:
            await step()
        except Exception:
            log.exception("function %s: its environments were not looked after", name)
            await asyncio.sleep(1)


def _killed() -> FunctionError:
    return FunctionError("Runtime exited with error: signal: killed", OUT_OF_MEMORY)


def _named(error: FunctionError, request_id: str) -> FunctionError:
    """The error with the request's id before the end of a process, as AWS has it."""
    if error.error_type not in (EXIT_ERROR, OUT_OF_MEMORY) or not error.message.startswith("Runtime exited"):
        return error
    head = f"RequestId: {request_id} " if request_id else ""
    return FunctionError(f"{head}Error: {error.message}", error.error_type, error.stack_trace)
