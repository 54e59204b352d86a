"""Whose turn it is between the engine and one runtime, and what a runtime says of its errors.

The state behind a `runtime_api.RuntimeApi`: the init phase, one invocation at a time, the requests that wait for
one, and statuses and bodies of answers. What AWS's developer guide leaves open ("Using the Lambda runtime API") is
as in AWS's runtime interface emulator: a second request for an invocation before its answer gives the same one
again, an unknown request id is 400, an answer out of turn 403. Not here: HTTP and sockets.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Final

import orjson

from engine.errors import FunctionError
from functions.environments.inside import trace_id

#: Of an error's message, type and stack trace, in characters and frames.
MESSAGE_CHARS_MAX = 256 * 1024
TYPE_CHARS_MAX = 256
FRAMES_MAX = 1000

_OK: Final = b'{"status":"OK"}\n'


@dataclass(slots=True, eq=False)
class Invocation:
    """One invocation, as the runtime gets it; ``was_given`` once a connection has it."""

    request_id: bytes
    deadline_ms: int
    event: bytes
    answer: asyncio.Future[bytes | FunctionError]
    trace: bytes = field(default_factory=lambda: trace_id().encode())
    was_given: bool = False

    def settle(self, answer: bytes | FunctionError) -> bool:
        """Whether this was the first answer."""
        if self.answer.done():
            return False
        self.answer.set_result(answer)
        return True


class Turns:
    """Whose turn it is: the runtime's to initialise, to ask or to answer. Nothing awaits: each step is whole."""

    def __init__(self) -> None:
        self._waiting: deque[asyncio.Future[Invocation]] = deque()
        self._current: Invocation | None = None
        self.initialised: asyncio.Future[FunctionError | None] = asyncio.get_running_loop().create_future()
        self.fault: FunctionError | None = None
        self._settling: asyncio.Future[None] | None = None

    def begin(self, invocation: Invocation) -> None:
        assert self._current is None, "an environment takes one invocation at a time"
        self._current = invocation
        self._hand_over(invocation)

    def end(self) -> None:
        self._current = None

    def fail(self, fault: FunctionError) -> None:
        self.fault = self.fault or fault
        self._settle_init(fault)
        self._settle()
        if self._current is not None:
            self._current.settle(fault)

    def asked(self) -> asyncio.Future[Invocation]:
        """The next invocation, or the same one again for a client that asks before it has answered."""
        self._settle_init(None)
        waiter: asyncio.Future[Invocation] = asyncio.get_running_loop().create_future()
        if self._current is None or self._current.answer.done():
            self._waiting.append(waiter)
            self._settle()
        else:
            self._current.was_given = True
            waiter.set_result(self._current)
        return waiter

    def undelivered(self, waiter: asyncio.Future[Invocation]) -> None:
        """The connection behind ``waiter`` is gone: what it was to get goes to the next one."""
        if not waiter.done():
            waiter.cancel()
            with contextlib.suppress(ValueError):
                self._waiting.remove(waiter)
        elif not waiter.cancelled() and waiter.result() is self._current:
            self._hand_over(self._current)

    def answered(self, request_id: bytes, answer: bytes | FunctionError) -> tuple[int, bytes]:
        """Take a response or an error for ``request_id``; status and body of what to say to it."""
        current = self._current
        if current is None or current.request_id != request_id:
            return 400, refusal("InvalidRequestID", "Invalid request ID")
        if not current.was_given or not current.settle(answer):
            return 403, out_of_turn("this invocation has its answer, or nobody has been given it")
        return 202, _OK

    def init_failed(self, fault: FunctionError) -> tuple[int, bytes]:
        if not self._settle_init(fault):
            return 403, out_of_turn("the environment has left its init phase")
        self.fault = fault
        return 202, _OK

    def seconds_left(self, request_id: bytes) -> float:
        """Until the deadline of the invocation, if it is the current one."""
        if self._current is None or self._current.request_id != request_id:
            return 0.0
        return self._current.deadline_ms / 1000 - time.time()

    def settling(self) -> asyncio.Future[None]:
        """Done once the runtime asks for more, or has failed."""
        settling: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._settling = settling
        if self._waiting or self.fault is not None:
            self._settle()
        return settling

    def _settle(self) -> None:
        if self._settling is not None and not self._settling.done():
            self._settling.set_result(None)

    def _settle_init(self, fault: FunctionError | None) -> bool:
        if self.initialised.done():
            return False
        self.initialised.set_result(fault)
        return True

    def _hand_over(self, invocation: Invocation) -> None:
        """Give the invocation to the connection that has waited longest; else it waits for one."""
        if self._waiting:
            invocation.was_given = True
            self._waiting.popleft().set_result(invocation)


def refusal(error_type: str, message: str) -> bytes:
    """The body of an answer other than 2xx."""
    return orjson.dumps({"errorMessage": message, "errorType": error_type}) + b"\n"


def out_of_turn(message: str) -> bytes:
    return refusal("InvalidStateTransition", message)


def reported(body: bytes, header: bytes | None, *, default: str) -> FunctionError:
    """The error that a runtime has posted: the JSON object of its body where there is one, else what there is.

    The type is the object's ``errorType``, else that of the header, else ``default``. Frames are in
    ``stackTrace`` (Python, Java, Ruby) or ``trace`` (Node).
    """
    named = header.decode("utf-8", "replace") if header else default
    try:
        told = orjson.loads(body)
    except orjson.JSONDecodeError:
        told = None
    if not isinstance(told, dict):
        message = body[:MESSAGE_CHARS_MAX].decode("utf-8", "replace")
        return FunctionError(message or "the runtime reported an error without a message", named[:TYPE_CHARS_MAX])
    frames = told.get("stackTrace") or told.get("trace") or []
    return FunctionError(
        _text(told.get("errorMessage"))[:MESSAGE_CHARS_MAX],
        (_text(told.get("errorType")) or named)[:TYPE_CHARS_MAX],
        [_text(frame)[:MESSAGE_CHARS_MAX] for frame in frames[:FRAMES_MAX]] if isinstance(frames, list) else [],
    )


def _text(value: object) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else orjson.dumps(value).decode()
