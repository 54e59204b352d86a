"""The page about every metric, made from the registry: `python -m engine.metrics.page > docs/metrics.md`."""

from __future__ import annotations

import sys
from collections.abc import Iterator

from engine.metrics.health import REASONS_MAX, STATUS_AGE_SECONDS_MAX
from engine.metrics.registry import GROUPS, Metric

HEAD = """# Metrics and health

`headrace run` serves `/metrics` for Prometheus (text format 0.0.4, OpenMetrics for clients that ask for it) and
`/healthz` beside its page, at `http://127.0.0.1:8321` unless `[web]` says otherwise. Where `web.token` is set, both
want `Authorization: Bearer TOKEN`. Counters begin at 0 with the process. Everything in one answer is of one moment,
about a second old at most.
This page is made from the registry by `python -m engine.metrics.page`.

Every record is accounted for: **read = handled + filtered + dropped + failed + absent**. Records count as polled
(`headrace_polled_records_total`) when they are fetched and in `headrace_records_total` when they are settled, so
the outcomes without `absent` never exceed what was polled, and equal it where nothing is in flight and no shard was
lost on the way. Offsets that are absent (compacted, control, aborted) are no records; with them the outcomes sum up
to the offsets that were passed.

A process shows the partitions that it owns. Sum over processes (`sum by (pipeline) (headrace_offset_lag)`) for what
is the topic's.
"""

HEALTH = f"""## /healthz

It is about progress: a process that is there and does nothing is not healthy. The answer is 200, or 503 with
`{{"ok": false, "reasons": [...]}}`; each reason has its `kind`, `pipeline`, `partition`, `position`, `end`, a
`message` and a `hint` that says what to do, null where it does not apply. At most {REASONS_MAX} are listed,
`reasons_count` has how many there are.

| kind | when |
|---|---|
| `status_old` | the engine's event loop has not told its state for more than {STATUS_AGE_SECONDS_MAX:.0f} s |
| `pipeline_ended` | a pipeline ended with an error |
| `shard_stopped` | a partition stopped with an error that it cannot pass |
| `shard_stalled` | a partition has records behind its position, which has not moved for \
`web.stall_seconds_max` and the time that the pipeline's own settings let commits wait |

A partition without records to read, and a standby that waits for another process's DuckDB file, are healthy. Use it
to raise an alarm: a supervisor that restarts what is red helps against a loop that hangs, and not against a record
that cannot be passed.

## Prometheus and Grafana

`ops/` has a scrape configuration, alert rules whose annotations say what to do, and a Grafana dashboard;
`docker compose up` starts all of it beside Kafka. A test holds every query in them against this registry. They are
checked statically: no Docker engine has run them here.
"""

WITHOUT = """## What CloudWatch has and this has not

| name | why |
|---|---|
| FailedInvokeEventCount | calls that failed are counted (`headrace_function_errors_total`), their records are not |
| DroppedEventCount | records dropped after their attempts are not told apart from those that a function let go |
| OnFailureDestinationDeliveredEventCount | delivery is at least once and may repeat; `headrace_shard_undelivered` \
says whether any waits |
| CommittedEventCount | `headrace_records_total` counts a moment earlier; the commit is `headrace_shard_position` |
| ConcurrentExecutions | environments are not counted here |
"""


def page() -> str:
    sections = [line for name, metrics in GROUPS.items() for line in _section(name, metrics)]
    return "\n".join([HEAD, *sections, WITHOUT, HEALTH]).rstrip() + "\n"


def _section(name: str, metrics: tuple[Metric, ...]) -> Iterator[str]:
    yield f"## {name}"
    yield ""
    yield "| metric | type, unit | meaning | when it is bad |"
    yield "|---|---|---|---|"
    for metric in metrics:
        yield _row(metric)
    yield ""


def _row(metric: Metric) -> str:
    labels = f" {{{', '.join(metric.labels)}}}" if metric.labels else ""
    unit = metric.unit or ("1" if metric.name.endswith("_info") else "0 or 1")
    kind = f"{metric.kind}, {unit}"
    meaning = metric.meaning
    if metric.aws:
        note = f" ({metric.aws_note})" if metric.aws_note else ""
        meaning += f". CloudWatch: {', '.join(metric.aws)}{note}"
    cells = (f"`{metric.name}`{labels}", kind, meaning, metric.remedy)
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


if __name__ == "__main__":
    sys.stdout.write(page())
