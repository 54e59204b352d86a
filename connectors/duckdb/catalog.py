"""headrace's own tables in a DuckDB file: positions, states, table owners, adopted schemas, failures.

They live in the schema ``headrace`` of the file that holds the rows, so that one transaction covers both.
Functions here take the writing connection and run inside the caller's transaction; times are UTC.

    positions   one row per shard, made by its first owner. ``next_offset`` is NULL until the first commit;
                ``next_offset - first_offset`` is the sum of the five counts
    states      what a shard hands from one invocation to the next; no row where there is nothing. Apart from the
                positions, whose rows are written anew by every commit
    sinks       which pipeline, cluster and topic a table belongs to
    aggregates  how the columns of a table of mode "aggregate" are merged; no rows for other tables
    schemas     Arrow schemas, serialized; the first one under a name stays
    failures    records that failed for good. Delivered ones stay, marked, so that they can be listed
"""

# ruff: noqa: S608 - only quoted identifiers and names of this module are put into statements.

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

import duckdb
import pyarrow as pa

from engine.batch import HEADERS, Stream
from engine.errors import InternalError, RecreatedTopic, SinkMismatch
from engine.protocols import FailedRecord

#: Raised when a change of these tables would mislead an older headrace. One that knows no states would move a
#: position away from its state; so a file says that it has some once it does.
FORMAT_VERSION = 1
FORMAT_VERSION_WITH_STATES = 2

_TABLES = """
CREATE SCHEMA IF NOT EXISTS headrace;
CREATE TABLE IF NOT EXISTS headrace.format (version INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS headrace.positions (
    pipeline VARCHAR, cluster_id VARCHAR, topic_id VARCHAR, "partition" INTEGER,
    topic VARCHAR NOT NULL, owner VARCHAR NOT NULL, first_offset BIGINT, next_offset BIGINT,
    handled BIGINT NOT NULL DEFAULT 0, filtered BIGINT NOT NULL DEFAULT 0, dropped BIGINT NOT NULL DEFAULT 0,
    failed BIGINT NOT NULL DEFAULT 0, absent BIGINT NOT NULL DEFAULT 0, rows_given BIGINT NOT NULL DEFAULT 0,
    updated TIMESTAMP NOT NULL,
    PRIMARY KEY (pipeline, cluster_id, topic_id, "partition")
);
CREATE TABLE IF NOT EXISTS headrace.states (
    pipeline VARCHAR NOT NULL, cluster_id VARCHAR NOT NULL, topic_id VARCHAR NOT NULL, "partition" INTEGER NOT NULL,
    state BLOB NOT NULL
);
CREATE TABLE IF NOT EXISTS headrace.sinks (
    table_name VARCHAR PRIMARY KEY, pipeline VARCHAR NOT NULL, cluster_id VARCHAR NOT NULL,
    topic VARCHAR NOT NULL, topic_id VARCHAR NOT NULL, partitions_at_start INTEGER NOT NULL,
    mode VARCHAR NOT NULL, key_columns VARCHAR[] NOT NULL, order_by VARCHAR NOT NULL
);
CREATE TABLE IF NOT EXISTS headrace.aggregates (
    table_name VARCHAR NOT NULL, column_name VARCHAR NOT NULL, aggregate VARCHAR NOT NULL
);
CREATE TABLE IF NOT EXISTS headrace.schemas (
    pipeline VARCHAR, name VARCHAR, arrow BLOB NOT NULL, PRIMARY KEY (pipeline, name)
);
CREATE TABLE IF NOT EXISTS headrace.failures (
    pipeline VARCHAR NOT NULL, cluster_id VARCHAR NOT NULL, topic VARCHAR NOT NULL, topic_id VARCHAR NOT NULL,
    "partition" INTEGER NOT NULL, "offset" BIGINT NOT NULL, "timestamp" BIGINT NOT NULL, "key" BLOB, "value" BLOB,
    headers STRUCT("key" VARCHAR, "value" BLOB)[], reason VARCHAR, error_type VARCHAR, attempts INTEGER,
    failed_at TIMESTAMP NOT NULL, delivered BOOLEAN NOT NULL
);
ALTER TABLE headrace.failures ADD COLUMN IF NOT EXISTS request_id VARCHAR;
"""

