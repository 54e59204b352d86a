"""The three ready-made pipelines end to end: from a topic of the embedded broker to committed rows.

    python -m benchmarks.pipelines [--events 1000000] [--json FILE]

Each pipeline drains its topic with `headrace run --until-caught-up`; reported are records per second of wall
clock (of the run without the interpreter's start) and per second of the engine's own processor time, and the
largest resident memory. The click topic is drained at a quarter, half, and all of the events: memory that
grows with the topic shows there.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from connectors.kafka.broker import Broker
from functions import samples

PAGES = ("home", "search", "product", "cart", "checkout", "account", "help")
SAMPLE_SECONDS = 0.05


@dataclass(frozen=True)
class Measured:
    pipeline: str
    records: int
    seconds: float
    cpu_seconds: float
    rss_mb_max: float

    @property
    def records_per_second(self) -> float:
        return self.records / self.seconds

    @property
    def records_per_cpu_second(self) -> float:
        return self.records / self.cpu_seconds


CONFIGS = {
    "clickstream": """
        [pipelines.clickstream.schema.columns]
        event_id = "VARCHAR"
        time = "BIGINT"
        user = "VARCHAR"
        visit = "VARCHAR"
        page = "VARCHAR"
        event = "VARCHAR"
        referrer = "VARCHAR"
        price = "VARCHAR"
        [pipelines.clickstream.function]
        kind = "arrow"
        handler = "functions.clickstream.page_events"
        [pipelines.clickstream.sink]
        type = "parquet"
        path = "clickstream"
    """,
    "log_filter": """
        [pipelines.log_filter.schema]
        format = "text"
        [pipelines.log_filter.function]
        kind = "arrow"
        handler = "functions.log_filter.failures"
        [pipelines.log_filter.sink]
        type = "parquet"
        path = "log_filter"
    """,
    "etl": """
        [pipelines.etl.schema.columns]
        before = "JSON"
        after = "JSON"
        source = "JSON"
        op = "VARCHAR"
        ts_ms = "BIGINT"
        [pipelines.etl.function]
        kind = "arrow"
        handler = "functions.etl.runways"
        [pipelines.etl.sink]
        type = "duckdb"
        path = "etl.duckdb"
        table = "runways"
        mode = "upsert"
        key = ["id"]
        order_by = "_order"
    """,
}


def clicks(count: int) -> Iterator[str]:
    chance = random.Random(1)
    for number in range(count):
        user = chance.randrange(100_000)
        event = {
            "event_id": f"{number:016x}",
            "time": 1_760_000_000_000 + number * 7,
            "user": f"user-{user:06d}",
            "visit": f"{user:06d}-{number // 1_000_000}",
            "page": f"/{chance.choice(PAGES)}/{chance.randrange(500)}",
            "event": "page_view" if number % 25 else "purchase",
            "referrer": "https://www.example.org/search?q=headrace",
            "price": None if number % 25 else f"{chance.randrange(10_000) / 100:.2f}",
        }
        yield json.dumps(event, separators=(",", ":"))


def repeated(lines: list[str], count: int) -> Iterator[str]:
    for number in range(count):
        yield lines[number % len(lines)]


def changes(count: int) -> Iterator[str]:
    """The sample's changes again and again, each later than all before it."""
    loaded = [json.loads(line) for line in samples.lines("runways-changes")]
    for number in range(count):
        change = loaded[number % len(loaded)]
        change["source"]["pos"] = number + 1
        yield json.dumps(change, separators=(",", ":"))


def write(path: Path, lines: Iterator[str]) -> Path:
    with gzip.open(path, "wt", compresslevel=1) as file:
        file.writelines(line + "\n" for line in lines)
    return path


def produce(bootstrap: str, topic: str, file: Path) -> None:
    command = [sys.executable, "-m", "engine.cli.main", "produce", topic, str(file), "--format", "text"]
    subprocess.run([*command, "--bootstrap", bootstrap, "--partitions", "4"], check=True, capture_output=True)


def drain(name: str, topic: str, records: int, bootstrap: str, directory: Path) -> Measured:
    directory.mkdir()
    config = directory / "headrace.toml"
    config.write_text(f'[pipelines.{name}.source]\ntopic = "{topic}"\n{CONFIGS[name]}')
    environment = {**os.environ, "HEADRACE_BOOTSTRAP": bootstrap}
    command = [sys.executable, "-m", "engine.cli.main", "run", str(config), "--until-caught-up", "--json"]
    process = psutil.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    rss = 0
    cpu = 0.0
    while process.poll() is None:
        try:
            rss = max(rss, process.memory_info().rss)
            times = process.cpu_times()
            cpu = times.user + times.system
        except psutil.Error:
            break
        time.sleep(SAMPLE_SECONDS)
    said = process.stderr.read()
    if process.wait() != 0:
        raise SystemExit(f"{name} failed:\n{said}")
    summary = json.loads(said.splitlines()[-1])["message"]
    read = int(summary.split(": ")[1].split(" ")[0].replace(",", ""))
    if read != records:
        raise SystemExit(f"{name} read {read} of {records} records: {summary}")
    seconds = float(summary.split(" in ")[1].split(" s ")[0])
    return Measured(name, records, seconds, cpu, rss / 1e6)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=1_000_000, help="click events (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="write the figures here")
    options = parser.parse_args()
    events: int = options.events
    results: list[Measured] = []
    with tempfile.TemporaryDirectory() as name, Broker(Path(name) / "broker", port=0) as broker:
        directory = Path(name)
        print(f"{'pipeline':<14}{'records':>12}{'s':>8}{'records/s':>12}{'per CPU s':>12}{'RSS MB':>9}")
        runs = [("clickstream", "clicks", part, clicks(part)) for part in (events // 4, events // 2, events)]
        runs.append(("log_filter", "access-log", events // 2, repeated(samples.lines("nasa-access"), events // 2)))
        runs.append(("etl", "runways", events // 5, changes(events // 5)))
        for number, (pipeline, topic, count, lines) in enumerate(runs):
            unique = f"{topic}-{number}"
            produce(broker.bootstrap, unique, write(directory / f"{unique}.gz", lines))
            measured = drain(pipeline, unique, count, broker.bootstrap, directory / f"run-{number}")
            results.append(measured)
            print(
                f"{measured.pipeline:<14}{measured.records:>12,}{measured.seconds:>8.1f}"
                f"{measured.records_per_second:>12,.0f}{measured.records_per_cpu_second:>12,.0f}"
                f"{measured.rss_mb_max:>9.0f}",
                flush=True,
            )
    if options.json:
        options.json.write_text(json.dumps([asdict(measured) for measured in results], indent=1) + "\n")


if __name__ == "__main__":
    main()
