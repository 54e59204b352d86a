"""Runs systems on workloads: topics of the sizes wanted, runs interleaved between systems, each result checked.

Sizing: a first run of a system on a small topic is its warm-up and is dropped; from its rate, and again from that
between runs on larger ones, follows the topic with which a run lasts as long as asked for. Every system of a
workload has its turn before any has its second; the order moves by one each time. Dirty pages are written back
before each run, so that nobody pays for another's output.

Not here: what is kept (`benchmarks.results`).
"""

from __future__ import annotations

import os
import shutil
import sys
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import measure, real, topics, workloads
from benchmarks.systems import ROOT, System
from benchmarks.systems.job import Job, answer_of
from benchmarks.workloads import Answers, Workload

#: Sizes of the topics of click events; real data come in passes.
LADDER = (50_000, 200_000, 500_000, 1_000_000, 2_000_000, 5_000_000, 10_000_000, 20_000_000, 40_000_000)
#: Runs for finding a size, the small one included. Two that differ by this share of the time wanted tell the rate;
#: the time is taken with a margin, and a size is at most so many times the one before.
SIZINGS_MAX, SHARE_MIN, MARGIN, STEP_MAX, SHORT_SECONDS = 3, 0.05, 1.1, 20, 0.1
RUN_SECONDS_MAX = 900.0
FLUSH_EVENTS = 200_000


def say(text: str) -> None:
    """Tell on standard error, with the time."""
    print(time.strftime("%H:%M:%S"), text, file=sys.stderr, flush=True)


@dataclass(frozen=True, slots=True)
class Topic:
    name: str
    events: int


