"""What ``headrace query`` does: one question to a DuckDB file or a Parquet directory, by the connector."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from connectors.query import Answer, Rendering, ask, open_database, open_directory, open_memory
from engine.errors import UserError

__all__ = ["Answer", "Rendering", "query"]


@contextlib.contextmanager
def query(
    sql: str, *, database: Path | None = None, directory: Path | None = None, rendering: Rendering
) -> Iterator[Answer | None]:
    """The answer, valid inside of the ``with``; None when the directory is a sink that has no schema yet.

    Raises UserError for the question, ExternalError for a database that another process writes to.
    """
    if database is not None and directory is not None:
        raise UserError("--db and --parquet exclude each other")
    if directory is not None:
        with open_directory(directory) as files:
            yield None if files is None else ask(files, sql, rendering)
        return
    with open_database(database) if database is not None else open_memory() as connection:
        yield ask(connection, sql, rendering)
