"""`Kernel`: the fast way of `engine.values.json_decoder.JsonDecoder`, from Arrow and back to it.

Records that the compiled kernel does not take are decoded by the reference decoder, in one go for a batch, and
come back to their places. Not here: reading JSON (`engine.values.fast.kernel`), and reasons of faults.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from engine.values.fast import entry
from engine.values.fast.kernel import (
    BOOLEAN,
    DATE,
    DECIMAL,
    DOUBLE,
    FLOAT,
    IGNORE,
    INSTANT,
    JSON,
    KEEP,
    NEVER,
    NULL,
    SIGNED,
    SLOW,
    TEXT,
    UNKNOWN_MAX,
    UNSIGNED,
    Bets,
    Plan,
    Slots,
)
from engine.values.fast.nested import scratch
from engine.values.types import type_name_of

_MILLIS_MIN, _MILLIS_MAX = -62_135_596_800_000, 253_402_300_799_999  # of the years 1 to 9999
_INT64_MAX = 2**63 - 1
_FLOAT_INFINITE = struct.unpack("<q", struct.pack("<d", (2 - 2.0**-24) * 2.0**127))[0]


@dataclass(frozen=True, slots=True)
class Parsed:
    """What the kernel made of values: slots, and the numbers of the rows that it left (``slow``) or that are null.

    ``base`` is where the values start, ``rest`` holds the bytes of ``_rest``.
    """

    slots: Slots
    slow: np.ndarray
    nulls: np.ndarray
    base: int
    rest: np.ndarray


class Kernel:
    """Decodes to the given fields, ``_rest`` after them when ``rest`` is on. Any number of threads may use one."""

    def __init__(self, fields: Sequence[pa.Field], *, rest: bool) -> None:
        self._fields = list(fields)
        self._with_rest = rest
        self._names = [field.name.encode() for field in fields]
        self._octets = np.frombuffer(b"".join(self._names) or b"\0", np.uint8)
        self._plan = self._planned(rest)

    def _planned(self, rest: bool) -> Plan:
        count = len(self._fields)
        places = count + UNKNOWN_MAX
        kinds = np.full(places, KEEP if rest else IGNORE, np.int64)
        low, high, extra, name_at, name_size = (np.zeros(places, np.int64) for _ in range(5))
        at = self._octets.ctypes.data
        for number, (field, name) in enumerate(zip(self._fields, self._names, strict=True)):
            kinds[number], low[number], high[number], extra[number] = _kind(field)
            name_at[number], name_size[number] = at, len(name)
            at += len(name)
        return Plan(kinds, low, high, extra, name_at, name_size, np.full(_power(2 * places), -1, np.int64))

    def parse(self, values: pa.BinaryArray) -> Parsed:
        """Parse each value. ``values`` has to stay alive as long as what this gives is used."""
        rows = len(values)
        _, bounds, octets = values.buffers()
        offsets = np.frombuffer(bounds, np.int32, rows + 1, 4 * values.offset)
        valid = np.zeros(0, np.uint8)
        if values.null_count:
            valid = values.is_valid().to_numpy(zero_copy_only=False).astype(np.uint8)
        base, size = (0, 0) if octets is None else (octets.address, octets.size)
        columns = len(self._fields)
        slots = Slots(
            np.empty((columns + 1, rows), np.int64),
            np.zeros((columns + 1, rows), np.uint8),
            np.zeros(rows, np.uint8),
        )
        places = len(self._plan.kinds)
        bets = Bets(
            np.zeros(places + 1, np.int64),
            np.zeros(places + 1, np.int64),
            np.zeros(places + 1, np.int64),
            np.full(places, -1, np.int64),
            scratch(),
            np.zeros(1, np.int64),
        )
        plan = self._plan._replace(  # a batch adds the names that it knows beyond the columns
            name_at=self._plan.name_at.copy(),
            name_size=self._plan.name_size.copy(),
            table=self._plan.table.copy(),
        )
        # Untouched pages of a large empty array cost nothing.
        rest = np.empty(max(0, int(offsets[-1]) - int(offsets[0])) if self._with_rest else 0, np.uint8)
        slow = entry.parse(plan, bets, slots, base, size, offsets, valid, rest.ctypes.data)
        none = np.zeros(0, np.int64)
        left = np.flatnonzero(slots.status == SLOW) if slow else none
        slots.valid[:, left] = 0  # what came before the kernel gave up
        return Parsed(slots, left, np.flatnonzero(slots.status == NULL) if len(valid) else none, base, rest)

    def columns(self, parsed: Parsed, slow: Sequence[pa.Array], keep: np.ndarray | None) -> list[pa.Array]:
        """The arrays of the fields, and of ``_rest``, of the rows that ``keep`` has (None: of all).

        ``slow`` are the arrays that the reference made of the slow rows; empty if there are none.
        """
        rows = len(parsed.slots.status)
        source = np.arange(rows, dtype=np.int64)
        if len(parsed.slow):
            source[parsed.slow] = -1 - np.arange(len(parsed.slow), dtype=np.int64)
        if keep is not None:
            source = source[keep]
        arrays = []
        for number, field in enumerate(self._fields):
            other = slow[number] if slow else None
            if self._plan.kinds[number] == NEVER:
                arrays.append(_never(field, parsed, other, source))
            elif self._plan.kinds[number] >= TEXT:
                arrays.append(_text(parsed, number, self._plan.kinds[number] == JSON, parsed.base, other, source))
            else:
                arrays.append(_fixed(field, parsed, number, other, keep))
        if self._with_rest:
            number = len(self._fields)
            arrays.append(
                _text(parsed, number, True, parsed.rest.ctypes.data, slow[number] if slow else None, source)
            )
        return arrays


def _power(least: int) -> int:
    """The power of two that is not less."""
    return 1 << (least - 1).bit_length()


def _kind(field: pa.Field) -> tuple[int, int, int, int]:
    """How the kernel reads a column, and its low, high and extra (see `Plan`)."""
    arrow, name = field.type, type_name_of(field)
    if name == "JSON":
        return JSON, 0, 0, 0
    if pa.types.is_boolean(arrow):
        return BOOLEAN, 0, 0, 0
    if pa.types.is_signed_integer(arrow):
        return SIGNED, -(2 ** (arrow.bit_width - 1)), 2 ** (arrow.bit_width - 1) - 1, 0
    if pa.types.is_unsigned_integer(arrow):
        return UNSIGNED, 0, -1 if arrow.bit_width == 64 else 2**arrow.bit_width - 1, 0
    if pa.types.is_floating(arrow):
        return (FLOAT, 0, _FLOAT_INFINITE, 0) if arrow.bit_width == 32 else (DOUBLE, 0, 0, 0)
    if pa.types.is_decimal128(arrow):
        most = min(10**arrow.precision - 1, _INT64_MAX)
        return DECIMAL, -most, most, arrow.scale
    if pa.types.is_date32(arrow):
        return DATE, 0, 0, 0
    if pa.types.is_timestamp(arrow):
        micros = 1000 if arrow.unit == "ms" else 1
        return INSTANT, _MILLIS_MIN, _MILLIS_MAX, micros if arrow.tz is None else -micros
    return (TEXT if pa.types.is_string(arrow) else NEVER), 0, 0, 0


def _mask(valid: np.ndarray) -> tuple[pa.Buffer | None, int]:
    """Arrow's validity bits, None if all are valid, and the number of nulls."""
    nulls = len(valid) - int(np.count_nonzero(valid))
    return (pa.py_buffer(np.packbits(valid, bitorder="little")) if nulls else None), nulls


