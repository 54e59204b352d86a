"""The DuckLake sink beyond the suites: snapshots, small commits, what is durable when, conflicts, other lakes."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import duckdb
import pyarrow as pa
import pytest

from connectors.duckdb.catalog import Binding
from connectors.ducklake import LakeDatabase, ledger
from connectors.ducklake.ledger import INLINED_ROWS_MAX, LakeLedger
from connectors.ducklake.reading import open_lake, read_positions, read_undelivered
from engine.batch import Stream
from engine.errors import InternalError, RecreatedTopic, ShardLost, SinkMismatch, SinkUnavailable
from engine.protocols import Counts, Outcome
from tests.unit.ducklake_world import STREAM, committed, data_files, failure, opened, outcome, read, sink_over

MANY = INLINED_ROWS_MAX + 1


async def test_every_snapshot_is_of_one_piece(tmp_path: Path) -> None:
    """At each version the rows are those before the position of that version: time travel knows its offsets."""
    path = tmp_path / "lake.duckdb"
    async with opened(path) as sink:
        shard = await sink.acquire(0)
        ends = [MANY, MANY + 3, MANY + 10, 3 * MANY]
        start = 0
        for end in ends:
            await committed(shard, outcome(start, end))
            start = end
    found = []
    with open_lake(path) as lake:
        versions = lake.execute("SELECT snapshot_id FROM ducklake_snapshots('lake') ORDER BY 1").fetchall()
        for (version,) in versions[-len(ends) :]:
            at = f"AT (VERSION => {version})"
            [(rows, last)] = lake.execute(f"SELECT count(*), max(id) + 1 FROM clicks {at}").fetchall()
            [(position,)] = lake.execute(f"SELECT next_offset FROM headrace.positions {at}").fetchall()
            assert rows == last == position
            found.append(position)
    assert found == ends


async def test_few_rows_make_no_file_and_many_make_one(tmp_path: Path) -> None:
    """A handful goes into the catalogue; a commit of more is one file; large values are always in a file."""
    path = tmp_path / "lake.duckdb"
    async with opened(path) as sink:
        shard = await sink.acquire(0)
        await committed(shard, outcome(0, INLINED_ROWS_MAX))
        assert data_files(path) == []
        await committed(shard, outcome(INLINED_ROWS_MAX, 300), outcome(300, 500))
        assert len(data_files(path)) == 1
        await committed(shard, outcome(500, 501, failures=[failure(500, b"x" * 70_000)], state=b"s" * 70_000))
        assert len(data_files(path)) == 3
        await committed(shard, outcome(501, 502, state=b"small"))
        assert (await sink.acquire(0)).state == b"small"
        assert len(data_files(path)) <= 3
    assert read(path, "SELECT count(*), count(DISTINCT id) FROM clicks") == [(501, 501)]


async def test_data_files_and_their_directories_are_flushed_before_the_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No snapshot names a file that a loss of power could take: file and directories first, then COMMIT."""
    flushed: list[str] = []

    def fsync(descriptor: int) -> None:
        flushed.append(str(Path(f"/proc/self/fd/{descriptor}").readlink()))
        os.fsync(descriptor)

    path = tmp_path / "lake.duckdb"
    phases: list[tuple[str, int]] = []
    database = LakeDatabase(path)
    database.ledger = LakeLedger(database.data_path, fsync=fsync)
    sink = sink_over(database, phase=lambda name: phases.append((name, len(flushed))))
    await sink.open(STREAM)
    shard = await sink.acquire(0)
    await committed(shard, outcome(0, MANY))
    [file] = data_files(path)
    first = list(flushed)
    assert first.index(str(file)) < first.index(str(file.parent)) < first.index(str(file.parent.parent))
    assert str(database.data_path) in first
    assert phases[-2:] == [("written", len(first)), ("committed", len(first))]
    await committed(shard, outcome(MANY, 2 * MANY))
    assert flushed[len(first) :] == [str((set(data_files(path)) - {file}).pop()), str(file.parent)]
    await committed(shard, outcome(2 * MANY, 2 * MANY + 1))
    assert len(flushed) == len(first) + 2
    # A clock that is set back does not make files look old.
    monkeypatch.setattr(ledger.time, "time", lambda: 0.0)
    before = len(flushed)
    await committed(shard, outcome(2 * MANY + 1, 4 * MANY))
    assert len(flushed) > before
    await sink.close()


