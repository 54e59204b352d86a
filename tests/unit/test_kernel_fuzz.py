"""Damaged and hostile record batches end in a clear error or in what aiokafka reads, never in a crash.

The kernel runs without bounds checks of its own, so what it reads and writes lies against pages that nobody may
touch: one byte too far ends the process. ``HEADRACE_FUZZ=long`` makes each part a million batches.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import random
import signal
import struct
import subprocess
import sys
from collections.abc import Callable

import cramjam
import numpy as np
import numpy.typing as npt
import pytest
from aiokafka.record.util import decode_varint

from connectors.kafka import codecs, kernel
from connectors.kafka.record_batches import RecordBatches
from engine.batch import Batch
from engine.errors import CorruptRecords
from tests.unit.record_bytes import (
    APPEND_TIME,
    ATTRIBUTES_AT,
    CODECS,
    CONTROL,
    COUNT_AT,
    LAST_DELTA_AT,
    PARTITION,
    PRODUCER_AT,
    RECORDS_AT,
    TIME,
    TOPIC,
    Row,
    batch_v2,
    built,
    empty,
    fields_of,
    legacy,
    marker,
    rows_of,
    sealed,
    theirs,
    varint,
)

IS_LONG = os.environ.get("HEADRACE_FUZZ") == "long"
ROUNDS = 1_000_000 if IS_LONG else 20_000
SEED = 20_261_123

PAGE = mmap.PAGESIZE
PROT_NONE = 0

long_test = pytest.mark.timeout(7_200 if IS_LONG else 300)


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


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mprotect"), reason="needs mprotect")
@pytest.mark.parametrize("place", ["made.ctypes.data + 100", "guarded.first(1).ctypes.data - 1"])
def test_the_guard_is_one(place: str) -> None:
    """One byte beyond guarded memory ends a process, so the tests below would not survive an over-read."""
    program = (
        "import ctypes; from tests.unit.test_kernel_fuzz import Guarded; guarded = Guarded(100); "
        f"made = guarded.holding(bytes(100)); ctypes.string_at({place}, 1)"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False, timeout=60)
    assert ended.returncode == -signal.SIGSEGV, ended.stderr.decode()


# -- what is damaged, and how ------------------------------------------------------------------------------------

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
        codec = chance.choice([0, 0, 0, 1, 2, 3, 4])
        made = batch_v2(
            COMPRESSORS[codec](records), count=count, last_delta=max(0, min(count, 100) - 1), attributes=codec
        )
    elif kind < 0.8:
        made = damaged(chance, chance.choice(WELL_MADE))
        if chance.random() < 0.8 and len(made) >= RECORDS_AT:  # so that it is taken for whole
            made = made[:8] + struct.pack(">i", len(made) - 12) + made[12:]
    else:
        made = lying_header(chance, chance.choice(WELL_MADE))
    return made if chance.random() < 0.05 or len(made) < 17 or made[16] < 2 else sealed(made)


# -- the tests ---------------------------------------------------------------------------------------------------


def read_all(data: bytes, bytes_max: int) -> tuple[list[Batch], CorruptRecords | None]:
    """The batches that come, and the error that ends them, if any."""
    batches: list[Batch] = []
    reader = RecordBatches(
        data, topic=TOPIC, partition=PARTITION, position=0, aborted=[(7, 0)], decompressed_bytes_max=1 << 20
    )
    position = 0
    try:
        while reader.has_more:
            batch = reader.read(bytes_max)
            assert batch.start == position
            batch.records.validate(full=True)
            position = batch.end
            batches.append(batch)
    except CorruptRecords as error:
        assert reader.position == position
        return batches, error
    return batches, None


def rows_in(batches: list[Batch]) -> list[dict[str, object]]:
    return [row for batch in batches for row in batch.records.to_pylist()]


def read_by_aiokafka(data: bytes) -> tuple[list[dict[str, object]], int] | None:
    """The rows and the end of the range; None where it raises."""
    try:
        expected = theirs(data, aborted=[(7, 0)])
    except Exception:  # whatever: it refuses
        return None
    rows = expected.records.to_pylist()
    for row in rows:
        row["timestamp"] = -1 if row["timestamp"] is None else row["timestamp"]
    return rows, expected.end


def without_differences(data: bytes) -> bytes:
    """The batches without what aiokafka takes otherwise than Kafka, uncompressed.

    A record's attributes are one byte, which nothing uses; aiokafka reads a number there, of several bytes if the
    first says so. A control batch without records, or of no producer, ends no transaction; aiokafka raises.
    """
    made = b""
    while len(data) >= RECORDS_AT and data[16] == 2:
        length, attributes, count = (
            int.from_bytes(data[at : at + size], "big") for at, size in ((8, 4), (ATTRIBUTES_AT, 2), (COUNT_AT, 4))
        )
        batch, data = data[: 12 + length], data[12 + length :]
        if attributes & CONTROL and (not count or batch[PRODUCER_AT] & 0x80):
            made += batch_v2(
                b"",
                count=0,
                base=int.from_bytes(batch[:8], "big"),
                last_delta=int.from_bytes(batch[LAST_DELTA_AT:27], "big"),
            )
            continue
        records = bytearray(batch[RECORDS_AT:])
        if attributes & 7 and records:
            records = bytearray(codecs.decompress(attributes & 7, memoryview(batch)[RECORDS_AT:]))
        at = 0
        for _ in range(count):
            size, at = decode_varint(records, at)
            records[at] = 0
            at += size
        header = bytearray(batch[:RECORDS_AT])
        header[8:12] = (RECORDS_AT - 12 + len(records)).to_bytes(4, "big")
        header[ATTRIBUTES_AT : ATTRIBUTES_AT + 2] = (attributes & ~7).to_bytes(2, "big")
        made += sealed(header + records)
    return made + data


@long_test
@pytest.mark.slow
def test_hostile_batches_are_refused_or_read_as_aiokafka_does() -> None:
    """Whatever comes, there are only batches and one named error; what is accepted is what aiokafka reads."""
    chance = random.Random(SEED)
    outcomes = {"refused": 0, "read": 0}
    good = built(rows_of(3), codec="lz4")
    for number in range(ROUNDS):
        data = hostile(chance)
        # Not before an old format: aiokafka takes all batches of a response to be of the first one's format.
        before = chance.random() < 0.3 and len(data) > 16 and data[16] >= 2
        if before:
            base = int.from_bytes(data[:8], "big")
            data = good + (base + 3 & 2**63 - 1).to_bytes(8, "big") + data[8:]
        try:
            batches, error = read_all(data, chance.choice([1, 500, 1 << 20]))
        except BaseException:
            print(f"seed {SEED}, round {number}: {data.hex()}")
            raise
        if error is not None:
            outcomes["refused"] += 1
            assert (error.topic, error.partition) == (TOPIC, PARTITION)
            assert f"'{TOPIC}', partition {PARTITION}" in str(error)
            assert f"at offset {error.offset}: " in str(error)
            assert not before or rows_in(batches)[:3] == rows_in([theirs(good)])
            continue
        outcomes["read"] += 1
        if not data:
            continue
        found = (rows_in(batches), batches[-1].end)
        if found != read_by_aiokafka(data):
            assert found == read_by_aiokafka(without_differences(data)), (
                f"seed {SEED}, round {number}: {data.hex()}"
            )
    print(f"{ROUNDS} batches: {outcomes}")
    assert min(outcomes.values()) > ROUNDS // 50, outcomes


OUTPUT_BYTES_MAX = 1 << 16


class Outputs:
    """The kernel's outputs, each against a page of its own that must not be touched."""

    DTYPES = (
        ["int64", "int64"]  # offsets, timestamps
        + ["int32", "uint8", "uint8"] * 2  # keys, values
        + ["int32", "int32", "uint8", "int32", "uint8", "uint8"]  # ends, names, contents
    )

    def __init__(self) -> None:
        self._memory = [Guarded(OUTPUT_BYTES_MAX) for _ in self.DTYPES]

    def arrays(self, chance: random.Random) -> list[npt.NDArray[np.generic]]:
        """Arrays of every size, often too small; those of ends begin with 0."""
        made = []
        for memory, dtype in zip(self._memory, self.DTYPES, strict=True):
            count = chance.choice([1, 2, 3, 5, 8, 64, 700, 4_000, 4_000, 4_000])
            array = memory.last(count * np.dtype(dtype).itemsize).view(dtype)
            array[0] = 0
            made.append(array)
        return made


