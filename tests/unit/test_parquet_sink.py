"""What is particular to the Parquet sink: names, Hive partitions, rolling, readers' globs, log size, bad input."""

from __future__ import annotations

import asyncio
import errno
import glob
import json
import threading
from collections.abc import AsyncIterator, Callable
from datetime import UTC, date, datetime
from pathlib import Path

import duckdb
import polars as pl
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from connectors.parquet import OsFileSystem, ParquetShardWriter, ParquetSink
from connectors.parquet.layout import ShardLayout
from engine.batch import Stream
from engine.errors import ConfigError, InternalError, RecreatedTopic, RowsRefused, SinkMismatch, SinkUnavailable
from engine.protocols import Counts, FailedRecord, Outcome

STREAM = Stream("cluster", "clicks", "id", 2)


class HandClock:
    """A clock that stands still until a test moves it."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return 1_700_000_000.0 + self.now

    async def sleep(self, seconds: float) -> None:
        self.now += seconds


class Counting(OsFileSystem):
    """Counts the files that are read."""

    reads = 0

    def read(self, path: Path) -> bytes:
        self.reads += 1
        return super().read(path)


Make = Callable[..., ParquetSink]


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


@pytest.fixture
async def make(tmp_path: Path, clock: HandClock) -> AsyncIterator[Make]:
    sinks = []

    def make(**options: object) -> ParquetSink:
        sinks.append(ParquetSink(tmp_path / "out", **{"pipeline": "p", "clock": clock, **options}))  # type: ignore[arg-type]
        return sinks[-1]

    yield make
    for sink in sinks:
        await sink.close()


async def shard(sink: ParquetSink, stream: Stream = STREAM) -> ParquetShardWriter:
    await sink.open(stream)
    return await sink.acquire(0)


def outcome(start: int, rows: pa.Table | dict[str, list[object]]) -> Outcome:
    table = rows if isinstance(rows, pa.Table) else pa.table(rows)
    return Outcome(start, start + table.num_rows, table, Counts(handled=table.num_rows))


def public(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.glob("**/*.parquet"))


def names_in(path: Path) -> list[str]:
    return sorted(found.name for found in path.iterdir())


def rows_in(root: Path) -> list[int]:
    return sorted(i for name in public(root) for i in pq.ParquetFile(root / name).read()["i"].to_pylist())


def readers(root: Path) -> dict[str, Callable[[], list[int]]]:
    """The usual ways to read a directory of Parquet files."""
    pattern = f"{root}/**/*.parquet"
    return {
        "duckdb": lambda: [row[0] for row in duckdb.sql(f"SELECT i FROM '{pattern}'").fetchall()],
        "pyarrow": lambda: ds.dataset(root, format="parquet").to_table().column("i").to_pylist(),
        "polars": lambda: pl.scan_parquet(pattern).select("i").collect()["i"].to_list(),
        "python": lambda: [
            i
            for path in glob.glob(pattern, recursive=True, include_hidden=True)  # noqa: PTH207 - the glob people use
            for i in pq.read_table(path).column("i").to_pylist()
        ],
    }


@pytest.mark.slow
async def test_readers_see_only_committed_files_at_each_phase(make: Make, tmp_path: Path) -> None:
    """At every step of commits and takeovers the four usual globs give the committed rows and no others."""
    seen: dict[str, set[tuple[int, ...]]] = {}

    def look(phase: str) -> None:
        if public(tmp_path / "out"):
            for name, read in readers(tmp_path / "out").items():
                seen.setdefault(f"{phase} {name}", set()).add(tuple(sorted(read())))

    sink = make(phase=look, checkpoint_every=2, row_group_bytes_max=1)
    writer = await shard(sink)
    for start in (0, 2, 4):
        await writer.write(outcome(start, {"i": [start, start + 1]}))
        await writer.commit()
    await writer.write(outcome(6, {"i": [6, 7]}))
    await sink.acquire(0)
    before, after = {(0, 1), (0, 1, 2, 3)}, {(0, 1), (0, 1, 2, 3), (0, 1, 2, 3, 4, 5)}
    for name in readers(tmp_path):
        assert seen[f"staged {name}"] == seen[f"linked {name}"] == before
        assert seen[f"renamed {name}"] == after
        assert seen[f"staging {name}"] == after
        assert seen[f"recovering {name}"] == seen[f"recovered {name}"] == {(0, 1, 2, 3, 4, 5)}
    assert {phase.split()[0] for phase in seen} >= {"half-renamed", "checkpointed"}


NASTY = [
    "plain", "", ".", "..", "../../x", "/etc/passwd", "a\0b", "a%2Fb", "%", "a b", "é€😀", "x=y", "01", "A+B",
    "NULL", "null", "Null", "\\", "'", '"', "*?[a]", "\n", " ", "true", "2026-11-23", "x" * 200, None,
]  # fmt: skip


@pytest.mark.slow
async def test_hive_values_come_back_equal_in_each_reader(make: Make, tmp_path: Path) -> None:
    """Values that are no file names, empty ones and nulls are read back as they were, inside of the sink's path."""
    writer = await shard(make(partition_by=["k"]))
    rows = list(enumerate(NASTY))
    table = pa.table({"i": [i for i, _ in rows], "k": pa.array([k for _, k in rows], pa.string())})
    await writer.write(outcome(0, table))
    await writer.commit()
    root = tmp_path / "out"
    assert names_in(tmp_path) == ["out"]
    assert len(public(root)) == len(NASTY)
    pattern = f"{root}/**/*.parquet"
    partitioning = ds.partitioning(pa.schema([("k", pa.string())]), flavor="hive")
    got = {
        "duckdb": duckdb.sql(
            f"SELECT i, k FROM read_parquet('{pattern}', hive_partitioning = true, hive_types = {{'k': VARCHAR}})"
        ).fetchall(),
        "pyarrow": [
            (row["i"], row["k"])
            for row in ds.dataset(root, format="parquet", partitioning=partitioning).to_table().to_pylist()
        ],
        "polars": pl.scan_parquet(pattern, hive_partitioning=True, hive_schema={"k": pl.String})
        .select("i", "k").collect().rows(),
    }  # fmt: skip
    for name, values in got.items():
        assert sorted(values) == rows, name
    assert "k" not in pq.read_schema(root / public(root)[0]).names


