"""The last hour of each pipeline, for charts: a ring of moments, made from the differences of statuses.

Memory is bounded by ``MOMENTS_MAX`` for each of at most ``PIPELINES_MAX`` pipelines. Not here: when a moment is due
on a clock of its own; `add` is called with statuses as they come and takes one for each step.
"""

from __future__ import annotations

from collections import deque

from engine.status import Distribution, EngineStatus, History, Moment, PipelineStatus

STEP_SECONDS = 10.0
MOMENTS_MAX = 360
PIPELINES_MAX = 1_000


class HistoryRing:
    """Takes statuses, oldest first, in one thread; `history` may be called in another."""

    def __init__(self, step_seconds: float = STEP_SECONDS, moments_max: int = MOMENTS_MAX) -> None:
        self._step_seconds = step_seconds
        self._moments_max = moments_max
        self._last: EngineStatus | None = None
        self._moments: dict[str, deque[Moment]] = {}

    def add(self, status: EngineStatus) -> bool:
        """Make the moment of each pipeline, if a step has passed since the last one; whether it has."""
        last = self._last
        if last is not None and status.at - last.at < self._step_seconds * 0.95:
            return False
        self._last = status
        if last is None or status.started_at != last.started_at:
            return False
        seconds = status.at - last.at
        for pipeline in status.pipelines:
            before = last.pipeline(pipeline.name)
            if before is None:
                continue  # it has just appeared: there is no rate yet
            if pipeline.name not in self._moments and len(self._moments) >= PIPELINES_MAX:
                continue
            ring = self._moments.setdefault(pipeline.name, deque(maxlen=self._moments_max))
            ring.append(_moment(status.at, seconds, before, pipeline))
        return True

    def history(self) -> History:
        # The deques are copied by one call each, which the interpreter does not interrupt.
        return History(self._step_seconds, {name: list(ring) for name, ring in list(self._moments.items())})


def _moment(at: float, seconds: float, before: PipelineStatus, now: PipelineStatus) -> Moment:
    durations = _difference(before.function.duration, now.function.duration)

    def rate(first: int, second: int) -> float:
        return max(0, second - first) / seconds

    return Moment(
        at=at,
        records_per_second=rate(before.records, now.records),
        rows_per_second=rate(before.rows, now.rows),
        failed_per_second=rate(before.counts.failed, now.counts.failed),
        offset_lag=now.offset_lag,
        iterator_age_seconds=now.iterator_age_seconds,
        invocations_per_second=rate(before.function.invocations, now.function.invocations),
        errors_per_second=rate(before.function.errors, now.function.errors),
        duration_p50_seconds=durations.quantile(0.5),
        duration_p99_seconds=durations.quantile(0.99),
    )


def _difference(before: Distribution, now: Distribution) -> Distribution:
    """What was counted between the two."""
    if before.bounds != now.bounds:
        return now
    counts = tuple(max(0, b - a) for a, b in zip(before.counts, now.counts, strict=True))
    return Distribution(now.bounds, counts, max(0.0, now.total - before.total))
