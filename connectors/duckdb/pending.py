"""What a shard has written and not committed: one range, its counts, failed records and state, its rows in memory.

Not here: when it is committed (`sink`) and how (`commit`); nor how partial aggregates are combined (`aggregate`).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import pyarrow as pa

from engine.protocols import Counts, FailedRecord, Outcome

#: Memory that a failure takes beside its key and value.
FAILURE_BYTES = 512

#: Tables up to this size are copied where their size has to be true: DuckDB gives buffers for 2,048 rows and more
#: to a table of one row (80 to 140 kB for eight columns), and a slice holds all that it was cut from.
COPIED_BYTES_MAX = 262_144

#: Partial aggregates are combined once so much has come since they last were, and as much as that left: they hold
#: at most twice what their groups need and this, and the work for each row does not grow.
COMBINE_BYTES = 4_194_304

#: What a table takes beside its values, counted for partial aggregates: it bounds how many small ones wait.
TABLE_BYTES = 2_048


@dataclass(slots=True)
class Pending:
    """Contiguous outcomes as one. ``rows_given`` counts rows as they came, ``rows`` may be combined since.

    Each table counts as its values and ``table_bytes``.
    """

    table_bytes: int = 0
    start: int = 0
    end: int = 0
    outcomes: int = 0
    counts: Counts = field(default_factory=Counts)
    rows: list[pa.Table] = field(default_factory=list)
    rows_given: int = 0
    failures: list[FailedRecord] = field(default_factory=list)
    state: bytes | None = None
    _rows_bytes: int = 0
    _failures_bytes: int = 0
    _combined_bytes: int = 0

    def __bool__(self) -> bool:
        return self.outcomes > 0

    @property
    def nbytes(self) -> int:
        """Bytes of memory held by rows, failures and state."""
        return self._rows_bytes + self._failures_bytes + len(self.state or b"")

    def add(self, outcome: Outcome, rows: pa.Table | None) -> None:
        """Take in an outcome, with the rows that are to be stored for it."""
        assert not self or self.end == outcome.start, f"{self.end} is not followed by {outcome.start}"
        if not self:
            self.start = outcome.start
        self.end = outcome.end
        self.outcomes += 1
        self.counts += outcome.counts
        self.failures += outcome.failures
        self._failures_bytes += sum(
            FAILURE_BYTES + len(failure.key or b"") + len(failure.value or b"") for failure in outcome.failures
        )
        if outcome.state is not None:
            self.state = outcome.state
        if rows is not None:
            self.rows.append(rows)
            self.rows_given += rows.num_rows
            self._rows_bytes += self.table_bytes + int(rows.nbytes)

    @property
    def is_worth_combining(self) -> bool:
        fresh = self._rows_bytes - self._combined_bytes
        return fresh >= max(COMBINE_BYTES, self._combined_bytes)

    def combined(self, rows: pa.Table) -> None:
        """``rows`` take the place of all tables there are."""
        self.rows = [rows]
        self._rows_bytes = self._combined_bytes = self.table_bytes + int(rows.nbytes)


def compact(rows: pa.Table) -> pa.Table:
    """A copy of ``rows`` in memory of their own, no more than they need."""
    # Concatenating one array with nothing would not copy it.
    columns = [pa.concat_arrays([*column.chunks, pa.array([], column.type)]) for column in rows.columns]
    return pa.table(columns, schema=rows.schema)
