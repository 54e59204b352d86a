"""Compaction under death: engine-like writers and `headrace compact` are killed, while readers of the view count.

No broker is needed: what compacts beside a run is the sink's own task, and the command finds its sink by itself.
HEADRACE_CRASH=long runs the long form (`make crash`). Seeds are fixed and printed; HEADRACE_CRASH_SEED changes
them.
"""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
import sys
import threading
import time
from pathlib import Path

import duckdb
import pyarrow as pa
import pytest

from connectors.parquet import ParquetSink
from connectors.parquet.live import live_files
from engine.batch import Stream
from engine.clock import SystemClock
from engine.compose.compact import background
from engine.config_sinks import ParquetSinkConfig
from engine.protocols import Counts, Outcome
from tests.forms import IS_CRASH_LONG

pytestmark = [pytest.mark.crash, pytest.mark.timeout(1800)]

SEED = int(os.environ.get("HEADRACE_CRASH_SEED", "20261124"))
KILLS = 120 if IS_CRASH_LONG else 4
RETIRED_SECONDS = 0.8
STREAM = Stream("cluster", "clicks", "id", 1)
COMMIT_ROWS = 50

CONFIG = f"""
[kafka]
bootstrap = "127.0.0.1:1"

[pipelines.p.source]
topic = "clicks"

[pipelines.p.sink]
type = "parquet"
path = "out"
partition_by = ["k"]
compact = true
compact_files_min = 3
file_bytes_target = 200_000
compact_interval_seconds = 0.3
retired_seconds_min = {RETIRED_SECONDS}
"""

COMPACT = "import sys, typer; from engine.cli.compact import compact; typer.run(compact)"


async def write_for_ever(root: Path) -> None:
    """What an engine does with its sink and its background task, without a topic."""
    settings = ParquetSinkConfig(
        type="parquet", path=root, compact=True, compact_files_min=3, file_bytes_target=200_000,
        compact_interval_seconds=0.3, retired_seconds_min=RETIRED_SECONDS,
    )  # fmt: skip
    sink = ParquetSink(root, pipeline="p", clock=SystemClock(), partition_by=["k"], checkpoint_every=8)
    await sink.open(STREAM)
    writer = await sink.acquire(0)
    compactor = background(settings, SystemClock())
    assert compactor is not None
    async with asyncio.TaskGroup() as group:
        group.create_task(compactor.run())
        while True:
            start = writer.position or 0
            numbers = list(range(start, start + COMMIT_ROWS))
            rows = pa.table({"i": numbers, "k": [f"k{n % 2}" for n in numbers]})
            await writer.write(Outcome(start, start + COMMIT_ROWS, rows, Counts(handled=COMMIT_ROWS)))
            await writer.commit()
            print(writer.position, flush=True)
            await asyncio.sleep(0.02)


class Reader:
    """Counts the view's rows again and again, by one connection, and by a new one now and then."""

    def __init__(self, database: Path) -> None:
        self._database = database
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.faults: list[str] = []
        self.queries = 0
        self.sent_away = 0

    def __enter__(self) -> Reader:
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._ending.set()
        self._thread.join(60)

    def _run(self) -> None:
        before = 0
        while not self._ending.is_set():
            with duckdb.connect(self._database, read_only=True, config={"threads": 1}) as connection:
                for _ in range(20):
                    before = max(before, self._count(connection, before))

    def _count(self, connection: duckdb.DuckDBPyConnection, before: int) -> int:
        try:
            found = connection.execute(
                "SELECT count(*), count(DISTINCT i), max(i) // 2 + 1 FROM data GROUP BY k"
            ).fetchall()
        except duckdb.Error as error:
            # DuckDB opens what it has listed, and joined files have gone since: it says so, and gives no answer.
            if not any(text in str(error) for text in ("No such file", "files were joined")):
                self.faults.append(str(error))
            self.sent_away += 1
            return before
        self.queries += 1
        total = sum(count for count, _, _ in found)
        # A commit's files appear one by one, each directory's without holes.
        if total < before or any(count != distinct or count != end for count, distinct, end in found):
            self.faults.append(f"rows, distinct rows, and where they end: {found}, after {before}")
        return int(total)


def start(*arguments: str, log: Path) -> subprocess.Popen[bytes]:
    with log.open("ab") as output:
        return subprocess.Popen([sys.executable, "-c", *arguments], stdout=output, stderr=output)


def test_readers_of_the_view_count_every_row_once_whatever_dies(tmp_path: Path) -> None:
    """Writers that compact beside their work, and commands that compact, are killed; no count is ever wrong."""
    rng = random.Random(SEED)
    print(f"seed {SEED}, {KILLS} kills")
    root, config = tmp_path / "out", tmp_path / "headrace.toml"
    config.write_text(CONFIG)
    written, compacted = tmp_path / "writer.log", tmp_path / "compact.log"
    call = f"import asyncio, pathlib, {__name__} as t; asyncio.run(t.write_for_ever(pathlib.Path({str(root)!r})))"
    writer = start(call, log=written)
    command = start(COMPACT, str(config), log=compacted)
    try:
        _wait_for(lambda: (root / "headrace.duckdb").exists() and bool(live_files(root)), written)
        with Reader(root / "headrace.duckdb") as first, Reader(root / "headrace.duckdb") as second:
            for _ in range(KILLS):
                time.sleep(rng.uniform(0.3, 1.2))
                if rng.random() < 0.5:
                    writer.kill()
                    writer.wait(30)
                    writer = start(call, log=written)
                else:
                    command.kill()
                    command.wait(30)
                    command = start(COMPACT, str(config), log=compacted)
            _wait_for(lambda: any("~c" in path.name for path in live_files(root)), written)
    finally:
        for process in (writer, command):
            process.kill()
            process.wait(30)
    print(f"{first.queries + second.queries} queries, {first.sent_away + second.sent_away} sent away")
    assert first.faults + second.faults == []
    assert first.queries > KILLS
    assert first.sent_away < first.queries / 4
    _check_the_end(root, config, compacted, int(written.read_text().split()[-1]))


def _wait_for(condition: object, log: Path) -> None:
    deadline = time.monotonic() + 60
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline, log.read_text()[-2000:]
        time.sleep(0.02)


def _check_the_end(root: Path, config: Path, log: Path, acknowledged: int) -> None:
    """A last owner and a last command leave each row in one file, for every reader."""

    async def recover() -> int:
        sink = ParquetSink(root, pipeline="p", clock=SystemClock(), partition_by=["k"], checkpoint_every=8)
        await sink.open(STREAM)
        position = (await sink.acquire(0)).position
        await sink.close()
        return position or 0

    end = asyncio.run(recover())
    assert end >= acknowledged
    process = start(COMPACT, str(config), log=log)
    assert process.wait(60) == 0, log.read_text()[-2000:]
    count = "SELECT count(*), count(DISTINCT i), max(i) + 1 FROM"
    with duckdb.connect(root / "headrace.duckdb", read_only=True) as connection:
        assert connection.execute(f"{count} data").fetchall() == [(end, end, end)]
        assert connection.execute(f"{count} '{root}/**/*.parquet'").fetchall() == [(end, end, end)]
    assert len(list(root.rglob("*.parquet"))) < 60
    assert list((root / ".headrace/compaction/staging").iterdir()) == []
