"""Small tools that the ready-made functions share: trace columns, refusals by row, times from text.

Everything works on whole columns; Python sees single records only where one of them is refused. Not here:
anything that knows what the columns mean.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from engine.errors import HandlerError
from engine.protocols import Fault, Result

TRACE = ("_partition", "_offset", "_timestamp")
EVENT_TIME = pa.timestamp("us", tz="UTC")

#: How much of a refused value a reason shows, in characters.
EXCERPT_CHARACTERS_MAX = 60

# Date, then perhaps a time, a fraction and a zone: ISO 8601 in the extended form, with a blank for the T
# and a comma for the point as logs have them.
_ISO = (
    r"^(?P<date>\d{4}-\d{2}-\d{2})(?:[T ](?P<time>\d{2}:\d{2}(?::\d{2})?)(?:[.,](?P<fraction>\d{1,6})\d*)?"
    r" ?(?P<zone>Z|[+-]\d{2}(?::?\d{2})?)?)?$"
)


def column(batch: pa.RecordBatch, name: str, *, wanted_by: str) -> pa.Array:
    """A column by name. Raises HandlerError, naming the columns there are."""
    index = batch.schema.get_field_index(name)
    if index < 0:
        raise HandlerError(
            f"{wanted_by} needs the column {name!r}; the batch has {', '.join(batch.schema.names) or 'none'}",
            hint="declare it in the pipeline's schema, or name the column that holds it",
        )
    return batch.column(index)


def text(array: pa.Array) -> pa.Array:
    """The column as plain strings; numbers and such become their text."""
    return array if array.type == pa.string() else pc.cast(array, pa.string())


class Refusals:
    """Which rows of a batch cannot be taken, and why. The first reason given for a row stands."""

    def __init__(self, batch: pa.RecordBatch) -> None:
        self._batch = batch
        self._checks: list[tuple[pa.Array, str, pa.Array | None]] = []

    def refuse(self, mask: pa.Array, reason: str, values: pa.Array | None = None) -> None:
        """Refuse the rows where ``mask`` is true; ``{}`` in ``reason`` shows the row's value."""
        mask = pc.fill_null(mask, False)
        if pc.any(mask, min_count=0).as_py():
            self._checks.append((mask, reason, values))

    def refuse_each(self, reasons: pa.Array) -> None:
        """Refuse the rows that have a reason, each for its own."""
        self._checks.append((pc.is_valid(reasons), "", reasons))

    @property
    def good(self) -> pa.Array | None:
        """Mask of the rows that were not refused; None when all are good."""
        if not self._checks:
            return None
        return pc.invert(functools.reduce(pc.or_, [mask for mask, _, _ in self._checks]))

    def faults(self) -> list[Fault]:
        """One Fault for each refused row, by offset."""
        if not self._checks:
            return []
        offsets = column(self._batch, "_offset", wanted_by="reporting a record that cannot be taken")
        reasons: dict[int, str] = {}
        for mask, reason, values in self._checks:
            for row in pc.indices_nonzero(mask).to_pylist():
                if row not in reasons:
                    shown = None if values is None else values[row].as_py()
                    reasons[row] = reason.replace("{}", excerpt(shown)) if reason else str(shown)
        return [Fault(offsets[row].as_py(), reasons[row]) for row in sorted(reasons)]

    def result(self, columns: Mapping[str, pa.Array], keep: pa.Array | None = None) -> Result:
        """The good rows as a Result, with the batch's trace columns first.

        Rows that are good but not in ``keep`` are counted as dropped.
        """
        traced = {name: self._batch.column(name) for name in TRACE if name in self._batch.schema.names}
        rows = pa.table({**traced, **columns})
        faults = self.faults()
        masks = [
            mask for mask in (self.good, None if keep is None else pc.fill_null(keep, False)) if mask is not None
        ]
        if masks:
            rows = rows.filter(functools.reduce(pc.and_, masks))
        return Result(rows=rows, faults=faults, dropped=self._batch.num_rows - len(faults) - rows.num_rows)


def excerpt(value: object) -> str:
    """A value as a reason shows it: quoted, and cut where it is long."""
    shown = repr(value)
    if len(shown) <= EXCERPT_CHARACTERS_MAX:
        return shown
    return f"{shown[:EXCERPT_CHARACTERS_MAX]}... ({len(shown)} characters)"


def cast_or_null(array: pa.Array, target: pa.DataType) -> pa.Array:
    """Cast a column; values that cannot be cast become null.

    Arrow's cast fails as a whole, so a column with bad values is halved until they stand alone: a few
    calls for each bad value, none for a clean column.
    """
    try:
        return pc.cast(array, target)
    except pa.ArrowInvalid:
        if len(array) == 1:
            return pa.nulls(1, target)
        half = len(array) // 2
        return pa.concat_arrays(
            [cast_or_null(array.slice(0, half), target), cast_or_null(array.slice(half), target)]
        )


def times(strings: pa.Array, *, utc_offset: str = "+00:00") -> pa.Array:
    """ISO 8601 times as timestamp[us, UTC]; null where a value is none. Digits beyond microseconds are cut off.

    A time without a zone is taken as of ``utc_offset`` ("+02:00").
    """
    try:
        return pc.cast(strings, EVENT_TIME)
    except pa.ArrowInvalid:
        pass
    date, time, fraction, zone = pc.extract_regex(strings, _ISO).flatten()
    # Groups that took no part in a match are empty strings.
    time = pc.if_else(pc.equal(time, ""), "00:00:00", time)
    time = pc.if_else(pc.equal(pc.binary_length(time), 5), pc.binary_join_element_wise(time, ":00", ""), time)
    fraction = pc.utf8_rpad(fraction, 6, "0")
    zone = pc.if_else(pc.equal(zone, ""), utc_offset, zone)
    clock = pc.binary_join_element_wise(time, fraction, ".")
    return cast_or_null(
        pc.binary_join_element_wise(pc.binary_join_element_wise(date, clock, "T"), zone, ""), EVENT_TIME
    )


def by_case(
    rows: pa.Array, cases: Sequence[tuple[pa.Array, Callable[[pa.Array], Mapping[str, pa.Array]]]]
) -> dict[str, pa.Array]:
    """Columns, a row for each of ``rows``, from cases that each work on rows of their own.

    Each case is a mask and what to call with the ``rows`` that it chooses; the masks exclude each other
    and cover all rows. Names and types of the columns must agree.
    """
    length = len(rows)
    chosen = [(mask, work) for mask, work in cases if pc.any(mask, min_count=0).as_py()]
    if len(chosen) == 1 or not length:
        return dict((chosen or cases)[-1][1](rows))
    tables: list[pa.Table] = []
    places, filled = pa.nulls(length, pa.int64()), 0
    for mask, work in chosen:
        table = pa.table(dict(work(rows.filter(mask))))
        places = pc.replace_with_mask(places, mask, pa.array(range(filled, filled + table.num_rows), pa.int64()))
        tables.append(table.select(tables[0].column_names) if tables else table)
        filled += table.num_rows
    assert filled == length, f"cases cover {filled} of {length} rows"
    merged = pa.concat_tables(tables).take(places)
    return {name: _whole(merged.column(name)) for name in merged.column_names}


def unless(values: pa.Array, absent: str) -> pa.Array:
    """Null where the value is ``absent``."""
    return pc.if_else(pc.equal(values, absent), pa.scalar(None, pa.string()), values)


def _whole(values: pa.ChunkedArray) -> pa.Array:
    return values.chunk(0) if values.num_chunks == 1 else pa.concat_arrays(values.chunks)
