"""The view beside a Parquet sink's files: its columns, its Hive partitions, its names, and its readers."""

from __future__ import annotations

import datetime as dt
import logging
from pathlib import Path

import duckdb
import polars as pl
import pyarrow as pa
import pyarrow.dataset as ds
import pytest

from connectors.parquet import OsFileSystem
from connectors.parquet.files import Directories
from connectors.parquet.joined import Record, RecordLog
from connectors.parquet.live import live_files
from connectors.parquet.view import publish_view
from engine.protocols import Counts, Outcome
from tests.unit.test_parquet_sink import STREAM, Make, clock, make, outcome, shard

__all__ = ["clock", "make"]  # fixtures


def opened(root: Path) -> duckdb.DuckDBPyConnection:
    return duckdb.connect(root / "headrace.duckdb", read_only=True)


async def test_a_sink_without_a_commit_has_no_rows_and_its_columns(make: Make, tmp_path: Path) -> None:
    """The view is there as soon as the schema is, and one connection reads before, between and after commits."""
    root = tmp_path / "out"
    sink = make(pipeline="page clicks")
    await sink.open(STREAM)
    await sink.adopt_schema("rows", pa.schema([("i", pa.int64()), ("filename", pa.string())]))
    with opened(root) as reader:
        assert reader.sql("FROM data").columns == ["i", "filename"]
        assert reader.sql('SELECT count(*) FROM "page clicks"').fetchall() == [(0,)]
        writer = await sink.acquire(0)
        await writer.write(outcome(0, {"i": [0, 1], "filename": ["a", "b"]}))
        assert reader.sql("FROM data").fetchall() == []
        await writer.commit()
        assert reader.sql("FROM data").fetchall() == [(0, "a"), (1, "b")]


async def test_hive_partitions_are_columns_of_their_own_type(make: Make, tmp_path: Path) -> None:
    """Partition columns stand where the schema has them, date() behind; every value and null comes back."""
    schema = pa.schema(
        [("day", pa.date32()), ("i", pa.int64()), ("n", pa.int32()), ("s", pa.string()), ("ts", pa.int64())]
    )
    rows = pa.Table.from_pylist(
        [
            {"day": dt.date(2026, 1, 2), "i": 0, "n": 7, "s": "a/b=c", "ts": 0},
            {"day": None, "i": 1, "n": None, "s": None, "ts": 86_400_000},
            {"day": dt.date(2026, 1, 2), "i": 2, "n": -1, "s": "x.parquet", "ts": 0},
        ],
        schema,
    )
    sink = make(partition_by=["day", "n", "s", "date(ts)"])
    writer = await shard(sink)
    await writer.write(Outcome(0, 3, rows, Counts(handled=3)))
    await writer.commit()
    with opened(tmp_path / "out") as reader:
        found = reader.sql("FROM data ORDER BY i")
        assert found.columns == ["day", "i", "n", "s", "ts", "date"]
        assert [str(kind) for kind in found.types] == ["DATE", "BIGINT", "BIGINT", "VARCHAR", "BIGINT", "DATE"]
        assert [row[:5] for row in found.fetchall()] == [tuple(row.values()) for row in rows.to_pylist()]
        assert reader.sql("SELECT DISTINCT date FROM data ORDER BY 1").fetchall() == [
            (dt.date(1970, 1, 1),),
            (dt.date(1970, 1, 2),),
        ]
        plan = reader.sql("EXPLAIN ANALYZE SELECT i FROM data WHERE s = 'a/b=c'").fetchall()[0][1]
        assert "Total Files Read: 1" in plan


async def test_the_records_are_read_once_for_each_look_at_the_view(make: Make, tmp_path: Path) -> None:
    """What is hidden and what is visible come from one reading: two would let a compaction slip in between."""
    writer = await shard(make())
    await writer.write(outcome(0, {"i": [0]}))
    await writer.commit()
    with opened(tmp_path / "out") as reader:
        for sql in ("FROM data", "SELECT count(*) FROM data WHERE i > 1", "SELECT max(i) FROM (FROM data LIMIT 3)"):
            plan = reader.sql(f"EXPLAIN ANALYZE {sql}").fetchall()[0][1]
            assert plan.count("READ_JSON") == 1, plan


