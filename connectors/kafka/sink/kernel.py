"""The compiled part of writing messages: rows to JSON text, keys to partitions, messages to records.

Its input are Arrow buffers of this process, its output are arrays that the caller has made large enough after
asking for the lengths; `encode` checks the end of its own. All functions release the interpreter lock. Not here:
which column is what (`messages`), and headers, checksums and codecs of record batches (`batches`).

``valid`` is one byte for each row, or empty where no row is null.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from connectors.kafka.kernel.entries import compiled

Bytes = npt.NDArray[np.uint8]
Longs = npt.NDArray[np.int64]

#: How the text of a column becomes JSON: as it is, as a string, or as the decimal form of a floating point number.
RAW, STRING, FLOAT = range(3)

NULL = np.frombuffer(b"null", np.uint8)
NOT_A_NUMBER = np.frombuffer(b'"NaN"', np.uint8)
INFINITE = np.frombuffer(b'"Infinity"', np.uint8)
MINUS_INFINITE = np.frombuffer(b'"-Infinity"', np.uint8)
HEXADECIMAL = np.frombuffer(b"0123456789abcdef", np.uint8)

#: For each byte of a string: how many bytes it takes in JSON.
WIDTHS = np.ones(256, np.int64)
WIDTHS[:32] = 6
WIDTHS[[8, 9, 10, 12, 13, 34, 92]] = 2

#: For each byte that takes two: what follows the backslash.
ESCAPES = np.zeros(256, np.uint8)
ESCAPES[[8, 9, 10, 12, 13, 34, 92]] = np.frombuffer(b'btnfr"\\', np.uint8)

_DASH, _T, _COLON, _Z = (np.uint8(ord(each)) for each in "-T:Z")
_DOT, _E, _I, _N, _MINUS, _ZERO = (np.uint8(ord(each)) for each in ".ein-0")
_QUOTE, _BACKSLASH, _U = (np.uint8(ord(each)) for each in '"\\u')

#: Kafka's murmur2 (``org.apache.kafka.common.utils.Utils``), as in `connectors.kafka.partitioning`.
_MULTIPLIER = np.uint64(0x5BD1E995)
_SEED = np.uint64(0x9747B28C)
_MASK = np.uint64(0xFFFFFFFF)


def _copied(_context: Any, source: Any, at: Any, length: Any, target: Any, used: Any) -> Any:
    """``copied(source, at, length, target, used)``: copy ``length`` bytes. The caller has made room for them."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        source_at = _address(context, builder, signature.args[0], arguments[0], arguments[1])
        target_at = _address(context, builder, signature.args[3], arguments[3], arguments[4])
        memcpy: Any = cgutils.raw_memcpy
        memcpy(builder, target_at, source_at, arguments[2], 1)
        return context.get_dummy_value()

    return types.void(source, types.int64, types.int64, target, types.int64), generate


copied: Any = intrinsic(_copied)


def _address(context: Any, builder: Any, array_type: Any, array: Any, index: Any) -> Any:
    return builder.gep(context.make_array(array_type)(context, builder, array).data, [index])


@compiled
def put(source: Bytes, start: int, end: int, target: Bytes, at: int) -> Any:
    """Copy ``source[start:end]`` to ``at``; where the copy ends."""
    copied(source, start, end - start, target, at)
    return at + end - start


@compiled
def _float_kind(data: Bytes, start: int, end: int) -> Any:
    """0: a number with a point or an exponent; 1: one without; 2: not a number; 3, 4: plus and minus infinity."""
    first = data[start]
    if first == _N:
        return 2
    if first == _I:
        return 3
    if first == _MINUS and (data[start + 1] == _I or data[start + 1] == _N):
        return 4 if data[start + 1] == _I else 2
    for index in range(start, end):
        if data[index] == _DOT or data[index] == _E:
            return 0
    return 1


@compiled
def text_lengths(offsets: Longs, data: Bytes, valid: Bytes, kind: int, lengths: Longs) -> None:
    """Add to ``lengths`` what each row's text takes as JSON."""
    for row in range(lengths.size):
        start, end = offsets[row], offsets[row + 1]
        if valid.size and not valid[row]:
            lengths[row] += 4
        elif kind == RAW:
            lengths[row] += end - start
        elif kind == STRING:
            length = 2
            for index in range(start, end):
                length += WIDTHS[data[index]]
            lengths[row] += length
        else:
            form = _float_kind(data, start, end)
            if form < 2:
                lengths[row] += end - start + (2 if form == 1 else 0)
            else:
                lengths[row] += (NOT_A_NUMBER.size, INFINITE.size, MINUS_INFINITE.size)[form - 2]


