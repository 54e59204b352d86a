"""All pipelines of a file in one process: started together, drained together, one exit code."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from engine.clock import SystemClock
from engine.errors import Domain
from engine.loop_watch import LoopStatistics, LoopWatch
from engine.pipeline import Pipeline

log = logging.getLogger("headrace.runtime")


class Runtime:
    def __init__(self, pipelines: Sequence[Pipeline]) -> None:
        assert pipelines
        self.pipelines = pipelines
        self._watch = LoopWatch(SystemClock())

    def loop_statistics(self) -> LoopStatistics:
        """How long the event loop was blocked while the pipelines ran."""
        return self._watch.statistics()

    async def run(self, stopping: asyncio.Event) -> int:
        """Run every pipeline to its end, each on its own; the exit code, the gravest of their errors."""
        async with asyncio.TaskGroup() as watching:
            watch = watching.create_task(self._watch.run())
            async with asyncio.TaskGroup() as tasks:
                for pipeline in self.pipelines:
                    tasks.create_task(pipeline.run(stopping))
            watch.cancel()
        domains = [pipeline.error.domain for pipeline in self.pipelines if pipeline.error is not None]
        return max((Domain(domain).value for domain in domains), default=0)
