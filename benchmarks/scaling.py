"""What headrace's ETL to Parquet costs: by shards, cores, size of events, columns, size of batches, length.

    python -m benchmarks.scaling [--bootstrap HOST:PORT] [--quick] [--axes shards length ...] [--json FILE]

Each cell is a run of `headrace run --until-caught-up` with its defaults over a topic of its own shape, measured as
a process tree. A start costs the same whatever follows, so a run over an almost empty topic is measured by itself
and taken off the processor seconds; both are reported. Two things must not grow: the cost of an event and the
memory, with the length of the run and (the cost) with the number of shards. `verdicts` says whether they do.

Not here: headrace beside other systems (`benchmarks.systems`), and what is possible at best (`benchmarks.limit`).
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import shutil
import statistics
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from benchmarks import events, measure, topics
from benchmarks.latency import bootstrap_of
from benchmarks.systems.headrace import PIPELINE, summary, toml
from connectors.event_files import Events

ROOT = Path(__file__).resolve().parents[1]
RUN_SECONDS_MAX = 300.0
PARTITIONS = 4
DISTINCT = 5_000
EVENTS_A_TIME = 1_000
WORDS = 500

#: How much dearer an event may be at the far end of an axis, and what memory may grow by for a million more events.
COST_GROWTH_MAX = 1.25
RSS_MB_PER_MILLION_MAX = 8.0


@dataclass(frozen=True)
class Shape:
    """A topic: ``columns`` of which none means the click events, ``filler`` characters in the last column."""

    events: int
    partitions: int = PARTITIONS
    columns: int = 0
    filler: int = 0

    @property
    def types(self) -> dict[str, str]:
        """Columns and their types in DuckDB."""
        if not self.columns:
            return dict(events.COLUMNS)
        cycle = ("BIGINT", "DOUBLE", "VARCHAR") if not self.filler else ("BIGINT",)
        made = {f"c{number}": cycle[number % len(cycle)] for number in range(self.columns)}
        return {**made, f"c{self.columns - 1}": "VARCHAR"} if self.filler else made


@dataclass(frozen=True)
class Cell:
    """One run: ``axis`` is what varies, ``value`` where this cell stands on it."""

    axis: str
    value: int
    shape: Shape
    cores: int | None = None
    batch_size: int | None = None


#: The ten-column events without their filler have so many bytes.
BARE_BYTES = 99

AXES = ("shards", "cores", "event_bytes", "columns", "batch_size", "length")


def plan(axes: Sequence[str], *, quick: bool = False) -> list[Cell]:
    """The cells, axis by axis; ``quick`` has an eighth of the events, and of most axes the two ends alone."""
    part = 8 if quick else 1
    million = 1_000_000 // part
    made = {
        "shards": [Cell("shards", count, Shape(2 * million, partitions=count)) for count in (1, 4, 16, 64)],
        "cores": [Cell("cores", count, Shape(2 * million), cores=count) for count in (1, 2)],
        "event_bytes": [
            Cell("event_bytes", size, Shape(count // part, columns=10, filler=max(1, size - BARE_BYTES)))
            for size, count in ((100, 1_000_000), (234, 1_000_000), (1_000, 400_000), (10_000, 50_000))
        ],
        "columns": [
            Cell("columns", count, Shape(number // part, columns=count))
            for count, number in ((1, 1_000_000), (10, 1_000_000), (50, 400_000), (200, 100_000))
        ],
        "batch_size": [
            Cell("batch_size", size, Shape(number), batch_size=size)
            for size, number in (
                (1, 8_000 // part),
                (100, 400_000 // part),
                (1_000, million),
                (10_000, million),
                (100_000, million),
            )
        ],
        "length": [Cell("length", count * million, Shape(count * million)) for count in (1, 2, 5, 10)],
    }
    if quick:
        made = {axis: cells if axis == "length" else [cells[0], cells[-1]] for axis, cells in made.items()}
    return [cell for axis in axes for cell in made[axis]]


# -- topics --------------------------------------------------------------------------------------------------------


def values(shape: Shape) -> list[bytes]:
    """Distinct events of a shape that is not that of the clicks, as JSON."""
    chance = random.Random(7)
    found = []
    for _ in range(min(DISTINCT, shape.events, 5_000_000 // (1 + shape.filler))):
        event: dict[str, object] = {}
        for name, kind in shape.types.items():
            if kind == "BIGINT":
                event[name] = chance.randrange(1_000, 10_000)
            elif kind == "DOUBLE":
                event[name] = chance.randrange(100_000) / 100
            else:
                event[name] = _text(chance, shape.filler) if shape.filler else f"/p/{chance.randrange(WORDS)}"
        found.append(json.dumps(event, separators=(",", ":")).encode())
    return found


def _text(chance: random.Random, characters: int) -> str:
    """Words as text has them, which a codec can do something with."""
    words = [f"word-{chance.randrange(WORDS)}" for _ in range(characters // 6 + 1)]
    return " ".join(words)[:characters]


def given(shape: Shape) -> Iterator[Events]:
    """The events of a topic of that shape; keys rise, so that partitions get the same."""
    distinct = values(shape)
    for start in range(0, shape.events, EVENTS_A_TIME):
        numbers = range(start, min(start + EVENTS_A_TIME, shape.events))
        keys = [b"%d" % number for number in numbers]
        yield Events("scaling", "event", numbers, [distinct[number % len(distinct)] for number in numbers], keys)


def fill(bootstrap: str, shape: Shape) -> str:
    """A topic of that shape, by a name of its own."""
    topic = f"scaling-{uuid.uuid4().hex[:12]}"
    if shape.columns:
        topics.send(bootstrap, topic, given(shape), shape.partitions)
    else:
        topics.fill(bootstrap, topic, shape.events, shape.partitions)
    return topic


# -- runs ----------------------------------------------------------------------------------------------------------


def configuration(bootstrap: str, topic: str, shape: Shape, output: Path, batch_size: int | None) -> dict[str, Any]:
    """headrace.toml of a cell: the defaults, but for the batch size where that is what varies."""
    source: dict[str, Any] = {"topic": topic}
    if batch_size is not None:
        source["batch_size"] = batch_size
    pipeline = {
        "consumer_group_id": uuid.uuid4().hex,
        "source": source,
        "schema": {"columns": shape.types},
        "sink": {"type": "parquet", "path": str(output)},
    }
    return {"kafka": {"bootstrap": bootstrap}, "pipelines": {PIPELINE: pipeline}}


def etl(bootstrap: str, topic: str, cell: Cell, directory: Path) -> dict[str, Any]:
    """One run of a cell over its topic, checked by the number of rows; raises RuntimeError when it went wrong."""
    output, config = directory / "out", directory / "headrace.toml"
    config.write_text(toml(configuration(bootstrap, topic, cell.shape, output, cell.batch_size)))
    command = [sys.executable, "-m", "engine.cli.start", "run", str(config), "--until-caught-up", "--json"]
    if cell.cores is not None:
        command = ["taskset", "-c", ",".join(map(str, range(cell.cores))), *command]
    got = measure.run(command, {"PYTHONPATH": str(ROOT)}, directory, RUN_SECONDS_MAX)
    if got.code != 0:
        raise RuntimeError(f"{cell.axis} {cell.value}: exit code {got.code}: {got.tail}")
    read, seconds = summary(got.err)
    files = sorted(output.rglob("*.parquet"))
    rows = sum(pq.read_metadata(path).num_rows for path in files)
    if not read == rows == cell.shape.events:
        raise RuntimeError(
            f"{cell.axis} {cell.value}: read {read:,}, wrote {rows:,} of {cell.shape.events:,} events"
        )
    return {
        "seconds": seconds,
        "wall_seconds": got.wall_seconds,
        "cpu_seconds": got.cpu_seconds,
        "rss_bytes_max": got.rss_bytes_max,
        "files": len(files),
        "bytes": sum(path.stat().st_size for path in files),
    }


@dataclass(frozen=True, slots=True)
class Start:
    """What a run over an almost empty topic takes."""

    cpu_seconds: float
    wall_seconds: float
    rss_bytes_max: int


@dataclass
class Bench:
    """Runs of one broker. A topic is kept until the cells that use it are done."""

    bootstrap: str
    scratch: Path | None = None
    topics: dict[Shape, str] = field(default_factory=dict)

    def topic(self, shape: Shape) -> str:
        if shape not in self.topics:
            self.topics[shape] = fill(self.bootstrap, shape)
        return self.topics[shape]

    def once(self, cell: Cell) -> dict[str, Any]:
        topic = self.topic(cell.shape)
        directory = Path(tempfile.mkdtemp(dir=self.scratch))
        try:
            return etl(self.bootstrap, topic, cell, directory)
        finally:
            shutil.rmtree(directory, ignore_errors=True)

    def drop(self, kept: set[Shape]) -> None:
        """Delete the topics that no later cell needs."""
        gone = [shape for shape in self.topics if shape not in kept]
        if gone:
            topics.delete(self.bootstrap, *(self.topics.pop(shape) for shape in gone))

    def start(self, repetitions: int, cores: int | None = None) -> Start:
        """The median run over a handful of events. The very first, which may have to compile, does not count."""
        cell = Cell("start", 0, Shape(8), cores=cores)
        runs = [self.once(cell) for _ in range(repetitions + 1)][1:]
        return Start(
            cpu_seconds=statistics.median(run["cpu_seconds"] for run in runs),
            wall_seconds=statistics.median(run["wall_seconds"] for run in runs),
            rss_bytes_max=int(statistics.median(run["rss_bytes_max"] for run in runs)),
        )


def result(cell: Cell, runs: Sequence[Mapping[str, Any]], start: Start) -> dict[str, Any]:
    """Medians of a cell's runs, and what follows from them with a start taken off."""
    medians = {name: statistics.median(run[name] for run in runs) for name in runs[0]}
    net = max(1e-3, medians["cpu_seconds"] - start.cpu_seconds)
    count = cell.shape.events
    return {
        "axis": cell.axis,
        "value": cell.value,
        "events": count,
        **{name: round(value, 3) if isinstance(value, float) else value for name, value in medians.items()},
        "start_cpu_seconds": round(start.cpu_seconds, 3),
        "start_rss_bytes_max": start.rss_bytes_max,
        "events_per_second": round(count / medians["seconds"]),
        "cpu_seconds_per_million": round(net / count * 1e6, 4),
        "events_per_cpu_second": round(count / net),
        "repetitions": list(runs),
    }


