"""Faust does a job of the benchmark: one worker with one agent, which ends when all its offsets are committed."""

from __future__ import annotations

import asyncio
import os
import sys
from typing import Any

import mode.loop

mode.loop.use("uvloop")

import faust  # noqa: E402 - the event loop is chosen before it is imported
from benchmark_job import (  # noqa: E402
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
from faust.types import TP  # noqa: E402

ETL_WITHIN_SECONDS = 3.0
HANDLER_WITHIN_SECONDS = 1.0
COMMITTED_POLL_SECONDS = 0.02


class FirstRecord(faust.Sensor):
    """Starts the clock at the first record from the topic, and then takes itself away, so that it costs nothing."""

    def __init__(self, app: faust.App, topic: str, watch: Stopwatch) -> None:
        super().__init__()
        self._app, self._topic, self._watch = app, topic, watch

    def on_message_in(self, tp: TP, offset: int, message: Any) -> None:
        if tp.topic == self._topic and self._watch.started is None:
            self._watch.start()
            asyncio.get_running_loop().call_soon(self._app.sensors.remove, self)


class Run:
    """The app, and the task that ends it once the agent says that it has seen everything."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.watch = Stopwatch()
        self.app = faust.App(
            job.group,
            broker=f"kafka://{job.bootstrap}",
            web_enabled=False,
            consumer_auto_offset_reset="earliest",
            topic_partitions=job.partitions,
            topic_disable_leader=True,
            producer_linger=0.05,
            datadir=str(job.scratch_directory / "data"),
        )
        raw = job.workload == "handler"
        value = {"value_type": bytes, "value_serializer": "raw"} if raw else {"value_serializer": "json"}
        self.source = self.app.topic(job.topic, key_serializer="raw", **value)
        self.all_seen = asyncio.Event()
        self.app.sensors.add(FirstRecord(self.app, job.topic, self.watch))
        self.app.task(self._end)

    async def _end(self) -> None:
        """Print the result after the last commit, and leave at once: a worker's orderly end takes seconds."""
        await self.all_seen.wait()
        await self.app.producer.flush()
        while self._committed() < self.job.events:
            await self.app.consumer.commit()
            await asyncio.sleep(COMMITTED_POLL_SECONDS)
        # Faust has put print() into its log.
        print_result(
            self.job.events,
            self.watch.seconds(),
            to=lambda line: print(f"\n{line}", file=sys.__stdout__, flush=True),
        )
        os._exit(0)

    def _committed(self) -> int:
        offsets = self.app.consumer._committed_offset
        return sum(offsets.get(TP(self.job.topic, number)) or 0 for number in range(self.job.partitions))


def etl(run: Run) -> None:
    directory = run.job.output_directory

    @run.app.agent(run.source)
    async def write(stream: Any) -> None:
        seen = files = 0
        async for rows in stream.take(FILE_ROWS, within=ETL_WITHIN_SECONDS):
            write_parquet(rows, directory / f"{files:05}.parquet")
            files += 1
            seen += len(rows)
            if seen >= run.job.events:
                run.all_seen.set()


def filtered(run: Run) -> None:
    target = run.app.topic(run.job.output, value_serializer="json", key_serializer="raw")

    @run.app.agent(run.source)
    async def keep(stream: Any) -> None:
        seen = 0
        async for event in stream.events():
            if is_wanted(event.value):
                await target.send(key=event.key, value=event.value)
            seen += 1
            if seen >= run.job.events:
                run.all_seen.set()


def window(run: Run) -> None:
    job = run.job
    # Named by the run: the name that group_by makes up lacks the app's id, and runs would share one topic.
    by_page = run.app.topic(
        f"{job.group}-by-page", partitions=job.partitions, internal=True, value_serializer="json"
    )
    table = run.app.Table("windows", default=lambda: [0, 0.0], partitions=job.partitions)
    # Without expiry: Faust compares a window's age with the wall clock, and all of these are years old.
    tumbling = table.tumbling(WINDOW_MS / 1000)
    windows = tumbling.relative_to(lambda event=None: (event or faust.current_event()).value["ts"] / 1000)

    @run.app.agent(run.source)
    async def add_up(stream: Any) -> None:
        seen = 0
        async for event in stream.group_by(lambda event: event["page"], name="page", topic=by_page):
            count, total = windows[event["page"]].value()
            windows[event["page"]] = [count + 1, total + event["price"]]
            seen += 1
            if seen >= job.events:
                rows = ((round(start * 1000), page, *value) for (page, (start, _end)), value in table.items())
                write_windows(rows, job.output_directory / "windows.jsonl")
                run.all_seen.set()


def handler(run: Run) -> None:
    function = Handler()

    @run.app.agent(run.source)
    async def call(stream: Any) -> None:
        async for events in stream.take_events(HANDLER_RECORDS_MAX, within=HANDLER_WITHIN_SECONDS):
            records = (
                (message.partition, message.offset, message.key, int(message.timestamp * 1000), event.value)
                for event in events
                for message in (event.message,)
            )
            function(kinesis_event(records), None)
            if function.events >= run.job.events:
                function.write(run.job.output_directory / "handled.json")
                run.all_seen.set()


def main() -> None:
    run = Run(read_job())
    {"etl": etl, "filter": filtered, "window": window, "handler": handler}[run.job.workload](run)
    sys.argv[1:] = []
    faust.Worker(run.app, loglevel="WARN", blocking_timeout=1_000).execute_from_commandline()


if __name__ == "__main__":
    main()
