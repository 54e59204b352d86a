"""End-to-end latency: from when an event was to be sent to the handler, and to where readers of a sink see it.

    python -m benchmarks.latency [--bootstrap HOST:PORT] [--quick] [--json FILE]

The producer is a process of its own and an open loop: an event's ``sent`` is when the schedule says that it goes,
so that a producer that falls behind hides nothing; how late it was is reported beside. The consumer is a process
too: headrace with a handler that notes when it was called (window 0), or a hand-written aiokafka loop that decodes
each record and calls the same function. For sinks, an event is seen when a reader that polls finds its Parquet
file, or when DuckDB's transaction is committed. Systems take turns, each on a new topic; the first seconds of a
run are dropped. With no consumer at all, the producer's acknowledgements say what the broker takes.

Not here: what the processes do (`benchmarks.latency_processes`), throughput (`benchmarks.systems`), and what a step
costs by itself (`benchmarks.limit`).
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks import topics
from benchmarks.columns import CLICKS
from benchmarks.latency_processes import (
    DROPPED_SECONDS,
    JOB,
    PARTITIONS,
    TICK_SECONDS,
    Times,
    count,
    load,
    percentiles,
    spread,
)

ROOT = Path(__file__).resolve().parents[1]
RATES = (1_000, 10_000, 100_000)
LINGERS_MS = (5.0, 0.0)
SECONDS = 12.0
#: Of runs with a sink that commits every five seconds.
SECONDS_SLOW = 17.0
POLL_SECONDS = 0.005
#: The very first start on a machine compiles.
START_SECONDS_MAX = 180.0
#: How long after the producer's end a consumer may take for what is left.
LATE_SECONDS_MAX = 60.0
END_SECONDS_MAX = 20.0

HANDLERS = ("headrace, kinesis", "headrace, arrow", "headrace, rows", "aiokafka loop")
SINKS: Mapping[str, str] = {
    "parquet, age 5 s": 'type = "parquet"\npath = "out"\n',
    "parquet, age 0.1 s": 'type = "parquet"\npath = "out"\nfile_age_max_seconds = 0.1\n',
    "duckdb, interval 1 s": 'type = "duckdb"\npath = "out.duckdb"\ntable = "events"\n',
    "duckdb, interval 0.1 s": (
        'type = "duckdb"\npath = "out.duckdb"\ntable = "events"\ncommit_interval_max_seconds = 0.1\n'
    ),
}
BROKER = "broker alone"


# -- one run -------------------------------------------------------------------------------------------------------


def latencies(seen: Times, sent: Times, dropped_seconds: float = DROPPED_SECONDS) -> npt.NDArray[np.float64]:
    """Milliseconds of every event that was to be sent after the first seconds."""
    kept = sent >= sent.min() + int(dropped_seconds * 1e9)
    taken: npt.NDArray[np.float64] = (seen[kept] - sent[kept]) / 1e6
    return taken


def config_of(topic: str, *, kind: str | None, sink: str | None) -> str:
    """headrace.toml of one run: window 0, the ten columns and ``sent``."""
    source = ["[pipelines.latency.source]", f'topic = "{topic}"', "maximum_batching_window_in_seconds = 0"]
    if kind == "kinesis":
        source.append("batch_size = 1000")
    lines = [*source]
    if kind != "kinesis":
        lines.append("[pipelines.latency.schema.columns]")
        lines += [f'{name} = "{type_name}"' for name, type_name in {**CLICKS, "sent": "BIGINT"}.items()]
    if kind is not None:
        lines += [
            "[pipelines.latency.function]",
            f'kind = "{kind}"',
            f'handler = "benchmarks.latency_processes.on_{kind}"',
        ]
    if sink is not None:
        lines += ["[pipelines.latency.sink]", sink]
    return "\n".join(lines) + "\n"


def _start(
    job: Mapping[str, Any], directory: Path, name: str, command: Sequence[str] | None = None
) -> subprocess.Popen[bytes]:
    """A process of the measurement; its streams go to files in ``directory``."""
    environment = {**os.environ, JOB: json.dumps(job), "PYTHONPATH": str(ROOT)}
    with (directory / f"{name}.out").open("wb") as out, (directory / f"{name}.err").open("wb") as err:
        return subprocess.Popen(
            list(command or (sys.executable, "-m", "benchmarks.latency_processes")),
            env=environment,
            stdout=out,
            stderr=err,
        )


def _wait_until(
    check: Callable[[], bool], process: subprocess.Popen[bytes], log: Path, seconds_max: float, what: str
) -> None:
    deadline = time.monotonic() + seconds_max
    while not check():
        if process.poll() not in (None, 0) or time.monotonic() > deadline:
            raise RuntimeError(f"{what}: not after {seconds_max:g} s, or ended: {log.read_text()[-2000:]}")
        time.sleep(0.02)


@dataclass(frozen=True, slots=True)
class Run:
    """One measurement: ``system`` at ``rate`` events a second."""

    system: str
    rate: int
    linger_ms: float
    seconds: float


def measure(bootstrap: str, run: Run, directory: Path) -> dict[str, Any]:
    """One run of one system on a topic of its own; what it took, in milliseconds."""
    topic = f"latency-{uuid.uuid4().hex[:12]}"
    topics.create(bootstrap, topic, PARTITIONS)
    try:
        with _consumer(bootstrap, topic, run, directory) as consumer:
            made = _measure(bootstrap, topic, run, directory, consumer)
    finally:
        topics.delete(bootstrap, topic)
    return made


@dataclass(frozen=True, slots=True)
class Consumer:
    """The process that consumes, and the file of what was seen; neither where none consumes."""

    process: subprocess.Popen[bytes]
    file: Path
    log: Path

    def cpu_seconds(self) -> float:
        import psutil

        whole = psutil.Process(self.process.pid)
        times = [each.cpu_times() for each in (whole, *whole.children(recursive=True))]
        return float(sum(each.user + each.system for each in times))


@contextlib.contextmanager
def _consumer(bootstrap: str, topic: str, run: Run, directory: Path) -> Iterator[Consumer | None]:
    """The consuming process, ready: it owns its shards."""
    if run.system == BROKER:
        yield None
        return
    file, config = directory / "seen", directory / "headrace.toml"
    kind = run.system.partition(", ")[2] if run.system.startswith("headrace") else None
    config.write_text(config_of(topic, kind=kind, sink=SINKS.get(run.system)))
    job = {
        "role": "duckdb" if run.system.startswith("duckdb") else "loop",
        "bootstrap": bootstrap,
        "topic": topic,
        "events": _events(run),
        "file": str(file),
        "config": str(config),
    }
    command = None
    if kind is not None or run.system.startswith("parquet"):
        command = (sys.executable, "-m", "engine.cli.start", "run", str(config), "--bootstrap", bootstrap)
    process = _start(job, directory, "consumer", command)
    log = directory / "consumer.err"
    try:
        sign, count = ("ready", 1) if command is None else ("starts at offset", PARTITIONS)
        _wait_until(
            lambda: log.read_text().count(sign) >= count, process, log, START_SECONDS_MAX, f"{run.system}: start"
        )
        time.sleep(0.5)
        yield Consumer(process, file, log)
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(END_SECONDS_MAX)
        if process.poll() is None:
            process.kill()
            process.wait()


def _events(run: Run) -> int:
    per_tick = max(1, int(run.rate * TICK_SECONDS))
    return int(run.rate * run.seconds) // per_tick * per_tick


def _measure(bootstrap: str, topic: str, run: Run, directory: Path, consumer: Consumer | None) -> dict[str, Any]:
    events = _events(run)
    job = {
        **{"role": "produce", "bootstrap": bootstrap, "topic": topic, "events": events},
        **{"rate": run.rate, "linger_ms": run.linger_ms, "seconds": run.seconds},
    }
    cpu = consumer.cpu_seconds() if consumer is not None else 0.0
    producer = _start(job, directory, "producer")
    made: dict[str, Any] = {"events": events}
    try:
        seconds_max = run.seconds + LATE_SECONDS_MAX
        if consumer is not None and run.system.startswith("parquet"):
            seen, sent = _poll(directory / "out", events, seconds_max)
            made |= percentiles(latencies(seen, sent)) | {"poll_ms": POLL_SECONDS * 1000}
        elif consumer is not None:
            file = consumer.file
            _wait_until(
                lambda: count(file) >= events, consumer.process, consumer.log, seconds_max, f"{run}: all events"
            )
            made |= percentiles(latencies(*load(file)))
        if consumer is not None and consumer.process.poll() is None:
            made["cpu_seconds"] = round(consumer.cpu_seconds() - cpu, 2)
        if producer.wait(seconds_max):
            raise RuntimeError(f"the producer failed: {(directory / 'producer.err').read_text()[-2000:]}")
    finally:
        if producer.poll() is None:
            producer.kill()
            producer.wait()
    made |= json.loads((directory / "producer.out").read_text())
    return made


def _poll(directory: Path, events: int, seconds_max: float) -> tuple[Times, Times]:
    """A reader that looks for new Parquet files; when it found each, with the times of sending in it."""
    import pyarrow.parquet as pq

    found: dict[Path, int] = {}
    rows = 0
    deadline = time.monotonic() + seconds_max
    while rows < events:
        if time.monotonic() > deadline:
            raise RuntimeError(f"{directory}: {rows:,} of {events:,} rows are there after {seconds_max:g} s")
        now = time.time_ns()
        for path in directory.glob("*.parquet"):
            if path not in found:
                found[path] = now
                rows += pq.read_metadata(path).num_rows
        time.sleep(POLL_SECONDS)
    return spread([(now, pq.read_table(path, columns=["sent"])["sent"].to_numpy()) for path, now in found.items()])


# -- all of them ---------------------------------------------------------------------------------------------------


def plan(
    rates: Sequence[int], lingers_ms: Sequence[float], seconds: float, systems: Sequence[str]
) -> list[list[Run]]:
    """Groups of runs that take turns. Sinks have the first linger alone: it is lost in their age."""
    groups = []
    for rate, linger_ms in itertools.product(rates, lingers_ms):
        chosen = [system for system in systems if system not in SINKS]
        groups.append([Run(system, rate, linger_ms, seconds) for system in chosen])
    for rate in rates:
        # A file's age is a large part of a run of ten seconds.
        chosen = [system for system in systems if system in SINKS]
        longer = {
            system: max(seconds, SECONDS_SLOW) if system == "parquet, age 5 s" else seconds for system in chosen
        }
        groups.append([Run(system, rate, lingers_ms[0], longer[system]) for system in chosen])
    return [group for group in groups if group]


def summary(run: Run, made: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One result: medians over the repetitions, which are kept beside."""
    good = [each for each in made if "error" not in each]
    names = dict.fromkeys(name for each in good for name in each if name != "events")
    measure = "broker" if run.system == BROKER else "sink" if run.system in SINKS else "handler"
    return {
        "measure": measure,
        "system": run.system,
        "rate": run.rate,
        "linger_ms": run.linger_ms,
        "seconds": run.seconds,
        **{name: statistics.median(each[name] for each in good if name in each) for name in names},
        "repetitions": list(made),
    }


