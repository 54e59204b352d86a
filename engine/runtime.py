"""All pipelines of a file in one process: started together, drained together, one exit code."""

from __future__ import annotations

import asyncio
import importlib.metadata
import logging
import os
import resource
import time
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any, Protocol

from engine.clock import SystemClock
from engine.errors import Domain, HeadraceError
from engine.loop_watch import LoopStatistics, LoopWatch
from engine.pipeline import Pipeline
from engine.recent import RecentFailures
from engine.status import Billing, EngineStatus
from engine.tracing import Tracing

log = logging.getLogger("headrace.runtime")

VERSION = importlib.metadata.version("headrace")

#: How often what the process does is put together for those who look.
STATUS_SECONDS = 1.0


class Budget(Protocol):
    """The bytes in flight."""

    @property
    def total(self) -> int: ...

    @property
    def bytes_max(self) -> int: ...


class Metering(Protocol):
    """Keeps the sums of what invocations cost."""

    async def run(self) -> None:
        """Write them now and then, and once more when cancelled."""

    def billing(self, function: str) -> Billing:
        """What AWS would bill for a function's invocations so far."""


class Logs(Protocol):
    """Takes what functions print."""

    def close(self) -> None:
        """Write what waits; blocks."""


class Beside(Protocol):
    """Work of a process that is no pipeline: joining files, copying a database."""

    async def run(self) -> None:
        """Work until cancelled. Never raises."""


class Runtime:
    """``meter`` and ``logs`` are those of the pipelines' functions, as far as there are any.

    ``beside`` runs as tasks as long as the pipelines do, and is cancelled then.
    """

    def __init__(
        self,
        pipelines: Sequence[Pipeline],
        *,
        meter: Metering | None = None,
        logs: Logs | None = None,
        budget: Budget | None = None,
        recent: RecentFailures | None = None,
        beside: Sequence[Beside] = (),
        tracing: Tracing | None = None,
    ) -> None:
        assert pipelines
        self.pipelines = pipelines
        self.recent = recent if recent is not None else RecentFailures(1, 1)
        self._budget = budget
        self._beside = beside
        self._tracing = tracing
        self._started_at = time.time()
        self._status: EngineStatus | None = None
        self._meter = meter
        self._logs = logs
        self._watch = LoopWatch(SystemClock())

    def loop_statistics(self) -> LoopStatistics:
        """How long the event loop was blocked while the pipelines ran."""
        return self._watch.statistics()

    def status(self) -> EngineStatus | None:
        """The last moment that was put together, None before the first. May be called in any thread."""
        return self._status

    async def _look(self) -> None:
        while True:
            try:
                self._status = self._now()
            except Exception:
                log.exception("what the engine does cannot be shown")
            await asyncio.sleep(STATUS_SECONDS)

    def _now(self) -> EngineStatus:
        loop = self._watch.statistics()
        usage = resource.getrusage(resource.RUSAGE_SELF)
        none = Billing()
        return EngineStatus(
            at=time.time(),
            started_at=self._started_at,
            pid=os.getpid(),
            version=VERSION,
            cpu_seconds=usage.ru_utime + usage.ru_stime,
            resident_bytes=_resident_bytes(),
            budget_bytes=0 if self._budget is None else self._budget.total,
            budget_bytes_max=0 if self._budget is None else self._budget.bytes_max,
            loop_blocked_seconds_max=loop.blocked_seconds_max,
            loop_blocked_count=loop.blocked_count,
            pipelines=tuple(
                pipeline.status(none if self._meter is None else self._meter.billing(pipeline.function_name))
                for pipeline in self.pipelines
            ),
        )

    async def check(self) -> list[str]:
        """What is wrong with the functions, by starting each one's environment once; a line for each fault."""
        faults = []
        for pipeline in self.pipelines:
            try:
                await pipeline.handler.open()
            except HeadraceError as error:
                faults.append(f"pipelines.{pipeline.name}: {error}")
            finally:
                await pipeline.handler.close()
        if self._logs is not None:
            await asyncio.to_thread(self._logs.close)
        return faults

    async def run(self, stopping: asyncio.Event) -> int:
        """Run every pipeline to its end, each on its own; the exit code, the gravest of their errors."""
        async with asyncio.TaskGroup() as watching:
            works = [self._watch.run(), self._look(), *(each.run() for each in self._beside)]
            if self._meter is not None:
                works.append(self._meter.run())
            beside = [watching.create_task(_beside(work)) for work in works]
            async with asyncio.TaskGroup() as tasks:
                for pipeline in self.pipelines:
                    tasks.create_task(pipeline.run(stopping))
            for task in beside:
                task.cancel()
        if self._tracing is not None:
            await self._tracing.close()
        if self._logs is not None:
            await asyncio.to_thread(self._logs.close)
        domains = [pipeline.error.domain for pipeline in self.pipelines if pipeline.error is not None]
        return max((Domain(domain).value for domain in domains), default=0)


async def _beside(work: Coroutine[Any, Any, None]) -> None:
    """Work that the pipelines do not need: what goes wrong with it is said, and ends nothing else."""
    try:
        await work
    except Exception:
        log.exception("work beside the pipelines has ended; they go on without it")


def _resident_bytes() -> int:
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return 0
    return pages * resource.getpagesize()
