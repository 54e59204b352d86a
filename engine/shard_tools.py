"""What a shard's owner works with and what it tells of itself: plain data. Not here: any work (`engine.shard`)."""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from engine.batching import Batcher
from engine.breaker import Breaker
from engine.budget import ByteBudget
from engine.positions import Positions
from engine.processing import Processor
from engine.protocols import Clock, Counts, Destination, FailedRecord, Filter, Sink, Source


class State(enum.StrEnum):
    STARTING = "starting"
    RUNNING = "running"
    STOPPED = "stopped"  #: gave up by itself, with an error
    RELEASED = "released"


@dataclass(frozen=True, slots=True)
class ShardStatistics:
    """``position`` is committed, ``read`` fetched: each the offset after the last one. Counts are of this run."""

    partition: int
    state: State
    position: int | None
    read: int | None
    records: int
    batches: int
    rows: int
    commits: int
    counts: Counts
    undelivered: bool
    error: str | None
    end: int | None
    iterator_age_seconds: float
    stalled_seconds: float
    held_bytes: int


@dataclass(frozen=True, slots=True)
class ShardTools:
    """What the shards of a pipeline share."""

    name: str
    source: Source
    sink: Sink
    processor: Processor
    positions: Positions
    destination: Destination | None
    batcher: Callable[[], Batcher]
    budget: ByteBudget
    clock: Clock
    fetch_records_max: int
    shard_bytes_max: int
    on_commit: Callable[[int, int], None]
    outage_seconds_max: float
    phase: Callable[[str], None] | None = None
    filter: Filter | None = None
    lanes: int = 1
    lane_bytes_max: int = 0
    window_seconds: int = 0  #: of tumbling windows; 0: there are none
    window_wait_seconds: float = 0.0  #: without records, before a window that is over is closed
    breaker: Callable[[], Breaker] | None = None
    on_failed: Callable[[Sequence[FailedRecord]], None] | None = None  #: hears of records as they fail
