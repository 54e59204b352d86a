"""A lake under SIGKILL: whatever moment it is, rows, failed records, states and positions are of one piece.

HEADRACE_CRASH=long kills more often, by the same code. Seeds are fixed and printed; HEADRACE_CRASH_SEED changes
them.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from connectors.ducklake import LakeDatabase
from connectors.ducklake.reading import open_lake
from tests.forms import IS_CRASH_LONG

ROOT = Path(__file__).parents[2]
SEED = int(os.environ.get("HEADRACE_CRASH_SEED", "20261124"))
KILLS = 25 if IS_CRASH_LONG else 3
PHASE_KILLS = 3 if IS_CRASH_LONG else 1

# Two shards commit at once, few rows or many, until the process is killed: by itself when it comes to a phase for
# the n-th time, or by the test. It prints what it has been told is committed.
WRITER = """
import asyncio, os, random, signal, sys
import pyarrow as pa
from connectors.ducklake import DuckLakeSink, LakeDatabase
from engine.batch import Stream
from engine.clock import SystemClock
from engine.protocols import Counts, FailedRecord, Outcome

path, fatal, left, chance = sys.argv[1], sys.argv[2], int(sys.argv[3]), random.Random(int(sys.argv[4]))

def phase(name):
    global left
    left -= name == fatal
    if name == fatal and left == 0:
        os.kill(os.getpid(), signal.SIGKILL)

def outcome(partition, start, count):
    offsets = range(start, start + count)
    ids = [offset for offset in offsets if offset % 50]
    failed = [
        FailedRecord(partition, offset, 0, None, b"%d" % offset, (), "no", "ValueError", 1)
        for offset in offsets if offset % 50 == 0
    ]
    rows = pa.table({
        "_partition": pa.array([partition] * len(ids), pa.int64()),
        "_offset": pa.array(ids, pa.int64()),
        "text": pa.array([f"row {partition} {each}" for each in ids], pa.string()),
    })
    counts = Counts(handled=len(ids), failed=len(failed))
    return Outcome(start, start + count, rows, counts, failed, state=b"%d" % (start + count))

async def work(sink, partition):
    shard = await sink.acquire(partition)
    start = shard.position or 0
    assert shard.state == (b"%d" % start if start else b""), (shard.state, start)
    while True:
        await shard.write(outcome(partition, start, chance.choice([1, 7, 60, 400, 1500])))
        start = await shard.commit()
        print(partition, start, flush=True)

async def main():
    sink = DuckLakeSink(LakeDatabase(path), pipeline="p", table="clicks", clock=SystemClock(), phase=phase)
    await sink.open(Stream("cluster", "clicks", "id-1", 2))
    await asyncio.gather(work(sink, 0), work(sink, 1))

asyncio.run(main())
"""


def run_until_killed(path: Path, fatal: str, left: int, seed: int, seconds: float | None) -> dict[int, int]:
    """The last position of each shard that the killed process was told of."""
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path), fatal, str(left), str(seed)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        told: list[str] = []
        if seconds is not None:
            told.append(process.stdout.readline())
            time.sleep(seconds)
            process.kill()
        told += process.communicate(timeout=60)[0].splitlines()
    finally:
        process.kill()
        process.wait(30)
    assert process.returncode == -signal.SIGKILL
    lines = [line.split() for line in told if line.count(" ") == 1]
    return {int(partition): int(position) for partition, position in lines}


def check_lake(path: Path, told: dict[int, int]) -> None:
    """Each offset below the position is there once, as a row or as a failure, and nothing else."""
    with open_lake(path) as lake:
        positions = dict(lake.execute('SELECT "partition", next_offset FROM headrace.positions').fetchall())
        states = dict(lake.execute('SELECT "partition", state FROM headrace.states').fetchall())
        rows = lake.execute("SELECT _partition, _offset, text FROM clicks ORDER BY ALL").fetchall()
        failures = lake.execute(
            'SELECT "partition", "offset", "value" FROM headrace.failures ORDER BY ALL'
        ).fetchall()
    for partition in (0, 1):
        end = positions[partition] or 0
        assert end >= told.get(partition, 0), "what was committed is gone"
        assert states.get(partition, b"0") == b"%d" % end
        good = [offset for offset in range(end) if offset % 50]
        assert [row for row in rows if row[0] == partition] == [
            (partition, n, f"row {partition} {n}") for n in good
        ]
        bad = range(0, end, 50)
        assert [row for row in failures if row[0] == partition] == [(partition, n, b"%d" % n) for n in bad]


@pytest.mark.crash
def test_a_lake_is_exact_whenever_its_process_is_killed(tmp_path: Path) -> None:
    """Killed at random moments and in each phase of a commit, then opened by the next one, on and on."""
    print(f"seed {SEED}, {KILLS} random kills")
    path = tmp_path / "lake.duckdb"
    chance = random.Random(SEED)
    told: dict[int, int] = {}
    for number in range(KILLS):
        told |= run_until_killed(path, "none", -1, SEED + number, chance.uniform(0.0, 0.4))
        check_lake(path, told)
    for phase in ("begin", "written", "committed"):
        for number in range(PHASE_KILLS):
            told |= run_until_killed(path, phase, chance.randint(2, 9), SEED - number, None)
            check_lake(path, told)
    print(f"positions {told}")
    assert all(position > 0 for position in told.values())
    with open_lake(path) as lake:
        named = lake.execute("SELECT data_file FROM ducklake_list_files('lake', 'clicks')").fetchall()
    left_over = {*map(str, path.with_name("lake.duckdb.files").rglob("*.parquet"))} - {name for (name,) in named}
    assert len(left_over) <= 4, "what a kill leaves is removed by the next opening"


async def open_and_close(path: Path) -> None:
    database = LakeDatabase(path, lock_wait_seconds_max=5)
    await database.open()
    await database.close()


@pytest.mark.crash
def test_kills_while_a_lake_is_made_leave_one_that_opens(tmp_path: Path) -> None:
    """Whenever the first process dies, the next one finds nothing or a whole catalogue, and removes the drafts."""
    chance = random.Random(SEED)
    for number in range(KILLS):
        path = tmp_path / f"lake-{number}.duckdb"
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path), "none", "-1", "0"], cwd=ROOT, stdout=subprocess.DEVNULL
        )
        try:
            deadline = time.monotonic() + 30
            while not any(tmp_path.glob(f".lake-{number}.*")) and not path.exists():
                assert time.monotonic() < deadline
            time.sleep(chance.uniform(0.0, 0.15))
        finally:
            process.kill()
            process.wait(30)
        asyncio.run(open_and_close(path))
        with open_lake(path) as lake:
            assert lake.execute("FROM headrace.format").fetchall() == [(1,)]
        assert not list(tmp_path.glob(f".lake-{number}.*"))
