"""The engine over memory, for its unit tests: a topic, a store, and members that read one into the other."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa

from connectors.memory import MemoryCluster, MemoryDestination, MemoryLog, MemorySink, MemorySource, MemoryStore
from engine.batch import Batch, from_rows
from engine.batching import KEYS_AND_VALUES, Batcher
from engine.breaker import Breaker
from engine.budget import ByteBudget
from engine.config import SourceConfig
from engine.context import Context
from engine.failing import Policy
from engine.output import Output
from engine.pool import ShardPool
from engine.positions import Positions, StreamCheck
from engine.processing import Processor
from engine.protocols import Clock, Destination, Fault, Filter, Handler, Invocation, Result, Source
from engine.shard import Shard
from engine.shard_tools import ShardTools
from tests.clock import ManualClock

TOPIC = "clicks"

Function = Callable[[Invocation], Result | Awaitable[Result | None] | None]


class FunctionHandler:
    """A handler over a plain function of the invocation; `invocations` keeps every call."""

    wants_columns = False

    def __init__(self, function: Function) -> None:
        self._function = function
        self.invocations: list[Invocation] = []

    async def invoke(self, invocation: Invocation) -> Result:
        self.invocations.append(invocation)
        given = self._function(invocation)
        result = await given if inspect.isawaitable(given) else given
        return result or Result()

    async def open(self) -> None:
        return

    async def close(self) -> None:
        return


def copy(invocation: Invocation) -> Result:
    """A row for each record, which names it."""
    return Result(rows=rows_of(invocation.batch))


def rows_of(batch: Batch, without: Sequence[int] = ()) -> list[dict[str, object]]:
    rows = [{"_offset": row["offset"], "value": row["value"]} for row in batch.records.to_pylist()]
    return [row for row in rows if row["_offset"] not in without]


def failing(*offsets: int) -> Function:
    """A function that reports the records at ``offsets`` and copies the others."""

    def function(invocation: Invocation) -> Result:
        found = [offset for offset in invocation.batch.records.column("offset").to_pylist() if offset in offsets]
        faults = [Fault(offset, f"{offset} is bad") for offset in found]
        return Result(rows=rows_of(invocation.batch, found), faults=faults)

    return function


def policy(**changes: Any) -> Policy:
    given = Policy(
        retries_max=-1,
        backoff_seconds=0.001,
        backoff_seconds_max=0.002,
        record_bytes_max=1_000_000,
        payload_bytes_max=1_000_000,
        reports=False,
        drops=False,
    )
    return dataclasses.replace(given, **changes)


def context() -> Context:
    return Context("f", "128", 0)


def batch(values: Sequence[bytes | None], start: int = 0, partition: int = 0, end: int | None = None) -> Batch:
    """A batch of records at contiguous offsets."""
    log = MemoryLog()
    for _ in range(start):
        log.mark()
    for value in values:
        log.append(value)
    rows, stop = log.read(start, len(values) + 1, read_committed=True)
    return from_rows(TOPIC, partition, rows, start=start, end=stop if end is None else end)


class EngineWorld:
    """``clock`` is by hand unless given. What `member` gives shares the topic, the group and the store."""

    def __init__(self, partitions: int = 1, clock: Clock | None = None) -> None:
        self.cluster = MemoryCluster()
        self.topic = self.cluster.create(TOPIC, partitions)
        self.store = MemoryStore()
        self.destination = MemoryDestination()
        self.clock: Clock = ManualClock() if clock is None else clock

    def append(self, partition: int, count: int, size: int = 1) -> None:
        for _ in range(count):
            log = self.topic.partitions[partition]
            log.append(b"%d" % log.end + b"." * (size - 1))

    def rows(self, partition: int = 0) -> list[int]:
        """The offsets of a shard's committed rows, in their order."""
        table = self.store.table(partition)
        return [] if table is None else table.column("_offset").to_pylist()

    def failures(self, partition: int = 0) -> list[int]:
        return [failure.offset for failure in self.store.shard(partition).failures]

    def position(self, partition: int = 0) -> int | None:
        return self.store.shard(partition).position

    async def tools(
        self,
        handler: Handler,
        *,
        rules: Policy | None = None,
        source: Source | None = None,
        destination: Destination | None = None,
        batcher: Callable[[], Batcher] | None = None,
        budget: ByteBudget | None = None,
        shard_bytes_max: int = 1_000_000,
        batch_size: int = 10,
        window_seconds: float = 0.0,
        outage_seconds_max: float = 60.0,
        fetch_records_max: int = 1_000,
        sink: Mapping[str, Any] | None = None,
        lanes: int = 1,
        lane_bytes_max: int = 1_000_000,
        choose: Filter | None = None,
        breaker: Callable[[], Breaker] | None = None,
        tumbling_seconds: int = 0,
        tumbling_wait_seconds: float = 0.0,
        **config: Any,
    ) -> ShardTools:
        """What shards of this world need; opens the sink."""
        members = MemorySource(self.cluster, topic=TOPIC, group_id="g", clock=self.clock)
        source = members if source is None else source
        stream = await source.open()
        store = MemorySink(self.store, pipeline="p", clock=self.clock, **(sink or {}))
        await store.open(stream)
        output = Output(store)
        await output.open()
        processor = Processor(
            name="p",
            handler=handler,
            decoders=None,
            output=output,
            policy=rules or policy(reports=destination is not None),
            context=context,
            payload=KEYS_AND_VALUES,
            clock=self.clock,
            executor=ThreadPoolExecutor(1),
        )
        check = StreamCheck("p", source, stream)
        return ShardTools(
            name="p",
            source=source,
            sink=store,
            processor=processor,
            positions=Positions("p", source, store, SourceConfig(topic=TOPIC, **config), stream, check),
            destination=destination,
            batcher=batcher
            or (
                lambda: Batcher(records_max=batch_size, window_seconds=window_seconds, payload_bytes_max=1_000_000)
            ),
            budget=budget or ByteBudget(100_000_000),
            clock=self.clock,
            fetch_records_max=fetch_records_max,
            shard_bytes_max=shard_bytes_max,
            on_commit=lambda _partition, _position: None,
            outage_seconds_max=outage_seconds_max,
            filter=choose,
            lanes=lanes,
            lane_bytes_max=lane_bytes_max,
            window_seconds=tumbling_seconds,
            window_wait_seconds=tumbling_wait_seconds,
            breaker=breaker,
        )

    @contextlib.asynccontextmanager
    async def shard(
        self, handler: Handler, *, partition: int = 0, target: int | None = None, **options: Any
    ) -> AsyncIterator[tuple[Shard, asyncio.Task[None]]]:
        """A shard that runs on a member which owns every partition; stopped at the end."""
        tools = await self.tools(handler, **options)
        ready = _Ready()
        await tools.source.join(ready)
        await ready.event.wait()
        shard = Shard(partition, tools, target=target)
        task = asyncio.create_task(shard.run())
        try:
            yield shard, task
        finally:
            shard.abandon()
            await asyncio.gather(task, return_exceptions=True)
            await tools.source.close()

    async def pool(
        self,
        handler: Handler,
        *,
        drain_seconds_max: float = 5.0,
        until_caught_up: bool = False,
        **options: Any,
    ) -> ShardPool:
        """A pool, not yet running."""
        tools = await self.tools(handler, **options)
        targets = await tools.source.end_offsets(range(len(self.topic.partitions))) if until_caught_up else None
        return ShardPool(tools, drain_seconds_max=drain_seconds_max, targets=targets)


class _Ready:
    def __init__(self) -> None:
        self.event = asyncio.Event()

    async def assigned(self, partitions: frozenset[int]) -> None:
        self.event.set()

    async def revoked(self, partitions: frozenset[int]) -> None:
        return


def offsets(table: pa.Table | None) -> list[int]:
    return [] if table is None else table.column("_offset").to_pylist()