async def test_hive_by_event_date_and_typed_columns(make: Make, tmp_path: Path) -> None:
    """Dates are UTC days and keep their column; integers, booleans and dates are plain text."""
    writer = await shard(make(partition_by=["date(_timestamp)", "n", "b", "d"]))
    moment = datetime(2026, 11, 23, 23, 59, 59, tzinfo=UTC)
    table = pa.table(
        {
            "_timestamp": pa.array([moment, moment.replace(month=1), None], pa.timestamp("ms", "Asia/Tokyo")),
            "n": pa.array([-1, None, 3], pa.int32()),
            "b": [True, False, None],
            "d": [date(2020, 2, 29), None, date(1969, 12, 31)],
            "i": [0, 1, 2],
        }
    )
    await writer.write(outcome(0, table))
    await writer.commit()
    null = "__HIVE_DEFAULT_PARTITION__"
    assert [str(Path(name).parent) for name in public(tmp_path / "out")] == [
        f"date=2026-01-23/n={null}/b=false/d={null}",
        "date=2026-11-23/n=-1/b=true/d=2020-02-29",
        f"date={null}/n=3/b={null}/d=1969-12-31",
    ]
    assert pq.read_schema(tmp_path / "out" / public(tmp_path / "out")[0]).names == ["_timestamp", "i"]


@pytest.mark.parametrize(
    ("values", "kind", "days"),
    [
        ([0, 86_399_999, 86_400_000, -1], pa.int64(), ["1970-01-01", "1970-01-01", "1970-01-02", "1969-12-31"]),
        ([0, -1, 5, 5], pa.timestamp("us"), ["1970-01-01", "1969-12-31", "1970-01-01", "1970-01-01"]),
    ],
)
async def test_dates_of_milliseconds(
    make: Make, tmp_path: Path, values: list[int], kind: pa.DataType, days: list[str]
) -> None:
    """``date()`` takes int64 milliseconds and timestamps of any unit, before 1970 too."""
    writer = await shard(make(partition_by=["date(at)"]))
    await writer.write(outcome(0, pa.table({"at": pa.array(values, kind), "i": list(range(4))})))
    await writer.commit()
    found = {}
    for name in public(tmp_path / "out"):
        table = pq.ParquetFile(tmp_path / "out" / name).read()
        found.update(dict.fromkeys(table.column("i").to_pylist(), name.split("/")[0].removeprefix("date=")))
    assert [found[i] for i in range(4)] == days


async def test_rows_keep_their_order_in_each_partition(make: Make, tmp_path: Path) -> None:
    """Splitting by partition does not reorder a shard's rows."""
    writer = await shard(make(partition_by=["k"], row_group_bytes_max=64))
    for start in range(0, 300, 100):
        table = pa.table({"k": [f"{i % 7}" for i in range(100)], "i": list(range(start, start + 100))})
        await writer.write(outcome(start, table))
    await writer.commit()
    total = 0
    for name in public(tmp_path / "out"):
        values = pq.ParquetFile(tmp_path / "out" / name).read().column("i").to_pylist()
        assert values == sorted(values)
        total += len(values)
    assert total == 300


