"""Which texts are questions: every form that only reads passes, and whatever else is refused wherever it stands."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import duckdb
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from connectors.analysis import check
from connectors.analysis.functions import TABLE_FUNCTIONS, VOLATILE, computing
from engine.errors import UserError


@pytest.fixture(scope="module")
def target() -> Iterator[duckdb.DuckDBPyConnection]:
    with duckdb.connect() as connection:
        connection.execute(
            "CREATE TABLE t AS SELECT 1 AS a, 'x' AS b; CREATE SCHEMA s; CREATE TABLE s.u AS SELECT 1 AS q;"
            "CREATE VIEW v AS FROM t; CREATE SEQUENCE numbers; CREATE MACRO mine(x) AS x;"
            "ATTACH ':memory:' AS other; CREATE TABLE other.main.r AS SELECT 1 AS z"
        )
        yield connection


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT * FROM t",
        "FROM t",
        "TABLE t",
        "VALUES (1)",
        "FROM t LIMIT 1; -- 'ä;",
        "FROM v",
        "FROM s.u",
        "FROM memory.s.u",
        "FROM memory.t",
        "DESCRIBE t",
        "SHOW TABLES",
        "SHOW ALL TABLES",
        "SUMMARIZE t",
        "SUMMARIZE SELECT 1",
        "FROM (DESCRIBE t)",
        "EXPLAIN FROM t",
        "SELECT #1, #2 FROM t",
        "WITH x AS (FROM t) FROM x",
        "WITH x AS MATERIALIZED (FROM t) FROM x",
        "WITH RECURSIVE r(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM r WHERE n < 5) FROM r",
        "PIVOT t ON b IN ('x') USING sum(a)",
        "UNPIVOT t ON a INTO NAME n VALUE v",
        "FROM range(3)",
        "FROM unnest([1, 2])",
        "SELECT unnest([1, 2])",
        "SELECT count(*) FILTER (a > 1) OVER (), [x FOR x IN [1]], list_transform([1], lambda x: x + 1) FROM t",
        "SELECT {'a': 1}, MAP {'a': 1}, ('x').upper(), x'00'::BLOB, t::JSON, TRY_CAST(b AS INT) FROM t",
        "SELECT CASE WHEN a BETWEEN 1 AND 2 THEN b ELSE b COLLATE NOCASE END, b LIKE '%', a IN (SELECT 1) FROM t",
        "SELECT DISTINCT ON (b) * EXCLUDE (a) REPLACE (upper(b) AS b) FROM t QUALIFY row_number() OVER () = 1",
        "SELECT a FROM t GROUP BY ROLLUP (a) HAVING count(*) > 0 ORDER BY a DESC NULLS LAST LIMIT 1 OFFSET 0",
        "FROM t AS x ASOF JOIN t AS y ON x.a >= y.a SEMI JOIN t AS z ON x.a = z.a",
        "FROM t, LATERAL (SELECT t.a + 1)",
        "FROM t TABLESAMPLE 1%",
        "FROM t LIMIT 10%",
        "SELECT 1 UNION ALL SELECT 2 EXCEPT SELECT 3",
        "SELECT COLUMNS(*), current_date, DATE '2020-01-01' + INTERVAL 1 DAY, extract(YEAR FROM now()) FROM t",
        "FROM information_schema.tables",
        "FROM duckdb_tables()",
        "SELECT * FROM pg_catalog.pg_class",
    ],
)
def test_questions_pass(sql: str, target: duckdb.DuckDBPyConnection) -> None:
    """What only reads the target passes, and DuckDB runs the text that is given back."""
    target.execute(check(target, sql).sql).to_arrow_table()


#: Places where an expression may stand.
PLACES = [
    "SELECT {}",
    "SELECT 1 ORDER BY (SELECT {})",
    "SELECT 1 LIMIT {}",
    "SELECT sum(1) FILTER ({} > 1) OVER (ORDER BY 1)",
    "SELECT sum(1) OVER (PARTITION BY {})",
    "FROM t WHERE a IN (SELECT {})",
    "FROM range((SELECT {}))",
    "FROM unnest([{}])",
    "SELECT * REPLACE ({} AS b) FROM t",
    "SELECT COLUMNS(x -> {} = 1) FROM t",
    "PIVOT (SELECT {} AS x, 1 AS y) ON x IN (1) USING sum(y)",
    "PIVOT t ON a IN (1) USING sum({})",
    "SELECT CASE WHEN {} = 1 THEN 2 END",
    "VALUES ({})",
    "FROM (VALUES ({}))",
    "DESCRIBE SELECT {}",
    "SUMMARIZE SELECT {}",
    "EXPLAIN SELECT {}",
    "FROM t JOIN t AS y ON {} = 1",
    "SELECT a FROM t GROUP BY {}, a",
    "SELECT a FROM t HAVING {} = 1",
    "SELECT a FROM t QUALIFY {} = 1",
    "SELECT DISTINCT ON ({}) a FROM t",
    "SELECT [{} FOR x IN [1]]",
    "SELECT {{'a': {}}}",
    "SELECT 1 UNION SELECT {}",
    "WITH x AS (SELECT {}) SELECT 1",
    "WITH RECURSIVE r AS (SELECT 1 UNION ALL SELECT {} FROM r) FROM r",
    "SELECT (WITH x AS MATERIALIZED (SELECT {}) FROM x)",
    "SELECT string_agg(b ORDER BY {}) FROM t",
    "SELECT TRY({})",
    "SELECT {}::VARCHAR COLLATE NOCASE",
    "SELECT 1 BETWEEN {} AND 2",
    "SELECT lag(1, {}) OVER (ORDER BY 1)",
    "SELECT sum(1) OVER (ORDER BY 1 ROWS BETWEEN {} PRECEDING AND CURRENT ROW)",
    "SELECT list_transform([1], lambda x: {})",
    "SELECT [1][{}:2]",
    "FROM t AT (VERSION => {})",
]

CALLS = [
    "nextval('numbers')",
    "current_setting('x')",
    "mine(1)",
    "main.nextval('numbers')",
    "('numbers').nextval()",
]


@pytest.mark.parametrize("place", PLACES)
def test_no_place_hides_a_function(place: str, target: duckdb.DuckDBPyConnection) -> None:
    """A function that does more than compute is found wherever an expression may stand, and so is a file's name."""
    check(target, place.format("abs(1)"))
    for call in CALLS:
        with pytest.raises(UserError, match="cannot be called here"):
            check(target, place.format(call))
    with pytest.raises(UserError, match="no table or view"):
        check(target, place.format("(SELECT max(a) FROM 'x.csv')"))
    with pytest.raises(UserError, match=r"no table or view|table function read_csv"):
        check(target, place.format("(SELECT max(a) FROM read_csv('x.csv'))"))


