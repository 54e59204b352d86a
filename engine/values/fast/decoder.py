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
    SHORT_BYTES_MAX,
    SIGNED,
    SLOW,
    TEXT,
    UNKNOWN_MAX,
    UNSIGNED,
    Bets,
    Job,
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
    """What the kernel made of values (see `Slots`), and the rows that it left (``slow``) or that are null.

    ``base`` and ``limit`` are where the values start and end, ``rest`` holds the bytes of ``_rest``. ``text`` has
    for each column, and last for ``_rest``, as many bytes as its text takes at most, before what is slow. Slots
    of slow rows hold anything.
    """

    values: np.ndarray
    valid: np.ndarray
    text: np.ndarray
    slow: np.ndarray
    nulls: np.ndarray
    base: int
    limit: int
    rest: np.ndarray


class Kernel:
    """Decodes to the given fields, ``_rest`` after them when ``rest`` is on. Any number of threads may use one."""

    def __init__(self, fields: Sequence[pa.Field], *, rest: bool) -> None:
        self._fields = list(fields)
        self._with_rest = rest
        self._names = [field.name.encode() for field in fields]
        self._octets = np.frombuffer(b"".join(self._names) or b"\0", np.uint8)
        places = len(fields) + UNKNOWN_MAX
        self._kinds = np.full(places, KEEP if rest else IGNORE, np.int64)
        self._low, self._high, self._extra, self._name_at, self._name_size = np.zeros((5, places), np.int64)
        at = _address(self._octets)
        for number, (field, name) in enumerate(zip(fields, self._names, strict=True)):
            self._kinds[number], self._low[number], self._high[number], self._extra[number] = _kind(field)
            self._name_at[number], self._name_size[number] = at, len(name)
            at += len(name)

    def parse(self, values: pa.BinaryArray) -> Parsed:
        """Parse each value. ``values`` has to stay alive as long as what this gives is used."""
        rows, columns = len(values), len(self._fields)
        _, bounds, octets = values.buffers()
        offsets = np.frombuffer(bounds, np.int32, rows + 1, 4 * values.offset)
        present = _validity(values) if values.null_count else None
        base, size = (0, 0) if octets is None else (octets.address, octets.size)
        slots = _room((columns + 1) * rows, np.int64).reshape(columns + 1, rows)
        valid = _room((columns + 1) * rows, np.uint8).reshape(columns + 1, rows)
        valid.fill(0)
        status = np.zeros(rows, np.uint8)
        # Mostly untouched, and fresh pages that nobody touches cost nothing.
        rest = np.empty(int(offsets[-1]) - int(offsets[0]) if self._with_rest else 0, np.uint8)
        places = len(self._kinds)
        names = np.array([self._name_at, self._name_size])  # of which this batch gets more
        table = np.full(_power(2 * places), -1, np.int64)
        bets = np.zeros((3, places + 1), np.int64)
        seen, room, known = np.full(places, -1, np.int64), scratch(), np.zeros(1, np.int64)
        text = np.zeros(columns + 1, np.int64)
        arrays = (self._kinds, self._low, self._high, self._extra, *names, table)
        plan = Plan._make([*map(_address, arrays), len(table) - 1, places, columns])
        slow = entry.parse(
            plan,
            Bets._make(map(_address, (*bets, seen, room, text, known))),
            Slots._make([*map(_address, (slots, valid, status)), rows]),
            base,
            size,
            _address(offsets),
            0 if present is None else _address(present),
            _address(rest),
        )
        none = np.zeros(0, np.int64)
        left = np.flatnonzero(status == SLOW) if slow else none
        nulls = none if present is None else np.flatnonzero(status == NULL)
        return Parsed(slots, valid, text, left, nulls, base, base + size, rest)

    def columns(self, parsed: Parsed, slow: Sequence[pa.Array], keep: np.ndarray | None) -> list[pa.Array]:
        """The arrays of the fields, and of ``_rest``, of the rows that ``keep`` has (None: of all).

        ``slow`` are the arrays that the reference made of the slow rows; empty if there are none.
        """
        source = None
        if len(parsed.slow) or keep is not None:
            source = np.arange(parsed.values.shape[1], dtype=np.int64)
            source[parsed.slow] = -1 - np.arange(len(parsed.slow), dtype=np.int64)
            source = source if keep is None else source[keep]
        rows = parsed.values.shape[1] if source is None else len(source)
        texts = [at for at, kind in enumerate(self._kinds[: len(self._fields)]) if kind in (TEXT, JSON)]
        texts += [len(self._fields)] if self._with_rest else []
        written = self._texts(parsed, texts, slow, source, rows)
        arrays = []
        for number, field in enumerate(self._fields):
            other = slow[number] if slow else None
            if number in written:
                arrays.append(written[number])
            elif self._kinds[number] == NEVER:
                arrays.append(_never(field, other, source, rows))
            else:
                arrays.append(_fixed(field, parsed, number, other, keep))
        return arrays + ([written[len(self._fields)]] if self._with_rest else [])

    def _texts(
        self,
        parsed: Parsed,
        numbers: Sequence[int],
        slow: Sequence[pa.Array],
        source: np.ndarray | None,
        rows: int,
    ) -> dict[int, pa.Array]:
        """The columns of text, by their numbers, of the rows that ``source`` has (see `gather`; None: of all)."""
        arrays, alive = {}, []
        jobs: list[Job] = []
        slots, valids, none = _address(parsed.values), _address(parsed.valid), np.zeros(1, np.int32)
        every = parsed.values.shape[1]
        bounds_of_all = _room(len(numbers) * (rows + 1), np.int32).reshape(len(numbers), rows + 1)
        bounds_at = _address(bounds_of_all)
        for number in numbers:
            rest = number == len(self._fields)
            base, limit = parsed.base, parsed.limit
            if rest:
                base = _address(parsed.rest)
                limit = base + int(parsed.text[number])
            texts, ends, size = 0, none, int(parsed.text[number])
            if slow:
                _, bounds, octets = slow[number].buffers()
                ends = np.frombuffer(bounds, np.int32, len(slow[number]) + 1, 4 * slow[number].offset)
                texts = 0 if octets is None else octets.address
                size += int(ends[-1]) - int(ends[0])
            elif size == 0 and not parsed.valid[number].any():
                arrays[number] = pa.nulls(rows, pa.string())
                continue
            assert size < 2**31 - SHORT_BYTES_MAX, f"{size:,} bytes of text in one column"
            offsets, written = bounds_of_all[len(jobs)], _room(size + SHORT_BYTES_MAX, np.uint8)
            alive.append((number, offsets, written, ends))
            to, json = _address(written), rest or self._kinds[number] == JSON
            place = (slots + 8 * every * number, valids + every * number)
            offsets_at = bounds_at + 4 * (rows + 1) * len(jobs)
            jobs.append(Job(*place, json, base, limit, texts, _address(ends), offsets_at, to, to))
        table = np.array(jobs, np.int64)
        entry.gather(_address(table), len(jobs), rows, 0 if source is None else _address(source))
        for number, offsets, written, _ in alive:
            valid = parsed.valid[number]
            if source is not None:
                valid = valid[source]  # of slow rows anything
                if slow:
                    valid[source < 0] = _validity(slow[number])[-1 - source[source < 0]]
            mask, nulls = _mask(valid)
            used = int(offsets[-1])
            if used < len(written) // 2:  # most of it belonged to rows that are left out
                written = written[:used].copy()
            buffers = [mask, pa.py_buffer(offsets), pa.py_buffer(written[:used])]
            arrays[number] = pa.Array.from_buffers(pa.string(), rows, buffers, nulls)
        return arrays


def _address(array: np.ndarray) -> int:
    place: int = array.__array_interface__["data"][0]  # a third of the time that array.ctypes.data takes
    return place


def _room(count: int, kind: type[np.generic]) -> np.ndarray:
    """An array of anything. Arrow's pool keeps memory between batches; fresh pages cost more than filling them."""
    size = count * np.dtype(kind).itemsize
    return np.frombuffer(pa.allocate_buffer(size), kind, count)


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
    slots, valid = parsed.values[number], parsed.valid[number]
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


def _never(field: pa.Field, other: pa.Array | None, source: np.ndarray | None, rows: int) -> pa.Array:
    """A column that the kernel only knows to be null."""
    if other is None or source is None:
        return pa.nulls(rows, field.type)
    return other.take(pa.array(np.where(source < 0, -1 - source, 0), mask=source >= 0))
