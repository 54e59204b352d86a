"""The benchmark.

    python -m benchmarks                                  all of it, for all installed systems (hours)
    python -m benchmarks --quick --json FILE              headrace beside the hand-written loop (minutes)
    python -m benchmarks --workloads etl --systems headrace aiokafka --seconds 10
    python -m benchmarks --report FILE...                 make benchmarks/RESULTS.md and its plots
    python -m benchmarks latency|freshness|scaling|limit|environments --help     the parts by themselves
    python -m benchmarks.peers install                    the peers' environments

Without --bootstrap it starts a broker of its own on a free port of this machine. Progress is told on standard
error; the JSON is written as it goes, so that a run that is stopped keeps what it has.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks import page, quick, results, systems
from benchmarks.harness import FLUSH_EVENTS, LADDER, Harness, line, say
from benchmarks.systems import HEADRACE, ROOT, System
from benchmarks.workloads import WORKLOADS, Workload
from connectors.kafka.broker import Broker

MEMORY = "memory"
RESULTS = Path("benchmark-results.json")
#: The broker is there to be no bottleneck: its heap is larger than one's that only serves a developer.
BROKER_HEAP_MEGABYTES = 1024


def main() -> int:
    if len(sys.argv) > 1 and sys.argv[1] in results.PARTS:
        return _part(sys.argv[1])
    options = _options()
    if options.report:
        say(f"made {page.write(options.report)}")
        return 0
    with _broker(options.bootstrap) as (bootstrap, broker), tempfile.TemporaryDirectory(prefix="bench-") as scratch:
        harness = Harness(bootstrap, Path(scratch))
        try:
            harness.run(WORKLOADS["etl"], systems.named(systems.own(), [HEADRACE])[0], LADDER[0])  # compiles, once
            if options.quick:
                return quick.run(harness, options)
            return _full(harness, options, broker)
        finally:
            if options.bootstrap:
                harness.close()


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--quick", action="store_true", help="etl, filter, window and handler, beside the hand-written loop only")
    add(
        "--report",
        type=Path,
        nargs="+",
        metavar="FILE",
        help="make the page of results, later files over earlier ones",
    )
    add("--workloads", nargs="+", choices=[*WORKLOADS, MEMORY], help="all when left out")
    add("--systems", nargs="+", metavar="NAME", help="all that are installed when left out")
    add(
        "--parts",
        nargs="*",
        choices=results.PARTS,
        help="measured after the workloads; all when nothing is selected",
    )
    add("--repetitions", type=int, metavar="N", help=f"3 when left out; with --quick {quick.REPETITIONS}")
    add(
        "--seconds", type=float, default=30.0, help="that a run lasts, where the largest topic allows (%(default)g)"
    )
    add("--events", type=int, metavar="N", help="of the topic, the same for all systems; sized by --seconds else")
    add("--bootstrap", metavar="HOST:PORT", help="a broker that is there already")
    add("--json", type=Path, metavar="FILE", help=f"where the results go ({RESULTS}; with --quick standard output)")
    options = parser.parse_args()
    if options.repetitions is not None and options.repetitions < 1:
        parser.error("--repetitions: at least 1")
    if options.events is not None and options.events < 1:
        parser.error("--events: at least 1")
    return options


@contextlib.contextmanager
def _broker(bootstrap: str | None) -> Iterator[tuple[str, str]]:
    """The broker's address, and what it is."""
    if bootstrap is not None:
        yield bootstrap, "given by --bootstrap"
        return
    with tempfile.TemporaryDirectory(prefix="bench-broker-") as directory:
        data = Path(directory) / "broker"
        with Broker(data, port=0, heap_megabytes=BROKER_HEAP_MEGABYTES, progress=say) as broker:
            yield broker.bootstrap, f"embedded Apache Kafka, one node, heap {BROKER_HEAP_MEGABYTES} MB"


def _part(name: str) -> int:
    """`python -m benchmarks latency ...` is `python -m benchmarks.latency ...`."""
    try:
        module = importlib.import_module(f"benchmarks.{name}")
    except ImportError as error:
        say(f"benchmarks.{name} cannot be loaded: {error}")
        return 2
    del sys.argv[1]
    code = module.main()
    return code if isinstance(code, int) else 0


def _full(harness: Harness, options: argparse.Namespace, broker: str) -> int:
    document = results.Document(options.json or RESULTS, broker)
    every = systems.installed(say)
    chosen = systems.named(every, options.systems) if options.systems else every
    document.content["systems"] = {system.name: system.about() for system in chosen}
    names = options.workloads or [*WORKLOADS, MEMORY]
    for workload in [WORKLOADS[name] for name in names if name != MEMORY]:
        _measure(harness, options, document, workload, [each for each in chosen if each.does(workload.name)])
    if MEMORY in names:
        _memory(harness, options, document, chosen)
    parts = (
        options.parts
        if options.parts is not None
        else ([] if options.workloads or options.systems else results.PARTS)
    )
    for name in parts:
        _measure_part(harness, document, name)
    say(f"results are in {options.json or RESULTS}; python -m benchmarks --report FILE makes the page")
    return 0


def _measure(
    harness: Harness,
    options: argparse.Namespace,
    document: results.Document,
    workload: Workload,
    chosen: Sequence[System],
) -> None:
    """One workload: small runs, sizes, then repetitions in turns, then the flushes of each system."""
    events = []
    for system in chosen:
        start = harness.run(workload, system, LADDER[0])
        document.keep("starts", start)
        events.append(options.events or harness.events_for(workload, system, options.seconds, start))
    harness.interleaved(
        workload, chosen, events, options.repetitions or 3, lambda entry: document.keep("runs", entry)
    )
    for system, count in zip(chosen, events, strict=True):
        document.keep("flushes", harness.run(workload, system, min(count, FLUSH_EVENTS), is_flushes=True))


def _memory(
    harness: Harness, options: argparse.Namespace, document: results.Document, chosen: Sequence[System]
) -> None:
    """headrace's memory over a quarter, half and all of a long topic: what grows with the topic shows there."""
    own = next((system for system in chosen if system.name == HEADRACE), None)
    events = options.events or LADDER[-2]
    for part in (4, 2, 1) if own is not None else ():
        assert own is not None
        entry = harness.run(WORKLOADS["etl"], own, events // part)
        say(line(entry))
        document.keep("memory", entry)


def _measure_part(harness: Harness, document: results.Document, name: str) -> None:
    """A part that another module measures, in a process of its own."""
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / f"{name}.json"
        command = [
            sys.executable,
            "-m",
            f"benchmarks.{name}",
            "--bootstrap",
            harness.bootstrap,
            "--json",
            str(file),
        ]
        if name == "limit" and (own := _own_rate(document)) is not None:
            command += ["--headrace", str(own)]
        say(f"measuring: {name}")
        subprocess.run(command, cwd=ROOT, stdout=sys.stderr, check=False)
        if file.exists():
            document.content[name] = json.loads(file.read_text())
            document.save()
        else:
            say(f"{name} was not measured")


def _own_rate(document: results.Document) -> float | None:
    """headrace's events for each CPU second of ETL."""
    cells = results.cells(document.content).get("etl", [])
    return next((cell.cpu_rate for cell in cells if cell.system == HEADRACE and cell.finished), None)


if __name__ == "__main__":
    sys.exit(main())
