"""What every sink must do with the state of a shard: subclass `StateSuite` and give it a ``storage`` fixture.

As `tests.conformance.sink_suite`, for sinks that take no rows too: then ``takes_rows`` is false.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator

import pytest

from engine.batch import Stream
from engine.errors import ShardLost
from engine.protocols import STATE_BYTES_MAX, Counts, Outcome, ShardWriter, Sink
from tests.conformance.sink_suite import STREAM, SinkStorage, failed_record, outcome

#: Large enough for a file of its own, where a sink has such.
LARGE = b'{"counts": "' + bytes(range(32, 127)).replace(b'"', b"") * 60 + b'"}'


def state_alone(at: int, state: bytes | None) -> Outcome:
    return Outcome(at, at, None, Counts(), state=state)


class StateSuite:
    """The tests. Each opens what it needs through ``storage``."""

    takes_rows = True

    @pytest.fixture
    async def sink(self, storage: SinkStorage) -> AsyncIterator[Sink]:
        sink = storage.sink()
        await sink.open(STREAM)
        yield sink
        await sink.close()

    def outcome(self, start: int, end: int, state: bytes | None, *, partition: int = 0) -> Outcome:
        made = outcome(start, end, partition=partition, rows=self.takes_rows)
        return Outcome(start, end, made.rows, made.counts, state=state)

    async def commit(self, writer: ShardWriter, end: int, state: bytes | None) -> None:
        await writer.write(self.outcome(writer.position or 0, end, state))
        assert await writer.commit() == end

    async def test_a_new_shard_has_no_state(self, sink: Sink) -> None:
        """Neither at first nor after commits that give none."""
        writer = await sink.acquire(0)
        assert writer.state == b""
        await self.commit(writer, 3, None)
        assert writer.state == b""
        assert (await sink.acquire(0)).state == b""

    async def test_state_and_position_move_together(self, sink: Sink) -> None:
        """A state that is written shows to nobody before the commit, and to everybody after it."""
        writer = await sink.acquire(0)
        await self.commit(writer, 2, b"first")
        await writer.write(self.outcome(2, 5, b"second"))
        assert writer.state == b"first"
        assert writer.pending_bytes >= len(b"second")
        assert await writer.commit() == 5
        assert writer.state == b"second"
        assert writer.pending_bytes == 0
        taken = await sink.acquire(0)
        assert (taken.position, taken.state) == (5, b"second")

    @pytest.mark.parametrize("state", [b"{}", LARGE])
    async def test_none_leaves_the_state_and_empty_clears_it(self, sink: Sink, state: bytes) -> None:
        """Commits without a state keep the last one, through takeovers; an empty one is none."""
        writer = await sink.acquire(0)
        await self.commit(writer, 2, state)
        for end in range(3, 9):
            await self.commit(writer, end, None)
            assert writer.state == state
        writer = await sink.acquire(0)
        assert (writer.position, writer.state) == (8, state)
        await self.commit(writer, 9, b"")
        assert writer.state == b""
        for end in range(10, 16):
            await self.commit(writer, end, None)
        writer = await sink.acquire(0)
        assert (writer.position, writer.state) == (15, b"")
        await self.commit(writer, 16, state)
        assert (await sink.acquire(0)).state == state

    async def test_an_outcome_without_offsets_changes_the_state_alone(self, sink: Sink) -> None:
        """Closing a window moves no position, and is a commit."""
        writer = await sink.acquire(0)
        await self.commit(writer, 4, b"open")
        for state in (b"closed", LARGE, b""):
            await writer.write(state_alone(4, state))
            assert writer.due_at() is not None
            assert await writer.commit() == 4
            assert writer.state == state
            assert writer.due_at() is None
            writer = await sink.acquire(0)
            assert (writer.position, writer.state) == (4, state)
            assert await sink.position(0) == 4
        await self.commit(writer, 6, None)
        assert (await sink.acquire(0)).position == 6

    async def test_a_state_may_be_the_first_that_is_committed(self, sink: Sink) -> None:
        """It comes with the position at which the shard begins."""
        writer = await sink.acquire(0)
        await writer.write(state_alone(42, b"begun"))
        assert await writer.commit() == 42
        taken = await sink.acquire(0)
        assert (taken.position, taken.state) == (42, b"begun")

    @pytest.mark.parametrize(
        ("states", "expected"),
        [([b"1", b"2", None], b"2"), ([b"1", b"", None], b""), ([b"", LARGE], LARGE), ([LARGE, b"1", None], b"1")],
    )
    async def test_the_last_state_of_a_commit_wins(
        self, sink: Sink, states: list[bytes | None], expected: bytes
    ) -> None:
        """Of several outcomes in one commit, with offsets and without; those that give none do not count."""
        writer = await sink.acquire(0)
        await self.commit(writer, 2, b"before")
        for number, state in enumerate(states):
            await writer.write(state_alone(2 + number, state))
            await writer.write(self.outcome(2 + number, 3 + number, state))
        assert await writer.commit() == 2 + len(states)
        assert writer.state == expected
        taken = await sink.acquire(0)
        assert (taken.position, taken.state) == (2 + len(states), expected)

    async def test_a_megabyte_is_kept_whole(self, sink: Sink, storage: SinkStorage) -> None:
        """The largest state there may be, several in a row, found again by another sink."""
        rng = random.Random(1)
        writer = await sink.acquire(0)
        for end in (1, 2, 3):
            state = rng.randbytes(STATE_BYTES_MAX)
            await self.commit(writer, end, state)
            assert writer.state == state
        await writer.release()
        other = storage.sink()
        await other.open(STREAM)
        taken = await other.acquire(0)
        assert (taken.position, taken.state == state) == (3, True)
        await other.close()

    async def test_states_of_shards_are_apart(self, sink: Sink) -> None:
        """Each shard has its own, committed on its own."""
        first, second = await sink.acquire(0), await sink.acquire(1)
        await first.write(self.outcome(0, 2, b"zero"))
        await second.write(self.outcome(0, 3, LARGE, partition=1))
        await first.commit()
        assert (first.state, second.state) == (b"zero", b"")
        await second.commit()
        assert ((await sink.acquire(0)).state, (await sink.acquire(1)).state) == (b"zero", LARGE)

    @pytest.mark.parametrize("state", [b"{}", LARGE])
    async def test_state_outlives_the_sink(self, storage: SinkStorage, state: bytes) -> None:
        """A sink that is closed and opened again has it, however many commits and takeovers lie between."""
        for run in range(3):
            sink = storage.sink()
            await sink.open(STREAM)
            writer = await sink.acquire(2)
            assert (writer.position, writer.state) == ((20 * run, state) if run else (None, b""))
            start = writer.position or 0
            if not run:
                await writer.write(state_alone(0, state))
            for offset in range(start, start + 20):
                await writer.write(self.outcome(offset, offset + 1, None, partition=2))
                await writer.commit()
            await writer.release()
            await sink.close()

    async def test_what_is_lost_between_write_and_commit_is_lost_whole(
        self, sink: Sink, storage: SinkStorage
    ) -> None:
        """An owner that dies with a state written leaves the old state with the old position, never a mix."""
        first = await sink.acquire(0)
        await self.commit(first, 4, b"old")
        await first.write(self.outcome(4, 9, LARGE))
        await first.write(state_alone(9, b"newer"))
        other = storage.sink()
        await other.open(STREAM)
        second = await other.acquire(0)
        assert (second.position, second.state) == (4, b"old")
        await second.release()
        third = await other.acquire(0)
        assert (third.position, third.state) == (4, b"old")
        await other.close()

    @pytest.mark.parametrize("state", [b"theirs", LARGE, b""])
    async def test_a_zombie_cannot_move_the_state(self, sink: Sink, state: bytes) -> None:
        """An owner that lost its shard changes nothing, with an outcome of offsets or of a state alone."""
        for start, end in ((4, 6), (4, 4)):
            zombie = await sink.acquire(0)
            if zombie.position is None:
                await self.commit(zombie, 4, b"old")
            await zombie.write(self.outcome(start, end, state) if start < end else state_alone(start, state))
            owner = await sink.acquire(0)
            assert (owner.position, owner.state) == (4, b"old")
            with pytest.raises(ShardLost):
                await zombie.commit()
            await zombie.release()
            assert owner.state == b"old"
        await self.commit(owner, 5, b"ours")
        taken = await sink.acquire(0)
        assert (taken.position, taken.state) == (5, b"ours")

    async def test_a_topic_made_anew_begins_without_state(self, storage: SinkStorage) -> None:
        """The state belongs to the topic that it was made of."""
        sink = storage.sink()
        await sink.open(STREAM)
        await self.commit(await sink.acquire(0), 3, LARGE)
        await sink.close()
        again = storage.sink(on_recreated_topic="restart")
        await again.open(Stream("cluster-1", "clicks", "topic-id-2", 6))
        writer = await again.acquire(0)
        assert (writer.position, writer.state) == (None, b"")
        await again.close()

    async def test_owners_that_race_hand_the_state_on(self, sink: Sink) -> None:
        """Whoever acquires the shard finds the state of exactly the position that it finds."""

        async def fight(number: int) -> None:
            while True:
                writer = None
                try:
                    writer = await sink.acquire(0)
                    while (position := writer.position or 0) < 40:
                        if position:
                            assert writer.state.split(b" ")[0] == b"%d" % position
                        end = position + 1 + number
                        padding = b"x" * (5000 if end % 3 else 0)
                        await writer.write(self.outcome(position, end, b"%d %s" % (end, padding)))
                        await writer.commit()
                    return
                except ShardLost:
                    if writer is not None:
                        await writer.release()
                    await asyncio.sleep(0)

        async with asyncio.timeout(60):
            await asyncio.gather(*(fight(number) for number in range(3)))
        taken = await sink.acquire(0)
        assert taken.state.split(b" ")[0] == b"%d" % (taken.position or 0)

    async def test_state_follows_a_model(self, sink: Sink) -> None:
        """Sixty random writes, commits and takeovers give what a few lines of Python give."""
        rng = random.Random(7)
        writer = await sink.acquire(0)
        committed: tuple[int | None, bytes] = (None, b"")
        pending: tuple[int | None, bytes] = committed
        for _ in range(60):
            step = rng.choice(["write", "write", "state", "commit", "commit", "acquire"])
            state = rng.choice([None, None, b"", b"small %d" % rng.randrange(9), LARGE + b"%d" % rng.randrange(9)])
            at = pending[0] or 0
            end = at + rng.randint(1, 3) if step == "write" else at
            if step in ("write", "state"):
                await writer.write(self.outcome(at, end, state) if step == "write" else state_alone(at, state))
                pending = (end, pending[1] if state is None else state)
            elif step == "acquire":
                writer, pending = await sink.acquire(0), committed
            elif pending[0] is not None:
                assert await writer.commit() == pending[0]
                committed = pending
            assert (writer.position, writer.state) == committed
        assert (await sink.acquire(0)).state == committed[1]

    async def test_failures_come_with_the_state(self, sink: Sink) -> None:
        """One commit may hold both; delivering the failures leaves the state."""
        writer = await sink.acquire(0)
        records = [failed_record(0), failed_record(1)]
        await writer.write(Outcome(0, 2, None, Counts(failed=2), records, state=b"kept"))
        await writer.commit()
        mark, found = await writer.failures(10)
        assert list(found) == records
        await writer.delivered(mark)
        assert (await writer.failures(10))[1] == []
        taken = await sink.acquire(0)
        assert (taken.position, taken.state) == (2, b"kept")
