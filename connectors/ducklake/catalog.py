"""headrace's own tables in a lake: those of a DuckDB file (`connectors.duckdb.catalog`) as a lake can have them.

A lake knows no keys. That a shard has one position follows from the single writer: a catalogue belongs to one
process, its sinks share one writing thread, and a transaction that meets another one fails (`attaching`).

Two things differ in what the tables hold. A position has ``delivered_before``: failures below that offset are
delivered; marking the failures themselves would write them anew. And there is one format, with states.
"""

from __future__ import annotations

import duckdb

from connectors.duckdb.catalog import transaction
from connectors.duckdb.schema import OWN_SCHEMA
from connectors.ducklake.attaching import LAKE, literal
from engine.errors import SinkMismatch

#: Raised when a change of these tables would mislead an older headrace.
FORMAT_VERSION = 1

_TABLES = """
CREATE SCHEMA IF NOT EXISTS headrace;
CREATE TABLE IF NOT EXISTS headrace.format (version INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS headrace.positions (
    pipeline VARCHAR NOT NULL, cluster_id VARCHAR NOT NULL, topic_id VARCHAR NOT NULL, "partition" INTEGER NOT NULL,
    topic VARCHAR NOT NULL, owner VARCHAR NOT NULL, first_offset BIGINT, next_offset BIGINT,
    handled BIGINT NOT NULL, filtered BIGINT NOT NULL, dropped BIGINT NOT NULL, failed BIGINT NOT NULL,
    absent BIGINT NOT NULL, rows_given BIGINT NOT NULL, delivered_before BIGINT NOT NULL, updated TIMESTAMP NOT NULL
);
CREATE TABLE IF NOT EXISTS headrace.states (
    pipeline VARCHAR NOT NULL, cluster_id VARCHAR NOT NULL, topic_id VARCHAR NOT NULL, "partition" INTEGER NOT NULL,
    state BLOB NOT NULL
);
CREATE TABLE IF NOT EXISTS headrace.sinks (
    table_name VARCHAR NOT NULL, pipeline VARCHAR NOT NULL, cluster_id VARCHAR NOT NULL,
    topic VARCHAR NOT NULL, topic_id VARCHAR NOT NULL, partitions_at_start INTEGER NOT NULL,
    mode VARCHAR NOT NULL, key_columns VARCHAR[] NOT NULL, order_by VARCHAR NOT NULL
);
CREATE TABLE IF NOT EXISTS headrace.aggregates (
    table_name VARCHAR NOT NULL, column_name VARCHAR NOT NULL, aggregate VARCHAR NOT NULL
);
CREATE TABLE IF NOT EXISTS headrace.schemas (pipeline VARCHAR NOT NULL, name VARCHAR NOT NULL, arrow BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS headrace.failures (
    pipeline VARCHAR NOT NULL, cluster_id VARCHAR NOT NULL, topic VARCHAR NOT NULL, topic_id VARCHAR NOT NULL,
    "partition" INTEGER NOT NULL, "offset" BIGINT NOT NULL, "timestamp" BIGINT NOT NULL, "key" BLOB, "value" BLOB,
    headers STRUCT("key" VARCHAR, "value" BLOB)[], reason VARCHAR, error_type VARCHAR, attempts INTEGER,
    request_id VARCHAR, failed_at TIMESTAMP NOT NULL
);
"""

#: Tables whose rows stay in the catalogue's file however many are written at once: they are few and short.
_INLINED = ("format", "positions", "sinks", "aggregates", "schemas")
_INLINED_ROWS_MAX = 1_000_000


def prepare(connection: duckdb.DuckDBPyConnection) -> None:
    """Make headrace's tables where they are missing. Raises SinkMismatch for a later format."""
    with transaction(connection):
        connection.execute(_TABLES)
    # DuckLake takes no options for tables of the transaction at hand; one that is cut off here is made up for.
    found = connection.execute(
        f"SELECT scope_entry FROM ducklake_options('{LAKE}')"  # noqa: S608 - a name of this package
        " WHERE option_name = 'data_inlining_row_limit' AND scope = 'TABLE'"
    ).fetchall()
    with transaction(connection):
        for table in _INLINED:
            if (f"{OWN_SCHEMA}.{table}",) not in found:
                connection.execute(
                    f"CALL ducklake_set_option('{LAKE}', 'data_inlining_row_limit', {_INLINED_ROWS_MAX},"
                    f" schema => {literal(OWN_SCHEMA)}, table_name => {literal(table)})"
                )
        version = connection.execute("SELECT max(version) FROM headrace.format").fetchall()[0][0]
        if version is None:
            connection.execute("INSERT INTO headrace.format VALUES (?)", [FORMAT_VERSION])
        elif version > FORMAT_VERSION:
            raise SinkMismatch(
                f"the DuckLake was written by a later headrace (format {version}, known: {FORMAT_VERSION})",
                hint="Use that version, or another lake.",
            )
