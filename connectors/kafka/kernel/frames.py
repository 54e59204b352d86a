"""The record batches of a response, found and checked as far as their headers go, in compiled code.

`walk` finds them, `plan` says how many of them can be taken at once, and what of those is to be decompressed. Not
here: their records (`.records`), decompression (`connectors.kafka.codecs`), and what becomes of batches that are of
an old format, control or of an aborted transaction (`connectors.kafka.record_batches`).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from connectors.kafka.kernel.checksums import crc32c, xxh32
from connectors.kafka.kernel.codes import (
    APPEND_TIME_BIT,
    ATTRIBUTES_AT,
    BAD_CHECKSUM,
    BAD_CODEC,
    BAD_COUNT,
    BAD_FORMAT,
    BAD_FRAME,
    BAD_RANGE,
    BLOCK_BYTES_MAX,
    BLOCK_END,
    BLOCK_FRAME,
    BLOCK_KIND,
    BLOCK_START,
    CODEC_BITS,
    CRC_AT,
    CUT_OFF,
    DELTA_AT,
    FRAME_ATTRIBUTES,
    FRAME_BASE,
    FRAME_CRC,
    FRAME_DELTA,
    FRAME_END,
    FRAME_MAGIC,
    FRAME_NEXT,
    FRAME_PRODUCER,
    FRAME_RECORDS,
    FRAME_START,
    FRAME_TIMESTAMP,
    FRAME_TIMESTAMP_MAX,
    HEADER_BYTES,
    INT64_MAX,
    LEGACY_ATTRIBUTES_AT,
    LEGACY_BYTES_MIN,
    LZ4,
    LZ4_BLOCK,
    MAGIC_AT,
    OK,
    OVERHEAD_BYTES,
    PLACE_END,
    PLACE_START,
    PRODUCER_AT,
    RECORDS_AT,
    RECORDS_COUNT_AT,
    SPECIAL,
    STORED,
    TIMESTAMP_AT,
    TIMESTAMP_MAX_AT,
    ZSTD,
    Bytes,
    Integers,
)
from connectors.kafka.kernel.primitives import (
    big16,
    big32,
    big64,
    inner,
    load8,
    load32,
    merged,
    unsigned32,
)

#: How an LZ4 frame begins, and its flags: the version, and what else there may be for its blocks to be taken alone.
LZ4_MAGIC = 0x184D2204
LZ4_VERSION = 0x40
LZ4_VERSION_BITS = 0xC0
LZ4_INDEPENDENT_BIT = 0x20
LZ4_CHECKSUM_BIT = 0x10

#: The magic, two bytes of flags, the checksum of those, and the end mark.
LZ4_BYTES_MIN = 11

#: A larger payload is left to the library as a whole, whose start costs little then.
LZ4_SPLIT_BYTES_MAX = 32 * 1024

#: What a compressed payload is taken for, in times its size, when a run of batches is made up.
GROWTH = 5


@merged
def _header(source: Bytes, at: int, frames: Integers, row: int) -> None:
    """What a header of format 2 says. It is all there."""
    frames[row, FRAME_ATTRIBUTES] = big16(source, at + ATTRIBUTES_AT)
    frames[row, FRAME_DELTA] = big32(source, at + DELTA_AT)
    frames[row, FRAME_TIMESTAMP] = big64(source, at + TIMESTAMP_AT)
    frames[row, FRAME_TIMESTAMP_MAX] = big64(source, at + TIMESTAMP_MAX_AT)
    frames[row, FRAME_PRODUCER] = big64(source, at + PRODUCER_AT)
    frames[row, FRAME_RECORDS] = big32(source, at + RECORDS_COUNT_AT)
    frames[row, FRAME_CRC] = unsigned32(source, at + CRC_AT)


@merged
def walk(source: Bytes, position: int, frames: Integers) -> tuple[int, int]:
    """Find the whole batches of a response to a fetch at ``position``: how many, and a code.

    Writes a row for each to ``frames``, as many as it has; a code other than `OK` is about what follows them. A
    batch that is cut off by the end of the response is no fault, unless it is the only one.
    """
    size = source.size
    at = 0
    count = 0
    before = 0
    while size - at >= OVERHEAD_BYTES and count < frames.shape[0]:
        base = big64(source, at)
        length = big32(source, at + 8)
        if length < LEGACY_BYTES_MIN:
            return count, BAD_FRAME
        if length > size - at - OVERHEAD_BYTES:
            break
        magic = load8(source, at + MAGIC_AT)
        if magic > 2:
            return count, BAD_FORMAT
        delta = 0
        if magic == 2:
            if length < HEADER_BYTES:
                return count, BAD_FRAME
            delta = big32(source, at + DELTA_AT)
        if delta < 0 or base < before or base > INT64_MAX - 1 - delta:
            return count, BAD_RANGE
        before = base + delta + 1
        if magic == 2:
            _header(source, at, frames, count)
        else:
            frames[count, FRAME_ATTRIBUTES] = load8(source, at + LEGACY_ATTRIBUTES_AT)
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


@merged
def _block(blocks: Integers, row: int, frame: int, kind: int, start: int, end: int, size_max: int) -> None:
    blocks[row, BLOCK_FRAME] = frame
    blocks[row, BLOCK_KIND] = kind
    blocks[row, BLOCK_START] = start
    blocks[row, BLOCK_END] = end
    blocks[row, BLOCK_BYTES_MAX] = size_max


@inner
def lz4_blocks(source: Bytes, at: int, end: int, blocks: Integers, row: int, frame: int) -> int:
    """The blocks of an LZ4 frame that is all of ``source`` from ``at`` to ``end``, from ``row`` on: how many.

    -1 for a frame that is not of the plain kind that Kafka's clients write, is damaged in any way or has more
    blocks than there are rows for; the library then has the last word on it. Checksums of header and blocks are
    checked.
    """
    if end - at < LZ4_BYTES_MIN or end - at > LZ4_SPLIT_BYTES_MAX or load32(source, at) != LZ4_MAGIC:
        return -1
    flags = load8(source, at + 4)
    sizes = load8(source, at + 5)
    has_checksum = flags & LZ4_CHECKSUM_BIT
    if flags & ~(LZ4_INDEPENDENT_BIT | LZ4_CHECKSUM_BIT) != LZ4_VERSION or sizes & 0x8F or sizes < 0x40:
        return -1
    if xxh32(source, at + 4, at + 6) >> 8 & 0xFF != load8(source, at + 6):
        return -1
    size_max = 1 << (8 + 2 * (sizes >> 4))
    at += 7
    count = 0
    while end - at >= 4:
        head = load32(source, at)
        at += 4
        if head == 0:
            return count if at == end and (count == 1 or flags & LZ4_INDEPENDENT_BIT) else -1
        size = head & 0x7FFFFFFF
        after = 4 if has_checksum else 0
        if size > size_max or size > end - at - after or row + count >= blocks.shape[0]:
            return -1
        if has_checksum and xxh32(source, at, at + size) != load32(source, at + size):
            return -1
        _block(blocks, row + count, frame, STORED if head >> 31 else LZ4_BLOCK, at, at + size, size_max)
        count += 1
        at += size + after
    return -1


@merged
def _fault(source: Bytes, frames: Integers, row: int, is_checked: bool) -> int:
    """A code: whether a batch of format 2 is what its header says, as far as that goes."""
    start, end = frames[row, FRAME_START], frames[row, FRAME_END]
    if not is_checked and crc32c(source, start + ATTRIBUTES_AT, end) != frames[row, FRAME_CRC]:
        return BAD_CHECKSUM
    if frames[row, FRAME_RECORDS] < 0:
        return BAD_COUNT
    if frames[row, FRAME_ATTRIBUTES] & CODEC_BITS > ZSTD:
        return BAD_CODEC
    return OK


@merged
def plan(
    source: Bytes,
    frames: Integers,
    first: int,
    checked: int,
    clock: int,
    special: int,
    bytes_max: int,
    places: Integers,
    blocks: Integers,
) -> tuple[int, int, int]:
    """How many batches from ``first`` on can be taken at once, how many ``blocks`` they have, and a code.

    Batches of one clock (`APPEND_TIME_BIT` or 0; any when negative) whose checksums, from number ``checked`` on,
    and headers are right. The run ends with the batch that makes it about ``bytes_max`` or more when decompressed,
    before one that is of an old format or has an attribute of ``special``, or before a fault: the code says so
    where there is no batch before it. ``places`` is where their records are in the response, compressed or not.
    """
    # Of one type from the start, so that what takes them is compiled once.
    used: Any = np.int64(0)
    size: Any = np.int64(0)
    row = first
    code = OK
    while row < frames.shape[0] and row - first < places.shape[0] and (row == first or size < bytes_max):
        attributes = frames[row, FRAME_ATTRIBUTES]
        if (
            frames[row, FRAME_MAGIC] < 2
            or attributes & special
            or (clock >= 0 and attributes & APPEND_TIME_BIT != clock)
        ):
            code = SPECIAL
            break
        code = _fault(source, frames, row, row < checked)
        if code != OK:
            break
        start, end, codec = frames[row, FRAME_START] + RECORDS_AT, frames[row, FRAME_END], attributes & CODEC_BITS
        if codec:
            found = lz4_blocks(source, start, end, blocks, used, row) if codec == LZ4 else -1
            if found < 0:
                if used >= blocks.shape[0]:
                    break
                _block(blocks, used, row, codec, start, end, 0)
                found = 1
            used += found
        places[row - first, PLACE_START] = start
        places[row - first, PLACE_END] = end
        clock = attributes & APPEND_TIME_BIT
        size += (end - start) * (GROWTH if codec else 1)
        row += 1
    return row - first, used, OK if row > first else code
