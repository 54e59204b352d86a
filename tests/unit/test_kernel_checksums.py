"""The kernel's checksums are those of the libraries, whatever the length, with and without the processor's help."""

from __future__ import annotations

import os
import random
import struct
import subprocess
import sys

import cramjam
import google_crc32c
import numpy as np
import pytest
from aiokafka.codec import lz4_encode
from hypothesis import given
from hypothesis import strategies as st

from connectors.kafka.kernel import checksums, codes, frames

#: Around every boundary: words, a lane, three lanes, several rounds.
LENGTHS = [*range(20), 511, 512, 513, 1535, 1536, 1537, 1544, 3071, 3072, 3073, 10_000]

FROM_TABLES = """
from tests.unit.test_kernel_checksums import check_crc32c, has_instruction
assert not has_instruction()
check_crc32c()
"""


def has_instruction() -> bool:
    """Whether what is compiled here takes the processor's instruction."""
    import numba

    return bool(numba.njit(lambda: checksums.has_instruction())())


def check_crc32c() -> None:
    """At every length and alignment."""
    data = random.Random(1).randbytes(11_000)
    source = np.frombuffer(data, np.uint8)
    for length in LENGTHS:
        for start in (0, 1, 5, 8):
            expected = google_crc32c.value(data[start : start + length])
            assert checksums.crc32c(source, start, start + length) == expected, (start, length)


def test_crc32c() -> None:
    """The checksum of record batches."""
    check_crc32c()


@pytest.mark.slow
def test_crc32c_from_tables() -> None:
    """A processor without the instruction gives the same."""
    environment = {**os.environ, "NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": ""}
    subprocess.run([sys.executable, "-c", FROM_TABLES], env=environment, check=True, timeout=120)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", 0x02CC5D05),
        (b"a", 0x550D7456),
        (b"abc", 0x32D153FF),
        (b"Nobody inspects the spammish repetition", 0xE2293B2F),
    ],
)
def test_xxh32(data: bytes, expected: int) -> None:
    """Published values."""
    assert checksums.xxh32(np.frombuffer(data, np.uint8), 0, len(data)) == expected


@given(st.binary(max_size=200))
def test_xxh32_is_what_the_library_writes(data: bytes) -> None:
    """The library puts the checksum of a block behind it."""
    frame = lz4_encode(data + b".")
    (size,) = struct.unpack_from("<I", frame, 7)
    size &= 0x7FFFFFFF
    (expected,) = struct.unpack_from("<I", frame, 11 + size)
    assert checksums.xxh32(np.frombuffer(frame, np.uint8), 11, 11 + size) == expected


def blocks_of(frame: bytes, rows: int = 8) -> list[list[int]] | None:
    """What `lz4_blocks` finds; None where it leaves the frame to the library."""
    found = np.zeros((rows, codes.BLOCK_COLUMNS), np.int64)
    count = frames.lz4_blocks(np.frombuffer(frame, np.uint8), 0, len(frame), found, 0, 5)
    return None if count < 0 else found[:count].tolist()


def test_blocks_of_an_lz4_frame() -> None:
    """Each block with its place; every damage to a byte that counts leaves the frame to the library."""
    data = random.Random(2).randbytes(1_000) + bytes(90_000)
    frame = lz4_encode(data)
    found = blocks_of(frame)
    assert found is not None
    assert [row[:2] for row in found] == [[5, codes.LZ4_BLOCK]] * 2
    made = b"".join(
        bytes(cramjam.lz4.decompress_block(frame[start:end], output_len=min(65_536, len(data) - at * 65_536)))
        for at, (_, _, start, end, _) in enumerate(found)
    )
    assert made == data
    for at in range(len(frame)):
        damaged = bytearray(frame)
        damaged[at] ^= 1
        assert blocks_of(bytes(damaged)) is None, at
    for cut in range(len(frame)):
        assert blocks_of(frame[:cut]) is None
    assert blocks_of(frame + b"x") is None
    assert blocks_of(frame, rows=1) is None
    assert blocks_of(bytes(cramjam.lz4.compress(data))) is None  # blocks that refer to those before, in the library


def test_a_stored_block() -> None:
    """What does not compress is stored as it is."""
    data = random.Random(3).randbytes(500)
    frame = lz4_encode(data)
    found = blocks_of(frame)
    assert found is not None
    assert found[0][1] == codes.STORED
    assert frame[found[0][2] : found[0][3]] == data
