"""Bytewax does a job of the benchmark: one dataflow, which ends by itself at the end of the topic."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import bytewax.operators as op
import orjson
from benchmark_job import (
    FILE_ROWS,
    HANDLER_RECORDS_MAX,
    WINDOW_MS,
    Handler,
    Job,
    Stopwatch,
    is_wanted,
    kinesis_event,
    print_result,
    read_job,
    write_parquet,
    write_windows,
)
from bytewax.connectors.kafka import KafkaSink, KafkaSinkMessage, KafkaSource, KafkaSourceMessage
from bytewax.dataflow import Dataflow, Stream
from bytewax.operators.windowing import EventClock, TumblingWindower, fold_window
from bytewax.outputs import DynamicSink, StatelessSinkPartition
from bytewax.testing import run_main

#: Longer than the topic: partitions are read at different speeds, and no event may come too late for its window.
WAIT = dt.timedelta(days=1)
EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)

Decoded = dict[str, Any]


class FileSink(DynamicSink[Any], StatelessSinkPartition[Any]):
    """Collects what one worker is given into files of at most `FILE_ROWS` rows."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._rows: list[Any] = []
        self._files = 0

    def build(self, step_id: str, worker_index: int, worker_count: int) -> FileSink:
        assert worker_count == 1
        return self

    def write_batch(self, items: list[Any]) -> None:
        self._rows += items
        if len(self._rows) >= FILE_ROWS:
            self._flush()

    def close(self) -> None:
        if self._rows:
            self._flush()

    def _flush(self) -> None:
        self.write_file(self._rows, self._directory / f"{self._files:05}")
        self._files += 1
        self._rows = []

    def write_file(self, rows: list[Any], path: Path) -> None:
        raise NotImplementedError


class ParquetSink(FileSink):
    def write_file(self, rows: list[Decoded], path: Path) -> None:
        write_parquet(rows, path.with_suffix(".parquet"))


class WindowSink(FileSink):
    def write_file(self, rows: list[tuple[str, tuple[int, list[float]]]], path: Path) -> None:
        windows = ((number * WINDOW_MS, page, int(count), total) for page, (number, (count, total)) in rows)
        write_windows(windows, path.with_suffix(".jsonl"))


class HandledSink(FileSink):
    """Takes nothing, and writes the function's sums at the end."""

    def __init__(self, directory: Path, function: Handler) -> None:
        super().__init__(directory)
        self._function = function

    def close(self) -> None:
        self._function.write(self._directory / "handled.json")


def decoded(messages: Stream[KafkaSourceMessage], watch: Stopwatch) -> Stream[Decoded]:
    """The events, decoded a batch at a time."""

    def decode(batch: list[KafkaSourceMessage]) -> list[Decoded]:
        watch.start()
        return [orjson.loads(message.value) for message in batch]

    return op.flat_map_batch("decode", messages, decode)


def etl(messages: Stream[KafkaSourceMessage], job: Job, watch: Stopwatch) -> None:
    op.output("write", decoded(messages, watch), ParquetSink(job.output_directory))


def filtered(messages: Stream[KafkaSourceMessage], job: Job, watch: Stopwatch) -> None:
    def keep(batch: list[KafkaSourceMessage]) -> Iterable[KafkaSinkMessage]:
        watch.start()
        pairs = ((message, orjson.loads(message.value)) for message in batch)
        return [KafkaSinkMessage(message.key, orjson.dumps(event)) for message, event in pairs if is_wanted(event)]

    op.output("send", op.flat_map_batch("keep", messages, keep), KafkaSink([job.bootstrap], job.output))


def window(messages: Stream[KafkaSourceMessage], job: Job, watch: Stopwatch) -> None:
    def event_time(event: Decoded) -> dt.datetime:
        return dt.datetime.fromtimestamp(event["ts"] / 1000, dt.UTC)

    def add(total: list[float], event: Decoded) -> list[float]:
        total[0] += 1
        total[1] += event["price"]
        return total

    def merge(left: list[float], right: list[float]) -> list[float]:
        return [left[0] + right[0], left[1] + right[1]]

    by_page = op.key_on("by_page", decoded(messages, watch), lambda event: event["page"])
    windows = fold_window(
        "window",
        by_page,
        EventClock(ts_getter=event_time, wait_for_system_duration=WAIT),
        TumblingWindower(length=dt.timedelta(milliseconds=WINDOW_MS), align_to=EPOCH),
        lambda: [0, 0.0],
        add,
        merge,
        # Ordering would hold every event back for as long as `WAIT`.
        ordered=False,
    )
    op.output("write", windows.down, WindowSink(job.output_directory))


def handler(messages: Stream[KafkaSourceMessage], job: Job, watch: Stopwatch) -> None:
    function = Handler()

    def call(batch: list[KafkaSourceMessage]) -> list[Any]:
        watch.start()
        records = (
            (message.partition, message.offset, message.key, int(message.timestamp[1]), message.value)
            for message in batch
        )
        function(kinesis_event(records), None)
        return []

    op.output("end", op.flat_map_batch("call", messages, call), HandledSink(job.output_directory, function))


def main() -> None:
    job = read_job()
    watch = Stopwatch()
    flow = Dataflow("benchmark")
    source = KafkaSource([job.bootstrap], [job.topic], tail=False, batch_size=HANDLER_RECORDS_MAX)
    messages = op.input("read", flow, source)
    {"etl": etl, "filter": filtered, "window": window, "handler": handler}[job.workload](messages, job, watch)
    run_main(flow)
    print_result(job.events, watch.seconds())


if __name__ == "__main__":
    main()