#: The columns in which failures reach the table; also what reading them back asks for.
FAILURES = pa.schema(
    [
        ("pipeline", pa.string()),
        ("cluster_id", pa.string()),
        ("topic", pa.string()),
        ("topic_id", pa.string()),
        ("partition", pa.int32()),
        ("offset", pa.int64()),
        ("timestamp", pa.int64()),
        ("key", pa.binary()),
        ("value", pa.binary()),
        ("headers", HEADERS),
        ("reason", pa.string()),
        ("error_type", pa.string()),
        ("attempts", pa.int32()),
        ("failed_at", pa.timestamp("us")),
        ("delivered", pa.bool_()),
        ("request_id", pa.string()),
    ]
)


@dataclass(frozen=True, slots=True)
class Shard:
    """The key of a position. ``topic`` names the shard in messages; the key has the topic's id."""

    pipeline: str
    cluster_id: str
    topic: str
    topic_id: str
    partition: int

    def __str__(self) -> str:
        return f"partition {self.partition} of {self.topic} (pipeline {self.pipeline})"

    @property
    def key(self) -> list[object]:
        return [self.pipeline, self.cluster_id, self.topic_id, self.partition]


#: For the values of `Shard.key`.
IS_SHARD = 'pipeline = ? AND cluster_id = ? AND topic_id = ? AND "partition" = ?'


@dataclass(frozen=True, slots=True)
class Binding:
    """What a sink is, as the file remembers it; a table keeps its pipeline, mode and what follows for good.

    ``aggregates`` are by column, in the order of the columns' names.
    """

    pipeline: str
    table: str
    mode: str
    key: tuple[str, ...]
    order_by: str
    aggregates: Mapping[str, str] = field(default_factory=dict)


#: The note of an error that a COMMIT raised: what the instance has in memory may be wrong from then on.
AT_COMMIT = "raised by COMMIT"


@contextmanager
def transaction(connection: duckdb.DuckDBPyConnection) -> Iterator[None]:
    """Commit at the end of the block, roll back when it raises. An error of the COMMIT has the note `AT_COMMIT`."""
    connection.execute("BEGIN TRANSACTION")
    try:
        yield
        try:
            connection.execute("COMMIT")
        except duckdb.Error as error:
            error.add_note(AT_COMMIT)
            raise
    except BaseException:
        # A failed COMMIT has ended the transaction already, and a fatal error leaves none to end.
        with suppress(duckdb.Error):
            connection.execute("ROLLBACK")
        raise


def prepare(connection: duckdb.DuckDBPyConnection) -> None:
    """Make headrace's tables where they are missing. Raises SinkMismatch for a later format."""
    with transaction(connection):
        connection.execute(_TABLES)
        found = connection.execute("SELECT max(version) FROM headrace.format").fetchone()
        version = found[0] if found else None
        if version is None:
            connection.execute("INSERT INTO headrace.format VALUES (?)", [FORMAT_VERSION])
        elif version > FORMAT_VERSION_WITH_STATES:
            raise SinkMismatch(
                f"the DuckDB file was written by a later headrace (format {version},"
                f" known: {FORMAT_VERSION_WITH_STATES})",
                hint="Use that version, or another file.",
            )


