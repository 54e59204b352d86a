"""`headrace query`: nothing lost in the answer, nothing read or written that was not asked for."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from pathlib import Path

import duckdb
import pyarrow as pa
import pytest
import typer
from typer.testing import CliRunner, Result

from connectors.parquet.files import Directories
from connectors.parquet.filesystem import OsFileSystem
from connectors.parquet.identity import IdentityFiles
from engine.cli.query import csv_line, query
from engine.errors import ExternalError, UserError

app = typer.Typer()
app.command()(query)


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def refused(*arguments: str) -> Exception:
    error = run(*arguments).exception
    assert isinstance(error, UserError | ExternalError), error
    return error


@pytest.fixture
def database(tmp_path: Path) -> Path:
    path = tmp_path / "d.duckdb"
    with duckdb.connect(path) as connection:
        connection.execute("CREATE TABLE t AS SELECT range AS i, 'v' || range AS v FROM range(5000)")
    return path


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    root = tmp_path / "clicks"
    for name, value in (("day=1/a.parquet", 1), ("day=2/b.parquet", 2), (".headrace/s/c.parquet", 3)):
        path = root / name
        path.parent.mkdir(parents=True)
        with duckdb.connect() as connection:
            more = ", 'x' AS extra" if value == 2 else ""
            connection.execute(f"COPY (SELECT {value} AS n{more}) TO '{path}'")
    (root / ".z.parquet").write_bytes(b"torn")
    return root


def test_json_is_full_and_valid() -> None:
    """Every value comes whole: large integers, decimals, nanoseconds, numbers that JSON has no word for."""
    result = run(
        "SELECT 170141183460469231731687303715884105727::HUGEINT AS h,"
        " 12345678901234567890.123456789::DECIMAL(38,9) AS d,"
        " TIMESTAMP_NS '2024-01-01 00:00:00.123456789' AS t, 'NaN'::DOUBLE AS n, [1, '-inf'::DOUBLE] AS l,"
        " 'NaN \"Infinity' AS s, NULL AS u, 1 AS a, 2 AS a",
        "--json",
    )
    assert result.exit_code == 0
    assert '"h":170141183460469231731687303715884105727,' in result.stdout
    assert '"d":12345678901234567890.123456789,' in result.stdout
    found = json.loads(result.stdout)
    assert found["t"] == "2024-01-01 00:00:00.123456789"
    assert (found["n"], found["l"], found["s"], found["u"]) == ("NaN", [1.0, "-Infinity"], 'NaN "Infinity', None)
    assert (found["a"], found["a_1"]) == (1, 2)


def test_csv_tells_null_from_empty() -> None:
    """NULL is an empty field and an empty string is quoted; commas, quotes and line ends survive a CSV reader."""
    sql = "SELECT NULL AS a, '' AS b, 'x,\"y' AS c, e'1\\r\\n2' AS d, ' s ' AS e"
    result = run(sql, "--csv")
    assert result.stdout.splitlines()[0] == "a,b,c,d,e"
    assert result.stdout.split("\n", 1)[1].startswith(',"",')
    row = list(csv.reader(io.StringIO(result.stdout_bytes.decode(), newline="")))[1]
    assert row == ["", "", 'x,"y', "1\r\n2", " s "]
    assert csv_line(["a", None, ""]) == 'a,,""\n'


def test_all_rows_in_order(database: Path) -> None:
    """JSON and CSV give every row, in the order of the query."""
    result = run("SELECT i FROM t ORDER BY i DESC", "--db", str(database), "--csv")
    assert result.stdout.split() == ["i", *map(str, range(4999, -1, -1))]
    result = run("FROM t ORDER BY i", "--db", str(database), "--json", "--limit-rows", "3")
    assert [json.loads(line)["v"] for line in result.stdout.splitlines()] == ["v0", "v1", "v2"]
    assert "only 3 rows" in result.stderr


def test_a_table_that_is_cut_says_so(database: Path) -> None:
    """A table holds a thousand rows, and says that there are more; NULL and line ends are visible in it."""
    result = run("FROM t", "--db", str(database))
    assert len(result.stdout.splitlines()) == 1002
    assert "only 1,000 rows" in result.stderr
    result = run("SELECT NULL::VARCHAR AS a, e'x\\ny' AS b, 7 AS long_name")
    assert result.stdout == "a     b     long_name\n----  ----  ---------\nNULL  x\\ny          7\n"
    assert result.stderr == ""


def test_parquet_reads_committed_files_only(directory: Path) -> None:
    """The view has the Hive columns and the columns of all files, under both names, and nothing hidden."""
    for name in ("data", "clicks"):
        result = run(f"SELECT day, n, extra FROM {name} ORDER BY n", "--parquet", str(directory), "--csv")
        assert result.stdout == "day,n,extra\n1,1,\n2,2,x\n"
    hidden = directory / ".headrace" / "s" / "c.parquet"
    assert "Permission" in str(refused(f"FROM read_parquet('{hidden}')", "--parquet", str(directory)))


@pytest.mark.parametrize("form", [["--json"], ["--csv"], []])
def test_a_sink_without_a_schema_is_told_from_one_without_rows(form: list[str], tmp_path: Path) -> None:
    """No answer at all: an exit code of its own, nothing on standard output, and one line that says why."""
    (tmp_path / ".headrace").mkdir()
    (tmp_path / ".headrace" / "x.parquet").write_bytes(b"torn")
    result = run("SELECT count(*) FROM data", "--parquet", str(tmp_path), *form)
    assert (result.exit_code, result.stdout) == (3, "")
    assert "no Parquet file is committed" in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.fixture(params=["clicks", "data"])
def adopted(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A sink that has adopted a schema, and committed nothing."""
    root = tmp_path / str(request.param)
    root.mkdir()
    filesystem = OsFileSystem()
    files = IdentityFiles(filesystem, root, Directories(filesystem, root))
    files.prepare()
    nested = pa.struct([("a b", pa.list_(pa.int32()))])
    fields = [("n", pa.int64()), ("at", pa.timestamp("us", "UTC")), ("d", pa.decimal128(9, 2)), ("s", nested)]
    files.adopt_schema("rows", pa.schema(fields))
    return root


