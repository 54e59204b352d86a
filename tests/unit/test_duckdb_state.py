"""States of shards in a DuckDB file: what the tables hold, files of earlier versions, and two owners."""

from __future__ import annotations

from pathlib import Path

import duckdb
import pytest

from connectors.duckdb import catalog
from engine.errors import ShardLost
from engine.protocols import Counts, FailedRecord, Outcome
from tests.unit.test_duckdb_sink import committed, opened, outcome, read

OLD_FAILURES = """
CREATE TABLE headrace.failures (
    pipeline VARCHAR NOT NULL, cluster_id VARCHAR NOT NULL, topic VARCHAR NOT NULL, topic_id VARCHAR NOT NULL,
    "partition" INTEGER NOT NULL, "offset" BIGINT NOT NULL, "timestamp" BIGINT NOT NULL, "key" BLOB, "value" BLOB,
    headers STRUCT("key" VARCHAR, "value" BLOB)[], reason VARCHAR, error_type VARCHAR, attempts INTEGER,
    failed_at TIMESTAMP NOT NULL, delivered BOOLEAN NOT NULL
)
"""


def given(start: int, end: int, state: bytes | None) -> Outcome:
    return Outcome(start, end, None, Counts(handled=end - start), state=state)


def failure(offset: int, request_id: str | None) -> FailedRecord:
    return FailedRecord(0, offset, 5, b"k", None, (), "no good", "ValueError", 3, request_id)


def size_of(directory: Path) -> int:
    return sum(each.stat().st_size for each in directory.iterdir())


async def test_a_state_is_one_row_that_goes_when_it_is_cleared(tmp_path: Path) -> None:
    """However often it is replaced there is one row for each shard that has a state, and none for others."""
    path = tmp_path / "out.db"
    async with opened(path) as sink:
        first, second = await sink.acquire(0), await sink.acquire(1)
        for start in range(5):
            await committed(first, given(start, start + 1, b"%d" % start))
            await committed(second, given(start, start + 1, b"x"))
        await committed(second, given(5, 5, b""))
        await committed(await sink.acquire(2), given(0, 3, None))
    assert read(path, 'SELECT "partition", state FROM headrace.states') == [(0, b"4")]


async def test_a_file_says_that_it_has_states_once_it_does(tmp_path: Path) -> None:
    """An earlier version would move positions away from their states; it can use a file that has none."""
    path = tmp_path / "out.db"
    versions = "SELECT max(version) FROM headrace.format"
    async with opened(path) as sink:
        await committed(await sink.acquire(0), outcome(0, 3), given(3, 3, b""))
    assert read(path, versions) == [(catalog.FORMAT_VERSION,)]
    async with opened(path) as sink:
        await committed(await sink.acquire(0), given(3, 3, b"{}"))
    assert read(path, versions) == [(catalog.FORMAT_VERSION_WITH_STATES,)]
    async with opened(path) as sink:
        assert (await sink.acquire(0)).state == b"{}"


async def test_a_file_of_an_earlier_version_goes_on(tmp_path: Path) -> None:
    """Without the table of states, and failures without their request, which is then not known."""
    path = tmp_path / "out.db"
    async with opened(path) as sink:
        failures = [failure(1, "request-1")]
        await committed(await sink.acquire(0), outcome(0, 3, failures=failures))
    with duckdb.connect(path) as connection:
        connection.execute("ALTER TABLE headrace.failures RENAME TO newer")
        connection.execute(OLD_FAILURES)
        connection.execute("INSERT INTO headrace.failures SELECT * EXCLUDE (request_id) FROM headrace.newer")
        connection.execute("DROP TABLE headrace.newer")
        connection.execute("DROP TABLE headrace.states")
        shard_key = catalog.Shard("p", "cluster", "clicks", "id-1", 0)
        assert catalog.undelivered(connection, shard_key, 10) == [failure(1, None)]
    async with opened(path) as sink:
        shard = await sink.acquire(0)
        assert (shard.position, shard.state) == (3, b"")
        later = Outcome(3, 5, None, Counts(failed=2), [failure(3, "request-3"), failure(4, None)], b"{}")
        await committed(shard, later)
        _, found = await shard.failures(10)
        assert list(found) == [failure(1, None), failure(3, "request-3"), failure(4, None)]
        assert shard.state == b"{}"


async def test_a_state_of_a_transaction_that_is_refused_is_not_there(tmp_path: Path) -> None:
    """Of two owners in two connections of one process the one that loses the position loses its state with it."""
    path = tmp_path / "out.db"
    async with opened(path) as sink:
        shard = await sink.acquire(0)
        await committed(shard, given(0, 2, b"old"))
        rival = await sink.database.run(lambda connection: connection.cursor())
        rival.execute("BEGIN")
        rival.execute("UPDATE headrace.positions SET owner = 'rival' WHERE \"partition\" = 0 RETURNING owner")
        with pytest.raises(ShardLost):
            await committed(shard, given(2, 4, b"new"))
        rival.execute("COMMIT")
        rival.close()
        again = await sink.acquire(0)
        assert (again.position, again.state) == (2, b"old")


async def test_a_state_counts_as_memory_until_it_is_committed(tmp_path: Path) -> None:
    """A megabyte that waits is a megabyte; what it replaces in the same commit does not count."""
    async with opened(tmp_path / "out.db", commit_bytes_max=1_000_000) as sink:
        shard = await sink.acquire(0)
        await shard.write(given(0, 1, b"x" * 600_000))
        await shard.write(given(1, 2, b"x" * 700_000))
        assert shard.pending_bytes == 700_000
        await shard.write(given(2, 3, b"x" * 1_000_000))
        assert shard.due_at() is not None
        assert shard.due_at() <= sink.clock.monotonic()  # type: ignore[operator]
        await shard.commit()
        assert shard.pending_bytes == 0


@pytest.mark.slow
async def test_states_do_not_make_the_file_grow(tmp_path: Path) -> None:
    """Large states that replace each other leave a file of a few, log included."""
    path = tmp_path / "out.db"
    sizes = []
    async with opened(path) as sink:
        shard = await sink.acquire(0)
        for start in range(120):
            await committed(shard, given(start, start + 1, b"%06d " % start * 100_000))
            sizes.append(size_of(tmp_path))
    assert max(sizes) < 100 * 1_000_000
    assert max(sizes[60:]) <= 1.5 * max(sizes[:60])