class Harness:
    """One broker, one scratch directory, and the topics made so far.

    Every topic that it makes, and what systems make under their group's name, has one text in its name: by that,
    `close` deletes them.
    """

    def __init__(self, bootstrap: str, scratch: Path) -> None:
        self.bootstrap = bootstrap
        self._scratch = scratch
        self._unique = uuid.uuid4().hex[:8]
        self._topics: dict[tuple[str, int], Topic] = {}
        self._answers: dict[tuple[str, int], Answers] = {}
        self._runs = 0

    def close(self) -> None:
        topics.delete_with(self.bootstrap, self._unique)

    def topic(self, kind: str, events: int) -> Topic:
        """A topic of at least ``events`` events, filled when it is first asked for."""
        if kind != "clicks":
            events = -(-events // real.pass_events(kind)) * real.pass_events(kind)
        if (kind, events) not in self._topics:
            topic = Topic(f"bench-{self._unique}-{kind}-{events}", events)
            started = time.monotonic()
            topics.fill(self.bootstrap, topic.name, events, kind=kind)
            say(f"filled a topic with {events:,} {kind} in {time.monotonic() - started:.0f} s")
            self._topics[kind, events] = topic
        return self._topics[kind, events]

    def run(self, workload: Workload, system: System, events: int, *, is_flushes: bool = False) -> dict[str, Any]:
        """One run, measured and checked: an entry of the results. Never raises for what the system does wrong.

        ``is_flushes``: counts the requests for flushing instead, beneath strace; the entry has ``flushes`` then.
        """
        topic = self.topic(workload.topic, events)
        answer = None if is_flushes else self._answer(workload, topic)
        self._runs += 1
        place = self._scratch / f"run-{self._runs}"
        output, scratch = place / "output", place / "scratch"
        output.mkdir(parents=True)
        scratch.mkdir()
        name = f"bench-{self._unique}-output-{self._runs}"
        if workload.writes_topic:
            topics.create(self.bootstrap, name)
        job = Job(
            workload=workload.name,
            bootstrap=self.bootstrap,
            topic=topic.name,
            events=topic.events,
            partitions=topics.PARTITIONS,
            output=name if workload.writes_topic else str(output),
            scratch=str(scratch),
            group=name,
            processes=system.processes,
        )
        entry: dict[str, Any] = {"workload": workload.name, "system": system.name, "events": topic.events}
        if workload.topic != "clicks":
            entry["data"] = real.source(workload.topic)
        command, environment = system.start(job)
        os.sync()
        try:
            if is_flushes:
                entry["flushes"] = measure.flushes(command, environment, ROOT, RUN_SECONDS_MAX)
                return entry
            assert answer is not None
            measured = measure.run(command, environment, ROOT, RUN_SECONDS_MAX)
            entry |= _figures(measured)
            entry["bytes"], entry["files"] = measure.size(output)
            if entry["seconds"] is None:
                say(f"{system.name} failed at {workload.name}:\n{measured.tail}")
                entry |= {"correct": False, "wrong": _failure(measured)}
                return entry
            try:
                workloads.check(workload.name, output, answer, lambda: topics.values(self.bootstrap, name))
                entry["correct"] = True
            except workloads.Wrong as wrong:
                entry |= {"correct": False, "wrong": str(wrong)}
            return entry
        finally:
            shutil.rmtree(place, ignore_errors=True)
            if workload.writes_topic:
                topics.delete(self.bootstrap, name)

    def events_for(self, workload: Workload, system: System, seconds: float, first: Mapping[str, Any]) -> int:
        """The size of the topic with which a run lasts ``seconds``, by runs that are dropped; ``first`` is one.

        The rate is that between two runs, for a start may take longer than a small run's work.
        """
        events, took = int(first["events"]), first["seconds"]
        if took is None or took >= seconds:
            return events
        rate, is_known = events / took, False
        for left in reversed(range(SIZINGS_MAX)):
            wanted = events + (MARGIN * seconds - took) * rate
            larger = next((size for size in LADDER if size >= wanted), LADDER[-1])
            if is_known or larger <= events or not left:
                return larger
            following = max(size for size in LADDER if size <= min(larger, STEP_MAX * events))
            before = events, took
            events, took = following, self.run(workload, system, following)["seconds"]
            if took is None:
                return before[0]
            if took >= seconds:
                return events
            difference = took - before[1]
            rate, is_known = (
                (events - before[0]) / max(difference, SHORT_SECONDS),
                difference >= seconds * SHARE_MIN,
            )
        raise AssertionError("the last one returns")

    def interleaved(
        self, workload: Workload, systems: Sequence[System], events: Sequence[int], repetitions: int, keep: Keep
    ) -> None:
        """Every system, ``repetitions`` times, in turns; ``keep`` gets each entry as it comes."""
        turns = list(zip(systems, events, strict=True))
        for repetition in range(repetitions):
            shift = repetition % len(turns)
            for system, count in turns[shift:] + turns[:shift]:
                entry = {**self.run(workload, system, count), "repetition": repetition + 1}
                say(line(entry))
                keep(entry)

    def _answer(self, workload: Workload, topic: Topic) -> Answers:
        if workload.topic != "clicks":
            return Answers(topic.events, workloads.Sums(()), workloads.Sums(()), Path())
        key = (workload.topic, topic.events)
        if key not in self._answers:
            self._answers[key] = workloads.answers(topic.events, self._scratch)
        return self._answers[key]


Keep = Callable[[dict[str, Any]], None]


def line(entry: dict[str, Any]) -> str:
    """An entry for people."""
    what = f"{entry['workload']:<8} {entry['system']:<16} {entry['events']:>11,} events"
    if entry["seconds"] is None:
        return f"{what}  FAILED: {entry['wrong']}"
    verdict = "correct" if entry["correct"] else f"WRONG: {entry['wrong']}"
    return (
        f"{what} {entry['seconds']:7.1f} s {entry['events'] / entry['seconds']:>10,.0f}/s "
        f"{entry['events'] / entry['cpu_seconds']:>10,.0f}/CPU s {entry['rss_bytes_max'] / 1e6:>6,.0f} MB"
        f"  {verdict}"
    )


def _figures(measured: measure.Measured) -> dict[str, Any]:
    answer = answer_of(measured.out) if measured.code == 0 else {}
    return {
        "seconds": answer.get("seconds"),
        "cpu_seconds": measured.cpu_seconds,
        "rss_bytes_max": measured.rss_bytes_max,
        "wall_seconds": measured.wall_seconds,
        "processes_max": measured.processes_max,
        "work_cpu_seconds": answer.get("cpu_seconds"),
        "note": answer.get("note", ""),
    }


def _failure(measured: measure.Measured) -> str:
    if measured.code is None:
        return f"not finished after {measured.wall_seconds:.0f} s"
    last = (measured.err.strip() or measured.out.strip() or "no output").splitlines()[-1]
    return f"exit code {measured.code}: {last[:200]}"
