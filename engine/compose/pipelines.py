"""Putting pipelines together: the configuration's words become connectors, handlers and bounds."""

from __future__ import annotations

import os
import time
from collections.abc import Awaitable, Callable, Mapping

import pyarrow as pa

from connectors.kafka.source import KafkaSource
from engine.batching import Batcher
from engine.compose.compact import background
from engine.compose.ends import destination_of, sink_of, source_of, topic_maker
from engine.compose.handlers import (
    ENVELOPE_BYTES_MAX,
    EventSettings,
    build_handler,
    faults_of,
    function_arn,
    payload_of,
)
from engine.compose.retry import companions, retry_name
from engine.compose.shared import Phase, Shared, share
from engine.config import (
    EVENT_KINDS,
    PAYLOAD_BYTES_MAX,
    REGISTERED_FORMATS,
    Config,
    FunctionConfig,
    PipelineConfig,
    batch_size,
    batching_window,
    group_id,
)
from engine.config_sinks import NoSinkConfig, ParquetSinkConfig
from engine.context import Context
from engine.decoding import Decoders
from engine.errors import ConfigError, HeadraceError
from engine.failing import Policy
from engine.filters import FilterCriteria
from engine.output import TRACE_NAMES, Output
from engine.passthrough import Passthrough
from engine.pipeline import Pipeline, PipelineParts
from engine.processing import Processor
from engine.protocols import STATE_BYTES_MAX, Filter, Handler, Sink
from engine.runtime import VERSION, Beside, Runtime
from engine.tracing import Tracing
from engine.values import column_field

#: A Kafka mapping with endless retries and a destination is capped at ten retries on AWS.
KAFKA_RETRIES_MAX = 10

#: Firehose retries a function that fails three times.
FIREHOSE_RETRIES_MAX = 3


def build_runtime(
    config: Config, *, bootstrap: str | None = None, until_caught_up: bool = False, phase: Phase | None = None
) -> Runtime:
    """The runtime of `build` alone, for those who show nothing of it."""
    return build(config, bootstrap=bootstrap, until_caught_up=until_caught_up, phase=phase)[0]


def build(
    config: Config, *, bootstrap: str | None = None, until_caught_up: bool = False, phase: Phase | None = None
) -> tuple[Runtime, Shared]:
    """Every enabled pipeline of ``config``, and their companions. Raises ConfigError with the faults of all.

    Imports what runs in this process; reaches neither broker nor sinks, and starts no environment. ``phase`` hears
    the name of each step of the work, in whatever thread takes it; without one, HEADRACE_PHASE_LOG may name a
    file to write them to.
    """
    enabled = {name: pipeline for name, pipeline in config.pipelines.items() if pipeline.enabled}
    faults = [] if enabled else ["every pipeline has enabled = false"]
    again = companions(config.pipelines)
    pipelines_of = {**enabled, **again}
    serves = not until_caught_up
    shared = share(config, pipelines_of, bootstrap=bootstrap, phase=phase, runs=True, serves=serves)
    if config.tracing.enabled:
        shared.tracing = Tracing(config.tracing, version=VERSION)
    pipelines = []
    makers = {
        retry_name(name): topic_maker(name, pipeline, shared)
        for name, pipeline in enabled.items()
        if retry_name(name) in again
    }
    for name, pipeline in pipelines_of.items():
        try:
            parts = _parts(name, pipeline, shared, makers.get(name))
            pipelines.append(Pipeline(parts, until_caught_up=until_caught_up))
        except (HeadraceError, ValueError) as error:
            if name in enabled:  # a companion has the faults of its pipeline
                faults.append(f"pipelines.{name}: {error}")
    if faults:
        raise ConfigError("the pipelines cannot be built", faults)
    runtime = Runtime(
        pipelines,
        meter=shared.meter,
        logs=shared.logs,
        budget=shared.budget,
        recent=shared.recent,
        tracing=shared.tracing,
        beside=[] if until_caught_up else _compactors(pipelines_of, shared),
    )
    return runtime, shared


def _compactors(pipelines: Mapping[str, PipelineConfig], shared: Shared) -> list[Beside]:
    sinks = [each.sink for each in pipelines.values() if isinstance(each.sink, ParquetSinkConfig)]
    found = (background(sink, shared.clock, phase=shared.phase) for sink in sinks)
    return [compactor for compactor in found if compactor is not None]


def build_ends(config: Config, name: str, *, bootstrap: str | None = None) -> tuple[KafkaSource, Sink]:
    """The source and the sink of one pipeline alone, for commands that look at its position or move it."""
    pipeline = config.pipelines[name]
    shared = share(config, {name: pipeline}, bootstrap=bootstrap)
    source = source_of(name, pipeline, shared)
    return source, sink_of(name, pipeline, shared, source, None)


