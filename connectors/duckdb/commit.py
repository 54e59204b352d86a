"""One transaction for the commits of many shards: compare-and-set of all positions, then rows, failures and states.

Not here: when a commit is due (`sink`) and in which thread it runs (`database`). A shard whose
compare-and-set fails is left out and told so; the others go through. Where the transaction as a whole
fails, each shard is tried alone, so that one shard's rows cannot hold up another's.
"""

# ruff: noqa: S608 - only quoted identifiers and names of this module are put into statements.

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Protocol

import duckdb
import pyarrow as pa

from connectors.duckdb import catalog
from connectors.duckdb.catalog import Shard
from connectors.duckdb.ledger import MOVE, MOVED, MOVES, Ledger
from connectors.duckdb.schema import TableName, registered
from engine.errors import DataError, HeadraceError, InternalError, ShardLost, SinkMismatch, SinkUnavailable
from engine.protocols import Counts, FailedRecord


class Target(Protocol):
    """A table and the way rows get into it; one object for all shards of a sink."""

    @property
    def table(self) -> TableName: ...

    def store(self, connection: duckdb.DuckDBPyConnection, rows: Sequence[pa.Table]) -> None:
        """Put the rows of several shards, all of the table's schema, into the table; in a transaction."""


@dataclass(frozen=True, slots=True)
class Append:
    """Rows are added."""

    table: TableName

    def store(self, connection: duckdb.DuckDBPyConnection, rows: Sequence[pa.Table]) -> None:
        with registered(connection, "headrace_rows", pa.concat_tables(rows)):
            connection.execute(f"INSERT INTO {self.table.sql} BY NAME SELECT * FROM headrace_rows")


_COMPARE_AND_SET = f"UPDATE headrace.positions AS p SET {MOVE} RETURNING {MOVED}"


class FileLedger:
    """A DuckDB file: everything is in it, and made durable by COMMIT.

    Every update of the positions has a RETURNING: on a table with a key DuckDB 1.5 then deletes and inserts the
    row, else it updates in place, and two transactions of which one does this and the other that are not found
    to conflict: one is lost in silence.
    """

    def take_over(self, connection: duckdb.DuckDBPyConnection, shard: Shard, owner: str, now: float) -> int | None:
        return catalog.take_over(connection, shard, owner, now)

    def move(self, connection: duckdb.DuckDBPyConnection, moves: pa.Table) -> list[tuple[str, int, int, int]]:
        # One statement for all shards: 64 single updates cost 40 ms, this costs 3 ms.
        with registered(connection, "headrace_moves", moves):
            return connection.execute(_COMPARE_AND_SET).fetchall()

    def keep(self, connection: duckdb.DuckDBPyConnection, failures: pa.Table) -> None:
        with registered(connection, "headrace_failed", failures):
            connection.execute("INSERT INTO headrace.failures BY NAME SELECT * FROM headrace_failed")

    def set_state(self, connection: duckdb.DuckDBPyConnection, shard: Shard, state: bytes) -> None:
        catalog.set_state(connection, shard, state)

    def undelivered(
        self, connection: duckdb.DuckDBPyConnection, shard: Shard, records_max: int
    ) -> list[FailedRecord]:
        return catalog.undelivered(connection, shard, records_max)

    def mark_delivered(self, connection: duckdb.DuckDBPyConnection, shard: Shard, before: int) -> None:
        catalog.mark_delivered(connection, shard, before)

    def seal(self, connection: duckdb.DuckDBPyConnection) -> None:
        del connection


#: It holds nothing, so that one does for all files.
FILE_LEDGER: Ledger = FileLedger()


@dataclass(eq=False, slots=True)
class ShardCommit:
    """One shard's part of a transaction: the move of its position from ``expected``, and what goes with it.

    ``state`` is its new state, or None where it keeps the one that it has.

    ``start`` is ``expected``, or where the first range starts when there was none. ``rows_given`` counts the rows
    as they came, of which ``rows`` may be combined. ``ledger`` is the same for all commits of a
    file. ``done`` gets None, or the error that kept this shard out; it is never failed, so that nobody has to
    collect an exception.
    """

    shard: Shard
    owner: str
    expected: int | None
    start: int
    end: int
    counts: Counts
    rows: Sequence[pa.Table]
    rows_given: int
    failures: Sequence[FailedRecord]
    state: bytes | None
    target: Target | None
    phase: Callable[[str], None]
    now: float
    ledger: Ledger = FILE_LEDGER
    done: Future[HeadraceError | None] = field(default_factory=Future)

    def finish(self, error: HeadraceError | None) -> None:
        if not self.done.done():
            self.done.set_result(error)


def commit_together(connection: duckdb.DuckDBPyConnection, commits: Sequence[ShardCommit]) -> None:
    """Commit all in one transaction, or each alone where that fails; every ``done`` is set at the end.

    Raises duckdb.Error only for a database that cannot go on (see `unusable`); then no ``done`` that is
    still open has been committed as far as DuckDB said.
    """
    try:
        lost = _transact(connection, commits)
    except duckdb.Error as error:
        if unusable(error):
            raise
        if len(commits) == 1:
            commits[0].finish(_error(commits[0], error))
            return
    except HeadraceError as error:
        if len(commits) == 1:
            commits[0].finish(error)
            return
    else:
        for commit in commits:
            if commit not in lost:
                commit.phase("committed")
            commit.finish(_lost(commit) if commit in lost else None)
        return
    for commit in commits:
        commit_together(connection, [commit])


