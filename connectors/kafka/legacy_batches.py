"""Record batches of formats 0 and 1, read by aiokafka's reader within the bounds that the caller gives.

Topics written by clients before 2017 still have them. Not here: format 2 (`kernel`).
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from aiokafka.record.legacy_records import LegacyRecordBatch

from connectors.kafka import codecs
from connectors.kafka.kernel.codes import BAD_CHECKSUM, BAD_OFFSET, FAULTS

#: Offset, timestamp in ms, key, value, headers.
Row = tuple[int, int, bytes | None, bytes | None, Sequence[tuple[str, bytes | None]]]

#: Where the key of either format begins, with its length before it.
KEY_AT = (18, 26)
LENGTH = struct.Struct(">i")

#: The timestamp of records in the format that has none.
NO_TIMESTAMP = -1


class Malformed(ValueError):
    """Why a batch cannot be read."""


def read(data: bytes, magic: int, codec: int, offset_max: int, bytes_max: int) -> list[Row]:
    """The records of a batch of format ``magic`` at ``offset_max``. Raises Malformed, BadCompression."""
    if codec != codecs.NONE:
        _check_size(data, magic, codec, bytes_max)
    rows: list[Row] = []
    before = -1
    for row in _rows(data, magic):
        if not before < row[0] <= offset_max:
            raise Malformed(FAULTS[BAD_OFFSET])
        before = row[0]
        rows.append(row)
    return rows


def _rows(data: bytes, magic: int) -> list[Row]:
    try:
        batch = LegacyRecordBatch(data, magic)
        if not batch.validate_crc():
            raise Malformed(FAULTS[BAD_CHECKSUM])
        return [
            (
                record.offset,
                NO_TIMESTAMP if record.timestamp is None else record.timestamp,
                record.key,
                record.value,
                (),
            )
            for record in batch
        ]
    except Malformed:
        raise
    except Exception as error:  # of any type: nobody has checked these bytes before
        raise Malformed(f"format {magic}: {type(error).__name__}: {error}") from None


def _check_size(data: bytes, magic: int, codec: int, bytes_max: int) -> None:
    """aiokafka's reader decompresses whatever it is given, so it is tried within the bound first."""
    at = KEY_AT[magic]
    for what in ("key", "value"):
        if len(data) - at < LENGTH.size:
            raise Malformed(f"its {what} is cut off")
        (length,) = LENGTH.unpack_from(data, at)
        at += LENGTH.size
        if not -1 <= length <= len(data) - at:
            raise Malformed(f"its {what} claims {length} bytes of {len(data) - at}")
        if what == "key":
            at += max(0, length)
    if length < 0:
        raise Malformed("it is compressed and has no value")
    codecs.decompress(codec, memoryview(data)[at : at + length], bytes_max)