async def test_rows_without_a_partition_are_named_before_anything_is_written(make: Make, tmp_path: Path) -> None:
    """Partitions beyond the bound, and values that no reader gives back, fail their rows; the rest is written."""
    writer = await shard(make(partition_by=["k"], hive_partitions_open_max=3))
    values = ["a", "b", "c", "d", "a", "__HIVE_DEFAULT_PARTITION__", "y" * 300, "e"]
    table = pa.table({"k": values, "i": list(range(8))})
    with pytest.raises(RowsRefused, match="hive_partitions_open_max = 3") as raised:
        await writer.write(outcome(0, table))
    assert list(raised.value.rows) == [3, 5, 6, 7]
    assert "null" in raised.value.reasons[1]
    assert "bytes" in raised.value.reasons[2]
    assert writer.due_at() is None
    kept = table.take([i for i in range(8) if i not in raised.value.rows])
    failures = [
        FailedRecord(0, i, 0, None, None, (), why, "RowRefused", 1)
        for i, why in zip(raised.value.rows, raised.value.reasons, strict=True)
    ]
    await writer.write(Outcome(0, 8, kept, Counts(handled=4, failed=4), failures))
    assert await writer.commit() == 8
    assert len(public(tmp_path / "out")) == 3


async def test_partitions_over_several_writes_stay_within_the_bound(make: Make, tmp_path: Path) -> None:
    """Writes that each fit never fail: files are closed to make room, and belong to the same commit."""
    writer = await shard(make(partition_by=["k"], hive_partitions_open_max=2))
    for start, keys in enumerate(["ab", "cd", "ab", "bc"]):
        await writer.write(outcome(start * 2, {"k": list(keys), "i": [start * 2, start * 2 + 1]}))
        assert len(list((tmp_path / "out").glob(".headrace/**/staging/*"))) <= 2 * (start + 1)
    assert public(tmp_path / "out") == []
    assert await writer.commit() == 8
    found = [
        i for n in public(tmp_path / "out") for i in pq.ParquetFile(tmp_path / "out" / n).read()["i"].to_pylist()
    ]
    assert sorted(found) == list(range(8))


async def test_a_commit_is_due_by_age_and_by_size(make: Make, clock: HandClock) -> None:
    """Due so many seconds after the first uncommitted write, or at once when enough bytes are staged."""
    writer = await shard(make(file_age_max_seconds=5.0, file_bytes_max=2_000, row_group_bytes_max=4_000))
    assert writer.due_at() is None
    await writer.write(outcome(0, {"s": ["x" * 100]}))
    clock.now += 3
    await writer.write(outcome(1, {"s": ["y" * 100]}))
    assert writer.due_at() == 105.0
    assert 0 < writer.pending_bytes < 4_000
    await writer.write(outcome(2, {"s": [str(hash(str(i))) * 10 for i in range(200)]}))
    assert writer.due_at() == clock.now
    assert writer.pending_bytes == 0
    await writer.commit()
    assert writer.due_at() is None


async def test_memory_is_bounded_over_many_partitions(make: Make) -> None:
    """Rows that wait for their row group never exceed the bound, however many files are open."""
    writer = await shard(make(partition_by=["k"], row_group_bytes_max=10_000))
    for start in range(0, 2_000, 100):
        table = pa.table({"k": [f"{i % 40}" for i in range(100)], "s": ["x" * 50] * 100})
        await writer.write(outcome(start, table))
        assert writer.pending_bytes <= 10_000
    assert await writer.commit() == 2_000


async def test_the_log_does_not_grow_with_the_run(make: Make, tmp_path: Path) -> None:
    """After many commits the log holds few files, and a position costs few reads."""
    files = Counting()
    sink = make(filesystem=files, checkpoint_every=8)
    writer = await shard(sink)
    worst = 0
    for start in range(100):
        await writer.write(Outcome(start, start + 1, None, Counts(filtered=1)))
        await writer.commit()
        files.reads = 0
        assert await sink.position(0) == start + 1
        worst = max(worst, files.reads)
    assert worst <= 9
    log = next((tmp_path / "out/.headrace").glob("topic-*/0/log"))
    assert len(list(log.iterdir())) <= 10
    assert list(log.parent.glob("staging/*")) == []