@long_test
@pytest.mark.slow
def test_the_kernel_stays_within_its_buffers() -> None:
    """Hostile records from memory that ends at a forbidden page, into outputs of any size that do too."""
    chance = random.Random(SEED + 1)
    memory, outputs = Guarded(1 << 20), Outputs()
    codes: dict[int, int] = {}
    for number in range(ROUNDS):
        records, count = lying_records(chance)
        if chance.random() < 0.4:
            records = damaged(chance, records)
        source = memory.holding(records, at_end=chance.random() < 0.8)
        cursors = np.zeros(kernel.CURSORS, np.int64)
        code = kernel.decode(
            source, count, chance.choice([0, 10, 2**62]), chance.choice([0, 5, 100, 2**31 - 1]),
            chance.choice([TIME, -1, 2**63 - 1, -(2**63)]), TIME, chance.random() < 0.2,
            chance.choice([0, 2, 2**62]), cursors, *outputs.arrays(chance),
        )  # fmt: skip
        codes[code] = codes.get(code, 0) + 1
        assert code in kernel.FAULTS or code == kernel.OK or code >= kernel.ROWS_FULL, (
            f"seed {SEED + 1}, round {number}"
        )
    print(f"{ROUNDS} batches: {codes}")
    expected = {
        kernel.OK,
        *range(kernel.BAD_VARINT, kernel.TRAILING + 1),
        *range(kernel.ROWS_FULL, kernel.CONTENTS_FULL + 1),
    }
    assert codes.keys() == expected


