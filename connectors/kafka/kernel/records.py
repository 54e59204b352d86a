"""The records of record batches, taken apart into flat Arrow buffers, in compiled code.

What comes in is bytes from a network: every length and every variable-length integer is checked against the
end of what holds it before it is used, and every write against the end of its buffer. Not here: batch headers,
checksums and codecs (`.frames`), and who owns the buffers (`connectors.kafka.columns`).
"""

from __future__ import annotations

from typing import Any

from connectors.kafka.kernel.codes import (
    APPEND_TIME_BIT,
    BAD_END,
    BAD_HEADERS,
    BAD_KEY,
    BAD_LENGTH,
    BAD_NAME,
    BAD_OFFSET,
    BAD_TEXT,
    BAD_TIMESTAMP,
    BAD_VALUE,
    BAD_VARINT,
    BYTES_LEFT,
    CODEC_BITS,
    COLUMN_BYTES_MAX,
    CONTENT_BYTES,
    CONTENT_NULLS,
    CONTENTS_FULL,
    CURSORS,
    FRAME_ATTRIBUTES,
    FRAME_BASE,
    FRAME_DELTA,
    FRAME_RECORDS,
    FRAME_TIMESTAMP,
    FRAME_TIMESTAMP_MAX,
    HEADERS,
    HEADERS_FULL,
    INT64_MAX,
    INT64_MIN,
    KEY_BYTES,
    KEY_NULLS,
    KEYS_FULL,
    NAME_BYTES,
    NAMES_FULL,
    OK,
    PLACE_END,
    PLACE_START,
    RECORD,
    RECORD_BYTES_MIN,
    ROWS,
    ROWS_FULL,
    ROWS_LEFT,
    TRAILING,
    VALUE_BYTES,
    VALUE_NULLS,
    VALUES_FULL,
    Bytes,
    Ends,
    Integers,
    Outputs,
)
from connectors.kafka.kernel.primitives import inlined, inner, is_utf8, load8, merged, put, varint


@inner
def skip_headers(source: Bytes, at: int, end: int) -> int:
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


