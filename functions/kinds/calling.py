"""Calling a user's function: synchronous ones in threads, asynchronous ones on the loop, each with a deadline.

Not here: what a function is called with (the kinds) and what happens after a failure (the engine). What the
function raises passes through unchanged. Needs the standard library alone (and `engine.errors`).

A Python thread cannot be killed. A synchronous function that outlives its deadline fails its invocation in
time, but its thread runs on, *abandoned*, and keeps its place among the ``concurrency_max`` until it returns;
what it returns then is thrown away, its effects are not. While abandoned threads hold every place, a call
waits for one as long as a call may take, and is then refused.

An asynchronous function is cancelled at its deadline. One that blocks the loop, or swallows the
cancellation, delays everything beside it.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import inspect
import queue
import threading
import traceback
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

from engine.errors import HandlerError
from functions.kinds.loader import Function, describe

T = TypeVar("T")


class TimedOut(HandlerError):
    """A call that did not end in time, or was refused because such calls hold every thread."""

    retry = True


class Caller:
    """Calls one function, at most ``concurrency_max`` times at once. Belongs to one event loop.

    ``name`` names the function in messages and its threads. Threads start when first needed; they are
    daemons, so that an abandoned one cannot keep the process from ending.
    """

    def __init__(self, function: Function, *, name: str, timeout_seconds: float, concurrency_max: int) -> None:
        assert timeout_seconds > 0
        assert concurrency_max > 0
        self._function = function
        self._name = name
        self._timeout_seconds = timeout_seconds
        self._asynchronous = is_asynchronous(function)
        self._places = _Places(name, concurrency_max, timeout_seconds)
        self._threads = _Threads(name, concurrency_max)

    async def call(
        self,
        prepare: Callable[[], tuple[object, ...]],
        finish: Callable[[object], T],
        *,
        interrupt: Callable[[], None] | None = None,
    ) -> T:
        """``finish(function(*prepare()))``, all of it off the loop but for an asynchronous function itself.

        The deadline starts when a place is free, and covers ``prepare`` and ``finish`` too: a generator's
        body runs in the latter. ``interrupt`` is called when a thread is abandoned; a function that can be
        stopped from outside is stopped by it. Raises what the three raise, and TimedOut.
        """
        place = await self._places.take()
        deadline = asyncio.get_running_loop().time() + self._timeout_seconds
        try:
            if self._asynchronous:
                arguments = await self._in_thread(place, prepare, deadline)
                pending: object = self._function(*arguments)
            else:
                outcome = await self._in_thread(place, lambda: self._run(prepare, finish), deadline, interrupt)
                if isinstance(outcome, _Finished):
                    return outcome.value
                pending = outcome.value
            result = await self._await(pending, deadline)
            return await self._in_thread(place, lambda: finish(result), deadline)
        finally:
            place.give()

    def _run(self, prepare: Callable[[], tuple[object, ...]], finish: Callable[[object], T]) -> _Outcome[T]:
        result = self._function(*prepare())
        if inspect.isawaitable(result) or hasattr(result, "__aiter__"):
            return _Pending(result)
        return _Finished(finish(result))

    async def _in_thread(
        self, place: _Place, job: Callable[[], T], deadline: float, interrupt: Callable[[], None] | None = None
    ) -> T:
        done = self._threads.start(job)
        timer = asyncio.timeout_at(deadline)
        try:
            async with timer:
                ending = await asyncio.shield(done)
        except (TimeoutError, asyncio.CancelledError):
            if not done.done():
                place.abandon_until(done)
                if interrupt is not None:
                    interrupt()
            if timer.expired():
                raise self._timed_out() from None
            raise
        return ending.get(self._name)

    async def _await(self, pending: object, deadline: float) -> object:
        """The result of an awaitable, or the items of an asynchronous iterator as a list."""
        timer = asyncio.timeout_at(deadline)
        try:
            async with timer:
                result = pending if hasattr(pending, "__aiter__") else await pending  # type: ignore[misc]
                return [item async for item in result] if hasattr(result, "__aiter__") else result
        except TimeoutError:
            if timer.expired():
                raise self._timed_out() from None
            raise
        except SystemExit as error:
            raise _left(self._name, error) from error
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            raise _left(self._name, error) from error

    def _timed_out(self) -> TimedOut:
        return TimedOut(f"Task timed out after {self._timeout_seconds:.2f} seconds")

    async def close(self) -> None:
        """End the threads that are idle; abandoned ones end when their function returns. Idempotent."""
        self._threads.close()


def is_asynchronous(function: object) -> bool:
    """Whether calling it gives something to await or to iterate asynchronously, as far as can be told before."""
    while isinstance(function, functools.partial):
        function = function.func
    candidates = (function, getattr(type(function), "__call__", None))  # noqa: B004  # looked at, not tested
    return any(inspect.iscoroutinefunction(each) or inspect.isasyncgenfunction(each) for each in candidates)


class _Finished(Generic[T]):
    def __init__(self, value: T) -> None:
        self.value = value


class _Pending:
    """What a synchronous function gave that has to be awaited: a decorated coroutine function, for one."""

    def __init__(self, value: object) -> None:
        self.value = value


_Outcome = _Finished[T] | _Pending


class _Places:
    """How many calls may be under way; waiters are served in order.

    A waiter waits as long as there is a call that its deadline will end. When abandoned threads hold all
    places for ``patience_seconds``, it is refused.
    """

    def __init__(self, name: str, count_max: int, patience_seconds: float) -> None:
        self._name = name
        self._count_max = count_max
        self._patience_seconds = patience_seconds
        self._taken = 0
        self._abandoned = 0
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def take(self) -> _Place:
        """Wait for a place. Raises TimedOut."""
        if self._taken < self._count_max:
            self._taken += 1
            return _Place(self)
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(waiter)
        try:
            while not waiter.done():
                await asyncio.wait([waiter], timeout=self._patience_seconds)
                if self._abandoned == self._count_max and not waiter.done():
                    raise self._refusal()
        except BaseException:
            if waiter.done():  # cancelled in the moment of being served
                self.give()
            else:
                self._waiting.remove(waiter)
            raise
        return _Place(self)  # handed over, so it stayed counted as taken

    def give(self) -> None:
        if self._waiting:
            self._waiting.popleft().set_result(None)
            return
        self._taken -= 1
        assert self._abandoned <= self._taken

    def abandon(self, done: asyncio.Future[_Ending[T]]) -> None:
        self._abandoned += 1
        assert self._abandoned <= self._taken
        done.add_done_callback(self._returned)

    def _returned(self, _: object) -> None:
        self._abandoned -= 1
        self.give()

    def _refusal(self) -> TimedOut:
        threads = "1 thread is" if self._count_max == 1 else f"{self._count_max} threads are all"
        return TimedOut(
            f"{self._name} was not called: its {threads} held by earlier calls that have not returned",
            hint="a thread cannot be killed: bound the function's own waits, or raise timeout",
        )


class _Place:
    """One taken place. It is given back once: at the end of the call, or when its abandoned thread returns."""

    def __init__(self, places: _Places) -> None:
        self._places: _Places | None = places

    def give(self) -> None:
        if self._places is not None:
            self._places.give()
            self._places = None

    def abandon_until(self, done: asyncio.Future[_Ending[T]]) -> None:
        assert self._places is not None
        self._places.abandon(done)
        self._places = None


class _Ending(Generic[T]):
    """How a job ended: with a value or an exception; a future would refuse some exceptions."""

    def __init__(self, value: T | None = None, error: BaseException | None = None) -> None:
        self._value = value
        self._error = error

    def get(self, name: str) -> T:
        if self._error is None:
            return self._value  # type: ignore[return-value]  # set by `_Threads`
        if isinstance(self._error, Exception) and not isinstance(self._error, StopIteration):
            raise self._error
        # SystemExit and its kin would end the engine's loop, a stray CancelledError looks like its own.
        raise _left(name, self._error) from self._error


def _left(name: str, error: BaseException) -> HandlerError:
    return HandlerError(f"{name} raised {describe(error)}")


class _Threads:
    """Daemon threads that run one job after the other; at most ``count_max`` of them.

    Not a `ThreadPoolExecutor`: the interpreter joins its threads at exit, hung ones too.
    """

    def __init__(self, name: str, count_max: int) -> None:
        self._name = name
        self._count_max = count_max
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._started = 0
        self._under_way = 0
        self._lock = threading.Lock()

    def start(self, job: Callable[[], T]) -> asyncio.Future[_Ending[T]]:
        """A future of how ``job`` ended; it runs with this context's variables."""
        loop = asyncio.get_running_loop()
        done: asyncio.Future[_Ending[T]] = loop.create_future()
        context = contextvars.copy_context()

        def run() -> None:
            try:
                ending = _Ending(value=context.run(job))
            except BaseException as error:
                ending = _Ending(error=error)
            with self._lock:
                self._under_way -= 1
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits for this any more
                loop.call_soon_threadsafe(_set, done, ending)

        with self._lock:
            self._under_way += 1
            grow = self._under_way > self._started and self._started < self._count_max
            self._started += grow
        if grow:
            threading.Thread(target=self._work, name=f"{self._name}-{self._started}", daemon=True).start()
        self._jobs.put(run)
        return done

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()
            del job  # it holds the batch

    def close(self) -> None:
        with self._lock:
            ending, self._started = self._started, 0
        for _ in range(ending):
            self._jobs.put(None)


def _set(done: asyncio.Future[_Ending[T]], ending: _Ending[T]) -> None:
    if not done.done():
        done.set_result(ending)


def error_payload(error: BaseException, request_id: str) -> dict[str, object]:
    """What a caller of the function gets on AWS for an error: message, type, request id, stack.

    Shape and order as in AWS's Python runtime interface client. ``stackTrace`` holds formatted frames of
    the handler's side, outermost first; frames of these modules are left out.
    """
    own = str(Path(__file__).parent)
    frames = traceback.extract_tb(error.__traceback__)
    first = next((i for i in reversed(range(len(frames))) if frames[i].filename.startswith(own)), -1)
    return {
        "errorMessage": error.message if isinstance(error, HandlerError) else str(error),
        "errorType": type(error).__name__,
        "requestId": request_id,
        "stackTrace": traceback.format_list(frames[first + 1 :]),
    }
