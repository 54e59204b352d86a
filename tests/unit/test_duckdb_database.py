"""The file of a DuckDB sink: standby and takeover between real processes, kills, full disks, bad files."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import duckdb
import pyarrow as pa
import pytest

from connectors.duckdb import Database, DuckDBSink
from engine.batch import Stream
from engine.clock import SystemClock
from engine.errors import SinkUnavailable
from engine.protocols import Counts, Outcome

ROOT = Path(__file__).parents[2]
STREAM = Stream("cluster", "clicks", "id-1", 2)

# A process that commits ten rows at a time until it is killed; it prints each position once it is committed,
# and kills itself at the phase that argument 2 names, in the commit of the offset that argument 3 names.
WRITER = """
import asyncio, os, signal, sys
import pyarrow as pa
from connectors.duckdb import Database, DuckDBSink
from engine.batch import Stream
from engine.clock import SystemClock
from engine.protocols import Counts, Outcome

path, fatal, at = sys.argv[1], sys.argv[2], int(sys.argv[3])
reached = -1

def phase(name):
    if name == fatal and reached >= at:
        os.kill(os.getpid(), signal.SIGKILL)

async def main():
    global reached
    sink = DuckDBSink(Database(path), pipeline="p", table="clicks", clock=SystemClock(), phase=phase)
    await sink.open(Stream("cluster", "clicks", "id-1", 2))
    shard = await sink.acquire(0)
    start = shard.position or 0
    while True:
        reached = start
        rows = pa.table({"id": list(range(start, start + 10))})
        state = b"%d " % (start + 10) * (100_000 if start % 20 else 1)
        await shard.write(Outcome(start, start + 10, rows, Counts(handled=10), state=state))
        start = await shard.commit()
        print(start, flush=True)

asyncio.run(main())
"""

# A process that fills its disk (a limit on the size of files) and then gets room again.
FULL_DISK = """
import asyncio, random, resource, signal, sys
import pyarrow as pa
from connectors.duckdb import Database, DuckDBSink
from engine.batch import Stream
from engine.clock import SystemClock
from engine.errors import ShardLost, SinkUnavailable
from engine.protocols import Counts, Outcome

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

async def main():
    sink = DuckDBSink(Database(sys.argv[1]), pipeline="p", table="clicks", clock=SystemClock())
    await sink.open(Stream("cluster", "clicks", "id-1", 2))
    shard = await sink.acquire(0)
    start = 0
    resource.setrlimit(resource.RLIMIT_FSIZE, (4_000_000, resource.RLIM_INFINITY))
    try:
        while True:
            text = [random.randbytes(250).hex() for _ in range(1000)]
            rows = pa.table({"id": list(range(start, start + 1000)), "text": text})
            await shard.write(Outcome(start, start + 1000, rows, Counts(handled=1000)))
            start = await shard.commit()
    except SinkUnavailable as error:
        print("refused", error.message.replace(chr(10), " "), flush=True)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    try:
        print("retried", await shard.commit() == start + 1000, flush=True)
    except ShardLost:
        shard = await sink.acquire(0)
        print("retried", shard.position == start + 1000, flush=True)
    await sink.close()

asyncio.run(main())
"""

HOLDER = "import duckdb, sys; c = duckdb.connect(sys.argv[1]); print('held', flush=True); sys.stdin.read()"


def start(code: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


@contextlib.contextmanager
def held(path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that has the file open."""
    process = start(HOLDER, str(path))
    assert process.stdout is not None
    assert process.stdin is not None
    try:
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        process.stdin.close()


def sink_over(database: Database) -> DuckDBSink:
    return DuckDBSink(database, pipeline="p", table="clicks", clock=SystemClock())