@inner
def put_headers(
    source: Bytes,
    at: int,
    end: int,
    cursors: Integers,
    name_ends: Ends,
    names: Bytes,
    content_ends: Ends,
    content_set: Bytes,
    contents: Bytes,
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


@inlined
def _fields(source: Bytes, at: int, size: int, delta_before: int, delta_max: int) -> tuple[Any, ...]:
    """A code; where the record ends, its two deltas, where key and value are and their lengths, and its headers."""
    length, at = varint(source, at, size)
    if at < 0:
        return BAD_VARINT, 0, 0, 0, 0, 0, 0, 0, 0
    if length < RECORD_BYTES_MIN - 1 or length > size - at:
        return BAD_LENGTH, 0, 0, 0, 0, 0, 0, 0, 0
    end = at + length
    at += 1  # attributes, of which none is in use
    time_delta, at = varint(source, at, end)
    if at < 0:
        return BAD_VARINT, 0, 0, 0, 0, 0, 0, 0, 0
    delta, at = varint(source, at, end)
    if at < 0:
        return BAD_VARINT, 0, 0, 0, 0, 0, 0, 0, 0
    if delta <= delta_before or delta > delta_max:
        return BAD_OFFSET, 0, 0, 0, 0, 0, 0, 0, 0
    key_length, at = varint(source, at, end)
    if at < 0:
        return BAD_VARINT, 0, 0, 0, 0, 0, 0, 0, 0
    if key_length < -1 or key_length > end - at:
        return BAD_KEY, 0, 0, 0, 0, 0, 0, 0, 0
    key_at = at
    if key_length > 0:
        at += key_length
    value_length, at = varint(source, at, end)
    if at < 0:
        return BAD_VARINT, 0, 0, 0, 0, 0, 0, 0, 0
    if value_length < -1 or value_length > end - at:
        return BAD_VALUE, 0, 0, 0, 0, 0, 0, 0, 0
    value_at = at
    if value_length > 0:
        at += value_length
    return OK, end, time_delta, delta, key_at, key_length, value_at, value_length, at


@merged
def _is_beyond(base: int, delta: int) -> bool:
    """Whether the sum overflows: that it does not is taken for granted by the compiler."""
    return (delta > 0 and base > INT64_MAX - delta) or (delta < 0 and base < INT64_MIN - delta)


@inner
def decode_frame(
    source: Bytes,
    at: int,
    size: int,
    frames: Integers,
    number: int,
    offset_min: int,
    cursors: Integers,
    outputs: Outputs,
) -> Any:
    """Append the records of a batch, which are ``source`` from ``at`` to ``size``. A code."""
    offsets, timestamps, key_ends, key_set, keys, value_ends, value_set, values, header_ends = outputs[:9]
    row, key_used, value_used = cursors[ROWS], cursors[KEY_BYTES], cursors[VALUE_BYTES]
    base, delta_max = frames[number, FRAME_BASE], frames[number, FRAME_DELTA]
    base_timestamp, append_timestamp = frames[number, FRAME_TIMESTAMP], frames[number, FRAME_TIMESTAMP_MAX]
    is_append_time = frames[number, FRAME_ATTRIBUTES] & APPEND_TIME_BIT
    delta = -1
    for record in range(frames[number, FRAME_RECORDS]):
        cursors[RECORD] = record
        code, end, time_delta, delta, key_at, key_length, value_at, value_length, at = _fields(
            source, at, size, delta, delta_max
        )
        if code != OK:
            return code
        headers_at = at
        has_headers = at != end - 1 or load8(source, at) != 0
        if has_headers:
            at = skip_headers(source, at, end)
            if at < 0:
                return -at
            if at != end:
                return BAD_END
        at = end
        if not is_append_time and _is_beyond(base_timestamp, time_delta):
            return BAD_TIMESTAMP
        if base + delta < offset_min:
            continue
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
            code = put_headers(source, headers_at, end, cursors, *outputs[9:])
            if code != OK:
                return code
        offsets[row] = base + delta
        timestamps[row] = append_timestamp if is_append_time else base_timestamp + time_delta
        key_set[row] = key_length >= 0
        value_set[row] = value_length >= 0
        row += 1
        key_ends[row] = key_used
        value_ends[row] = value_used
        header_ends[row] = cursors[HEADERS]
    if at != size:
        return TRAILING
    cursors[ROWS], cursors[KEY_BYTES], cursors[VALUE_BYTES] = row, key_used, value_used
    return OK


@merged
def _has_room(outputs: Outputs, rows: int) -> bool:
    """Whether there is room for so many rows; that of strings is looked at record by record."""
    fewest = min(outputs[0].size, outputs[1].size, outputs[3].size, outputs[6].size)
    ends = min(outputs[2].size, outputs[5].size, outputs[8].size)
    return rows <= fewest and rows < ends


@merged
def _bytes_used(cursors: Integers) -> Any:
    return cursors[KEY_BYTES] + cursors[VALUE_BYTES] + cursors[NAME_BYTES] + cursors[CONTENT_BYTES]


@inlined
def _foresee(frames: Integers, places: Integers, done: int, cursors: Integers) -> None:
    """How many rows and bytes the batches that are left may need, each at most what its bytes can hold."""
    rows = size = 0
    for place in range(done, places.shape[0]):
        here = places[place, PLACE_END] - places[place, PLACE_START]
        rows += min(frames[place, FRAME_RECORDS], here // RECORD_BYTES_MIN)
        size += here
    cursors[ROWS_LEFT], cursors[BYTES_LEFT] = rows, size


@merged
def decode(
    response: Bytes,
    inflated: Bytes,
    frames: Integers,
    places: Integers,
    offset_min: int,
    bytes_max: int,
    cursors: Integers,
    outputs: Outputs,
) -> tuple[int, int]:
    """Append the records of batches, but for those below ``offset_min``: how many batches, and a code.

    ``places`` is a row for each of the first ``frames``: where its records begin and end, in ``inflated`` if it has
    a codec, else in the ``response``. It ends with the batch that makes what is in use ``bytes_max`` or more, or
    before one that could outgrow what Arrow can address. A code other than `OK` is about the batch behind those
    that were appended, of which nothing is: ``cursors`` are as if it had not been there, but for `RECORD`,
    `ROWS_LEFT` and `BYTES_LEFT`.
    """
    for done in range(min(places.shape[0], frames.shape[0])):
        source = inflated if frames[done, FRAME_ATTRIBUTES] & CODEC_BITS else response
        start, end, count = places[done, PLACE_START], places[done, PLACE_END], frames[done, FRAME_RECORDS]
        cursors[RECORD] = 0
        if start < 0 or end < start or end > source.size:
            return done, BAD_LENGTH
        used = _bytes_used(cursors)
        if used >= bytes_max or used > COLUMN_BYTES_MAX - (end - start):
            return done, OK
        if count > (end - start) // RECORD_BYTES_MIN:
            cursors[RECORD] = (end - start) // RECORD_BYTES_MIN
            return done, BAD_LENGTH
        code = ROWS_FULL
        for cursor in range(CURSORS):
            cursors[CURSORS + cursor] = cursors[cursor]
        if _has_room(outputs, cursors[ROWS] + count):
            code = decode_frame(source, start, end, frames, done, offset_min, cursors, outputs)
        if code != OK:
            record = cursors[RECORD]
            for cursor in range(CURSORS):
                cursors[cursor] = cursors[CURSORS + cursor]
            cursors[RECORD] = record
            _foresee(frames, places, done, cursors)
            return done, code
    return places.shape[0], OK
