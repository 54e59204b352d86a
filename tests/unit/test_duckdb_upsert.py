"""Upserts against an oracle that is a dict, deletes and late changes, refused rows, and real changes."""

from __future__ import annotations

import asyncio
import csv
import gzip
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from connectors.duckdb import Database, DuckDBSink
from engine.batch import Stream
from engine.clock import SystemClock
from engine.errors import RowsRefused, SinkMismatch
from engine.protocols import Counts, Outcome
from tests.forms import examples

STREAM = Stream("cluster", "changes", "id-1", 3)
DATA = Path(os.environ.get("HEADRACE_TEST_DATA", Path(__file__).parents[2] / "../shared/data"))
CHANGES = pa.schema(
    [
        ("k", pa.int64()),
        ("l", pa.string()),
        ("v", pa.string()),
        ("pos", pa.int64()),
        ("_deleted", pa.bool_()),
        ("_partition", pa.int32()),
        ("_offset", pa.int64()),
    ]
)

Change = tuple[int, str, int, bool | None]


def sink_over(database: Database, **options: Any) -> DuckDBSink:
    settings_ = {"pipeline": "p", "table": "t", "mode": "upsert", "key": ["k"], "clock": SystemClock(), **options}
    return DuckDBSink(database, **settings_)


def changes(partition: int, start: int, rows: Sequence[Change]) -> Outcome:
    """An outcome of ``(key, value, pos, deleted)`` rows at rising offsets."""
    table = pa.table(
        {
            "k": [row[0] for row in rows],
            "l": ["l"] * len(rows),
            "v": [row[1] for row in rows],
            "pos": [row[2] for row in rows],
            "_deleted": [row[3] for row in rows],
            "_partition": [partition] * len(rows),
            "_offset": list(range(start, start + len(rows))),
        },
        schema=CHANGES,
    )
    return Outcome(start, start + len(rows), table, Counts(handled=len(rows)))


async def upserted(path: Path, commits: Sequence[Sequence[Change]], **options: Any) -> list[tuple[Any, ...]]:
    """The table after one commit for each list of changes, of one partition."""
    sink = sink_over(Database(path, threads=1), **options)
    await sink.open(STREAM)
    shard, start = await sink.acquire(0), 0
    for rows in commits:
        await shard.write(changes(0, start, rows))
        await shard.commit()
        start += len(rows)
    await sink.close()
    return table_of(path)


def table_of(path: Path, sql: str = "SELECT k, v FROM t ORDER BY k") -> list[tuple[Any, ...]]:
    with duckdb.connect(path, read_only=True) as connection:
        return connection.execute(sql).fetchall()


async def test_the_last_of_a_batch_wins_and_the_rows_can_be_traced(tmp_path: Path) -> None:
    """Duplicates in one batch leave the last; the delete flag is no column, the trace columns are."""
    path = tmp_path / "t.db"
    rows = await upserted(path, [[(1, "a", 0, False), (2, "x", 0, None), (1, "b", 0, False)]])
    assert rows == [(1, "b"), (2, "x")]
    assert table_of(path, "SELECT * FROM t ORDER BY k") == [(1, "l", "b", 0, 0, 2), (2, "l", "x", 0, 0, 1)]


async def test_a_late_change_loses_against_the_table_and_against_a_delete(tmp_path: Path) -> None:
    """What is older by order_by changes nothing, whether the key is there or was deleted."""
    commits = [
        [(1, "new", 10, False), (2, "new", 10, False), (3, "new", 10, False)],
        [(2, "", 20, True)],
        [(1, "old", 9, False), (2, "old", 15, False), (3, "", 9, True)],
    ]
    assert await upserted(tmp_path / "t.db", commits, order_by="pos") == [(1, "new"), (3, "new")]


async def test_an_insert_after_a_delete_takes_the_tombstone_away(tmp_path: Path) -> None:
    """A later insert brings the key back; the side table then holds nothing of it."""
    path = tmp_path / "t.db"
    commits = [
        [(1, "a", 1, False)],
        [(1, "", 2, True), (7, "", 2, True)],
        [(1, "b", 3, False)],
        [(1, "c", 2, False)],
    ]
    assert await upserted(path, commits, order_by="pos") == [(1, "b")]
    assert table_of(path, "SELECT k, pos FROM headrace.deleted_t") == [(7, 2)]


