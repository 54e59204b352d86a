"""What a handler starts and lets go of ends with its environment, in whatever session it is."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from engine.errors import FunctionError
from functions.environments.process import Spawner
from functions.environments.warden import VARIABLE, end_marked
from tests.conformance.lambda_support import batch, function

SECONDS_MAX = 10.0

HANDLER = """
import os, subprocess, sys

def handler(event, context):
    stray = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    with open("pid", "w") as file:
        file.write(str(stray.pid))
    print("trace", os.environ["_X_AMZN_TRACE_ID"])
    os._exit(1)
"""


async def gone(pid: int) -> None:
    deadline = time.monotonic() + SECONDS_MAX
    while psutil.pid_exists(pid):
        assert time.monotonic() < deadline, f"process {pid} is still there"
        await asyncio.sleep(0.02)


async def test_a_process_in_a_session_of_its_own_ends_with_its_environment(tmp_path: Path) -> None:
    """Its parent is gone when it is looked for; the variable that it inherited tells whose it is."""
    (tmp_path / "app.py").write_text(HANDLER)
    async with function("kafka", "app.handler", tmp_path) as made:
        with pytest.raises(FunctionError, match="exit status 1"):
            await made.call(batch(b"x"))
        assert any("trace Root=1-" in line for line in made.log.lines)
    await gone(int((tmp_path / "pid").read_text()))


def test_only_marked_processes_are_ended() -> None:
    """A mark is a whole beginning: one of another engine, or of another number, is left alone."""
    sleep = [sys.executable, "-c", "import time; time.sleep(600)"]
    marked, other = (subprocess.Popen(sleep, env={**os.environ, VARIABLE: mark}) for mark in ("abc-1.", "abc-11."))
    try:
        end_marked("abc-1.")
        assert marked.wait(SECONDS_MAX) == -9
        assert other.poll() is None
        end_marked("abc-")
        assert other.wait(SECONDS_MAX) == -9
    finally:
        for process in (marked, other):
            process.kill()
            process.wait()


def test_the_warden_ends_strays_too(tmp_path: Path) -> None:
    """When the engine is gone, processes that left their group are ended by their mark."""
    processes = Spawner()
    sleep = [sys.executable, "-c", "import time; time.sleep(600)"]
    stray = subprocess.Popen(
        sleep, env={**os.environ, VARIABLE: f"{processes._mark}-1."}, start_new_session=True, cwd=tmp_path
    )
    try:
        processes.warden.watch(stray.pid + 100_000)  # a group that is not there: the warden starts
        processes.close()
        assert stray.wait(SECONDS_MAX) == -9
    finally:
        stray.kill()
        stray.wait()
