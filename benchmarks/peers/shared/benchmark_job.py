"""What every peer's ``main.py`` needs: the job, the clock, the events' columns, and the handler of that workload.

It is on the path of each peer's environment and imports the standard library alone; what it takes from pyarrow and
orjson is imported where it is used. Not here: anything of headrace, or of any one peer.
"""

from __future__ import annotations

import base64
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

WINDOW_MS = 60_000
HANDLER_RECORDS_MAX = 1_000
#: Rows of one Parquet file, for those peers whose user decides.
FILE_ROWS = 100_000


@dataclass(frozen=True, slots=True)
class Job:
    """One run: read ``events`` records of ``topic`` and write the workload's result to ``output``."""

    workload: str
    bootstrap: str
    topic: str
    events: int
    partitions: int
    output: str
    scratch: str
    group: str
    processes: int

    @property
    def output_directory(self) -> Path:
        path = Path(self.output)
        path.mkdir(parents=True, exist_ok=True)
        return path

    @property
    def scratch_directory(self) -> Path:
        path = Path(self.scratch)
        path.mkdir(parents=True, exist_ok=True)
        return path


def read_job() -> Job:
    """The job in the environment variable ``BENCHMARK_JOB``."""
    raw = json.loads(os.environ["BENCHMARK_JOB"])
    return Job(**{name: raw[name] for name in Job.__dataclass_fields__})


def print_result(events: int, seconds: float, note: str = "", to: Callable[[str], object] = print) -> None:
    """The protocol's last line."""
    to("RESULT " + json.dumps({"events": events, "seconds": round(seconds, 4), "note": note}))


class Stopwatch:
    """Seconds since the first record was seen."""

    def __init__(self) -> None:
        self.started: float | None = None

    def start(self) -> None:
        """May be called again; only the first call counts."""
        if self.started is None:
            self.started = time.perf_counter()

    def seconds(self) -> float:
        assert self.started is not None
        return time.perf_counter() - self.started


def arrow_schema() -> Any:
    """The ten fields as columns."""
    import pyarrow as pa

    kinds = {"event_id": pa.int64(), "ts": pa.int64(), "price": pa.float64()}
    names = [*("event_id", "user_id", "session", "page", "event_type"), *("ts", "referrer", "ua", "price", "ip")]
    return pa.schema([(name, kinds.get(name, pa.string())) for name in names])


def write_parquet(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Rows of the ten fields, compressed by zstd."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist(list(rows), schema=arrow_schema()), path, compression="zstd")


def is_wanted(event: Mapping[str, Any]) -> bool:
    """The filter's condition."""
    return bool(event["event_type"] == "purchase" and event["price"] > 90)


def write_windows(windows: Iterable[tuple[int, str, int, float]], path: Path) -> None:
    """Rows (start in ms, page, count, sum) as JSON lines."""
    with path.open("w") as file:
        for start, page, count, total in windows:
            file.write(json.dumps({"window_start": start, "page": page, "count": count, "sum": total}) + "\n")


#: One record as the handler workload takes it: partition, offset, key, Unix time in ms, value.
Record = tuple[int, int, bytes | None, int, bytes]


class Handler:
    """The function of the handler workload, and what it has added up."""

    def __init__(self) -> None:
        self.events = 0
        self.sum = 0

    def __call__(self, event: dict[str, Any], context: object) -> dict[str, Any]:
        """AWS's signature: decode each record of a Kinesis event and add up its event_id."""
        import orjson

        total = 0
        for record in event["Records"]:
            total += orjson.loads(base64.b64decode(record["kinesis"]["data"]))["event_id"]
        self.events += len(event["Records"])
        self.sum += total
        return {"batchItemFailures": []}

    def write(self, path: Path) -> None:
        path.write_text(json.dumps({"events": self.events, "sum": self.sum}))


def kinesis_event(records: Iterable[Record]) -> dict[str, Any]:
    """At most `HANDLER_RECORDS_MAX` records as Lambda gets them from a Kinesis stream."""
    encode = base64.b64encode
    return {
        "Records": [
            {
                "kinesis": {
                    "kinesisSchemaVersion": "1.0",
                    "partitionKey": key.decode() if key else "",
                    "sequenceNumber": str(offset),
                    "data": encode(value).decode("ascii"),
                    "approximateArrivalTimestamp": time_ms / 1000,
                },
                "eventSource": "aws:kinesis",
                "eventVersion": "1.0",
                "eventID": f"shardId-{partition:012}:{offset}",
                "eventName": "aws:kinesis:record",
            }
            for partition, offset, key, time_ms, value in records
        ]
    }


def in_batches(records: Sequence[Any], size: int = HANDLER_RECORDS_MAX) -> Iterator[Sequence[Any]]:
    for start in range(0, len(records), size):
        yield records[start : start + size]


def java_command(main_class: str, options: Sequence[str], job: Job) -> list[str]:
    """A peer's Java program; its arguments are the fields of `Job` in their order, without the partitions."""
    peer = Path(os.environ["BENCHMARK_PEER"])
    java = os.environ["BENCHMARK_JAVA"]
    class_path = os.pathsep.join([str(peer / "classes"), os.environ["BENCHMARK_CLASS_PATH"]])
    job.scratch_directory.mkdir(parents=True, exist_ok=True)
    temporary = f"-Djava.io.tmpdir={job.scratch}"
    arguments = [str(getattr(job, name)) for name in Job.__dataclass_fields__ if name != "partitions"]
    return [java, temporary, *options, "-cp", class_path, main_class, *arguments]
