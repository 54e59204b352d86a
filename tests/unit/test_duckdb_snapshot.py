"""Copies of a DuckDB file that is written: exact, whole, kept by who reads them, and never in the way."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from pathlib import Path

import duckdb
import pyarrow as pa
import pytest

from connectors.duckdb import Database, DuckDBSink
from connectors.duckdb.snapshot import Snapshots, SnapshotSettings
from engine.batch import Stream
from engine.clock import SystemClock
from engine.protocols import Counts, Outcome

STREAM = Stream("cluster", "clicks", "id-1", 2)


def sink_with(path: Path, snapshot: Path, interval_seconds: float) -> tuple[DuckDBSink, Snapshots]:
    database = Database(path, snapshot=SnapshotSettings(snapshot, interval_seconds))
    assert database._snapshots is not None
    return DuckDBSink(database, pipeline="p", table="clicks", clock=SystemClock()), database._snapshots


def outcome(start: int, count: int = 10) -> Outcome:
    rows = pa.table({"id": list(range(start, start + count))})
    return Outcome(start, start + count, rows, Counts(handled=count))


def names(folder: Path) -> list[str]:
    return sorted(each.name for each in folder.iterdir())


async def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


def found(path: Path) -> tuple[int, int, int]:
    """Rows, distinct rows, and the position, of a file that is opened as any tool would."""
    with duckdb.connect(path, read_only=True) as connection:
        [row] = connection.execute(
            "SELECT count(*), count(DISTINCT id), any_value(next_offset) FROM clicks, headrace.positions"
        ).fetchall()
    return row


@pytest.mark.slow
async def test_copies_are_exact_to_one_commit(tmp_path: Path) -> None:
    """While commits go on, each copy has the rows of its own position, and positions only grow."""
    snapshot = tmp_path / "copies" / "clicks.duckdb"
    sink, snapshots = sink_with(tmp_path / "d.duckdb", snapshot, 0.01)
    await sink.open(STREAM)
    shard = await sink.acquire(0)
    start, seen = 0, []
    while snapshots.made < 5:
        await shard.write(outcome(start))
        start = await shard.commit()
        if snapshots.made > 1:
            seen.append(await asyncio.to_thread(found, snapshot))
    assert all(rows == distinct == position for rows, distinct, position in seen)
    assert seen == sorted(seen)
    await sink.close()
    assert found(snapshot) == (start, start, start)
    assert names(tmp_path) == ["copies", "d.duckdb"]
    assert names(snapshot.parent) == ["clicks.duckdb"]


async def test_a_reader_keeps_what_it_opened(tmp_path: Path) -> None:
    """Who has a copy open reads it to the end, whatever comes after; who opens it anew has the next one."""
    snapshot = tmp_path / "s.duckdb"
    sink, snapshots = sink_with(tmp_path / "d.duckdb", snapshot, 0.01)
    await sink.open(STREAM)
    shard = await sink.acquire(0)
    await shard.write(outcome(0))
    await shard.commit()
    # DuckDB would give this process its open instance of a path again; the copy under another name is another file.
    await until(lambda: snapshots.made >= 2)
    kept = tmp_path / "kept.duckdb"
    os.link(snapshot, kept)
    with duckdb.connect(kept, read_only=True) as reader:
        await shard.write(outcome(10))
        await shard.commit()
        made = snapshots.made
        await until(lambda: snapshots.made > made)
        assert reader.execute("SELECT count(*) FROM clicks").fetchall() == [(10,)]
    assert await asyncio.to_thread(found, snapshot) == (20, 20, 20)
    await sink.close()


async def test_nothing_new_makes_no_copy(tmp_path: Path) -> None:
    """Without a commit the copy stays the same file, also at the end."""
    snapshot = tmp_path / "s.duckdb"
    sink, snapshots = sink_with(tmp_path / "d.duckdb", snapshot, 0.001)
    await sink.open(STREAM)
    await until(lambda: snapshots.made == 1)
    before = snapshot.stat()
    for _ in range(20):
        await asyncio.sleep(0.001)
    await sink.close()
    assert snapshots.made == 1
    assert (snapshot.stat().st_ino, snapshot.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


async def test_a_long_interval_is_no_longer_than_the_run(tmp_path: Path) -> None:
    """The end does not wait for the next turn, and copies what was committed since the last."""
    snapshot = tmp_path / "s.duckdb"
    sink, snapshots = sink_with(tmp_path / "d.duckdb", snapshot, 3_600)
    await sink.open(STREAM)
    await until(lambda: snapshots.made == 1)
    shard = await sink.acquire(0)
    await shard.write(outcome(0))
    await shard.commit()
    await asyncio.wait_for(sink.close(), 20)
    assert snapshots.made == 2
    assert found(snapshot) == (10, 10, 10)


async def test_what_goes_wrong_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A copy that cannot be put there leaves the commits alone and no draft behind; the next turn tries again."""
    snapshot = tmp_path / "s.duckdb"
    snapshot.mkdir()
    (snapshot / "in the way").touch()
    draft = tmp_path / f".{snapshot.name}.draft"
    draft.write_text("left by a crash")
    sink, snapshots = sink_with(tmp_path / "d.duckdb", snapshot, 0.01)
    await sink.open(STREAM)
    shard = await sink.acquire(0)
    await shard.write(outcome(0))
    assert await shard.commit() == 10
    await until(lambda: caplog.text.count("no copy to") >= 2)
    (snapshot / "in the way").unlink()
    snapshot.rmdir()
    await until(lambda: snapshots.made == 1)
    await sink.close()
    assert found(snapshot) == (10, 10, 10)
    assert names(tmp_path) == ["d.duckdb", "s.duckdb"]


async def test_a_copy_needs_no_log_beside_it(tmp_path: Path) -> None:
    """However much was committed, the copy is one file that has all of it."""
    snapshot = tmp_path / "copies" / "s.duckdb"
    sink, snapshots = sink_with(tmp_path / "d.duckdb", snapshot, 0.01)
    await sink.open(STREAM)
    shard = await sink.acquire(0)
    await shard.write(outcome(0, 60_000))
    await shard.commit()
    made = snapshots.made
    await until(lambda: snapshots.made > made)
    assert names(snapshot.parent) == ["s.duckdb"]
    assert await asyncio.to_thread(found, snapshot) == (60_000, 60_000, 60_000)
    await sink.close()
