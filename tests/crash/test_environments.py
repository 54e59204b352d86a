"""Fifty environments, killed at random under load: every invocation ends, is counted once, and nothing is left.

The short form runs everywhere; ``HEADRACE_CRASH=long`` takes a minute. The seed is printed.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import time
from pathlib import Path

import psutil
import pytest

from engine.batch import from_rows
from engine.clock import SystemClock
from engine.errors import FunctionError
from functions.environments.contract import FunctionSpec, Report, Request
from functions.environments.pool import EnvironmentPool
from functions.environments.process import spawner
from functions.environments.python import PythonStarter
from functions.kinds import kinesis
from tests.forms import IS_CRASH_LONG

pytestmark = [pytest.mark.crash, pytest.mark.slow]

SECONDS = 60.0 if IS_CRASH_LONG else 3.0
ENVIRONMENTS = 50 if IS_CRASH_LONG else 12
KILLS_PER_SECOND = 20.0
ENVELOPE = kinesis.envelope(kinesis.KinesisStream("clicks", "us-east-1"))
SEED = int(os.environ.get("HEADRACE_SEED", "7"))

APP = """
import os, subprocess, time
def handler(event, context):
    first = event["Records"][0]["kinesis"]["sequenceNumber"]
    if int(first) % 51 == 0:
        subprocess.Popen(["sleep", "600"])
    time.sleep(0.005)
    print("handled", first)
    return [first, len(event["Records"])]
"""


class Nowhere:
    """A log of nothing."""

    def write(self, data: bytes) -> None: ...

    def platform(self, line: str) -> None: ...


def left() -> tuple[int, int, int]:
    """Open descriptors, living descendants, entries of shared memory."""
    living = 0
    for each in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            living += each.status() != psutil.STATUS_ZOMBIE
    return len(list(Path("/proc/self/fd").iterdir())), living, len(list(Path("/dev/shm").iterdir()))


async def test_random_kills_lose_nothing_and_leak_nothing(tmp_path: Path) -> None:
    """Each record's invocation is tried until it succeeds; each answer is of its own request."""
    print(f"seed {SEED}")
    numbers = random.Random(SEED)
    (tmp_path / "app.py").write_text(APP)
    first = await spawner().start(["/bin/true"], root=tmp_path, variables={}, log=Nowhere())
    await first.ended
    before = left()
    reports: list[Report] = []
    pool = EnvironmentPool(
        FunctionSpec("clicks", "app.handler", (), tmp_path, 10.0, 1024, "us-east-1"),
        PythonStarter(),
        reserved_concurrency=ENVIRONMENTS,
        idle_seconds_max=60.0,
        clock=SystemClock(),
        logs=Nowhere,
        on_report=reports.append,
    )
    ends = time.monotonic() + SECONDS
    handled: list[int] = []
    faults: set[str] = set()
    attempts = kills = 0

    async def shard(number: int) -> None:
        nonlocal attempts
        offset = number
        while time.monotonic() < ends:
            rows = [(offset, 0, b"k", b"x" * numbers.randrange(2000), ()) for _ in range(1)]
            batch = from_rows("clicks", 0, rows, start=offset, end=offset + 1)
            sequence = kinesis.sequence_number(offset)
            while True:
                attempts += 1
                try:
                    reply = await pool.invoke(Request(f"id-{attempts}", 0, "kinesis", batch, ENVELOPE))
                except FunctionError as error:
                    faults.add(error.error_type)
                    continue
                assert json.loads(reply.payload) == [sequence, 1]
                break
            handled.append(offset)
            offset += ENVIRONMENTS

    async def killer() -> None:
        nonlocal kills
        while time.monotonic() < ends:
            await asyncio.sleep(numbers.expovariate(KILLS_PER_SECOND))
            if pids := pool.pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(numbers.choice(pids), signal.SIGKILL)
                    kills += 1

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(killer())
        for number in range(ENVIRONMENTS):
            tasks.create_task(shard(number))
    await pool.close()
    print(f"{len(handled)} handled, {attempts} attempts, {kills} kills")
    assert len(handled) == len(set(handled)) > ENVIRONMENTS
    assert kills > 2 * SECONDS
    assert faults == {"Runtime.ExitError"}
    assert attempts == len(reports)
    assert sum(each.status == "success" for each in reports) == len(handled)
    deadline = time.monotonic() + 5
    while left() != before and time.monotonic() < deadline:  # noqa: ASYNC110  # /proc tells nobody
        await asyncio.sleep(0.02)
    assert left() == before
