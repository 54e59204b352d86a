"""Failed records that are committed in a sink and not delivered yet, read without owning or changing anything.

Not here: delivering them (`engine.delivery`), and what is at the destination (`engine.compose.dlq`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import duckdb
from aiokafka.client import AIOKafkaClient

from connectors.duckdb import catalog
from connectors.ducklake.reading import read_undelivered
from connectors.kafka.cluster import Cluster
from connectors.kafka.sink import state_topic_of
from connectors.kafka.sink.state import StateLog
from connectors.parquet.failures import FailureFiles
from connectors.parquet.files import Directories
from connectors.parquet.filesystem import OsFileSystem, reaching
from connectors.parquet.identity import IdentityFiles
from connectors.parquet.layout import HIDDEN, ShardLayout
from engine.batch import Stream
from engine.clock import SystemClock
from engine.config import PipelineConfig
from engine.config_sinks import DuckDBSinkConfig, DuckLakeSinkConfig, ParquetSinkConfig
from engine.errors import SinkUnavailable
from engine.protocols import FailedRecord
from functions.failures import Failure, Identity

#: Of one shard. More wait only where a destination has been away for long.
RECORDS_MAX = 1_000


@dataclass(frozen=True, slots=True)
class Waiting:
    """The first failures that wait in each shard; ``unknown`` says why there may be others."""

    failures: Sequence[Failure] = ()
    unknown: str | None = None

    def __add__(self, other: Waiting) -> Waiting:
        return Waiting([*self.failures, *other.failures], self.unknown or other.unknown)


async def waiting_in(name: str, pipeline: PipelineConfig, stream: Stream, cluster: Cluster) -> Waiting:
    """What waits in the sink of one pipeline. Raises what a sink raises that cannot be read."""
    match pipeline.sink:
        case ParquetSinkConfig() as sink:
            found = await asyncio.to_thread(_in_parquet, sink.path, stream)
        case DuckDBSinkConfig() as sink:
            try:
                found = await asyncio.to_thread(_in_duckdb, sink.path, name, stream)
            except duckdb.Error as error:
                text = str(error).strip().splitlines()[0]
                held = "another process writes to it" if "lock" in text else text
                return Waiting(unknown=f"DuckDB file {sink.path} cannot be looked into: {held}")
        case DuckLakeSinkConfig() as sink:
            try:
                found = await asyncio.to_thread(read_undelivered, sink.path, name, stream, RECORDS_MAX)
            except SinkUnavailable as error:
                return Waiting(unknown=error.message)
        case _:
            found = await _in_state_topic(name, stream, cluster)
    full = any(len(records) >= RECORDS_MAX for records in found)
    failures = [
        Failure(
            Identity(name, stream.cluster_id, stream.topic, stream.topic_id, record.partition, record.offset),
            record,
            None,
            None,
        )
        for records in found
        for record in records
    ]
    return Waiting(failures, f"pipeline {name}: only {RECORDS_MAX} of each shard were looked at" if full else None)


def _in_parquet(root: Path, stream: Stream) -> list[Sequence[FailedRecord]]:
    with reaching(root):
        return _in_directory(root, stream)


def _in_directory(root: Path, stream: Stream) -> list[Sequence[FailedRecord]]:
    filesystem = OsFileSystem()
    if filesystem.size(root / HIDDEN) is None:
        return []
    history = IdentityFiles(filesystem, root, Directories(filesystem, root)).history()
    found: list[Sequence[FailedRecord]] = []
    for bound in history:
        if bound.topic_id != stream.topic_id:
            continue
        for partition in range(stream.partitions):
            layout = ShardLayout(root, bound.topic, bound.topic_id, partition, bound.incarnation)
            if filesystem.size(layout.failures) is not None:
                found.append(_in_files(filesystem, layout))
    return found


def _in_files(filesystem: OsFileSystem, layout: ShardLayout) -> Sequence[FailedRecord]:
    for _ in range(3):
        try:
            files = FailureFiles(filesystem, layout.failures, lambda name: layout.staging / name)
            return files.pending(RECORDS_MAX)[1]
        except FileNotFoundError:
            continue  # delivered, and removed, between two looks
    return ()


def _in_duckdb(path: Path, name: str, stream: Stream) -> list[Sequence[FailedRecord]]:
    if not path.exists():
        return []
    with duckdb.connect(path, read_only=True) as connection:
        try:
            connection.execute("SELECT 1 FROM headrace.failures LIMIT 0")
        except duckdb.CatalogException:
            return []  # a file of somebody else, so far
        shards = (
            catalog.Shard(name, stream.cluster_id, stream.topic, stream.topic_id, partition)
            for partition in range(stream.partitions)
        )
        return [catalog.undelivered(connection, shard, RECORDS_MAX) for shard in shards]


async def _in_state_topic(name: str, stream: Stream, cluster: Cluster) -> list[Sequence[FailedRecord]]:
    topic = state_topic_of(name)
    if topic not in await cluster.topics():
        return []

    async def with_topic(client: AIOKafkaClient) -> AIOKafkaClient:
        client.add_topic(topic)
        await client.force_metadata_update()
        return client

    state = (await cluster.describe(topic)).stream
    client = await cluster.call(with_topic, f"no answer about topic {topic!r}")
    log = StateLog(cluster, client, SystemClock(), topic, state.topic_id)
    found: list[Sequence[FailedRecord]] = []
    for partition in range(min(stream.partitions, state.partitions - 1)):
        offsets = sorted((await log.shard(partition)).failures.get(stream.topic_id, {}))[:RECORDS_MAX]
        if offsets:
            found.append(await log.failures(partition, stream.topic_id, offsets))
    return found
