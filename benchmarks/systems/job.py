"""What a system is asked to do, from the variable BENCHMARK_JOB, and the line in which it answers.

The contract between the harness and every system, the peers too. Standard library only.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

VARIABLE = "BENCHMARK_JOB"
ANSWER = "RESULT "


@dataclass(frozen=True, slots=True)
class Job:
    """Read ``topic`` from its beginning to its end, write to ``output``, and answer.

    ``output`` is a directory, for the workload filter a topic; ``scratch`` a directory for everything else.
    ``group`` is a consumer group id that nobody else uses.
    """

    workload: str
    bootstrap: str
    topic: str
    events: int
    partitions: int
    output: str
    scratch: str
    group: str
    processes: int = 1

    @property
    def directory(self) -> Path:
        return Path(self.output)

    def environment(self) -> dict[str, str]:
        """The variable that carries it."""
        return {VARIABLE: json.dumps({name: getattr(self, name) for name in self.__slots__})}


def read() -> Job:
    """The job of this process."""
    return Job(**json.loads(os.environ[VARIABLE]))


def answer(events: int, seconds: float, note: str = "", cpu_seconds: float | None = None) -> None:
    """Say how it went; ``seconds`` from the first record consumed to the last result durable.

    ``cpu_seconds``, of all processes and threads in that time, where the system knows.
    """
    document = {"events": events, "seconds": seconds, "note": note, "cpu_seconds": cpu_seconds}
    print(ANSWER + json.dumps(document), flush=True)


def answer_of(out: str) -> dict[str, object]:
    """The last answer in what a system wrote; empty where there is none."""
    for line in reversed(out.splitlines()):
        if line.startswith(ANSWER + "{"):
            found: dict[str, object] = json.loads(line.removeprefix(ANSWER))
            return found
    return {}
