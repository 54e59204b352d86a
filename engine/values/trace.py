"""The trace columns: from which record a row comes. Not here: the columns that the record's value gives."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from engine.batch import Batch

#: ``_timestamp`` is the record's, which the producer or the broker set. It is NULL where Kafka has none (-1).
TRACE = (
    pa.field("_partition", pa.int32(), nullable=False),
    pa.field("_offset", pa.int64(), nullable=False),
    pa.field("_timestamp", pa.timestamp("ms", tz="UTC")),
)

_NO_TIMESTAMP = -1  # org.apache.kafka.common.record.RecordBatch.NO_TIMESTAMP


def trace_arrays(batch: Batch) -> list[pa.Array]:
    """The arrays of `TRACE`, one row for each record of the batch."""
    offsets, stamps = batch.records.column("offset"), batch.records.column("timestamp")
    if (stamps.to_numpy() == _NO_TIMESTAMP).any():
        stamps = pc.if_else(pc.equal(stamps, _NO_TIMESTAMP), pa.scalar(None, pa.int64()), stamps)
    partition = pa.array(np.full(len(batch), batch.partition, np.int32))
    return [partition, offsets, stamps.view(TRACE[2].type)]
