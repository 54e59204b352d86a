"""Damaged and hostile record batches end in a clear error or in what aiokafka reads, never in a crash.

The kernel runs without bounds checks of its own, so what it reads and writes lies against pages that nobody may
touch: one byte too far ends the process. ``HEADRACE_FUZZ=long`` makes each part a million batches.
"""

from __future__ import annotations

import contextlib
import ctypes
import random
import signal
import subprocess
import sys

import numpy as np
import numpy.typing as npt
import pytest
from aiokafka.record.util import decode_varint

from connectors.kafka import codecs, kernel
from connectors.kafka.kernel import codes, primitives
from connectors.kafka.record_batches import RecordBatches
from engine.batch import Batch
from engine.errors import CorruptRecords
from tests.forms import IS_FUZZ_LONG, examples
from tests.unit.hostile_bytes import (
    HOSTILE_NUMBERS,
    HOSTILE_VARINTS,
    PAGE,
    Guarded,
    damaged,
    hostile,
    lying_records,
    well_framed,
)
from tests.unit.record_bytes import (
    APPEND_TIME,
    ATTRIBUTES_AT,
    CONTROL,
    COUNT_AT,
    LAST_DELTA_AT,
    PARTITION,
    PRODUCER_AT,
    RECORDS_AT,
    TIME,
    TOPIC,
    batch_v2,
    built,
    empty,
    ours_all,
    rows_of,
    sealed,
    theirs,
)

ROUNDS = examples(10_000, 1_000_000)
SEED = 20_261_123

long_test = pytest.mark.timeout(7_200 if IS_FUZZ_LONG else 300)


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mprotect"), reason="needs mprotect")
@pytest.mark.parametrize("place", ["made.ctypes.data + 100", "guarded.first(1).ctypes.data - 1"])
def test_the_guard_is_one(place: str) -> None:
    """One byte beyond guarded memory ends a process, so the tests below would not survive an over-read."""
    program = (
        "import ctypes; from tests.unit.hostile_bytes import Guarded; guarded = Guarded(100); "
        f"made = guarded.holding(bytes(100)); ctypes.string_at({place}, 1)"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False, timeout=60)
    assert ended.returncode == -signal.SIGSEGV, ended.stderr.decode()


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
    before_all = rows_in([theirs(good + built(rows_of(3), base=3) + built(rows_of(3), base=6))])
    for number in range(ROUNDS):
        data = hostile(chance)
        # Not before an old format: aiokafka takes all batches of a response to be of the first one's format.
        before = chance.choice([0, 0, 0, 0, 1, 3]) if len(data) > 16 and data[16] >= 2 else 0
        if before:
            base = int.from_bytes(data[:8], "big")
            data = (base + 3 * before & 2**63 - 1).to_bytes(8, "big") + data[8:]
            data = b"".join((3 * at).to_bytes(8, "big") + good[8:] for at in range(before)) + data
            if chance.random() < 0.5:
                data += (2**32).to_bytes(8, "big") + good[8:]
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
            assert rows_in(batches)[: 3 * before] == before_all[: 3 * before]
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


def one_by_one(frames: list[bytes], position: int) -> tuple[list[dict[str, object]], int, str | None]:
    """The rows, the end and the error when each batch is a response of its own."""
    rows: list[dict[str, object]] = []
    for frame in frames:
        try:
            (batch,) = ours_all(frame, position=position, decompressed_bytes_max=1 << 20)
        except CorruptRecords as error:
            return rows, position, str(error)
        rows += batch.records.to_pylist()
        position = batch.end
    return rows, position, None


