"""One pipeline from its start to its end: the topic, the sink, the group, the pool, and what ended it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from engine.batching import Batcher
from engine.breaker import Breaker
from engine.budget import ByteBudget
from engine.config import PipelineConfig, SourceConfig, batch_size
from engine.decoding import Decoders
from engine.errors import HeadraceError, InternalError
from engine.output import Output
from engine.pool import ShardPool, Totals
from engine.positions import Positions, StreamCheck
from engine.processing import Processor
from engine.protocols import Clock, Destination, Filter, Handler, Sink, Source
from engine.shard import ShardStatistics, ShardTools, unless

log = logging.getLogger("headrace.pipeline")


@dataclass(frozen=True, slots=True)
class PipelineParts:
    """What the composition root put together for a pipeline."""

    name: str
    config: PipelineConfig
    source: Source
    sink: Sink
    handler: Handler
    decoders: Decoders | None
    output: Output
    processor: Processor
    destination: Destination | None
    batcher: Callable[[], Batcher]
    budget: ByteBudget
    clock: Clock
    shard_bytes_max: int
    drain_seconds_max: float
    outage_seconds_max: float
    commits_group_offsets: bool
    prepare: Callable[[], Awaitable[None]] | None = None  #: what has to be there before the source is opened
    filter: Filter | None = None
    phase: Callable[[str], None] | None = None


@dataclass(frozen=True, slots=True)
class Progress:
    """Offsets between the start of the run and its targets, where there are any: how many, and how many done."""

    total: int
    done: int


class Pipeline:
    def __init__(self, parts: PipelineParts, *, until_caught_up: bool) -> None:
        self.name = parts.name
        self.error: HeadraceError | None = None
        self._parts = parts
        self._until_caught_up = until_caught_up
        self._pool: ShardPool | None = None
        self._targets: dict[int, int] = {}
        self._starts: dict[int, int] = {}

    @property
    def handler(self) -> Handler:
        return self._parts.handler

    def statistics(self) -> list[ShardStatistics]:
        return self._pool.statistics() if self._pool is not None else []

    def totals(self) -> Totals:
        return self._pool.totals() if self._pool is not None else Totals()

    def progress(self) -> Progress:
        total = done = 0
        at = {shard.partition: shard.position for shard in self.statistics()}
        for partition, target in self._targets.items():
            start = min(self._starts.get(partition, 0), target)
            position = at.get(partition)
            total += target - start
            done += max(0, min(target, start if position is None else position) - start)
        return Progress(total, done)

    async def run(self, stopping: asyncio.Event) -> None:
        """Run until ``stopping`` or caught up. Never raises; `error` says what ended it, if anything did."""
        parts = self._parts
        try:
            await self._run(stopping)
        except HeadraceError as error:
            self.error = error
        except Exception as error:
            log.exception("%s", self.name)
            self.error = InternalError(f"{self.name}: {type(error).__name__}: {error}")
        finally:
            for close in (
                parts.source.close,
                parts.sink.close,
                parts.handler.close,
                *((parts.destination.close,) if parts.destination is not None else ()),
            ):
                with contextlib.suppress(HeadraceError, OSError):
                    await close()
        if self.error is not None:
            log.error("%s: %s", self.name, self._conclusion(self.error))

    def _conclusion(self, error: HeadraceError) -> str:
        """What ended the pipeline; of shards that stopped, which: each has said why when it did."""
        stopped = self._pool.errors if self._pool is not None else {}
        if error not in stopped.values():
            return str(error).removeprefix(f"{self.name}: ")
        which = ", ".join(str(partition) for partition in sorted(stopped))
        return f"ended with {'partition' if len(stopped) == 1 else 'partitions'} {which} stopped"

    async def _ready(self) -> bool:
        """What shows that the pipeline cannot work, before anything is read."""
        await self._parts.handler.open()
        if self._parts.prepare is not None:
            await self._parts.prepare()
        if self._parts.filter is not None:
            await asyncio.to_thread(self._parts.filter.warm)
        return True

    async def _run(self, stopping: asyncio.Event) -> None:
        parts = self._parts
        if await unless(stopping, self._ready()) is None:
            return
        stream = await unless(stopping, parts.source.open())
        if stream is None:
            return
        partitions = list(range(stream.partitions))
        if self._until_caught_up:
            self._targets = await parts.source.end_offsets(partitions)
            beginnings = await parts.source.beginning_offsets(partitions)
        if await unless(stopping, _true(parts.sink.open(stream))) is None:
            return
        if parts.destination is not None:
            await parts.destination.open()
        if parts.decoders is not None:
            await parts.decoders.open()
        await parts.output.open()
        check = StreamCheck(self.name, parts.source, stream)
        await check.run()
        if self._until_caught_up and parts.commits_group_offsets:
            for partition in partitions:
                position = await parts.sink.position(partition)
                self._starts[partition] = beginnings[partition] if position is None else position
        source = parts.config.source
        positions = Positions(self.name, parts.source, parts.sink, parts.config.source, stream, check)
        self._pool = ShardPool(
            ShardTools(
                name=self.name,
                source=parts.source,
                sink=parts.sink,
                processor=parts.processor,
                positions=positions,
                destination=parts.destination,
                batcher=parts.batcher,
                budget=parts.budget,
                clock=parts.clock,
                fetch_records_max=max(batch_size(parts.config), 10_000),
                shard_bytes_max=parts.shard_bytes_max,
                on_commit=lambda _partition, _position: None,
                outage_seconds_max=parts.outage_seconds_max,
                phase=parts.phase,
                filter=parts.filter,
                lanes=source.parallelization_factor,
                lane_bytes_max=source.lane_bytes_max,
                window_seconds=source.tumbling_window_in_seconds,
                window_wait_seconds=source.tumbling_window_wait_in_seconds,
                breaker=_breaker(source),
            ),
            drain_seconds_max=parts.drain_seconds_max,
            targets=self._targets if self._until_caught_up else None,
            commits_group_offsets=parts.commits_group_offsets,
        )
        await self._pool.run(stopping)
        errors = self._pool.errors
        if errors:
            self.error = max(errors.values(), key=lambda error: error.domain)


def _breaker(source: SourceConfig) -> Callable[[], Breaker] | None:
    if source.failed_share_max >= 1:
        return None
    return lambda: Breaker(share_max=source.failed_share_max, records=source.failed_share_records)


async def _true(work: object) -> bool:
    """Await what gives nothing, so that its end can be told from its cancellation."""
    await work  # type: ignore[misc]
    return True
