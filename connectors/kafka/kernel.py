"""The records of a record batch (format 2), taken apart into flat Arrow buffers by compiled code.

What comes in is bytes from a network: every length and every variable-length integer is checked against the
end of what holds it before it is used, and every write against the end of its buffer. Nothing is raised: a call
gives a code. Not here: batch headers, checksums and codecs (`record_batches`, `codecs`), and who owns the
buffers (`columns`).

The format is that of Kafka's documentation, "Record" under "Message format". All functions release the
interpreter lock. The machine code is kept on disk beside this module, in the user's cache directory where that is
not writable, or in ``NUMBA_CACHE_DIR``; the first process that needs it spends some seconds on compiling it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
import numpy as np
import numpy.typing as npt
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

log = logging.getLogger("headrace.kafka")

Function = TypeVar("Function", bound=Callable[..., Any])

#: What a call gives. From `ROWS_FULL` on: this output is too small, give a larger one and call again.
OK = 0
BAD_VARINT = 1
BAD_LENGTH = 2
BAD_KEY = 3
BAD_VALUE = 4
BAD_HEADERS = 5
BAD_NAME = 6
BAD_TEXT = 7
BAD_OFFSET = 8
BAD_TIMESTAMP = 9
BAD_END = 10
TRAILING = 11
CUT_OFF = 12
BAD_FRAME = 13
BAD_RANGE = 14
BAD_FORMAT = 15
ROWS_FULL = 16
KEYS_FULL = 17
VALUES_FULL = 18
HEADERS_FULL = 19
NAMES_FULL = 20
CONTENTS_FULL = 21

FAULTS = {
    BAD_VARINT: "a number does not end within the record or is too large",
    BAD_LENGTH: "a record claims a length that its batch does not have",
    BAD_KEY: "a key claims a length that its record does not have",
    BAD_VALUE: "a value claims a length that its record does not have",
    BAD_HEADERS: "a record claims more headers than it has room for",
    BAD_NAME: "a header's key claims a length that its record does not have",
    BAD_TEXT: "a header's key is not UTF-8",
    BAD_OFFSET: "a record's offset does not follow the one before it, or lies beyond its batch",
    BAD_TIMESTAMP: "a record's timestamp is out of range",
    BAD_END: "a record ends elsewhere than it claims",
    TRAILING: "bytes are left over behind the last record",
    CUT_OFF: "the response ends within its first record batch",
    BAD_FRAME: "a record batch is shorter than its own header",
    BAD_RANGE: "a record batch's offsets do not follow those before it",
    BAD_FORMAT: "a record batch is in a format that there is not",
}

#: The cursors: how much of each output is in use, and, last, the record that a fault was found in.
ROWS, KEY_BYTES, VALUE_BYTES, HEADERS, NAME_BYTES, CONTENT_BYTES, KEY_NULLS, VALUE_NULLS, CONTENT_NULLS, RECORD = (
    range(10)
)
CURSORS = 10

#: The columns of what `walk` finds: where a batch begins and ends, its format, and its offsets [base, next).
FRAME_START, FRAME_END, FRAME_MAGIC, FRAME_BASE, FRAME_NEXT = range(5)
FRAME_COLUMNS = 5

#: What every batch begins with (offset and length), and the least that follows in formats 0 and 1, and 2.
OVERHEAD_BYTES = 12
LEGACY_BYTES_MIN = 14
HEADER_BYTES = 49
MAGIC_AT = 16
LAST_DELTA_AT = 23

INT64_MIN, INT64_MAX = -(2**63), 2**63 - 1

#: The least that a record takes: seven numbers of one byte each.
RECORD_BYTES_MIN = 7


def compiled(function: Function) -> Function:
    """``function`` as machine code, kept on disk where there is a place for it."""
    # No fast-math, no bounds checks of numba's own: theirs raise, and cost a fifth.
    made: Any
    try:
        made = numba.njit(cache=True, nogil=True, boundscheck=False)(function)
    except RuntimeError as error:  # neither this directory nor the user's cache can be written to
        log.warning("compiling anew in every process, set NUMBA_CACHE_DIR to keep the result: %s", error)
        made = numba.njit(cache=False, nogil=True, boundscheck=False)(function)
    return cast(Function, made)


@compiled
def varint(source: npt.NDArray[np.uint8], at: int, end: int) -> tuple[Any, int]:
    """The zigzag number at ``at`` and the place behind it, which is -1 when it is malformed or reaches ``end``."""
    if at >= end:
        return 0, -1
    byte = np.int64(source[at])
    at += 1
    if byte < 128:
        return (byte >> 1) ^ -(byte & 1), at
    result = np.uint64(byte & 127)
    shift = 7
    while shift <= 63:
        if at >= end:
            return 0, -1
        byte = np.int64(source[at])
        at += 1
        if shift == 63 and byte > 1:
            return 0, -1
        result |= np.uint64(byte & 127) << np.uint64(shift)
        if byte < 128:
            return np.int64(result >> np.uint64(1)) ^ -np.int64(result & np.uint64(1)), at
        shift += 7
    return 0, -1


@compiled
def big_endian(source: npt.NDArray[np.uint8], at: int, length: int) -> Any:
    """The signed number of ``length`` bytes (4 or 8); the caller has checked that they are there."""
    result = np.uint64(0)
    for index in range(at, at + length):
        result = (result << np.uint64(8)) | np.uint64(source[index])
    if length == 4:
        return np.int64(np.int32(np.uint32(result)))
    return np.int64(result)


@compiled
def walk(source: npt.NDArray[np.uint8], position: int, frames: npt.NDArray[np.int64]) -> tuple[int, int]:
    """Find the whole batches of a response to a fetch at ``position``: how many, and a code.

    Writes a row for each to ``frames``, as many as it has; a code other than `OK` is about what follows them. A
    batch that is cut off by the end of the response is no fault, unless it is the only one.
    """
    size = source.size
    at = 0
    count = 0
    before: Any = np.int64(0)
    while size - at >= OVERHEAD_BYTES and count < frames.shape[0]:
        base = big_endian(source, at, 8)
        length = big_endian(source, at + 8, 4)
        if length < LEGACY_BYTES_MIN:
            return count, BAD_FRAME
        if length > size - at - OVERHEAD_BYTES:
            break
        magic = np.int64(source[at + MAGIC_AT])
        if magic > 2:
            return count, BAD_FORMAT
        delta = np.int64(0)
        if magic == 2:
            if length < HEADER_BYTES:
                return count, BAD_FRAME
            delta = big_endian(source, at + LAST_DELTA_AT, 4)
        if delta < 0 or base < before or base > INT64_MAX - 1 - delta:
            return count, BAD_RANGE
        before = base + delta + 1
        frames[count, FRAME_START] = at
        at += OVERHEAD_BYTES + length
        frames[count, FRAME_END] = at
        frames[count, FRAME_MAGIC] = magic
        frames[count, FRAME_BASE] = base
        frames[count, FRAME_NEXT] = before
        count += 1
    if size > 0 and count == 0:
        return count, CUT_OFF
    if count > 0 and before <= position:
        return count, BAD_RANGE
    return count, OK


@compiled
def is_utf8(source: npt.NDArray[np.uint8], at: int, end: int) -> bool:
    """Whether the bytes are UTF-8: no overlong forms, no surrogates, nothing beyond U+10FFFF."""
    while at < end:
        lead = np.int64(source[at])
        at += 1
        if lead < 0x80:
            continue
        if lead < 0xC2 or lead > 0xF4:
            return False
        more = 1 if lead < 0xE0 else (2 if lead < 0xF0 else 3)
        if end - at < more:
            return False
        low, high = 0x80, 0xBF
        if lead == 0xE0:
            low = 0xA0
        elif lead == 0xED:
            high = 0x9F
        elif lead == 0xF0:
            low = 0x90
        elif lead == 0xF4:
            high = 0x8F
        for _ in range(more):
            byte = np.int64(source[at])
            at += 1
            if byte < low or byte > high:
                return False
            low, high = 0x80, 0xBF
    return True


def _put(_context: Any, source: Any, at: Any, length: Any, target: Any, used: Any) -> Any:
    """``put(source, at, length, target, used)``: copy ``length`` bytes. The caller has checked both ends.

    An assignment of slices is checked by numba as well, and costs a third of the whole decoding.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        source_at = _address(context, builder, signature.args[0], arguments[0], arguments[1])
        target_at = _address(context, builder, signature.args[3], arguments[3], arguments[4])
        memcpy: Any = cgutils.raw_memcpy
        memcpy(builder, target_at, source_at, arguments[2], 1)
        return context.get_dummy_value()

    return types.void(source, types.int64, types.int64, target, types.int64), generate


