"""The compaction of Parquet files under any interleaving of two compactors, the sink's owner, readers and users.

And the same protocol broken on purpose in one place, which the simulation has to notice.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from pathlib import Path

import pytest

from connectors.parquet.compaction import _Joined
from connectors.parquet.joined import CompactionLost, Entry, Record, RecordLog, record_name
from tests.forms import examples
from tests.simulation.compaction_world import SimulatedCompaction, Variant, World, random_schedule
from tests.simulation.disk import DiskFileSystem
from tests.simulation.world import Violation

SCHEDULES = examples(50, 5_000)
EXAMPLES_MAX = examples(600, 3_000)


@pytest.mark.slow
def test_no_schedule_loses_a_row_or_shows_it_twice() -> None:
    """Whatever dies or is removed, readers of the view see each row once, and in the end one file has it."""
    readers = joined = 0
    for seed in {*range(SCHEDULES), *TELLING.values()}:
        world = World(seed, Variant())
        try:
            world.run(random_schedule(seed))
        except Violation as violation:
            pytest.fail(f"schedule {seed}: {violation}")
        readers += world.seen
        joined += world.joined
    assert readers > 10 * SCHEDULES
    assert joined > SCHEDULES


class NoDirectorySync(DiskFileSystem):
    """Names are never flushed."""

    def sync_directory(self, path: Path) -> None:
        self.gate("sync_directory")


class NoFileSync(DiskFileSystem):
    """File contents are never flushed."""

    def create(self, path: Path):  # type: ignore[no-untyped-def]
        file = super().create(path)
        file.sync = lambda: self.gate("sync")  # type: ignore[method-assign]
        return file


class LinkReplaces(DiskFileSystem):
    """Records replace what has their name."""

    def link(self, source: Path, target: Path) -> None:
        self.gate("link")
        self.disk.add(target, self.disk.file(source), replace=True)


class ActiveBeforePublished(SimulatedCompaction):
    """Readers are told of outputs that have no public name yet."""

    def _publish(self, record: Record) -> Record:
        following = _activated(self, record)
        if following is record:
            return record
        self.log.link(following)
        for entry in record.entries:
            if entry.state == "committed":
                self._rename(entry)
        self._sync_directories(entry.output for entry in record.entries)
        return following


class ActiveFromTheCommitOn(SimulatedCompaction):
    """The time from which an output counts is read before it has its name."""

    def _publish(self, record: Record) -> Record:
        self._ahead_seconds = -30.0
        return super()._publish(record)


class PublishedBeforeTheCommit(SimulatedCompaction):
    """Outputs get their names before the record that says what they are."""

    def _commit(self, record: Record, joined: Sequence[_Joined]) -> Record:
        for number, one in enumerate(joined, record.last_id + 1):
            name = self._root / one.group.output(number)
            try:
                self._filesystem.rename(one.staged.path, name)
            except FileNotFoundError:
                raise CompactionLost from None
        return super()._commit(record, joined)


class InputsRemovedBeforeActive(SimulatedCompaction):
    """Inputs go as soon as their output has its name."""

    def _publish(self, record: Record) -> Record:
        for entry in record.entries:
            if entry.state == "committed" and self._rename(entry):
                for path in entry.inputs:
                    self._unlink(self._root / path)
        following = _activated(self, record)
        if following is not record:
            self.log.link(following)
        return following


class InputsRemovedBeforeRetired(SimulatedCompaction):
    """Inputs go before the record that sends old readers away, and come back with a loss of power."""

    def _retire(self, record: Record) -> Record:
        now = self._time()
        for entry in record.entries:
            if entry.state == "active" and entry.us / 1e6 <= now:
                for path in entry.inputs:
                    self._unlink(self._root / path)
        return super()._retire(record)


class ForgottenBeforeRemoved(SimulatedCompaction):
    """Compactions are forgotten while the end of their inputs is not durable."""

    def _remove(self, record: Record) -> Record:
        sync, self._sync_directories = self._sync_directories, lambda paths: None  # type: ignore[method-assign]
        try:
            return super()._remove(record)
        finally:
            self._sync_directories = sync  # type: ignore[method-assign]


class ForgottenWhenRemoved(SimulatedCompaction):
    """Compactions are forgotten at once, while readers may still have their inputs in their listing."""

    def _drop(self, record: Record) -> Record:
        gone = {entry.id for entry in record.entries if entry.removed_us}
        if gone:
            entries = tuple(entry for entry in record.entries if entry.id not in gone)
            record = record.next(self._time(), entries=entries)
            self.log.link(record)
        return record


class StagedNamesUnflushed(SimulatedCompaction):
    """The names that inputs were staged under come back, and the sink's recovery publishes them."""

    def _settled(self, joined: Sequence[_Joined]) -> list[_Joined]:
        return list(joined)


