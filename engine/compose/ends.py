"""The ends of a pipeline: its source, its sink, and where its failed records go."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

from connectors.file_destination import FileDestination
from connectors.kafka.destination import KafkaDestination
from connectors.kafka.source import KafkaSource
from connectors.parquet import ParquetSink
from engine.checkpoint import CheckpointSink
from engine.compose.handlers import function_arn
from engine.compose.retry import ensure_retry_topic
from engine.compose.shared import Shared
from engine.config import PipelineConfig, group_id
from engine.config_sinks import (
    DuckDBSinkConfig,
    DuckLakeSinkConfig,
    KafkaSinkConfig,
    NoSinkConfig,
    ParquetSinkConfig,
)
from engine.protocols import Destination, Sink, Source
from functions.failures import Documents
from functions.kinds import kafka

#: The part of the memory for records for rows that wait for their Parquet row group, of all shards of a pipeline.
ROW_GROUPS_SHARE = 0.25


def source_of(name: str, config: PipelineConfig, shared: Shared) -> KafkaSource:
    return KafkaSource(
        shared.settings,
        topic=config.source.topic,
        group_id=group_id(name, config),
        clock=shared.clock,
        read_committed=config.source.isolation_level == "read_committed",
        fetch_bytes_max=config.source.fetch_bytes_max,
        drain_seconds_max=shared.config.engine.drain_seconds_max,
        held_bytes_max=shared.fetch_bytes_max,
        rack=shared.config.kafka.client_rack,
    )


def destination_of(name: str, config: PipelineConfig, shared: Shared, source: KafkaSource) -> Destination | None:
    target = config.source.destination_config.on_failure
    if target is None:
        return None
    function = config.function
    to_topic = target.startswith("kafka://")
    role = (function.name if function is not None else None) or name
    arn = function.event_source_arn if function is not None else None
    event_source = function.event_source if function is not None else kafka.EVENT_SOURCES[0]
    document = Documents(
        pipeline=name,
        kind=function.kind if function is not None else "arrow",
        function_arn=function_arn(role, arn),
        source=kafka.KafkaSource(shared.settings.bootstrap, event_source, arn),
        stream_arn=arn,
        role=role,
        to_topic=to_topic,
    )
    if not to_topic:
        path = Path(target.removeprefix("file:"))
        return FileDestination(path, pipeline=name, stream_of=source.stream, document=document)
    return KafkaDestination(
        shared.settings,
        target.removeprefix("kafka://"),
        pipeline=name,
        stream_of=source.stream,
        clock=shared.clock,
        document=document,
    )


def sink_of(
    name: str, config: PipelineConfig, shared: Shared, source: Source, destination: Destination | None
) -> Sink:
    restart = config.source.on_recreated_topic
    match config.sink:
        case ParquetSinkConfig() as sink:
            return ParquetSink(
                sink.path,
                pipeline=name,
                clock=shared.clock,
                file_bytes_max=sink.file_bytes_max,
                file_age_max_seconds=sink.file_age_max_seconds,
                row_group_bytes_max=sink.row_group_bytes_max,
                waiting_bytes_max=int(shared.record_bytes_max * ROW_GROUPS_SHARE),
                partition_by=sink.partition_by,
                hive_partitions_open_max=sink.hive_partitions_open_max,
                on_recreated_topic=restart,
                phase=shared.phase,
            )
        case DuckDBSinkConfig() as sink:
            from connectors.duckdb import DuckDBSink

            return DuckDBSink(
                shared.database(sink),
                pipeline=name,
                table=sink.table,
                clock=shared.clock,
                mode=sink.mode,
                key=sink.key,
                aggregates=sink.aggregates,
                order_by=sink.order_by,
                delete_column=sink.delete_column,
                commit_interval_max_seconds=sink.commit_interval_max_seconds,
                commit_bytes_max=sink.commit_bytes_max,
                on_recreated_topic=restart,
                phase=shared.phase,
            )
        case DuckLakeSinkConfig() as sink:
            # Loads an extension of DuckDB's.
            from connectors.ducklake import DuckLakeSink

            return DuckLakeSink(
                shared.lake(sink),
                pipeline=name,
                table=sink.table,
                clock=shared.clock,
                commit_interval_max_seconds=sink.commit_interval_max_seconds,
                commit_bytes_max=sink.commit_bytes_max,
                on_recreated_topic=restart,
                phase=shared.phase,
            )
        case KafkaSinkConfig() as sink:
            return _kafka_sink(name, config, shared, sink)
        case NoSinkConfig() if config.has_group_position:
            return CheckpointSink(source, destination, shared.clock)
        case NoSinkConfig():
            return _kafka_sink(name, config, shared, None)


def _kafka_sink(name: str, config: PipelineConfig, shared: Shared, sink: KafkaSinkConfig | None) -> Sink:
    """Without ``sink`` it writes no rows: it keeps position and state, in one transaction."""
    # Imports the compiler of its kernel.
    from connectors.kafka.sink import KafkaSink, MessageFormat

    restart = config.source.on_recreated_topic
    group = group_id(name, config)
    if sink is None:
        return KafkaSink(
            shared.settings,
            pipeline=name,
            topic=None,
            clock=shared.clock,
            group=group,
            on_recreated_topic=restart,
            phase=shared.phase,
        )
    return KafkaSink(
        shared.settings,
        pipeline=name,
        topic=sink.topic,
        clock=shared.clock,
        message_format=MessageFormat(key=sink.key, value=sink.value, omit=sink.omit),
        group=group,
        partitions=sink.partitions,
        compression=sink.compression,
        commit_interval_max_seconds=sink.commit_interval_max_seconds,
        commit_bytes_max=sink.commit_bytes_max,
        on_recreated_topic=restart,
        phase=shared.phase,
    )


def topic_maker(name: str, config: PipelineConfig, shared: Shared) -> Callable[[], Awaitable[None]]:
    """Makes the topic of the companion of pipeline ``name``, if it is missing."""

    async def make() -> None:
        source = source_of(name, config, shared)
        try:
            await ensure_retry_topic(shared.settings, shared.clock, name, await source.open())
        finally:
            await source.close()

    return make
