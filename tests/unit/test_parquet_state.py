"""States of shards in a Parquet directory: where they lie, what earlier versions left, and damaged ones."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from connectors.parquet import OsFileSystem, ParquetSink
from connectors.parquet.failures import dump_failures, load_failures
from connectors.parquet.manifest import FORMAT, FORMAT_WITH_STATE
from connectors.parquet.state import INLINE_BYTES_MAX
from engine.errors import InternalError, SinkUnavailable
from engine.protocols import Counts, FailedRecord, Outcome
from tests.unit.test_parquet_sink import STREAM, Make, clock, make, outcome, public, readers, rows_in, shard

__all__ = ["clock", "make"]  # fixtures

LARGE = b"x" * (INLINE_BYTES_MAX + 1)


def given(start: int, end: int, state: bytes | None) -> Outcome:
    return Outcome(start, end, None, Counts(handled=end - start), state=state)


def staged(root: Path) -> list[bytes]:
    return [path.read_bytes() for path in root.glob(".headrace/**/staging/*")]


def log_of(root: Path) -> Path:
    return next((root / ".headrace").glob("topic-*/0/log"))


async def commit(sink: ParquetSink, *outcomes: Outcome) -> None:
    writer = await sink.acquire(0)
    for each in outcomes:
        await writer.write(each)
        await writer.commit()


async def test_a_large_state_is_a_file_and_a_small_one_is_not(make: Make, tmp_path: Path) -> None:
    """There is one file at most, and no manifest or checkpoint is much longer for the state that it has."""
    root = tmp_path / "out"
    sink = make(checkpoint_every=4)
    writer = await shard(sink)
    for start, state in enumerate(
        [LARGE, LARGE * 200, b"y" * INLINE_BYTES_MAX, LARGE, None, b"", LARGE, None, None]
    ):
        await writer.write(given(start, start + 1, state))
        await writer.commit()
        assert staged(root) == ([writer.state] if len(writer.state) > INLINE_BYTES_MAX else [])
        assert max(path.stat().st_size for path in log_of(root).iterdir()) < 2 * INLINE_BYTES_MAX
    assert writer.state == LARGE
    for _ in range(9):  # takeovers alone make checkpoints too
        writer = await sink.acquire(0)
        assert writer.state == LARGE
    assert staged(root) == [LARGE]


async def test_recovery_drops_states_that_nothing_names(make: Make, tmp_path: Path) -> None:
    """The file of a commit that was not made, and of one whose owner died before it removed the last one's."""

    class Dying(OsFileSystem):
        def unlink(self, path: Path) -> None:
            if path.name.endswith(".state"):
                raise OSError("died")
            super().unlink(path)

        def link(self, source: Path, target: Path) -> None:
            if is_dying:
                raise OSError("died")
            super().link(source, target)

    root, is_dying = tmp_path / "out", False
    writer = await shard(make(filesystem=Dying()))
    await writer.write(given(0, 1, LARGE))
    await writer.commit()
    await writer.write(given(1, 2, LARGE + b"2"))
    with pytest.raises(SinkUnavailable):
        await writer.commit()
    assert sorted(staged(root)) == [LARGE, LARGE + b"2"]
    writer = await shard(make())
    assert (writer.position, writer.state) == (2, LARGE + b"2")
    assert staged(root) == [LARGE + b"2"]
    writer = await shard(make(filesystem=Dying()))
    is_dying = True
    await writer.write(given(2, 3, LARGE + b"3"))
    with pytest.raises(SinkUnavailable):
        await writer.commit()
    writer = await shard(make())
    assert (writer.position, writer.state) == (2, LARGE + b"2")
    assert staged(root) == [LARGE + b"2"]


