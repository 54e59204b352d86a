"""Calling functions: in threads or on the loop, bounded, with a deadline that holds."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from engine.errors import HandlerError
from functions.kinds.calling import Caller, TimedOut, error_payload, is_asynchronous

VARIABLE: contextvars.ContextVar[str] = contextvars.ContextVar("VARIABLE", default="none")


def caller(function: Callable[..., object], *, seconds: float = 20.0, count: int = 1) -> Caller:
    return Caller(function, name="app.handler", timeout_seconds=seconds, concurrency_max=count)


async def call(made: Caller, *arguments: object, **options: Any) -> object:
    return await made.call(lambda: arguments, lambda result: result, **options)


async def until(condition: Callable[[], bool]) -> None:
    """Let the loop turn until the condition holds."""
    for _ in range(20_000):
        if condition():
            return
        await asyncio.sleep(0.001)
    pytest.fail("the condition did not hold within 20 seconds")


async def test_synchronous_functions_leave_the_loop_free() -> None:
    """The function waits for something that only a turning loop can do."""
    released = threading.Event()
    made = caller(lambda: (released.wait(20), threading.current_thread())[1])
    async with asyncio.TaskGroup() as group:
        running = group.create_task(call(made))
        group.create_task(asyncio.to_thread(released.set))
    thread = running.result()
    assert isinstance(thread, threading.Thread)
    assert thread is not threading.current_thread()
    assert thread.daemon
    await made.close()


async def test_asynchronous_functions_run_on_the_loop() -> None:
    """A coroutine function runs in the loop's own thread; what prepares and finishes does not."""
    threads = []

    async def handler(value: int) -> int:
        threads.append(threading.current_thread())
        return value + 1

    def prepare() -> tuple[int]:
        threads.append(threading.current_thread())
        return (1,)

    made = caller(handler)
    assert await made.call(prepare, lambda result: (result, threading.current_thread())[0]) == 2
    assert threads[1] is threading.current_thread()
    assert threads[0] is not threading.current_thread()
    await made.close()


async def test_context_variables_are_kept() -> None:
    """Both kinds of functions see the caller's variables, and a thread's changes stay its own."""

    def handler() -> str:
        seen = VARIABLE.get()
        VARIABLE.set("changed")
        return seen

    async def asynchronous() -> str:
        return VARIABLE.get()

    VARIABLE.set("outer")
    for function in (handler, asynchronous):
        made = caller(function)
        assert await call(made) == "outer"
        await made.close()
    assert VARIABLE.get() == "outer"


async def test_what_only_turns_out_to_be_awaitable_is_awaited() -> None:
    """A plain function around a coroutine function, an asynchronous generator, and an instance all work."""

    async def coroutine(value: int) -> int:
        return value * 2

    async def generator(value: int) -> AsyncIterator[int]:
        yield value
        yield value + 1

    class Instance:
        async def __call__(self, value: int) -> int:
            return value * 3

    expected: list[tuple[Callable[..., object], object]] = [
        (lambda value: coroutine(value), 8),
        (functools.partial(coroutine, 5), 10),
        (generator, [4, 5]),
        (lambda value: generator(value), [4, 5]),
        (Instance(), 12),
    ]
    for function, result in expected:
        made = caller(function)
        arguments = () if isinstance(function, functools.partial) else (4,)
        assert await call(made, *arguments) == result
        await made.close()


def test_asynchronous_functions_are_told_before_the_call() -> None:
    """Coroutine functions behind partials and __call__ are recognised; plain ones are not."""

    async def coroutine() -> None: ...

    class Instance:
        async def __call__(self) -> None: ...

    assert is_asynchronous(coroutine)
    assert is_asynchronous(functools.partial(functools.partial(coroutine)))
    assert is_asynchronous(Instance())
    assert not is_asynchronous(print)
    assert not is_asynchronous(functools.partial(print))


async def test_errors_pass_through() -> None:
    """What the function raises, sync or async, is what the caller sees, the same object."""
    error = KeyError("mine")

    def handler() -> None:
        raise error

    async def asynchronous() -> None:
        raise error

    for function in (handler, asynchronous):
        made = caller(function)
        with pytest.raises(KeyError) as caught:
            await call(made)
        assert caught.value is error
        await made.close()