@pytest.mark.parametrize(
    ("form", "shown"),
    [(["--json"], '{"n":0,"t":null}\n'), (["--csv"], "n,t\n0,\n"), ([], "n     t\n-  ----\n0  NULL\n")],
)
def test_a_sink_without_a_commit_has_no_rows(form: list[str], shown: str, adopted: Path) -> None:
    """The adopted columns can be asked for, by both names and in each format; unknown ones are refused."""
    for name in ("data", adopted.name):
        result = run(f"SELECT count(*) AS n, sum(d) AS t FROM {name}", "--parquet", str(adopted), *form)
        assert (result.exit_code, result.stdout, result.stderr) == (0, shown, "")
    assert run("FROM data", "--parquet", str(adopted), "--csv").stdout == "n,at,d,s\n"
    assert "nope" in str(refused("SELECT nope FROM data", "--parquet", str(adopted), *form))


def test_an_adopted_schema_keeps_its_types_and_opens_no_files(adopted: Path) -> None:
    """Columns are of the types that the rows will have, nothing else is in sight, and no file can be read."""
    described = run("DESCRIBE data", "--parquet", str(adopted), "--json").stdout.splitlines()
    assert [json.loads(line)["column_type"] for line in described] == [
        "BIGINT",
        "TIMESTAMP WITH TIME ZONE",
        "DECIMAL(9,2)",
        'STRUCT("a b" INTEGER[])',
    ]
    tables = run("SHOW TABLES", "--parquet", str(adopted), "--json").stdout.splitlines()
    assert {json.loads(line)["name"] for line in tables} == {"data", adopted.name}
    (adopted / "x.csv").write_text("a\n1\n")
    assert "Permission" in str(refused(f"FROM '{adopted / 'x.csv'}'", "--parquet", str(adopted)))


def test_a_directory_that_is_no_sink_is_named(tmp_path: Path) -> None:
    """A wrong directory is not taken for a sink that has nothing yet."""
    (tmp_path / "x.csv").write_text("a\n1\n")
    error = refused("SELECT count(*) FROM data", "--parquet", str(tmp_path), "--json")
    assert isinstance(error, UserError)
    assert f"{tmp_path} has no Parquet file" in str(error)


@pytest.mark.parametrize(
    "sql",
    [
        "COPY (SELECT 1) TO '{out}'",
        "EXPLAIN ANALYZE COPY (SELECT 1) TO '{out}'",
        "explain /* */ analyze COPY (SELECT 1) TO '{out}'",
        "EXPLAIN (FORMAT json, ANALYZE) COPY (SELECT 1) TO '{out}'",
        "CREATE TABLE x AS SELECT 1",
        "INSERT INTO t VALUES (1, 'a')",
        "ATTACH '{out}'",
        "SET threads = 1",
        "SELECT 1; COPY (SELECT 1) TO '{out}'",
        "INSTALL httpfs",
    ],
)
@pytest.mark.parametrize("place", ["--db", "--parquet", None])
def test_only_questions(sql: str, place: str | None, database: Path, directory: Path, tmp_path: Path) -> None:
    """No statement that writes or changes settings runs, in whatever form, wherever it is asked."""
    out = tmp_path / "out"
    where = {"--db": database, "--parquet": directory}
    arguments = [sql.format(out=out), *([place, str(where[place])] if place else [])]
    assert refused(*arguments).domain == 2  # type: ignore[attr-defined]
    assert not out.exists()


