"""What ``headrace query`` does: one question to a DuckDB file or a Parquet directory, by the connector.

A DuckDB file that an engine is writing is asked through that engine.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from connectors.query import (
    Answer,
    InUse,
    Rendering,
    ask,
    ask_served,
    open_database,
    open_directory,
    open_memory,
    open_served,
    served_at,
)
from engine.errors import UserError

__all__ = ["Answer", "Rendering", "query"]


@contextlib.contextmanager
def query(
    sql: str, *, database: Path | None = None, directory: Path | None = None, rendering: Rendering
) -> Iterator[Answer | None]:
    """The answer, valid inside of the ``with``; None when the directory is a sink that has no schema yet.

    Raises UserError for the question, ExternalError for a database that a process writes to and does not serve.
    """
    if database is not None and directory is not None:
        raise UserError("--db and --parquet exclude each other")
    if directory is not None:
        with open_directory(directory) as files:
            yield None if files is None else ask(files, sql, rendering)
        return
    with contextlib.ExitStack() as stack:
        if database is None:
            yield ask(stack.enter_context(open_memory()), sql, rendering)
            return
        try:
            connection = stack.enter_context(open_database(database))
        except InUse as use:
            address = served_at(database, use)
        else:
            yield ask(connection, sql, rendering)
            return
        yield ask_served(stack.enter_context(open_served(database, address, sql)), sql, rendering)
