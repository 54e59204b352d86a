"""Every metric of a run, once: its name, type, unit, labels, meaning and remedy, and its samples of a snapshot.

What is exposed (`engine.metrics.exposition`), the page about it (`engine.metrics.page`), and the tests of
dashboards and alert rules all read this table. Names follow Prometheus' conventions: base units, counters end in
`_total`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from engine.status import Distribution, EngineStatus, FunctionStatus, PipelineStatus, ShardStatus

Kind = Literal["counter", "gauge", "histogram"]

#: Label values in the order of the metric's ``labels``; a `Distribution` for histograms, else a number.
Sample = tuple[tuple[str, ...], float | Distribution]

#: What a remedy says where there is nothing to be mended.
INFORMS = "nothing: it informs"

OUTCOMES = ("handled", "filtered", "dropped", "failed", "absent")
SHARD_STATES = ("starting", "running", "stopped", "released")
PIPELINE_STATES = ("starting", "running", "stopped", "ended")


@dataclass(frozen=True, slots=True)
class Metric:
    """``aws`` are CloudWatch's names of the same thing; ``aws_note`` says what is different all the same."""

    name: str
    kind: Kind
    unit: str  #: seconds, bytes, records, ...; empty for a state that is 0 or 1
    labels: tuple[str, ...]
    meaning: str
    remedy: str
    samples: Callable[[EngineStatus], Iterator[Sample]]
    aws: tuple[str, ...] = ()
    aws_note: str = ""

    @property
    def family(self) -> str:
        """The name without what counters end in."""
        return self.name.removesuffix("_total")

    @property
    def series(self) -> tuple[str, ...]:
        """The names of its time series."""
        if self.kind != "histogram":
            return (self.name,)
        return tuple(f"{self.name}_{suffix}" for suffix in ("bucket", "sum", "count"))


def _process(read: Callable[[EngineStatus], float]) -> Callable[[EngineStatus], Iterator[Sample]]:
    def samples(status: EngineStatus) -> Iterator[Sample]:
        yield (), read(status)

    return samples


def _pipeline(
    read: Callable[[PipelineStatus], float | Distribution | None], *, with_sink: bool = False
) -> Callable[[EngineStatus], Iterator[Sample]]:
    def samples(status: EngineStatus) -> Iterator[Sample]:
        for each in _pipelines(status):
            value = read(each)
            if value is not None:
                yield ((each.name, each.sink) if with_sink else (each.name,)), value

    return samples


def _states(
    states: tuple[str, ...], read: Callable[[PipelineStatus, str], float]
) -> Callable[[EngineStatus], Iterator[Sample]]:
    def samples(status: EngineStatus) -> Iterator[Sample]:
        for each in _pipelines(status):
            for state in states:
                yield (each.name, state), read(each, state)

    return samples


def _shard(read: Callable[[ShardStatus], float | None]) -> Callable[[EngineStatus], Iterator[Sample]]:
    def samples(status: EngineStatus) -> Iterator[Sample]:
        for pipeline in _pipelines(status):
            for shard in sorted(pipeline.shards, key=lambda shard: shard.partition):
                value = read(shard)
                if value is not None:
                    yield (pipeline.name, str(shard.partition)), value

    return samples


def _function(
    read: Callable[[FunctionStatus], float | Distribution],
) -> Callable[[EngineStatus], Iterator[Sample]]:
    """Of pipelines that have a function; handing records on calls none."""

    def samples(status: EngineStatus) -> Iterator[Sample]:
        for each in _pipelines(status):
            if each.function.kind is not None:
                yield (each.name, each.function.name), read(each.function)

    return samples


def _pipelines(status: EngineStatus) -> list[PipelineStatus]:
    return sorted(status.pipelines, key=lambda each: each.name)


def _build(status: EngineStatus) -> Iterator[Sample]:
    yield (status.version,), 1


def _about(status: EngineStatus) -> Iterator[Sample]:
    for each in _pipelines(status):
        yield (each.name, each.topic, each.sink, each.function.name, each.function.kind or "none"), 1


def _lag(shard: ShardStatus) -> int | None:
    return None if shard.position is None or shard.end is None else shard.offset_lag


