"""What the pipelines of one process have in common: memory, threads, connections, logs, and the meter."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from connectors.kafka.settings import KafkaSettings
from connectors.registry import Registry
from engine.budget import ByteBudget
from engine.clock import SystemClock
from engine.compose.kafka import kafka_settings
from engine.config import Config, PipelineConfig, RegistryConfig
from engine.config_sinks import DuckDBSinkConfig, DuckLakeSinkConfig
from engine.protocols import Clock
from engine.recent import RecentFailures
from engine.tracing import OFF, Tracer, Tracing
from functions.environments.logs import FunctionLogs
from functions.environments.metering import Meter

if TYPE_CHECKING:
    from connectors.duckdb import Database
    from connectors.duckdb.serving import ServingSettings
    from connectors.duckdb.snapshot import SnapshotSettings
    from connectors.ducklake import LakeDatabase

PHASE_LOG_VARIABLE = "HEADRACE_PHASE_LOG"
REGISTRY_PASSWORD_VARIABLE = "HEADRACE_REGISTRY_PASSWORD"  # noqa: S105 - the name of a variable

#: The part of the memory for records for what is fetched and not yet taken by a shard.
FETCH_SHARE = 0.125

#: memory_bytes_max when it is left out: for records, and as much again for each instance of DuckDB.
MEMORY_BYTES = 128 * 1024 * 1024

#: How long a run with --until-caught-up waits for a file that another process has, where that is left open.
CATCH_UP_LOCK_SECONDS = 30.0

Phase = Callable[[str], None]


@dataclass
class Shared:
    """``*_bytes_max`` are parts of ``engine.memory_bytes_max``."""

    config: Config
    settings: KafkaSettings
    clock: Clock
    executor: Executor
    budget: ByteBudget
    phase: Phase | None
    logs: FunctionLogs
    meter: Meter
    recent: RecentFailures
    record_bytes_max: int
    duckdb_bytes_max: int
    fetch_bytes_max: int
    databases: dict[Path, Database] = field(default_factory=dict)  #: DuckDB files and lakes' catalogues
    known_registry: Registry | None = None
    tracing: Tracing | None = None
    runs: bool = False  #: pipelines are run, and not only looked at
    serves: bool = False  #: for long, so that analysts may ask meanwhile

    def tracer(self, pipeline: str, *, function: str, group: str) -> Tracer:
        return OFF if self.tracing is None else self.tracing.tracer(pipeline, function=function, group=group)

    def registry(self) -> Registry:
        """The schema registry, which all pipelines ask."""
        if self.known_registry is None:
            self.known_registry = schema_registry(self.config.registry)
        return self.known_registry

    def _lock_wait(self, sink: DuckDBSinkConfig | DuckLakeSinkConfig) -> float:
        """A run to the end is no standby: whoever has the file does its work."""
        forever = sink.lock_wait_seconds_max < 0 and self.runs and not self.serves
        return CATCH_UP_LOCK_SECONDS if forever else sink.lock_wait_seconds_max

    def _serving(self) -> ServingSettings | None:
        """For the next DuckDB file."""
        query = self.config.query
        if not self.serves or not query.serve:
            return None
        from connectors.duckdb.serving import ServingSettings

        return ServingSettings(
            host=query.host,
            port=query.port + len(self.databases) if query.port else 0,
            token=None if query.token is None else query.token.get_secret_value(),
            queries_max=query.queries_max,
            seconds_max=query.seconds_max,
            rows_max=query.rows_max,
        )

    def database(self, sink: DuckDBSinkConfig) -> Database:
        path = sink.path.resolve()
        if path not in self.databases:
            # Imported by those who use it: DuckDB takes 30 MB of memory.
            from connectors.duckdb import Database

            self.databases[path] = Database(
                path,
                lock_wait_seconds_max=self._lock_wait(sink),
                memory_limit_bytes=self.duckdb_bytes_max,
                threads=self.config.query.threads_max,
                clock=self.clock,
                serving=self._serving(),
                snapshot=_snapshot(self.config, path) if self.runs else None,
            )
        return self.databases[path]

    def lake(self, sink: DuckLakeSinkConfig) -> LakeDatabase:
        from connectors.ducklake import LakeDatabase

        path = sink.path.resolve()
        if path not in self.databases:
            self.databases[path] = LakeDatabase(
                path,
                sink.data_path,
                lock_wait_seconds_max=self._lock_wait(sink),
                memory_limit_bytes=self.duckdb_bytes_max,
                clock=self.clock,
                serving=self._serving(),
            )
        known = self.databases[path]
        assert isinstance(known, LakeDatabase), f"{path} is no lake"
        return known


def share(
    config: Config,
    pipelines: Mapping[str, PipelineConfig],
    *,
    bootstrap: str | None,
    phase: Phase | None = None,
    runs: bool = False,
    serves: bool = False,
) -> Shared:
    """What ``pipelines`` share. ``phase`` may be left to HEADRACE_PHASE_LOG.

    ``runs`` says that they will run, ``serves`` that they will be asked meanwhile.
    """
    duckdbs = instances_of_duckdb(pipelines)
    memory = config.engine.memory_bytes_max or MEMORY_BYTES * (1 + duckdbs)
    record_bytes = memory // (1 + duckdbs)  # the rest is DuckDB's, in equal parts
    fetch_bytes = int(record_bytes * FETCH_SHARE)
    clock = SystemClock()
    return Shared(
        config=config,
        settings=kafka_settings(config.kafka, bootstrap),
        clock=clock,
        executor=ThreadPoolExecutor(
            min(config.engine.handler_threads_max, os.cpu_count() or 1), thread_name_prefix="headrace-decode"
        ),
        budget=ByteBudget(record_bytes - fetch_bytes),
        phase=phase or phase_log(os.environ.get(PHASE_LOG_VARIABLE)),
        logs=FunctionLogs(config.engine.function_log_path, bytes_max=config.engine.function_log_bytes_max),
        recent=RecentFailures(config.web.failures_max, config.web.failures_bytes_max),
        meter=Meter(config.engine.metering_path, clock=clock),
        record_bytes_max=record_bytes,
        duckdb_bytes_max=record_bytes,
        fetch_bytes_max=fetch_bytes // max(1, len(pipelines)),
        runs=runs,
        serves=serves,
    )


def instances_of_duckdb(pipelines: Mapping[str, PipelineConfig]) -> int:
    """How many DuckDB instances the pipelines will run: one for each file, and one for each query."""
    sinks = [pipeline.sink for pipeline in pipelines.values()]
    files = {sink.path.resolve() for sink in sinks if isinstance(sink, DuckDBSinkConfig | DuckLakeSinkConfig)}
    queries = [each for each in pipelines.values() if each.function is not None and each.function.kind == "sql"]
    return len(files) + len(queries)


def _snapshot(config: Config, path: Path) -> SnapshotSettings | None:
    """The copy of a DuckDB file that its pipelines ask for; they agree about it."""
    from connectors.duckdb.snapshot import SnapshotSettings

    for pipeline in config.pipelines.values():
        sink = pipeline.sink
        if isinstance(sink, DuckDBSinkConfig) and sink.publish and sink.path.resolve() == path:
            copy = sink.snapshot_path or sink.path.with_name(f"{sink.path.name}.snapshot")
            return SnapshotSettings(copy, sink.snapshot_interval_seconds)
    return None


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