@pytest.mark.parametrize(
    "raised", [SystemExit(3), StopIteration(1), asyncio.CancelledError("x"), KeyboardInterrupt()]
)
async def test_exits_in_threads_do_not_reach_the_loop(raised: BaseException) -> None:
    """Exceptions that mean something to a loop become errors of the handler."""

    def handler() -> None:
        raise raised

    made = caller(handler)
    with pytest.raises(HandlerError, match=f"^app.handler raised .*{type(raised).__name__}") as caught:
        await call(made)
    assert caught.value.__cause__ is raised
    await made.close()


@pytest.mark.parametrize("raised", [SystemExit(3), asyncio.CancelledError("x")])
async def test_exits_on_the_loop_do_not_reach_it(raised: BaseException) -> None:
    """The same for asynchronous functions: sys.exit() and a stray cancellation cost one invocation."""

    async def handler() -> None:
        raise raised

    made = caller(handler)
    with pytest.raises(HandlerError, match=f"^app.handler raised .*{type(raised).__name__}"):
        await call(made)
    await made.close()


async def test_a_timeout_of_the_functions_own_is_not_the_deadline() -> None:
    """A TimeoutError that a handler raises passes through as what it is."""

    def handler() -> None:
        raise TimeoutError("upstream")

    async def asynchronous() -> None:
        raise TimeoutError("upstream")

    for function in (handler, asynchronous):
        made = caller(function)
        with pytest.raises(TimeoutError, match="upstream"):
            await call(made)
        await made.close()


async def test_asynchronous_functions_are_cancelled_at_the_deadline() -> None:
    """The words are AWS's, and the coroutine has ended when they are said."""
    ended = []

    async def handler() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(True)

    made = caller(handler, seconds=0.05)
    for _ in range(3):  # no place is lost by it
        with pytest.raises(TimedOut) as caught:
            await call(made)
        assert caught.value.message == "Task timed out after 0.05 seconds"
        assert caught.value.retry
    assert ended == [True] * 3
    await made.close()


async def test_abandoned_threads_are_bounded_and_recovered_from() -> None:
    """A hung function holds its place; with all places held calls are refused; once it returns they go on."""
    hang, calls = threading.Event(), []

    def handler(blocks: bool) -> str:
        calls.append(blocks)
        if blocks:
            threading.current_thread().name = f"busy {threading.current_thread().name}"
            assert hang.wait(20)
            threading.current_thread().name = threading.current_thread().name.removeprefix("busy ")
        return "done"

    made = caller(handler, seconds=0.05, count=2)
    for held in range(2):
        with pytest.raises(TimedOut, match=r"^Task timed out after 0.05 seconds$"):
            await call(made, True)
        if held == 0:
            assert await call(made, False) == "done"
    before = len(calls)
    with pytest.raises(
        TimedOut, match="was not called: its 2 threads are all held by earlier calls that have not returned"
    ):
        await call(made, False)
    assert len(calls) == before
    hang.set()
    await until(lambda: not any(thread.name.startswith("busy") for thread in threading.enumerate()))
    assert await call(made, False) == "done"
    await made.close()


async def test_waiters_are_refused_when_the_last_place_is_abandoned() -> None:
    """A call that waits for a place does not wait behind a thread that may never return."""
    hang = threading.Event()
    made = caller(lambda: hang.wait(20), seconds=0.1)
    first, second = await asyncio.gather(call(made), call(made), return_exceptions=True)
    assert isinstance(first, TimedOut)
    assert isinstance(second, TimedOut)
    assert "its 1 thread is held" in second.message
    hang.set()
    await made.close()


async def test_an_abandoned_function_is_interrupted() -> None:
    """A function that can be stopped from outside is told to when its deadline passes, and not before."""
    stop, interrupted = threading.Event(), []

    def interrupt() -> None:
        interrupted.append(True)
        stop.set()

    made = caller(lambda wait: stop.wait(20) if wait else None, seconds=0.05)
    await call(made, False, interrupt=interrupt)
    assert interrupted == []
    with pytest.raises(TimedOut):
        await call(made, True, interrupt=interrupt)
    assert interrupted == [True]
    await made.close()