_PROCESS = (
    Metric(
        *("headrace_build_info", "gauge", "", ("version",)),
        "1; the label is headrace's version",
        INFORMS,
        _build,
    ),
    Metric(
        *("headrace_start_time_seconds", "gauge", "seconds", ()),
        "when the process started, since the epoch",
        "a value that changes often is a process that dies: see its exit code and its last lines",
        _process(lambda status: status.started_at),
    ),
    Metric(
        *("headrace_snapshot_time_seconds", "gauge", "seconds", ()),
        "when the engine's loop made the snapshot that these values are of, since the epoch",
        "when it stands still the event loop hangs: look for a function that holds the interpreter lock, a stopped"
        " process, or a machine without memory",
        _process(lambda status: status.at),
    ),
    Metric(
        *("headrace_cpu_seconds_total", "counter", "seconds", ()),
        "processor time of the engine's own process, without those of functions",
        "near one second a second for each core: give it more cores, or fewer partitions",
        _process(lambda status: status.cpu_seconds),
    ),
    Metric(
        *("headrace_resident_memory_bytes", "gauge", "bytes", ()),
        "resident memory of the engine's own process",
        "set engine.memory_bytes_max lower, or give the machine more",
        _process(lambda status: status.resident_bytes),
    ),
    Metric(
        *("headrace_budget_held_bytes", "gauge", "bytes", ()),
        "bytes of records in flight that all shards hold together",
        "at the limit for long, sinks or functions are slower than the topics: see commit and function durations;"
        " shards wait meanwhile and lose nothing",
        _process(lambda status: status.budget_bytes),
    ),
    Metric(
        *("headrace_budget_limit_bytes", "gauge", "bytes", ()),
        "what shards may hold together, from engine.memory_bytes_max",
        INFORMS,
        _process(lambda status: status.budget_bytes_max),
    ),
    Metric(
        *("headrace_loop_blocked_longest_seconds", "gauge", "seconds", ()),
        "the longest time that the engine's event loop was blocked in this run",
        "beyond the session timeout the process is taken for dead: run functions that hold the interpreter lock"
        " as an event kind, in a process of their own",
        _process(lambda status: status.loop_blocked_seconds_max),
    ),
    Metric(
        *("headrace_loop_blocks_total", "counter", "blocks", ()),
        "how often the event loop was blocked for more than 10 ms",
        "run functions that hold the interpreter lock as an event kind; a machine without a free core shows here"
        " too",
        _process(lambda status: status.loop_blocked_count),
    ),
)

