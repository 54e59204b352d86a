"""Putting pipelines together: the configuration's words become connectors, handlers and bounds."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from connectors.file_destination import FileDestination
from connectors.kafka.destination import KafkaDestination
from connectors.kafka.settings import KafkaSettings
from connectors.kafka.source import KafkaSource
from connectors.parquet import ParquetSink
from connectors.registry import Registry
from engine.batching import Batcher
from engine.budget import ByteBudget
from engine.checkpoint import CheckpointSink
from engine.clock import SystemClock
from engine.compose.handlers import ENVELOPE_BYTES_MAX, build_handler, payload_of
from engine.compose.kafka import kafka_settings
from engine.config import (
    EVENT_KINDS,
    PAYLOAD_BYTES_MAX,
    REGISTERED_FORMATS,
    Config,
    FunctionConfig,
    PipelineConfig,
    RegistryConfig,
    batch_size,
    group_id,
)
from engine.config_sinks import DuckDBSinkConfig, KafkaSinkConfig, NoSinkConfig, ParquetSinkConfig
from engine.context import Context
from engine.decoding import Decoders
from engine.errors import ConfigError, HeadraceError
from engine.output import TRACE_NAMES, Output
from engine.passthrough import Passthrough
from engine.pipeline import Pipeline, PipelineParts
from engine.processing import Policy, Processor
from engine.protocols import Clock, Destination, Handler, Sink, Source
from engine.runtime import Runtime
from engine.values import column_field

if TYPE_CHECKING:
    from connectors.duckdb import Database

PHASE_LOG_VARIABLE = "HEADRACE_PHASE_LOG"
REGISTRY_PASSWORD_VARIABLE = "HEADRACE_REGISTRY_PASSWORD"  # noqa: S105 - the name of a variable

#: The part of the memory for records for what is fetched and not yet taken by a shard.
FETCH_SHARE = 0.125

#: The part of the memory for records for rows that wait for their Parquet row group, of all shards of a pipeline.
ROW_GROUPS_SHARE = 0.25

#: memory_bytes_max when it is left out: for records, and as much again for each instance of DuckDB.
MEMORY_BYTES = 128 * 1024 * 1024

#: A Kafka mapping with endless retries and a destination is capped at ten retries on AWS.
KAFKA_RETRIES_MAX = 10

Phase = Callable[[str], None]


@dataclass
class _Shared:
    """What the pipelines of one process have in common."""

    config: Config
    settings: KafkaSettings
    clock: Clock
    executor: Executor
    budget: ByteBudget
    phase: Phase | None
    record_bytes_max: int
    duckdb_bytes_max: int
    fetch_bytes_max: int
    databases: dict[Path, Database] = field(default_factory=dict)
    known_registry: Registry | None = None

    def registry(self) -> Registry:
        """The schema registry, which all pipelines ask."""
        if self.known_registry is None:
            self.known_registry = schema_registry(self.config.registry)
        return self.known_registry

    def payload_bytes_max(self, kind: str) -> int:
        """How much of records one invocation may hold."""
        if kind in EVENT_KINDS:
            return PAYLOAD_BYTES_MAX - ENVELOPE_BYTES_MAX
        return max(1, self.config.engine.shard_bytes_max // 2)

    def database(self, sink: DuckDBSinkConfig) -> Database:
        path = sink.path.resolve()
        if path not in self.databases:
            # Imported by those who use it: DuckDB takes 30 MB of memory.
            from connectors.duckdb import Database

            self.databases[path] = Database(
                path,
                lock_wait_seconds_max=sink.lock_wait_seconds_max,
                memory_limit_bytes=self.duckdb_bytes_max,
                clock=self.clock,
            )
        return self.databases[path]


def build_runtime(
    config: Config, *, bootstrap: str | None = None, until_caught_up: bool = False, phase: Phase | None = None
) -> Runtime:
    """Every enabled pipeline of ``config``. Raises ConfigError with the faults of all of them.

    Imports the users' handlers; reaches neither broker nor sinks. ``phase`` hears the name of each step of the
    work, in whatever thread takes it; without one, HEADRACE_PHASE_LOG may name a file to write them to.
    """
    shared = _share(config, bootstrap, phase)
    pipelines = []
    faults = []
    for name, pipeline in config.pipelines.items():
        if not pipeline.enabled:
            continue
        try:
            pipelines.append(Pipeline(_parts(name, pipeline, shared), until_caught_up=until_caught_up))
        except (HeadraceError, ValueError) as error:
            faults.append(f"pipelines.{name}: {error}")
    if not pipelines and not faults:
        faults.append("every pipeline has enabled = false")
    if faults:
        raise ConfigError("the pipelines cannot be built", faults)
    return Runtime(pipelines)


def build_ends(config: Config, name: str, *, bootstrap: str | None = None) -> tuple[KafkaSource, Sink]:
    """The source and the sink of one pipeline alone, for commands that look at its position or move it."""
    shared = _share(config, bootstrap, None)
    pipeline = config.pipelines[name]
    source = _source(name, pipeline, shared)
    return source, _sink(name, pipeline, shared, source, None)


def _share(config: Config, bootstrap: str | None, phase: Phase | None) -> _Shared:
    duckdbs = _duckdbs(config)
    memory = config.engine.memory_bytes_max or MEMORY_BYTES * (1 + duckdbs)
    record_bytes = memory // (1 + duckdbs)  # the rest is DuckDB's, in equal parts
    fetch_bytes = int(record_bytes * FETCH_SHARE)
    return _Shared(
        config=config,
        settings=kafka_settings(config.kafka, bootstrap),
        clock=SystemClock(),
        executor=ThreadPoolExecutor(
            min(config.engine.handler_threads_max, os.cpu_count() or 1), thread_name_prefix="headrace-decode"
        ),
        budget=ByteBudget(record_bytes - fetch_bytes),
        phase=phase or phase_log(os.environ.get(PHASE_LOG_VARIABLE)),
        record_bytes_max=record_bytes,
        duckdb_bytes_max=record_bytes,
        fetch_bytes_max=fetch_bytes // max(1, sum(pipeline.enabled for pipeline in config.pipelines.values())),
    )


def _duckdbs(config: Config) -> int:
    """How many DuckDB instances the pipelines will run: one for each file, and one for each query."""
    pipelines = [pipeline for pipeline in config.pipelines.values() if pipeline.enabled]
    files = {pipeline.sink.path.resolve() for pipeline in pipelines if isinstance(pipeline.sink, DuckDBSinkConfig)}
    queries = [pipeline for pipeline in pipelines if pipeline.function and pipeline.function.kind == "sql"]
    return len(files) + len(queries)


def _parts(name: str, config: PipelineConfig, shared: _Shared) -> PipelineParts:
    source = _source(name, config, shared)
    destination = _destination(name, config, shared, source)
    sink = _sink(name, config, shared, source, destination)
    kind = config.function.kind if config.function is not None else "arrow"
    payload_bytes_max = shared.payload_bytes_max(kind)
    decoders = None
    if kind not in EVENT_KINDS:
        registry = shared.registry() if config.schema_.format in REGISTERED_FORMATS else None
        decoders = Decoders(config.schema_, sink, shared.executor, registry)
    handler = _handler(name, config, shared, decoders)
    output = _output(config, sink, decoders)
    return PipelineParts(
        name=name,
        config=config,
        source=source,
        sink=sink,
        handler=handler,
        decoders=decoders,
        output=output,
        processor=Processor(
            name=name,
            handler=handler,
            decoders=decoders,
            output=output,
            policy=_policy(kind, config, payload_bytes_max),
            context=_context(name, config.function),
            payload=payload_of(handler),
            clock=shared.clock,
            executor=shared.executor,
            phase=shared.phase,
        ),
        destination=destination,
        batcher=_batcher(config, handler, payload_bytes_max),
        budget=shared.budget,
        clock=shared.clock,
        shard_bytes_max=shared.config.engine.shard_bytes_max,
        drain_seconds_max=shared.config.engine.drain_seconds_max,
        outage_seconds_max=shared.settings.broker_wait_seconds_max,
        commits_group_offsets=not isinstance(config.sink, NoSinkConfig),
        phase=shared.phase,
    )


def _source(name: str, config: PipelineConfig, shared: _Shared) -> KafkaSource:
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


def _destination(name: str, config: PipelineConfig, shared: _Shared, source: KafkaSource) -> Destination | None:
    target = config.source.destination_config.on_failure
    if target is None:
        return None
    if target.startswith("kafka://"):
        topic = target.removeprefix("kafka://")
        return KafkaDestination(shared.settings, topic, pipeline=name, stream_of=source.stream, clock=shared.clock)
    return FileDestination(Path(target.removeprefix("file:")), pipeline=name, stream_of=source.stream)


def _sink(
    name: str, config: PipelineConfig, shared: _Shared, source: Source, destination: Destination | None
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
        case KafkaSinkConfig() as sink:
            # Imports the compiler of its kernel.
            from connectors.kafka.sink import KafkaSink, MessageFormat

            return KafkaSink(
                shared.settings,
                pipeline=name,
                topic=sink.topic,
                clock=shared.clock,
                message_format=MessageFormat(key=sink.key, value=sink.value, omit=sink.omit),
                group=group_id(name, config),
                partitions=sink.partitions,
                compression=sink.compression,
                commit_interval_max_seconds=sink.commit_interval_max_seconds,
                commit_bytes_max=sink.commit_bytes_max,
                on_recreated_topic=restart,
                phase=shared.phase,
            )
        case NoSinkConfig():
            return CheckpointSink(source, destination, shared.clock)


def _handler(name: str, config: PipelineConfig, shared: _Shared, decoders: Decoders | None) -> Handler:
    function = config.function
    if function is None:
        return Passthrough()
    return build_handler(
        kind=function.kind,
        handler=function.handler,
        query=function.query,
        timeout_seconds=function.timeout,
        concurrency_max=shared.config.engine.handler_threads_max,
        function_name=function.name or name,
        bootstrap_servers=shared.settings.bootstrap,
        schema=decoders.schema if decoders is not None else None,
        memory_bytes_max=shared.duckdb_bytes_max if function.kind == "sql" else None,
    )


def _output(config: PipelineConfig, sink: Sink, decoders: Decoders | None) -> Output:
    function = config.function
    columns: pa.Schema | None = None
    if function is not None and function.columns is not None:
        columns = pa.schema([column_field(name, kind) for name, kind in function.columns.items()])
    if function is None and decoders is not None and decoders.schema is not None:
        columns = pa.schema([field for field in decoders.schema if field.name not in TRACE_NAMES])
    return Output(sink, columns=columns, trace=config.schema_.trace, is_handled=function is not None)


def _policy(kind: str, config: PipelineConfig, payload_bytes_max: int) -> Policy:
    source = config.source
    reports = source.destination_config.on_failure is not None
    retries_max = source.maximum_retry_attempts
    if kind == "kafka" and reports and retries_max < 0:
        retries_max = KAFKA_RETRIES_MAX
    return Policy(
        retries_max=retries_max,
        backoff_seconds=source.retry_backoff_seconds,
        backoff_seconds_max=source.retry_backoff_seconds_max,
        record_bytes_max=source.record_bytes_max,
        payload_bytes_max=payload_bytes_max,
        reports=reports,
        drops=source.on_exhausted == "drop",
    )


def _context(name: str, function: FunctionConfig | None) -> Callable[[], Context]:
    own = (function.name if function is not None else None) or name
    memory = str(function.memory_size if function is not None else 128)
    timeout = function.timeout if function is not None else 900.0
    arn = f"arn:aws:lambda:{os.environ.get('AWS_REGION', 'us-east-1')}:000000000000:function:{own}"

    def make() -> Context:
        now = time.time()
        return Context(
            function_name=own,
            memory_limit_in_mb=memory,
            deadline_ms=int((now + timeout) * 1000),
            invoked_function_arn=arn,
            log_group_name=f"/aws/lambda/{own}",
            log_stream_name=f"{time.strftime('%Y/%m/%d', time.gmtime(now))}/[$LATEST]{os.getpid():032x}",
        )

    return make


def _batcher(config: PipelineConfig, handler: Handler, payload_bytes_max: int) -> Callable[[], Batcher]:
    def make() -> Batcher:
        return Batcher(
            records_max=batch_size(config),
            window_seconds=config.source.maximum_batching_window_in_seconds,
            payload_bytes_max=payload_bytes_max,
            payload=payload_of(handler),
        )

    return make


def schema_registry(config: RegistryConfig) -> Registry:
    """The registry that the [registry] table and the environment describe. Raises ConfigError."""
    password = config.password.get_secret_value() if config.password is not None else None
    if password is None and config.username is not None:
        password = os.environ.get(REGISTRY_PASSWORD_VARIABLE)
    assert config.url is not None, "the configuration asks for registry.url"
    return Registry(
        config.url,
        username=config.username,
        password=password,
        ca_file=config.ca_file,
        timeout_seconds=config.timeout_seconds,
        allow_plaintext_credentials=config.allow_plaintext_credentials,
    )


def phase_log(path: str | None) -> Phase | None:
    """A hook that appends a line ``<monotonic ns> <phase>`` to ``path``: where a killed process was."""
    if not path:
        return None
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    pid = os.getpid()
    lock = threading.Lock()

    def phase(name: str) -> None:
        with lock:
            os.write(descriptor, f"{time.monotonic_ns()} {pid} {name}\n".encode())

    return phase
