"""The systems under measurement: headrace, the loop written by hand, and the peers that are installed.

A system is a command that does a `benchmarks.systems.job`. Here is which there are, what each promises, and how it
is started. Not here: what they do (the modules beside this, and `benchmarks.peers`).
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.systems.job import Job

ROOT = Path(__file__).resolve().parents[2]
HEADRACE = "headrace"
LOOP = "aiokafka"

EXACTLY_ONCE = "exactly once"
AT_LEAST_ONCE = "at least once"


@dataclass(frozen=True, slots=True)
class System:
    """``delivery`` and ``notes`` are by workload; ``processes`` is how many it is asked to use."""

    name: str
    title: str
    delivery: Mapping[str, str]
    settings: str
    versions: Mapping[str, str]
    start: Callable[[Job], tuple[list[str], dict[str, str]]]
    notes: Mapping[str, str] = field(default_factory=dict)
    processes: int = 1

    def does(self, workload: str) -> bool:
        return workload in self.delivery

    def about(self) -> dict[str, Any]:
        """What the results say of it."""
        names = ("title", "delivery", "settings", "versions", "notes", "processes")
        return {name: getattr(self, name) for name in names}


def own() -> list[System]:
    """headrace, and the variants of the hand-written loop; all in this environment."""
    python = {"python": platform.python_version()}
    common = ("aiokafka", "orjson", "pyarrow", "uvloop")
    clicks = ("etl", "filter", "window", "handler")
    works = (*clicks, "logs", "changes")
    fetching = "check_crcs off, fetch 8/64 MB, commit each 100,000 records, files written in a thread, no fsync"
    return [
        System(
            HEADRACE,
            HEADRACE,
            dict.fromkeys(works, EXACTLY_ONCE) | {"handler": AT_LEAST_ONCE},
            "defaults (CRC-32C checked, validation, trace columns and _rest, fsync), but for the columns each "
            "workload names; filter: trace columns, no _rest; window: neither; handler: batch_size 1,000",
            _versions("headrace", "aiokafka", "duckdb", "numba", "pyarrow") | python,
            lambda job: _module("benchmarks.systems.headrace", job),
            {
                "handler": "called in environments, processes of their own; a handler's own effects are at least "
                "once, as on AWS"
            },
        ),
        System(
            LOOP,
            "aiokafka loop",
            dict.fromkeys(works, AT_LEAST_ONCE),
            f"{fetching}; etl by pyarrow.json; window in a dict; logs by re; changes by INSERT OR REPLACE",
            _versions(*common) | python,
            lambda job: _module("benchmarks.systems.aiokafka_loop", job),
        ),
        System(
            f"{LOOP}-pylist",
            "aiokafka loop, from_pylist",
            {"etl": AT_LEAST_ONCE},
            f"{fetching}; etl by orjson and pyarrow.Table.from_pylist",
            _versions(*common) | python,
            lambda job: _module("benchmarks.systems.aiokafka_loop", job, "pylist"),
        ),
        System(
            f"{LOOP}-2p",
            "aiokafka loop, 2 processes",
            dict.fromkeys(clicks, AT_LEAST_ONCE),
            f"{fetching}; as aiokafka, two partitions to a process",
            _versions(*common) | python,
            lambda job: _module("benchmarks.systems.aiokafka_loop", job),
            processes=2,
        ),
    ]


def installed(say: Callable[[str], None]) -> list[System]:
    """All systems that can run here; ``say`` hears of those that cannot."""
    found = own()
    try:
        from benchmarks.peers import peers
    except ImportError as error:
        say(f"no peers: {error}")
        return found
    for peer in peers():
        if not peer.is_installed():
            say(f"{peer.name} is not installed: python -m benchmarks.peers install {peer.name}")
            continue
        works = peer.about["workloads"]
        found.append(
            System(
                peer.name,
                peer.about["name"],
                {name: about["delivery"] for name, about in works.items()},
                "; ".join(
                    [peer.about["settings"]]
                    + [f"{name}: {about['settings']}" for name, about in works.items() if about["settings"]]
                ),
                peer.about["versions"],
                lambda job, peer=peer: _peer(peer, job),  # type: ignore[misc]
                {name: about["note"] for name, about in works.items() if about["note"]},
            )
        )
    return found


def _module(name: str, job: Job, *arguments: str) -> tuple[list[str], dict[str, str]]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **job.environment()}
    return [sys.executable, "-m", name, *arguments], environment


def _peer(peer: Any, job: Job) -> tuple[list[str], dict[str, str]]:
    document = {name: getattr(job, name) for name in job.__slots__}
    return peer.command(document), peer.environment(document)


def _versions(*packages: str) -> dict[str, str]:
    return {package: importlib.metadata.version(package) for package in packages}


def named(systems: Sequence[System], names: Sequence[str]) -> list[System]:
    """Those of the given names. Raises ValueError for an unknown one."""
    known = {system.name: system for system in systems}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(f"no system is called {', '.join(unknown)}; there are {', '.join(known)}")
    return [known[name] for name in names]