_PIPELINE = (
    Metric(
        *("headrace_pipeline_info", "gauge", "", ("pipeline", "topic", "sink", "function", "kind")),
        "1; the labels are the pipeline's topic, its sink's type, its function and the function's kind (none: it"
        " hands records on)",
        INFORMS,
        _about,
    ),
    Metric(
        *("headrace_pipeline_state", "gauge", "", ("pipeline", "state")),
        "1 for the state that the pipeline is in, 0 for the others",
        "starting for long: its broker, its registry or its sink is away, or another process has its DuckDB file;"
        " the log says which",
        _states(PIPELINE_STATES, lambda each, state: float(each.state == state)),
    ),
    Metric(
        *("headrace_pipeline_failed", "gauge", "", ("pipeline",)),
        "1 when the pipeline ended with an error",
        "read the error on the page, in /healthz or in the log, mend it, and start again; it goes on at its"
        " committed positions",
        _pipeline(lambda each: float(each.error is not None)),
    ),
    Metric(
        *("headrace_topic_partitions", "gauge", "partitions", ("pipeline",)),
        "partitions of the pipeline's topic, in all processes",
        "more than all processes own together: start or scrape the missing ones; one that stays in state starting"
        " waits for its broker, its registry or its sink",
        _pipeline(lambda each: each.partitions),
    ),
    Metric(
        *("headrace_shards", "gauge", "shards", ("pipeline", "state")),
        "partitions that this process owns, by state",
        "stopped ones wait for a person: see headrace_shard_stopped",
        _states(SHARD_STATES, lambda each, state: sum(shard.state == state for shard in each.shards)),
    ),
    Metric(
        *("headrace_polled_records_total", "counter", "records", ("pipeline",)),
        "records read from the topic; those that are read again, after a shard was lost, count again",
        "it stands still while lag grows: see headrace_shard_stalled_seconds",
        _pipeline(lambda each: each.records),
        aws=("PolledEventCount",),
    ),
    Metric(
        *("headrace_records_total", "counter", "records", ("pipeline", "outcome")),
        "offsets that are settled, each in exactly one outcome: handled by the function, filtered out, dropped on"
        " purpose, failed (kept for the on-failure destination), or absent (compacted, control, aborted)",
        "failed ones grow: `headrace dlq list` and the page show each with its reason; mend the function and replay"
        " them",
        _states(OUTCOMES, lambda each, outcome: getattr(each.counts, outcome)),
        aws=("FilteredOutEventCount",),
        aws_note='is `outcome="filtered"`; DroppedEventCount is not `outcome="dropped"`, which also has the records'
        " that the function let go",
    ),
    Metric(
        *("headrace_rows_total", "counter", "rows", ("pipeline", "sink")),
        "rows given to the sink",
        INFORMS,
        _pipeline(lambda each: each.rows, with_sink=True),
    ),
    Metric(
        *("headrace_commits_total", "counter", "commits", ("pipeline", "sink")),
        "commits of rows and positions together, one for each shard that takes part",
        "none while records come: the sink is away or full, see the log",
        _pipeline(lambda each: each.commits, with_sink=True),
    ),
    Metric(
        *("headrace_commit_duration_seconds", "histogram", "seconds", ("pipeline", "sink")),
        "how long a shard's commit took",
        "a slow or full disk, or too many small commits: a larger file_age_max_seconds or"
        " commit_interval_max_seconds makes fewer of them",
        _pipeline(lambda each: each.commit, with_sink=True),
    ),
    Metric(
        *("headrace_offset_lag", "gauge", "offsets", ("pipeline",)),
        "offsets of the owned partitions that are not committed yet; the sum over all processes is the topic's",
        "it grows: more partitions and processes, a larger batch_size, or a faster function; it jumps: look for"
        " stalled or stopped shards",
        _pipeline(lambda each: each.offset_lag),
        aws=("OffsetLag", "SumOffsetLag"),
    ),
    Metric(
        *("headrace_iterator_age_seconds", "gauge", "seconds", ("pipeline",)),
        "how old the last record read is, of the shard where it is oldest; 0 when all is committed",
        "more partitions and processes, a larger batch_size, or a faster function; a topic that is read from its"
        " beginning starts with a high one",
        _pipeline(lambda each: each.iterator_age_seconds),
        aws=("IteratorAge",),
        aws_note="in milliseconds there",
    ),
)

_SHARD = (
    Metric(
        *("headrace_shard_position", "gauge", "offsets", ("pipeline", "partition")),
        "the committed position: the offset after the last one that is in the sink",
        "it stands still: see headrace_shard_stalled_seconds",
        _shard(lambda shard: shard.position),
    ),
    Metric(
        *("headrace_shard_end", "gauge", "offsets", ("pipeline", "partition")),
        "the topic's last stable offset, as last asked for",
        "it stands still while producers write: a transaction is open, see `kafka-transactions.sh find-hanging`",
        _shard(lambda shard: shard.end),
    ),
    Metric(
        *("headrace_shard_offset_lag", "gauge", "offsets", ("pipeline", "partition")),
        "offsets of the partition that are not committed yet; missing while its position or its end is unknown",
        "one partition alone: its keys are uneven, or a record fails again and again",
        _shard(_lag),
        aws=("OffsetLag",),
        aws_note="for the whole topic there",
    ),
    Metric(
        *("headrace_shard_iterator_age_seconds", "gauge", "seconds", ("pipeline", "partition")),
        "how old the last record read is while there are more to commit, else 0",
        "as for headrace_shard_offset_lag",
        _shard(lambda shard: shard.iterator_age_seconds),
        aws=("IteratorAge",),
        aws_note="in milliseconds there",
    ),
    Metric(
        *("headrace_shard_stalled_seconds", "gauge", "seconds", ("pipeline", "partition")),
        "how long the position has not moved although there are records beyond it, else 0; settings that make"
        " commits wait (a batching window, file_age_max_seconds) show here too",
        "a function that is retried without end or does not return (function.timeout bounds it), a sink that is"
        " full or a broker that is away: the log names what failed, and `headrace doctor` asks the others",
        _shard(lambda shard: shard.stalled_seconds),
    ),
    Metric(
        *("headrace_shard_stopped", "gauge", "", ("pipeline", "partition")),
        "1 when the shard stopped with an error that it cannot pass; the others go on",
        "the error names the offset: mend the function or the record, or set source.destination_config.on_failure;"
        " then start again",
        _shard(lambda shard: float(shard.error is not None)),
    ),
    Metric(
        *("headrace_shard_held_bytes", "gauge", "bytes", ("pipeline", "partition")),
        "bytes of records in flight that the shard holds",
        "see headrace_budget_held_bytes",
        _shard(lambda shard: shard.held_bytes),
    ),
    Metric(
        *("headrace_shard_undelivered", "gauge", "", ("pipeline", "partition")),
        "1 while failed records of the shard wait for their on-failure destination",
        "for long: the destination is away; they are safe in the sink, `headrace dlq list` shows them",
        _shard(lambda shard: float(shard.undelivered)),
    ),
)

