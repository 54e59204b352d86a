"""What every sink must do, whatever it writes to: subclass `SinkSuite` and give it a ``storage`` fixture.

    class TestMySink(SinkSuite):
        @pytest.fixture
        def storage(self, tmp_path):
            return MyStorage(tmp_path)  # a `SinkStorage`

Sinks that `SinkStorage.sink` gives are of one process and share the storage. Rows have the columns `ROWS`.
Not here: sizes, ages, file formats; nor what a process's death does, for which each sink has its own tests; nor
the state of shards (`tests.conformance.state_suite`).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Protocol

import pyarrow as pa
import pytest

from engine.batch import Stream
from engine.errors import InternalError, RecreatedTopic, ShardLost, SinkMismatch
from engine.protocols import Counts, FailedRecord, Outcome, Sink

ROWS = pa.schema([("_partition", pa.int64()), ("_offset", pa.int64()), ("text", pa.string())])

STREAM = Stream("cluster-1", "clicks", "topic-id-1", 4)


class SinkStorage(Protocol):
    """Somewhere that sinks write to; fresh for each test."""

    def sink(self, *, pipeline: str = "p", on_recreated_topic: str = "stop") -> Sink:
        """A new sink, not yet opened, over this storage."""

    def rows(self) -> list[tuple[int, int, str]]:
        """Every committed row as ``(_partition, _offset, text)``, in any order, as a reader would see them."""


def rows_of(partition: int, start: int, end: int) -> list[tuple[int, int, str]]:
    return [(partition, offset, f"row {offset}") for offset in range(start, end)]


def outcome(
    start: int, end: int, *, partition: int = 0, failed: Sequence[int] = (), rows: bool = True, **counts: int
) -> Outcome:
    """An outcome with one row for each offset that did not fail; ``rows=False`` says that all were filtered."""
    kept = [row for row in rows_of(partition, start, end) if row[1] not in failed] if rows else []
    columns = list(zip(*kept, strict=True)) or [[], [], []]
    table = pa.table(dict(zip(ROWS.names, columns, strict=True)), schema=ROWS)
    tally = Counts(handled=len(kept), failed=len(failed), filtered=end - start - len(kept) - len(failed))
    return Outcome(
        start, end, table if kept else None, tally, [failed_record(offset, partition) for offset in failed]
    )


def failed_record(offset: int, partition: int = 0) -> FailedRecord:
    """A failed record; of two neighbours one never reached the function."""
    headers = (("h", b"\x00\xff"), ("h", None), ("", b""))
    request_id = f"request-{offset}" if offset % 2 else None
    return FailedRecord(
        *(partition, offset, 1_700_000_000_000, None, b"\xff\x00", headers, "no JSON\n", "ValueError", 2),
        request_id,
    )


class SinkSuite:
    """The tests. Each opens what it needs through ``storage``."""

    @pytest.fixture
    async def sink(self, storage: SinkStorage) -> AsyncIterator[Sink]:
        sink = storage.sink()
        await sink.open(STREAM)
        yield sink
        await sink.close()

    async def test_a_new_shard_has_no_position(self, sink: Sink) -> None:
        """Before the first commit there is no position, for the owner or anybody else."""
        assert await sink.position(0) is None
        writer = await sink.acquire(0)
        assert writer.position is None
        assert await sink.position(0) is None
        assert writer.due_at() is None
        assert writer.pending_bytes == 0

    async def test_rows_and_position_move_together(self, sink: Sink, storage: SinkStorage) -> None:
        """Nothing shows before the commit; rows and position show after it."""
        writer = await sink.acquire(0)
        await writer.write(outcome(5, 8))
        await writer.write(outcome(8, 10))
        assert storage.rows() == []
        assert await sink.position(0) is None
        assert writer.due_at() is not None
        assert await writer.commit() == 10
        assert sorted(storage.rows()) == rows_of(0, 5, 10)
        assert (writer.position, await sink.position(0)) == (10, 10)
        assert writer.due_at() is None
        assert writer.pending_bytes == 0

    async def test_shards_are_apart(self, sink: Sink, storage: SinkStorage) -> None:
        """Each partition has its own position, and commits on its own."""
        first, second = await sink.acquire(0), await sink.acquire(1)
        await first.write(outcome(0, 3))
        await second.write(outcome(100, 102, partition=1))
        await first.commit()
        assert sorted(storage.rows()) == rows_of(0, 0, 3)
        await second.commit()
        assert sorted(storage.rows()) == rows_of(0, 0, 3) + rows_of(1, 100, 102)
        assert [await sink.position(n) for n in range(3)] == [3, 102, None]

    async def test_a_resolved_start_is_a_commit(self, sink: Sink, storage: SinkStorage) -> None:
        """An empty range without rows, committed first, is where the shard begins."""
        writer = await sink.acquire(0)
        await writer.write(outcome(42, 42))
        assert await writer.commit() == 42
        assert await sink.position(0) == 42
        assert (await sink.acquire(0)).position == 42
        assert storage.rows() == []

    async def test_a_start_at_zero_is_a_position(self, sink: Sink) -> None:
        """Position 0 is not the same as none."""
        writer = await sink.acquire(0)
        await writer.write(outcome(0, 0))
        assert await writer.commit() == 0
        assert await sink.position(0) == 0
        assert (await sink.acquire(0)).position == 0

    async def test_ranges_without_rows_are_committed(self, sink: Sink, storage: SinkStorage) -> None:
        """Filtered and absent offsets move the position too."""
        writer = await sink.acquire(0)
        await writer.write(outcome(0, 7, rows=False))
        assert await writer.commit() == 7
        await writer.write(Outcome(7, 9, None, Counts(absent=1, dropped=1)))
        assert await writer.commit() == 9
        assert await sink.position(0) == 9
        assert storage.rows() == []

    async def test_a_commit_of_nothing_changes_nothing(self, sink: Sink) -> None:
        """Committing with nothing written gives the position again."""
        writer = await sink.acquire(0)
        await writer.write(outcome(0, 4))
        assert await writer.commit() == 4
        assert await writer.commit() == 4
        assert await sink.position(0) == 4

    async def test_a_gap_or_an_overlap_is_refused(self, sink: Sink, storage: SinkStorage) -> None:
        """An outcome has to start where the last one ended, written or committed."""
        writer = await sink.acquire(0)
        await writer.write(outcome(0, 4))
        for start in (3, 5):
            with pytest.raises(InternalError, match=str(start)):
                await writer.write(outcome(start, 6))
        await writer.commit()
        for start in (3, 5):
            with pytest.raises(InternalError, match=str(start)):
                await writer.write(outcome(start, 6))
        await writer.write(outcome(4, 6))
        assert await writer.commit() == 6
        assert sorted(storage.rows()) == rows_of(0, 0, 6)

    async def test_a_takeover_begins_at_the_position(self, sink: Sink, storage: SinkStorage) -> None:
        """The next owner goes on where the last commit ended; what was only written is gone."""
        first = await sink.acquire(0)
        await first.write(outcome(0, 4))
        await first.commit()
        await first.write(outcome(4, 9))
        second = await sink.acquire(0)
        assert second.position == 4
        await second.write(outcome(4, 6))
        assert await second.commit() == 6
        assert sorted(storage.rows()) == rows_of(0, 0, 6)

    async def test_a_zombie_commits_nothing(self, sink: Sink, storage: SinkStorage) -> None:
        """An owner that lost its shard is told so at its commit, and again, and disturbs nothing."""
        zombie = await sink.acquire(0)
        await zombie.write(outcome(0, 4))
        owner = await sink.acquire(0)
        await owner.write(outcome(0, 3))
        for _ in range(2):
            with pytest.raises(ShardLost):
                await zombie.commit()
        await owner.commit()
        with pytest.raises(ShardLost):
            await zombie.commit()
        await zombie.release()
        await owner.write(outcome(3, 5))
        assert await owner.commit() == 5
        assert sorted(storage.rows()) == rows_of(0, 0, 5)

    async def test_a_zombie_is_fenced_before_any_commit_of_the_new_owner(
        self, sink: Sink, storage: SinkStorage
    ) -> None:
        """Acquiring is enough to fence the last owner, so nothing it wrote can appear later."""
        zombie = await sink.acquire(0)
        await zombie.write(outcome(0, 2))
        await zombie.commit()
        await zombie.write(outcome(2, 4))
        owner = await sink.acquire(0)
        with pytest.raises(ShardLost):
            await zombie.commit()
        assert await sink.position(0) == owner.position == 2
        assert sorted(storage.rows()) == rows_of(0, 0, 2)

    async def test_a_zombie_cannot_mark_failures_delivered(self, sink: Sink) -> None:
        """Only the owner moves the delivered mark."""
        zombie = await sink.acquire(0)
        await zombie.write(outcome(0, 4, failed=[1]))
        await zombie.commit()
        mark, _ = await zombie.failures(10)
        owner = await sink.acquire(0)
        with pytest.raises(ShardLost):
            await zombie.delivered(mark)
        assert [record.offset for record in (await owner.failures(10))[1]] == [1]

    async def test_another_sink_takes_over(self, sink: Sink, storage: SinkStorage) -> None:
        """A second sink over the same storage sees positions, takes a shard, and fences the first one's owner."""
        first = await sink.acquire(0)
        await first.write(outcome(0, 4))
        await first.commit()
        other = storage.sink()
        await other.open(STREAM)
        assert await other.position(0) == 4
        second = await other.acquire(0)
        await first.write(outcome(4, 5))
        with pytest.raises(ShardLost):
            await first.commit()
        await second.write(outcome(4, 6))
        await second.commit()
        assert await sink.position(0) == 6
        assert sorted(storage.rows()) == rows_of(0, 0, 6)
        await second.release()
        await other.close()

    async def test_many_owners_race_and_nothing_is_twice(self, sink: Sink, storage: SinkStorage) -> None:
        """Owners that fight for one shard at the same time leave each offset exactly once."""

        async def fight(number: int) -> None:
            while True:
                writer = None
                try:
                    writer = await sink.acquire(0)
                    while (position := writer.position or 0) < 40:
                        await writer.write(outcome(position, position + 1 + number))
                        await writer.commit()
                    return
                except ShardLost:
                    if writer is not None:
                        await writer.release()
                    await asyncio.sleep(0)

        async with asyncio.timeout(60):
            await asyncio.gather(*(fight(number) for number in range(3)))
        end = await sink.position(0)
        assert end is not None
        assert sorted(storage.rows()) == rows_of(0, 0, end)

    async def test_release_drops_what_is_not_committed(self, sink: Sink, storage: SinkStorage) -> None:
        """Releasing twice is fine; uncommitted rows are gone and are written again by the next owner."""
        writer = await sink.acquire(0)
        await writer.write(outcome(0, 2))
        await writer.commit()
        await writer.write(outcome(2, 5))
        await writer.release()
        await writer.release()
        assert await sink.position(0) == 2
        again = await sink.acquire(0)
        assert again.position == 2
        await again.write(outcome(2, 5))
        await again.commit()
        assert sorted(storage.rows()) == rows_of(0, 0, 5)

    async def test_reopening_finds_everything(self, storage: SinkStorage) -> None:
        """Positions, rows and the partition count at the start outlive the sink."""
        sink = storage.sink()
        await sink.open(STREAM)
        writer = await sink.acquire(2)
        for start in range(0, 100, 2):
            await writer.write(outcome(start, start + 2, partition=2))
            await writer.commit()
        await writer.release()
        await sink.close()
        again = storage.sink()
        await again.open(Stream(STREAM.cluster_id, STREAM.topic, STREAM.topic_id, 9))
        assert again.partitions_at_start == STREAM.partitions
        assert await again.position(2) == 100
        assert (await again.acquire(2)).position == 100
        assert sorted(storage.rows()) == rows_of(2, 0, 100)
        await again.close()

    async def test_failures_are_pending_until_delivered(self, sink: Sink) -> None:
        """Committed failures come in order, whole, at most so many at a time, until they are marked."""
        writer = await sink.acquire(0)
        await writer.write(outcome(0, 4, failed=[1, 3]))
        await writer.write(outcome(4, 6, failed=[4]))
        assert (await writer.failures(10))[1] == []
        await writer.commit()
        await writer.write(outcome(6, 9, failed=[8]))
        await writer.commit()
        mark, records = await writer.failures(2)
        assert list(records) == [failed_record(1), failed_record(3)]
        assert list((await writer.failures(2))[1]) == list(records)
        await writer.delivered(mark)
        mark, records = await writer.failures(10)
        assert list(records) == [failed_record(4), failed_record(8)]
        await writer.delivered(mark)
        assert (await writer.failures(10))[1] == []
        await writer.delivered(mark)

    async def test_failures_outlive_their_owner(self, sink: Sink) -> None:
        """The next owner finds what was not delivered, and only that; uncommitted failures do not exist."""
        first = await sink.acquire(0)
        await first.write(outcome(0, 4, failed=[0, 2]))
        await first.commit()
        mark, _ = await first.failures(1)
        await first.delivered(mark)
        await first.write(outcome(4, 6, failed=[5]))
        second = await sink.acquire(0)
        assert list((await second.failures(10))[1]) == [failed_record(2)]

    async def test_a_range_of_failures_alone(self, sink: Sink, storage: SinkStorage) -> None:
        """A commit may consist of failed records only."""
        writer = await sink.acquire(0)
        await writer.write(outcome(0, 2, failed=[0, 1]))
        assert await writer.commit() == 2
        assert storage.rows() == []
        assert [record.offset for record in (await writer.failures(10))[1]] == [0, 1]

    async def test_the_first_schema_wins(self, sink: Sink, storage: SinkStorage) -> None:
        """A schema of a name is adopted once; later ones, from other sinks too, get the first."""
        assert await sink.schema("value") is None
        wide = pa.schema([("a", pa.int64()), pa.field("b", pa.list_(pa.string()), nullable=False)])
        assert await sink.adopt_schema("value", wide) == wide
        assert await sink.adopt_schema("value", pa.schema([("a", pa.string())])) == wide
        other = storage.sink()
        await other.open(STREAM)
        assert await other.schema("value") == wide
        assert await other.adopt_schema("value", ROWS) == wide
        assert await other.adopt_schema("a/../b", ROWS) == ROWS
        await other.close()

    async def test_a_schema_keeps_what_its_fields_say(self, sink: Sink, storage: SinkStorage) -> None:
        """The mark that a text column holds JSON outlives the process: without it a later run would read text."""
        marked = pa.schema([pa.field("doc", pa.string(), metadata={b"headrace.type": b"JSON"})])
        for name in ("value", "rows"):
            await sink.adopt_schema(name, marked)
        other = storage.sink()
        await other.open(STREAM)
        for name in ("value", "rows"):
            found = await other.schema(name)
            assert found is not None
            assert found.equals(marked, check_metadata=True)
        await other.close()

    async def test_rows_of_another_schema_are_refused(self, sink: Sink, storage: SinkStorage) -> None:
        """Rows have one schema; a table with another is a bug that names the column."""
        writer = await sink.acquire(0)
        await writer.write(outcome(0, 2))
        strange = pa.table({"_partition": [0], "_offset": [2], "words": ["x"]})
        with pytest.raises(InternalError, match="words"):
            await writer.write(Outcome(2, 3, strange, Counts(handled=1)))

    @pytest.mark.parametrize(
        ("pipeline", "stream", "named"),
        [
            ("other", STREAM, "other"),
            ("p", Stream("cluster-2", "clicks", "topic-id-1", 4), "cluster-2"),
            ("p", Stream("cluster-1", "orders", "topic-id-1", 4), "orders"),
        ],
    )
    async def test_somebody_else_is_refused_by_name(
        self, storage: SinkStorage, pipeline: str, stream: Stream, named: str
    ) -> None:
        """Another pipeline, cluster or topic cannot open the sink, and is told what differs."""
        sink = storage.sink()
        await sink.open(STREAM)
        await sink.close()
        with pytest.raises(SinkMismatch, match=named):
            await storage.sink(pipeline=pipeline, on_recreated_topic="restart").open(stream)

    async def test_a_topic_made_anew_stops(self, storage: SinkStorage) -> None:
        """Another topic id under the same name is refused, by default, with both ids."""
        sink = storage.sink()
        await sink.open(STREAM)
        await sink.close()
        with pytest.raises(RecreatedTopic, match=r"topic-id-1.*topic-id-2"):
            await storage.sink().open(Stream("cluster-1", "clicks", "topic-id-2", 6))

    async def test_a_topic_made_anew_restarts_where_allowed(self, storage: SinkStorage) -> None:
        """With "restart" positions begin again, rows of both topics stay, and the partition count is renewed."""
        sink = storage.sink()
        await sink.open(STREAM)
        writer = await sink.acquire(0)
        await writer.write(outcome(0, 3))
        await writer.commit()
        await writer.release()
        await sink.close()
        again = storage.sink(on_recreated_topic="restart")
        await again.open(Stream("cluster-1", "clicks", "topic-id-2", 6))
        assert again.partitions_at_start == 6
        assert await again.position(0) is None
        writer = await again.acquire(0)
        assert writer.position is None
        await writer.write(outcome(0, 3))
        assert await writer.commit() == 3
        assert sorted(storage.rows()) == sorted(rows_of(0, 0, 3) * 2)
        await writer.release()
        await again.close()
        with pytest.raises(RecreatedTopic):
            await storage.sink().open(STREAM)
