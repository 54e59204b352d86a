"""How many bytes each record adds to an event, without building the event.

The engine closes batches at 6 MB of invocation payload (AWS Lambda developer guide, "batching behavior"). The
sizes are exact for the event as compact JSON in UTF-8. An event's size is the sum over its records plus
`envelope_bytes`; each record's share includes the comma before the next, which the last one has not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from engine.batch import Batch, from_rows
from functions.kinds import dynamodb, kinesis, texts
from functions.kinds.sources import EventSource, event_of

Sizes = NDArray[np.int64]

Row = tuple[int, int, bytes | None, bytes | None, Sequence[tuple[str, bytes | None]]]

#: Of the length that all invocation ids have.
INVOCATION_ID = "0" * 36

#: The least that kind dynamodb takes for a value.
_BARE_CHANGE = b'{"eventName": "INSERT", "dynamodb": {"Keys": {}}}'


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

#: More than a record's numbers take in an event: offset, timestamps, and the size of a value.
_NUMBERS_BYTES = 80

#: More than a header has beside its name and its bytes.
_HEADER_BYTES = 16

#: Timestamps beyond this many milliseconds lose digits as float seconds, so their size is not arithmetic.
_EXACT_MS_MAX = 10**14


class EventPayload(Protocol):
    """The sizes of one kind of event."""

    def envelope_bytes(self, batch: Batch) -> int:
        """Bytes of the event around the records, but for one comma."""

    def payload_bytes(self, batch: Batch) -> Sizes:
        """Bytes of each record of a batch."""

    def payload_bytes_bound(self, batch: Batch) -> int:
        """No less than the sum of `payload_bytes`: every byte as long as it may become."""


def payload_for(source: EventSource) -> EventPayload:
    """What measures the events of a source."""
    made: dict[str, Callable[[EventSource], EventPayload]] = {
        "kinesis": KinesisPayload,
        "kafka": KafkaPayload,
        "dynamodb": DynamoPayload,
        "firehose": FirehosePayload,
    }
    return made[source.kind](source)


class _Payload:
    """What the kinds have in common: an event of one empty record, with the offset 0 at the time 0."""

    def __init__(self, source: EventSource) -> None:
        self._source = source
        self._known: dict[tuple[str, int, bool], tuple[int, int]] = {}

    def envelope_bytes(self, batch: Batch) -> int:
        """Bytes of the event around the records, but for one comma."""
        return self._measured(batch)[0] - 1

    def _fixed(self, batch: Batch) -> int:
        """Bytes of the empty record, its comma included."""
        around, whole = self._measured(batch)
        return whole - around + 1

    def _measured(self, batch: Batch) -> tuple[int, int]:
        """Bytes of the event without and with the empty record; the same for all batches of a shard."""
        shard = (batch.topic, batch.partition, batch.log_append_time)
        if shard not in self._known:
            value = _BARE_CHANGE if self._source.kind == "dynamodb" else b""
            self._known[shard] = self._of([], batch), self._of([(0, 0, b"", value, ())], batch)
        return self._known[shard]

    def _of(self, rows: list[Row], batch: Batch) -> int:
        made = from_rows(batch.topic, batch.partition, rows, start=0, end=1, log_append_time=batch.log_append_time)
        envelope = self._source.envelope(made, INVOCATION_ID)
        return len(texts.dumps(event_of(self._source.kind, made, envelope)))


class KinesisPayload(_Payload):
    """The sizes of `kinesis.build_event`."""

    def payload_bytes(self, batch: Batch) -> Sizes:
        """Bytes of each record of a batch."""
        _, timestamps, keys, values = (batch.records.column(i) for i in range(4))
        sizes = np.full(len(batch), self._fixed(batch) - len("0.0"), dtype=np.int64)
        sizes += _base64(_lengths(values))
        sizes += _partition_keys(keys)
        sizes += _seconds(timestamps)
        return sizes

    def payload_bytes_bound(self, batch: Batch) -> int:
        """No less than the sum of `payload_bytes`: every byte as long as it may become."""
        fixed = self._fixed(batch) + _NUMBERS_BYTES
        return len(batch) * fixed + _base64_bound(batch, "value") + _ESCAPED_MAX * batch.column_bytes("key")


class FirehosePayload(_Payload):
    """The sizes of `firehose.build_event`."""

    def payload_bytes(self, batch: Batch) -> Sizes:
        """Bytes of each record of a batch."""
        _, timestamps, keys, values = (batch.records.column(i) for i in range(4))
        sizes = np.full(len(batch), self._fixed(batch) - 2 * len("0"), dtype=np.int64)
        sizes += _base64(_lengths(values))
        sizes += _partition_keys(keys)
        sizes += 2 * _integers(timestamps.to_numpy())
        return sizes

    def payload_bytes_bound(self, batch: Batch) -> int:
        """No less than the sum of `payload_bytes`: every byte as long as it may become."""
        fixed = self._fixed(batch) + _NUMBERS_BYTES
        return len(batch) * fixed + _base64_bound(batch, "value") + _ESCAPED_MAX * batch.column_bytes("key")


class KafkaPayload(_Payload):
    """The sizes of `kafka.build_event`."""

    def payload_bytes(self, batch: Batch) -> Sizes:
        """Bytes of each record of a batch."""
        offsets, timestamps, keys, values, headers = (batch.records.column(i) for i in range(5))
        sizes = np.full(len(batch), self._fixed(batch) - len("0") - len("0"), dtype=np.int64)
        sizes += _integers(offsets.to_numpy())
        sizes += _integers(timestamps.to_numpy())
        for column in (keys, values):
            sizes += np.where(_nulls(column), len("null") - len('""'), _base64(_lengths(column)))
        sizes += _headers(headers)
        return sizes

    def payload_bytes_bound(self, batch: Batch) -> int:
        """No less than the sum of `payload_bytes`: every byte as long as it may become."""
        fixed = self._fixed(batch) + _NUMBERS_BYTES
        known = len(batch) * fixed + _base64_bound(batch, "key") + _base64_bound(batch, "value")
        headers = batch.records.column("headers")
        if headers.null_count == len(headers):
            return known
        return known + _HEADER_BYTES * len(headers.flatten()) + _ESCAPED_MAX * int(headers.nbytes)


class DynamoPayload(_Payload):
    """The sizes of `dynamodb.build_event`. A value that no event can hold has its own size."""

    def payload_bytes(self, batch: Batch) -> Sizes:
        """Bytes of each record of a batch; every value is parsed for it."""
        envelope = self._source.envelope(batch, INVOCATION_ID)
        shard = kinesis.shard_id(batch.partition)
        columns = [batch.records.column(name).to_pylist() for name in ("offset", "timestamp", "value")]
        sizes = [_change(envelope, shard, *row) for row in zip(*columns, strict=True)]
        return np.array(sizes, dtype=np.int64)

    def payload_bytes_bound(self, batch: Batch) -> int:
        """No less than the sum of `payload_bytes`: every byte as long as it may become."""
        fixed = self._fixed(batch) + _NUMBERS_BYTES
        return len(batch) * fixed + _ESCAPED_MAX * batch.column_bytes("value")


def _change(envelope: Mapping[str, object], shard: str, offset: int, timestamp: int, value: bytes | None) -> int:
    try:
        return len(texts.dumps(dynamodb.stream_record(envelope, shard, offset, timestamp, value))) + 1
    except ValueError:
        return len(value or b"")


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