def _validity(array: pa.Array) -> np.ndarray:
    flags: np.ndarray = array.is_valid().to_numpy(zero_copy_only=False).astype(np.uint8)
    return flags


def _fixed(
    field: pa.Field, parsed: Parsed, number: int, other: pa.Array | None, keep: np.ndarray | None
) -> pa.Array:
    """A column of values of one size each."""
    slots, valid = parsed.slots.values[number], parsed.slots.valid[number]
    values = _typed(field.type, slots)
    if other is not None:
        valid = valid.copy()
        valid[parsed.slow] = _validity(other)
        values[parsed.slow] = _stored(other)
    if keep is not None:
        values, valid = values[keep], valid[keep]
    mask, nulls = _mask(valid)
    if pa.types.is_boolean(field.type):
        values = np.packbits(values, bitorder="little")
    return pa.Array.from_buffers(field.type, len(valid), [mask, pa.py_buffer(values)], nulls)


def _typed(arrow: pa.DataType, slots: np.ndarray) -> np.ndarray:
    """A new array of a column's slots as Arrow stores its type; of booleans a byte each."""
    if pa.types.is_decimal128(arrow):
        return np.stack([slots, slots >> 63], axis=1)
    if pa.types.is_floating(arrow):
        with np.errstate(over="ignore", invalid="ignore"):  # slots of rows without a value hold anything
            return slots.view(np.float64).astype(np.float32 if arrow.bit_width == 32 else np.float64)
    if pa.types.is_boolean(arrow):
        return (slots & 1).astype(np.uint8)
    kind = "u" if pa.types.is_unsigned_integer(arrow) else "i"
    return slots.astype(np.dtype(f"{kind}{arrow.bit_width // 8}"))


