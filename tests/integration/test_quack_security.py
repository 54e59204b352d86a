"""What analysts cannot do over the Quack protocol, by each way that DuckDB's own client has."""

from __future__ import annotations

import contextlib
import http.client
import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import duckdb
import pytest

from connectors.duckdb import serving
from connectors.duckdb.serving import address_path
from tests.integration.quack_world import ROWS, Served, client, served


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("served")
    with duckdb.connect() as connection:
        connection.execute(f"COPY (SELECT 1 AS a) TO '{folder / 'beside.parquet'}'")
    (folder / "beside.csv").write_text("a\n1\n")
    with duckdb.connect(folder / "other.duckdb") as connection:
        connection.execute("CREATE TABLE t AS SELECT 1 AS a")
    with served(folder / "d.duckdb") as world:
        yield world


@pytest.fixture(scope="module")
def attached(world: Served) -> Iterator[duckdb.DuckDBPyConnection]:
    with client(world.address) as connection:
        yield connection


@pytest.fixture(scope="module")
def at_first(world: Served) -> Iterator[list[object]]:
    functions = "SELECT count(*), count(DISTINCT function_name) FROM duckdb_functions()"
    before = world.run(functions)
    yield world.fingerprint()
    assert world.run(functions) == before


@pytest.fixture(autouse=True)
def unchanged(world: Served, at_first: list[object]) -> Iterator[None]:
    """Whatever a test tries, the file, what is open beside it, and the settings stay as they were."""
    yield
    assert world.fingerprint() == at_first


QUESTION = "is no question"
FUNCTION = "cannot be called here"
TABLE = "there is no table or view"
PARSER = "Parser Error"

