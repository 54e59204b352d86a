"""`RecordColumns`: beside the decoded columns the record's own bytes, for functions that pass records on unchanged.

Not here: how a value is decoded; any decoder may stand behind it.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from engine.batch import RECORDS, Batch
from engine.values.decoder import Decoded, Decoder

#: The columns, and those of a Batch that they are.
RECORD = (
    pa.field("_key", RECORDS.field("key").type),
    pa.field("_value", RECORDS.field("value").type),
    pa.field("_headers", RECORDS.field("headers").type),
)
_OF_BATCH = ("key", "value", "headers")


class RecordColumns:
    """A decoder that adds `RECORD` to the columns of another one, without a copy where every record was decoded."""

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder

    @property
    def schema(self) -> pa.Schema:
        """The other decoder's columns, then ``_key``, ``_value`` and ``_headers``."""
        return pa.schema([*self._decoder.schema, *RECORD])

    def decode(self, batch: Batch) -> Decoded:
        """As the other decoder does."""
        decoded = self._decoder.decode(batch)
        arrays = [batch.records.column(name) for name in _OF_BATCH]
        if decoded.columns.num_rows < len(batch):
            kept = pa.array(_kept(batch, decoded))
            arrays = [array.filter(kept) for array in arrays]
        columns = pa.RecordBatch.from_arrays([*decoded.columns.columns, *arrays], schema=self.schema)
        assert columns.num_rows == decoded.columns.num_rows
        return Decoded(columns, decoded.faults, decoded.dropped)


def _kept(batch: Batch, decoded: Decoded) -> np.ndarray:
    """Which records have a row: all but the faulty ones and, where some were dropped, those without a value."""
    kept = np.ones(len(batch), np.bool_)
    offsets = batch.records.column("offset").to_numpy()
    kept[np.searchsorted(offsets, [fault.offset for fault in decoded.faults])] = False
    if decoded.dropped:
        kept &= batch.records.column("value").is_valid().to_numpy(zero_copy_only=False)
    return kept
