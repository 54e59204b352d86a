"""headrace as a system of the benchmark: a generated headrace.toml, run until it has caught up.

`python -m benchmarks.systems.headrace` with a job in its environment is `headrace run` in this process. Settings
are headrace's defaults but for what `configuration` writes. Seconds go by its own log lines, from the first
partition's start (its position is known then, and nothing fetched yet) to the summary, which follows the last
commit and the closing of the sinks.
"""

from __future__ import annotations

import datetime as dt
import json
import logging
import re
import resource
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.columns import CLICKS
from benchmarks.systems import job as jobs
from benchmarks.systems.job import Job
from engine.cli.start import prepare

#: The pipeline of `summary`.
PIPELINE = "bench"
RUN = "headrace.run"
NOTE = "seconds from before the first fetch to the closed sinks"

Table = Mapping[str, Any]

_FILTER = "SELECT _key, _value FROM batch WHERE event_type = 'purchase' AND price > 90"
_WINDOW = (
    "SELECT ts - ts % 60000 AS window_start, page, count(*) AS count, sum(price) AS sum FROM batch GROUP BY ALL"
)
_CHANGES = {"before": "JSON", "after": "JSON", "source": "JSON", "op": "VARCHAR", "ts_ms": "BIGINT"}


def configuration(job: Job) -> dict[str, Any]:
    """The pipeline of a workload, as headrace.toml has it.

    It is named as the group is, for nobody else: a Kafka sink keeps its positions in a topic of that name.
    """
    source: dict[str, Any] = {"topic": job.topic}
    tables: dict[str, Any] = {"consumer_group_id": job.group, "source": source}
    if job.workload == "etl":
        tables["schema"] = {"columns": CLICKS}
        tables["sink"] = {"type": "parquet", "path": job.output}
    elif job.workload == "filter":
        tables["schema"] = {
            "columns": {"event_type": "VARCHAR", "price": "DOUBLE"},
            "rest": False,
            "record": True,
        }
        tables["function"] = {"kind": "sql", "query": _FILTER}
        tables["sink"] = {"type": "kafka", "topic": job.output, "key": "_key", "value": "_value"}
    elif job.workload == "window":
        tables["schema"] = {
            "columns": {"ts": "BIGINT", "page": "VARCHAR", "price": "DOUBLE"},
            "rest": False,
            "trace": False,
        }
        tables["function"] = {"kind": "sql", "query": _WINDOW}
        tables["sink"] = {
            "type": "duckdb",
            "path": f"{job.output}/windows.db",
            "table": "windows",
            "mode": "aggregate",
            "key": ["window_start", "page"],
            "aggregates": {"count": "sum", "sum": "sum"},
        }
    elif job.workload == "handler":
        source["batch_size"] = 1_000
        tables["function"] = {"kind": "kinesis", "handler": "benchmarks.systems.handler.count_and_tell"}
    elif job.workload == "logs":
        tables["schema"] = {"format": "text"}
        tables["function"] = {"kind": "arrow", "handler": "functions.log_filter.failures"}
        tables["sink"] = {"type": "parquet", "path": job.output}
    else:
        assert job.workload == "changes", job.workload
        tables["schema"] = {"columns": _CHANGES}
        tables["function"] = {"kind": "arrow", "handler": "functions.etl.runways"}
        tables["sink"] = {
            "type": "duckdb",
            "path": f"{job.output}/runways.db",
            "table": "runways",
            "mode": "upsert",
            "key": ["id"],
            "order_by": "_order",
        }
    return {"kafka": {"bootstrap": job.bootstrap}, "pipelines": {job.group: tables}}


def toml(tables: Table, path: str = "") -> str:
    """Tables of plain values as TOML; JSON's texts, numbers and lists are TOML's."""
    lines = [f"{key} = {json.dumps(value)}" for key, value in tables.items() if not isinstance(value, Mapping)]
    if path and lines:
        lines.insert(0, f"[{path}]")
    for key, value in tables.items():
        if isinstance(value, Mapping):
            lines.append(toml(value, f"{path}.{key}" if path else key))
    return "\n".join(lines) + "\n"


class Watch(logging.Handler):
    """Hears headrace's own log, and answers the harness when the run is over."""

    def __init__(self, pipeline: str) -> None:
        super().__init__()
        self._pipeline = pipeline
        self._from: tuple[float, float] | None = None

    def emit(self, record: logging.LogRecord) -> None:
        now = time.monotonic(), _cpu_seconds()
        if self._from is None and is_start(record.name, record.getMessage()):
            self._from = now
        found = events_in(record.getMessage(), self._pipeline) if record.name == RUN else None
        if found is not None and self._from is not None:
            seconds, cpu_seconds = (end - start for start, end in zip(self._from, now, strict=True))
            jobs.answer(found, seconds, NOTE, cpu_seconds)


def _cpu_seconds() -> float:
    """Of this process, and of those started by it that have ended, as environments have by the summary."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def main() -> int:
    prepare()  # as the command does, before anything that allocates is imported
    job = jobs.read()
    config = Path(job.scratch) / "headrace.toml"
    config.write_text(toml(configuration(job)))
    from engine.cli.main import call

    logging.getLogger("headrace").addHandler(Watch(job.group))
    return call(["run", str(config), "--until-caught-up", "--json"])


def is_start(logger: str, message: str) -> bool:
    """Whether a line of the log says that a partition's position is known."""
    return logger == "headrace.shard" and "starts at" in message


def events_in(message: str, pipeline: str = PIPELINE) -> int | None:
    """The records read, of the summary that ends a run; None for any other message."""
    found = re.match(rf"{re.escape(pipeline)}: ([\d,]+) records, [\d,]+ rows", message)
    return None if found is None else int(found[1].replace(",", ""))


def summary(log: str) -> tuple[int, float]:
    """Records read, and seconds, of the log of a run that was another process's."""
    lines = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
    starts = [line for line in lines if is_start(line["logger"], line["message"])]
    events = events_in(lines[-1]["message"]) if lines else None
    if events is None or not starts:
        raise ValueError(f"no summary, or no partition's start, in {log[-1_000:]!r}")
    start, end = (dt.datetime.fromisoformat(line["time"]) for line in (starts[0], lines[-1]))
    return events, (end - start).total_seconds()


if __name__ == "__main__":
    sys.exit(main())
