"""All pipelines of a file in one process: started together, drained together, one exit code."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Protocol

from engine.clock import SystemClock
from engine.errors import Domain, HeadraceError
from engine.loop_watch import LoopStatistics, LoopWatch
from engine.pipeline import Pipeline

log = logging.getLogger("headrace.runtime")


class Metering(Protocol):
    """Keeps the sums of what invocations cost."""

    async def run(self) -> None:
        """Write them now and then, and once more when cancelled."""


class Logs(Protocol):
    """Takes what functions print."""

    def close(self) -> None:
        """Write what waits; blocks."""


class Runtime:
    """``meter`` and ``logs`` are those of the pipelines' functions, as far as there are any."""

    def __init__(
        self, pipelines: Sequence[Pipeline], *, meter: Metering | None = None, logs: Logs | None = None
    ) -> None:
        assert pipelines
        self.pipelines = pipelines
        self._meter = meter
        self._logs = logs
        self._watch = LoopWatch(SystemClock())

    def loop_statistics(self) -> LoopStatistics:
        """How long the event loop was blocked while the pipelines ran."""
        return self._watch.statistics()

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
            beside = [watching.create_task(self._watch.run())]
            if self._meter is not None:
                beside.append(watching.create_task(self._meter.run()))
            async with asyncio.TaskGroup() as tasks:
                for pipeline in self.pipelines:
                    tasks.create_task(pipeline.run(stopping))
            for task in beside:
                task.cancel()
        if self._logs is not None:
            await asyncio.to_thread(self._logs.close)
        domains = [pipeline.error.domain for pipeline in self.pipelines if pipeline.error is not None]
        return max((Domain(domain).value for domain in domains), default=0)