def _stored(array: pa.Array) -> np.ndarray:
    """The values of an array as `_typed` has them; anything where they are null."""
    arrow = array.type
    if pa.types.is_boolean(arrow):
        flags: np.ndarray = array.fill_null(False).to_numpy(zero_copy_only=False).astype(np.uint8)
        return flags
    if pa.types.is_decimal128(arrow):
        words = np.frombuffer(array.buffers()[1], np.int64, 2 * len(array), 16 * array.offset)
        return words.reshape(len(array), 2)
    kind = "f" if pa.types.is_floating(arrow) else "u" if pa.types.is_unsigned_integer(arrow) else "i"
    size = arrow.bit_width // 8
    return np.frombuffer(array.buffers()[1], np.dtype(f"{kind}{size}"), len(array), size * array.offset)


def _text(
    parsed: Parsed, number: int, json: bool, base: int, other: pa.Array | None, source: np.ndarray
) -> pa.Array:
    """A column of text, of the rows that ``source`` has (see `engine.values.fast.kernel.gather`)."""
    slots, valid = parsed.slots.values[number], parsed.slots.valid[number]
    texts, ends = 0, np.zeros(1, np.int32)
    size = int(np.sum(((slots >> 1) & 0x7FFFFFFF)[valid != 0]))
    if other is not None:
        _, bounds, octets = other.buffers()
        ends = np.array(np.frombuffer(bounds, np.int32, len(other) + 1, 4 * other.offset))
        texts = 0 if octets is None else octets.address
        size += int(ends[-1] - ends[0])
    if not size and other is None and not valid.any():
        return pa.nulls(len(source), pa.string())
    assert size < 2**31, f"{size:,} bytes of text in one column"
    offsets = np.empty(len(source) + 1, np.int32)
    octets = np.empty(size, np.uint8)
    entry.gather(
        slots, valid, json, base, source, texts, ends, offsets, octets.ctypes.data
    )
    present = valid[source]
    if other is not None:
        slow = source < 0
        present[slow] = _validity(other)[-1 - source[slow]]
    mask, nulls = _mask(present)
    used = int(offsets[-1])
    if used < size // 2:  # most of it belonged to rows that are left out
        octets = octets[:used].copy()
    return pa.Array.from_buffers(
        pa.string(), len(source), [mask, pa.py_buffer(offsets), pa.py_buffer(octets[:used])], nulls
    )


def _never(field: pa.Field, parsed: Parsed, other: pa.Array | None, source: np.ndarray) -> pa.Array:
    """A column that the kernel only knows to be null."""
    if other is None:
        return pa.nulls(len(source), field.type)
    return other.take(pa.array(np.where(source < 0, -1 - source, 0), mask=source >= 0))
