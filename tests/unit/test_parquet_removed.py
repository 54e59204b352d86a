"""Files and directories that the user removes: by retention, between commits, during one, before a recovery."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import pytest

from connectors.parquet import OsFileSystem
from engine.errors import InternalError
from tests.unit.test_parquet_sink import Make, clock, make, outcome, public, rows_in, shard

__all__ = ["clock", "make"]  # fixtures


async def test_a_committed_file_that_its_user_removed_does_not_stop_recovery(
    make: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Retention by deleting files is allowed; a takeover says what is gone and goes on."""
    sink = make()
    writer = await shard(sink)
    await writer.write(outcome(0, {"i": [0]}))
    await writer.commit()
    name = public(tmp_path / "out")[0]
    (tmp_path / "out" / name).unlink()
    with caplog.at_level(logging.WARNING, logger="headrace.parquet"):
        assert (await sink.acquire(0)).position == 1
    assert name in caplog.text


def remove_public(root: Path) -> None:
    """All that users see of a sink."""
    for path in root.iterdir():
        if path.is_dir() and path.name != ".headrace":
            shutil.rmtree(path)


@pytest.mark.parametrize("keep", ["", "day=x"])
async def test_a_hive_directory_removed_between_commits(make: Make, tmp_path: Path, keep: str) -> None:
    """Retention of the user's, with or without the directory above, does not stop a running owner."""
    root = tmp_path / "out"
    writer = await shard(make(partition_by=["day", "hour"]))
    for start in range(3):
        hour = start if start < 2 else 0  # one that is new below what was removed, then one that is known
        await writer.write(outcome(start, {"day": ["x"], "hour": [hour], "i": [start]}))
        assert await writer.commit() == start + 1
        assert rows_in(root) == [start]
        shutil.rmtree(root / "day=x" / f"hour={hour}" if keep else root / "day=x")


@pytest.mark.parametrize("when", ["staged", "linked", "half-renamed"])
async def test_the_public_tree_removed_during_a_commit(
    make: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture, when: str
) -> None:
    """What was public is the user's to remove; what was staged becomes visible, and the owner goes on."""
    root = tmp_path / "out"
    removals = []

    def remove(phase: str) -> None:
        if phase == when and writer.position:
            removals.append(phase)
            remove_public(root)

    writer = await shard(make(partition_by=["day"], phase=remove))
    with caplog.at_level(logging.WARNING, logger="headrace.parquet"):
        for start in (0, 2, 4):
            await writer.write(outcome(start, {"day": ["x", "y"], "i": [start, start + 1]}))
            assert await writer.commit() == start + 2
        assert len(removals) == 2
        assert rows_in(root) == ([5] if when == "half-renamed" else [4, 5])
        assert caplog.text == ""


async def test_a_directory_removed_before_its_names_were_flushed(make: Make, tmp_path: Path) -> None:
    """Published files that went with their directory leave nothing to flush, and no error."""
    root = tmp_path / "out"

    class Removing(OsFileSystem):
        def rename(self, source: Path, target: Path) -> None:
            super().rename(source, target)
            if "day=y" in target.parts:
                shutil.rmtree(target.parent)

    writer = await shard(make(partition_by=["day"], filesystem=Removing()))
    for start in (0, 2):
        await writer.write(outcome(start, {"day": ["x", "y"], "i": [start, start + 1]}))
        assert await writer.commit() == start + 2
    assert rows_in(root) == [0, 2]


async def test_a_directory_removed_before_a_recovery(make: Make, tmp_path: Path) -> None:
    """A new owner, in this process or another, publishes what its predecessor committed into what is gone."""
    root = tmp_path / "out"

    def die(phase: str) -> None:
        if phase == "linked" and public(root):
            raise RuntimeError("died")

    first = make(partition_by=["day"], phase=die)
    for start, sink in ((0, first), (4, make(partition_by=["day"]))):
        writer = await shard(first)
        await writer.write(outcome(start, {"day": ["x", "y"], "i": [start, start + 1]}))
        if start == 0:
            await writer.commit()
            await writer.write(outcome(2, {"day": ["x", "y"], "i": [2, 3]}))
        with pytest.raises(RuntimeError, match="died"):
            await writer.commit()
        remove_public(root)
        writer = await shard(sink)
        assert writer.position == start + (4 if start == 0 else 2)
        assert rows_in(root) == ([2, 3] if start == 0 else [4, 5])
        assert list(root.glob(".headrace/**/staging/*")) == []


async def test_a_committed_file_is_never_dropped_unpublished(make: Make, tmp_path: Path) -> None:
    """A rename that says it succeeded and did not stops a recovery before it clears the staging directory."""
    root = tmp_path / "out"

    def die(phase: str) -> None:
        if phase == "linked":
            raise RuntimeError("died")

    class Lying(OsFileSystem):
        def rename(self, source: Path, target: Path) -> None:
            if target.suffix != ".parquet":
                super().rename(source, target)

    writer = await shard(make(phase=die))
    await writer.write(outcome(0, {"i": [0]}))
    with pytest.raises(RuntimeError, match="died"):
        await writer.commit()
    with pytest.raises(InternalError, match="was not published"):
        await shard(make(filesystem=Lying()))
    assert (await shard(make())).position == 1
    assert rows_in(root) == [0]