@compiled
def put_string(data: Bytes, start: int, end: int, target: Bytes, at: int) -> Any:
    """A JSON string of UTF-8 bytes."""
    target[at] = _QUOTE
    at += 1
    for index in range(start, end):
        byte = data[index]
        width = WIDTHS[byte]
        if width == 1:
            target[at] = byte
        else:
            target[at] = _BACKSLASH
            if width == 2:
                target[at + 1] = ESCAPES[byte]
            else:
                target[at + 1] = _U
                target[at + 2] = _ZERO
                target[at + 3] = _ZERO
                target[at + 4] = HEXADECIMAL[byte >> 4]
                target[at + 5] = HEXADECIMAL[byte & 15]
        at += width
    target[at] = _QUOTE
    return at + 1


@compiled
def put_text(offsets: Longs, data: Bytes, valid: Bytes, kind: int, name: Bytes, cursors: Longs, out: Bytes) -> None:
    """Write ``name`` and each row's text where ``cursors`` say, and move those."""
    for row in range(cursors.size):
        at = put(name, 0, name.size, out, cursors[row])
        start, end = offsets[row], offsets[row + 1]
        if valid.size and not valid[row]:
            at = put(NULL, 0, 4, out, at)
        elif kind == RAW:
            at = put(data, start, end, out, at)
        elif kind == STRING:
            at = put_string(data, start, end, out, at)
        else:
            form = _float_kind(data, start, end)
            if form < 2:
                at = put(data, start, end, out, at)
                if form == 1:
                    out[at] = _DOT
                    out[at + 1] = _ZERO
                    at += 2
            elif form == 2:
                at = put(NOT_A_NUMBER, 0, NOT_A_NUMBER.size, out, at)
            elif form == 3:
                at = put(INFINITE, 0, INFINITE.size, out, at)
            else:
                at = put(MINUS_INFINITE, 0, MINUS_INFINITE.size, out, at)
        cursors[row] = at


@compiled
def digits(value: np.uint64) -> Any:
    """How many decimal digits."""
    count = 1
    while value >= np.uint64(10):
        value //= np.uint64(10)
        count += 1
    return count


@compiled
def integer_lengths(values: Longs, valid: Bytes, lengths: Longs) -> None:
    """Add to ``lengths`` what each row's integer takes."""
    for row in range(lengths.size):
        if valid.size and not valid[row]:
            lengths[row] += 4
        else:
            value = values[row]
            lengths[row] += 1 + digits(-np.uint64(value)) if value < 0 else digits(np.uint64(value))


@compiled
def put_integers(values: Longs, valid: Bytes, name: Bytes, cursors: Longs, out: Bytes) -> None:
    """Write ``name`` and each row's integer where ``cursors`` say, and move those."""
    for row in range(cursors.size):
        at = put(name, 0, name.size, out, cursors[row])
        if valid.size and not valid[row]:
            cursors[row] = put(NULL, 0, 4, out, at)
            continue
        value = np.uint64(values[row])
        if values[row] < 0:
            out[at] = _MINUS
            at += 1
            value = -value
        end = at + digits(value)
        cursors[row] = end
        while end > at:
            end -= 1
            out[end] = _ZERO + np.uint8(value % np.uint64(10))
            value //= np.uint64(10)


@compiled
def put_digits(value: int, count: int, out: Bytes, at: int) -> None:
    """The last ``count`` decimal digits of a number that is not negative."""
    for index in range(at + count - 1, at - 1, -1):
        out[index] = _ZERO + np.uint8(value % 10)
        value //= 10


