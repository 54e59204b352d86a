"""The wire format of a schema registry: a zero byte and a schema's id before each value, and what the id means.

The format is Confluent's ("Formats, Serializers, and Deserializers", wire format): byte 0 is 0, bytes 1 to 4 are
the id, big endian; in Protobuf values the indexes of the message type follow. Not here: how a registry is reached
(a connector does that, behind `SchemaSource`), and what stands after the prefix.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pyarrow as pa

from engine.batch import Batch
from engine.protocols import Fault
from engine.values.decoder import Decoded, Decoder, values_of
from engine.values.reasons import bounded

PREFIX_BYTES = 5
ID_MAX = 2**31 - 1  #: ids are positive 32-bit integers in Java
REFERENCES_MAX = 1_000  #: schemas that one schema may refer to, directly and through others

NO_ID = -1  #: of a value that has no prefix


class UnusableSchema(Exception):
    """A registered schema whose records cannot be decoded; the text is a reason for each of them."""


@dataclass(frozen=True, slots=True)
class Reference:
    """A schema that others use: ``name`` is the Avro type's full name or the path of the .proto file."""

    name: str
    text: str


@dataclass(frozen=True, slots=True)
class Registered:
    """A schema as the registry has it. ``references`` stand before what refers to them."""

    id: int
    kind: str  #: AVRO, PROTOBUF or JSON
    text: str
    references: tuple[Reference, ...] = ()


class SchemaSource(Protocol):
    """Where schemas come from. Any thread may ask; calls block, for a time that the source bounds."""

    def schema(self, schema_id: int) -> Registered | None:
        """The schema of that id, or None if there is none. Raises RegistryUnavailable, UnusableSchema."""


@dataclass(frozen=True, slots=True)
class Prefixes:
    """``ids`` has an id for each value, `NO_ID` for those without; ``wrong`` says why, by row, but for nulls."""

    ids: np.ndarray
    wrong: dict[int, str]
    nulls: list[int]


def octets_of(values: pa.BinaryArray) -> tuple[np.ndarray, np.ndarray]:
    """The bytes that the values lie in, and where each starts; the last start is the end of the last value."""
    _, offsets, data = values.buffers()
    starts = np.frombuffer(offsets, np.int32)[values.offset : values.offset + len(values) + 1].astype(np.int64)
    octets = np.frombuffer(data, np.uint8) if data is not None and data.size else np.zeros(1, np.uint8)
    octets.flags.writeable = False  # one type for compiled code, whatever the buffer allows
    return octets, starts


def prefixes(values: pa.BinaryArray) -> Prefixes:
    """The schema id of each value."""
    count = len(values)
    if count == 0:
        return Prefixes(np.zeros(0, np.int64), {}, [])
    octets, starts = octets_of(values)
    sizes = np.diff(starts)
    null = ~values.is_valid().to_numpy(zero_copy_only=False)
    long = sizes >= PREFIX_BYTES
    at = np.where(long & ~null, starts[:-1], 0)
    last = len(octets) - 1
    first, *rest = (octets[np.minimum(at + place, last)].astype(np.int64) for place in range(PREFIX_BYTES))
    ids = (rest[0] << 24) | (rest[1] << 16) | (rest[2] << 8) | rest[3]
    good = long & ~null & (first == 0) & (ids > 0) & (ids <= ID_MAX)
    wrong = {}
    for row in np.flatnonzero(~good & ~null).tolist():
        if not sizes[row]:
            wrong[row] = "the value is empty (0 bytes)"
        elif octets[starts[row]]:
            wrong[row] = (
                f"the value does not start with a zero byte but with 0x{octets[starts[row]]:02x}: "
                "it was not written by a schema registry's serializer"
            )
        elif not long[row]:
            wrong[row] = f"the value has {sizes[row]} bytes, fewer than the {PREFIX_BYTES} of a schema id"
        else:
            wrong[row] = f"the value names the schema id {ids[row]:,}, which no registry gives"
    return Prefixes(np.where(good, ids, NO_ID), wrong, np.flatnonzero(null).tolist())


def without_prefix(batch: Batch) -> tuple[Batch, dict[int, str]]:
    """The batch with bare values, without the records that have no prefix, and the reasons by row of ``batch``."""
    values = values_of(batch)
    found = prefixes(values)
    kept = np.ones(len(batch), np.bool_)
    kept[list(found.wrong)] = False
    octets, starts = octets_of(values)
    null = ~values.is_valid().to_numpy(zero_copy_only=False)
    sizes = np.where(kept & ~null, np.diff(starts) - PREFIX_BYTES, 0)[kept]
    ends = np.zeros(len(sizes) + 1, np.int64)
    np.cumsum(sizes, out=ends[1:])
    # Each byte of the bare values comes from the start of its value plus the prefix.
    shift = np.repeat(starts[:-1][kept] + PREFIX_BYTES - ends[:-1], sizes)
    bare = octets[shift + np.arange(ends[-1])]
    mask = np.packbits(~null[kept], bitorder="little")
    array = pa.Array.from_buffers(
        pa.binary(), len(sizes), [pa.py_buffer(mask), pa.py_buffer(ends.astype(np.int32)), pa.py_buffer(bare)]
    )
    records = batch.records if kept.all() else batch.records.filter(pa.array(kept))
    place = records.schema.get_field_index("value")
    columns = [array if at == place else column for at, column in enumerate(records.columns)]
    records = pa.RecordBatch.from_arrays(columns, schema=records.schema)
    return (
        Batch(batch.topic, batch.partition, batch.start, batch.end, records, batch.log_append_time),
        found.wrong,
    )


class PrefixedDecoder:
    """Another decoder's way with values that stand behind a prefix, such as those of a JSON Schema serializer.

    The id is skipped: nobody is asked for the schema.
    """

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder

    @property
    def schema(self) -> pa.Schema:
        return self._decoder.schema

    def decode(self, batch: Batch) -> Decoded:
        """As the other decoder does; a value without a prefix is a fault."""
        bare, wrong = without_prefix(batch)
        decoded = self._decoder.decode(bare)
        if not wrong:
            return decoded
        offsets = batch.records.column("offset")
        own = [Fault(offsets[row].as_py(), bounded(reason)) for row, reason in wrong.items()]
        faults = sorted([*decoded.faults, *own], key=lambda fault: fault.offset)
        return Decoded(decoded.columns, tuple(faults), decoded.dropped)
