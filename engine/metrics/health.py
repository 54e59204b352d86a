"""Whether a run gets on: not whether its process is there, but whether its positions move.

A shard that is behind and stands still, a shard or a pipeline that ended with an error, and an engine whose loop no
longer makes snapshots are unhealthy; a shard without work, and a standby that waits for its file, are not.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from engine.config import Config, batching_window
from engine.status import EngineStatus, PipelineStatus, ShardStatus

#: Snapshots are made about once a second; one that is older says that the engine's loop hangs.
STATUS_AGE_SECONDS_MAX = 10.0

#: Of the reasons that are told; how many there are altogether is told too.
REASONS_MAX = 100


@dataclass(frozen=True, slots=True)
class Reason:
    """One thing that is wrong. ``kind`` is status_old, pipeline_ended, shard_stopped or shard_stalled.

    ``pipeline`` and ``partition`` are None where the reason is about the whole process or the whole pipeline;
    ``position`` and ``end`` are the shard's, as in `ShardStatus`. ``hint`` says what to do.
    """

    kind: str
    message: str
    hint: str
    pipeline: str | None = None
    partition: int | None = None
    position: int | None = None
    end: int | None = None

    def document(self) -> dict[str, object]:
        """The same for JSON; what does not apply is null."""
        return {
            "kind": self.kind,
            "pipeline": self.pipeline,
            "partition": self.partition,
            "position": self.position,
            "end": self.end,
            "message": self.message,
            "hint": self.hint,
        }


@dataclass(frozen=True, slots=True)
class Health:
    """``reasons`` are the gravest `REASONS_MAX` of ``reasons_count``; none where ``ok``."""

    ok: bool
    reasons: tuple[Reason, ...] = ()
    reasons_count: int = 0
    at: float = 0.0  #: of the snapshot, seconds since the epoch

    @property
    def http_status(self) -> int:
        return 200 if self.ok else 503

    def document(self) -> dict[str, object]:
        """What /healthz answers, for JSON."""
        return {
            "ok": self.ok,
            "at": self.at,
            "reasons_count": self.reasons_count,
            "reasons": [reason.document() for reason in self.reasons],
        }


def health(
    status: EngineStatus, *, stall_seconds_max: float, now: float, waits: Mapping[str, float] | None = None
) -> Health:
    """Judge one snapshot. ``now`` is in seconds since the epoch; ``stall_seconds_max`` is `WebConfig`'s.

    ``waits`` has the seconds that each pipeline's commits may wait by its own settings (`commit_waits`); a shard is
    stalled only beyond those too.
    """
    found: list[Reason] = [*_old(status, now)]
    for pipeline in status.pipelines:
        found.extend(_ended(pipeline))
    for pipeline in status.pipelines:
        found.extend(_stopped(pipeline))
    found.extend(_stalled(status.pipelines, stall_seconds_max, waits or {}))
    return Health(not found, tuple(found[:REASONS_MAX]), len(found), status.at)


def commit_waits(config: Config) -> dict[str, float]:
    """Seconds that records of each pipeline may wait, by its settings, before they are committed."""
    return {
        name: batching_window(pipeline)
        + max(
            getattr(pipeline.sink, "file_age_max_seconds", 0.0),
            getattr(pipeline.sink, "commit_interval_max_seconds", 0.0),
        )
        for name, pipeline in config.pipelines.items()
    }


def _old(status: EngineStatus, now: float) -> Iterator[Reason]:
    age = now - status.at
    if age > STATUS_AGE_SECONDS_MAX:
        yield Reason(
            "status_old",
            f"the engine's event loop has made no snapshot for {age:.0f} s, {STATUS_AGE_SECONDS_MAX:.0f} s at most"
            " are normal",
            "look for a function that holds the interpreter lock, a machine without memory, or a stopped process;"
            " give the function a process of its own, or restart",
        )


def _ended(pipeline: PipelineStatus) -> Iterator[Reason]:
    if pipeline.error is not None:
        yield Reason(
            "pipeline_ended",
            f"pipeline {pipeline.name} (topic {pipeline.topic}) ended: {pipeline.error}",
            "mend what the message names and start it again; it goes on at its committed positions",
            pipeline.name,
        )


def _stopped(pipeline: PipelineStatus) -> Iterator[Reason]:
    for shard in pipeline.shards:
        if shard.error is not None:
            yield Reason(
                "shard_stopped",
                f"pipeline {pipeline.name}, partition {shard.partition} of topic {pipeline.topic} stopped"
                f" {_where(shard)}: {shard.error}",
                "mend what the message names and start again, or set source.destination_config.on_failure so that"
                " records that fail are reported and passed",
                *(pipeline.name, shard.partition, shard.position, shard.end),
            )


def _stalled(
    pipelines: Iterable[PipelineStatus], stall_seconds_max: float, waits: Mapping[str, float]
) -> list[Reason]:
    """The longest first."""
    stalled = []
    for pipeline in pipelines:
        seconds_max = stall_seconds_max + waits.get(pipeline.name, 0.0)
        stalled += [
            (pipeline, shard, seconds_max)
            for shard in pipeline.shards
            if shard.error is None and shard.stalled_seconds > seconds_max
        ]
    stalled.sort(key=lambda found: -found[1].stalled_seconds)
    return [
        Reason(
            "shard_stalled",
            f"pipeline {pipeline.name}, partition {shard.partition} of topic {pipeline.topic} has not moved for"
            f" {shard.stalled_seconds:.0f} s, {seconds_max:g} s at most are allowed: {_where(shard)}",
            "look for a function that does not return (function.timeout ends its call) or is retried without end, a"
            " sink that is full, or a broker that is away: the log has errors, and `headrace doctor` asks broker,"
            " disk and sinks",
            *(pipeline.name, shard.partition, shard.position, shard.end),
        )
        for pipeline, shard, seconds_max in stalled
    ]


def _where(shard: ShardStatus) -> str:
    if shard.position is None:
        return "before its position was known"
    if shard.end is None:
        return f"at offset {shard.position}"
    return f"at offset {shard.position} of {shard.end}, {shard.offset_lag} behind"
