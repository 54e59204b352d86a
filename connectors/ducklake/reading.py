"""A lake looked into without writing to it: queries, positions, failed records that wait. One process writes a lake
and shuts readers out of its catalogue; what is here is for when none does.

Not here: the sink (`sink`), which makes the lake and binds its table.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import duckdb

from connectors.duckdb.catalog import Binding, Shard
from connectors.duckdb.database import SPILL_BYTES_MAX
from connectors.duckdb.positions import positions_of
from connectors.ducklake.attaching import LAKE, Held, attach, confine
from connectors.ducklake.ledger import undelivered
from engine.batch import Stream
from engine.errors import SinkUnavailable, UserError
from engine.protocols import FailedRecord

#: Where the lake's files are.
_PLACES = f"SELECT value FROM ducklake_options('{LAKE}') WHERE option_name = 'data_path'"  # noqa: S608


@contextlib.contextmanager
def open_lake(path: Path, *, confined: bool = False) -> Iterator[duckdb.DuckDBPyConnection]:
    """A connection that reads the lake of the catalogue at ``path`` and cannot write to it; blocks.

    Its current catalogue is the lake, under the name ``lake``. ``confined``: it reaches no files but the lake's,
    and keeps its settings. Not to be called in a process that has the lake open. Raises UserError where there is
    none, SinkMismatch for another kind of file, SinkUnavailable while another process writes to it, or where it
    cannot be read.
    """
    if not path.is_file():
        raise UserError(f"there is no DuckLake catalogue {path}")
    try:
        connection = attach(path.resolve(), options="READ_ONLY")
    except Held as held:
        raise SinkUnavailable(
            f"DuckLake catalogue {path} is held by {held}, and cannot be read while that writes to it",
            hint="Ask that process, which serves it, or stop it first; its own log says where it is.",
        ) from None
    with connection:
        connection.execute("SET TimeZone = 'UTC'")
        connection.execute("SET enable_progress_bar = false")
        if confined:
            places = [Path(place) for (place,) in connection.execute(_PLACES).fetchall()]
            spill = path.resolve().with_name(path.name + ".tmp")
            confine(connection, [path.resolve().parent, *places, spill], SPILL_BYTES_MAX)
            connection.execute("SET GLOBAL lock_configuration = true")
        yield connection


def is_lake(connection: duckdb.DuckDBPyConnection) -> bool:
    """Whether a DuckDB file, opened as such, is a lake's catalogue: what it shows then is not the lake's tables."""
    found = connection.execute("SELECT 1 FROM duckdb_tables() WHERE table_name = 'ducklake_metadata'").fetchone()
    return found is not None


def read_positions(path: Path, binding: Binding, stream: Stream) -> dict[int, int | None]:
    """The committed position of each of the stream's partitions, None where there is none; blocks.

    Raises as `open_lake`, and SinkMismatch and RecreatedTopic for a table of something else.
    """
    positions: dict[int, int | None] = dict.fromkeys(range(stream.partitions))
    if not path.exists():
        return positions
    with _reading(path, binding.pipeline), open_lake(path) as connection:
        return positions | positions_of(connection, binding, stream)


def read_undelivered(path: Path, pipeline: str, stream: Stream, records_max: int) -> list[Sequence[FailedRecord]]:
    """Failures of each shard that are committed and wait to be delivered, ``records_max`` of each; blocks.

    Raises as `open_lake`.
    """
    if not path.exists():
        return []
    with _reading(path, pipeline), open_lake(path) as connection:
        try:
            connection.execute("SELECT 1 FROM headrace.failures LIMIT 0")
        except duckdb.CatalogException:
            return []  # a lake of somebody else, so far
        shards = (
            Shard(pipeline, stream.cluster_id, stream.topic, stream.topic_id, partition)
            for partition in range(stream.partitions)
        )
        return [undelivered(connection, shard, records_max) for shard in shards]


@contextlib.contextmanager
def _reading(path: Path, pipeline: str) -> Iterator[None]:
    try:
        yield
    except duckdb.Error as error:
        text = str(error).strip().splitlines()[0]
        raise SinkUnavailable(f"pipeline {pipeline}: DuckLake catalogue {path}: {text}") from None
