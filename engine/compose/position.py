"""What ``headrace position`` does: where the shards of a pipeline stand, and moving them.

Looking changes nothing, not even a sink that was never opened. A move goes through the sink's own shard
writer, so a running owner is fenced and asks again. It only ever goes forward once there is a position: the
sink may hold rows of what lies before it, and they would be written twice. A pipeline without a sink has its
position in the consumer group, which may be moved anywhere while it has no members.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import difflib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Literal

from connectors.duckdb.aggregate import canonical
from connectors.duckdb.catalog import Binding
from connectors.duckdb.positions import read_positions as read_duckdb_positions
from connectors.duckdb.schema import TableName
from connectors.ducklake.reading import read_positions as read_lake_positions
from connectors.kafka.cluster import Cluster
from connectors.kafka.groups import group_offsets, move_group_offsets
from connectors.kafka.sink import read_positions as read_kafka_positions
from connectors.kafka.sink import state_topic_of
from connectors.parquet.positions import read_positions as read_parquet_positions
from engine.batch import Stream
from engine.clock import SystemClock
from engine.compose.kafka import kafka_settings
from engine.compose.pipelines import build_ends
from engine.config import Config, PipelineConfig, group_id
from engine.config_sinks import (
    DuckDBSinkConfig,
    DuckLakeSinkConfig,
    KafkaSinkConfig,
    NoSinkConfig,
    ParquetSinkConfig,
)
from engine.errors import RecreatedTopic, ShardLost, SinkUnavailable, UserError
from engine.protocols import Counts, Outcome, Sink, Source

#: How often a running owner may take a shard back before the move gives up.
TAKEOVERS_MAX = 10
TAKEOVER_SECONDS = 0.2

Target = Literal["earliest", "latest"] | int | dt.datetime


@dataclass(frozen=True, slots=True)
class ShardPosition:
    """Offsets of one partition: each is that of the next record. None where there is none yet.

    ``end`` is the last stable offset, where a read_committed reader ends.
    """

    pipeline: str
    topic: str
    partition: int
    position: int | None
    log_start: int
    end: int
    group_offset: int | None

    @property
    def lag(self) -> int | None:
        """Offsets that the log has and the sink has not passed; None before the first commit."""
        if self.position is None:
            return None
        return max(0, self.end - max(self.position, self.log_start))

    @property
    def note(self) -> str | None:
        if self.position is None:
            return "not started"
        if self.position < self.log_start:
            return f"{self.log_start - self.position} offsets are lost: the log starts at {self.log_start}"
        if self.position > self.end:
            return f"beyond the log, which ends at {self.end}"
        return None


@dataclass(frozen=True, slots=True)
class Move:
    """A shard's position before (None: it had none) and after."""

    pipeline: str
    topic: str
    partition: int
    before: int | None
    after: int

    def __str__(self) -> str:
        where = f"{self.pipeline}: {self.topic}-{self.partition}"
        if self.before is None:
            return f"{where}: starts at offset {self.after}"
        if self.before == self.after:
            return f"{where}: is at offset {self.after} already"
        if self.before < self.after:
            return f"{where}: from offset {self.before} to {self.after}, {self.after - self.before} skipped"
        return f"{where}: from offset {self.before} back to {self.after}"


