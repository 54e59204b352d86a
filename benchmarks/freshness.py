"""Freshness: from when an event was to be sent until a query in another process sees it, for each sink.

    python -m benchmarks freshness [--rate N]... [--sink TYPE[=SECONDS[/WINDOW]]]... [--seconds N] [--json FILE]

A producer, an open loop as that of `benchmarks.latency`; `headrace run` with one sink, at its default settings or
with others for how long rows wait; and a reader (`benchmarks.freshness_reader`) that asks again once it has an
answer. What a question takes is part of what is measured, and stands beside. Each run has a new topic; the first
seconds of it are dropped.

Not here: the time until a handler is called (`benchmarks.latency`).
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import topics
from benchmarks.columns import CLICKS
from benchmarks.harness import say
from benchmarks.latency import (
    END_SECONDS_MAX,
    LATE_SECONDS_MAX,
    START_SECONDS_MAX,
    Consumer,
    _start,
    _wait_until,
    bootstrap_of,
    latencies,
)
from benchmarks.latency_processes import PARTITIONS, TICK_SECONDS, load, percentiles
from engine.config_sinks import DuckDBSinkConfig, DuckLakeSinkConfig, KafkaSinkConfig, ParquetSinkConfig

RATES = (5_000, 50_000)
SECONDS = 20.0
LINGER_MS = 5.0
REPETITIONS = 3
#: For runs whose rows wait longer than that, so that several commits are in what is measured.
COMMITS_MIN = 4

#: What is promised of the 99th percentile: at the default settings, and with rows that wait 0.1 s at most.
DEFAULT_P99_MS_MAX = 2_000.0
BRIEF_SECONDS, BRIEF_P99_MS_MAX = 0.1, 250.0


@dataclass(frozen=True, slots=True)
class Kind:
    """A type of sink: the setting that bounds how long rows wait, its default, and how a reader asks."""

    setting: str
    default_seconds: float
    role: str  #: of the reader
    reader: str  #: for people


def _default(config: Any, setting: str) -> float:
    return float(config.model_fields[setting].default)


_AGE, _INTERVAL = "file_age_max_seconds", "commit_interval_max_seconds"
KINDS: Mapping[str, Kind] = {
    "parquet": Kind(_AGE, _default(ParquetSinkConfig, _AGE), "view", "the view headrace.duckdb"),
    "duckdb": Kind(_INTERVAL, _default(DuckDBSinkConfig, _INTERVAL), "served", "Quack"),
    "ducklake": Kind(_INTERVAL, _default(DuckLakeSinkConfig, _INTERVAL), "served", "Quack"),
    "kafka": Kind(_INTERVAL, _default(KafkaSinkConfig, _INTERVAL), "topic", "a consumer, read committed"),
}


@dataclass(frozen=True, slots=True)
class Sink:
    """One sink, whose rows wait ``wait_seconds`` at most, after records waited for ``window_seconds`` for a batch.

    None is the default.
    """

    type: str
    wait_seconds: float | None = None
    window_seconds: float | None = None

    @classmethod
    def of(cls, text: str) -> Sink:
        """``parquet``, ``parquet=0.1`` or ``parquet=0.1/0``. Raises ValueError for what is none of them."""
        type_name, _, waits = text.partition("=")
        if type_name not in KINDS:
            raise ValueError(f"no sink {type_name!r}; there are {', '.join(KINDS)}")
        seconds, _, window = waits.partition("/")
        sink = cls(type_name, float(seconds) if seconds else None, float(window) if window else None)
        if not sink.seconds > 0 or not (sink.window_seconds or 0) >= 0:
            raise ValueError(f"{text!r}: rows wait longer than 0 s, and records no shorter")
        return sink

    @property
    def seconds(self) -> float:
        return KINDS[self.type].default_seconds if self.wait_seconds is None else self.wait_seconds

    @property
    def is_default(self) -> bool:
        return self.wait_seconds is None and self.window_seconds is None


SINKS = tuple(
    Sink(name, *waits) for name in KINDS for waits in ((None, None), (BRIEF_SECONDS, None), (BRIEF_SECONDS, 0.0))
)


@dataclass(frozen=True, slots=True)
class Run:
    """One measurement."""

    sink: Sink
    rate: int
    seconds: float

    @property
    def events(self) -> int:
        per_tick = max(1, int(self.rate * TICK_SECONDS))
        return int(self.rate * self.seconds) // per_tick * per_tick


def config_of(topic: str, run: Run, output: str) -> str:
    """headrace.toml of one run: click events and ``sent``, everything else by default but how long rows wait.

    The pipeline is called as its topic, since a sink may keep what it knows of a pipeline on the broker.
    """
    kind = KINDS[run.sink.type]
    sink = {
        "parquet": 'path = "out"',
        "duckdb": 'path = "out.db"\ntable = "events"',
        "ducklake": 'path = "out.db"\ntable = "events"',
        "kafka": f'topic = "{output}"',
    }[run.sink.type]
    columns = "\n".join(f'{name} = "{type_name}"' for name, type_name in {**CLICKS, "sent": "BIGINT"}.items())
    wait = "" if run.sink.wait_seconds is None else f"{kind.setting} = {run.sink.wait_seconds}\n"
    window = run.sink.window_seconds
    batching = "" if window is None else f"maximum_batching_window_in_seconds = {window}\n"
    return (
        f'[pipelines.{topic}.source]\ntopic = "{topic}"\n{batching}'
        f"[pipelines.{topic}.schema.columns]\n{columns}\n"
        f'[pipelines.{topic}.sink]\ntype = "{run.sink.type}"\n{sink}\n{wait}'
        "[web]\nport = 0\n"
    )


def measure(bootstrap: str, run: Run, directory: Path) -> dict[str, Any]:
    """One run, on a topic of its own: milliseconds. Raises RuntimeError for what does not come about."""
    unique = uuid.uuid4().hex[:12]
    topic, output = f"freshness-{unique}", f"freshness-{unique}-out"
    config = directory / "headrace.toml"
    config.write_text(config_of(topic, run, output))
    try:
        for name in [topic, output] if run.sink.type == "kafka" else [topic]:
            topics.create(bootstrap, name, PARTITIONS)
        with _engine(bootstrap, config, directory) as engine:
            return _measure(bootstrap, topic, output, run, directory, engine)
    finally:
        topics.delete_with(bootstrap, unique)


@contextlib.contextmanager
def _engine(bootstrap: str, config: Path, directory: Path) -> Iterator[Consumer]:
    """`headrace run`, ready: it owns its shards."""
    command = (sys.executable, "-m", "engine.cli.start", "run", str(config), "--bootstrap", bootstrap)
    with _process({}, directory, "engine", command) as process:
        log = directory / "engine.err"
        owned = "starts at offset"
        _wait_until(lambda: log.read_text().count(owned) >= PARTITIONS, process, log, START_SECONDS_MAX, "a start")
        yield Consumer(process, directory / "seen", log)


@contextlib.contextmanager
def _process(
    job: Mapping[str, Any], directory: Path, name: str, command: Sequence[str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """A process that is asked to end when this ends, and killed when it does not."""
    process = _start(job, directory, name, command)
    try:
        yield process
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(END_SECONDS_MAX)
        if process.poll() is None:
            process.kill()
            process.wait()


def _measure(
    bootstrap: str, topic: str, output: str, run: Run, directory: Path, engine: Consumer
) -> dict[str, Any]:
    seconds_max = run.seconds + 2 * run.sink.seconds + LATE_SECONDS_MAX
    reading = {
        **{"role": KINDS[run.sink.type].role, "bootstrap": bootstrap, "seconds_max": seconds_max},
        **{"path": str(directory / ("out" if run.sink.type == "parquet" else "out.db"))},
        **{"table": output if run.sink.type == "kafka" else "events", "events": run.events},
        **{"file": str(engine.file)},
    }
    producing = {
        **{"role": "produce", "bootstrap": bootstrap, "topic": topic, "events": run.events},
        **{"rate": run.rate, "linger_ms": LINGER_MS, "seconds": run.seconds},
    }
    command = (sys.executable, "-m", "benchmarks.freshness_reader")
    with _process(reading, directory, "reader", command) as reader:
        log = directory / "reader.err"
        _wait_until(lambda: "ready" in log.read_text(), reader, log, START_SECONDS_MAX, "the reader's start")
        cpu = engine.cpu_seconds()
        with _process(producing, directory, "producer") as producer:
            ends = (reader, engine.process)
            _wait_until(
                lambda: engine.file.exists() or any(each.poll() is not None for each in ends),
                *(reader, log, seconds_max, "all events"),
            )
            cpu = engine.cpu_seconds() - cpu if engine.process.poll() is None else 0.0
            if engine.process.poll() is not None:
                raise RuntimeError(f"the engine ended: {engine.log.read_text()[-2000:]}")
            if producer.wait(seconds_max):
                raise RuntimeError(f"the producer failed: {(directory / 'producer.err').read_text()[-2000:]}")
        if reader.wait(seconds_max):
            raise RuntimeError(f"the reader failed: {log.read_text()[-2000:]}")
    made = {"events": run.events, **percentiles(latencies(*load(engine.file))), "cpu_seconds": round(cpu, 2)}
    if run.sink.type in ("parquet", "ducklake"):
        made["files"] = sum(1 for _ in directory.glob("out*/**/*.parquet"))
    for name in ("reader", "producer"):
        made |= json.loads((directory / f"{name}.out").read_text())
    return made


# -- all of them ---------------------------------------------------------------------------------------------------


def run(
    bootstrap: str,
    *,
    rates: Sequence[int] = RATES,
    sinks: Sequence[Sink] = SINKS,
    seconds: float = SECONDS,
    repetitions: int = REPETITIONS,
) -> list[dict[str, Any]]:
    """Every sink at every rate, in turns; one result for each, with medians. A run that fails has an ``error``."""
    results = []
    for rate in rates:
        runs = [Run(sink, rate, max(seconds, COMMITS_MIN * sink.seconds)) for sink in sinks]
        made: dict[Run, list[dict[str, Any]]] = {each: [] for each in runs}
        for _, each in itertools.product(range(repetitions), runs):
            with tempfile.TemporaryDirectory(prefix="bench-freshness-") as name:
                try:
                    made[each].append(measure(bootstrap, each, Path(name)))
                except RuntimeError as error:
                    made[each].append({"error": str(error)})
            say(line(summary(each, made[each][-1:])))
        results += [summary(each, entries) for each, entries in made.items()]
    return results


def summary(run: Run, made: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One result: medians over the repetitions, which are kept beside."""
    good = [each for each in made if "error" not in each]
    names = dict.fromkeys(name for each in good for name in each)
    return {
        "sink": run.sink.type,
        "reader": KINDS[run.sink.type].reader,
        "wait_seconds_max": run.sink.seconds,
        "window_seconds": run.sink.window_seconds,
        "is_default": run.sink.is_default,
        "rate": run.rate,
        "seconds": run.seconds,
        **{name: statistics.median(each[name] for each in good) for name in names},
        "repetitions": list(made),
    }