@pytest.mark.slow
async def test_a_standby_takes_over_within_two_seconds(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A second process waits, says at once for whom, and goes on where the killed one had committed."""
    path = tmp_path / "out.db"
    writer = await asyncio.to_thread(start, WRITER, str(path), "never", "0")
    assert writer.stdout is not None
    assert writer.stdin is not None
    try:
        first = await asyncio.to_thread(writer.stdout.readline)
        waiting = asyncio.Event()
        loop = asyncio.get_running_loop()

        class Waited(logging.Handler):
            def emit(self, record: logging.LogRecord) -> None:
                loop.call_soon_threadsafe(waiting.set)

        handler = Waited()
        logging.getLogger("connectors.duckdb").addHandler(handler)
        sink = sink_over(Database(path))
        async with asyncio.TaskGroup() as group:
            opening = group.create_task(sink.open(STREAM))
            await asyncio.wait_for(waiting.wait(), 30)
            assert not opening.done()
            writer.send_signal(signal.SIGKILL)
            killed = time.monotonic()
            await opening
        assert time.monotonic() - killed < 2.0
        logging.getLogger("connectors.duckdb").removeHandler(handler)
        said = [int(line) for line in (first + await asyncio.to_thread(writer.stdout.read)).split()]
        assert f"is held by process {writer.pid}" in caplog.text
        shard = await sink.acquire(0)
        assert shard.position in (said[-1], said[-1] + 10)
        assert sum("waiting as a standby" in record.message for record in caplog.records) == 1
        await sink.close()
    finally:
        writer.kill()
        await asyncio.to_thread(writer.wait)
        writer.stdout.close()
        writer.stdin.close()
    with duckdb.connect(path, read_only=True) as connection:
        found = connection.execute("SELECT count(*), count(DISTINCT id), max(id) + 1 FROM clicks").fetchone()
    assert found == (shard.position,) * 3


@pytest.mark.slow
@pytest.mark.crash
@pytest.mark.parametrize("phase", ["recovering", "begin", "written", "committed"])
def test_a_kill_in_any_phase_leaves_whole_transactions(tmp_path: Path, phase: str) -> None:
    """Killed twice in each phase, the file has each row below the position once, and that position's state."""
    path = tmp_path / "out.db"
    position = 0
    for at in (-1, 30, 60) if phase == "recovering" else (0, 30, 60):
        # "recovering" comes before any offset is reached: the first process lays the ground, then each dies there.
        process = start(WRITER, str(path), phase, "-1" if phase == "recovering" else str(at))
        output, _ = process.communicate(timeout=60)
        assert process.returncode == -signal.SIGKILL
        said = [int(line) for line in output.split()]
        with duckdb.connect(path) as connection:
            rows = connection.execute("SELECT next_offset FROM headrace.positions").fetchall()
            position = (rows[0][0] or 0) if rows else 0
            if said:
                assert position in (said[-1], said[-1] + 10)
            if position:
                found = connection.execute(
                    "SELECT count(*), count(DISTINCT id), max(id) + 1 FROM clicks"
                ).fetchone()
                assert found == (position,) * 3
                states = connection.execute("SELECT state FROM headrace.states").fetchall()
                assert states == [(b"%d " % position * (1 if position % 20 else 100_000),)]
    assert position == {"recovering": 0, "begin": 60, "written": 60, "committed": 70}[phase]


@pytest.mark.slow
@pytest.mark.crash
def test_kills_while_the_file_is_made_leave_one_that_opens(tmp_path: Path) -> None:
    """A process killed at any moment of its first second leaves no torn file behind."""
    for delay_ms in range(150, 550, 50):
        path = tmp_path / f"{delay_ms}.db"
        process = start(WRITER, str(path), "never", "0")
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(delay_ms / 1000)
        process.kill()
        process.communicate()

        async def reopen(path: Path = path) -> int:
            sink = sink_over(Database(path, lock_wait_seconds_max=0))
            await sink.open(STREAM)
            position = await sink.position(0) or 0
            await sink.close()
            return position

        position = asyncio.run(reopen())
        with duckdb.connect(path, read_only=True) as connection:
            tables = connection.execute(
                "SELECT count(*) FROM duckdb_tables() WHERE table_name = 'clicks'"
            ).fetchone()
            if position:
                assert connection.execute("SELECT count(*) FROM clicks").fetchone() == (position,)
        assert tables is not None
        assert sorted(each.name for each in tmp_path.iterdir()) == [
            f"{ms}.db" for ms in range(150, delay_ms + 1, 50)
        ]


async def test_a_limited_wait_ends_with_the_holder_named(tmp_path: Path) -> None:
    """After lock_wait_seconds_max the error says which process has the file; 0 does not wait."""
    path = tmp_path / "out.db"
    with held(path) as holder:
        for wait_seconds_max in (0, 0.2):
            began = time.monotonic()
            with pytest.raises(SinkUnavailable, match=f"{path} is held by process {holder.pid}"):
                await sink_over(Database(path, lock_wait_seconds_max=wait_seconds_max)).open(STREAM)
            assert wait_seconds_max <= time.monotonic() - began < 5
    sink = sink_over(Database(path, lock_wait_seconds_max=5))
    await sink.open(STREAM)
    await sink.close()


async def test_a_cancelled_wait_leaves_nothing(tmp_path: Path) -> None:
    """A standby that is told to stop lets go; the same Database opens later."""
    path = tmp_path / "out.db"
    database = Database(path)
    with held(path), pytest.raises(TimeoutError):
        await asyncio.wait_for(database.open(), 0.2)
    await asyncio.wait_for(database.open(), 10)
    await database.close()


async def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    """Text, an empty file and a directory are refused with the path, and stay as they are."""
    text, empty, folder = tmp_path / "text.db", tmp_path / "empty.db", tmp_path / "folder.db"
    text.write_text("not a database\n" * 1000)
    empty.touch()
    folder.mkdir()
    for path in (text, empty, folder):
        with pytest.raises(SinkUnavailable, match=path.name):
            await Database(path).open()
    assert text.read_text().startswith("not a database")


async def test_a_place_where_nothing_can_be_made(tmp_path: Path) -> None:
    """A path below a file, and one in a file system that takes no files, are refused with the reason."""
    (tmp_path / "file").touch()
    for path in (tmp_path / "file" / "out.db", Path("/proc/headrace/out.db")):
        with pytest.raises(SinkUnavailable, match="cannot be made"):
            await Database(path).open()


@pytest.mark.slow
def test_a_full_disk_is_refused_and_the_commit_can_be_made_again(tmp_path: Path) -> None:
    """Where the disk takes no more, the commit fails with the reason; with room it goes through, once."""
    path = tmp_path / "out.db"
    process = start(FULL_DISK, str(path))
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    refused, retried = output.splitlines()
    assert refused.startswith("refused")
    assert path.name in refused
    assert retried == "retried True"
    with duckdb.connect(path, read_only=True) as connection:
        [(rows, distinct, position)] = connection.execute(
            "SELECT count(*), count(DISTINCT id), any_value(next_offset) FROM clicks, headrace.positions"
        ).fetchall()
    assert rows == distinct == position > 0


async def test_a_later_format_is_refused(tmp_path: Path) -> None:
    """A file of a later headrace is not touched."""
    path = tmp_path / "out.db"
    database = Database(path)
    await database.open()
    await database.run(lambda connection: connection.execute("UPDATE headrace.format SET version = 99"))
    await database.close()
    with pytest.raises(Exception, match="format 99"):
        await Database(path).open()


async def test_the_limits_reach_duckdb(tmp_path: Path) -> None:
    """Memory and threads of the file are what was asked for."""
    database = Database(tmp_path / "out.db", memory_limit_bytes=512 * 1024 * 1024, threads=1)
    await database.open()
    found = await database.run(
        lambda connection: connection.execute(
            "SELECT current_setting('memory_limit'), current_setting('threads')"
        ).fetchone()
    )
    await database.close()
    assert found == ("512.0 MiB", 1)


async def test_too_little_memory_is_said(tmp_path: Path) -> None:
    """A commit that does not fit DuckDB's memory limit is refused with that hint, and the file goes on."""
    database = Database(tmp_path / "out.db", memory_limit_bytes=12 * 1024 * 1024, threads=1)
    sink = DuckDBSink(
        database, pipeline="p", table="t", mode="upsert", key=["id"], order_by="id", clock=SystemClock()
    )
    await sink.open(STREAM)
    shard = await sink.acquire(0)
    rows = pa.table({"id": [f"{i:0900d}" for i in range(60_000)]})
    await shard.write(Outcome(0, 60_000, rows, Counts(handled=60_000)))
    with pytest.raises(SinkUnavailable, match="memory limit"):
        await shard.commit()
    assert await sink.position(0) is None
    await sink.close()


def test_one_file_by_two_paths_is_one_path(tmp_path: Path) -> None:
    """A symbolic link does not make a second owner of the same file."""
    (tmp_path / "link").symlink_to(tmp_path)
    assert Database(tmp_path / "link" / "out.db").path == Database(tmp_path / "out.db").path