async def test_a_cancelled_call_keeps_its_place_until_the_thread_returns() -> None:
    """Cancelling the engine's side neither frees the place early nor loses it."""
    started, go = threading.Event(), threading.Event()
    running = 0
    most = 0

    def handler() -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        started.set()
        assert go.wait(20)
        running -= 1

    made = caller(handler)
    task = asyncio.ensure_future(call(made))
    await until(started.is_set)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    waiting = asyncio.ensure_future(call(made))
    await asyncio.sleep(0)
    go.set()
    await waiting
    assert (running, most) == (0, 1)
    await made.close()


async def test_a_cancelled_waiter_passes_its_place_on() -> None:
    """Waiters that are cancelled, also at the moment when they are served, lose no place."""
    go = threading.Event()
    made = caller(lambda: go.wait(20))
    tasks = [asyncio.ensure_future(call(made)) for _ in range(4)]
    await asyncio.sleep(0)
    tasks[1].cancel()
    go.set()
    await tasks[0]  # its place has just been handed to the next waiter
    tasks[2].cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert results[0] is True
    assert results[3] is True
    assert await call(made) is True
    await made.close()


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_no_more_calls_than_allowed_run_at_once(asynchronous: bool) -> None:
    """Twenty calls through three places: three run at once, and all get their turn."""
    lock = threading.Lock()
    running = most = 0
    together, meeting = threading.Barrier(3, timeout=20), asyncio.Barrier(3)

    def enter() -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)

    def leave() -> None:
        nonlocal running
        with lock:
            running -= 1

    def sync(number: int) -> int:
        enter()
        if number < 3:
            together.wait()
        leave()
        return number

    async def coroutine(number: int) -> int:
        enter()
        if number < 3:
            await meeting.wait()
        leave()
        return number

    made = caller(coroutine if asynchronous else sync, count=3)
    assert await asyncio.gather(*(call(made, n) for n in range(20))) == list(range(20))
    assert most == 3
    await made.close()


async def test_threads_are_reused_and_end_with_close() -> None:
    """One call after the other needs one thread, and closing twice ends it once."""
    made = caller(lambda: threading.current_thread(), count=4)
    threads = {await call(made) for _ in range(10)}
    assert len(threads) == 1
    await made.close()
    await made.close()
    [thread] = threads
    assert isinstance(thread, threading.Thread)
    await asyncio.to_thread(thread.join, 20)
    assert not thread.is_alive()


@pytest.mark.slow
def test_a_hung_function_does_not_keep_the_process() -> None:
    """The interpreter ends although a thread never will."""
    code = """
import asyncio, threading
from functions.kinds.calling import Caller, TimedOut
async def main():
    caller = Caller(threading.Event().wait, name="x", timeout_seconds=0.05, concurrency_max=1)
    try:
        await caller.call(lambda: (), lambda result: result)
    except TimedOut as error:
        print(error)
    await caller.close()
asyncio.run(main())
"""
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == "Task timed out after 0.05 seconds\n"


async def test_error_payloads_have_the_shape_of_aws() -> None:
    """Message, type, request id, and the handler's frames without those of the engine."""

    def inner() -> None:
        raise ValueError("bad value")

    def handler() -> None:
        inner()

    made = caller(handler)
    with pytest.raises(ValueError, match="bad value") as caught:
        await call(made)
    await made.close()
    payload = error_payload(caught.value, "id-1")
    stack = payload["stackTrace"]
    assert list(payload) == ["errorMessage", "errorType", "requestId", "stackTrace"]
    assert (payload["errorMessage"], payload["errorType"], payload["requestId"]) == (
        "bad value",
        "ValueError",
        "id-1",
    )
    assert isinstance(stack, list)
    assert [frame.split(", in ")[1].split("\n")[0] for frame in stack] == ["handler", "inner"]


def test_error_payloads_of_errors_that_were_never_raised() -> None:
    """Without a traceback the stack is empty; a hint is no part of the message."""
    payload = error_payload(HandlerError("what", hint="how"), "id-2")
    assert payload == {"errorMessage": "what", "errorType": "HandlerError", "requestId": "id-2", "stackTrace": []}
