"""Compaction of real Parquet files: what is chosen, what comes out, who sees what, and the command."""

from __future__ import annotations

import asyncio
import fcntl
import itertools
import json
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from connectors.parquet import OsFileSystem, ParquetSink
from connectors.parquet.compaction import AHEAD_SECONDS, LOOK_SECONDS, READ_SECONDS_MAX
from connectors.parquet.compactor import Compactor
from connectors.parquet.files import StagedFile
from connectors.parquet.join import ParquetJoiner, Unjoinable
from connectors.parquet.joined import Entry, Record, Retired, load_record
from connectors.parquet.layout import parse_public
from connectors.parquet.live import live_files
from connectors.parquet.plan import GROUP_FILES_MAX, PublicFile, Rules, groups
from engine.cli.main import call
from engine.compose.compact import background
from engine.config_sinks import ParquetSinkConfig
from tests.unit.test_parquet_sink import HandClock, Make, clock, make, outcome, public, shard

__all__ = ["clock", "make"]  # fixtures

RETIRED_SECONDS = 60.0


def compactor(root: Path, clock: HandClock, **options: object) -> Compactor:
    given = {
        "file_bytes_target": 1 << 20,
        "files_min": 3,
        "interval_seconds": 1,
        "retired_seconds_min": RETIRED_SECONDS,
    }
    return Compactor(root, clock=clock, **{**given, **options})  # type: ignore[arg-type]


async def committed(sink: ParquetSink, commits: int, *, columns: Callable[[int], dict[str, list[object]]]) -> None:
    writer = await shard(sink)
    for start in range(writer.position or 0, (writer.position or 0) + 2 * commits, 2):
        await writer.write(outcome(start, columns(start)))
        await writer.commit()


def plain(start: int) -> dict[str, list[object]]:
    return {"i": [start, start + 1]}


def hive(start: int) -> dict[str, list[object]]:
    return {"i": [start, start + 1], "k": ["a/b", None]}


def seen(root: Path) -> list[int]:
    with duckdb.connect(root / "headrace.duckdb", read_only=True) as reader:
        return [row[0] for row in reader.sql("SELECT i FROM data ORDER BY i").fetchall()]


def live(root: Path) -> list[int]:
    return sorted(i for path in live_files(root) for i in pq.ParquetFile(path).read(["i"])["i"].to_pylist())


async def test_rows_are_seen_once_from_before_to_after(make: Make, tmp_path: Path, clock: HandClock) -> None:
    """At each stage the view and `live_files` have every row once; globs have them twice for a while."""
    root, rows = tmp_path / "out", list(range(10))
    clock.now = 1e6  # a clock before the readers': what is active counts at once
    await committed(make(partition_by=["k"]), 5, columns=hive)
    once = compactor(root, clock)
    assert (once.plan().files, len(once.plan().groups)) == (10, 2)
    done = once.compact()
    assert done is not None
    assert (done.files, done.outputs, done.rows) == (10, 2, 10)
    assert seen(root) == live(root) == rows
    assert len(live_files(root)) == 2
    assert len(public(root)) == 12
    clock.now += RETIRED_SECONDS + AHEAD_SECONDS
    assert once.finish().wake_at is not None
    assert seen(root) == live(root) == rows
    assert len(public(root)) == 2
    clock.now += RETIRED_SECONDS
    assert once.finish().wake_at is None
    assert seen(root) == live(root) == rows
    assert {parse_public(Path(name).name).compaction for name in public(root)} == {1, 2}
    assert once.compact().files == 0


READER = """
import sys, duckdb
with duckdb.connect(sys.argv[1], read_only=True):
    print("open", flush=True)
    sys.stdin.read()
"""


