"""The codecs of a record batch, decompressing into a bounded buffer.

What comes in is bytes from a network that may claim to be gigabytes: nothing is ever decompressed beyond the
bound that the caller gives. Not here: what the bytes mean.
"""

from __future__ import annotations

import struct
import threading
from collections.abc import Sequence
from typing import Any

import cramjam
import numpy as np

from connectors.kafka.kernel.codes import GZIP, LZ4, LZ4_BLOCK, SNAPPY, STORED, ZSTD, Bytes

NONE = 0

NAMES = ("none", "gzip", "snappy", "lz4", "zstd")

MODULES: dict[int, Any] = {GZIP: cramjam.gzip, LZ4: cramjam.lz4, ZSTD: cramjam.zstd}

#: What one record batch may be when decompressed. Brokers bound a batch compressed (1 MiB by default).
DECOMPRESSED_BYTES_MAX = 128 * 1024 * 1024

#: A thread's buffer that has become larger than this is not kept.
KEPT_BYTES_MAX = 16 * 1024 * 1024

#: Snappy as the Java library writes it: this, two version numbers, then blocks with their lengths before them.
XERIAL_MAGIC = b"\x82SNAPPY\x00"
XERIAL_HEADER_BYTES = 16

#: The least that a thread's buffer is, and how much of it a run of batches takes before it ends.
RUN_BUFFER_BYTES = 1024 * 1024
RUN_BYTES = 384 * 1024

_own = threading.local()


class BadCompression(ValueError):
    """Bytes that a codec cannot take apart, or that would be too large."""


def decompress(codec: int, data: memoryview, bytes_max: int = DECOMPRESSED_BYTES_MAX) -> Bytes:
    """``data`` decompressed, in a buffer of this thread that the next call overwrites.

    Raises BadCompression when the data is damaged, is more than ``bytes_max``, or the codec is none of Kafka's.
    """
    if not GZIP <= codec <= ZSTD:
        raise BadCompression(f"there is no codec {codec}")
    # Grown by doubling: what a codec will make of its input is known only to snappy.
    size = min(bytes_max, max(8 * len(data), 64 * 1024))
    if codec == SNAPPY:
        return _snappy(data, bytes_max)
    while True:
        target = _buffer(size)[:bytes_max]
        try:
            return _fixed(target[: _into(codec, data, target)])
        except cramjam.DecompressionError as error:
            if "whole buffer" not in str(error):
                raise BadCompression(f"{NAMES[codec]}: {str(error).removeprefix('lz4: ')}") from None
            if target.size >= bytes_max:
                raise BadCompression(f"{NAMES[codec]}: more than {bytes_max} bytes when decompressed") from None
        size = min(bytes_max, 4 * target.size)


def inflate(
    data: memoryview, blocks: Sequence[Sequence[int]], bytes_max: int = DECOMPRESSED_BYTES_MAX
) -> tuple[Bytes, list[tuple[int, int, int]], int | None]:
    """Payloads of ``data`` one behind the other in a buffer of this thread, which the next call overwrites.

    ``blocks`` are rows of `kernel.plan`, those of a batch together. Gives each batch and where its payload begins
    and ends, for all of them, or for those before one that is damaged or does not fit, and which one that is. Of
    the first one `decompress` has the last word.
    """
    target = _buffer(RUN_BUFFER_BYTES)
    room = memoryview(target.data)
    places: list[tuple[int, int, int]] = []
    begin = used = 0
    batch: int = blocks[0][0]
    try:
        for frame, kind, start, end, size_max in blocks:
            if frame != batch:
                places.append((batch, begin, used))
                begin, batch = used, frame
                if used >= RUN_BYTES:
                    return _fixed(target), places, batch
            into = room[used : begin + bytes_max]
            if kind == LZ4_BLOCK:
                into = into[:size_max]
                used += cramjam.lz4.decompress_block_into(data[start:end], into, output_len=len(into))
            elif kind == STORED:
                into[: end - start] = data[start:end]
                used += end - start
            else:
                used += _into(kind, data[start:end], into)
    except (cramjam.DecompressionError, BadCompression, ValueError):
        return _fixed(target), places, batch
    places.append((batch, begin, used))
    return _fixed(target), places, None


def _into(codec: int, data: memoryview, target: Any) -> int:
    if codec == SNAPPY:
        return _snappy_into(_snappy_blocks(data), target)
    return int(MODULES[codec].decompress_into(data, target))


def _snappy(data: memoryview, bytes_max: int) -> Bytes:
    try:
        blocks = _snappy_blocks(data)
        size = sum(int(cramjam.snappy.decompress_raw_len(block)) for block in blocks)
        if size > bytes_max:
            raise BadCompression(f"snappy: claims {size} bytes when decompressed, {bytes_max} are allowed")
        target = _buffer(size)
        return _fixed(target[: _snappy_into(blocks, target.data[:size])])
    except cramjam.DecompressionError as error:
        raise BadCompression(str(error)) from None


def _snappy_into(blocks: Sequence[memoryview], target: memoryview) -> int:
    used = 0
    for block in blocks:
        size = cramjam.snappy.decompress_raw_len(block)
        # The library refuses a buffer that is smaller than what a block claims.
        if cramjam.snappy.decompress_raw_into(block, target[used : used + size]) != size:
            raise BadCompression("snappy: a block is not of the size that it claims")
        used += size
    return used


def _fixed(made: Bytes) -> Bytes:
    """The kernel is compiled for arrays that cannot be written to, as responses are."""
    view = made[:]
    view.flags.writeable = False
    return view


def _is_xerial(data: memoryview) -> bool:
    return len(data) > XERIAL_HEADER_BYTES and bytes(data[: len(XERIAL_MAGIC)]) == XERIAL_MAGIC


def _snappy_blocks(data: memoryview) -> list[memoryview]:
    if not _is_xerial(data):
        return [data]
    blocks = []
    at = XERIAL_HEADER_BYTES
    while at < len(data):
        if len(data) - at < 4:
            raise BadCompression("snappy: a block's length is cut off")
        (length,) = struct.unpack_from(">i", data, at)
        at += 4
        if not 0 < length <= len(data) - at:
            raise BadCompression(f"snappy: a block claims {length} bytes of {len(data) - at}")
        blocks.append(data[at : at + length])
        at += length
    return blocks


def _buffer(size: int) -> Bytes:
    """This thread's buffer, of ``size`` bytes or more."""
    kept: Bytes | None = getattr(_own, "buffer", None)
    if kept is not None and kept.size >= size:
        return kept
    made = np.empty(size, np.uint8)
    if size <= KEPT_BYTES_MAX:
        _own.buffer = made
    return made