put: Any = intrinsic(_put)


def _address(context: Any, builder: Any, array_type: Any, array: Any, index: Any) -> Any:
    return builder.gep(context.make_array(array_type)(context, builder, array).data, [index])


@compiled
def skip_headers(source: npt.NDArray[np.uint8], at: int, end: int) -> int:
    """The place behind a record's headers, all of them checked; a fault as its negative."""
    count, at = varint(source, at, end)
    if at < 0:
        return -BAD_VARINT
    if count < 0 or count > (end - at) // 2:
        return -BAD_HEADERS
    for _ in range(count):
        length, at = varint(source, at, end)
        if at < 0:
            return -BAD_VARINT
        if length < 0 or length > end - at:
            return -BAD_NAME
        if not is_utf8(source, at, at + length):
            return -BAD_TEXT
        at += length
        length, at = varint(source, at, end)
        if at < 0:
            return -BAD_VARINT
        if length < -1 or length > end - at:
            return -BAD_HEADERS
        if length > 0:
            at += length
    return at


@compiled
def put_headers(
    source: npt.NDArray[np.uint8],
    at: int,
    end: int,
    cursors: npt.NDArray[np.int64],
    name_ends: npt.NDArray[np.int32],
    names: npt.NDArray[np.uint8],
    content_ends: npt.NDArray[np.int32],
    content_set: npt.NDArray[np.uint8],
    contents: npt.NDArray[np.uint8],
) -> int:
    """Copy headers that `skip_headers` has checked. A code."""
    used, name_used, content_used = cursors[HEADERS], cursors[NAME_BYTES], cursors[CONTENT_BYTES]
    count, at = varint(source, at, end)
    if count > content_set.size - used or count > name_ends.size - 1 - used or count > content_ends.size - 1 - used:
        return HEADERS_FULL
    for _ in range(count):
        length, at = varint(source, at, end)
        if length > names.size - name_used:
            return NAMES_FULL
        put(source, at, length, names, name_used)
        at += length
        name_used += length
        name_ends[used + 1] = name_used
        length, at = varint(source, at, end)
        content_set[used] = length >= 0
        if length > 0:
            if length > contents.size - content_used:
                return CONTENTS_FULL
            put(source, at, length, contents, content_used)
            at += length
            content_used += length
        elif length < 0:
            cursors[CONTENT_NULLS] += 1
        content_ends[used + 1] = content_used
        used += 1
    cursors[HEADERS], cursors[NAME_BYTES], cursors[CONTENT_BYTES] = used, name_used, content_used
    return OK


