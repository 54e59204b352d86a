"""What differs between kinds of files in how positions move and failed records are kept: `Ledger`.

A DuckDB file has keys and RETURNING (`connectors.duckdb.commit`), a DuckLake has neither (`connectors.ducklake`).
What is the same for both is in `catalog`. Calls run inside the caller's transaction.
"""

from __future__ import annotations

from typing import Protocol

import duckdb
import pyarrow as pa

from connectors.duckdb.catalog import Shard
from engine.protocols import FailedRecord

#: The columns of what `Ledger.move` is given, one row for each shard.
MOVES = pa.schema(
    [
        ("pipeline", pa.string()),
        ("cluster_id", pa.string()),
        ("topic_id", pa.string()),
        ("part", pa.int32()),
        ("owner", pa.string()),
        ("expected", pa.int64()),
        ("first", pa.int64()),
        ("following", pa.int64()),
        ("handled", pa.int64()),
        ("filtered", pa.int64()),
        ("dropped", pa.int64()),
        ("failed", pa.int64()),
        ("absent", pa.int64()),
        ("rows_given", pa.int64()),
        ("updated", pa.timestamp("us")),
    ]
)

#: What a move changes of a position ``p`` by its row ``m``, and where: owner and position are the expected ones.
MOVE = """
    first_offset = coalesce(p.first_offset, m.first), next_offset = m.following, updated = m.updated,
    handled = p.handled + m.handled, filtered = p.filtered + m.filtered, dropped = p.dropped + m.dropped,
    failed = p.failed + m.failed, absent = p.absent + m.absent, rows_given = p.rows_given + m.rows_given
FROM headrace_moves AS m
WHERE p.pipeline = m.pipeline AND p.cluster_id = m.cluster_id AND p.topic_id = m.topic_id
    AND p."partition" = m.part AND p.owner = m.owner AND p.next_offset IS NOT DISTINCT FROM m.expected
"""

#: What is read back of a position that has moved.
MOVED = """
    p.owner, p.next_offset, p.next_offset - p.first_offset,
    p.handled + p.filtered + p.dropped + p.failed + p.absent
"""


class Ledger(Protocol):
    """The positions and failed records of one kind of file."""

    def take_over(self, connection: duckdb.DuckDBPyConnection, shard: Shard, owner: str, now: float) -> int | None:
        """Make ``owner`` the shard's owner, whoever was it, and give the position.

        From here on a commit of the last owner changes no row. Raises InternalError for a damaged position.
        """

    def move(self, connection: duckdb.DuckDBPyConnection, moves: pa.Table) -> list[tuple[str, int, int, int]]:
        """Compare and set all positions by `MOVES`; of those that moved: owner, position, offsets and records.

        May raise ShardLost where several were to move and some did not.
        """

    def keep(self, connection: duckdb.DuckDBPyConnection, failures: pa.Table) -> None:
        """Add failed records, in the columns of `catalog.FAILURES`."""

    def set_state(self, connection: duckdb.DuckDBPyConnection, shard: Shard, state: bytes) -> None:
        """Give the shard a state, or none where it is empty; after `move`."""

    def undelivered(
        self, connection: duckdb.DuckDBPyConnection, shard: Shard, records_max: int
    ) -> list[FailedRecord]:
        """The shard's failures that are not marked, by offset."""

    def mark_delivered(self, connection: duckdb.DuckDBPyConnection, shard: Shard, before: int) -> None:
        """Mark the failures of offsets below ``before``."""

    def seal(self, connection: duckdb.DuckDBPyConnection) -> None:
        """Make durable what the transaction has written beside the file that holds the positions; before COMMIT."""