class _Ends:
    """Both ends of one pipeline: the opened topic, its group's offsets, and the sink as it is configured."""

    def __init__(self, name: str, config: PipelineConfig, source: Source, sink: Sink, cluster: Cluster) -> None:
        self.name = name
        self.config = config
        self.source = source
        self.sink = sink
        self.cluster = cluster
        self.stream = Stream("", "", "", 0)

    @property
    def group(self) -> str:
        return group_id(self.name, self.config)

    async def shards(self, partitions: Sequence[int] | None = None) -> list[ShardPosition]:
        """Where the partitions (by default all) stand now."""
        chosen = list(range(self.stream.partitions)) if partitions is None else list(partitions)
        starts = await self.source.beginning_offsets(chosen)
        positions = await self.positions()
        # The ends last: a running pipeline is then never seen beyond them.
        ends = await self.source.end_offsets(chosen)
        group = await group_offsets(self.cluster, self.group, self.stream.topic, chosen)
        if self.config.has_group_position:
            positions = group
        elif isinstance(self.config.sink, NoSinkConfig):  # it goes on from the group's where it has none
            positions = {number: group[number] if at is None else at for number, at in positions.items()}
        return [
            ShardPosition(
                self.name, self.stream.topic, number, positions[number], starts[number], ends[number], group[number]
            )
            for number in chosen
        ]

    async def positions(self) -> Mapping[int, int | None]:
        """What the sink says, without taking it into use."""
        match self.config.sink:
            case ParquetSinkConfig() as sink:
                return await asyncio.to_thread(
                    read_parquet_positions, sink.path, pipeline=self.name, stream=self.stream
                )
            case DuckDBSinkConfig() as sink:
                table, order = str(TableName.parse(sink.table)), sink.order_by if sink.mode == "upsert" else ""
                binding = Binding(self.name, table, sink.mode, sink.key, order, canonical(sink.aggregates or {}))
                return await asyncio.to_thread(read_duckdb_positions, sink.path, binding, self.stream)
            case DuckLakeSinkConfig() as sink:
                binding = Binding(self.name, str(TableName.parse(sink.table)), "append", (), "")
                return await asyncio.to_thread(read_lake_positions, sink.path, binding, self.stream)
            case NoSinkConfig() if self.config.has_group_position:
                return {}
            case (KafkaSinkConfig() | NoSinkConfig()) as sink:
                return await read_kafka_positions(
                    self.cluster,
                    SystemClock(),
                    pipeline=self.name,
                    stream=self.stream,
                    output=sink.topic if isinstance(sink, KafkaSinkConfig) else "",
                    state_topic=state_topic_of(self.name),
                )


async def show(config: Config, name: str, *, bootstrap: str | None = None) -> list[ShardPosition]:
    """Every shard of a pipeline. Raises what the cluster and the sink raise; changes nothing."""
    async with _open(config, name, bootstrap) as ends:
        return await ends.shards()


async def move(
    config: Config,
    name: str,
    target: Target,
    *,
    partitions: Sequence[int] = (),
    skip: bool = False,
    bootstrap: str | None = None,
    tell: Callable[[Move], None] = lambda _move: None,
) -> list[Move]:
    """Move the position of a pipeline's partitions (all when none are named); ``tell`` hears of each move.

    Either every move is allowed, or nothing is moved and UserError lists why. ``skip`` allows to pass records
    by, which are counted as absent. Each partition is moved in one step, all of them in none.
    """
    async with _open(config, name, bootstrap) as ends:
        chosen = _chosen(ends, target, partitions)
        shards = await ends.shards(chosen)
        moves = await _planned(ends, target, shards)
        populated = not ends.config.has_group_position
        faults = [
            fault
            for shard, each in zip(shards, moves, strict=True)
            if (fault := _fault(shard, each, skip=skip, populated=populated)) is not None
        ]
        if faults:
            raise UserError("\n  ".join([f"pipeline {name}: no position was moved", *faults]))
        if ends.config.has_group_position:
            offsets = {each.partition: each.after for each in moves if each.before != each.after}
            if offsets:
                await move_group_offsets(ends.cluster, ends.group, ends.stream.topic, offsets)
            for each in moves:
                tell(each)
            return moves
        return await _through_the_sink(ends, shards, moves, skip=skip, tell=tell)


@asynccontextmanager
async def _open(config: Config, name: str, bootstrap: str | None) -> AsyncIterator[_Ends]:
    if name not in config.pipelines:
        near = difflib.get_close_matches(name, config.pipelines, n=1)
        hint = f"did you mean {near[0]}?" if near else f"it has {', '.join(config.pipelines)}"
        raise UserError(f"the configuration has no pipeline {name!r}", hint=hint)
    pipeline = _cautious(config.pipelines[name])
    config = config.model_copy(update={"pipelines": {**config.pipelines, name: pipeline}})
    source, sink = build_ends(config, name, bootstrap=bootstrap)
    cluster = Cluster(kafka_settings(config.kafka, bootstrap), SystemClock())
    ends = _Ends(name, pipeline, source, sink, cluster)
    try:
        ends.stream = await source.open()
        await cluster.open()
        yield ends
    except RecreatedTopic as error:
        hint = "run the pipeline first: it goes on with the new topic, or says how to"
        raise RecreatedTopic(f"pipeline {name}: {error.message}", hint=hint) from error
    finally:
        await cluster.close()
        await source.close()


