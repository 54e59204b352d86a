"""What every decoder of values gives and takes: `Decoded`, the `Decoder` protocol, and the limits.

Not here: how a format is decoded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

import pyarrow as pa

from engine.batch import Batch
from engine.protocols import Fault
from engine.values.reasons import bounded

#: Bytes of values in one batch. String columns have 32-bit offsets, so a column must stay below 2 GiB; text
#: of JSON columns can be up to four times as long as it was written (1e15 becomes 1000000000000000.0).
BATCH_BYTES_MAX = 512 * 1024 * 1024

NULL_VALUE = "the value is null (a tombstone)"  #: the reason of a fault

OnNullValue = Literal["fail", "drop"]


@dataclass(frozen=True, slots=True)
class Decoded:
    """What came of a batch's values. Every record is in exactly one of the three.

    ``columns`` has a row for each record that could be decoded, in offset order; ``faults`` name the others,
    in offset order; ``dropped`` counts records let go on purpose (null values under ``on_null_value="drop"``).
    """

    columns: pa.RecordBatch
    faults: tuple[Fault, ...]
    dropped: int


class Decoder(Protocol):
    """Turns the value column of a batch into typed columns. No record ever makes it raise."""

    @property
    def schema(self) -> pa.Schema:
        """The schema of `Decoded.columns`, trace columns included."""

    def decode(self, batch: Batch) -> Decoded: ...


def values_of(batch: Batch) -> pa.BinaryArray:
    """The value column of a batch, of less than `BATCH_BYTES_MAX` bytes, or the engine's bounds are broken."""
    values = batch.records.column("value")
    size = values.nbytes
    assert size <= BATCH_BYTES_MAX, f"a batch of {size:,} bytes of values; at most {BATCH_BYTES_MAX:,}"
    return values


def null_rows(values: pa.BinaryArray) -> list[int]:
    """The rows without a value."""
    if values.null_count == 0:
        return []
    return [row for row, null in enumerate(values.is_null().to_pylist()) if null]


def settle(
    batch: Batch, columns: pa.RecordBatch, wrong: Mapping[int, str], nulls: list[int], on_null_value: OnNullValue
) -> Decoded:
    """A `Decoded` from columns with a row for every record, reasons by row, and the rows without a value."""
    reasons = dict(wrong)
    if on_null_value == "fail":
        reasons.update(dict.fromkeys(nulls, NULL_VALUE))
    out = {*reasons, *nulls}
    if out:
        columns = columns.filter(pa.array([row not in out for row in range(len(batch))], pa.bool_()))
    offsets = batch.records.column("offset")
    faults = tuple(Fault(offsets[row].as_py(), bounded(reasons[row])) for row in sorted(reasons))
    dropped = len(out) - len(faults)
    assert columns.num_rows + len(faults) + dropped == len(batch)
    return Decoded(columns, faults, dropped)
