"""Two processes over one Parquet sink: one is stopped or killed in each phase, the other takes its shard over."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from connectors.parquet import ParquetSink
from engine.batch import Stream
from engine.clock import SystemClock
from engine.errors import ShardLost
from engine.protocols import Counts, Outcome

STREAM = Stream("cluster", "clicks", "id", 1)
PHASES = ["recovering", "staging", "staged", "linked", "half-renamed", "renamed", "checkpointed"]
LOST = 17


def rows(start: int, owner: str) -> Outcome:
    table = pa.table({"i": list(range(start, start + 4)), "k": ["a", "b"] * 2, "owner": [owner] * 4})
    return Outcome(start, start + 4, table, Counts(handled=4), state=state_at(start + 4))


def state_at(end: int) -> bytes:
    """Every second one is too large for a manifest."""
    return b"%d " % end * (5000 if end % 8 else 1)


async def commit_for_ever(path: Path, stop_at: str) -> None:
    """The other process: commits until it loses the shard; stops itself at a phase after some commits."""
    times = {"recovering": 1, "checkpointed": 1}.get(stop_at, 5)

    def phase(name: str) -> None:
        nonlocal times
        times -= name == stop_at
        if name == stop_at and times == 0:
            os.kill(os.getpid(), signal.SIGSTOP)

    sink = ParquetSink(
        path, pipeline="p", clock=SystemClock(), partition_by=["k"], checkpoint_every=4, phase=phase
    )  # fmt: skip
    await sink.open(STREAM)
    try:
        writer = await sink.acquire(0)
        while True:
            await writer.write(rows(writer.position or 0, "other"))
            await writer.commit()
    except ShardLost:
        sys.exit(LOST)


@contextmanager
def stopped_process(path: Path, phase: str) -> Iterator[subprocess.Popen[bytes]]:
    """The other process, once it has stopped itself in ``phase``."""
    call = f"t.commit_for_ever(pathlib.Path({str(path)!r}), {phase!r})"
    code = f"import asyncio, pathlib, {__name__} as t; asyncio.run({call})"
    root = Path(__file__).parents[2]
    with subprocess.Popen([sys.executable, "-c", code], cwd=root) as process:
        try:
            _, status = os.waitpid(process.pid, os.WUNTRACED)
            assert os.WIFSTOPPED(status), f"the process ended with {status} before {phase}"
            yield process
        finally:
            process.kill()


def committed(path: Path) -> list[tuple[int, str]]:
    found = []
    for file in path.glob("**/*.parquet"):
        table = pq.ParquetFile(file).read()
        found += zip(table["i"].to_pylist(), table["owner"].to_pylist(), strict=True)
    return sorted(found)


async def take_over(path: Path, commits: int) -> tuple[int, int]:
    """Where this process took the shard over, and where it left it."""
    sink = ParquetSink(path, pipeline="p", clock=SystemClock(), partition_by=["k"], checkpoint_every=2)
    await sink.open(STREAM)
    writer = await sink.acquire(0)
    start = writer.position or 0
    assert writer.state == (state_at(start) if start else b"")
    for _ in range(commits):
        await writer.write(rows(writer.position or 0, "this"))
        await writer.commit()
    await sink.close()
    return start, writer.position or 0


@pytest.mark.slow
@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("ends", ["continued", "killed"])
def test_a_process_that_stops_in_a_phase_loses_the_shard(tmp_path: Path, phase: str, ends: str) -> None:
    """Its commits stand whole or not at all; woken, it commits and deletes nothing more and says it lost."""
    out = tmp_path / "out"
    with stopped_process(out, phase) as other:
        if ends == "killed":
            other.kill()
            other.wait()
        start, end = asyncio.run(take_over(out, 7))
        expected = [(i, "other") for i in range(start)] + [(i, "this") for i in range(start, end)]
        assert end - start == 28
        assert committed(out) == expected
        if ends == "continued":
            other.send_signal(signal.SIGCONT)
            assert other.wait(timeout=30) == LOST
        assert committed(out) == expected
    assert asyncio.run(take_over(out, 1)) == (end, end + 4)
    assert committed(out) == [*expected, *((i, "this") for i in range(end, end + 4))]
    staged = [path.read_bytes() for path in out.glob(".headrace/**/staging/*")]
    assert staged == ([state_at(end + 4)] if (end + 4) % 8 else [])
