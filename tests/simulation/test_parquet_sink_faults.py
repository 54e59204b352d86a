"""The whole Parquet sink on a disk that dies, or fills up, at each of its operations in turn."""

from __future__ import annotations

import errno
import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from connectors.parquet import ParquetSink
from connectors.parquet.state import INLINE_BYTES_MAX
from engine.batch import Stream
from engine.clock import SystemClock
from engine.errors import SinkMismatch, SinkUnavailable
from engine.protocols import Counts, FailedRecord, Outcome, ShardWriter
from tests.simulation.disk import Disk, DiskFileSystem

ROOT = Path("/disk/out")
STREAM = Stream("cluster", "clicks", "id", 1)
END = 12


class PowerLost(Exception):
    """The machine is gone; every later operation of the process fails with it too."""


class Gate:
    """Lets ``count`` operations pass, then raises ``error`` for ever."""

    def __init__(self, count: int, error: Exception) -> None:
        self.left = count
        self.error = error

    def __call__(self, operation: str) -> None:
        if self.left <= 0:
            raise self.error
        self.left -= 1


def new_sink(disk: Disk, gate: Gate | None = None) -> ParquetSink:
    filesystem = DiskFileSystem(disk, gate) if gate else DiskFileSystem(disk)
    return ParquetSink(
        ROOT, pipeline="p", clock=SystemClock(), partition_by=["site"], filesystem=filesystem, checkpoint_every=3,
        hive_partitions_open_max=2,
    )  # fmt: skip


def outcome(start: int) -> Outcome:
    """Three offsets: two rows in two directories and a failure; and a state that says where they end."""
    rows = pa.table({"_offset": [start, start + 1], "site": [f"s{start % 4}", f"s{(start + 1) % 4}"]})
    failure = FailedRecord(0, start + 2, 0, b"k", None, (), "why", "ValueError", 1, f"request-{start}")
    return Outcome(start, start + 3, rows, Counts(handled=2, failed=1), [failure], state_at(start + 3))


def state_at(end: int) -> bytes:
    """Every second one is too large for a manifest."""
    return b"%d " % end * (INLINE_BYTES_MAX if end % 2 else 1)


def state_of(writer: ShardWriter) -> int:
    """Where the shard's state says that it is; the whole of it is checked."""
    end = int(writer.state.split()[0]) if writer.state else 0
    assert writer.state == (state_at(end) if end else b"")
    return end


async def work(sink: ParquetSink) -> int:
    """Write up to offset `END` from wherever the sink is; the last position acknowledged."""
    await sink.open(STREAM)
    writer = await sink.acquire(0)
    acknowledged = writer.position or 0
    try:
        while acknowledged < END:
            await writer.write(outcome(acknowledged))
            if acknowledged % 2 == 0:
                await writer.write(outcome(acknowledged + 3))
            acknowledged = await writer.commit()
            sink.acknowledged = acknowledged  # type: ignore[attr-defined]
            assert state_of(writer) == acknowledged
        return acknowledged
    finally:
        await sink.close()


def offsets(disk: Disk) -> list[int]:
    found = []
    for path, data in disk.files(ROOT.parent).items():
        if path.suffix == ".parquet":
            found += pq.read_table(pa.BufferReader(data)).column("_offset").to_pylist()
    return sorted(found)


async def check(disk: Disk) -> None:
    """Go on over a sound disk; in the end each row and each failure is there once."""
    sink = new_sink(disk)
    end = await work(sink)
    assert offsets(disk) == [offset for offset in range(end) if offset % 3 != 2]
    assert await sink.position(0) == end
    writer = await sink.acquire(0)
    _, failures = await writer.failures(100)
    assert [failure.offset for failure in failures] == [offset for offset in range(end) if offset % 3 == 2]
    assert [failure.request_id for failure in failures] == [f"request-{start}" for start in range(0, end, 3)]
    assert state_of(writer) == end
    staged = [data for path, data in disk.files(ROOT).items() if path.parent.name == "staging"]
    assert staged == ([writer.state] if len(writer.state) > INLINE_BYTES_MAX else [])
    await sink.close()


def operations() -> int:
    import asyncio

    gate = Gate(10**9, PowerLost())
    asyncio.run(work(new_sink(Disk(ROOT.parent), gate)))
    return 10**9 - gate.left


OPERATIONS = operations()


@pytest.mark.slow
@pytest.mark.parametrize("part", range(4))
async def test_power_is_lost_at_each_operation(part: int) -> None:
    """Wherever the machine dies, and whatever unflushed writes survive, the next run leaves each row once."""
    for count in range(part, OPERATIONS, 4):
        disk = Disk(ROOT.parent)
        sink = new_sink(disk, Gate(count, PowerLost()))
        with pytest.raises(PowerLost):
            await work(sink)
        acknowledged = getattr(sink, "acknowledged", 0)
        disk.crash(random.Random(count))
        seen = offsets(disk)
        assert len(seen) == len(set(seen))
        probe = new_sink(disk)
        await probe.open(STREAM)
        assert (await probe.position(0) or 0) >= acknowledged, f"operation {count}"
        writer = await probe.acquire(0)
        assert state_of(writer) == (writer.position or 0), f"operation {count}"
        await check(disk)


@pytest.mark.slow
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES, errno.EIO])
async def test_the_disk_refuses_at_each_operation(code: int) -> None:
    """A full, forbidden or failing disk is SinkUnavailable with the path, and a later run loses nothing."""
    for count in range(code % 3, OPERATIONS, 3):
        disk = Disk(ROOT.parent)
        with pytest.raises(SinkUnavailable, match="/disk/out") as raised:
            await work(new_sink(disk, Gate(count, OSError(code, "refused"))))
        assert raised.value.hint
        await check(disk)


@pytest.mark.parametrize("seed", range(8))
async def test_identity_and_schemas_survive_a_loss_of_power(seed: int) -> None:
    """What `open` bound and `adopt_schema` adopted is durable when they return."""
    disk = Disk(ROOT.parent)
    sink = new_sink(disk)
    await sink.open(STREAM)
    schema = pa.schema([("a", pa.int64())])
    await sink.adopt_schema("value", schema)
    disk.crash(random.Random(seed))
    again = new_sink(disk)
    with pytest.raises(SinkMismatch):
        await again.open(Stream("another", "clicks", "id", 1))
    await again.open(STREAM)
    assert await again.schema("value") == schema