def label(result: Mapping[str, Any]) -> str:
    """``parquet, 0.1 s, window 0 s``."""
    window = result["window_seconds"]
    rest = " (default)" if result["is_default"] else "" if window is None else f", window {window:g} s"
    return f"{result['sink']}, {result['wait_seconds_max']:g} s{rest}"


def _last_line(result: Mapping[str, Any]) -> str:
    """Of what a run failed by."""
    error = next(each["error"] for each in result["repetitions"] if "error" in each)
    return str(error).strip().splitlines()[-1][:300]


def line(result: Mapping[str, Any]) -> str:
    """A result for people; milliseconds."""
    what = f"{label(result):32}{result['rate']:>7,}/s"
    if "p50_ms" not in result:
        return f"{what}  FAILED: {_last_line(result)}"
    files = f", {result['files']:g} files" if "files" in result else ""
    query = f", a query {result['query_p50_ms']:.1f}" if "query_p50_ms" in result else ""
    return (
        f"{what}  p50 {result['p50_ms']:,.0f}  p99 {result['p99_ms']:,.0f}  max {result['max_ms']:,.0f} ms"
        f"   ({result['cpu_seconds']:g} CPU s{query}{files}; the producer late p99 {result['late_p99_ms']:.1f},"
        f" ack p99 {result['ack_p99_ms']:.1f})"
    )


