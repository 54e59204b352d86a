"""Quix Streams does a job of the benchmark: one `Application`, which runs until it has processed every record."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from benchmark_job import (
    HANDLER_RECORDS_MAX,
    WINDOW_MS,
    Handler,
    Job,
    Stopwatch,
    is_wanted,
    kinesis_event,
    print_result,
    read_job,
    write_windows,
)
from quixstreams import Application
from quixstreams.dataframe.windows import Count, Sum
from quixstreams.sinks import BatchingSink, SinkBatch
from quixstreams.sinks.community.file.formats import ParquetFormat
from quixstreams.sinks.community.file.local import LocalFileSink

COMMIT_EVERY_RECORDS = 100_000
COMMIT_SECONDS = 5.0
GRACE_MS = 600_000


class Run:
    """The application, stopped by its own callback when all records have been processed."""

    def __init__(self, job: Job) -> None:
        self.watch = Stopwatch()
        self._processed = 0
        # A repartitioned record is processed twice: where it was, and under its new key.
        self._expected = job.events * (2 if job.workload == "window" else 1)
        by_count = job.workload in ("etl", "handler")
        self.application = Application(
            broker_address=job.bootstrap,
            consumer_group=job.group,
            auto_offset_reset="earliest",
            # The sinks write at each commit, and files or batches should be neither tiny nor unbounded.
            commit_every=COMMIT_EVERY_RECORDS if by_count else 0,
            commit_interval=60.0 if by_count else COMMIT_SECONDS,
            state_dir=str(job.scratch_directory / "state"),
            on_message_processed=self._on_processed,
            loglevel="WARNING",
        )

    def _on_processed(self, _topic: str, _partition: int, _offset: int) -> None:
        self._processed += 1
        if self._processed == 1:
            self.watch.start()
        elif self._processed == self._expected:
            self.application.stop()


def etl(run: Run, job: Job) -> None:
    frame = run.application.dataframe(run.application.topic(job.topic, value_deserializer="json"))
    # Its sink refuses a directory with a hyphen in its name, which a relative one cannot have.
    os.chdir(job.output_directory)
    frame.sink(LocalFileSink(directory="rows", format=ParquetFormat(compression="zstd")))
    run.application.run()


def filtered(run: Run, job: Job) -> None:
    application = run.application
    frame = application.dataframe(application.topic(job.topic, value_deserializer="json"))
    frame.filter(is_wanted).to_topic(application.topic(job.output, value_serializer="json"))
    application.run()


class WindowSink(BatchingSink):
    """Writes, at each commit, the last update of each window that was updated since the one before."""

    def __init__(self, directory: Path) -> None:
        super().__init__()
        self._directory = directory
        self._files = 0

    def write(self, batch: SinkBatch) -> None:
        last = {(item.value["start"], item.key): item.value for item in batch}
        rows = ((start, page, value["count"], value["sum"]) for (start, page), value in last.items())
        write_windows(rows, self._directory / f"{batch.partition}-{self._files:05}.jsonl")
        self._files += 1


def window(run: Run, job: Job) -> None:
    def event_time(value: dict[str, Any], _headers: object, _timestamp: float, _kind: object) -> int:
        return int(value["ts"])

    application = run.application
    topic = application.topic(job.topic, value_deserializer="json", timestamp_extractor=event_time)
    frame = application.dataframe(topic)[["page", "price"]].group_by("page")
    windows = frame.tumbling_window(WINDOW_MS, grace_ms=GRACE_MS).agg(count=Count(), sum=Sum("price"))
    # Not final(): that would leave out the windows which are still open at the topic's end.
    windows.current().sink(WindowSink(job.output_directory))
    application.run()


class HandlerSink(BatchingSink):
    """Calls the function at each commit with what has come since the one before, so many records at a time."""

    def __init__(self, handler: Handler) -> None:
        super().__init__()
        self._handler = handler

    def write(self, batch: SinkBatch) -> None:
        partition = batch.partition
        for items in batch.iter_chunks(HANDLER_RECORDS_MAX):
            records = ((partition, item.offset, item.key, item.timestamp, item.value) for item in items)
            self._handler(kinesis_event(records), None)


def handler(run: Run, job: Job) -> None:
    application = run.application
    topic = application.topic(job.topic, value_deserializer="bytes", key_deserializer="bytes")
    function = Handler()
    application.dataframe(topic).sink(HandlerSink(function))
    application.run()
    function.write(job.output_directory / "handled.json")


def main() -> None:
    job = read_job()
    run = Run(job)
    {"etl": etl, "filter": filtered, "window": window, "handler": handler}[job.workload](run, job)
    print_result(job.events, run.watch.seconds())


if __name__ == "__main__":
    main()
