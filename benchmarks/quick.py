"""`python -m benchmarks --quick`: headrace beside the hand-written loop in the four workloads, within five minutes.

Each system first does each workload over a small topic: that warms files and compiled code, tells how fast the
machine is just now, and gives the processor seconds of a start. All cells then have one repetition before any has
its second.
Not here: the whole benchmark (`benchmarks.__main__`).
"""

from __future__ import annotations

import argparse
import json
import statistics
import time

from benchmarks import results, systems
from benchmarks.harness import LADDER, Harness, line, say
from benchmarks.results import Entry
from benchmarks.systems import HEADRACE, LOOP
from benchmarks.workloads import WORKLOADS

#: So many that starting up is a small part of a run on a machine with two free cores.
EVENTS = {"etl": 5_000_000, "filter": 5_000_000, "window": 5_000_000, "handler": 1_000_000}
REPETITIONS = 2
#: A repetition beyond the first is not started when it would end later than this after the start.
SECONDS_MAX = 260.0
#: What a small run takes there; on a machine that is busy or slower there are half or a quarter of the events.
SMALL_RUN_SECONDS = 1.4


def run(harness: Harness, options: argparse.Namespace) -> int:
    """All cells; the JSON is written after each run, else printed at the end. 1 when a result is wrong."""
    started = time.monotonic()
    chosen = systems.named(systems.own(), options.systems or (HEADRACE, LOOP))
    names = options.workloads or [name for name, workload in WORKLOADS.items() if workload.is_quick]
    cells = [
        (WORKLOADS[name], [system for system in chosen if system.does(name)]) for name in names if name in EVENTS
    ]
    starts = [harness.run(workload, system, LADDER[0]) for workload, turns in cells for system in turns]
    share = _share(starts)
    runs: list[Entry] = []
    took: dict[str, float] = {}
    for repetition in range(options.repetitions or REPETITIONS):
        for workload, turns in cells:
            begun = time.monotonic()
            if repetition and begun - started + took[workload.name] > SECONDS_MAX:
                say(f"{workload.name}: no repetition {repetition + 1}, it would end after {SECONDS_MAX:g} s")
                continue
            events = options.events or EVENTS[workload.name] // share
            for system in turns[repetition % 2 :] + turns[: repetition % 2]:
                runs.append({**harness.run(workload, system, events), "repetition": repetition + 1})
                say(line(runs[-1]))
                if options.json:
                    results.replace(options.json, results.quick_cells(runs, starts))
            took[workload.name] = time.monotonic() - begun
    if not options.json:
        print(json.dumps(results.quick_cells(runs, starts), indent=1))
    say(f"done in {time.monotonic() - started:.0f} s")
    return 0 if all(each["correct"] for each in runs) else 1


def _share(starts: list[Entry]) -> int:
    """By what the events are divided here and now."""
    seconds = statistics.median(start["wall_seconds"] for start in starts)
    share = 1 if seconds < 1.5 * SMALL_RUN_SECONDS else 2 if seconds < 3 * SMALL_RUN_SECONDS else 4
    if share > 1:
        say(
            f"a small run takes {seconds:.1f} s instead of {SMALL_RUN_SECONDS:g}: the events are divided by {share}"
        )
    return share