def _parts(
    name: str, config: PipelineConfig, shared: Shared, prepare: Callable[[], Awaitable[None]] | None
) -> PipelineParts:
    source = source_of(name, config, shared)
    destination = destination_of(name, config, shared, source)
    sink = sink_of(name, config, shared, source, destination)
    kind = config.function.kind if config.function is not None else "arrow"
    payload_bytes_max = _payload_bytes_max(kind, config, shared)
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
            faults=faults_of(handler),
            phase=shared.phase,
            tracer=shared.tracer(
                name,
                function=(config.function.name if config.function is not None else None) or name,
                group=group_id(name, config),
            ),
        ),
        destination=destination,
        batcher=_batcher(config, handler, payload_bytes_max),
        budget=shared.budget,
        clock=shared.clock,
        shard_bytes_max=shared.config.engine.shard_bytes_max,
        drain_seconds_max=shared.config.engine.drain_seconds_max,
        outage_seconds_max=shared.settings.broker_wait_seconds_max,
        commits_group_offsets=not config.has_group_position,
        prepare=prepare,
        filter=_filter(kind, config),
        phase=shared.phase,
        recent=shared.recent,
    )


def _payload_bytes_max(kind: str, config: PipelineConfig, shared: Shared) -> int:
    """How much of records one invocation may hold."""
    if kind not in EVENT_KINDS:
        return max(1, shared.config.engine.shard_bytes_max // 2)
    state = STATE_BYTES_MAX if config.source.tumbling_window_in_seconds else 0
    return PAYLOAD_BYTES_MAX - ENVELOPE_BYTES_MAX - state


def _handler(name: str, config: PipelineConfig, shared: Shared, decoders: Decoders | None) -> Handler:
    function = config.function
    if function is None:
        return Passthrough()
    return build_handler(
        kind=function.kind,
        handler=function.handler,
        query=function.query,
        timeout_seconds=function.timeout,
        concurrency_max=shared.config.engine.handler_threads_max,
        events=_events(name, function, config, shared),
        schema=decoders.schema if decoders is not None else None,
        memory_bytes_max=shared.duckdb_bytes_max if function.kind == "sql" else None,
    )


def _events(name: str, function: FunctionConfig, config: PipelineConfig, shared: Shared) -> EventSettings:
    return EventSettings(
        function_name=function.name or name,
        runtime=function.runtime,
        command=function.command,
        variables={key: value.get_secret_value() for key, value in function.environment.items()},
        memory_size_mb=function.memory_size,
        reserved_concurrency=function.reserved_concurrency,
        idle_seconds_max=function.idle_seconds_max,
        root=function.root,
        reports_item_failures=bool(config.source.function_response_types),
        takes_rows=not isinstance(config.sink, NoSinkConfig),
        bootstrap_servers=shared.settings.bootstrap,
        event_source=function.event_source,
        event_source_arn=function.event_source_arn,
        clock=shared.clock,
        logs=shared.logs.stream,
        on_report=shared.meter.on_report,
        on_throttle=shared.meter.on_throttle,
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
    if kind == "firehose" and retries_max < 0:
        retries_max = FIREHOSE_RETRIES_MAX
    return Policy(
        retries_max=retries_max,
        backoff_seconds=source.retry_backoff_seconds,
        backoff_seconds_max=source.retry_backoff_seconds_max,
        record_bytes_max=source.record_bytes_max,
        payload_bytes_max=payload_bytes_max,
        reports=reports,
        drops=source.on_exhausted == "drop",
        age_seconds_max=source.maximum_record_age_in_seconds,
        bisects=source.bisect_batch_on_function_error,
    )


def _filter(kind: str, config: PipelineConfig) -> Filter | None:
    patterns = [each.pattern for each in config.source.filter_criteria.filters]
    arn = config.function.event_source_arn if config.function is not None else None
    return FilterCriteria.of(patterns, kind=kind, event_source_arn=arn) if patterns else None


def _context(name: str, function: FunctionConfig | None) -> Callable[[], Context]:
    own = (function.name if function is not None else None) or name
    memory = str(function.memory_size if function is not None else 128)
    timeout = function.timeout if function is not None else 900.0
    arn = function_arn(own, function.event_source_arn if function is not None else None)

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
            window_seconds=batching_window(config),
            payload_bytes_max=payload_bytes_max,
            payload=payload_of(handler),
        )

    return make