async def test_without_the_owner_in_the_compare_and_set_a_zombie_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What moves without its owner being compared is not read back as that owner's, and goes no further."""
    path = tmp_path / "lake.duckdb"
    async with opened(path) as sink:
        zombie = await sink.acquire(0)
        await committed(zombie, outcome(0, 2))
        await sink.acquire(0)
        await zombie.write(outcome(2, 4))
        compared = "AND p.owner = m.owner "
        assert compared in ledger._COMPARE_AND_SET
        monkeypatch.setattr(ledger, "_COMPARE_AND_SET", ledger._COMPARE_AND_SET.replace(compared, ""))
        with pytest.raises(InternalError, match="1 positions were moved, 0 are read back"):
            await zombie.commit()
        monkeypatch.undo()
        with pytest.raises(ShardLost, match="position 2"):
            await zombie.commit()
    assert read(path, "SELECT count(*), max(next_offset) FROM clicks, headrace.positions") == [(2, 2)]


async def test_a_stale_position_is_lost(tmp_path: Path) -> None:
    """The position is compared as well as the owner."""
    path = tmp_path / "lake.duckdb"
    async with opened(path) as sink:
        shard = await sink.acquire(0)
        await committed(shard, outcome(0, 2))
        await sink.database.run(
            lambda connection: connection.execute("UPDATE headrace.positions SET next_offset = 3, handled = 3")
        )
        with pytest.raises(ShardLost, match="position 2"):
            await committed(shard, outcome(2, 4))
    assert read(path, "SELECT count(*) FROM clicks") == [(2,)]


async def test_a_loser_does_not_hold_up_the_others(tmp_path: Path) -> None:
    """Of shards that commit together the one that was taken is lost, and the other goes through."""
    path = tmp_path / "lake.duckdb"
    async with opened(path) as sink:
        loser, winner = await sink.acquire(0), await sink.acquire(1)
        await sink.acquire(0)
        await loser.write(outcome(0, 4))
        await winner.write(outcome(10, 13))
        results = await asyncio.gather(loser.commit(), winner.commit(), return_exceptions=True)
        assert isinstance(results[0], ShardLost)
        assert results[1] == 13
    assert read(path, "SELECT id FROM clicks ORDER BY id") == [(10,), (11,), (12,)]


async def test_a_transaction_that_meets_another_one_fails_whatever_it_wrote(tmp_path: Path) -> None:
    """Of two connections that take a shard for the first time at one moment one loses; no position is doubled."""
    path = tmp_path / "lake.duckdb"
    async with opened(path) as sink:
        rival = await sink.database.run(lambda connection: connection.cursor())
        rival.execute("USE lake")
        rival.execute("BEGIN")
        shard = sink._shard(0)

        def late(connection: duckdb.DuckDBPyConnection) -> None:
            sink.ledger.take_over(rival, shard, "rival", 0.0)
            sink.ledger.take_over(connection, shard, "late", 0.0)
            rival.execute("COMMIT")

        with pytest.raises(ShardLost, match="same time"):
            await sink.database.run(late)
        rival.close()
        assert (await sink.acquire(0)).position is None
    assert read(path, "SELECT count(*) FROM headrace.positions") == [(1,)]


async def test_a_damaged_position_is_found_on_takeover(tmp_path: Path) -> None:
    """Records that do not add up to the offsets stop the shard."""
    async with opened(tmp_path / "lake.duckdb") as sink:
        await committed(await sink.acquire(0), outcome(0, 4))
        await sink.database.run(lambda connection: connection.execute("UPDATE headrace.positions SET handled = 3"))
        with pytest.raises(Exception, match="damaged"):
            await sink.acquire(0)


async def test_delivered_failures_stay_below_a_mark(tmp_path: Path) -> None:
    """Marking writes no failure anew: the position says up to where they are delivered."""
    path = tmp_path / "lake.duckdb"
    async with opened(path) as sink:
        shard = await sink.acquire(0)
        await committed(shard, outcome(0, 6, failures=[failure(1), failure(4)]))
        await shard.delivered(2)
        await shard.delivered(1)
        assert [record.offset for record in (await shard.failures(9))[1]] == [4]
        assert (await shard.failures(9))[1] == [failure(4)]
    assert read(path, "SELECT count(*) FROM headrace.failures") == [(2,)]
    assert read(path, "SELECT delivered_before FROM headrace.positions") == [(2,)]


async def test_columns_that_a_lake_cannot_have_are_refused_by_name(tmp_path: Path) -> None:
    """DuckLake has no arrays of a fixed size: said when the schema is adopted, and nothing is adopted."""
    async with opened(tmp_path / "lake.duckdb") as sink:
        schema = pa.schema([("point", pa.list_(pa.float64(), 2))])
        with pytest.raises(SinkMismatch, match="point"):
            await sink.adopt_schema("rows", schema)
        assert await sink.schema("rows") is None


