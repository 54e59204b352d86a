"""What a running engine shows of itself: plain data, made on the event loop about once a second, read anywhere.

Everything here is frozen and holds no reference to what runs, so that a page, a scrape or a terminal in another
thread reads one consistent moment. Not here: measuring (`engine.measures`) and showing.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass, field

from engine.protocols import Counts

#: Upper bounds in seconds of the classes that durations are counted in; one more class is for what is longer.
DURATION_BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 900.0)

#: Upper bounds of the classes that batch sizes, in records, are counted in.
BATCH_BOUNDS = (1.0, 10.0, 100.0, 500.0, 1_000.0, 5_000.0, 10_000.0, 25_000.0, 100_000.0)


@dataclass(frozen=True, slots=True)
class Distribution:
    """How many values fell into each class: ``counts`` has one more than ``bounds``; ``total`` is their sum."""

    bounds: tuple[float, ...]
    counts: tuple[int, ...]
    total: float

    @property
    def count(self) -> int:
        return sum(self.counts)

    def quantile(self, share: float) -> float | None:
        """The bound within which ``share`` (0 to 1) of the values are; None for none, infinity beyond the last."""
        if not self.count:
            return None
        cumulative = [sum(self.counts[: at + 1]) for at in range(len(self.counts))]
        at = bisect.bisect_left(cumulative, share * self.count)
        return self.bounds[at] if at < len(self.bounds) else float("inf")


@dataclass(frozen=True, slots=True)
class ShardStatus:
    """One owned shard. Counts are of this process's run of the shard.

    ``position`` is committed, ``read`` fetched, ``end`` the topic's last stable offset as last asked for: each
    the offset after the last record, None while unknown. ``iterator_age_seconds`` is how old the last record read
    is while there are more to commit, else 0.0 (CloudWatch's IteratorAge). ``stalled_seconds`` is how long the
    position has not moved although there are records beyond it, else 0.0.
    """

    partition: int
    state: str  #: starting, running, stopped or released
    position: int | None
    read: int | None
    end: int | None
    iterator_age_seconds: float
    stalled_seconds: float
    records: int
    batches: int
    rows: int
    commits: int
    counts: Counts
    held_bytes: int
    undelivered: bool  #: failed records wait for their destination
    error: str | None

    @property
    def offset_lag(self) -> int:
        """Offsets that are not committed yet (CloudWatch's OffsetLag)."""
        if self.end is None or self.position is None:
            return 0
        return max(0, self.end - self.position)


@dataclass(frozen=True, slots=True)
class Billing:
    """What AWS would bill for a function's invocations so far."""

    billed_ms: int = 0
    gb_seconds: float = 0.0
    usd: float = 0.0


@dataclass(frozen=True, slots=True)
class FunctionStatus:
    """A pipeline's function in this run. ``kind`` is None for a pipeline without one.

    ``invocations`` counts attempts, ``errors`` those that failed, ``throttles`` refusals for want of an
    environment, ``retries`` attempts after the first, ``splits`` bisections. ``billed_ms`` and
    ``billed_gb_seconds`` are what AWS would bill; 0 for kinds that AWS has not.
    """

    name: str
    kind: str | None
    invocations: int
    errors: int
    throttles: int
    retries: int
    splits: int
    billed_ms: int
    billed_gb_seconds: float
    estimated_usd: float
    duration: Distribution  #: seconds of an attempt
    batch_records: Distribution  #: records of an attempt


@dataclass(frozen=True, slots=True)
class PipelineStatus:
    """``counts`` and ``rows`` are of all shards that this process has owned in this run; ``commit`` in seconds."""

    name: str
    topic: str
    sink: str  #: parquet, duckdb, ducklake, kafka or none
    target: str | None  #: the sink's path, table or topic
    state: str  #: starting, running, stopped or ended
    error: str | None
    shards: tuple[ShardStatus, ...]
    function: FunctionStatus
    records: int  #: polled from the topic (CloudWatch's PolledEventCount)
    rows: int
    commits: int
    counts: Counts
    commit: Distribution
    partitions: int  #: of the topic, of which this process owns ``shards``

    @property
    def offset_lag(self) -> int:
        return sum(shard.offset_lag for shard in self.shards)

    @property
    def iterator_age_seconds(self) -> float:
        return max((shard.iterator_age_seconds for shard in self.shards), default=0.0)


@dataclass(frozen=True, slots=True)
class EngineStatus:
    """One moment of a process. ``at`` and ``started_at`` are seconds since the epoch."""

    at: float
    started_at: float
    pid: int
    version: str
    cpu_seconds: float
    resident_bytes: int
    budget_bytes: int
    budget_bytes_max: int
    loop_blocked_seconds_max: float
    loop_blocked_count: int
    pipelines: tuple[PipelineStatus, ...]

    def pipeline(self, name: str) -> PipelineStatus | None:
        return next((each for each in self.pipelines if each.name == name), None)


@dataclass(frozen=True, slots=True)
class FailureEntry:
    """A record that failed, as it is shown. ``value`` and ``key`` are whole, or None for none."""

    pipeline: str
    topic: str
    partition: int
    offset: int
    timestamp: int  #: milliseconds since the epoch
    failed_at: float  #: seconds since the epoch
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes | None], ...]
    reason: str
    error_type: str
    attempts: int
    request_id: str | None


@dataclass(frozen=True, slots=True)
class Moment:
    """One pipeline at one time, for charts: rates are per second since the moment before."""

    at: float
    records_per_second: float
    rows_per_second: float
    failed_per_second: float
    offset_lag: int
    iterator_age_seconds: float
    invocations_per_second: float
    errors_per_second: float
    duration_p50_seconds: float | None
    duration_p99_seconds: float | None


@dataclass(frozen=True, slots=True)
class History:
    """``moments`` by pipeline, oldest first, ``step_seconds`` apart."""

    step_seconds: float
    moments: dict[str, Sequence[Moment]] = field(default_factory=dict)
