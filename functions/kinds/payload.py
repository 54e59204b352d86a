"""How many bytes each record adds to an event, without building the event.

The engine closes batches at 6 MB of invocation payload (AWS Lambda developer guide, "batching behavior"). The
sizes are exact for the event as compact JSON in UTF-8. An event's size is the sum over its records plus
`envelope_bytes`; each record's share includes the comma before the next, which the last one has not.
"""

from __future__ import annotations

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from engine.batch import Batch
from functions.kinds import kafka, kinesis

Sizes = NDArray[np.int64]


def _escaped() -> Sizes:
    """Bytes that each byte of a UTF-8 text takes inside a JSON string."""
    sizes = np.ones(256, dtype=np.int64)
    sizes[:32] = 6
    sizes[[ord(c) for c in '\b\t\n\f\r"\\']] = 2
    return sizes


#: Bytes of JSON for each byte of text, and for each byte as a signed number.
_TEXT = _escaped()
_SIGNED = np.array([len(str(b - 256 if b > 127 else b)) for b in range(256)], dtype=np.int64)

#: The most that a byte of text becomes, as \\u0001, and a byte of a header, as "-128,".
_ESCAPED_MAX = 6

#: More than a record has in an event beside what depends on it: member names, numbers, quotes; and a header.
_JSON_BYTES = 640
_HEADER_BYTES = 16

#: Timestamps beyond this many milliseconds lose digits as float seconds, so their size is not arithmetic.
_EXACT_MS_MAX = 10**14


class KinesisPayload:
    """The sizes of `kinesis.event`."""

    def __init__(self, *, role: str = "headrace") -> None:
        self._role = role

    def envelope_bytes(self, batch: Batch) -> int:
        return len(orjson.dumps({"Records": []})) - 1

    def payload_bytes(self, batch: Batch) -> Sizes:
        """Bytes of each record of a batch."""
        stream = kinesis.KinesisStream(batch.topic, kinesis.region(), self._role)
        bare = kinesis.build(stream, batch.partition, [0], [0], [b""], [b""])["Records"]
        fixed = len(orjson.dumps(bare)) - 2 + 1 - len("0.0")
        _, timestamps, keys, values = (batch.records.column(i) for i in range(4))
        sizes = np.full(len(batch), fixed, dtype=np.int64)
        sizes += _base64(_lengths(values))
        sizes += _partition_keys(keys)
        sizes += _seconds(timestamps)
        return sizes

    def payload_bytes_bound(self, batch: Batch) -> int:
        """No less than the sum of `payload_bytes`: every byte as long as it may become."""
        stream = kinesis.KinesisStream(batch.topic, kinesis.region(), self._role)
        fixed = _JSON_BYTES + len(orjson.dumps([stream.arn, stream.role_arn, stream.region]))
        return len(batch) * fixed + _base64_bound(batch, "value") + _ESCAPED_MAX * batch.column_bytes("key")


class KafkaPayload:
    """The sizes of `kafka.event`."""

    def __init__(self, source: kafka.KafkaSource) -> None:
        self._source = source

    def envelope_bytes(self, batch: Batch) -> int:
        return len(orjson.dumps(self._source.envelope({f"{batch.topic}-{batch.partition}": []}))) - 1

    def payload_bytes(self, batch: Batch) -> Sizes:
        """Bytes of each record of a batch."""
        bare = kafka.build(
            batch.topic, batch.partition, [0], [0], [b""], [b""], [None], log_append_time=batch.log_append_time
        )
        [records] = bare.values()
        fixed = len(orjson.dumps(records)) - 2 + 1 - len("0") - len("0")
        offsets, timestamps, keys, values, headers = (batch.records.column(i) for i in range(5))
        sizes = np.full(len(batch), fixed, dtype=np.int64)
        sizes += _integers(offsets.to_numpy())
        sizes += _integers(timestamps.to_numpy())
        for column in (keys, values):
            sizes += np.where(_nulls(column), len("null") - len('""'), _base64(_lengths(column)))
        sizes += _headers(headers)
        return sizes

    def payload_bytes_bound(self, batch: Batch) -> int:
        """No less than the sum of `payload_bytes`: every byte as long as it may become."""
        fixed = _JSON_BYTES + len(orjson.dumps(batch.topic))
        known = len(batch) * fixed + _base64_bound(batch, "key") + _base64_bound(batch, "value")
        headers = batch.records.column("headers")
        if headers.null_count == len(headers):
            return known
        return known + _HEADER_BYTES * len(headers.flatten()) + _ESCAPED_MAX * int(headers.nbytes)


