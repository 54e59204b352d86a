"""`RawDecoder`: records as they are, for functions that decode themselves. Nothing is looked into here."""

from __future__ import annotations

import pyarrow as pa

from engine.batch import RECORDS, Batch
from engine.values.decoder import RECORD_BYTES_MAX, Decoded, settle, too_large, values_of
from engine.values.schema import whole
from engine.values.trace import trace_arrays

_FIELDS = [RECORDS.field("key"), RECORDS.field("value"), RECORDS.field("headers")]


class RawDecoder:
    """The columns ``key`` and ``value`` (BLOB) and ``headers`` (a list of key and value). A null value is a value.

    Only a value of more than ``record_bytes_max`` bytes is a fault.
    """

    def __init__(self, *, trace: bool = True, record_bytes_max: int = RECORD_BYTES_MAX) -> None:
        self._trace = trace
        self._record_bytes_max = record_bytes_max
        self._schema = whole(_FIELDS, trace=trace)

    @property
    def schema(self) -> pa.Schema:
        """``key``, ``value``, ``headers``, then the trace columns where those are on."""
        return self._schema

    def decode(self, batch: Batch) -> Decoded:
        """The records' own columns, beside the trace columns."""
        wrong = too_large(values_of(batch), self._record_bytes_max)
        arrays = [batch.records.column(field.name) for field in _FIELDS]
        columns = pa.RecordBatch.from_arrays(
            [*arrays, *(trace_arrays(batch) if self._trace else [])], schema=self._schema
        )
        return settle(batch, columns, wrong, [], "fail")
