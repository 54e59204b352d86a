"""What conformance tests of functions share: a function in real environments, and the engine's work over it.

Not here: the handlers (`powertools`), and the table of what is checked (`lambda_table`).
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engine.attempts import Processed, Work
from engine.batch import Batch, from_rows
from engine.clock import SystemClock
from engine.compose.handlers import EventSettings, build_handler
from engine.context import Context
from engine.failing import Policy
from engine.protocols import Clock, FailedRecord, Handler, Invocation, Result, Window
from engine.shard import Shard
from functions.environments.contract import Report
from functions.kinds.events import EventHandler
from tests.unit.engine_world import EngineWorld

TOPIC = "clicks"
TIMESTAMP_MS = 1_700_000_000_123
SECONDS_MAX = 30.0


class Log:
    """A log stream that keeps what the function prints and what the platform says, in order."""

    def __init__(self) -> None:
        self._data = b""

    @property
    def lines(self) -> list[str]:
        """Lines end with LF alone: AWS joins the parts of an error with CR."""
        return self._data.decode().removesuffix("\n").split("\n")

    def write(self, data: bytes) -> None:
        self._data += data

    def platform(self, line: str) -> None:
        if self._data and not self._data.endswith(b"\n"):
            self._data += b"\n"
        self._data += line.encode() + b"\n"

    def clear(self) -> None:
        self._data = b""


@dataclass
class Function:
    """A running function; `calls` are the offsets that each invocation had."""

    handler: EventHandler
    log: Log
    reports: list[Report]
    calls: list[list[int]] = field(default_factory=list)
    wants_columns: bool = False

    async def open(self) -> None:
        await self.handler.open()

    async def close(self) -> None:
        await self.handler.close()

    async def invoke(self, invocation: Invocation) -> Result:
        self.calls.append(invocation.batch.offsets.tolist())
        return await self.handler.invoke(invocation)

    async def call(self, batch: Batch, *, window: Window | None = None) -> Result:
        """One invocation on a batch."""
        async with asyncio.timeout(SECONDS_MAX):
            return await self.invoke(Invocation(batch, None, context(), window))

    async def seen(self, batch: Batch, *, window: Window | None = None) -> Any:
        """What a function that tells what it saw, as JSON in a row, was given."""
        result = await self.call(batch, window=window)
        assert isinstance(result.rows, Sequence)
        [row] = result.rows
        return json.loads(str(row["seen"]))


@asynccontextmanager
async def function(
    kind: str, handler: str, root: Path, *, timeout_seconds: float = SECONDS_MAX, **settings: Any
) -> AsyncIterator[Function]:
    """A function built as pipelines build theirs, whose processes end with the block."""
    log, reports = Log(), list[Report]()
    given: dict[str, Any] = {
        "function_name": "clicks-fn",
        "memory_size_mb": 512,
        "reserved_concurrency": 1,
        "reports_item_failures": True,
        **settings,
    }
    events = EventSettings(root=root, logs=lambda _: log, on_report=reports.append, **given)
    built = build_handler(kind=kind, handler=handler, timeout_seconds=timeout_seconds, events=events)
    assert isinstance(built, EventHandler)
    try:
        yield Function(built, log, reports)
    finally:
        await built.close()


def context(timeout_seconds: float = SECONDS_MAX) -> Context:
    return Context("clicks-fn", "512", int((time.time() + timeout_seconds) * 1000))


def batch(*values: bytes | None, key: bytes | None = b"k", headers: Sequence[Any] = (), start: int = 0) -> Batch:
    """Records of one key at contiguous offsets of partition 3, a second apart."""
    rows = [
        (start + index, TIMESTAMP_MS + index * 1_000, key, value, list(headers))
        for index, value in enumerate(values)
    ]
    return from_rows(TOPIC, 3, rows, start=start, end=start + len(rows))


@dataclass
class Worked:
    """What came of a batch: the parts in order, and what each record came to."""

    parts: list[Processed]

    @property
    def handled(self) -> int:
        return sum(part.outcome.counts.handled for part in self.parts)

    @property
    def failures(self) -> list[FailedRecord]:
        return [failure for part in self.parts for failure in part.outcome.failures]

    @property
    def failed(self) -> list[int]:
        return [failure.offset for failure in self.failures]


class Steps(SystemClock):
    """A clock whose time of day stands still, but for what a test adds to it."""

    def __init__(self, now: float) -> None:
        self.now = now

    def time(self) -> float:
        return self.now


async def worked(handler: Handler, given: Batch, rules: Policy, clock: Clock | None = None) -> Worked:
    """A batch on its way through the engine: attempts, cuts, halves, reports; its parts are contiguous."""
    tools = await EngineWorld(clock=clock or SystemClock()).tools(handler, rules=rules)
    tools.processor.context = context
    work, stopping, parts = Work(tools.processor, given), asyncio.Event(), []
    async with asyncio.timeout(SECONDS_MAX):
        while not work.is_done:
            done = await work.step(stopping)
            if done is not None:
                parts.append(done)
    position = given.start
    for part in parts:
        assert part.outcome.start == position
        position = part.outcome.end
    return Worked(parts)


async def caught_up(shard: Shard, task: asyncio.Task[None]) -> None:
    """Wait for a shard that itself waits for something real: a process, or the pause between attempts."""
    async with asyncio.timeout(SECONDS_MAX):
        while not (shard.is_caught_up or task.done()):  # noqa: ASYNC110  # it has no event to wait for
            await asyncio.sleep(0.001)
    if task.done():
        await task