async def test_no_reader_finds_a_state(make: Make, tmp_path: Path) -> None:
    """The usual globs give the rows, with the file of a state in the directory and one being staged."""
    root = tmp_path / "out"
    seen: list[set[str]] = []

    def look(phase: str) -> None:
        if phase == "linked":
            seen.append({path.suffix for path in root.rglob("*.state")})

    writer = await shard(make(phase=look))
    for start in (0, 2):
        rows = outcome(start, {"i": [start, start + 1]})
        await writer.write(Outcome(start, start + 2, rows.rows, rows.counts, state=LARGE))
        await writer.commit()
    assert seen == [{".state"}] * 2
    assert len(public(root)) == 2
    for name, read in readers(root).items():
        assert sorted(read()) == [0, 1, 2, 3], name
    assert rows_in(root) == [0, 1, 2, 3]


async def test_only_what_has_a_state_is_of_the_later_format(make: Make, tmp_path: Path) -> None:
    """An earlier version goes on with a directory that has no states, and refuses one that has."""
    root = tmp_path / "out"
    sink = make(checkpoint_every=1)
    await sink.open(STREAM)
    for state, expected in ((None, FORMAT), (b"", FORMAT), (b"{}", FORMAT_WITH_STATE), (b"", FORMAT)):
        position = await sink.position(0) or 0
        await commit(sink, given(position, position + 1, state))
        [path] = log_of(root).iterdir()
        found = json.loads(path.read_bytes())
        assert (found["format"], "state" in found) == (expected, expected == FORMAT_WITH_STATE)


async def test_a_log_of_an_earlier_version_has_no_state(make: Make, tmp_path: Path) -> None:
    """Manifests and checkpoints without the member are those of shards that never had one."""
    sink = make(checkpoint_every=3)
    await shard(sink)
    await commit(sink, *(given(start, start + 1, None) for start in range(5)))
    for path in log_of(tmp_path / "out").iterdir():
        assert "state" not in json.loads(path.read_bytes())
    writer = await sink.acquire(0)
    assert (writer.position, writer.state) == (5, b"")


@pytest.mark.parametrize(
    ("state", "data", "message"),
    [
        (LARGE, None, "holds the state of clicks-0 and is not there"),
        (LARGE, LARGE[:-1] + b"y", "is damaged"),
        (LARGE, LARGE[:100], "it has 100 bytes"),
        (LARGE, b"", "is damaged"),
    ],
)
async def test_a_state_that_is_gone_or_damaged_stops_the_shard(
    make: Make, tmp_path: Path, state: bytes, data: bytes | None, message: str
) -> None:
    """Going on with another state would make windows wrong; the file is named and nothing is removed."""
    sink = make()
    await shard(sink)
    await commit(sink, given(0, 1, state))
    [path] = (tmp_path / "out").glob(".headrace/**/*.state")
    if data is None:
        path.unlink()
    else:
        path.write_bytes(data)
    for _ in range(2):
        with pytest.raises(InternalError, match=message) as raised:
            await sink.acquire(0)
        assert path.name in raised.value.message
        assert "Restore" in (raised.value.hint or "")
    path.write_bytes(state)
    assert (await sink.acquire(0)).state == state


async def test_a_state_inside_a_manifest_is_checked_too(make: Make, tmp_path: Path) -> None:
    """An edited manifest is found by the checksum."""
    sink = make()
    await shard(sink)
    await commit(sink, given(0, 1, b"abc"))
    path = max(log_of(tmp_path / "out").iterdir())
    manifest = json.loads(path.read_bytes())
    for inline in ("YWJk", "YWJjYQ==", "no base64"):
        manifest["state"]["inline"] = inline
        path.write_text(json.dumps(manifest))
        with pytest.raises(InternalError, match="state of the shard in its manifest is damaged"):
            await sink.acquire(0)


def test_failures_of_an_earlier_version_have_no_request() -> None:
    """Their lines lack the member; those that never reached the function are written without it still."""
    records = [
        FailedRecord(0, n, 1, b"k", None, (), "why", "E", 1, request) for n, request in enumerate(("r", None))
    ]
    lines = dump_failures(records).splitlines(keepends=True)
    assert load_failures(b"".join(lines), Path("f")) == records
    assert ["request_id" in json.loads(line) for line in lines] == [True, False]
