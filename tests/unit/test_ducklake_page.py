"""What docs/ducklake.md tells people to run does what it says, against a lake that the sink wrote."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import duckdb

from connectors.analysis.extensions import extension_path
from tests.unit.ducklake_world import committed, data_files, failure, opened, outcome, read

PAGE = (Path(__file__).parents[2] / "docs" / "ducklake.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


def run_python(snippet: str, folder: Path) -> str:
    return subprocess.run(
        [sys.executable, "-c", snippet], cwd=folder, capture_output=True, text=True, timeout=30, check=True
    ).stdout


def run_sql(text: str, path: Path) -> None:
    """Every statement, to its end, in a DuckDB that has nothing but the extension."""
    with duckdb.connect() as connection:
        connection.execute(f"LOAD '{extension_path('ducklake')}'")
        if "ATTACH" not in text:
            connection.execute(f"ATTACH 'ducklake:{path}' AS lake (READ_ONLY)")
        for statement in text.split(";"):
            if statement.strip():
                connection.execute(statement).to_arrow_table()


async def test_the_page_reads_travels_and_tidies(tmp_path: Path) -> None:
    """Its Python counts the rows; its SQL tidies without harm, and asks what snapshots held."""
    path = tmp_path / "out" / "lake.duckdb"
    async with opened(path) as sink:
        shard = await sink.acquire(0)
        for start in range(0, 1200, 300):
            few = outcome(start + 200, start + 300, failures=[failure(start + 250)], state=b"%d" % start)
            await committed(shard, outcome(start, start + 200))
            await committed(shard, few)
    assert len(data_files(path)) == 4

    [snippet] = blocks("python")
    assert "1196" in run_python(snippet, tmp_path)

    tidying, removing, travelling = (block.replace("out/lake.duckdb", str(path)) for block in blocks("sql"))
    snapshots = "SELECT max(snapshot_id), count(*) FROM ducklake_snapshots('lake')"
    [(last, _count)] = read(path, snapshots)
    run_sql(
        travelling.replace("42", str(last))
        .replace("40", str(last))
        .replace("INTERVAL '1 hour'", "INTERVAL '1 millisecond'"),
        path,
    )
    run_sql(tidying.replace("7 days", "0 days"), path)
    run_sql(removing, path)
    [(_last, kept)] = read(path, snapshots)
    assert kept == 1
    tables = [file.parent.name for file in data_files(path)]
    assert tables.count("clicks") == 1
    assert read(path, "SELECT count(*), count(DISTINCT id) FROM clicks") == [(1196, 1196)]

    async with opened(path) as sink:
        shard = await sink.acquire(0)
        assert (shard.position, shard.state) == (1200, b"900")
        assert [record.offset for record in (await shard.failures(9))[1]] == [250, 550, 850, 1150]
        await committed(shard, outcome(1200, 1500))
    assert read(path, "SELECT count(*), max(id) FROM clicks") == [(1496, 1499)]