#: What is sent as a text, and a part of what the client is told; {dir} is the directory of the file.
REFUSED = {
    "insert": ("INSERT INTO clicks VALUES (1, 'a')", "Authorization failed"),
    "insert after a comment": ("/* x */ INSERT INTO clicks VALUES (1, 'a')", QUESTION),
    "insert after spaces": ("\n\t  insert INTO clicks VALUES (1, 'a')", "Authorization failed"),
    "insert in parentheses": ("(INSERT INTO clicks VALUES (1, 'a'))", "Authorization failed"),
    "update": ("UPDATE clicks SET id = 0", QUESTION),
    "delete": ("DELETE FROM clicks", QUESTION),
    "truncate": ("TRUNCATE clicks", QUESTION),
    "merge": ("MERGE INTO clicks USING clicks AS c ON true WHEN MATCHED THEN DELETE", QUESTION),
    "create table": ("CREATE TABLE x (a INT)", QUESTION),
    "create table as": ("CREATE TABLE x AS FROM clicks", QUESTION),
    "create temporary table": ("CREATE TEMP TABLE x AS FROM clicks", QUESTION),
    "create view": ("CREATE VIEW x AS FROM clicks", QUESTION),
    "create macro": ("CREATE MACRO x() AS 1", QUESTION),
    "create secret": ("CREATE SECRET x (TYPE http)", QUESTION),
    "select into": ("SELECT * INTO x FROM clicks", PARSER),
    "drop table": ("DROP TABLE clicks", QUESTION),
    "drop schema": ("DROP SCHEMA headrace CASCADE", QUESTION),
    "alter": ("ALTER TABLE clicks ADD COLUMN x INT", QUESTION),
    "comment": ("COMMENT ON TABLE clicks IS 'x'", QUESTION),
    "copy to": ("COPY clicks TO '{dir}/out.csv'", QUESTION),
    "copy a query to": ("COPY (FROM clicks) TO '{dir}/out.parquet'", QUESTION),
    "copy from": ("COPY clicks FROM '{dir}/beside.csv'", QUESTION),
    "copy from database": ("COPY FROM DATABASE d TO headrace_results", QUESTION),
    "export": ("EXPORT DATABASE '{dir}/out'", QUESTION),
    "import": ("IMPORT DATABASE '{dir}/out'", QUESTION),
    "attach": ("ATTACH '{dir}/other.duckdb' AS other", QUESTION),
    "attach memory": ("ATTACH ':memory:' AS other", QUESTION),
    "detach": ("DETACH headrace_results", QUESTION),
    "use": ("USE headrace_results", QUESTION),
    "read_csv": ("SELECT * FROM read_csv('/etc/passwd')", FUNCTION),
    "read_csv beside": ("SELECT * FROM read_csv('{dir}/beside.csv')", FUNCTION),
    "read_text": ("FROM read_text('{dir}/d.duckdb.quack.json')", FUNCTION),
    "read_blob": ("FROM read_blob('{dir}/d.duckdb')", FUNCTION),
    "read_json": ("FROM read_json('{dir}/d.duckdb.quack.json')", FUNCTION),
    "read_parquet": ("FROM read_parquet('{dir}/beside.parquet')", FUNCTION),
    "read_duckdb": ("FROM read_duckdb('{dir}/other.duckdb')", FUNCTION),
    "parquet_metadata": ("FROM parquet_metadata('{dir}/beside.parquet')", FUNCTION),
    "sniff_csv": ("FROM sniff_csv('{dir}/beside.csv')", FUNCTION),
    "glob": ("FROM glob('/*')", FUNCTION),
    "a file as a table": ("FROM '{dir}/beside.parquet'", TABLE),
    "a quoted file as a table": ('FROM "{dir}/beside.csv"', TABLE),
    "a file behind a WITH of its name": (
        "SELECT (WITH \"{dir}/beside.csv\" AS (SELECT 1) SELECT 1), (SELECT count(*) FROM '{dir}/beside.csv')",
        TABLE,
    ),
    "a file in a subquery": ("SELECT (SELECT count(*) FROM '{dir}/beside.parquet')", TABLE),
    "a file by address": ("FROM 'http://127.0.0.1:1/x.parquet'", TABLE),
    "load": ("LOAD json", QUESTION),
    "install": ("INSTALL spatial", QUESTION),
    "set": ("SET memory_limit = '1GB'", QUESTION),
    "set global": ("SET GLOBAL lock_configuration = false", QUESTION),
    "set variable": ("SET VARIABLE x = 1", QUESTION),
    "reset": ("RESET memory_limit", QUESTION),
    "pragma that writes": ("PRAGMA threads = 1", QUESTION),
    "pragma that reads": ("PRAGMA database_list", QUESTION),
    "call": ("CALL range(1)", QUESTION),
    "call quack_stop": ("CALL quack_stop('quack:127.0.0.1:1')", QUESTION),
    "checkpoint": ("CHECKPOINT", QUESTION),
    "force checkpoint": ("FORCE CHECKPOINT d", QUESTION),
    "vacuum": ("VACUUM", QUESTION),
    "analyze": ("ANALYZE clicks", QUESTION),
    "begin": ("BEGIN", QUESTION),
    "commit": ("COMMIT", QUESTION),
    "rollback": ("ROLLBACK", QUESTION),
    "prepare": ("PREPARE x AS SELECT 1", QUESTION),
    "execute": ("EXECUTE x", QUESTION),
    "deallocate": ("DEALLOCATE x", QUESTION),
    "several statements": ("SELECT 1; DROP TABLE clicks", "one statement"),
    "several questions": ("SELECT 1; SELECT 2", "2 statements"),
    "behind a comment": ("SELECT 1 -- \n; DROP TABLE clicks", "one statement"),
    "explain analyze": ("EXPLAIN ANALYZE INSERT INTO clicks VALUES (1, 'a')", PARSER),
    "explain analyze of a copy": ("EXPLAIN ANALYZE COPY clicks TO '{dir}/out.csv'", PARSER),
    "explain with options": ("EXPLAIN (ANALYZE) DELETE FROM clicks", PARSER),
    "explain of a write": ("EXPLAIN DELETE FROM clicks", QUESTION),
    "a WITH that writes": ("WITH x AS (DELETE FROM clicks RETURNING *) FROM x", PARSER),
    "getenv": ("SELECT getenv('HOME')", FUNCTION),
    "current_setting": ("SELECT current_setting('quack_authorization_function')", FUNCTION),
    "duckdb_settings": ("FROM duckdb_settings()", FUNCTION),
    "duckdb_secrets": ("FROM duckdb_secrets()", FUNCTION),
    "which_secret": ("FROM which_secret('s3://x', 's3')", FUNCTION),
    "duckdb_logs": ("FROM duckdb_logs()", FUNCTION),
    "write_log": ("SELECT write_log('x')", FUNCTION),
    "nextval": ("SELECT nextval('numbers')", FUNCTION),
    "nextval in a WITH": ("WITH x AS (SELECT nextval('numbers')) FROM x", FUNCTION),
    "quack_query": ("FROM quack_query('quack:127.0.0.1:1', 'SELECT 1', token => 'x')", FUNCTION),
    "quack_serve": ("FROM quack_serve('quack:127.0.0.1:1')", FUNCTION),
    "quack_server_list": ("FROM quack_server_list()", FUNCTION),
    "quack_active_connections": ("FROM quack_active_connections()", FUNCTION),
    "quack_check_token": ("SELECT quack_check_token('a', 'b', 'c')", FUNCTION),
    "the engine's own function": ("SELECT headrace_authorize('a', 'SELECT 1')", FUNCTION),
    "query": ("FROM query('DROP TABLE clicks')", FUNCTION),
    "query_table": ("FROM query_table('{dir}/beside.csv')", FUNCTION),
    "json_execute_serialized_sql": ("FROM json_execute_serialized_sql('x')", FUNCTION),
    "json_serialize_plan": ("SELECT json_serialize_plan('FROM clicks')", FUNCTION),
    "pragma function": ("FROM pragma_user_agent()", FUNCTION),
    "sleep": ("SELECT sleep_ms(100000)", FUNCTION),
    "another's result": ("FROM headrace_results.main.x", "only tables and views of d"),
    "another catalogue": ("FROM temp.x", "only tables and views of d"),
    "a variable of Python": ("FROM attached", TABLE),
    "a huge text": ("SELECT '" + "x" * 70_000 + "'", "65,536 are taken at most"),
    "a parameter": ("SELECT $1", "PARAMETER"),
    "an empty text": ("", "the query is empty"),
    "no text": ("\x01\x02", PARSER),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_text_is_refused(name: str, world: Served, attached: duckdb.DuckDBPyConnection) -> None:
    """Each text is refused with its reason, whether it comes by quack_query or by an attached database."""
    text, message = REFUSED[name]
    text = text.format(dir=world.path.parent) if "{dir}" in text else text
    address = world.address
    for way in ("FROM h.query(?)", f"FROM quack_query('{address.uri}', ?, token => '{address.token}')"):
        with pytest.raises(duckdb.Error) as error:
            attached.execute(way, [text]).fetchall()
        assert message in str(error.value).partition("\nLINE")[0]


#: What an attached client makes of statements over its own name of the file.
STATEMENTS = [
    "INSERT INTO h.clicks VALUES (1, 'a')",
    "INSERT INTO h.clicks SELECT range, 'a' FROM range(10000)",
    "INSERT INTO h.headrace.format VALUES (9)",
    "UPDATE h.clicks SET id = 0",
    "DELETE FROM h.clicks",
    "MERGE INTO h.clicks USING h.clicks AS c ON true WHEN MATCHED THEN DELETE",
    "CREATE TABLE h.x (a INT)",
    "CREATE TABLE h.x AS SELECT 1 AS a",
    "CREATE VIEW h.x AS SELECT 1",
    "CREATE SCHEMA h.x",
    "CREATE INDEX x ON h.clicks (id)",
    "DROP TABLE h.clicks",
    "DROP VIEW h.clicks",
    "ALTER TABLE h.clicks ADD COLUMN x INT",
    "COPY h.clicks FROM '/etc/passwd'",
    "COPY FROM DATABASE memory TO h",
    "CHECKPOINT h",
    "VACUUM h.clicks",
    "COMMENT ON TABLE h.clicks IS 'x'",
]


@pytest.mark.parametrize("statement", STATEMENTS)
def test_a_statement_over_an_attached_file_is_refused(statement: str, world: Served) -> None:
    """No statement that writes gets through, neither by itself nor in a transaction."""
    with client(world.address) as connection:
        connection.execute("CREATE TABLE mine AS SELECT 1 AS a")
        with pytest.raises(duckdb.Error):
            connection.execute(statement)
        with contextlib.suppress(duckdb.Error):
            connection.execute("ROLLBACK")
        connection.execute("BEGIN")
        with pytest.raises(duckdb.Error):  # noqa: PT012 - either of them
            connection.execute(statement)
            connection.execute("COMMIT")


def test_an_append_would_come_through_if_inserts_got_an_answer(
    world: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Any text at all that is given for INSERT lets rows in: what shows that the tests above would notice it."""
    monkeypatch.setattr(serving, "_INSERT", re.compile("never"))
    with client(world.address) as connection:
        connection.execute("INSERT INTO h.clicks VALUES (-1, 'let in')")
    assert world.run("SELECT count(*) FROM clicks") == [(ROWS + 1,)]
    world.run("DELETE FROM clicks WHERE id = -1")


def test_a_wrong_token_is_refused(world: Served) -> None:
    """Neither a question nor an attach is answered to who does not know the token."""
    address = world.address
    for token in ("", "x" * 16, address.token[:-1], address.token.upper() + "x"):
        with client() as connection:
            with pytest.raises(duckdb.Error, match=r"(?i)token|authentication"):
                connection.execute("FROM quack_query(?, 'SELECT 1', token => ?)", [address.uri, token])
            with pytest.raises(duckdb.Error, match=r"(?i)token|authentication"):
                connection.execute(f"ATTACH '{address.uri}' AS h (TOKEN '{token}')")


def test_the_address_is_for_its_owner_alone(world: Served) -> None:
    """The file with the token can be read by nobody else, and the server listens at loopback only."""
    assert address_path(world.path).stat().st_mode & 0o777 == 0o600
    assert world.address.uri.startswith("quack:127.0.0.1:")
    port = int(world.address.uri.rpartition(":")[2])
    listening = [
        line.split()[1]
        for table in ("tcp", "tcp6")
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]
        if line.split()[3] == "0A" and line.split()[1].endswith(f":{port:04X}")
    ]
    assert listening == [f"0100007F:{port:04X}"]


@pytest.mark.parametrize(
    "body",
    [b"", b"\0" * 1000, bytes(range(256)) * 4000, b"{}", b"\xff" * 16, b"SELECT 1" * 100_000],
    ids=["empty", "zeros", "all bytes", "json", "ones", "text"],
)
def test_a_body_of_garbage_does_nothing(body: bytes, world: Served) -> None:
    """What is no message is refused, and the server answers the next question."""
    port = int(world.address.uri.rpartition(":")[2])
    for method, path in (("POST", "/quack"), ("POST", "/"), ("GET", "/quack"), ("PUT", "/../../etc/passwd")):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        connection.request(method, path, body)
        answer = connection.getresponse()
        assert b"root:" not in answer.read()
        connection.close()
    with socket.create_connection(("127.0.0.1", port), timeout=10) as raw:
        raw.sendall(body or b"\r\n\r\n")
    with client(world.address) as other:
        assert other.execute("FROM h.query('SELECT count(*) FROM clicks')").fetchall() == [(ROWS,)]


def test_clients_see_the_file_alone(world: Served) -> None:
    """An attached client and SHOW ALL TABLES show the tables of the file, and not the results of others."""
    with client(world.address) as connection:
        connection.execute("FROM h.query('SELECT 1')").fetchall()
        shown = {row[0] for row in connection.execute("FROM h.query('SHOW ALL TABLES')").fetchall()}
        assert shown == {"d"}
        for asked in serving._CATALOG:
            answer = connection.execute("FROM h.query(?)", [asked]).fetchall()
            assert any("clicks" in str(row) or "d" in row for row in answer)
            assert not any("headrace_results" in str(row) or "r_" in str(row[1])[:2] for row in answer)


ENDLESS = "SELECT count(*) FROM range(1000000) AS a, range(1000000) AS b WHERE a.range + b.range > 7"


@pytest.mark.slow
def test_limits_are_said(tmp_path: Path) -> None:
    """Too long is interrupted, too many rows and too many clients are refused, each with a message."""
    with (
        served(tmp_path / "d.duckdb", queries_max=1, seconds_max=0.5, rows_max=10) as world,
        client(world.address) as connection,
        client(world.address) as other,
    ):
        with pytest.raises(duckdb.Error, match="more than 10 rows"):
            connection.execute("FROM h.query('FROM clicks')")
        with pytest.raises(duckdb.Error, match="more than 10 rows"):
            connection.execute("SELECT count(*) FROM h.clicks")
        assert len(connection.execute("FROM h.query('FROM clicks LIMIT 10')").fetchall()) == 10
        with pytest.raises(duckdb.Error, match=r"longer than 0.5 s and was interrupted"):
            connection.execute("FROM h.query(?)", [ENDLESS])
        # One runs, as far as the writer knows; the next waits for it in vain.
        server = world.database.server
        assert server is not None
        with (
            server._admission.admitted(time.monotonic() + 1),
            pytest.raises(duckdb.Error, match="Not now: 1 queries run at a time"),
        ):
            other.execute("FROM h.query('SELECT 1')")
        assert other.execute("FROM h.query('SELECT 1')").fetchall() == [(1,)]


def test_a_settings_file_cannot_be_planted(world: Served) -> None:
    """The connection that analysts' texts run on opens nothing itself: external access is off and stays off."""
    settings = dict(
        world.run(
            "SELECT name, value FROM duckdb_settings() WHERE name IN"
            " ('enable_external_access', 'lock_configuration', 'autoload_known_extensions',"
            " 'autoinstall_known_extensions', 'python_enable_replacements')"
        )
    )
    assert settings == {
        "enable_external_access": "false",
        "lock_configuration": "true",
        "autoload_known_extensions": "false",
        "autoinstall_known_extensions": "false",
        "python_enable_replacements": "false",
    }
