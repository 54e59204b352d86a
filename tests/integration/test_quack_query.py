"""`headrace query --db` while an engine holds the file, the documented snippet, what an engine leaves behind."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

from connectors.duckdb.serving import address_path, read_address
from engine.cli.query import query
from engine.errors import HeadraceError

ROOT = Path(__file__).parents[2]

app = typer.Typer()
app.command()(query)

# An engine in a process of its own, because DuckDB lets this one in otherwise.
ENGINE = """
import asyncio, sys
from pathlib import Path
from connectors.duckdb import Database
from connectors.duckdb.serving import ServingSettings

async def main():
    serving = ServingSettings(rows_max=20_000, seconds_max=20) if sys.argv[2] == "serve" else None
    database = Database(Path(sys.argv[1]), serving=serving)
    await database.open()
    await database.run(lambda c: c.execute(
        "CREATE TABLE clicks AS SELECT range AS id, 'v' || range AS v, range::DECIMAL(38, 9) AS d"
        " FROM range(5000)"))
    print(database.server.uri if database.server else "", flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await database.close()

asyncio.run(main())
"""


def engine(path: Path, how: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", ENGINE, str(path), how],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline()
    return process


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("engine") / "d.duckdb"
    with engine(path, "serve") as process:
        yield path
        process.communicate("", timeout=30)
    assert process.returncode == 0
    assert sorted(each.name for each in path.parent.iterdir()) == [path.name]


def run(sql: str, path: Path, *arguments: str) -> Result:
    return CliRunner().invoke(app, [sql, "--db", str(path), *arguments])


def refused(sql: str, path: Path) -> HeadraceError:
    error = run(sql, path).exception
    assert isinstance(error, HeadraceError), error
    return error


def test_a_running_engine_answers(path: Path) -> None:
    """Every format is as it is of a file at rest: all rows in order, values in full, columns by kind."""
    result = run("SELECT id, v, d FROM clicks ORDER BY id DESC", path, "--csv")
    assert result.exit_code == 0, result.exception
    assert result.stdout.splitlines()[:2] == ["id,v,d", "4999,v4999,4999.000000000"]
    assert len(result.stdout.splitlines()) == 5001
    result = run("SELECT 170141183460469231731687303715884105727::HUGEINT AS h, 'NaN'::DOUBLE AS n, 1 AS a, 2 AS a",
                 path, "--json")  # fmt: skip
    assert result.stdout == '{"h":170141183460469231731687303715884105727,"n":"NaN","a":1,"a_1":2}\n'
    assert run("SELECT NULL::VARCHAR AS a, 7 AS long_name", path).stdout.splitlines()[2] == "NULL          7"
    assert "only 1,000 rows" in run("FROM clicks", path).stderr
    for sql in (
        "DESCRIBE clicks",
        "SHOW TABLES",
        "SUMMARIZE clicks",
        "EXPLAIN FROM clicks",
        "FROM headrace.positions",
    ):
        result = run(sql, path)
        assert result.exit_code == 0, result.exception
        assert result.stdout


def test_a_running_engine_refuses_what_a_file_refuses(path: Path) -> None:
    """Mistakes have their place, and what is no question is refused, with the same exit codes."""
    for sql, message in (
        ("selec 1", "line 1, column 1"),
        ("SELECT 1,\n  nope FROM clicks", "line 2, column 3"),
        ("INSERT INTO clicks VALUES (1, 'a', 1)", "only reads"),
        ("DROP TABLE clicks", "DROP is no question"),
        ("SELECT 1; SELECT 2", "2 statements"),
        ("FROM range(100000)", "more than 20,000 rows"),
    ):
        error = refused(sql, path)
        assert message in str(error)
        assert int(error.domain) == 2
        assert "quack_query" not in str(error)


def test_what_is_wrong_with_an_address_is_said(path: Path) -> None:
    """A stale address, a wrong token, and a server that is away are errors of their own, without the token."""
    kept = address_path(path).read_text()
    known = json.loads(kept)
    try:
        for change, message in (
            ({"pid": 1}, "left from process 1"),
            ({"token": "z" * 24}, "takes another token"),
            ({"uri": "quack:127.0.0.1:1"}, "does not answer"),
        ):
            address_path(path).write_text(json.dumps({**known, **change}))
            error = refused("SELECT 1", path)
            assert message in str(error)
            assert int(error.domain) == 3
            assert known["token"] not in str(error)
            assert "z" * 24 not in str(error)
        for content in ("", "[]", "{}", "\0" * 100, '{"uri": 1, "token": "x", "pid": "y", "database": 3}'):
            address_path(path).write_text(content)
            assert read_address(path) is None
            assert "is in use" in str(refused("SELECT 1", path))
    finally:
        address_path(path).write_text(kept)


def test_the_documented_snippet_runs_as_it_stands(path: Path) -> None:
    """The five lines of the page on querying, with the file's name put in, give rows in another process."""
    page = (ROOT / "docs" / "querying.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    [snippet] = [block for block in blocks if "quack.json" in block]
    assert len(snippet.strip().splitlines()) == 5
    program = snippet.replace("out/clicks.duckdb", str(path))
    assert program != snippet
    done = subprocess.run(
        [sys.executable, "-I", "-c", program], capture_output=True, text=True, timeout=60, cwd=path.parent
    )
    assert done.returncode == 0, done.stderr
    assert "5000" in done.stdout


def test_an_engine_that_was_killed_leaves_a_file_that_is_read(tmp_path: Path) -> None:
    """The address of a killed engine misleads nobody: the file is free, and is opened as it is."""
    path = tmp_path / "d.duckdb"
    with engine(path, "serve") as process:
        process.kill()
    assert address_path(path).exists()
    assert run("SELECT count(*) AS n FROM clicks", path, "--csv").stdout == "n\n5000\n"
    # The next engine does not serve: what the first one left is told from it.
    with engine(path.with_name("other.duckdb"), "hold") as process:
        address_path(path.with_name("other.duckdb")).write_text(address_path(path).read_text())
        error = refused("SELECT 1", path.with_name("other.duckdb"))
        assert "does not serve it" in str(error)
        process.kill()