async def test_takeovers_alone_do_not_grow_the_log(make: Make, tmp_path: Path) -> None:
    """Rebalances without any commit leave few files too."""
    sink = make(checkpoint_every=8)
    await sink.open(STREAM)
    for _ in range(50):
        await (await sink.acquire(0)).release()
    assert len(list(next((tmp_path / "out/.headrace").glob("topic-*/0/log")).iterdir())) <= 10


async def test_delivered_failures_leave_no_files(make: Make, tmp_path: Path) -> None:
    """A failures file goes when all of it has been delivered, and outlives its manifest until then."""
    writer = await shard(make(checkpoint_every=1))
    record = FailedRecord(0, 0, 0, None, b"x", (), "why", "ValueError", 1)
    await writer.write(Outcome(0, 1, None, Counts(failed=1), [record]))
    await writer.commit()
    pattern = ".headrace/**/*.jsonl"
    assert len(list((tmp_path / "out").glob(pattern))) == 1
    mark, records = await writer.failures(5)
    assert list(records) == [record]
    await writer.delivered(mark)
    assert list((tmp_path / "out").glob(pattern)) == []


async def test_a_broken_log_is_not_continued(make: Make, tmp_path: Path) -> None:
    """A manifest that does not start where the last one ended stops the shard, by name."""
    sink = make()
    writer = await shard(sink)
    for start in (0, 1):
        await writer.write(Outcome(start, start + 1, None, Counts(filtered=1)))
        await writer.commit()
    path = sorted((tmp_path / "out/.headrace").glob("topic-*/0/log/*.json"))[-1]
    manifest = json.loads(path.read_bytes())
    path.write_text(json.dumps({**manifest, "start": 7, "end": 8}))
    with pytest.raises(InternalError, match="starts at 7, the one before ends at 1"):
        await sink.position(0)
    path.write_text("{")
    with pytest.raises(InternalError, match="torn"):
        await sink.acquire(0)


async def test_a_failure_after_the_link_is_not_a_lost_shard(make: Make, tmp_path: Path) -> None:
    """An owner's own manifest, linked by a commit that then failed, is no sign of another owner."""

    class Refusing(OsFileSystem):
        def rename(self, source: Path, target: Path) -> None:
            if target.suffix == ".parquet":
                raise FileNotFoundError(errno.ENOENT, "refused") if self.gone else OSError(errno.EIO, "refused")
            super().rename(source, target)

        gone = False

    for gone, message in ((False, "refused"), (True, "attempts to publish")):
        files = Refusing()
        files.gone = gone
        writer = await shard(make(filesystem=files))
        start = writer.position or 0
        await writer.write(outcome(start, {"i": [start]}))
        with pytest.raises(SinkUnavailable, match=message):
            await writer.commit()
        assert (await shard(make())).position == start + 1
    assert rows_in(tmp_path / "out") == [0, 1]


async def test_a_link_that_succeeded_and_says_it_did_not_is_a_commit(make: Make, tmp_path: Path) -> None:
    """A network file system may repeat a link: a taken name that holds the owner's own manifest is success."""

    class Repeating(OsFileSystem):
        def link(self, source: Path, target: Path) -> None:
            super().link(source, target)
            raise FileExistsError(errno.EEXIST, "File exists", str(target))

    writer = await shard(make(filesystem=Repeating()))
    await writer.write(outcome(0, {"i": [0]}))
    assert await writer.commit() == 1
    assert len(public(tmp_path / "out")) == 1


async def test_a_cancelled_commit_is_waited_for_by_release(make: Make, tmp_path: Path) -> None:
    """A commit goes on in its thread when its caller is cancelled; release returns only after it."""
    linking, go_on = threading.Event(), threading.Event()

    class Slow(OsFileSystem):
        def link(self, source: Path, target: Path) -> None:
            if target.name.startswith(f"{2:020d}"):
                linking.set()
                assert go_on.wait(30)
            super().link(source, target)

    sink = make(filesystem=Slow())
    writer = await shard(sink)
    await writer.write(outcome(0, {"i": [0]}))
    commit = asyncio.ensure_future(writer.commit())
    await asyncio.to_thread(linking.wait, 30)
    commit.cancel()
    release = asyncio.ensure_future(writer.release())
    done, _ = await asyncio.wait([release], timeout=0.05)
    assert not done
    assert public(tmp_path / "out") == []
    go_on.set()
    await release
    assert commit.cancelled()
    assert await sink.position(0) == 1
    assert len(public(tmp_path / "out")) == 1
    with pytest.raises(InternalError, match="released"):
        await writer.commit()


