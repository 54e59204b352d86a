"""Reading results with SQL: one query over a DuckDB file, over the files of a Parquet directory, or over nothing.

A DuckDB file that an engine writes is asked over the engine's own server, which has the same file open.

Reads only: one SELECT (or what DuckDB takes for one: SHOW, DESCRIBE, SUMMARIZE, PIVOT) or the EXPLAIN of one, and
no file but those that were asked for. Values come as text, made by DuckDB itself, so that none loses precision on
its way through Python. Not here: how an answer is laid out.
"""

from __future__ import annotations

import contextlib
import re
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import duckdb
import pyarrow as pa

from connectors.analysis.check import mistake, without_end
from connectors.analysis.client import ANSWER, fetch
from connectors.duckdb.serving import Address, address_path, read_address
from connectors.ducklake.reading import is_lake, open_lake
from connectors.json_text import without_words
from connectors.parquet.files import Directories
from connectors.parquet.filesystem import OsFileSystem
from connectors.parquet.identity import IdentityFiles
from connectors.parquet.layout import HIDDEN
from connectors.parquet.live import live_files
from connectors.parquet.sink import ROWS
from engine.errors import ExternalError, HeadraceError, UserError

#: ``text``: each value as DuckDB's VARCHAR, or None. ``json``: each row as one JSON object.
Rendering = Literal["text", "json"]

FETCH_ROWS = 1_000

VIEW = "data"

_EXPLAIN = re.compile(r"\s*EXPLAIN\s+(?:ANALYZE\s+)?", re.IGNORECASE)
_HOLDER = re.compile(r"Conflicting lock is held in (.*?) ?\(PID (\d+)\)")


@dataclass(frozen=True, slots=True)
class Answer:
    """``columns`` names; ``numeric`` whether each is a number; ``rows`` in pieces, read as they are asked for."""

    columns: Sequence[str]
    numeric: Sequence[bool]
    rows: Iterator[Sequence[Sequence[str | None]]]


class InUse(ExternalError):
    """Another process writes to the file; ``pid`` is that process, as far as DuckDB told."""

    def __init__(self, path: Path, program: str, pid: int | None) -> None:
        holder = "another process" if pid is None else f"process {pid}" + (f" ({program})" if program else "")
        super().__init__(
            f"DuckDB file {path} is in use: {holder} writes to it, and DuckDB lets no other process in meanwhile",
            hint="a running engine serves it where query.serve is on; else ask a snapshot, or ask again later; "
            "Parquet sinks can be asked at any time, with --parquet DIR",
        )
        self.pid = pid