async def test_pipelines_share_a_lake_and_their_commits(tmp_path: Path) -> None:
    """Two tables of one lake move in one transaction, each with its own position."""
    path = tmp_path / "lake.duckdb"
    database = LakeDatabase(path)
    sinks = [sink_over(database, pipeline=name, table=f"s.{name}") for name in ("a", "b")]
    for sink in sinks:
        await sink.open(STREAM)
    shards = [await sink.acquire(0) for sink in sinks]
    for shard in shards:
        await shard.write(outcome(0, 3))
    await asyncio.gather(*(shard.commit() for shard in shards))
    assert database.statistics().lost == 0
    for sink in sinks:
        await sink.close()
    assert read(path, "SELECT (SELECT count(*) FROM s.a), (SELECT count(*) FROM s.b)") == [(3, 3)]


async def test_a_table_of_other_columns_is_refused(tmp_path: Path) -> None:
    """A table that somebody made is used where it fits and refused by column where it does not."""
    async with opened(tmp_path / "lake.duckdb") as sink:
        await sink.database.run(lambda connection: connection.execute("CREATE TABLE clicks (id VARCHAR)"))
        with pytest.raises(SinkMismatch, match="id: expected BIGINT, found VARCHAR"):
            await committed(await sink.acquire(0), outcome(0, 1))


async def test_a_full_disk_is_refused_and_the_commit_can_be_made_again(tmp_path: Path) -> None:
    """Where a data file cannot be made, the commit fails with the reason; with room it goes through, once."""
    path = tmp_path / "lake.duckdb"
    async with opened(path) as sink:
        shard = await sink.acquire(0)
        await committed(shard, outcome(0, MANY))
        tables = path.with_name(path.name + ".files") / "main" / "clicks"
        tables.rename(tmp_path / "away")
        tables.touch()
        await shard.write(outcome(MANY, 3 * MANY))
        with pytest.raises(SinkUnavailable, match="clicks") as refused:
            await shard.commit()
        assert refused.value.hint is not None
        tables.unlink()
        (tmp_path / "away").rename(tables)
        assert await shard.commit() == 3 * MANY
    assert read(path, "SELECT count(*), count(DISTINCT id) FROM clicks") == [(3 * MANY, 3 * MANY)]


async def test_rows_refused_by_their_table_cost_nothing_else(tmp_path: Path) -> None:
    """A table that was dropped behind the sink's back is named; the position stays."""
    async with opened(tmp_path / "lake.duckdb") as sink:
        shard = await sink.acquire(0)
        await committed(shard, outcome(0, 2))
        await sink.database.run(lambda connection: connection.execute("DROP TABLE clicks"))
        with pytest.raises(SinkMismatch, match="table clicks is gone"):
            await committed(shard, outcome(2, 4))
        assert await sink.position(0) == 2


async def test_a_topic_made_anew_is_found_by_who_only_reads(tmp_path: Path) -> None:
    """`read_positions` refuses what the sink would, and knows a lake of somebody else from none."""
    path = tmp_path / "lake.duckdb"
    binding = Binding("p", "clicks", "append", (), "")
    assert read_positions(path, binding, STREAM) == {0: None, 1: None}
    async with opened(path) as sink:
        await committed(await sink.acquire(0), outcome(5, 8, failures=[failure(6)]))
    assert read_positions(path, binding, STREAM) == {0: 8, 1: None}
    assert read_undelivered(path, "p", STREAM, 10) == [[failure(6)], []]
    assert read_positions(path, Binding("q", "other", "append", (), ""), STREAM) == {0: None, 1: None}
    with pytest.raises(SinkMismatch, match="pipeline 'p'"):
        read_positions(path, Binding("q", "clicks", "append", (), ""), STREAM)
    with pytest.raises(RecreatedTopic):
        read_positions(path, binding, Stream("cluster", "clicks", "id-2", 2))


async def test_rows_outlive_the_sink_in_any_form(tmp_path: Path) -> None:
    """Values that SQL text could harm are the same from the catalogue as from a file."""
    hard = ["a'b\"", "x\x00y", "NULL", "", None, "\u2028\\n{}[]"]
    rows = pa.table({"t": hard, "b": [b"\x00\xff'", b"", None, b"\\x41", b"'", bytes(range(256))]})
    path = tmp_path / "lake.duckdb"
    async with opened(path) as sink:
        shard = await sink.acquire(0)
        await committed(shard, Outcome(0, 6, rows, Counts(handled=6)))
        assert data_files(path) == []
    assert read(path, "SELECT * FROM clicks") == list(zip(*rows.to_pydict().values(), strict=True))