def was_made(connection: duckdb.DuckDBPyConnection, commit: ShardCommit) -> bool:
    """Whether the shard stands where ``commit`` was to bring it, by this owner, whom no other acquire has."""
    if commit.end == commit.expected:
        return False  # a position that does not move tells nothing
    shard = commit.shard
    found = connection.execute(
        "SELECT 1 FROM headrace.positions WHERE pipeline = ? AND cluster_id = ? AND topic_id = ?"
        ' AND "partition" = ? AND owner = ? AND next_offset = ?',
        [shard.pipeline, shard.cluster_id, shard.topic_id, shard.partition, commit.owner, commit.end],
    ).fetchone()
    return found is not None


def conflicting(error: duckdb.Error) -> bool:
    """Whether another connection's transaction was in the way: it wrote the same row, or the same first key.

    The class does not tell: a COMMIT that finds the disk full raises TransactionException too.
    """
    kinds = (duckdb.TransactionException, duckdb.ConstraintException)
    text = str(error).lower()
    return isinstance(error, kinds) and ("conflict" in text or "primary key" in text)


def unusable(error: duckdb.Error) -> bool:
    """Whether an error is about the file, and not about a shard or its rows: the connection has to go.

    A COMMIT that finds no memory leaves rows marked wrongly, as one does that finds the disk full, positions too.
    """
    if isinstance(error, duckdb.OutOfMemoryException):
        return catalog.AT_COMMIT in getattr(error, "__notes__", ())
    kinds = (duckdb.IOException, duckdb.FatalException, duckdb.InternalException, duckdb.TransactionException)
    return not conflicting(error) and (isinstance(error, kinds) or "has been invalidated" in str(error))


def _transact(connection: duckdb.DuckDBPyConnection, commits: Sequence[ShardCommit]) -> list[ShardCommit]:
    """One transaction; gives the commits that lost their shard and were left out."""
    ledger = commits[0].ledger
    with catalog.transaction(connection):
        for commit in commits:
            commit.phase("begin")
        won = _move_positions(connection, commits)
        by_target: dict[Target, list[pa.Table]] = {}
        failures: list[dict[str, object]] = []
        for commit in won:
            if commit.rows and commit.target is not None:
                by_target.setdefault(commit.target, []).append(pa.concat_tables(commit.rows))
            failures += catalog.failure_rows(commit.shard, commit.failures, commit.now)
        for target, rows in by_target.items():
            target.store(connection, rows)
        if failures:
            ledger.keep(connection, pa.Table.from_pylist(failures, catalog.FAILURES))
        for commit in won:
            if commit.state is not None:
                ledger.set_state(connection, commit.shard, commit.state)
        ledger.seal(connection)
        for commit in won:
            commit.phase("written")
    return [commit for commit in commits if commit not in won]


def _move_positions(connection: duckdb.DuckDBPyConnection, commits: Sequence[ShardCommit]) -> list[ShardCommit]:
    """Compare and set all positions; the commits whose shard was still theirs, at the expected offset."""
    moves = [
        {
            "pipeline": commit.shard.pipeline,
            "cluster_id": commit.shard.cluster_id,
            "topic_id": commit.shard.topic_id,
            "part": commit.shard.partition,
            "owner": commit.owner,
            "expected": commit.expected,
            "first": commit.start,
            "following": commit.end,
            "handled": commit.counts.handled,
            "filtered": commit.counts.filtered,
            "dropped": commit.counts.dropped,
            "failed": commit.counts.failed,
            "absent": commit.counts.absent,
            "rows_given": commit.rows_given,
            "updated": int(commit.now * 1e6),
        }
        for commit in commits
    ]
    for commit in commits:
        assert commit.start <= commit.end, f"{commit.shard}: position would go back to {commit.end}"
        assert commit.counts.total == commit.end - commit.start
    moved = commits[0].ledger.move(connection, pa.Table.from_pylist(moves, MOVES))
    # An owner is a UUID of one acquire, so it tells which commit a row is from.
    by_owner = {commit.owner: commit for commit in commits}
    for owner, following, covered, counted in moved:
        commit = by_owner[owner]
        if following != commit.end or covered != counted:
            raise InternalError(
                f"{commit.shard}: read back position {following} for {commit.end},"
                f" with {covered} offsets and {counted} records accounted for"
            )
    winners = {row[0] for row in moved}
    return [commit for commit in commits if commit.owner in winners]


def _lost(commit: ShardCommit) -> ShardLost:
    at = "no position yet" if commit.expected is None else f"position {commit.expected}"
    return ShardLost(f"{commit.shard}: another owner has taken it since {at}")


def _error(commit: ShardCommit, error: duckdb.Error) -> HeadraceError:
    """What a shard that failed alone is told."""
    if isinstance(error, duckdb.TransactionException) and conflicting(error):
        return _lost(commit)
    table = commit.target.table if commit.target is not None else "headrace.positions"
    span = f"offsets [{commit.start}, {commit.end}) of {commit.shard}"
    if isinstance(error, (duckdb.CatalogException, duckdb.BinderException)):
        return SinkMismatch(
            f"table {table} is gone or changed: {span} do not fit: {error}",
            hint="Restore the table as the sink made it.",
        )
    if isinstance(error, (duckdb.ConstraintException, duckdb.ConversionException, duckdb.OutOfRangeException)):
        return DataError(f"table {table} refuses rows of {span}: {error}")
    hint = None
    if isinstance(error, duckdb.OutOfMemoryException):
        hint = "Raise the memory limit of the DuckDB file, or commit smaller batches."
    return SinkUnavailable(f"table {table}: {span} could not be committed: {error}", hint=hint)
