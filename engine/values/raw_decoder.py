"""`RawDecoder`: records as they are, for functions that decode themselves. Nothing is looked into here."""

from __future__ import annotations

import pyarrow as pa

from engine.batch import RECORDS, Batch
from engine.values.decoder import Decoded, settle, values_of
from engine.values.schema import whole
from engine.values.trace import trace_arrays

_FIELDS = [RECORDS.field("key"), RECORDS.field("value"), RECORDS.field("headers")]


class RawDecoder:
    """The columns ``key`` and ``value`` (BLOB) and ``headers`` (a list of key and value). Takes every record."""

    def __init__(self, *, trace: bool = True) -> None:
        self._trace = trace
        self._schema = whole(_FIELDS, trace=trace)

    @property
    def schema(self) -> pa.Schema:
        """``key``, ``value``, ``headers``, then the trace columns where those are on."""
        return self._schema

    def decode(self, batch: Batch) -> Decoded:
        """The records' own columns, beside the trace columns."""
        values_of(batch)
        arrays = [batch.records.column(field.name) for field in _FIELDS]
        columns = pa.RecordBatch.from_arrays(
            [*arrays, *(trace_arrays(batch) if self._trace else [])], schema=self._schema
        )
        return settle(batch, columns, {}, [], "fail")
