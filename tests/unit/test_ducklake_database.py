"""A lake between processes: standby and takeover, full disks, what lies where a lake should be, and readers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import duckdb
import pytest

from connectors.analysis.extensions import extension_path
from connectors.duckdb.serving import ServingSettings
from connectors.ducklake import LakeDatabase
from connectors.ducklake.reading import is_lake, open_lake
from connectors.query import ask, open_database
from engine.errors import SinkMismatch, SinkUnavailable, UserError
from tests.unit.ducklake_world import STREAM, committed, data_files, opened, outcome, read, sink_over

ROOT = Path(__file__).parents[2]

# A process that fills its disk (a limit on the size of files) and then gets room again.
FULL_DISK = """
import asyncio, random, resource, signal, sys
import pyarrow as pa
from connectors.ducklake import DuckLakeSink, LakeDatabase
from engine.batch import Stream
from engine.clock import SystemClock
from engine.errors import ShardLost, SinkUnavailable
from engine.protocols import Counts, Outcome

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
grows = int(sys.argv[2])

async def main():
    sink = DuckLakeSink(LakeDatabase(sys.argv[1]), pipeline="p", table="clicks", clock=SystemClock())
    await sink.open(Stream("cluster", "clicks", "id-1", 2))
    shard = await sink.acquire(0)
    start = 0
    resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, resource.RLIM_INFINITY))
    step = 90
    try:
        while True:
            text = [random.randbytes(250).hex() for _ in range(step)]
            rows = pa.table({"id": list(range(start, start + step)), "text": text})
            await shard.write(Outcome(start, start + step, rows, Counts(handled=step)))
            start = await shard.commit()
            step += grows
    except SinkUnavailable as error:
        print("refused", error.message.replace(chr(10), " "), flush=True)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    try:
        print("retried", await shard.commit() == start + step, flush=True)
    except ShardLost:
        shard = await sink.acquire(0)
        print("retried", shard.position == start + step, flush=True)
    await sink.close()

asyncio.run(main())
"""

HOLDER = """
import asyncio, sys
from connectors.ducklake import LakeDatabase

async def main():
    database = LakeDatabase(sys.argv[1])
    await database.open()
    print("held", flush=True)
    sys.stdin.read()

asyncio.run(main())
"""


def start(code: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


async def test_a_standby_waits_for_the_lake_and_is_named_the_holder(tmp_path: Path) -> None:
    """While a process has it, others wait, with a bound as asked; a kill hands it over within two seconds."""
    path = tmp_path / "lake.duckdb"
    holder = start(HOLDER, str(path))
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(SinkUnavailable, match=f"process {holder.pid}"):
            await LakeDatabase(path, lock_wait_seconds_max=0).open()
        with pytest.raises(SinkUnavailable, match=f"process {holder.pid}"), open_lake(path):
            pass
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.communicate()
    died = time.monotonic()
    database = LakeDatabase(path, lock_wait_seconds_max=10)
    await database.open()
    assert time.monotonic() - died < 2
    await database.close()


@pytest.mark.slow
@pytest.mark.parametrize("grows", [0, 40], ids=["the catalogue", "a data file"])
def test_a_full_disk_is_refused_and_the_commit_can_be_made_again(tmp_path: Path, grows: int) -> None:
    """Where the disk takes no more, the commit fails with the reason; with room it goes through, once."""
    path = tmp_path / "lake.duckdb"
    process = start(FULL_DISK, str(path), str(grows))
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    refused, retried = output.splitlines()
    assert refused.startswith("refused")
    assert "clicks" in refused or path.name in refused
    assert retried == "retried True"
    [(rows, distinct, position)] = read(
        path, "SELECT count(*), count(DISTINCT id), any_value(next_offset) FROM clicks, headrace.positions"
    )
    assert rows == distinct == position
    assert isinstance(rows, int)
    assert rows > 0


async def test_what_was_cut_off_goes_when_the_lake_is_opened(tmp_path: Path) -> None:
    """A data file of a transaction that never ended is removed; those of snapshots stay."""
    path = tmp_path / "lake.duckdb"
    async with opened(path) as sink:
        await committed(await sink.acquire(0), outcome(0, 500))
    [file] = data_files(path)
    orphan = file.with_name("ducklake-01a20b1d-6d8e-79ef-ab99-fcac01586480.parquet")
    orphan.write_bytes(file.read_bytes())
    async with opened(path):
        pass
    assert data_files(path) == [file]


async def test_a_directory_of_another_lake_is_refused(tmp_path: Path) -> None:
    """Two lakes in one directory would remove each other's files as cut off: the second one is not made."""
    files = tmp_path / "files"
    first = LakeDatabase(tmp_path / "first.duckdb", files)
    await first.open()
    with pytest.raises(SinkMismatch, match=r"of the lake .*first\.duckdb"):
        await LakeDatabase(tmp_path / "second.duckdb", files).open()
    await first.close()
    first.path.unlink()
    await LakeDatabase(tmp_path / "second.duckdb", files).open()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "a.parquet").touch()
    with pytest.raises(SinkMismatch, match="has files already"):
        await LakeDatabase(tmp_path / "third.duckdb", tmp_path / "mine").open()
    assert not (tmp_path / "third.duckdb").exists()
    assert (tmp_path / "mine" / "a.parquet").exists()