@given(
    st.lists(
        st.sampled_from([p for p in PLACES if p.startswith("SELECT") and "OVER" not in p]), min_size=1, max_size=4
    )
)
@settings(max_examples=50, deadline=None)
def test_no_nesting_hides_a_function(places: list[str]) -> None:
    """However deep it lies."""
    good, bad = "1", "nextval('numbers')"
    for place in places:
        good, bad = f"({place.format(good)})", f"({place.format(bad)})"
    with duckdb.connect() as connection:
        connection.execute("CREATE TABLE t AS SELECT 1 AS a, 'x' AS b")
        check(connection, good)
        with pytest.raises(UserError, match="nextval cannot be called"):
            check(connection, bad)


@pytest.mark.parametrize(
    ("sql", "message"),
    [
        ("FROM other.r", "only tables and views of memory"),
        ("FROM other.main.r", "only tables and views of memory"),
        ("FROM temp.main.x", "only tables and views of memory"),
        ("FROM nothing.at.all", "no table or view"),
        ("WITH \"x.csv\" AS (SELECT 1) FROM 'x.csv'", "no table or view"),
        ("PIVOT t ON b USING sum(a)", "name its values"),
        ("SHOW DATABASES", "SHOW DATABASES"),
        ("SHOW VARIABLES", "SHOW VARIABLES"),
        ("PRAGMA table_info('t')", "PRAGMA is no question"),
        ("SELECT 1; SELECT 2", "2 statements"),
        ("SELECT 1; DROP TABLE t", "one statement"),
        ("", "empty"),
        ("-- nothing", "empty"),
        ("SELECT '\ud800'", "surrogate"),
        ("SELECT 1\0", "NUL"),
        ("SELECT '" + "x" * 65_536 + "'", "65,536"),
        ("SELECT " + "[" * 3_000 + "]" * 3_000, "depth"),
        ("SELECT 1,\n  nope(", "line 2"),
    ],
)
def test_what_is_no_question_is_named(sql: str, message: str, target: duckdb.DuckDBPyConnection) -> None:
    """Each refusal says what it is about."""
    with pytest.raises(UserError, match=message):
        check(target, sql)


def test_checking_opens_no_file(tmp_path: Path, target: duckdb.DuckDBPyConnection) -> None:
    """To parse IMPORT DATABASE, DuckDB would read the directory: its text is refused before."""
    (tmp_path / "schema.sql").write_text("this is secret")
    with pytest.raises(UserError, match="IMPORT is no question") as error:
        check(target, f"IMPORT DATABASE '{tmp_path}'")
    assert "secret" not in str(error.value)


def test_the_functions_that_may_be_called_are_known() -> None:
    """Of DuckDB's own functions those that are volatile, internal, or about files and settings are left out."""
    allowed = computing()
    assert {"sum", "list_transform", "+", "->>", "regexp_matches", "row_number", "now", "nullif"} <= allowed
    with duckdb.connect() as connection:
        volatile = connection.execute(
            "SELECT DISTINCT lower(function_name) FROM duckdb_functions()"
            " WHERE function_type = 'scalar' AND stability = 'VOLATILE'"
        ).fetchall()
        tables = connection.execute(
            "SELECT DISTINCT function_name FROM duckdb_functions() WHERE function_type = 'table'"
        ).fetchall()
    assert allowed & {row[0] for row in volatile} == VOLATILE
    assert not [name for name in allowed if "quack" in name or ("file" in name and not name.startswith("parse_"))]
    dangerous = ("read_", "scan", "query", "secret", "setting", "glob", "csv", "log", "sql", "parquet")
    assert not [row[0] for row in tables if row[0] in TABLE_FUNCTIONS and any(part in row[0] for part in dangerous)]


@pytest.mark.parametrize(
    ("sql", "why"),
    [
        ("SELECT " + "[" * 900 + "1" + "]" * 900, "nested too deeply"),
        ("SELECT 'aaa' GLOB '*a*a*a*b'", "~~~"),
        ("FROM test_all_types()", "test_all_types"),
    ],
)
def test_what_would_not_end_is_refused(target: duckdb.DuckDBPyConnection, sql: str, why: str) -> None:
    """A tree too deep to look through, and functions that nothing interrupts, are refused with their reason."""
    with pytest.raises(UserError, match=why):
        check(target, sql)