def run(
    bootstrap: str,
    *,
    rates: Sequence[int] = RATES,
    lingers_ms: Sequence[float] = LINGERS_MS,
    systems: Sequence[str] = (BROKER, *HANDLERS, *SINKS),
    seconds: float = SECONDS,
    repetitions: int = 3,
    scratch: Path | None = None,
    say: Callable[[str], None] = print,
) -> list[dict[str, Any]]:
    """Every system at every rate; one result for each, with medians. A run that fails has an ``error``."""
    results = []
    say(HEAD)
    for group in plan(rates, lingers_ms, seconds, systems):
        made: dict[Run, list[dict[str, Any]]] = {each: [] for each in group}
        for _, each in itertools.product(range(repetitions), group):
            with tempfile.TemporaryDirectory(dir=scratch) as name:
                try:
                    made[each].append(measure(bootstrap, each, Path(name)))
                except RuntimeError as error:
                    made[each].append({"error": str(error)})
        for each in group:
            results.append(summary(each, made[each]))
            say(line(results[-1]))
    return results


HEAD = (
    f"{'system':24}{'events/s':>9}{'linger':>7}{'p50':>9}{'p99':>9}{'p99.9':>9}{'max':>9}"
    "   producer late p99, ack p50 p99 (all in ms)"
)