@compiled
def decode(
    source: npt.NDArray[np.uint8],
    count: int,
    base_offset: int,
    offset_delta_max: int,
    base_timestamp: int,
    append_timestamp: int,
    is_append_time: bool,
    offset_min: int,
    cursors: npt.NDArray[np.int64],
    offsets: npt.NDArray[np.int64],
    timestamps: npt.NDArray[np.int64],
    key_ends: npt.NDArray[np.int32],
    key_set: npt.NDArray[np.uint8],
    keys: npt.NDArray[np.uint8],
    value_ends: npt.NDArray[np.int32],
    value_set: npt.NDArray[np.uint8],
    values: npt.NDArray[np.uint8],
    header_ends: npt.NDArray[np.int32],
    name_ends: npt.NDArray[np.int32],
    names: npt.NDArray[np.uint8],
    content_ends: npt.NDArray[np.int32],
    content_set: npt.NDArray[np.uint8],
    contents: npt.NDArray[np.uint8],
) -> int:
    """Append ``count`` records to the outputs, but for those below ``offset_min``. A code.

    ``source`` is the records and nothing else, decompressed. ``*_ends`` are Arrow offsets, one longer than
    what they count, ``*_set`` is a byte for each that says whether it is not null. ``cursors`` are moved; after
    any code but `OK` they and the outputs beyond them are to be thrown away.
    """
    size = source.size
    row, key_used, value_used = cursors[ROWS], cursors[KEY_BYTES], cursors[VALUE_BYTES]
    rows_max = min(
        offsets.size, timestamps.size, key_set.size, value_set.size, key_ends.size - 1, value_ends.size - 1,
        header_ends.size - 1,
    )  # fmt: skip
    at = 0
    delta_before = -1
    for record in range(count):
        cursors[RECORD] = record
        length, at = varint(source, at, size)
        if at < 0:
            return BAD_VARINT
        if length < RECORD_BYTES_MIN - 1 or length > size - at:
            return BAD_LENGTH
        end = at + length
        at += 1  # attributes, of which none is in use
        time_delta, at = varint(source, at, end)
        if at < 0:
            return BAD_VARINT
        delta, at = varint(source, at, end)
        if at < 0:
            return BAD_VARINT
        if delta <= delta_before or delta > offset_delta_max:
            return BAD_OFFSET
        delta_before = delta
        key_length, at = varint(source, at, end)
        if at < 0:
            return BAD_VARINT
        if key_length < -1 or key_length > end - at:
            return BAD_KEY
        key_at = at
        if key_length > 0:
            at += key_length
        value_length, at = varint(source, at, end)
        if at < 0:
            return BAD_VARINT
        if value_length < -1 or value_length > end - at:
            return BAD_VALUE
        value_at = at
        if value_length > 0:
            at += value_length
        headers_at = at
        has_headers = True
        if at == end - 1 and source[at] == 0:
            has_headers = False
        else:
            at = skip_headers(source, at, end)
            if at < 0:
                return -at
            if at != end:
                return BAD_END
        at = end
        timestamp = append_timestamp
        if not is_append_time:
            # Before the sum: that it does not overflow is taken for granted by the compiler.
            if time_delta > 0 and base_timestamp > INT64_MAX - time_delta:
                return BAD_TIMESTAMP
            if time_delta < 0 and base_timestamp < INT64_MIN - time_delta:
                return BAD_TIMESTAMP
            timestamp = base_timestamp + time_delta
        if base_offset + delta < offset_min:
            continue
        if row >= rows_max:
            return ROWS_FULL
        if key_length > keys.size - key_used:
            return KEYS_FULL
        if value_length > values.size - value_used:
            return VALUES_FULL
        if key_length > 0:
            put(source, key_at, key_length, keys, key_used)
            key_used += key_length
        elif key_length < 0:
            cursors[KEY_NULLS] += 1
        if value_length > 0:
            put(source, value_at, value_length, values, value_used)
            value_used += value_length
        elif value_length < 0:
            cursors[VALUE_NULLS] += 1
        if has_headers:
            code = put_headers(
                source, headers_at, end, cursors, name_ends, names, content_ends, content_set, contents
            )
            if code != OK:
                return code
        offsets[row] = base_offset + delta
        timestamps[row] = timestamp
        key_set[row] = key_length >= 0
        value_set[row] = value_length >= 0
        key_ends[row + 1] = key_used
        value_ends[row + 1] = value_used
        row += 1
        header_ends[row] = cursors[HEADERS]
    if at != size:
        return TRAILING
    cursors[ROWS], cursors[KEY_BYTES], cursors[VALUE_BYTES] = row, key_used, value_used
    return OK