def _base64_bound(batch: Batch, name: str) -> int:
    """No less than all keys or values take in base64, each padded to a multiple of four."""
    return batch.column_bytes(name) * 4 // 3 + 4 * len(batch)


def _nulls(column: pa.Array) -> NDArray[np.bool_]:
    return np.asarray(column.is_null().to_numpy(zero_copy_only=False), dtype=np.bool_)


def _lengths(column: pa.Array) -> Sizes:
    """Bytes of each value of a binary or text column; 0 for null."""
    return _numbers(pc.fill_null(pc.binary_length(column), 0))


def _numbers(column: pa.Array) -> Sizes:
    return np.asarray(column.to_numpy(zero_copy_only=False)).astype(np.int64)


def _base64(lengths: Sizes) -> Sizes:
    return (lengths + 2) // 3 * 4


def _sums(column: pa.Array, table: Sizes) -> Sizes:
    """For each value of a binary or text column the sum of ``table`` over its bytes; 0 for null."""
    count = len(column)
    data = column.buffers()[2]
    if data is None or count == 0:
        return np.zeros(count, dtype=np.int64)
    bounds = np.frombuffer(column.buffers()[1], dtype=np.int32)[column.offset : column.offset + count + 1]
    first, last = int(bounds[0]), int(bounds[-1])
    running = np.zeros(last - first + 1, dtype=np.int64)
    np.cumsum(table[np.frombuffer(data, dtype=np.uint8)[first:last]], out=running[1:])
    sums: Sizes = np.diff(running[bounds - first])
    return np.where(_nulls(column), 0, sums) if column.null_count else sums


def _partition_keys(keys: pa.Array) -> Sizes:
    """Bytes of each partition key between its quotes."""
    try:
        keys.cast(pa.string())
    except pa.ArrowInvalid:  # not all of them are UTF-8
        texts = [kinesis.partition_key(key) for key in keys.to_pylist()]
        return np.array([len(orjson.dumps(text)) - 2 for text in texts], dtype=np.int64)
    return np.where(_nulls(keys), len(kinesis.NULL_KEY), _sums(keys, _TEXT))


def _integers(numbers: NDArray[np.int64]) -> Sizes:
    """Characters of each whole number, its sign among them."""
    sizes = np.ones(len(numbers), dtype=np.int64)
    absolute = np.abs(numbers)  # no Kafka offset or timestamp is the one number without a positive twin
    for power in range(1, 19):
        reached = absolute >= 10**power
        if not reached.any():
            break
        sizes += reached
    sizes += numbers < 0
    return sizes


def _seconds(timestamps: pa.Array) -> Sizes:
    """Characters of each timestamp as float seconds: no trailing zeros, but one digit after the point."""
    milliseconds = timestamps.to_numpy()
    absolute = np.abs(milliseconds)
    fraction = np.where(absolute % 100 == 0, 1, np.where(absolute % 10 == 0, 2, 3))
    sizes: Sizes = _integers(absolute // 1000) + 1 + fraction + (milliseconds < 0)
    for i in np.flatnonzero(absolute > _EXACT_MS_MAX):
        sizes[i] = len(orjson.dumps(int(milliseconds[i]) / 1000))
    return sizes


def _headers(headers: pa.Array) -> Sizes:
    """Bytes of each record's headers between the brackets."""
    flat = headers.flatten()
    counts = np.asarray(pc.fill_null(pc.list_value_length(headers), 0).to_numpy(zero_copy_only=False)).astype(
        np.int64
    )
    if len(flat) == 0:
        return np.zeros(len(headers), dtype=np.int64)
    names, values = flat.flatten()
    each = _sums(names, _TEXT) + _sums(values, _SIGNED) + np.maximum(_lengths(values) - 1, 0)
    each += len('{"":[]}') + 1  # and the comma to the next
    running = np.zeros(len(each) + 1, dtype=np.int64)
    np.cumsum(each, out=running[1:])
    ends = np.cumsum(counts)
    sizes: Sizes = running[ends] - running[ends - counts]
    return sizes - (counts > 0)