async def test_files_stay_while_another_process_has_the_view_open(
    make: Make, tmp_path: Path, clock: HandClock
) -> None:
    """Joined files are not removed under somebody who reads the view, unless that goes on for long."""
    root = tmp_path / "out"
    clock.now = 1e6
    await committed(make(), 5, columns=plain)
    once = compactor(root, clock)
    once.compact()
    clock.now += RETIRED_SECONDS + AHEAD_SECONDS
    command = [sys.executable, "-c", READER, str(root / "headrace.duckdb")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as reader:  # noqa: ASYNC220
        assert reader.stdout is not None
        assert reader.stdout.readline() == "open\n"
        done = once.finish()
        assert done is not None
        assert done.wake_at == pytest.approx(clock.time() + LOOK_SECONDS)
        assert len(public(root)) == 6
        clock.now += READ_SECONDS_MAX
        once.finish()
        assert len(public(root)) == 1
        await committed(make(), 5, columns=plain)
        once.compact()
        reader.communicate()
    clock.now += RETIRED_SECONDS + AHEAD_SECONDS
    once.finish()
    assert len(public(root)) == 2
    assert seen(root) == live(root) == list(range(20))


async def test_an_output_does_not_count_before_its_time(make: Make, tmp_path: Path, clock: HandClock) -> None:
    """Readers that began before an output was active read its inputs, and are told when those are gone."""
    root, rows = tmp_path / "out", list(range(10))
    clock.now = 3e9  # a clock ahead of the readers'
    await committed(make(), 5, columns=plain)
    once = compactor(root, clock)
    once.compact()
    assert seen(root) == live(root) == rows
    assert len(live_files(root)) == 5
    clock.now += RETIRED_SECONDS + AHEAD_SECONDS
    once.finish()
    with pytest.raises(duckdb.Error, match="begin another"):
        seen(root)
    with pytest.raises(Retired):
        live(root)


async def test_a_takeover_says_nothing_of_files_that_were_joined(
    make: Make, tmp_path: Path, clock: HandClock, caplog: pytest.LogCaptureFixture
) -> None:
    """A later owner goes on, resurrects nothing, and its commits are joined with what was joined before."""
    root = tmp_path / "out"
    for _ in range(2):
        await committed(make(), 5, columns=plain)
        once = compactor(root, clock, eager=True)
        for _ in range(3):
            once.compact()
            clock.now += RETIRED_SECONDS + AHEAD_SECONDS
    await shard(make())
    assert "not there any more" not in caplog.text
    assert len(public(root)) == 1
    assert seen(root) == list(range(20))


async def test_rows_and_types_stay_as_they_are(tmp_path: Path) -> None:
    """Every type, in the order of the inputs, in row groups of bounded size, with the sink's compression."""
    rng = random.Random(7)
    schema = pa.schema(
        [
            ("i", pa.int64()), ("u", pa.uint64()), ("f", pa.float64()), ("s", pa.string()), ("b", pa.binary()),
            ("ts", pa.timestamp("us", "UTC")), ("d", pa.date32()), ("dec", pa.decimal128(20, 3)), ("t", pa.bool_()),
            ("l", pa.list_(pa.struct([("x", pa.int32()), ("y", pa.string())]))),
            ("m", pa.map_(pa.string(), pa.int64())),
        ]
    )  # fmt: skip
    tables = []
    for number in range(7):
        count = rng.choice([1, 5, 1_500])
        tables.append(pa.Table.from_pylist([_row(rng, number * 10_000 + n) for n in range(count)], schema))
        pq.write_table(tables[-1], tmp_path / f"{number}.parquet", row_group_size=rng.choice([1, 100, 10_000]))
    inputs = [tmp_path / f"{number}.parquet" for number in range(7)]
    staged = StagedFile(OsFileSystem(), tmp_path / "staged")
    rows = ParquetJoiner(row_group_bytes_max=65_536)(inputs, staged, lambda: None)
    staged.finish()
    expected = pa.concat_tables(tables)
    assert rows == expected.num_rows
    found = pq.ParquetFile(tmp_path / "staged")
    assert found.schema_arrow.equals(schema)
    assert found.read().equals(expected)
    sizes = [found.read_row_group(n).nbytes for n in range(found.num_row_groups)]
    assert max(sizes) < 4 * 65_536
    assert found.metadata.row_group(0).column(0).compression == "ZSTD"


def _row(rng: random.Random, n: int) -> dict[str, object]:
    row = {
        "i": n, "u": 2**64 - 1 - n, "f": rng.choice([n / 7, float("inf")]), "s": f"text {n % 7}",
        "b": b"\0" * (n % 9), "ts": n, "d": n % 1000, "dec": None, "t": n % 2 == 0,
        "l": [{"x": n % 5, "y": None}] * (n % 3), "m": [("k", n)],
    }  # fmt: skip
    return row if n % 11 else dict.fromkeys(row)


async def test_files_that_do_not_fit_are_left(make: Make, tmp_path: Path, clock: HandClock) -> None:
    """A file with other columns, a torn one, or one that goes meanwhile leaves its group as it was."""
    root = tmp_path / "out"
    await committed(make(), 5, columns=plain)
    names = public(root)
    whole = (root / names[2]).read_bytes()
    (root / names[2]).write_bytes(whole[:-9])
    spoilt = compactor(root, clock, files_min=2)
    assert spoilt.compact().files == 0
    assert spoilt.plan().files == 4
    pq.write_table(pa.table({"other": [1]}), root / names[2])
    assert compactor(root, clock).compact().files == 0
    staged = StagedFile(OsFileSystem(), tmp_path / "staged")
    with pytest.raises(Unjoinable, match="another schema"):
        ParquetJoiner()([root / name for name in names], staged, lambda: None)
    staged.abandon()
    (root / names[2]).write_bytes(whole)
    removing = compactor(root, clock)
    join = removing._compaction._joiner

    def joining(inputs: list[Path], output: StagedFile, stopping: Callable[[], None]) -> int:
        rows = join(inputs, output, stopping)
        inputs[1].unlink()
        return rows

    removing._compaction._joiner = joining  # type: ignore[assignment]
    assert removing.compact().files == 0
    assert live(root) == [0, 1, 4, 5, 6, 7, 8, 9]
    assert [name for name in public(root) if "~c" in name] == []


async def test_one_compactor_at_a_time(make: Make, tmp_path: Path, clock: HandClock) -> None:
    """While another process holds the lock nothing is done; it is free when that one ends."""
    root = tmp_path / "out"
    await committed(make(), 5, columns=plain)
    with (root / ".headrace/compaction/lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert compactor(root, clock).compact() is None
        assert compactor(root, clock).finish() is None
    assert compactor(root, clock).compact().files == 5


async def test_the_background_task_goes_on_after_a_fault_and_ends_when_cancelled(
    make: Make, tmp_path: Path, clock: HandClock, caplog: pytest.LogCaptureFixture
) -> None:
    """What fails is warned of and tried again at the next turn; the first turn comes before there is a sink."""
    root = tmp_path / "out"
    background_one = compactor(root, clock)
    turns = itertools.count()
    compact = background_one.compact

    def failing(*args: object) -> object:
        if next(turns) == 1:
            raise OSError(5, "no such luck")
        return compact()

    background_one.compact = failing  # type: ignore[method-assign, assignment]
    async with asyncio.timeout(10):
        task = asyncio.create_task(background_one.run())
        await committed(make(), 5, columns=plain)
        while not any("~c" in name for name in public(root)):  # noqa: ASYNC110
            await asyncio.sleep(0.001)  # a thread of another's making: there is no event
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert "no such luck" in caplog.text
    assert live(root) == list(range(10))


def test_compaction_beside_a_run_is_off_unless_asked_for(clock: HandClock) -> None:
    """The configuration's `compact` decides."""
    assert background(ParquetSinkConfig(type="parquet", path=Path("x")), clock) is None
    assert background(ParquetSinkConfig(type="parquet", path=Path("x"), compact=True), clock) is not None


def sizes(*given: int, directory: str = "") -> list[PublicFile]:
    return [
        PublicFile(directory, parse_public(name), name, size)  # type: ignore[arg-type]
        for n, size in enumerate(given)
        if (name := f"t-0-{n:020d}-{n + 1:020d}-{n + 1}.parquet")
    ]


@pytest.mark.parametrize(
    ("files", "eager", "expected"),
    [
        (sizes(1, 1), False, []),
        (sizes(1, 1), True, [2]),
        (sizes(1, 1, 1), False, [3]),
        (sizes(90, 1, 1, 1), False, [3]),
        (sizes(1, 1, 90, 1, 1, 1), False, [3]),
        (sizes(40, 1, 1, 1), False, [3]),
        (sizes(3, 1, 1, 1), False, [4]),
        (sizes(40, 1, 1, 1), True, [4]),
        (sizes(*[30] * 7), False, [3, 3]),
        (sizes(*[0] * (GROUP_FILES_MAX + 5)), False, [GROUP_FILES_MAX, 5]),
        (sizes(1, 1, 1) + sizes(1, 1, 1, directory="k=a"), False, [3, 3]),
    ],
)
def test_what_is_joined(files: list[PublicFile], eager: bool, expected: list[int]) -> None:
    """Runs of small files up to the target; a large one is not written anew for a few small ones."""
    found = groups(files, Rules(100, 3, eager), ())
    assert [len(group.files) for group in found] == expected
    assert all(group.bytes <= 100 for group in found)


def test_a_row_is_written_anew_a_logarithmic_number_of_times() -> None:
    """While a file grows to the target, its rows are joined again only with as many others."""
    files, written, numbers = [], 0, itertools.count()
    for _ in range(2_000):
        n = next(numbers)
        name = f"t-0-{n:020d}-{n + 1:020d}-{n + 1}.parquet"
        files.append(PublicFile("", parse_public(name), name, 1))  # type: ignore[arg-type]
        for group in groups(files, Rules(4_000, 8), ()):
            written += group.bytes
            text = group.output(n + 1)
            at = files.index(group.files[0])
            files[at : at + len(group.files)] = [PublicFile("", parse_public(text), text, group.bytes)]  # type: ignore[arg-type]
    assert len(files) < 60
    assert written < 2_000 * 11


def test_records_come_back_as_they_were() -> None:
    """A record's lines are read as the record that they were written from."""
    entry = Entry(7, "retired", 5, "k=a/t~c7.parquet", "staged", 3, 9, ("k=a/x.parquet", "k=a/y.parquet"), 6)
    record = Record(4, 7, 9, 1.5, (entry, Entry(9, "committed", 5, "o", "s", 1, 2, ("i",))))
    assert load_record(record.dump(), Path("r")) == record
    assert record.hidden(5) == {"k=a/x.parquet", "k=a/y.parquet", "o"}


async def test_the_command(make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A dry run changes nothing; the command says in JSON what it joined; what is no sink is refused."""
    from engine.cli import main
    from engine.cli.compact import compact

    if not any(command.callback is compact for command in main.app.registered_commands):
        pytest.skip("headrace compact is not registered")
    root = tmp_path / "out"
    await committed(make(), 5, columns=plain)
    before = public(root)
    assert call(["compact", str(root), "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["sinks"][0]["files"] == 5
    assert public(root) == before
    config = tmp_path / "headrace.toml"
    config.write_text(
        '[kafka]\nbootstrap = "127.0.0.1:1"\n[pipelines.p.source]\ntopic = "clicks"\n[pipelines.p.sink]\n'
        'type = "parquet"\npath = "out"\nretired_seconds_min = 0\n'
    )
    assert call(["compact", str(config), "--json"]) == 0
    [done] = json.loads(capsys.readouterr().out)["sinks"]
    assert (done["pipeline"], done["files"], done["outputs"], done["rows"]) == ("p", 5, 1, 10)
    assert len(public(root)) == 1
    assert call(["compact", str(config), "--pipeline", "q"]) == 2
    assert call(["compact", str(tmp_path)]) == 2
    assert call(["compact", str(tmp_path / "none")]) == 2
