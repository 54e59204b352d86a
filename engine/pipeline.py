"""One pipeline from its start to its end: the topic, the sink, the group, the pool, and what ended it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from engine import logs
from engine.batching import Batcher
from engine.breaker import Breaker
from engine.budget import ByteBudget
from engine.config import PipelineConfig, SourceConfig, batch_size
from engine.config_sinks import sink_target
from engine.decoding import Decoders
from engine.errors import HeadraceError, InternalError
from engine.output import Output
from engine.pool import ShardPool, Totals
from engine.positions import Positions, StreamCheck
from engine.processing import Processor
from engine.protocols import Clock, Destination, FailedRecord, Filter, Handler, Sink, Source
from engine.recent import RecentFailures
from engine.shard import unless
from engine.shard_tools import ShardStatistics, ShardTools
from engine.status import Billing, FailureEntry, FunctionStatus, PipelineStatus, ShardStatus

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
    recent: RecentFailures | None = None


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
        self._partitions = 0
        self._has_ended = False

    @property
    def handler(self) -> Handler:
        return self._parts.handler

    @property
    def function_name(self) -> str:
        """What its function is called, in its context and in what it is billed by."""
        function = self._parts.config.function
        return (function.name if function is not None else None) or self.name

    def statistics(self) -> list[ShardStatistics]:
        return self._pool.statistics() if self._pool is not None else []

    def totals(self) -> Totals:
        return self._pool.totals() if self._pool is not None else Totals()

    def status(self, billing: Billing) -> PipelineStatus:
        """What it does now, as plain data; ``billing`` is of its function, as far as there is any."""
        parts, totals, measures = self._parts, self.totals(), self._parts.processor.measures
        config = parts.config
        function = config.function
        state = "ended" if self._has_ended else "starting" if self._pool is None else "running"
        return PipelineStatus(
            name=self.name,
            topic=config.source.topic,
            sink=config.sink.type,
            target=sink_target(config.sink),
            state=state,
            error=None if self.error is None else str(self.error),
            shards=tuple(_shard_status(each) for each in sorted(self.statistics(), key=lambda s: s.partition)),
            function=FunctionStatus(
                name=self.function_name,
                kind=None if function is None else function.kind,
                invocations=measures.invocations,
                errors=measures.errors,
                throttles=measures.throttles,
                retries=measures.retries,
                splits=measures.splits,
                billed_ms=billing.billed_ms,
                billed_gb_seconds=billing.gb_seconds,
                estimated_usd=billing.usd,
                duration=measures.duration.distribution(),
                batch_records=measures.batch_records.distribution(),
            ),
            records=totals.polled,
            rows=totals.rows,
            commits=totals.commits,
            counts=totals.counts,
            commit=measures.commit.distribution(),
            partitions=self._partitions,
        )

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
        logs.task_is_about(pipeline=self.name)
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
        self._has_ended = True
        if self.error is not None:
            log.error("%s: %s", self.name, self._conclusion(self.error), extra={"error": self.error})

    def _failed(self, records: Sequence[FailedRecord]) -> None:
        """Keep the latest failed records for those who look; the sink has them all."""
        assert self._parts.recent is not None
        now = self._parts.clock.time()
        topic = self._parts.config.source.topic
        self._parts.recent.extend([_entry(self.name, topic, now, record) for record in records])

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
        self._partitions = stream.partitions
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
                on_failed=self._failed if parts.recent is not None else None,
            ),
            drain_seconds_max=parts.drain_seconds_max,
            targets=self._targets if self._until_caught_up else None,
            commits_group_offsets=parts.commits_group_offsets,
        )
        await self._pool.run(stopping)
        errors = self._pool.errors
        if errors:
            self.error = max(errors.values(), key=lambda error: error.domain)


def _shard_status(shard: ShardStatistics) -> ShardStatus:
    return ShardStatus(
        partition=shard.partition,
        state=shard.state,
        position=shard.position,
        read=shard.read,
        end=shard.end,
        iterator_age_seconds=shard.iterator_age_seconds,
        stalled_seconds=shard.stalled_seconds,
        records=shard.records,
        batches=shard.batches,
        rows=shard.rows,
        commits=shard.commits,
        counts=shard.counts,
        held_bytes=shard.held_bytes,
        undelivered=shard.undelivered,
        error=shard.error,
    )


def _entry(pipeline: str, topic: str, now: float, record: FailedRecord) -> FailureEntry:
    return FailureEntry(
        pipeline=pipeline,
        topic=topic,
        partition=record.partition,
        offset=record.offset,
        timestamp=record.timestamp,
        failed_at=now,
        key=record.key,
        value=record.value,
        headers=record.headers,
        reason=record.reason,
        error_type=record.error_type,
        attempts=record.attempts,
        request_id=record.request_id,
    )


def _breaker(source: SourceConfig) -> Callable[[], Breaker] | None:
    if source.failed_share_max >= 1:
        return None
    return lambda: Breaker(share_max=source.failed_share_max, records=source.failed_share_records)


async def _true(work: object) -> bool:
    """Await what gives nothing, so that its end can be told from its cancellation."""
    await work  # type: ignore[misc]
    return True
