"""Record batches that are damaged or lie, and memory that ends a process which leaves it. Not here: tests."""

from __future__ import annotations

import ctypes
import mmap
import random
import struct
from collections.abc import Callable

import cramjam
import numpy as np
import numpy.typing as npt
from aiokafka.codec import lz4_encode

from connectors.kafka.kernel import codes
from tests.unit.record_bytes import (
    APPEND_TIME,
    ATTRIBUTES_AT,
    CODECS,
    CONTROL,
    COUNT_AT,
    LAST_DELTA_AT,
    PRODUCER_AT,
    RECORDS_AT,
    TIME,
    Row,
    batch_v2,
    built,
    empty,
    fields_of,
    legacy,
    marker,
    rows_of,
    sealed,
    varint,
)

PAGE = mmap.PAGESIZE
PROT_NONE = 0


class Guarded:
    """Memory of up to ``bytes_max`` between two pages that must not be touched."""

    def __init__(self, bytes_max: int) -> None:
        pages = -(-bytes_max // PAGE)
        self._size = pages * PAGE
        self._map = mmap.mmap(-1, self._size + 2 * PAGE)
        self._whole = np.frombuffer(self._map, np.uint8)
        library = ctypes.CDLL(None, use_errno=True)
        library.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
        for at in (0, PAGE + self._size):
            assert library.mprotect(self._whole.ctypes.data + at, PAGE, PROT_NONE) == 0

    def last(self, size: int) -> npt.NDArray[np.uint8]:
        """The last bytes before the page behind."""
        assert size <= self._size
        return self._whole[PAGE + self._size - size : PAGE + self._size]

    def first(self, size: int) -> npt.NDArray[np.uint8]:
        """The first bytes after the page before."""
        assert size <= self._size
        return self._whole[PAGE : PAGE + size]

    def holding(self, data: bytes, *, at_end: bool = True) -> npt.NDArray[np.uint8]:
        """A read-only array of ``data`` that lies against a page."""
        made = self.last(len(data)) if at_end else self.first(len(data))
        made[:] = np.frombuffer(data, np.uint8)
        made.flags.writeable = False
        return made


HOSTILE_NUMBERS = [
    0,
    1,
    -1,
    -2,
    6,
    7,
    63,
    64,
    127,
    128,
    8191,
    8192,
    2**20,
    2**31 - 1,
    2**31,
    -(2**31),
    2**32,
    2**53,
]
HOSTILE_NUMBERS += [2**62, 2**63 - 1, -(2**63), 2**63 - TIME, -(2**63) + TIME]
HOSTILE_VARINTS = [b"\x80", b"\xff" * 4, b"\xff" * 9, b"\xff" * 9 + b"\x01", b"\xff" * 9 + b"\x02", b"\xff" * 10]
HOSTILE_VARINTS += [b"\x80" * 9 + b"\x01", b"\x80" * 20, b"", b"\x81\x00", b"\x80\x00"]
HOSTILE_TEXTS = [b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xe2\x82", b"\x00", b"\xc0\x80"]


def some_rows(chance: random.Random) -> list[Row]:
    rows = rows_of(24)
    return chance.sample(rows, chance.randint(1, 6))


def lying_records(chance: random.Random) -> tuple[bytes, int]:
    """Records of which one or two fields lie, and their count, which may lie too."""
    records = [[b"", *fields_of(delta, *row)] for delta, row in enumerate(some_rows(chance))]
    for fields in records:
        fields[0] = varint(sum(map(len, fields)))
    for _ in range(chance.choice([0, 1, 1, 1, 2])):
        fields = chance.choice(records)
        at = chance.randrange(len(fields))
        kind = chance.random()
        if kind < 0.4:
            fields[at] = varint(chance.choice(HOSTILE_NUMBERS))
        elif kind < 0.6:
            fields[at] = varint(len(b"".join(fields[at + 1 :])) + chance.randint(-3, 3))
        elif kind < 0.8:
            fields[at] = chance.choice(HOSTILE_VARINTS)
        elif kind < 0.9:
            fields[at] = chance.choice(HOSTILE_TEXTS)
        else:
            fields.pop(at)
        if at and fields and chance.random() < 0.6:  # let the length of the record hold, to get further in
            fields[0] = varint(len(b"".join(fields[1:])))
    count = len(records)
    if chance.random() < 0.2:
        count = chance.choice([0, 1, count - 1, count + 1, -1, 2**31 - 1, -(2**31), 100])
    return b"".join(b"".join(fields) for fields in records), count


def damaged(chance: random.Random, data: bytes) -> bytes:
    """Bytes flipped, set, left out, put in, repeated or cut off."""
    made = bytearray(data)
    for _ in range(chance.choice([1, 1, 1, 2, 3, 8])):
        if not made:
            break
        at = chance.randrange(len(made))
        kind = chance.randrange(7)
        if kind == 0:
            made[at] ^= 1 << chance.randrange(8)
        elif kind == 1:
            made[at] = chance.choice([0, 1, 0x7F, 0x80, 0xFF, chance.randrange(256)])
        elif kind == 2:
            del made[at : at + chance.randint(1, 9)]
        elif kind == 3:
            made[at:at] = chance.randbytes(chance.randint(1, 9))
        elif kind == 4:
            made[at:at] = made[at : at + chance.randint(1, 30)]
        elif kind == 5:
            del made[at:]
        else:
            made[at : at + 4] = struct.pack(
                ">i", chance.choice([-1, 0, 2**31 - 1, -(2**31), len(made), len(made) - at])
            )
    return bytes(made)


COMPRESSORS: list[Callable[[bytes], bytes]] = [
    bytes,
    lambda data: bytes(cramjam.gzip.compress(data, level=1)),
    lambda data: bytes(cramjam.snappy.compress_raw(data)),
    lambda data: bytes(cramjam.lz4.compress(data)),
    lambda data: bytes(cramjam.zstd.compress(data, level=1)),
    lz4_encode,
]

WELL_MADE = [
    *(built(rows_of(7), codec=codec) for codec in CODECS),
    built(rows_of(1)),
    built([(None, None, ())]),
    built(rows_of(3), attributes=APPEND_TIME),
    built(rows_of(3), producer=7),
    marker(7, base=0, abort=True),
    marker(7, base=0, abort=False),
    empty(base=0, last_delta=5),
    *(
        legacy([(b"k", b"v" * 30), (None, b""), (b"", None)], magic=magic, codec=codec)
        for magic in (0, 1)
        for codec in ("none", "gzip", "snappy")
    ),
    legacy([(b"k", b"v" * 30)] * 3, magic=1, codec="lz4"),
]  # fmt: skip


def lying_header(chance: random.Random, data: bytes) -> bytes:
    """A batch whose header lies about something."""
    made = bytearray(data)
    for _ in range(chance.choice([1, 1, 2])):
        at, form = chance.choice(
            [(0, ">q"), (8, ">i"), (16, ">b"), (ATTRIBUTES_AT, ">h"), (LAST_DELTA_AT, ">i"), (27, ">q"), (35, ">q"),
             (PRODUCER_AT, ">q"), (COUNT_AT, ">i")]
        )  # fmt: skip
        size = struct.calcsize(form)
        number = chance.choice([*HOSTILE_NUMBERS, *range(8), APPEND_TIME, CONTROL, CONTROL | 0x10, len(made) - 12])
        if at + size <= len(made):
            made[at : at + size] = (number % 2 ** (8 * size)).to_bytes(size, "big")
    return bytes(made)


def hostile(chance: random.Random) -> bytes:
    """A batch that is wrong somewhere, nearly always with a checksum that fits."""
    kind = chance.random()
    if kind < 0.5:
        records, count = lying_records(chance)
        if chance.random() < 0.3:
            records = damaged(chance, records)
        number = chance.choice([0, 0, 0, 1, 2, 3, 4, 5, 5])
        codec = codes.LZ4 if number == 5 else number
        made = batch_v2(
            COMPRESSORS[number](records), count=count, last_delta=max(0, min(count, 100) - 1), attributes=codec
        )
    elif kind < 0.8:
        made = damaged(chance, chance.choice(WELL_MADE))
        if chance.random() < 0.8 and len(made) >= RECORDS_AT:  # so that it is taken for whole
            made = made[:8] + struct.pack(">i", len(made) - 12) + made[12:]
    else:
        made = lying_header(chance, chance.choice(WELL_MADE))
    return made if chance.random() < 0.05 or len(made) < 17 or made[16] < 2 else sealed(made)


def well_framed(chance: random.Random) -> bytes:
    """A batch of format 2 whose length is right, so that the one behind it is found: hostile or well made."""
    while True:
        made = hostile(chance) if chance.random() < 0.4 else chance.choice(WELL_MADE)
        if len(made) >= RECORDS_AT and made[16] == 2:
            return made[:8] + struct.pack(">i", len(made) - 12) + made[12:]