def section(results: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """The lines of `benchmarks/RESULTS.md`."""
    yield from (
        "## Freshness",
        "",
        "From the moment an event was to be sent until a reader in another process has an answer with it, in ms; "
        "`benchmarks.freshness` says how. Rows wait for a commit for as long as the first column says at most; "
        "before, records wait for a batch, half a second by default, where no window is named.",
        "",
        "| sink, rows wait at most | read by | events/s | p50 | p99 | max | a query takes, p50 | p99 | files |",
        "|---" * 9 + "|",
    )
    for result in results:
        what = f"| {label(result)} | {result['reader']} | {result['rate']:,} |"
        if "p50_ms" not in result:
            yield (
                f"{what} **failed**: {result['repetitions'][0]['error'].strip().splitlines()[-1][:200]} |"
                + " |" * 5
            )
            continue
        shown = [result.get(name) for name in ("p50_ms", "p99_ms", "max_ms", "query_p50_ms", "query_p99_ms")]
        cells = " | ".join("" if value is None else f"{value:,.1f}" for value in shown)
        yield f"{what} {cells} | {'{:g}'.format(result['files']) if 'files' in result else ''} |"
    yield ""


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks freshness",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--bootstrap", help="host:port; an embedded broker when left out")
    add("--rate", type=int, action="append", help="events a second; repeatable; 5,000 and 50,000 when left out")
    add(
        "--sink",
        action="append",
        metavar="TYPE[=SECONDS[/WINDOW]]",
        help=f"of {', '.join(KINDS)}; SECONDS that rows wait at most, and the batching window, else the defaults;"
        f" repeatable; each by default, with {BRIEF_SECONDS:g} and with {BRIEF_SECONDS:g}/0 when left out",
    )
    add("--seconds", type=float, default=SECONDS, help="of one run; the first two are dropped (%(default)g)")
    add("--repetitions", type=int, default=REPETITIONS, help="(%(default)d)")
    add("--json", type=Path, help="write the results here")
    options = parser.parse_args()
    try:
        sinks = [Sink.of(text) for text in options.sink or ()] or SINKS
    except ValueError as error:
        parser.error(f"--sink: {error}")
    with bootstrap_of(options.bootstrap) as bootstrap:
        results = run(
            bootstrap,
            rates=options.rate or RATES,
            sinks=sinks,
            seconds=options.seconds,
            repetitions=options.repetitions,
        )
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")
    print("\n".join(section(results)))


if __name__ == "__main__":
    main()