_FUNCTION = (
    Metric(
        *("headrace_function_invocations_total", "counter", "invocations", ("pipeline", "function")),
        "calls of the function that it took or that failed, retries among them",
        INFORMS,
        _function(lambda function: function.invocations),
        aws=("Invocations",),
    ),
    Metric(
        *("headrace_function_errors_total", "counter", "invocations", ("pipeline", "function")),
        "calls that failed as a whole: it raised, ended, took too long, or answered what its kind does not allow",
        "the page's logs have the stack trace",
        _function(lambda function: function.errors),
        aws=("Errors",),
    ),
    Metric(
        *("headrace_function_throttles_total", "counter", "invocations", ("pipeline", "function")),
        "calls that were not made for want of an execution environment; no attempt is used up",
        "allow more environments, or fewer partitions for each process",
        _function(lambda function: function.throttles),
        aws=("Throttles",),
    ),
    Metric(
        *("headrace_function_retries_total", "counter", "invocations", ("pipeline", "function")),
        "calls after the first one of the same records",
        "see what failed before: headrace_function_errors_total",
        _function(lambda function: function.retries),
    ),
    Metric(
        *("headrace_function_splits_total", "counter", "splits", ("pipeline", "function")),
        "batches that failed and were halved (bisect_batch_on_function_error)",
        "as above",
        _function(lambda function: function.splits),
    ),
    Metric(
        *("headrace_function_duration_seconds", "histogram", "seconds", ("pipeline", "function")),
        "how long a call took as the engine sees it, the wait for an environment and the way there and back"
        " included",
        "a smaller batch_size, more memory_size (and with it processor), or a faster function; near the timeout"
        " records fail",
        _function(lambda function: function.duration),
        aws=("Duration",),
        aws_note="in milliseconds there, and measured inside the environment",
    ),
    Metric(
        *("headrace_function_batch_records", "histogram", "records", ("pipeline", "function")),
        "records of a call; those of retries count again",
        "far below batch_size with lag behind it: batches are closed by bytes, see source.batch_size",
        _function(lambda function: function.batch_records),
        aws=("InvokedEventCount",),
        aws_note="is its `_sum`, without throttled calls",
    ),
    Metric(
        *("headrace_function_billed_seconds_total", "counter", "seconds", ("pipeline", "function")),
        "time that AWS would bill; 0 for kinds that AWS has not",
        INFORMS,
        _function(lambda function: function.billed_ms / 1000),
    ),
    Metric(
        *("headrace_function_billed_gb_seconds_total", "counter", "GB seconds", ("pipeline", "function")),
        "memory size times time that AWS would bill, in gigabytes (of 1,024 MB) times seconds",
        "a smaller memory_size, if the function does not need it: `headrace report` shows what it used",
        _function(lambda function: function.billed_gb_seconds),
    ),
    Metric(
        *("headrace_function_estimated_usd_total", "counter", "US dollars", ("pipeline", "function")),
        "what AWS would have charged for these calls, as an estimate",
        "as above; the rates are those of `headrace report`",
        _function(lambda function: function.estimated_usd),
    ),
)

#: Every metric, in the order in which they are exposed, by what it is of.
GROUPS: dict[str, tuple[Metric, ...]] = {
    "The process": _PROCESS,
    "Each pipeline": _PIPELINE,
    "Each owned partition": _SHARD,
    "Each function": _FUNCTION,
}
METRICS: tuple[Metric, ...] = tuple(metric for group in GROUPS.values() for metric in group)
