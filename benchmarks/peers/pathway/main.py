"""Pathway does a job of the benchmark: a pipeline over the topic in static mode, which ends at the topic's end."""

from __future__ import annotations

import os
import time

from benchmark_job import WINDOW_MS, Job, print_result, read_job

_JOB = read_job()
# Read once, at import.
os.environ["PATHWAY_THREADS"] = str(_JOB.processes)

import pathway as pw  # noqa: E402


class Event(pw.Schema):
    event_id: int
    user_id: str
    session: str
    page: str
    event_type: str
    ts: int
    referrer: str
    ua: str
    price: float
    ip: str


def settings(job: Job) -> dict[str, str]:
    return {"bootstrap.servers": job.bootstrap, "group.id": job.group, "auto.offset.reset": "earliest"}


def etl(events: pw.Table, job: Job) -> None:
    pw.io.jsonlines.write(events, str(job.output_directory / "events.jsonl"))


def filtered(events: pw.Table, job: Job) -> None:
    wanted = events.filter((pw.this.event_type == "purchase") & (pw.this.price > 90))
    pw.io.kafka.write(wanted, settings(job), topic_name=job.output, format="json")


def window(events: pw.Table, job: Job) -> None:
    tumbling = pw.temporal.tumbling(duration=WINDOW_MS, origin=0)
    windows = events.windowby(events.ts, window=tumbling, instance=events.page).reduce(
        window_start=pw.this._pw_window_start,
        page=pw.this._pw_instance,
        count=pw.reducers.count(),
        sum=pw.reducers.sum(pw.this.price),
    )
    pw.io.jsonlines.write(windows, str(job.output_directory / "windows.jsonl"))


def main() -> None:
    job = _JOB
    events = pw.io.kafka.read(settings(job), job.topic, schema=Event, format="json", mode="static")
    {"etl": etl, "filter": filtered, "window": window}[job.workload](events, job)
    started = time.perf_counter()
    pw.run(monitoring_level=pw.MonitoringLevel.NONE)
    print_result(job.events, time.perf_counter() - started)


if __name__ == "__main__":
    main()