async def test_a_prepared_statement_sees_later_commits(make: Make, tmp_path: Path) -> None:
    """DuckDB looks for files anew each time that a prepared statement is executed."""
    writer = await shard(make())
    await writer.write(outcome(0, {"i": [0]}))
    await writer.commit()
    with opened(tmp_path / "out") as reader:
        reader.execute("PREPARE counted AS SELECT count(*) FROM data")
        for start in (1, 2):
            await writer.write(outcome(start, {"i": [start]}))
            await writer.commit()
            assert reader.execute("EXECUTE counted").fetchall() == [(start + 1,)]


async def test_a_directory_with_marks_of_patterns_and_quotes(tmp_path: Path) -> None:
    """A root's name is taken as it is."""
    root = tmp_path / 'it\'s [a] *wild?* {place} "ü"'
    log = RecordLog(OsFileSystem(), root, Directories(OsFileSystem(), root))
    log.prepare()
    (root / ".headrace" / "temporary").mkdir(exist_ok=True)
    schema = pa.schema([("i", pa.int64())])
    pa.parquet.write_table(pa.table({"i": [5]}), root / "t-0-00000000000000000000-00000000000000000001-2.parquet")
    assert publish_view(OsFileSystem(), Directories(OsFileSystem(), root), root, 'p"q', schema, ())
    with opened(root) as reader:
        assert reader.sql('FROM "p""q"').fetchall() == [(5,)]


async def test_the_view_is_made_anew_only_when_it_changes(make: Make, tmp_path: Path) -> None:
    """Another run leaves the file; a directory that was moved gets one for where it is now."""
    root = tmp_path / "out"
    inodes = []
    for start in (0, 1):
        writer = await shard(make())
        await writer.write(outcome(start, {"i": [start]}))
        await writer.commit()
        inodes.append((root / "headrace.duckdb").stat().st_ino)
    assert inodes[0] == inodes[1]
    moved = tmp_path / "moved"
    root.rename(moved)
    (tmp_path / "out").symlink_to(moved)
    await shard(make())
    with opened(moved) as reader:
        assert reader.sql("SELECT count(*) FROM data").fetchall() == [(2,)]


async def test_a_sink_goes_on_without_a_view(
    make: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What DuckDB cannot do is warned of, once, and rows are committed."""
    monkeypatch.setattr("connectors.parquet.view.view_sql", lambda *_: "SELECT nonsense")
    with caplog.at_level(logging.WARNING, logger="headrace.parquet"):
        writer = await shard(make())
        await writer.write(outcome(0, {"i": [0]}))
        assert await writer.commit() == 1
    assert caplog.text.count("headrace.duckdb is not there for readers") == 1
    assert not (tmp_path / "out" / "headrace.duckdb").exists()


async def test_directory_readers_take_the_view_for_a_file_without_rows(make: Make, tmp_path: Path) -> None:
    """pyarrow, which reads every file in a directory, finds the rows alone; polars reads what is live."""
    writer = await shard(make())
    await writer.write(outcome(0, {"i": [0, 1]}))
    await writer.commit()
    root = tmp_path / "out"
    assert (root / "headrace.duckdb").exists()
    assert ds.dataset(root, format="parquet").to_table()["i"].to_pylist() == [0, 1]
    assert pl.read_parquet(live_files(root))["i"].to_list() == [0, 1]


def test_live_files_of_what_is_no_sink(tmp_path: Path) -> None:
    """Every public file counts where there is no record of compactions; hidden ones never do."""
    for name in ("b.parquet", "x=1/a.parquet", ".hidden/c.parquet", ".d.parquet", "e.csv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert live_files(tmp_path) == [tmp_path / "b.parquet", tmp_path / "x=1/a.parquet"]


def test_a_record_survives_its_file() -> None:
    """A first record is a head alone."""
    assert Record(1).hidden(0) == frozenset()