async def test_a_key_that_changes_its_partition_goes_by_arrival(tmp_path: Path) -> None:
    """Offsets of two partitions are not compared: after partitions were added, the new ones win."""
    path = tmp_path / "t.db"
    sink = sink_over(Database(path))
    await sink.open(STREAM)
    first, second = await sink.acquire(0), await sink.acquire(1)
    await first.write(changes(0, 1000, [(1, "old", 0, False), (2, "old", 0, False)]))
    await first.commit()
    await second.write(changes(1, 0, [(1, "new", 0, False), (2, "", 0, True)]))
    await second.commit()
    await sink.close()
    assert table_of(path) == [(1, "new")]


async def test_shards_that_commit_together_merge_as_one(tmp_path: Path) -> None:
    """One key in the batches of several shards of one transaction ends as one row, the latest."""
    path = tmp_path / "t.db"
    sink = sink_over(Database(path), order_by="pos")
    await sink.open(STREAM)
    shards = [await sink.acquire(number) for number in range(3)]
    for number, shard in enumerate(shards):
        await shard.write(
            changes(number, 0, [(1, f"p{number}", [5, 9, 7][number], False), (10 + number, "x", 1, False)])
        )
    await asyncio.gather(*(shard.commit() for shard in shards))
    await sink.close()
    assert table_of(path) == [(1, "p1"), (10, "x"), (11, "x"), (12, "x")]


async def test_a_recreated_topic_wins_over_the_former_one(tmp_path: Path) -> None:
    """After a restart on a new topic id, low offsets are newer than the former topic's high ones."""
    path = tmp_path / "t.db"
    await upserted(path, [[(1, "a", 0, False), (2, "b", 0, False), (3, "c", 0, False), (3, "", 0, True)]])
    sink = sink_over(Database(path), on_recreated_topic="restart")
    await sink.open(Stream("cluster", "changes", "id-2", 3))
    shard = await sink.acquire(0)
    await shard.write(changes(0, 0, [(3, "again", 0, False), (1, "again", 0, False)]))
    await shard.commit()
    await sink.close()
    assert table_of(path, "SELECT k, v, _partition FROM t ORDER BY k") == [
        (1, "again", 0),
        (2, "b", -1),
        (3, "again", 0),
    ]


async def test_rows_without_a_key_are_refused_by_index_before_anything_is_taken(tmp_path: Path) -> None:
    """The error names the rows; the same offsets can be written again without them."""
    sink = sink_over(Database(tmp_path / "t.db"), key=["k", "l"], order_by="pos")
    await sink.open(STREAM)
    shard = await sink.acquire(0)
    good = changes(0, 0, [(1, "a", 1, False), (2, "b", 1, False), (3, "c", 1, False), (4, "d", 1, False)])
    assert good.rows is not None
    faulty = good.rows.set_column(0, "k", pa.array([1, None, 3, None])).set_column(
        3, "pos", pa.array([None, 1, 1, 1])
    )
    with pytest.raises(RowsRefused) as caught:
        await shard.write(Outcome(0, 4, faulty, good.counts))
    assert caught.value.rows == [0, 1, 3]
    assert shard.pending_bytes == 0
    assert shard.due_at() is None
    await shard.write(good)
    assert await shard.commit() == 4
    await sink.close()


@pytest.mark.parametrize(
    ("schema", "named"),
    [
        (pa.schema([("k", pa.int64())]), "no column _offset"),
        (pa.schema([("x", pa.int64()), ("_offset", pa.int64())]), "no column k"),
        (
            pa.schema([("k", pa.int64()), ("_offset", pa.int64()), ("_deleted", pa.string())]),
            "string, expected bool",
        ),
    ],
)
async def test_rows_that_cannot_be_merged_are_refused(tmp_path: Path, schema: pa.Schema, named: str) -> None:
    """A missing key or order column, or a delete flag that is no boolean, is a mismatch."""
    sink = sink_over(Database(tmp_path / "t.db"))
    await sink.open(STREAM)
    with pytest.raises(SinkMismatch, match=named):
        await sink.adopt_schema("rows", schema)
    await sink.close()


def oracle(rows: Sequence[Change]) -> list[tuple[int, str]]:
    """The table after the changes in their order of arrival: a change loses against a greater ``pos``."""
    latest: dict[int, tuple[int, bool, str]] = {}
    for key, value, pos, deleted in rows:
        if key not in latest or latest[key][0] <= pos:
            latest[key] = (pos, bool(deleted), value)
    return [(key, value) for key, (_, deleted, value) in sorted(latest.items()) if not deleted]


