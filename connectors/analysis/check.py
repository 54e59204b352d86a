"""Whether a text is one question that only reads what it may, judged by DuckDB's own parse tree.

What is not known is refused: statements but SELECT (with FROM, WITH, VALUES, PIVOT, SHOW, DESCRIBE, SUMMARIZE) and
EXPLAIN of those; nodes of the tree that are not listed here; functions outside of `functions`; tables and views
that are not in the target's own catalogue, so that no name of a file is taken for one.

Not here: limits of time and size (`runner`), and the settings that keep a connection from files in any case.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import duckdb
import orjson

from connectors.analysis.functions import LAKE_TABLE_FUNCTIONS, TABLE_FUNCTIONS, computing
from engine.errors import UserError

#: A tree is some hundred times as large as its text.
SQL_BYTES_MAX = 65_536

HINT = (
    "valid are SELECT, FROM, WITH, VALUES, SHOW TABLES, DESCRIBE, SUMMARIZE, PIVOT ... ON ... IN,"
    " and EXPLAIN of those"
)

_EXPLAIN = re.compile(r"EXPLAIN\s+(?=\S)", re.IGNORECASE)
_WORD = re.compile(r"\w+")
_MARKER = re.compile(r"^LINE (\d+): (.*)\n( *)\^", re.MULTILINE)

_EXPRESSIONS = frozenset(
    (
        *("BETWEEN", "CASE", "CAST", "COLLATE", "COLUMN_REF", "COMPARISON", "CONJUNCTION", "CONSTANT", "FUNCTION"),
        *("LAMBDA", "LAMBDA_REF", "OPERATOR", "POSITIONAL_REFERENCE", "STAR", "SUBQUERY", "WINDOW"),
    )
)
_QUERIES = frozenset({"SELECT_NODE", "SET_OPERATION_NODE", "RECURSIVE_CTE_NODE", "CTE_NODE"})
_TABLES = frozenset(
    ("BASE_TABLE", "SUBQUERY", "JOIN", "TABLE_FUNCTION", "EXPRESSION_LIST", "EMPTY", "SHOW_REF", "PIVOT")
)
_MODIFIERS = frozenset({"LIMIT_MODIFIER", "LIMIT_PERCENT_MODIFIER", "ORDER_MODIFIER", "DISTINCT_MODIFIER"})
_ORDERS = frozenset({"ORDER_DEFAULT", "ASCENDING", "DESCENDING"})
_NODES = _QUERIES | _TABLES | _MODIFIERS | _ORDERS

_SHOWN = frozenset({"tables", "__show_tables_expanded"})

#: The name of a WITH that a table's name may mean; one of a file has a dot or a slash.
_PLAIN = re.compile(r"[\w$ -]+")

_OBJECTS = """
SELECT lower(database_name), lower(schema_name), lower(table_name) FROM duckdb_tables()
WHERE lower(table_name) IN (SELECT unnest($names))
UNION ALL
SELECT lower(database_name), lower(schema_name), lower(view_name) FROM duckdb_views()
WHERE lower(view_name) IN (SELECT unnest($names))
"""


@dataclass(frozen=True, slots=True)
class Question:
    """A text that passed, without the semicolon at its end. ``explains``: an EXPLAIN, which is no table."""

    sql: str
    explains: bool


@dataclass(frozen=True, slots=True)
class _Table:
    catalog: str
    schema: str
    name: str

    def __str__(self) -> str:
        return ".".join(part for part in (self.catalog, self.schema, self.name) if part)


class _Found:
    """What a tree names."""

    def __init__(self) -> None:
        self.tables: list[_Table] = []
        self.withs: set[str] = set()
        self.functions: list[str] = []
        self.table_functions: list[str] = []


def check(connection: duckdb.DuckDBPyConnection, sql: str) -> Question:
    """The question in ``sql``. Raises UserError for one that is not, with the reason or DuckDB's message.

    ``connection`` is one to the target: its current database is what may be read. It runs only what is of this
    module; ``sql`` is parsed, not bound.
    """
    try:
        size = len(sql.encode())
    except UnicodeEncodeError:
        raise UserError("the query is no text: it has half of a surrogate pair") from None
    if size > SQL_BYTES_MAX:
        raise UserError(f"the query has {size:,} bytes; {SQL_BYTES_MAX:,} are taken at most")
    if "\0" in sql:
        raise UserError("the query has a NUL character")
    text = without_end(sql)
    explains = _EXPLAIN.match(text)
    # With ANALYZE or options, what follows EXPLAIN is no SELECT.
    found = _walked(_tree(connection, text[explains.end() :] if explains else text))
    _check_functions(found)
    _check_tables(connection, found)
    return Question(text, explains is not None)


def mistake(error: duckdb.Error, sql: str, *, lines_before: int = 0) -> UserError:
    """DuckDB's message on one line, with the position in ``sql`` where it tells one.

    ``lines_before``: how many lines the statement that ran had before ``sql``.
    """
    message = " ".join(_MARKER.sub("", str(error)).split())
    found = _MARKER.search(str(error))
    if found is None:
        return UserError(message)
    line, shown, indent = int(found[1]) - lines_before, found[2], len(found[3])
    lines = sql.splitlines()
    caret = indent - len(f"LINE {found[1]}: ")
    if not 1 <= line <= max(1, len(lines)):
        return UserError(message)
    # Long lines are shown in part, with dots for what is left out.
    start = 0
    if shown.startswith("...") and line <= len(lines):
        start = lines[line - 1].find(shown.removeprefix("...").removesuffix("..."))
        caret -= len("...")
    if start < 0 or caret < 0:
        return UserError(f"{message} (line {line})")
    return UserError(f"{message} (line {line}, column {start + caret + 1})")


def without_end(text: str) -> str:
    """The text up to the semicolons at its end, and without the comments after them."""
    encoded = text.encode()  # the tokenizer counts bytes, and gives no comments
    for offset, _kind in reversed(duckdb.tokenize(text)):
        if encoded[offset : offset + 1] != b";":
            break
        encoded = encoded[:offset]
    return encoded.decode().strip()


def _tree(connection: duckdb.DuckDBPyConnection, text: str) -> dict[str, Any]:
    """The parse tree of one SELECT. Nothing else parses the text before: to parse IMPORT would open files, and to
    parse PRAGMA would make a SELECT of it.
    """
    found = connection.execute("SELECT json_serialize_sql($text)::VARCHAR", {"text": text}).fetchone()
    assert found is not None
    try:
        tree: dict[str, Any] = orjson.loads(found[0])
    except orjson.JSONDecodeError:
        raise UserError("the query is nested too deeply") from None
    if tree.get("error"):
        message = str(tree.get("error_message", "it cannot be parsed"))
        if "Only SELECT" not in message:
            raise UserError(f"Parser Error: {message}{_place(text, tree.get('position'))}")
        if re.search(r"\bPIVOT\b", text, re.IGNORECASE):
            raise UserError("PIVOT has to name its values here: ON COLUMN IN (VALUE, ...)")
        word = _WORD.match(text)
        what = word[0].upper() if word else "this"
        if what in ("SELECT", "FROM", "WITH", "VALUES"):
            raise UserError("one statement can be asked at a time, and a query only reads", hint=HINT)
        raise UserError(f"{what} is no question: a query only reads", hint=HINT)
    count = len(tree["statements"])
    if count != 1:
        raise UserError(f"{count} statements; one can be asked at a time" if count else "the query is empty")
    return tree


def _place(text: str, position: object) -> str:
    """Where in ``text`` an error is, in words; DuckDB counts bytes."""
    if not isinstance(position, str | int) or not str(position).isdecimal():
        return ""
    before = text.encode()[: int(position)].decode(errors="ignore")
    return f" (line {before.count(chr(10)) + 1}, column {len(before) - before.rfind(chr(10))})"


def _walked(tree: dict[str, Any]) -> _Found:
    """Every node is one of those that are known."""
    found = _Found()
    stack: list[Any] = [statement["node"] for statement in tree["statements"]]
    while stack:
        node = stack.pop()
        if isinstance(node, list):
            stack.extend(node)
        elif isinstance(node, dict):
            stack.extend(_visit(node, found))
    return found


def _visit(node: dict[str, Any], found: _Found) -> Iterator[Any]:
    """The children to look at."""
    kind = node.get("type")
    if isinstance(kind, dict) and node.keys() <= {"type", "is_null", "value"}:
        return  # a value, whatever its type
    if "class" in node:
        if node["class"] not in _EXPRESSIONS:
            raise UserError(f"an expression of the class {node['class']} cannot be asked here")
        if node["class"] == "CONSTANT":
            return
        if node["class"] in ("FUNCTION", "WINDOW"):
            found.functions.append(str(node["function_name"]))
    elif isinstance(kind, str):
        if kind not in _NODES:
            raise UserError(f"a part of the type {kind} cannot be asked here", hint=HINT)
        _visit_table(kind, node, found)
        if kind == "TABLE_FUNCTION":
            # Its own name is judged as a table function, its arguments as expressions.
            function = node["function"]
            if not isinstance(function, dict) or function.get("class") != "FUNCTION":
                raise UserError("a table function of this form cannot be asked here")
            yield {key: value for key, value in function.items() if key not in ("class", "type", "function_name")}
            yield {key: value for key, value in node.items() if key not in ("function", "type")}
            return
    for key, value in node.items():
        if key == "cte_map":
            found.withs.update(str(entry["key"]).lower() for entry in value["map"])
        if key == "cte_name":
            found.withs.add(str(value).lower())
        if key not in ("cast_type", "sample", "expected_types"):
            yield value


def _visit_table(kind: str, node: dict[str, Any], found: _Found) -> None:
    if kind == "BASE_TABLE":
        parts = (str(node[f"{part}_name"]).lower() for part in ("catalog", "schema", "table"))
        found.tables.append(_Table(*parts))
    elif kind == "TABLE_FUNCTION":
        found.table_functions.append(str(node["function"].get("function_name", "")))
    elif kind == "PIVOT" and any(pivot.get("pivot_enum") for pivot in node["pivots"]):
        raise UserError("PIVOT has to name its values here: ON COLUMN IN (VALUE, ...)")
    elif kind == "SHOW_REF" and node.get("query") is None:
        name = str(node["table_name"]).strip('"')
        if name and name not in _SHOWN:
            raise UserError(f"SHOW {name.upper()} cannot be asked here", hint=HINT)


def _check_functions(found: _Found) -> None:
    for name in found.table_functions:
        if name.lower() not in TABLE_FUNCTIONS | LAKE_TABLE_FUNCTIONS:
            raise UserError(
                f"the table function {name} cannot be called here:"
                " it reads more than the tables, or does more than read"
            )
    allowed = computing()
    for name in found.functions:
        if name.lower() not in allowed:
            raise UserError(f"the function {name} cannot be called here: it is none of those that only compute")


def _check_tables(connection: duckdb.DuckDBPyConnection, found: _Found) -> None:
    """Each name is a table or view of the current database, or of DuckDB's own, or a name of the query's WITH."""
    if not found.tables:
        return
    names = sorted({table.name for table in found.tables})
    own = _value(connection, "SELECT lower(current_database())")
    rows = connection.execute(_OBJECTS, {"names": names}).fetchall()
    objects = {_Table(*row) for row in rows if row[0] in (own, "system")}
    others = set(_value(connection, "SELECT list(lower(database_name)) FROM duckdb_databases()")) - {own, "system"}
    for table in found.tables:
        if not table.catalog and not table.schema and table.name in found.withs and _PLAIN.fullmatch(table.name):
            continue
        # `a.b` may be a schema's or a database's: where both are there, DuckDB finds it ambiguous.
        if table.catalog in others or (not table.catalog and table.schema in others):
            raise UserError(f"{table}: only tables and views of {own} can be asked")
        if not any(_means(table, each, own) for each in objects):
            raise UserError(
                f"there is no table or view {table}", hint="SHOW ALL TABLES lists them; files are not read by name"
            )


def _means(table: _Table, there: _Table, own: str) -> bool:
    """Whether a name in a query may be that table: ``schema.table`` may also be read as ``database.table``."""
    if table.name != there.name or table.catalog not in ("", there.catalog):
        return False
    if table.schema in ("", there.schema):
        return True
    return not table.catalog and table.schema == own == there.catalog


def _value(connection: duckdb.DuckDBPyConnection, sql: str) -> Any:
    found = connection.execute(sql).fetchone()
    assert found is not None
    return found[0]
