"""Whether every record of a run is accounted for: read = handled + filtered + dropped + failed + absent.

Records are counted as polled when they are fetched and as one of the five when they are settled, so between the two
they are in flight: the equation holds as an inequality at any moment, and exactly once nothing is in flight.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields

from engine.protocols import Counts
from engine.status import EngineStatus, PipelineStatus, ShardStatus

OUTCOMES = tuple(each.name for each in fields(Counts))


def account(status: EngineStatus) -> list[str]:
    """Violations, a sentence each; none for a sound snapshot.

    What is held: no count is negative; settled records (all outcomes but absent) are at most those polled, and of
    a shard they are equal once everything read is committed; a position is never beyond what was read, and no more
    offsets are settled than were read; a pipeline's counts have those of its shards among them.
    """
    return [
        line
        for pipeline in status.pipelines
        for line in (
            *(line for shard in pipeline.shards for line in _shard(pipeline.name, shard)),
            *_pipeline(pipeline),
        )
    ]


def settled(counts: Counts) -> int:
    """Records, not offsets: what is absent was never polled."""
    return counts.total - counts.absent


def _shard(pipeline: str, shard: ShardStatus) -> Iterator[str]:
    where = f"{pipeline}[{shard.partition}]"
    counts = shard.counts
    for outcome in OUTCOMES:
        if getattr(counts, outcome) < 0:
            yield f"{where}: {outcome} is {getattr(counts, outcome)}"
    if settled(counts) > shard.records:
        yield f"{where}: {settled(counts)} records are settled, {shard.records} were polled"
    if shard.read is None or shard.position is None:
        if counts.total:
            yield f"{where}: {counts.total} offsets are settled before its position was known"
        return
    if shard.position > shard.read:
        yield f"{where}: position {shard.position} is beyond {shard.read}, up to which it was read"
    if counts.total > shard.read:
        yield f"{where}: {counts.total} offsets are settled, the topic was read up to {shard.read}"
    if shard.position == shard.read and settled(counts) != shard.records:
        yield (
            f"{where}: all is committed up to {shard.position}, but of {shard.records} polled records"
            f" {settled(counts)} are accounted for: {_told(counts)}"
        )


def _pipeline(pipeline: PipelineStatus) -> Iterator[str]:
    if settled(pipeline.counts) > pipeline.records:
        yield f"{pipeline.name}: {settled(pipeline.counts)} records are settled, {pipeline.records} were polled"
    owned = sum((shard.counts for shard in pipeline.shards), Counts())
    for outcome in OUTCOMES:
        whole, parts = getattr(pipeline.counts, outcome), getattr(owned, outcome)
        if whole < parts:
            yield f"{pipeline.name}: {outcome} is {whole}, its shards alone have {parts}"
    polled = sum(shard.records for shard in pipeline.shards)
    if pipeline.records < polled:
        yield f"{pipeline.name}: {pipeline.records} records were polled, by its shards alone {polled}"


def _told(counts: Counts) -> str:
    return ", ".join(f"{outcome} {getattr(counts, outcome)}" for outcome in OUTCOMES)