@compiled
def put_times(
    values: Longs,
    valid: Bytes,
    per_second: int,
    fraction: int,
    is_utc: bool,
    name: Bytes,
    cursors: Longs,
    out: Bytes,
) -> None:
    """Write ``name`` and each row's time as ISO 8601 with ``fraction`` digits; for the years 0 to 9999.

    The day's date as in Howard Hinnant's "chrono-Compatible Low-Level Date Algorithms".
    """
    for row in range(cursors.size):
        at = put(name, 0, name.size, out, cursors[row])
        if valid.size and not valid[row]:
            cursors[row] = put(NULL, 0, 4, out, at)
            continue
        seconds, rest = values[row] // per_second, values[row] % per_second
        days, second = seconds // 86400, seconds % 86400
        shifted = days + 719468
        era = shifted // 146097
        day_of_era = shifted - era * 146097
        year_of_era = (day_of_era - day_of_era // 1460 + day_of_era // 36524 - day_of_era // 146096) // 365
        day_of_year = day_of_era - (365 * year_of_era + year_of_era // 4 - year_of_era // 100)
        shifted_month = (5 * day_of_year + 2) // 153
        month = shifted_month + 3 if shifted_month < 10 else shifted_month - 9
        year = year_of_era + era * 400 + (1 if month <= 2 else 0)
        out[at] = _QUOTE
        put_digits(year, 4, out, at + 1)
        out[at + 5] = _DASH
        put_digits(month, 2, out, at + 6)
        out[at + 8] = _DASH
        put_digits(day_of_year - (153 * shifted_month + 2) // 5 + 1, 2, out, at + 9)
        out[at + 11] = _T
        put_digits(second // 3600, 2, out, at + 12)
        out[at + 14] = _COLON
        put_digits(second // 60 % 60, 2, out, at + 15)
        out[at + 17] = _COLON
        put_digits(second % 60, 2, out, at + 18)
        at += 20
        if fraction:
            out[at] = _DOT
            put_digits(rest, fraction, out, at + 1)
            at += 1 + fraction
        if is_utc:
            out[at] = _Z
            at += 1
        out[at] = _QUOTE
        cursors[row] = at + 1


@compiled
def partitions_of(offsets: Longs, data: Bytes, valid: Bytes, partitions: int, found: npt.NDArray[np.int32]) -> None:
    """The partition of each key as Kafka's default partitioner has it; rows without a key are left as they are."""
    for row in range(found.size):
        if valid.size and not valid[row]:
            continue
        start, end = offsets[row], offsets[row + 1]
        length = end - start
        value = _SEED ^ np.uint64(length)
        at = start
        while at + 4 <= end:
            word = (
                np.uint64(data[at])
                | np.uint64(data[at + 1]) << np.uint64(8)
                | np.uint64(data[at + 2]) << np.uint64(16)
                | np.uint64(data[at + 3]) << np.uint64(24)
            )
            word = word * _MULTIPLIER & _MASK
            word = (word ^ word >> np.uint64(24)) * _MULTIPLIER & _MASK
            value = (value * _MULTIPLIER & _MASK) ^ word
            at += 4
        if at < end:
            for index in range(end - 1, at - 1, -1):
                value ^= np.uint64(data[index]) << np.uint64(8 * (index - at))
            value = value * _MULTIPLIER & _MASK
        value = (value ^ value >> np.uint64(13)) * _MULTIPLIER & _MASK
        value ^= value >> np.uint64(15)
        found[row] = np.int64(value & np.uint64(0x7FFFFFFF)) % partitions


@compiled
def varint_length(value: int) -> Any:
    """Bytes of a number that is not negative, or -1, as a zigzag varint."""
    rest = np.uint64(1) if value < 0 else np.uint64(value) << np.uint64(1)
    count = 1
    while rest >= np.uint64(128):
        rest >>= np.uint64(7)
        count += 1
    return count


@compiled
def put_varint(value: int, target: Bytes, at: int) -> Any:
    rest = np.uint64(1) if value < 0 else np.uint64(value) << np.uint64(1)
    while rest >= np.uint64(128):
        target[at] = np.uint8(rest & np.uint64(127)) | np.uint8(128)
        rest >>= np.uint64(7)
        at += 1
    target[at] = np.uint8(rest)
    return at + 1


@compiled
def encode(
    key_offsets: Longs,
    keys: Bytes,
    key_valid: Bytes,
    value_offsets: Longs,
    values: Bytes,
    value_valid: Bytes,
    order: Longs,
    first: int,
    end: int,
    out: Bytes,
) -> tuple[int, int]:
    """Messages ``order[first:end]`` as records of one batch, as many as fit: the next one, and the bytes used.

    Without headers, all with the batch's own timestamp.
    """
    used = 0
    for index in range(first, end):
        row = order[index]
        delta = index - first
        key_length = key_offsets[row + 1] - key_offsets[row]
        if key_valid.size and not key_valid[row]:
            key_length = -1
        value_length = value_offsets[row + 1] - value_offsets[row]
        if value_valid.size and not value_valid[row]:
            value_length = -1
        body = 3 + varint_length(delta) + varint_length(key_length) + varint_length(value_length)
        body += max(0, key_length) + max(0, value_length)
        if used + varint_length(body) + body > out.size:
            return index, used
        at = put_varint(body, out, used)
        out[at] = 0  # attributes
        out[at + 1] = 0  # timestamp delta
        at = put_varint(delta, out, at + 2)
        at = put_varint(key_length, out, at)
        if key_length > 0:
            at = put(keys, key_offsets[row], key_offsets[row] + key_length, out, at)
        at = put_varint(value_length, out, at)
        if value_length > 0:
            at = put(values, value_offsets[row], value_offsets[row] + value_length, out, at)
        out[at] = 0  # headers
        used = at + 1
    return end, used