class AbortedAtOnce(SimulatedCompaction):
    """An output that cannot count is removed before anybody is told that it does not."""

    def _publish(self, record: Record) -> Record:
        for entry in record.entries:
            if entry.state == "committed" and not self._rename(entry):
                self._unlink(self.log.staging / entry.staged)
                self._unlink(self._root / entry.output)
                kept = tuple(each for each in record.entries if each.id != entry.id)
                record = dataclasses.replace(record, entries=kept)
        return super()._publish(record)


class RemovedInputsIgnored(SimulatedCompaction):
    """An output counts although its staged file is gone and nothing was published."""

    def _rename(self, entry: Entry) -> bool:
        super()._rename(entry)
        return True


class NoSecondLook(SimulatedCompaction):
    """A record that was linked under a name that had been removed counts."""

    def __init__(self, *args, **kwargs) -> None:  # type: ignore[no-untyped-def]
        super().__init__(*args, **kwargs)
        self._record_seconds_min = -1e9

        class Log(RecordLog):
            def link(self, record: Record) -> None:
                try:
                    super().link(record)
                except CompactionLost:
                    path = self.home / record_name(record.seq)
                    if self._filesystem.size(path) is None or self._filesystem.read(path) != record.dump():
                        raise

        self.log.__class__ = Log


def _activated(compaction: SimulatedCompaction, record: Record) -> Record:
    ids = {entry.id for entry in record.entries if entry.state == "committed"}
    if not ids:
        return record
    us = int((compaction._time() + compaction._ahead_seconds) * 1_000_000)
    entries = tuple(
        dataclasses.replace(entry, state="active", us=us) if entry.id in ids else entry for entry in record.entries
    )
    return record.next(compaction._time(), visible=max([record.visible, *ids]), entries=entries)


def without_watermark(record: Record, path: str, hidden: frozenset[str]) -> bool:
    """A reader keeps outputs of which its record knows nothing."""
    return path not in hidden


VARIANTS = {
    "no directory fsync": Variant(filesystem=NoDirectorySync),
    "no file fsync": Variant(filesystem=NoFileSync),
    "link replaced by rename-over": Variant(filesystem=LinkReplaces),
    "active before published": Variant(ActiveBeforePublished),
    "active from too early on": Variant(ActiveFromTheCommitOn),
    "published before the commit": Variant(PublishedBeforeTheCommit),
    "inputs removed before active": Variant(InputsRemovedBeforeActive),
    "inputs removed before retired": Variant(InputsRemovedBeforeRetired),
    "no time between active and retired": Variant(retired_seconds=5.0),
    "forgotten before the end is durable": Variant(ForgottenBeforeRemoved),
    "forgotten as soon as removed": Variant(ForgottenWhenRemoved),
    "staged names of inputs unflushed": Variant(StagedNamesUnflushed),
    "aborted without a record": Variant(AbortedAtOnce),
    "active although it is gone": Variant(RemovedInputsIgnored),
    "no second look at the records": Variant(NoSecondLook),
    "readers without the watermark": Variant(sees=without_watermark),
}

#: Of variants that few schedules tell from the protocol, one that does; it is tried first.
TELLING = {
    "link replaced by rename-over": 1021,
    "forgotten as soon as removed": 616,
    "staged names of inputs unflushed": 97,
    "aborted without a record": 235,
    "no second look at the records": 645,
    "readers without the watermark": 145,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", VARIANTS)
def test_a_compaction_broken_in_one_place_is_caught(name: str) -> None:
    """Each variant that leaves out one rule violates an invariant within some hundred schedules."""
    for seed in itertools.chain([TELLING.get(name, 0)], range(EXAMPLES_MAX)):
        try:
            World(seed, VARIANTS[name]).run(random_schedule(seed))
        except Violation as violation:
            print(f"{name}: schedule {seed}: {violation}")
            return
    pytest.fail(f"{EXAMPLES_MAX} schedules did not notice: {name}")