def verdicts(results: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Whether cost and memory grow with the length of the run, and cost with the shards.

    ``growth`` is the cost of an event at the far end against that at the near end; ``rss_mb_per_million`` the slope
    of the memory over the longer half of the lengths, where it has had the time to level off.
    """
    found = []
    for axis in ("length", "shards"):
        cells = sorted((each for each in results if each["axis"] == axis), key=lambda each: each["value"])
        if len(cells) < 2:
            continue
        near, far = cells[0], cells[-1]
        growth = far["cpu_seconds_per_million"] / near["cpu_seconds_per_million"]
        verdict: dict[str, Any] = {
            "axis": axis,
            "verdict": f"cost of an event from {near['value']:,} to {far['value']:,}",
            "growth": round(growth, 3),
            "growth_max": COST_GROWTH_MAX,
            "holds": growth <= COST_GROWTH_MAX,
        }
        if axis == "length":
            slope = slope_mb(cells[len(cells) // 2 - 1 :])
            verdict |= {"rss_mb_per_million": round(slope, 2), "rss_mb_per_million_max": RSS_MB_PER_MILLION_MAX}
            verdict["holds"] = verdict["holds"] and slope <= RSS_MB_PER_MILLION_MAX
        found.append(verdict)
    return found


def slope_mb(cells: Sequence[Mapping[str, Any]]) -> float:
    """Megabytes of peak memory for a million events more: the line of least squares through the cells."""
    events_millions = [cell["events"] / 1e6 for cell in cells]
    megabytes = [cell["rss_bytes_max"] / 1e6 for cell in cells]
    return statistics.linear_regression(events_millions, megabytes).slope


def run(
    bootstrap: str,
    *,
    axes: Sequence[str] = AXES,
    quick: bool = False,
    repetitions: int = 3,
    scratch: Path | None = None,
    say: Callable[[str], None] = print,
) -> list[dict[str, Any]]:
    """All cells of ``axes``, those of an axis in turns, and the verdicts. A cell that fails has an ``error``."""
    bench = Bench(bootstrap, scratch)
    cells = plan(axes, quick=quick)
    results: list[dict[str, Any]] = []
    try:
        starts = {cores: bench.start(repetitions, cores) for cores in {cell.cores for cell in cells}}
        say(HEAD)
        for axis in axes:
            chosen = [cell for cell in cells if cell.axis == axis]
            runs: dict[Cell, list[dict[str, Any]]] = {cell: [] for cell in chosen}
            for _, cell in itertools.product(range(repetitions), chosen):
                try:
                    runs[cell].append(bench.once(cell))
                except RuntimeError as error:
                    results.append({"axis": axis, "value": cell.value, "error": str(error)})
                    say(f"{axis:12}{cell.value:>11,}  {error}")
            for cell in chosen:
                if runs[cell]:
                    results.append(result(cell, runs[cell], starts[cell.cores]))
                    say(line(results[-1]))
            later = {cell.shape for cell in cells[max(map(cells.index, chosen)) + 1 :]}
            bench.drop(later)
    finally:
        bench.drop(set())
    for verdict in verdicts([each for each in results if "error" not in each]):
        results.append(verdict)
        memory = f", {verdict['rss_mb_per_million']:+.1f} MB per million" if "rss_mb_per_million" in verdict else ""
        holds = "holds" if verdict["holds"] else "GROWS"
        say(f"{verdict['axis']:12}{holds}: {verdict['verdict']}: x {verdict['growth']:.2f}{memory}")
    return results


HEAD = (
    f"{'axis':12}{'value':>11}{'events':>12}{'s':>8}{'events/s':>12}{'per CPU s':>12}{'CPU s per M':>12}"
    f"{'RSS MB':>8}{'files':>7}   start CPU s"
)


def line(found: Mapping[str, Any]) -> str:
    """A result as a line of the table."""
    return (
        f"{found['axis']:12}{found['value']:>11,}{found['events']:>12,}{found['seconds']:>8.2f}"
        f"{found['events_per_second']:>12,}{found['events_per_cpu_second']:>12,}"
        f"{found['cpu_seconds_per_million']:>12.3f}{found['rss_bytes_max'] / 1e6:>8.0f}{found['files']:>7}"
        f"   {found['start_cpu_seconds']:.2f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bootstrap", help="host:port; an embedded broker when left out")
    parser.add_argument("--axes", nargs="+", choices=AXES, default=list(AXES))
    parser.add_argument("--repetitions", type=int, help="3 when left out, with --quick 1")
    parser.add_argument("--quick", action="store_true", help="an eighth of the events, once, in fewer cells")
    parser.add_argument("--json", type=Path, help="write the results here")
    options = parser.parse_args()
    repetitions = options.repetitions or (1 if options.quick else 3)
    with bootstrap_of(options.bootstrap) as bootstrap:
        results = run(bootstrap, axes=options.axes, quick=options.quick, repetitions=repetitions)
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")
    if any(not each.get("holds", True) or "error" in each for each in results):
        sys.exit(1)


if __name__ == "__main__":
    main()