@long_test
@pytest.mark.slow
def test_a_run_of_batches_gives_what_each_gives_alone() -> None:
    """Of several batches, with faults in any: all records of those before the first fault, then its error."""
    chance = random.Random(SEED + 4)
    outcomes = {"refused": 0, "refused behind others": 0, "read": 0}
    for number in range(ROUNDS if IS_FUZZ_LONG else ROUNDS // 4):
        frames: list[bytes] = []
        base = 0
        for _ in range(chance.randint(2, 7)):
            frame = well_framed(chance)
            frames.append(base.to_bytes(8, "big") + frame[8:])
            base += max(0, int.from_bytes(frame[LAST_DELTA_AT : LAST_DELTA_AT + 4], "big", signed=True)) + 1
        bytes_max, position = chance.choice([1, 100, 500, 1 << 20]), chance.choice([0, 0, 1, 3])
        frames = frames if base > position else [*frames, empty(base=base, last_delta=position)]
        while int.from_bytes(frames[0][LAST_DELTA_AT : LAST_DELTA_AT + 4], "big") < position:
            position -= 1  # a response begins with the batch that holds the position
        data = b"".join(frames)
        where = f"seed {SEED + 4}, round {number}: {data.hex()}"
        reader = RecordBatches(
            data, topic=TOPIC, partition=PARTITION, position=position, decompressed_bytes_max=1 << 20
        )
        rows: list[dict[str, object]] = []
        message = None
        try:
            while reader.has_more:
                batch = reader.read(bytes_max)
                batch.records.validate(full=True)
                rows += batch.records.to_pylist()
        except CorruptRecords as error:
            message = str(error)
        assert (rows, reader.position, message) == one_by_one(frames, position), where
        outcomes["read" if message is None else ("refused behind others" if rows else "refused")] += 1
    print(f"{outcomes}")
    assert min(outcomes.values()) > ROUNDS // 100, outcomes


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

    def arrays(self, chance: random.Random) -> tuple[npt.NDArray[np.generic], ...]:
        """Arrays of every size, now and then too small; those of ends begin with 0."""
        made = []
        for memory, dtype in zip(self._memory, self.DTYPES, strict=True):
            count = 4_000 if chance.random() < 0.9 else chance.choice([1, 2, 3, 5, 8, 64, 700])
            array = memory.last(count * np.dtype(dtype).itemsize).view(dtype)
            array[0] = 0
            made.append(array)
        return tuple(made)


class Tables:
    """The kernel's tables, each against a page that must not be touched."""

    def __init__(self) -> None:
        self._memory = [Guarded(1 << 12) for _ in range(3)]

    def of(self, number: int, rows: int, columns: int) -> npt.NDArray[np.int64]:
        return self._memory[number].last(rows * columns * 8).view(np.int64).reshape(rows, columns)


def lying_frames(chance: random.Random, frames: npt.NDArray[np.int64], counts: list[int]) -> None:
    """What headers say of batches of ``counts`` records."""
    for frame, count in zip(frames, counts, strict=True):
        frame[codes.FRAME_RECORDS] = count
        frame[codes.FRAME_BASE] = chance.choice([0, 10, 2**62])
        frame[codes.FRAME_DELTA] = chance.choice([0, 5, 100, 100, 2**31 - 1])
        frame[codes.FRAME_TIMESTAMP] = chance.choice([TIME, TIME, -1, 2**63 - 1, -(2**63)])
        frame[codes.FRAME_TIMESTAMP_MAX] = TIME
        frame[codes.FRAME_ATTRIBUTES] = chance.choice([0, 0, 1, 3]) | chance.choice([0, 0, 0, APPEND_TIME])


@long_test
@pytest.mark.slow
def test_the_kernel_stays_within_its_buffers() -> None:
    """Hostile records from memory that ends at a forbidden page, into outputs of any size that do too."""
    chance = random.Random(SEED + 1)
    response, inflated, outputs, tables = Guarded(1 << 20), Guarded(1 << 20), Outputs(), Tables()
    found: dict[int, int] = {}
    later = 0
    for number in range(ROUNDS):
        where = f"seed {SEED + 1}, round {number}"
        parts, counts = [], []
        for _ in range(chance.choice([1, 1, 2, 4])):
            records, count = lying_records(chance)
            parts.append(damaged(chance, records) if chance.random() < 0.2 else records)
            counts.append(count)
        ends = np.cumsum([len(part) for part in parts])
        frames, places = tables.of(0, len(parts), codes.FRAME_COLUMNS), tables.of(1, len(parts), 2)
        lying_frames(chance, frames, counts)
        places[:, codes.PLACE_START], places[:, codes.PLACE_END] = ends - [len(part) for part in parts], ends
        if chance.random() < 0.1:
            places[chance.randrange(len(parts)), chance.randrange(2)] = chance.choice(HOSTILE_NUMBERS)
        data = b"".join(parts)
        sources = [each.holding(data, at_end=chance.random() < 0.8) for each in (response, inflated)]
        offset_min, bytes_max = chance.choice([0, 2, 2**62]), chance.choice([1, 300, 2**31 - 1])
        cursors, arrays = np.zeros(2 * codes.CURSORS, np.int64), outputs.arrays(chance)
        done, code = kernel.decode(*sources, frames, places, offset_min, bytes_max, cursors, arrays)
        found[code] = found.get(code, 0) + 1
        assert code in codes.FAULTS or code == codes.OK or code >= codes.ROWS_FULL, where
        assert 0 <= done <= len(parts), where
        if code != codes.OK and done:
            # What a batch has left behind before it turned out to be wrong is as if it had not been.
            later += 1
            again = np.zeros(2 * codes.CURSORS, np.int64)
            assert kernel.decode(*sources, frames[:done], places[:done], offset_min, bytes_max, again, arrays) == (
                done,
                codes.OK,
            ), where
            assert cursors[: codes.RECORD].tolist() == again[: codes.RECORD].tolist(), where
    print(f"{ROUNDS} runs: {found}, {later} not in the first batch")
    assert later > ROUNDS // 100
    assert found.keys() == {
        codes.OK,
        *range(codes.BAD_VARINT, codes.TRAILING + 1),
        *range(codes.ROWS_FULL, codes.CONTENTS_FULL + 1),
    }


@long_test
@pytest.mark.slow
def test_walking_stays_within_the_response() -> None:
    """Hostile frames in memory that ends at a forbidden page, into tables that may be too small."""
    chance = random.Random(SEED + 2)
    memory, tables = Guarded(1 << 20), Tables()
    walked: dict[int, int] = {}
    planned: dict[int, int] = {}
    kinds: dict[int, int] = {}
    for _ in range(ROUNDS):
        data = b"".join(hostile(chance) for _ in range(chance.choice([1, 1, 2, 3])))
        if chance.random() < 0.3:
            data = data[: chance.randrange(min(len(data), 80) + 1)]
        source = memory.holding(data, at_end=chance.random() < 0.8)
        rows = chance.choice([0, 1, 2, 10])
        frames = tables.of(0, rows, codes.FRAME_COLUMNS)
        count, code = kernel.walk(source, chance.choice([0, 5, 2**62]), frames)
        walked[code] = walked.get(code, 0) + 1
        assert 0 <= count <= rows
        end = 0
        for start, stop, magic, base, after in frames[:count, :5].tolist():
            assert start == end
            assert start + codes.OVERHEAD_BYTES + codes.LEGACY_BYTES_MIN <= stop <= len(data)
            assert magic in (0, 1, 2)
            assert 0 <= base < after
            end = stop
        if not count:
            continue
        first, places = chance.randrange(count), tables.of(1, chance.choice([0, 1, 10]), codes.PLACE_COLUMNS)
        blocks = tables.of(2, chance.choice([0, 1, 2, 10]), codes.BLOCK_COLUMNS)
        run, used, code = kernel.plan(
            source, frames[:count], first, chance.choice([0, 0, 1]), chance.choice([-1, -1, 0, APPEND_TIME]),
            chance.choice([0, CONTROL]), chance.choice([0, 1 << 20]), places, blocks,
        )  # fmt: skip
        planned[code] = planned.get(code, 0) + 1
        assert 0 <= run <= min(count - first, len(places))
        assert 0 <= used <= len(blocks)
        assert code == codes.OK or run == 0
        for at, (start, stop) in enumerate(places[:run].tolist()):
            assert (start, stop) == (
                frames[first + at, codes.FRAME_START] + RECORDS_AT,
                frames[first + at, codes.FRAME_END],
            )
        for frame, kind, start, stop, _ in blocks[:used].tolist():
            kinds[kind] = kinds.get(kind, 0) + 1
            assert first <= frame < first + max(1, run)
            assert frames[frame, codes.FRAME_START] + RECORDS_AT <= start <= stop <= frames[frame, codes.FRAME_END]
    print(f"{ROUNDS} responses: {walked}, {planned}, {kinds}")
    assert walked.keys() == {codes.OK, codes.CUT_OFF, codes.BAD_FRAME, codes.BAD_RANGE, codes.BAD_FORMAT}
    assert planned.keys() == {
        codes.OK, codes.SPECIAL, codes.BAD_CHECKSUM, codes.BAD_COUNT, codes.BAD_CODEC
    }  # fmt: skip
    assert kinds.keys() >= {codes.GZIP, codes.SNAPPY, codes.LZ4, codes.ZSTD, codes.LZ4_BLOCK}


def test_texts_and_numbers_that_are_cut_off() -> None:
    """A character or a number of several bytes is not read beyond its end."""
    memory = Guarded(PAGE)
    for text in ("ä", "€", "😀"):
        for cut in range(1, len(text.encode())):
            source = memory.holding(b"x" + text.encode()[:cut])
            assert not primitives.is_utf8(source, 0, source.size)
    for number in HOSTILE_VARINTS:
        source = memory.holding(number)
        for end in range(len(number) + 1):
            assert primitives.varint(source, 0, end)[1] in (-1, *range(1, end + 1))


def test_random_bytes() -> None:
    """Noise is refused, whatever its length."""
    chance = random.Random(SEED + 3)
    for _ in range(2_000):
        with contextlib.suppress(CorruptRecords):
            batches, error = read_all(chance.randbytes(chance.randint(1, 300)), 1 << 20)
            assert error is not None
            assert not batches