@contextlib.contextmanager
def open_database(path: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    """A DuckDB file, or the lake whose catalogue it is, to read.

    Raises UserError, and InUse while another process writes to it.
    """
    if not path.is_file():
        raise UserError(f"there is no DuckDB file {path}")
    try:
        connection = duckdb.connect(path, read_only=True, config={"autoinstall_known_extensions": False})
    except duckdb.Error as error:
        raise _not_opened(path, error) from None
    if is_lake(connection):
        connection.close()
        with open_lake(path, confined=True) as lake:
            yield lake
        return
    with connection, _confined(connection):
        yield connection


def served_at(path: Path, use: InUse) -> Address:
    """Where the process that uses the file serves it. Raises ``use`` where it does not."""
    path = path.resolve()
    address = read_address(path)
    if address is None:
        raise use
    if use.pid is not None and address.pid != use.pid:
        use.hint = (
            f"{address_path(path)} is left from process {address.pid}, which does not have the file;"
            f" process {use.pid} does not serve it"
        )
        raise use
    return address


@contextlib.contextmanager
def open_served(path: Path, address: Address, sql: str) -> Iterator[duckdb.DuckDBPyConnection]:
    """What the engine that serves a file answers to ``sql``, as the table that `ask_served` lays out.

    Raises UserError for the question, and ExternalError for an engine that does not answer.
    """
    with (
        duckdb.connect(config={"autoinstall_known_extensions": False}) as connection,
        tempfile.TemporaryDirectory(prefix="headrace-query-") as spill,
    ):
        connection.execute(f"SET temp_directory = {_text(spill)}")
        _set_up(connection)
        fetch(connection, address.uri, address.token, sql, database=path)
        yield connection
        connection.close()  # before its directory goes


@contextlib.contextmanager
def open_directory(path: Path) -> Iterator[duckdb.DuckDBPyConnection | None]:
    """The Parquet files below ``path``, under the name `VIEW` and that of the directory.

    Hidden directories are never read: a sink keeps what is not committed there. Columns of Hive directories
    are columns, files of different schemas are put together by name. A sink without a committed file has no
    rows, in the columns of the schema that it has adopted; None if it has adopted none yet.

    Raises UserError for what is no directory, and for one that is no sink and has no Parquet file.
    """
    if not path.is_dir():
        hint = "one file can be asked by its name: FROM 'FILE.parquet'" if path.is_file() else None
        raise UserError(f"there is no directory {path}", hint=hint)
    root = path.resolve()
    files = committed_files(root)
    if not files:
        schema = _adopted_schema(path, root)
        if schema is None:
            yield None
            return
        with _empty(root, schema) as connection:
            yield connection
        return
    # Where only some are in Hive directories DuckDB refuses, rather than that a column goes unnoticed.
    hive = any("=" in part for file in files for part in file.relative_to(root).parts[:-1])
    listed = ", ".join(_text(str(file)) for file in files)
    source = f"read_parquet([{listed}], union_by_name = true, hive_partitioning = {hive})"
    with duckdb.connect(config={"autoinstall_known_extensions": False}) as connection:
        try:
            connection.execute(f"SET allowed_paths = [{listed}]")
            for name in _names(root):
                connection.execute(f"CREATE OR REPLACE VIEW {_name(name)} AS FROM {source}")
        except duckdb.Error as error:
            raise UserError(f"the Parquet files of {path} cannot be read together: {_first_line(error)}") from None
        with _confined(connection):
            yield connection


def _adopted_schema(path: Path, root: Path) -> pa.Schema | None:
    """What the rows of a sink will be, None if that is open. Raises UserError for what is no sink."""
    if not (root / HIDDEN).is_dir():
        raise UserError(
            f"directory {path} has no Parquet file, and is not a sink of headrace",
            hint="name the directory that a pipeline's sink has as its path",
        )
    filesystem = OsFileSystem()
    return IdentityFiles(filesystem, root, Directories(filesystem, root)).schema(ROWS)


@contextlib.contextmanager
def _empty(root: Path, schema: pa.Schema) -> Iterator[duckdb.DuckDBPyConnection]:
    """No rows, in the columns of ``schema``."""
    with duckdb.connect(config={"autoinstall_known_extensions": False}) as connection:
        source = f"{root.name} of none"  # neither of the names
        connection.register(source, schema.empty_table())
        for name in _names(root):
            connection.execute(f"CREATE OR REPLACE TABLE {_name(name)} AS FROM {_name(source)}")
        connection.unregister(source)
        with _confined(connection):
            yield connection


def _names(root: Path) -> Iterator[str]:
    """What a directory's rows are called; `VIEW` last, so that it wins over a directory called as it."""
    yield from filter(None, (root.name, VIEW))


@contextlib.contextmanager
def open_memory() -> Iterator[duckdb.DuckDBPyConnection]:
    """An empty database. Files may be read by name, as the query itself says which."""
    with duckdb.connect(config={"autoinstall_known_extensions": False}) as connection:
        _set_up(connection)
        yield connection


def committed_files(root: Path) -> list[Path]:
    """The Parquet files below a directory that have each row once, sorted, without those in hidden directories."""
    return [file for file in live_files(root) if file.is_file()]


def ask(connection: duckdb.DuckDBPyConnection, sql: str, rendering: Rendering) -> Answer:
    """The answer to one reading statement. Raises UserError with DuckDB's message and the position in ``sql``.

    Errors in the data show while the rows are read, as UserError too.
    """
    text, explains = _checked(connection, sql)
    try:
        if explains:
            return _explained(connection, text)
        relation = _bound(connection, text)
    except duckdb.Error as error:
        raise mistake(error, sql) from None
    return _answer(connection, f"({text}\n)", relation, sql, rendering)


def ask_served(connection: duckdb.DuckDBPyConnection, sql: str, rendering: Rendering) -> Answer:
    """The answer that `open_served` fetched to ``sql``."""
    relation = connection.sql(f"FROM {ANSWER}")
    if list(relation.columns) == ["explain_key", "explain_value"]:
        return _explained(connection, f"FROM {ANSWER}")
    return _answer(connection, ANSWER, relation, sql, rendering)


def _explained(connection: duckdb.DuckDBPyConnection, text: str) -> Answer:
    shown = [(line,) for row in connection.execute(text).fetchall() for line in str(row[-1]).splitlines()]
    return Answer(("explain",), (False,), iter([shown]))


def _answer(
    connection: duckdb.DuckDBPyConnection,
    source: str,
    relation: duckdb.DuckDBPyRelation,
    sql: str,
    rendering: Rendering,
) -> Answer:
    """The rows of ``source``, whose columns ``relation`` has, as text."""
    columns, types = list(relation.columns), [str(kind) for kind in relation.types]
    names = ", ".join(f"c{index}" for index in range(len(columns)))
    if rendering == "json":
        members = ", ".join(f"{_name(name)}: c{index}" for index, name in enumerate(_unique(columns)))
        wanted = f"to_json({{{members}}})::VARCHAR"
    else:
        wanted = ", ".join(f"c{index}::VARCHAR" for index in range(len(columns)))
    try:
        connection.execute(f"FROM {source} AS answer({names}) SELECT {wanted}")
    except duckdb.Error as error:
        raise mistake(error, sql) from None
    return Answer(columns, [_is_number(kind) for kind in types], _rows(connection, sql, rendering))


def _bound(connection: duckdb.DuckDBPyConnection, text: str) -> duckdb.DuckDBPyRelation:
    """The statement with its names looked up, not run."""
    try:
        return connection.sql(text)
    except duckdb.Error:
        # The same error from here has the position; nothing that cannot be bound is run.
        connection.execute(text)
        raise


def _rows(
    connection: duckdb.DuckDBPyConnection, sql: str, rendering: Rendering
) -> Iterator[Sequence[Sequence[str | None]]]:
    try:
        while rows := connection.fetchmany(FETCH_ROWS):
            yield [(without_words(row[0], quoted=True),) for row in rows] if rendering == "json" else rows
    except duckdb.Error as error:
        raise mistake(error, sql) from None


def _checked(connection: duckdb.DuckDBPyConnection, sql: str) -> tuple[str, bool]:
    """The statement without its end, and whether it is an EXPLAIN."""
    try:
        statements = connection.extract_statements(sql)
    except duckdb.Error as error:
        raise mistake(error, sql) from None
    if not statements:
        raise UserError("the query is empty")
    kinds = [statement.type for statement in statements]
    # A PIVOT without IN becomes several statements without a text of their own.
    if len(statements) > 1 and all(not statement.query for statement in statements):
        return without_end(sql), False
    if len(statements) > 1:
        raise UserError(f"{len(statements)} statements; one can be asked at a time")
    text = without_end(statements[0].query or sql)
    if kinds[0] == duckdb.StatementType.SELECT:
        return text, False
    if kinds[0] == duckdb.StatementType.EXPLAIN and (found := _EXPLAIN.match(text)):
        # EXPLAIN ANALYZE runs what it explains.
        _checked(connection, text[found.end() :])
        return text, True
    raise UserError(
        f"{kinds[0].name} is no question: a query only reads",
        hint="valid are SELECT, FROM, WITH, VALUES, SHOW, DESCRIBE, SUMMARIZE, PIVOT, and EXPLAIN of those",
    )


@contextlib.contextmanager
def _confined(connection: duckdb.DuckDBPyConnection) -> Iterator[None]:
    """No files but those allowed before, and no settings. What memory cannot hold goes to a temporary place."""
    with tempfile.TemporaryDirectory(prefix="headrace-query-") as spill:
        connection.execute(f"SET temp_directory = {_text(spill)}")
        _set_up(connection)
        connection.execute("SET enable_external_access = false")
        connection.execute("SET lock_configuration = true")
        yield
        connection.close()  # before its directory goes


def _set_up(connection: duckdb.DuckDBPyConnection) -> None:
    connection.execute("SET TimeZone = 'UTC'")
    connection.execute("SET enable_progress_bar = false")  # it would go to standard output, into the answer


def _unique(names: Sequence[str]) -> list[str]:
    """Names of a JSON object's members: DuckDB refuses a struct with two of one name, whatever their case."""
    seen: set[str] = set()
    found = []
    for name in names:
        own, count = name or "_", 1
        while own.lower() in seen:
            own = f"{name}_{count}"
            count += 1
        seen.add(own.lower())
        found.append(own)
    return found


def _is_number(kind: str) -> bool:
    return kind.endswith("INT") or kind in ("INTEGER", "UINTEGER", "FLOAT", "DOUBLE") or kind.startswith("DECIMAL")


def _not_opened(path: Path, error: duckdb.Error) -> HeadraceError:
    text = _first_line(error)
    if "Could not set lock" in text:
        found = _HOLDER.search(text)
        return InUse(path, found[1] if found else "", int(found[2]) if found else None)
    if "not a valid DuckDB" in text:
        return UserError(f"{path} is not a DuckDB file", hint="Parquet directories are asked with --parquet DIR")
    return ExternalError(f"DuckDB file {path} cannot be opened: {text}")


def _first_line(error: duckdb.Error) -> str:
    return str(error).strip().splitlines()[0]


def _text(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"


def _name(value: str) -> str:
    return '"' + value.replace('"', '""') + '"'