def line(result: Mapping[str, Any]) -> str:
    """A result as a line of the table; milliseconds."""
    if "ack_p50_ms" not in result:
        return f"{result['system']:24}{result['rate']:9,}  {result['repetitions'][0]['error'].splitlines()[0]}"
    cells = [result.get(f"{name}_ms") for name in ("p50", "p99", "p999", "max")]
    shown = "".join(f"{'' if value is None else f'{value:.2f}':>9}" for value in cells)
    failed = sum("error" in each for each in result["repetitions"])
    return (
        f"{result['system']:24}{result['rate']:9,}{result['linger_ms']:7g}{shown}"
        f"   {result['late_p99_ms']:.2f}, {result['ack_p50_ms']:.2f} {result['ack_p99_ms']:.2f}"
        f"{f'   {failed} failed' if failed else ''}"
        f"{'   cpu {:.2f} s'.format(result['cpu_seconds']) if 'cpu_seconds' in result else ''}"
    )


@contextlib.contextmanager
def bootstrap_of(given: str | None) -> Iterator[str]:
    """The broker that was named, else an embedded one for as long as this lasts."""
    if given is not None:
        yield given
        return
    from connectors.kafka.broker import Broker

    with tempfile.TemporaryDirectory() as name, Broker(Path(name), port=0, heap_megabytes=1024) as broker:
        yield broker.bootstrap


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bootstrap", help="host:port; an embedded broker when left out")
    parser.add_argument("--rates", type=int, nargs="+", default=list(RATES), help="events a second")
    parser.add_argument("--lingers-ms", type=float, nargs="+", default=list(LINGERS_MS), help="of the producer")
    parser.add_argument("--systems", nargs="+", default=[BROKER, *HANDLERS, *SINKS], help="of: %(default)s")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of one run; the first two are dropped")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="10,000 events a second alone, once, 6 s")
    parser.add_argument("--json", type=Path, help="write the results here")
    options = parser.parse_args()
    if options.quick:
        options.rates, options.lingers_ms, options.seconds, options.repetitions = [10_000], [5.0], 6.0, 1
    unknown = set(options.systems) - {BROKER, *HANDLERS, *SINKS}
    if unknown:
        parser.error(f"no system {', '.join(sorted(unknown))}; there are {', '.join((BROKER, *HANDLERS, *SINKS))}")
    with bootstrap_of(options.bootstrap) as bootstrap:
        results = run(
            bootstrap,
            **{"rates": options.rates, "lingers_ms": options.lingers_ms, "systems": options.systems},
            **{"seconds": options.seconds, "repetitions": options.repetitions},
        )
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