CHANGE = st.tuples(
    st.integers(0, 4), st.text("abc", max_size=2), st.integers(0, 8), st.sampled_from([True, False, None])
)


@settings(
    max_examples=examples(20, 400),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    derandomize=True,
)
@given(commits=st.lists(st.lists(CHANGE, min_size=1, max_size=6), min_size=1, max_size=6))
def test_any_changes_in_any_commits_equal_the_oracle(
    tmp_path_factory: pytest.TempPathFactory, commits: list[list[Change]]
) -> None:
    """Duplicates, deletes, ties and late arrivals, cut into commits anywhere, leave what a dict leaves."""
    path = tmp_path_factory.mktemp("oracle") / "t.db"
    found = asyncio.run(upserted(path, commits, order_by="pos"))
    assert found == oracle([change for rows in commits for change in rows])


SAMPLE = [
    {"op": "r", "before": None, "after": {"id": "1", "surface": "ASPH"}, "source": {"pos": 1}},
    {"op": "c", "before": None, "after": {"id": "2", "surface": "GRVL"}, "source": {"pos": 2}},
    {"op": "d", "before": {"id": "2", "surface": "GRVL"}, "after": None, "source": {"pos": 4}},
    {"op": "u", "before": None, "after": {"id": "2", "surface": "CON"}, "source": {"pos": 3}},
    {"op": "u", "before": None, "after": {"id": "1", "surface": "TURF"}, "source": {"pos": 5}},
]


async def upsert_envelopes(
    path: Path, envelopes: Sequence[dict[str, Any]], columns: Sequence[str], step: int
) -> None:
    """Upsert Debezium-shaped envelopes, ``step`` to a commit, over three shards by key."""
    sink = sink_over(Database(path), key=["id"], order_by="pos")
    await sink.open(STREAM)
    shards = [await sink.acquire(number) for number in range(3)]
    ends = [0, 0, 0]
    for first in range(0, len(envelopes), step):
        parts: list[list[dict[str, Any]]] = [[], [], []]
        for envelope in envelopes[first : first + step]:
            image = envelope["after"] or envelope["before"]
            number = int(image["id"]) % 3
            row = {name: image[name] for name in columns}
            row |= {"pos": envelope["source"]["pos"], "_deleted": envelope["op"] == "d"}
            row |= {"_partition": number, "_offset": ends[number] + len(parts[number])}
            parts[number].append(row)
        for number, rows in enumerate(parts):
            start, ends[number] = ends[number], ends[number] + len(rows)
            table = pa.Table.from_pylist(rows) if rows else None
            await shards[number].write(Outcome(start, ends[number], table, Counts(handled=len(rows))))
        await asyncio.gather(*(shard.commit() for shard in shards))
    await sink.close()


async def test_a_small_sample_of_change_events(tmp_path: Path) -> None:
    """Change events with a delete that overtook an update leave the live rows."""
    path = tmp_path / "t.db"
    await upsert_envelopes(path, SAMPLE, ["id", "surface"], 2)
    assert table_of(path, "SELECT id, surface FROM t") == [("1", "TURF")]


@pytest.mark.slow
@pytest.mark.skipif(not (DATA / "ourairports-runways-cdc").is_dir(), reason="needs the shared data")
async def test_real_changes_leave_the_published_table(tmp_path: Path) -> None:
    """170,675 changes of a real table, upserted in 35 commits, equal its last version row for row."""
    folder, path = DATA / "ourairports-runways-cdc", tmp_path / "t.db"

    def load() -> tuple[list[dict[str, Any]], list[list[str]]]:
        with gzip.open(folder / "runways.cdc.jsonl.gz", "rt") as lines:
            envelopes = [json.loads(line) for line in lines]
        with (folder / "runways.final.csv").open(newline="") as lines:
            return envelopes, list(csv.reader(lines))

    envelopes, (header, *expected) = await asyncio.to_thread(load)
    await upsert_envelopes(path, envelopes, header, 5_000)
    columns = ", ".join(f'"{name}"' for name in header)
    found = table_of(path, f"SELECT {columns} FROM t ORDER BY CAST(id AS BIGINT)")
    assert len(found) == 48_184
    assert found == [tuple(row) for row in sorted(expected, key=lambda row: int(row[0]))]