def bind(
    connection: duckdb.DuckDBPyConnection, binding: Binding, stream: Stream, *, restart: bool
) -> tuple[int, bool]:
    """Bind a table to a pipeline and a stream, for good.

    Gives the partitions at the first start, and whether the stream was started anew for a recreated topic
    (``restart``). Raises SinkMismatch for another owner and RecreatedTopic for another topic id.
    """
    found = connection.execute(
        "SELECT table_name, pipeline, cluster_id, topic, topic_id, partitions_at_start, mode, key_columns, order_by"
        " FROM headrace.sinks WHERE lower(table_name) = lower(?) OR pipeline = ?",
        [binding.table, binding.pipeline],
    ).fetchall()
    if not found:
        connection.execute(
            "INSERT INTO headrace.sinks VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            [
                *(binding.table, binding.pipeline, stream.cluster_id, stream.topic, stream.topic_id),
                *(stream.partitions, binding.mode, list(binding.key), binding.order_by),
            ],
        )
        for column, aggregate in binding.aggregates.items():
            connection.execute(
                "INSERT INTO headrace.aggregates VALUES (?, ?, ?)", [binding.table, column, aggregate]
            )
        return stream.partitions, False
    for table, pipeline, cluster_id, topic, topic_id, partitions, mode, key, order_by in found:
        if table.lower() != binding.table.lower():  # DuckDB's names differ by more than case
            raise SinkMismatch(
                f"pipeline {pipeline} writes to table {table} of this file, not to {binding.table}",
                hint="Its position belongs to the rows there. Give the pipeline another name, or its table back.",
            )
        _require(table, "pipeline", pipeline, binding.pipeline)
        _require(table, "cluster", cluster_id, stream.cluster_id)
        _require(table, "topic", topic, stream.topic)
        _require(table, "mode", mode, binding.mode)
        _require(table, "key", ", ".join(key), ", ".join(binding.key))
        _require(table, "order_by", order_by, binding.order_by)
        _require(table, "aggregates", _aggregates(connection, table), _listed(binding.aggregates.items()))
        if topic_id != stream.topic_id and not restart:
            raise RecreatedTopic(
                f"topic {topic} was deleted and made anew: table {table} has the topic id {topic_id},"
                f" the cluster has {stream.topic_id}",
                hint='on_recreated_topic = "restart" reads the new topic from its start into the same table.',
            )
        if topic_id == stream.topic_id:
            return int(partitions), False
    connection.execute(
        "UPDATE headrace.sinks SET topic_id = ?, partitions_at_start = ? WHERE lower(table_name) = lower(?)",
        [stream.topic_id, stream.partitions, binding.table],
    )
    return stream.partitions, True


def _require(table: str, what: str, found: str, asked: str) -> None:
    if found != asked:
        raise SinkMismatch(
            f"table {table} belongs to {what} {found!r}, not to {asked!r}",
            hint="Give the sink a table of its own.",
        )


def _aggregates(connection: duckdb.DuckDBPyConnection, table: str) -> str:
    found = connection.execute(
        "SELECT column_name, aggregate FROM headrace.aggregates WHERE lower(table_name) = lower(?) ORDER BY ALL",
        [table],
    ).fetchall()
    return _listed(found)


def _listed(aggregates: Iterable[tuple[str, str]]) -> str:
    return ", ".join(f"{column} = {aggregate}" for column, aggregate in aggregates)


def adopt(connection: duckdb.DuckDBPyConnection, pipeline: str, name: str, schema: pa.Schema) -> pa.Schema:
    """The schema under that name; ``schema`` if there was none."""
    there = adopted(connection, pipeline, name)
    if there is not None:
        return there
    blob = schema.serialize().to_pybytes()
    connection.execute("INSERT INTO headrace.schemas VALUES (?, ?, ?)", [pipeline, name, blob])
    return schema


def adopted(connection: duckdb.DuckDBPyConnection, pipeline: str, name: str) -> pa.Schema | None:
    found = connection.execute(
        "SELECT arrow FROM headrace.schemas WHERE pipeline = ? AND name = ?", [pipeline, name]
    ).fetchone()
    return None if found is None else pa.ipc.read_schema(pa.py_buffer(found[0]))


def position(connection: duckdb.DuckDBPyConnection, shard: Shard) -> int | None:
    found = connection.execute(f"SELECT next_offset FROM headrace.positions WHERE {IS_SHARD}", shard.key).fetchone()
    return None if found is None else found[0]


def state(connection: duckdb.DuckDBPyConnection, shard: Shard) -> bytes:
    """The shard's state, empty where there is none."""
    found = connection.execute(f"SELECT state FROM headrace.states WHERE {IS_SHARD}", shard.key).fetchone()
    return b"" if found is None else bytes(found[0])