async def test_files_that_an_older_snapshot_needs_are_not_cut_off(tmp_path: Path) -> None:
    """After a merge the merged files are no orphans: an opening leaves them, and older versions can be asked."""
    path = tmp_path / "lake.duckdb"
    async with opened(path) as sink:
        shard = await sink.acquire(0)
        for start in range(0, 600, 200):
            await committed(shard, outcome(start, start + 200))
    with duckdb.connect() as connection:
        connection.execute(f"LOAD '{extension_path('ducklake')}'")
        connection.execute(f"ATTACH 'ducklake:{path}' AS lake")
        [(last,)] = connection.execute("SELECT max(snapshot_id) FROM ducklake_snapshots('lake')").fetchall()
        connection.execute("CALL ducklake_merge_adjacent_files('lake')")
    async with opened(path):
        pass
    with open_lake(path) as lake:
        for version, rows in ((last - 2, 200), (last - 1, 400), (last, 600)):
            assert lake.execute(f"SELECT count(*) FROM clicks AT (VERSION => {version})").fetchall() == [(rows,)]
        assert lake.execute("SELECT count(*) FROM clicks").fetchall() == [(600,)]


async def test_what_is_no_lake_is_refused_and_left_alone(tmp_path: Path) -> None:
    """A file of something else, a DuckDB file, files elsewhere, and places that cannot be are named."""
    (tmp_path / "text.duckdb").write_text("no database " * 1000)
    with pytest.raises(SinkUnavailable, match="not a valid DuckDB"):
        await LakeDatabase(tmp_path / "text.duckdb").open()
    plain = tmp_path / "plain.duckdb"
    with duckdb.connect(plain) as connection:
        connection.execute("CREATE TABLE mine (a INTEGER)")
    with pytest.raises(SinkMismatch, match="no DuckLake catalogue"):
        await LakeDatabase(plain).open()
    with duckdb.connect(plain) as connection:
        assert connection.execute("SELECT table_name FROM duckdb_tables()").fetchall() == [("mine",)]
    path = tmp_path / "lake.duckdb"
    async with opened(path):
        with pytest.raises(SinkUnavailable, match="open in this process already"):
            await LakeDatabase(path).open()
    with pytest.raises(SinkMismatch, match="elsewhere"):
        await LakeDatabase(path, tmp_path / "other").open()
    for place in (tmp_path / "text.duckdb" / "lake.duckdb", Path("/proc/headrace/lake.duckdb")):
        with pytest.raises(SinkUnavailable, match="cannot be made") as refused:
            await LakeDatabase(place).open()
        assert refused.value.hint is not None
    with pytest.raises(UserError, match="no DuckLake catalogue"), open_lake(tmp_path / "nothing"):
        pass


async def test_a_later_format_is_refused(tmp_path: Path) -> None:
    """A lake of a later headrace is not touched."""
    path = tmp_path / "lake.duckdb"
    async with opened(path) as sink:
        await sink.database.run(lambda connection: connection.execute("UPDATE headrace.format SET version = 99"))
    with pytest.raises(SinkMismatch, match="format 99"):
        await LakeDatabase(path).open()


async def test_a_lake_that_somebody_made_is_used(tmp_path: Path) -> None:
    """A lake with tables of others takes headrace's beside them."""
    path = tmp_path / "lake.duckdb"
    with duckdb.connect() as connection:
        connection.execute(f"LOAD '{extension_path('ducklake')}'")
        connection.execute(f"ATTACH 'ducklake:{path}' AS mine (DATA_PATH '{path}.files')")
        connection.execute("CREATE TABLE mine.theirs AS SELECT 1 AS a")
    stranger = path.with_name(path.name + ".files") / "stranger.parquet"
    stranger.touch()
    async with opened(path) as sink:
        await committed(await sink.acquire(0), outcome(0, 2))
    assert read(path, "SELECT (SELECT count(*) FROM clicks), (SELECT a FROM theirs)") == [(2, 1)]
    assert stranger.exists(), "only what headrace made is tidied"