@long_test
@pytest.mark.slow
def test_walking_stays_within_the_response() -> None:
    """Hostile frames in memory that ends at a forbidden page, into a table that may be too small."""
    chance = random.Random(SEED + 2)
    memory, table = Guarded(1 << 20), Guarded(1 << 12)
    codes: dict[int, int] = {}
    for _ in range(ROUNDS):
        data = b"".join(hostile(chance) for _ in range(chance.choice([1, 1, 2, 3])))
        if chance.random() < 0.3:
            data = data[: chance.randrange(min(len(data), 80) + 1)]
        source = memory.holding(data, at_end=chance.random() < 0.8)
        rows = chance.choice([0, 1, 2, 10])
        frames = table.last(rows * kernel.FRAME_COLUMNS * 8).view(np.int64).reshape(rows, kernel.FRAME_COLUMNS)
        count, code = kernel.walk(source, chance.choice([0, 5, 2**62]), frames)
        codes[code] = codes.get(code, 0) + 1
        assert 0 <= count <= rows
        end = 0
        for start, stop, magic, base, after in frames[:count].tolist():
            assert start == end
            assert start + kernel.OVERHEAD_BYTES + kernel.LEGACY_BYTES_MIN <= stop <= len(data)
            assert magic in (0, 1, 2)
            assert 0 <= base < after
            end = stop
    print(f"{ROUNDS} responses: {codes}")
    assert codes.keys() == {kernel.OK, kernel.CUT_OFF, kernel.BAD_FRAME, kernel.BAD_RANGE, kernel.BAD_FORMAT}


def test_texts_and_numbers_that_are_cut_off() -> None:
    """A character or a number of several bytes is not read beyond its end."""
    memory = Guarded(PAGE)
    for text in ("ä", "€", "😀"):
        for cut in range(1, len(text.encode())):
            source = memory.holding(b"x" + text.encode()[:cut])
            assert not kernel.is_utf8(source, 0, source.size)
    for number in HOSTILE_VARINTS:
        source = memory.holding(number)
        for end in range(len(number) + 1):
            assert kernel.varint(source, 0, end)[1] in (-1, *range(1, end + 1))


def test_random_bytes() -> None:
    """Noise is refused, whatever its length."""
    chance = random.Random(SEED + 3)
    for _ in range(2_000):
        with contextlib.suppress(CorruptRecords):
            batches, error = read_all(chance.randbytes(chance.randint(1, 300)), 1 << 20)
            assert error is not None
            assert not batches
