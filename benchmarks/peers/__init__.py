"""The peers: other stream processors that do the benchmark's workloads, each in an environment of its own.

A peer is a folder here with an ``about.json`` (what it is, its settings, its delivery guarantee in each workload),
a ``main.py`` that does a job, and what it is installed from: ``requirements.lock`` for pip, ``jars.lock`` for jars.
``python -m benchmarks.peers install`` makes their environments (`benchmarks.peers.environments`); the harness asks
`peers` which there are and runs the command of each. Not here: the workloads, measuring, and checking of results.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.peers.environments import Environment, java_tool
from benchmarks.peers.locks import HERE, read_jars, read_packages

__all__ = ["Peer", "peer", "peers"]


@dataclass(frozen=True, slots=True)
class Peer:
    """One other system, and how to run it.

    ``about`` is the content of its ``about.json``, with ``versions`` filled in from its locks:

    - ``name``, ``language``, ``clock`` (what its seconds begin with), ``settings`` (in all workloads)
    - ``versions``: package or jar to version, of those that matter
    - ``workloads``: for each workload that it can do ``delivery`` (its guarantee), ``settings`` (or ""), ``note``
      (or ""), ``processes`` (the numbers of processes that it can be asked for) and ``events_share``: the share of
      the fastest system's events with which it runs about as long as that one
    - ``not_done``: for each other workload, why not
    """

    name: str
    about: Mapping[str, Any]

    @property
    def workloads(self) -> tuple[str, ...]:
        return tuple(self.about["workloads"])

    @property
    def folder(self) -> Path:
        return HERE / self.name

    def is_installed(self) -> bool:
        """Whether its environment is there and was made from the locks as they are now."""
        return Environment(self.name).is_ready()

    def command(self, job: Mapping[str, Any]) -> list[str]:
        """The command that does ``job``. Raises `ValueError` for a workload, or processes, that it cannot do."""
        workload = self.about["workloads"].get(job["workload"])
        if workload is None:
            raise ValueError(f"{self.name} does not do {job['workload']!r}, only {', '.join(self.workloads)}")
        if job["processes"] not in workload["processes"]:
            raise ValueError(f"{self.name} does {job['workload']} with {workload['processes']} processes only")
        return [str(Environment(self.name).python), str(self.folder / "main.py")]

    def environment(self, job: Mapping[str, Any]) -> dict[str, str]:
        """The environment variables of `command`: this process's, the job, and where the shared module is."""
        variables = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        return variables | {
            "BENCHMARK_JOB": json.dumps(dict(job)),
            "BENCHMARK_CLASS_PATH": Environment(self.name).class_path,
            "BENCHMARK_JAVA": java_tool("java") or "",
            "BENCHMARK_PEER": str(Environment(self.name).directory),
            "PYTHONPATH": str(HERE / "shared"),
            "PYTHONUNBUFFERED": "1",
        }


def peers() -> list[Peer]:
    """All peers, installed or not, by name."""
    return [peer(path.parent.name) for path in sorted(HERE.glob("*/about.json"))]


def peer(name: str) -> Peer:
    """One peer by its folder's name."""
    folder = HERE / name
    about = json.loads((folder / "about.json").read_text("utf-8"))
    found = read_packages(folder) | {jar.name: jar.version for jar in read_jars(folder)}
    about["versions"] = {part: found[part] for part in about.pop("parts")}
    return Peer(name, about)