def set_state(connection: duckdb.DuckDBPyConnection, shard: Shard, state: bytes) -> None:
    """Give the shard a state, or none where it is empty.

    In the transaction that has just moved the position, whose row is what two owners conflict on.
    """
    connection.execute(f"DELETE FROM headrace.states WHERE {IS_SHARD}", shard.key)
    if state:
        connection.execute("INSERT INTO headrace.states VALUES (?, ?, ?, ?, ?)", [*shard.key, state])
        connection.execute(
            f"UPDATE headrace.format SET version = {FORMAT_VERSION_WITH_STATES}"
            f" WHERE version < {FORMAT_VERSION_WITH_STATES}"
        )


def take_over(connection: duckdb.DuckDBPyConnection, shard: Shard, owner: str, now: float) -> int | None:
    """Make ``owner`` the shard's owner, whoever was it, and give the position.

    From here on a commit of the last owner changes no row. Raises InternalError for a damaged position.
    """
    found = connection.execute(
        f"UPDATE headrace.positions SET owner = ?, updated = make_timestamp(?) WHERE {IS_SHARD}"
        " RETURNING first_offset, next_offset, handled + filtered + dropped + failed + absent",
        [owner, int(now * 1e6), *shard.key],
    ).fetchall()
    if not found:
        connection.execute(
            'INSERT INTO headrace.positions (pipeline, cluster_id, topic_id, "partition", topic, owner, updated)'
            " VALUES (?, ?, ?, ?, ?, ?, make_timestamp(?))",
            [*shard.key, shard.topic, owner, int(now * 1e6)],
        )
        return None
    [(first, following, counted)] = found
    return whole(shard, first, following, counted)


def whole(shard: Shard, first: int | None, following: int | None, counted: int) -> int | None:
    """A position as it was read, ``following``. Raises InternalError where its records do not add up."""
    if first is None or following is None:
        return None
    if following - first != counted:
        raise InternalError(
            f"the position of {shard} is damaged: offsets [{first}, {following}) hold {following - first} records,"
            f" {counted} are accounted for"
        )
    return int(following)


def owned(connection: duckdb.DuckDBPyConnection, shard: Shard, owner: str) -> bool:
    found = connection.execute(f"SELECT owner FROM headrace.positions WHERE {IS_SHARD}", shard.key).fetchone()
    return found is not None and found[0] == owner


def failure_rows(shard: Shard, failures: Sequence[FailedRecord], now: float) -> list[dict[str, object]]:
    """Rows of `FAILURES`."""
    return [
        {
            "pipeline": shard.pipeline,
            "cluster_id": shard.cluster_id,
            "topic": shard.topic,
            "topic_id": shard.topic_id,
            "partition": failure.partition,
            "offset": failure.offset,
            "timestamp": failure.timestamp,
            "key": failure.key,
            "value": failure.value,
            "headers": [{"key": key, "value": value} for key, value in failure.headers],
            "reason": failure.reason,
            "error_type": failure.error_type,
            "attempts": failure.attempts,
            "failed_at": int(now * 1e6),
            "delivered": False,
            "request_id": failure.request_id,
        }
        for failure in failures
    ]


def undelivered(connection: duckdb.DuckDBPyConnection, shard: Shard, records_max: int) -> list[FailedRecord]:
    """The shard's failures that are not marked, by offset; also from a file of an earlier version, as it is."""
    found = connection.execute(
        "SELECT * EXCLUDE (pipeline, cluster_id, topic, topic_id, failed_at, delivered)"
        f' FROM headrace.failures WHERE {IS_SHARD} AND NOT delivered ORDER BY "offset" LIMIT ?',
        [*shard.key, records_max],
    )
    return failed_records(found)


def failed_records(found: duckdb.DuckDBPyConnection) -> list[FailedRecord]:
    """What a query has found, whose columns are the fields of FailedRecord."""
    names = [column[0] for column in found.description or ()]
    records = []
    for row in found.fetchall():
        fields = dict(zip(names, row, strict=True))
        fields["headers"] = tuple((header["key"], header["value"]) for header in fields["headers"])
        records.append(FailedRecord(**fields))
    return records


def mark_delivered(connection: duckdb.DuckDBPyConnection, shard: Shard, before: int) -> None:
    """Mark the failures of offsets below ``before``."""
    connection.execute(
        f'UPDATE headrace.failures SET delivered = true WHERE {IS_SHARD} AND NOT delivered AND "offset" < ?',
        [*shard.key, before],
    )