@pytest.mark.parametrize("place", ["--db", "--parquet"])
def test_no_other_file_is_read(place: str, database: Path, directory: Path, tmp_path: Path) -> None:
    """With a database or a directory named, the query reads nothing else."""
    other = tmp_path / "other.csv"
    other.write_text("secret\n1\n")
    where = {"--db": database, "--parquet": directory}
    for sql in (f"FROM read_csv('{other}')", f"FROM '{other}'", f"FROM read_text('{other}')"):
        refused(sql, place, str(where[place]))
    assert run(f"FROM '{other}'", "--csv").stdout == "secret\n1\n"


@pytest.mark.parametrize(
    ("sql", "message"),
    [
        ("selec 1", "line 1, column 1"),
        ("SELECT 1,\n  nope(2)", "line 2, column 3"),
        ("SELECT " + "1, " * 100 + "wrong", "line 1, column 308"),
        ("SELECT 'a'::INT", "Could not convert"),
        ("SELECT error('late') FROM range(10)", "late"),
        ("", "empty"),
        ("SELECT 1; SELECT 2", "2 statements"),
    ],
)
def test_mistakes_have_one_line_and_a_position(sql: str, message: str) -> None:
    """An error in SQL is DuckDB's message on one line, with the position in what the user wrote."""
    error = refused(sql)
    assert message in str(error)
    assert "\n" not in str(error)


@pytest.mark.parametrize(
    "sql",
    [
        "DESCRIBE t",
        "SHOW TABLES",
        "SUMMARIZE t",
        "VALUES (1)",
        "WITH a AS (FROM t) FROM a",
        "PIVOT (FROM t LIMIT 2) ON v USING sum(i)",
        "EXPLAIN FROM t",
        "FROM t LIMIT 1; -- 'ä;",
        "FROM t LIMIT 1 -- x;",
        "SELECT ';ä' AS a;; /* ; */",
    ],
)
def test_every_form_of_question(sql: str, database: Path) -> None:
    """All that DuckDB takes for a reading statement is answered."""
    result = run(sql, "--db", str(database))
    assert result.exit_code == 0, result.exception
    assert len(result.stdout.splitlines()) > 2


def test_a_database_in_use_says_by_whom(tmp_path: Path) -> None:
    """While another process writes to the file, the message names that process; afterwards the answer comes."""
    path = tmp_path / "busy.duckdb"
    program = "import duckdb, sys; c = duckdb.connect(sys.argv[1]); c.execute('CREATE TABLE t AS SELECT 1 AS a'); print(); sys.stdout.flush(); sys.stdin.read()"  # noqa: E501
    with subprocess.Popen(
        [sys.executable, "-c", program, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as writer:
        assert writer.stdout is not None
        writer.stdout.readline()
        error = refused("FROM t", "--db", str(path))
        assert f"process {writer.pid}" in str(error)
        assert error.domain == 3  # type: ignore[attr-defined]
        writer.kill()
    # A killed writer leaves its log; reading works, and changes nothing.
    before = {file.name: file.stat().st_size for file in tmp_path.iterdir()}
    assert run("FROM t", "--db", str(path), "--csv").stdout == "a\n1\n"
    assert {file.name: file.stat().st_size for file in tmp_path.iterdir()} == before


def test_wrong_places_are_named(tmp_path: Path) -> None:
    """What is not there, or is something else, is named."""
    text = tmp_path / "x.txt"
    text.write_text("no database" * 1000)
    assert "no DuckDB file" in str(refused("SELECT 1", "--db", str(tmp_path / "none.duckdb")))
    assert "not a DuckDB file" in str(refused("SELECT 1", "--db", str(text)))
    assert "no directory" in str(refused("SELECT 1", "--parquet", str(text)))
    assert "exclude" in str(refused("SELECT 1", "--parquet", str(tmp_path), "--db", str(text)))
    assert "exclude" in str(refused("SELECT 1", "--csv", "--json"))