def _cautious(pipeline: PipelineConfig) -> PipelineConfig:
    """The same pipeline, but it neither waits for a DuckDB file nor goes on with a topic that was made anew."""
    source = pipeline.source.model_copy(update={"on_recreated_topic": "stop"})
    sink = pipeline.sink
    if isinstance(sink, DuckDBSinkConfig | DuckLakeSinkConfig):
        sink = sink.model_copy(update={"lock_wait_seconds_max": 0.0})
    return pipeline.model_copy(update={"source": source, "sink": sink})


def _chosen(ends: _Ends, target: Target, partitions: Sequence[int]) -> list[int]:
    count = ends.stream.partitions
    where = f"pipeline {ends.name}: topic {ends.stream.topic!r}"
    unknown = sorted({number for number in partitions if not 0 <= number < count})
    if unknown:
        raise UserError(f"{where} has no partition {unknown[0]}; valid are 0 to {count - 1}")
    if isinstance(target, int) and not partitions and count > 1:
        raise UserError(
            f"{where} has {count} partitions, and the offset {target} means another record in each",
            hint="name the one that is meant with --partition",
        )
    return sorted(set(partitions)) or list(range(count))


async def _planned(ends: _Ends, target: Target, shards: Sequence[ShardPosition]) -> list[Move]:
    after = {shard.partition: shard.end for shard in shards}
    if target == "earliest":
        after = {shard.partition: shard.log_start for shard in shards}
    elif isinstance(target, dt.datetime):
        after = await ends.source.offsets_at(list(after), int(target.timestamp() * 1000))
    elif isinstance(target, int):
        after = dict.fromkeys(after, target)
    return [
        Move(ends.name, ends.stream.topic, shard.partition, shard.position, after[shard.partition])
        for shard in shards
    ]


def _fault(shard: ShardPosition, wanted: Move, *, skip: bool, populated: bool) -> str | None:
    """Why a move cannot be, in a sentence; None if it can."""
    where = f"{shard.topic}-{shard.partition}"
    before, after = wanted.before, wanted.after
    if before == after:
        return None
    if not shard.log_start <= after <= shard.end:
        return f"{where}: offset {after} is not in the log, which has {shard.log_start} to {shard.end}"
    if before is None:
        return None
    if before < after:
        if skip:
            return None
        return (
            f"{where}: offsets {before} to {after - 1} would be skipped, {after - before} of them: --skip confirms"
        )
    if populated:
        return (
            f"{where}: from offset {before} back to {after}: rows of these offsets are already there; they would "
            "be written twice. To read them again, give the pipeline another name and an empty sink"
        )
    return None


async def _through_the_sink(
    ends: _Ends, shards: Sequence[ShardPosition], moves: Sequence[Move], *, skip: bool, tell: Callable[[Move], None]
) -> list[Move]:
    done = []
    await ends.sink.open(ends.stream)
    try:
        for shard, planned in zip(shards, moves, strict=True):
            made = planned if planned.before == planned.after else await _moved(ends.sink, shard, planned, skip)
            tell(made)
            done.append(made)
    finally:
        await ends.sink.close()
    return done


async def _moved(sink: Sink, shard: ShardPosition, planned: Move, skip: bool) -> Move:
    """Take the shard over and commit the range that leads to its new position, as a range of absent records.

    A running owner may commit first, and then the move is judged anew; or take the shard back, and it is tried
    again.
    """
    for _ in range(TAKEOVERS_MAX):
        writer = None
        try:
            writer = await sink.acquire(planned.partition)
            before, after = writer.position, planned.after
            made = Move(planned.pipeline, planned.topic, planned.partition, before, after)
            if before == after:
                return made
            fault = _fault(shard, made, skip=skip, populated=True)
            if fault is not None:
                raise UserError(f"pipeline {planned.pipeline}: the position moved meanwhile: {fault}")
            start = after if before is None else before
            await writer.write(Outcome(start, after, None, Counts(absent=after - start)))
            position = await writer.commit()
            assert position == after, f"committed {position}, not {after}"
            return made
        except ShardLost:
            await asyncio.sleep(TAKEOVER_SECONDS)
        finally:
            if writer is not None:
                await writer.release()
    raise SinkUnavailable(
        f"pipeline {planned.pipeline}: {planned.topic}-{planned.partition} was taken back {TAKEOVERS_MAX} times "
        f"before offset {planned.after} could be committed",
        hint="stop the pipeline first",
    )