async def test_readers_in_the_process_see_whole_snapshots_and_stay_confined(tmp_path: Path) -> None:
    """A lent cursor has the lake as its catalogue, sees commits, travels in time, and reaches no other file."""
    path = tmp_path / "lake.duckdb"
    (tmp_path.parent / "secret.csv").write_text("a\n1\n")
    database = LakeDatabase(path, confined=True)
    sink = sink_over(database)
    await sink.open(STREAM)
    shard = await sink.acquire(0)
    await committed(shard, outcome(0, 3))
    with database.lending.cursor() as reader:
        [(version,)] = reader.execute("SELECT max(snapshot_id) FROM ducklake_snapshots('lake')").fetchall()
        await committed(shard, outcome(3, 500))
        assert reader.execute("SELECT count(*) FROM clicks").fetchall() == [(500,)]
        assert reader.execute(f"SELECT count(*) FROM clicks AT (VERSION => {version})").fetchall() == [(3,)]
        with pytest.raises(duckdb.PermissionException):
            reader.execute(f"FROM read_csv('{tmp_path.parent / 'secret.csv'}')")
    await committed(shard, outcome(500, 501))
    await sink.close()


async def test_a_lake_is_served_like_a_duckdb_file(tmp_path: Path) -> None:
    """A client of another instance asks the engine's lake while it writes."""
    path = tmp_path / "lake.duckdb"
    database = LakeDatabase(path, serving=ServingSettings())
    sink = sink_over(database)
    await sink.open(STREAM)
    shard = await sink.acquire(0)
    await committed(shard, outcome(0, 500))
    assert database.server is not None
    assert database.server.uri is not None
    code = (
        "import duckdb, sys; c = duckdb.connect(); [c.execute(f\"LOAD '{p}'\") for p in sys.argv[3:]];"
        "c.execute(f\"ATTACH '{sys.argv[1]}' AS r (TOKEN '{sys.argv[2]}')\");"
        "print(c.execute(\"FROM r.query('SELECT count(*) FROM clicks')\").fetchall())"
    )
    process = start(
        code, database.server.uri, database.server.token, *(str(extension_path(n)) for n in ("httpfs", "quack"))
    )
    output, _ = process.communicate(timeout=30)
    await committed(shard, outcome(500, 510))
    await sink.close()
    assert output == "[(500,)]\n"


async def test_a_lake_is_asked_like_a_file(tmp_path: Path) -> None:
    """With no engine, `ask` of the query command reads the lake, travels in time, and reaches nothing else."""
    path = tmp_path / "lake.duckdb"
    async with opened(path) as sink:
        shard = await sink.acquire(0)
        await committed(shard, outcome(0, 300))
        await committed(shard, outcome(300, 310))
    with duckdb.connect(path, read_only=True) as plain:
        assert is_lake(plain)
    with open_database(path) as lake:
        assert not is_lake(lake)
        [(last,)] = lake.execute("SELECT max(snapshot_id) FROM ducklake_snapshots('lake')").fetchall()
        for text, expected in (("FROM clicks", "310"), (f"FROM clicks AT (VERSION => {last - 1})", "300")):
            answer = ask(lake, f"SELECT count(*) {text}", "text")
            assert [row for piece in answer.rows for row in piece] == [(expected,)]
        with pytest.raises(UserError):
            ask(lake, "DELETE FROM clicks", "text")
        with pytest.raises(duckdb.Error):
            lake.execute("DELETE FROM clicks")
        with pytest.raises(duckdb.Error):
            lake.execute(f"FROM read_csv('{tmp_path.parent}/secret.csv')")
        with pytest.raises(duckdb.Error):
            lake.execute("SET enable_external_access = true")


def test_one_lake_by_two_paths_is_one_path(tmp_path: Path) -> None:
    """Paths are resolved, so that pipelines that write to one lake share it."""
    (tmp_path / "link").symlink_to(tmp_path)
    assert LakeDatabase(tmp_path / "link" / "a").path == LakeDatabase(tmp_path / "a").path
    assert LakeDatabase(tmp_path / "a").data_path == tmp_path.resolve() / "a.files"
    assert os.fspath(LakeDatabase(tmp_path / "a", tmp_path / "b").data_path) == os.fspath(tmp_path.resolve() / "b")
