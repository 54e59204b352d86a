"""Snapshots of engines for tests, each member with a default that is sound."""

from typing import Any

from engine.protocols import Counts
from engine.status import (
    BATCH_BOUNDS,
    DURATION_BOUNDS,
    Distribution,
    EngineStatus,
    FunctionStatus,
    PipelineStatus,
    ShardStatus,
)

#: When the snapshots are of.
AT = 1_800_000_000.0


def distribution(bounds: tuple[float, ...] = DURATION_BOUNDS) -> Distribution:
    return Distribution(bounds, tuple(range(len(bounds) + 1)), 1.25)


def shard(partition: int, **changed: Any) -> ShardStatus:
    members: dict[str, Any] = {
        "state": "running",
        "position": 100,
        "read": 100,
        "end": 100,
        "iterator_age_seconds": 0.0,
        "stalled_seconds": 0.0,
        "records": 0,
        "batches": 0,
        "rows": 0,
        "commits": 0,
        "counts": Counts(),
        "held_bytes": 0,
        "undelivered": False,
        "error": None,
    }
    return ShardStatus(partition=partition, **{**members, **changed})


def function(name: str, **changed: Any) -> FunctionStatus:
    members: dict[str, Any] = {
        "kind": "kafka",
        "invocations": 0,
        "errors": 0,
        "throttles": 0,
        "retries": 0,
        "splits": 0,
        "billed_ms": 0,
        "billed_gb_seconds": 0.0,
        "estimated_usd": 0.0,
        "duration": distribution(),
        "batch_records": distribution(BATCH_BOUNDS),
    }
    return FunctionStatus(name=name, **{**members, **changed})


def pipeline(name: str, **changed: Any) -> PipelineStatus:
    """Records and counts are the sums of the shards' unless given."""
    shards: tuple[ShardStatus, ...] = changed.setdefault("shards", (shard(0),))
    members: dict[str, Any] = {
        "topic": f"{name}.topic",
        "sink": "parquet",
        "target": f"/data/{name}",
        "state": "running",
        "error": None,
        "function": function(f"{name}-function"),
        "records": sum(each.records for each in shards),
        "rows": 0,
        "commits": 0,
        "counts": sum((each.counts for each in shards), Counts()),
        "commit": distribution(),
        "partitions": max(1, len(shards)),
    }
    return PipelineStatus(name=name, **{**members, **changed})


def engine(*pipelines: PipelineStatus, **changed: Any) -> EngineStatus:
    members: dict[str, Any] = {
        "at": AT,
        "started_at": AT - 100,
        "pid": 4711,
        "version": "0.1.0",
        "cpu_seconds": 12.5,
        "resident_bytes": 200_000_000,
        "budget_bytes": 1_000,
        "budget_bytes_max": 2_000,
        "loop_blocked_seconds_max": 0.02,
        "loop_blocked_count": 3,
    }
    return EngineStatus(pipelines=pipelines, **{**members, **changed})