async def test_a_restart_publishes_what_the_old_topic_had_committed(make: Make, tmp_path: Path) -> None:
    """A commit that was linked and not yet renamed when its topic was made anew is not lost."""

    def die(phase: str) -> None:
        if phase == "linked":
            raise RuntimeError("died")

    writer = await shard(make(phase=die))
    await writer.write(outcome(0, {"i": [0]}))
    with pytest.raises(RuntimeError, match="died"):
        await writer.commit()
    assert public(tmp_path / "out") == []
    again = make(on_recreated_topic="restart")
    writer = await shard(again, Stream("cluster", "clicks", "id-2", 1))
    assert len(public(tmp_path / "out")) == 1
    await writer.write(outcome(0, {"i": [0]}))
    await writer.commit()
    assert len(public(tmp_path / "out")) == 2
    with pytest.raises(RecreatedTopic):
        await make(on_recreated_topic="restart").open(STREAM)


async def test_of_two_that_bind_a_new_sink_at_once_one_is_refused(make: Make) -> None:
    """Two pipelines that open the same empty path at the same time do not share it."""
    results = await asyncio.gather(
        *(make(pipeline=name).open(STREAM) for name in ("one", "two")), return_exceptions=True
    )
    assert sorted(type(result).__name__ for result in results) == ["NoneType", "SinkMismatch"]


async def test_a_schema_that_changed_between_runs_is_the_users_to_mend(make: Make) -> None:
    """Rows of another schema than an earlier process left are a SinkMismatch that names the column."""
    writer = await shard(make())
    await writer.write(outcome(0, {"i": [0]}))
    await writer.commit()
    writer = await shard(make())
    with pytest.raises(SinkMismatch, match="'i' is string, not int64"):
        await writer.write(outcome(1, {"i": ["0"]}))


async def test_a_path_that_is_a_file(tmp_path: Path, clock: HandClock) -> None:
    """A path that is no directory is SinkUnavailable with the path and what to do."""
    (tmp_path / "out").write_text("")
    with pytest.raises(SinkUnavailable, match=r"out.*") as raised:
        await ParquetSink(tmp_path / "out", pipeline="p", clock=clock).open(STREAM)
    assert "directory" in (raised.value.hint or "")


async def test_a_path_that_is_not_writable(tmp_path: Path, clock: HandClock) -> None:
    """Missing permission is SinkUnavailable with the path and what to do."""

    class Forbidden(OsFileSystem):
        def make_directory(self, path: Path) -> None:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))

    with pytest.raises(SinkUnavailable, match="Permission denied") as raised:
        await ParquetSink(tmp_path / "out", pipeline="p", clock=clock, filesystem=Forbidden()).open(STREAM)
    assert "permission" in (raised.value.hint or "")


@pytest.mark.parametrize(
    ("partition_by", "message"),
    [
        (["nope"], "no column 'nope'"),
        (["f"], "double"),
        (["date(s)"], "string"),
        (["s", "i", "f"], "valid are"),
        (["date(date)"], "column of that name"),
    ],
)
async def test_partition_keys_that_do_not_fit_the_rows(make: Make, partition_by: list[str], message: str) -> None:
    """Keys that name no column, or one of the wrong type, are a ConfigError and adopt no schema."""
    sink = make(partition_by=partition_by)
    writer = await shard(sink)
    rows = pa.table({"s": ["a"], "i": [1], "f": [0.5], "date": [date(2026, 1, 1)]})
    with pytest.raises(ConfigError, match=message):
        await writer.write(outcome(0, rows))
    assert await sink.schema("rows") is None


def test_settings_are_checked_all_at_once(tmp_path: Path, clock: HandClock) -> None:
    """Every setting that is none is reported, with its value."""
    with pytest.raises(ConfigError) as raised:
        ParquetSink(tmp_path, pipeline="p", clock=clock, file_bytes_max=0, compression="rar")
    assert len(raised.value.faults) == 2
    with pytest.raises(ConfigError, match="twice"):
        ParquetSink(tmp_path, pipeline="p", clock=clock, partition_by=["a", "a"])


@pytest.mark.parametrize("topic", ["clicks", ".hidden", "_private", "a" * 249])
def test_public_names_are_visible_and_fit(topic: str) -> None:
    """Any legal topic gives a name that readers do not skip and that a file system takes."""
    stem = ShardLayout(Path("/"), topic, "id", 2**31 - 1).public_stem(2**63 - 2, 2**63 - 1, 2**40)
    assert stem[0] not in "._"
    assert len(f"{stem}-1000000.parquet") <= 255
