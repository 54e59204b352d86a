"""The positions in a DuckDB file, read without writing to it. One process writes a file and shuts readers out.

Not here: the sink itself (`connectors.duckdb.sink`), which makes the file and binds its table.
"""

from __future__ import annotations

import re
from pathlib import Path

import duckdb

from connectors.duckdb import catalog
from connectors.duckdb.catalog import Binding
from engine.batch import Stream
from engine.errors import SinkUnavailable


def read_positions(path: Path, binding: Binding, stream: Stream) -> dict[int, int | None]:
    """The committed position of each of the stream's partitions, None where there is none; blocks.

    Not to be called in a process that has the file open. Raises SinkMismatch and RecreatedTopic for a table of
    something else, SinkUnavailable for a file that another process writes, or that cannot be read.
    """
    positions: dict[int, int | None] = dict.fromkeys(range(stream.partitions))
    if not path.exists():
        return positions
    try:
        with duckdb.connect(path, read_only=True) as connection:
            return positions | positions_of(connection, binding, stream)
    except duckdb.Error as error:
        text = str(error).strip().splitlines()[0]
        if "Could not set lock" in text:
            holder = re.search(r"PID (\d+)", str(error))
            process = f"process {holder[1]}" if holder else "another process"
            raise SinkUnavailable(
                f"pipeline {binding.pipeline}: DuckDB file {path} is held by {process}, "
                "and cannot be read while that writes to it",
                hint="Stop that process first; its own log says where it is.",
            ) from None
        raise SinkUnavailable(f"pipeline {binding.pipeline}: DuckDB file {path}: {text}") from None


def positions_of(connection: duckdb.DuckDBPyConnection, binding: Binding, stream: Stream) -> dict[int, int | None]:
    """The positions that there are in an open file. Raises as `read_positions`, and duckdb.Error."""
    try:
        known = connection.execute(
            "SELECT table_name FROM headrace.sinks WHERE table_name = ? OR pipeline = ?",
            [binding.table, binding.pipeline],
        ).fetchall()
    except duckdb.CatalogException:
        return {}  # a file of somebody else, so far
    if not known:
        return {}
    # Of a table that is bound this only checks by whom.
    catalog.bind(connection, binding, stream, restart=False)
    found = connection.execute(
        'SELECT "partition", next_offset FROM headrace.positions'
        " WHERE pipeline = ? AND cluster_id = ? AND topic_id = ?",
        [binding.pipeline, stream.cluster_id, stream.topic_id],
    ).fetchall()
    return dict(found)
