"""What the benchmark keeps: one JSON document that grows with every run, and the medians that are read from it.

The document has ``machine``, ``command``, ``systems`` (what each is), ``starts`` (a small run of each), ``runs``
(one entry a run, see `benchmarks.harness`), ``flushes``, ``memory``, and the parts that other modules measure:
``latency``, ``freshness``, ``scaling``, ``limit`` and ``environments``. Not here: the page that is made of it
(`benchmarks.page`).
"""

from __future__ import annotations

import datetime as dt
import json
import os
import platform
import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PARTS = ("latency", "freshness", "scaling", "limit", "environments")

Entry = dict[str, Any]


class Document:
    """The results so far; each change is in the file, if there is one, before the next run starts."""

    def __init__(self, file: Path | None, broker: str) -> None:
        self._file = file
        self.content: dict[str, Any] = {
            "started": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
            "command": "python -m benchmarks " + " ".join(sys.argv[1:]),
            "machine": machine() | {"broker": broker},
            "systems": {},
            "starts": [],
            "runs": [],
            "flushes": [],
            "memory": [],
        }

    def keep(self, name: str, entry: Entry) -> None:
        """Add an entry to a list."""
        self.content[name].append(entry)
        self.save()

    def save(self) -> None:
        if self._file is not None:
            replace(self._file, self.content)


def replace(file: Path, content: object) -> None:
    """Write JSON so that the file is never half of it."""
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    temporary.replace(file)


def merge(documents: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """One document of several.

    Of each workload it has the runs of the last document that has any, so that what is compared was measured in
    one session; of everything else the last that is there.
    """
    whole: dict[str, Any] = {"systems": {}, "starts": [], "runs": [], "flushes": [], "commands": []}
    for document in documents:
        for name in ("starts", "runs", "flushes"):
            entries = document.get(name, [])
            fresh = {entry["workload"] for entry in entries}
            whole[name] = [entry for entry in whole[name] if entry["workload"] not in fresh] + list(entries)
        whole["systems"] |= document.get("systems", {})
        if "command" in document:
            whole["commands"].append(document["command"])
        for name in ("machine", "started", "memory", *PARTS):
            if document.get(name):
                whole[name] = document[name]
    return whole


@dataclass(frozen=True, slots=True)
class Cell:
    """One system's runs of one workload; figures are medians. ``wrong`` says what is wrong of the first that is."""

    workload: str
    system: str
    runs: Sequence[Entry]

    @property
    def events(self) -> int:
        return int(self.runs[0]["events"])

    @property
    def finished(self) -> list[Entry]:
        return [run for run in self.runs if run["seconds"] is not None]

    @property
    def is_correct(self) -> bool:
        return all(run["correct"] for run in self.runs)

    @property
    def wrong(self) -> str:
        return next((run["wrong"] for run in self.runs if not run["correct"]), "")

    @property
    def rates(self) -> list[float]:
        """Events a second of each run."""
        return [run["events"] / run["seconds"] for run in self.finished]

    @property
    def rate(self) -> float:
        return statistics.median(self.rates)

    @property
    def cpu_rate(self) -> float:
        """Events for each processor second of the whole process tree, its start included."""
        return float(statistics.median(run["events"] / run["cpu_seconds"] for run in self.finished))

    def median(self, name: str) -> float:
        return float(statistics.median(run[name] for run in self.finished))


def cells(document: Mapping[str, Any]) -> dict[str, list[Cell]]:
    """By workload, its systems in the order in which they ran."""
    found: dict[str, dict[str, list[Entry]]] = {}
    for run in document["runs"]:
        found.setdefault(run["workload"], {}).setdefault(run["system"], []).append(run)
    return {
        workload: [Cell(workload, system, runs) for system, runs in systems.items()]
        for workload, systems in found.items()
    }


def rate_without_start(starts: Sequence[Entry], cell: Cell) -> float | None:
    """Events for each CPU second, a start taken off: those of a small run, and its events. None if not measured."""
    for start in starts:
        if (start["workload"], start["system"]) == (cell.workload, cell.system) and cell.finished:
            seconds = cell.median("cpu_seconds") - float(start["cpu_seconds"])
            events = cell.events - int(start["events"])
            return events / seconds if seconds > 0 and events > 0 else None
    return None


def quick_cells(runs: Sequence[Entry], starts: Sequence[Entry] = ()) -> list[Entry]:
    """One object for each cell and system, with medians over its repetitions."""
    found = []
    for row in cells({"runs": runs}).values():
        for cell in row:
            entry: Entry = {"workload": cell.workload, "system": cell.system, "events": cell.events}
            for name in ("seconds", "cpu_seconds", "wall_seconds"):
                entry[name] = round(cell.median(name), 3) if cell.finished else None
            work = [run["work_cpu_seconds"] for run in cell.finished if run.get("work_cpu_seconds") is not None]
            entry["work_cpu_seconds"] = round(statistics.median(work), 3) if work else None
            entry["rss_bytes_max"] = int(cell.median("rss_bytes_max")) if cell.finished else None
            rate = rate_without_start(starts, cell)
            entry["events_per_cpu_second_without_start"] = None if rate is None else round(rate)
            entry |= {"correct": cell.is_correct, "repetitions": len(cell.runs), "note": cell.runs[-1]["note"]}
            entry |= {"wrong": cell.wrong} if cell.wrong else {}
            entry["runs"] = [
                {name: run[name] for name in ("seconds", "cpu_seconds", "wall_seconds", "rss_bytes_max")}
                for run in cell.runs
            ]
            found.append(entry)
    return found


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    cpu = ""
    for line in _read("/proc/cpuinfo").splitlines():
        if line.startswith("model name"):
            cpu = line.partition(":")[2].strip()
            break
    memory = _read("/proc/meminfo").split()
    return {
        "cpu": cpu or platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(int(memory[1]) / 1e6, 1) if len(memory) > 1 else None,
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "load_at_start": os.getloadavg()[0],
    }


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError:
        return ""
