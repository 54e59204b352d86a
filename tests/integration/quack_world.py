"""A DuckDB file that is served to analysts by a `Database` of this process, and clients of DuckDB's own."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb

from connectors.analysis.extensions import load
from connectors.duckdb import Database
from connectors.duckdb.serving import Address, ServingSettings, read_address

ROWS = 1_000

_FINGERPRINT = (
    "SELECT count(*), sum(id), max(page) FROM clicks",
    "SELECT database_name, schema_name, table_name, column_count FROM duckdb_tables()"
    " WHERE database_name <> 'headrace_results' ORDER BY ALL",
    "SELECT view_name FROM duckdb_views() WHERE NOT internal ORDER BY ALL",
    "SELECT database_name FROM duckdb_databases() ORDER BY ALL",
    "SELECT name, value FROM duckdb_settings() WHERE name <> 'quack_loaded_at_us' ORDER BY ALL",
    "SELECT sequence_name, last_value FROM duckdb_sequences() ORDER BY ALL",
)


class Served:
    """A file with the table ``clicks`` of `ROWS` rows, while it is served."""

    def __init__(self, path: Path, settings: ServingSettings, **limits: Any) -> None:
        self.path = path
        self.database = Database(path, serving=settings, **limits)

    @property
    def address(self) -> Address:
        address = read_address(self.path)
        assert address is not None
        return address

    def run(self, sql: str) -> list[tuple[Any, ...]]:
        """By the writer."""

        def call(connection: duckdb.DuckDBPyConnection) -> list[tuple[Any, ...]]:
            return connection.execute(sql).fetchall()

        return asyncio.run(self.database.run(call))

    def fingerprint(self) -> list[object]:
        """All that a client must not have changed."""

        def call(connection: duckdb.DuckDBPyConnection) -> list[object]:
            return [connection.execute(sql).fetchall() for sql in _FINGERPRINT]

        return [*asyncio.run(self.database.run(call)), sorted(each.name for each in self.path.parent.iterdir())]


@contextlib.contextmanager
def served(path: Path, *, limits: dict[str, Any] | None = None, **settings: Any) -> Iterator[Served]:
    world = Served(path, ServingSettings(**settings), **(limits or {}))
    asyncio.run(world.database.open())
    try:
        world.run("CREATE TABLE clicks AS SELECT range AS id, 'page ' || range % 7 AS page FROM range(1000)")
        world.run("CREATE SEQUENCE numbers")
        yield world
    finally:
        asyncio.run(world.database.close())


@contextlib.contextmanager
def client(address: Address | None = None) -> Iterator[duckdb.DuckDBPyConnection]:
    """DuckDB with what a client needs; attached as ``h`` where there is an address."""
    with duckdb.connect() as connection:
        load(connection, "httpfs", "quack")
        if address is not None:
            connection.execute(f"ATTACH '{address.uri}' AS h (TOKEN '{address.token}')")
        yield connection
