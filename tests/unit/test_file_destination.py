"""The on-failure file: whole lines, whatever crashed before."""

from __future__ import annotations

import asyncio
import errno
import json
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from connectors.file_destination import FileDestination, read
from engine.batch import Stream
from engine.errors import DestinationUnavailable, UserError
from engine.protocols import FailedRecord
from functions.failures import Documents, from_document

STREAM = Stream("cluster", "clicks", "topic-id", 4)


def record(offset: int, value: bytes | None = b"{") -> FailedRecord:
    return FailedRecord(
        partition=1,
        offset=offset,
        timestamp=1_700_000_000_000,
        key=None,
        value=value,
        headers=(("trace", b"\xff\x00"), ("empty", None)),
        reason="not JSON: line\nend",
        error_type="MalformedJson",
        attempts=0,
    )


def destination(path: Path) -> FileDestination:
    documents = Documents("p", "kinesis", "arn")
    return FileDestination(path, pipeline="p", stream_of=lambda: STREAM, document=documents)


def offsets(path: Path) -> list[int]:
    return [from_document(entry).record.offset for entry in lines(path)]


def lines(path: Path) -> list[dict[str, object]]:
    data = path.read_bytes()
    assert data == b"" or data.endswith(b"\n")
    return [json.loads(line) for line in data.splitlines()]


async def test_records_come_back_as_they_went(tmp_path: Path) -> None:
    """A delivered record is read back equal, with its identity beside it, in a directory that did not exist."""
    path = tmp_path / "a" / "b" / "failed.jsonl"
    target = destination(path)
    await target.open()
    sent = [record(1), record(2, None), record(3, b""), record(4, bytes(range(256)))]
    await target.deliver(sent)
    await target.deliver([record(5)])
    await target.close()
    found = [from_document(entry) for entry in lines(path)]
    assert [failure.record for failure in found] == [*sent, record(5)]
    assert {(failure.identity.pipeline, failure.identity.topic_id) for failure in found} == {("p", "topic-id")}


async def test_open_and_close_are_idempotent(tmp_path: Path) -> None:
    """Opening and closing twice changes nothing, and a delivery after a close still arrives."""
    target = destination(tmp_path / "f.jsonl")
    for _ in range(2):
        await target.open()
    for _ in range(2):
        await target.close()
    await target.deliver([record(1)])
    assert len(lines(tmp_path / "f.jsonl")) == 1


@given(cut=st.integers(1, 2_000))
@settings(deadline=None, max_examples=40)
async def test_a_torn_line_is_cut_off(tmp_path_factory: pytest.TempPathFactory, cut: int) -> None:
    """Wherever a crash tears the last line, all lines are whole after the next delivery, and none is lost."""
    path = tmp_path_factory.mktemp("torn") / "f.jsonl"
    target = destination(path)
    await target.deliver([record(1)])
    whole = path.stat().st_size
    await target.deliver([record(2, b"x" * 1_000)])
    size = path.stat().st_size
    os.truncate(path, max(whole, size - cut))
    left = [1, 2] if cut == 1 else [1]  # only the end of the line was missing
    await target.deliver([record(3)])
    assert offsets(path) == [*left, 3]


async def test_a_torn_line_longer_than_a_block(tmp_path: Path) -> None:
    """A torn line of several blocks is found back to its beginning."""
    path = tmp_path / "f.jsonl"
    target = destination(path)
    await target.deliver([record(1)])
    with path.open("ab") as file:
        file.write(b'{"value": "' + b"A" * 300_000)
    await target.deliver([record(2)])
    assert offsets(path) == [1, 2]


async def test_a_file_of_somebody_else_keeps_its_last_line(tmp_path: Path) -> None:
    """A last line that is whole JSON but for its end is kept, and ended."""
    path = tmp_path / "f.jsonl"
    path.write_bytes(b'{"note": "mine"}')
    await destination(path).deliver([record(1)])
    assert lines(path)[0] == {"note": "mine"}
    assert len(lines(path)) == 2


async def test_a_path_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    """A directory in the way is a DestinationUnavailable that names the path, when opened and when delivered to."""
    (tmp_path / "file").write_bytes(b"")
    for path in (tmp_path, tmp_path / "file" / "f.jsonl"):
        with pytest.raises(DestinationUnavailable, match=str(path)):
            await destination(path).open()
        with pytest.raises(DestinationUnavailable, match=str(path)):
            await destination(path).deliver([record(1)])


async def test_a_full_disk_leaves_no_half_delivery(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the disk fills up within a delivery, nothing of it stays, and the next one succeeds."""
    path = tmp_path / "f.jsonl"
    target = destination(path)
    await target.deliver([record(1)])
    real = os.write
    left = 100

    def full(file: int, data: memoryview) -> int:
        nonlocal left
        if left == 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        written = real(file, bytes(data)[:left])
        left -= written
        return written

    monkeypatch.setattr("connectors.file_destination.os.write", full)
    with pytest.raises(DestinationUnavailable, match="full"):
        await target.deliver([record(2), record(3)])
    monkeypatch.undo()
    assert offsets(path) == [1]
    await target.deliver([record(2), record(3)])
    assert offsets(path) == [1, 2, 3]


async def test_two_writers_share_a_file(tmp_path: Path) -> None:
    """Two destinations that append to one file at the same time lose and tear nothing."""
    path = tmp_path / "f.jsonl"
    targets = [destination(path), destination(path)]
    async with asyncio.TaskGroup() as tasks:
        for index, target in enumerate(targets):
            for offset in range(20):
                tasks.create_task(target.deliver([record(index * 100 + offset)]))
    assert sorted(offsets(path)) == [*range(20), *range(100, 120)]


async def test_documents_are_those_of_the_sinks_when_nothing_is_said(tmp_path: Path) -> None:
    """A destination that is given no maker of documents writes the plain form, which is read as well."""
    path = tmp_path / "f.jsonl"
    await FileDestination(path, pipeline="p", stream_of=lambda: STREAM).deliver([record(1)])
    [entry] = lines(path)
    assert entry["pipeline"] == "p"
    assert from_document(entry).record == record(1)


def test_whole_lines_are_read_some_at_a_time(tmp_path: Path) -> None:
    """With how many bytes are done; a torn last line is left out, one that only lacks its end is not."""
    path = tmp_path / "f.jsonl"
    assert list(read(path)) == []
    line = b"[" + b"1," * 300_000 + b"1]\n"
    path.write_bytes(line * 4)
    found = list(read(path))
    assert len(found) > 1
    assert [each for some, _, _ in found for each in some] == [line] * 4
    assert [done for _, done, _ in found] == sorted({done for _, done, _ in found})
    assert found[-1][1:] == (len(line) * 4, len(line) * 4)
    path.write_bytes(b"[1]\n[2")
    assert [some for some, _, _ in read(path)] == [[b"[1]\n"]]
    path.write_bytes(b"[1]\n[2]")
    assert [some for some, _, _ in read(path)] == [[b"[1]\n", b"[2]"]]
    with pytest.raises(UserError, match="cannot be read"):
        list(read(tmp_path))
