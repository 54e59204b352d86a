"""The compaction of small files: what is done in which order, so that no row is lost or seen twice.

1. The output is staged, flushed, and the names that its inputs have are flushed too, here and in the staging
   directories that they came from: none of them comes back there, to be published once more.
2. A record (`connectors.parquet.joined`) with the entry ``committed`` is linked: that is the commit.
3. The output gets its public name, durably. Readers of the view leave it out.
4. A record makes it ``active`` from a time on that lies a little ahead: the view reads it instead of its inputs.
5. After ``retired_seconds_min``, when nobody has the view open or `READ_SECONDS_MAX` later, a record makes it
   ``retired``; then the inputs are removed, durably, and a record says that they are.
6. After as long again the entry goes. Nobody who has listed the inputs reads any more.

Each record is linked under a name that is never replaced, and nothing is renamed or removed that the newest durable
record does not say may be: of two compactors one goes on, and whoever comes after a crash goes on from the record.
Public files are their users' to remove at any time. Where an input is gone before its output is active, the
compaction is given up: ``aborted``, whereupon the output is removed, then the entry.

Plain globs see an output from 3 on and its inputs until 5: for that while they see its rows twice, and never miss
one. Not here: which files are joined (`connectors.parquet.plan`), when (`connectors.parquet.compactor`), how
(`connectors.parquet.join`). All of it blocks.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from connectors.parquet.files import Directories, StagedFile
from connectors.parquet.filesystem import FileSystem
from connectors.parquet.join import Unjoinable
from connectors.parquet.joined import Entry, Record, RecordLog
from connectors.parquet.layout import HIDDEN
from connectors.parquet.log import read_chain
from connectors.parquet.plan import Group

logger = logging.getLogger("headrace.parquet")

#: How far ahead of the clock an output becomes active: clocks may be set back by as much, or differ by it.
AHEAD_SECONDS = 2.0

#: How long a record stays after it was superseded: readers list the records first, then read them.
RECORD_SECONDS_MIN = 30.0

#: Superseded records are removed many at a time: each removal is a moment at which a query may fail that has listed
#: what goes and has not opened it yet.
RECORDS_MIN = 64

#: While somebody has the view open its files stay for so much longer, and are looked at again so often.
READ_SECONDS_MAX = 300.0
LOOK_SECONDS = 5.0

#: Inputs of compactions that have not gone by: readers read their names with every query.
INPUTS_MAX = 20_000


class Joiner(Protocol):
    """Writes the rows of ``inputs`` to ``output`` in order, and counts them (`connectors.parquet.join`)."""

    def __call__(self, inputs: Sequence[Path], output: StagedFile, stopping: Callable[[], None]) -> int: ...


def _nothing() -> None:
    return None


@dataclass(frozen=True, slots=True)
class _Joined:
    group: Group
    staged: StagedFile
    rows: int


class Compaction:
    """The compactions of one sink by one process. After any exception `advance` goes on from the record.

    ``time`` gives seconds since the epoch; ``phase`` hears the name of each step.
    """

    def __init__(
        self,
        filesystem: FileSystem,
        root: Path,
        joiner: Joiner,
        *,
        time: Callable[[], float],
        retired_seconds_min: float,
        ahead_seconds: float = AHEAD_SECONDS,
        record_seconds_min: float = RECORD_SECONDS_MIN,
        records_min: int = RECORDS_MIN,
        is_read: Callable[[], bool] = lambda: False,
        phase: Callable[[str], None] | None = None,
    ) -> None:
        self._filesystem = filesystem
        self._root = root
        self._joiner = joiner
        self._time = time
        self._retired_seconds_min = retired_seconds_min
        self._ahead_seconds = ahead_seconds
        self._record_seconds_min = record_seconds_min
        self._records_min = records_min
        self._is_read = is_read
        self._phase = phase
        self.log = RecordLog(filesystem, root, Directories(filesystem, root))
        self._staged = 0
        #: Paths below the root that were found to be no file to join; not to be given to `join` again.
        self.unjoinable: set[str] = set()

    def advance(self) -> Record:
        """Take every compaction as far as it may go by now, and clear up; what holds then.

        Raises CompactionLost when another compactor is at work: nothing is lost by that.
        """
        self.log.prepare()
        record = self.log.read()
        record = self._publish(record)
        record = self._remove(self._retire(record))
        record = self._fence(self._drop(record))
        self._clear(record)
        return record

    def join(self, record: Record, groups: Sequence[Group], stopping: Callable[[], None] = _nothing) -> Record:
        """Join each of ``groups``, of files that are in no entry of ``record``, the newest; what holds then.

        Groups whose files went meanwhile, or do not fit together, are left as they are.
        """
        joined: list[_Joined] = []
        try:
            for group in groups:
                one = self._stage(record, group, stopping)
                if one is not None:
                    joined.append(one)
        except BaseException:
            for one in joined:
                one.staged.abandon()
            raise
        joined = self._settled(joined)
        # From here on they may be committed, whatever is raised: `advance` knows.
        return self._publish(self._commit(record, joined)) if joined else record

    def wake_at(self, record: Record) -> float | None:
        """When `advance` has more to do, in seconds since the epoch; None when all is done."""
        now = self._time()
        return min((self._next_look(entry, now) for entry in record.entries), default=None)

    def _next_look(self, entry: Entry, now: float) -> float:
        due = self._due(entry)
        return now + LOOK_SECONDS if entry.state == "active" and due <= now else due

    def _due(self, entry: Entry) -> float:
        if entry.state == "active":
            return entry.us / 1_000_000 + self._retired_seconds_min
        return entry.removed_us / 1_000_000 + self._retired_seconds_min if entry.removed_us else 0.0

    def _stage(self, record: Record, group: Group, stopping: Callable[[], None]) -> _Joined | None:
        self._staged += 1
        name = f"{record.seq + 1:020d}-{self.log.owner}-{self._staged}.rows"
        staged = StagedFile(self._filesystem, self.log.staging / name)
        inputs = [self._root / file.path for file in group.files]
        try:
            rows = self._joiner(inputs, staged, stopping)
            staged.finish()
        except FileNotFoundError as error:
            staged.abandon()
            logger.info("%s is gone; its neighbours are not joined", error.filename)
            return None
        except Unjoinable as error:
            staged.abandon()
            logger.warning("files beside it are not joined with it: %s", error)
            self.unjoinable.add(error.path.relative_to(self._root).as_posix())
            return None
        except BaseException:
            staged.abandon()
            raise
        return _Joined(group, staged, rows)

    def _commit(self, record: Record, joined: Sequence[_Joined]) -> Record:
        now_us = self._now_us()
        entries = tuple(
            Entry(
                number, "committed", now_us, one.group.output(number), one.staged.path.name, one.rows,
                one.staged.bytes, tuple(file.path for file in one.group.files),
            )
            for number, one in enumerate(joined, record.last_id + 1)
        )  # fmt: skip
        self._filesystem.sync_directory(self.log.staging)
        self._say("compaction-staged")
        following = record.next(
            self._time(), last_id=record.last_id + len(entries), entries=(*record.entries, *entries)
        )
        self.log.link(following)
        self._say("compaction-committed")
        return following

    def _settled(self, joined: Sequence[_Joined]) -> list[_Joined]:
        """Those whose inputs have durably lost the names that they were staged under; the others are left.

        A file that has its staged name too, after a loss of power during its rename, is published again by the
        shard's next owner, which would undo its removal.
        """
        self._sync_directories(file.path for one in joined for file in one.group.files)
        partitions = {file.name.partition for one in joined for file in one.group.files}
        staged = frozenset().union(*(self._still_staged(partition) for partition in sorted(partitions)))
        settled = []
        for one in joined:
            if any(file.path in staged for file in one.group.files):
                one.staged.abandon()
            else:
                settled.append(one)
        return settled

    def _still_staged(self, partition: int) -> frozenset[str]:
        """Public files of a partition, in any incarnation of the topic, that an owner may have to publish yet.

        Below a log's checkpoint there are none. What is staged no more is so durably on return.
        """
        found: set[str] = set()
        for name in self._filesystem.names(self._root / HIDDEN):
            home = self._root / HIDDEN / name / str(partition)
            if not name.startswith("topic-") or self._filesystem.size(home / "staging") is None:
                continue
            self._filesystem.sync_directory(home / "staging")
            staged = set(self._filesystem.names(home / "staging"))
            for manifest in read_chain(self._filesystem, home / "log").manifests:
                found.update(file.public for file in manifest.files if file.staged in staged)
        return frozenset(found)

    def _publish(self, record: Record) -> Record:
        """Give committed outputs their public names, and have them count; give up those that cannot be."""
        committed = [entry for entry in record.entries if entry.state == "committed"]
        if not committed:
            return record
        published = {entry.id for entry in committed if self._rename(entry)}
        self._sync_directories(entry.output for entry in committed if entry.id in published)
        self._say("compaction-published")
        us = int((self._time() + self._ahead_seconds) * 1_000_000)  # after the outputs have their names
        entries = tuple(
            dataclasses.replace(entry, state="active" if entry.id in published else "aborted", us=us)
            if entry.state == "committed"
            else entry
            for entry in record.entries
        )
        visible = max([record.visible, *published])
        following = record.next(self._time(), visible=visible, entries=entries)
        self.log.link(following)
        self._say("compaction-active")
        return following

    def _rename(self, entry: Entry) -> bool:
        """Publish a committed output; False if it or one of its inputs is gone, which only users may have done."""
        if any(self._filesystem.size(self._root / path) is None for path in entry.inputs):
            return False
        staged, public = self.log.staging / entry.staged, self._root / entry.output
        size = self._filesystem.size(staged)
        if size is not None and size != entry.bytes:
            logger.error("%s has %d bytes where its record says %d; its inputs stay", staged, size, entry.bytes)
            return False
        try:
            self._filesystem.rename(staged, public)
        except FileNotFoundError:
            return self._filesystem.size(public) is not None
        return True

    def _retire(self, record: Record) -> Record:
        """Have the inputs go whose outputs have counted for long enough, when nobody reads the view, or soon after.

        All that are due go together: it is a moment at which a query may fail, and there are to be few of them.
        """
        now = self._time()
        due = {entry.id: now - self._due(entry) for entry in record.entries if entry.state == "active"}
        due = {number: late for number, late in due.items() if late >= 0}
        if not due or (max(due.values()) < READ_SECONDS_MAX and self._is_read()):
            return record
        record = _changed(record, now, due.keys(), state="retired")
        self.log.link(record)
        self._say("compaction-retired")
        return record

    def _remove(self, record: Record) -> Record:
        """Remove the inputs that are retired and the outputs that were given up, durably."""
        leaving = [each for each in record.entries if each.state in ("retired", "aborted") and not each.removed_us]
        if not leaving:
            return record
        for entry in leaving:
            if entry.state == "retired":
                for path in entry.inputs:
                    self._unlink(self._root / path)
            else:
                # Its staged name first: a compactor that was paused before the rename must find nothing.
                self._unlink(self.log.staging / entry.staged)
                self._unlink(self._root / entry.output)
        self._sync_directories(path for entry in leaving for path in (entry.output, *entry.inputs))
        self._say("compaction-removed")
        # What a reader has listed before may be gone from now on, and it may read the record much later.
        now = self._time()
        record = _changed(record, now, {entry.id for entry in leaving}, removed_us=int(now * 1_000_000))
        self.log.link(record)
        return record

    def _drop(self, record: Record) -> Record:
        """Forget compactions that nobody can be in the middle of."""
        now = self._time()
        gone = {entry.id for entry in record.entries if entry.removed_us and self._due(entry) <= now}
        if not gone:
            return record
        record = record.next(now, entries=tuple(entry for entry in record.entries if entry.id not in gone))
        self.log.link(record)
        self._say("compaction-forgotten")
        return record

    def _fence(self, record: Record) -> Record:
        """Where another compactor has staged files for the next record, link that: then they are in vain.

        It has died, or it is at work where locks do not work, and will find that it has lost.
        """
        names = self._filesystem.names(self.log.staging)
        if all(name.split("-")[1] == self.log.owner or int(name.split("-")[0]) <= record.seq for name in names):
            return record
        record = record.next(self._time())
        self.log.link(record)
        return record

    def _clear(self, record: Record) -> None:
        """Remove what was staged for records that have been linked by others, and records long superseded."""
        needed = {entry.staged for entry in record.entries if entry.state == "committed"}
        for name in self._filesystem.names(self.log.staging):
            if int(name.partition("-")[0]) <= record.seq and name not in needed:
                self._unlink(self.log.staging / name)
        self.log.forget(record, self._time() - self._record_seconds_min, count_min=self._records_min)

    def _sync_directories(self, paths: Iterable[str]) -> None:
        """Flush the names in the directories of ``paths``; one that is gone took its names with it."""
        for directory in sorted({(self._root / path).parent for path in paths}):
            try:
                self._filesystem.sync_directory(directory)
            except FileNotFoundError:
                # Its own end has to last too: else it comes back with files that should be gone.
                self._sync_above(directory)

    def _sync_above(self, directory: Path) -> None:
        for parent in directory.parents:
            if parent == self._root.parent:
                return
            with contextlib.suppress(FileNotFoundError):
                self._filesystem.sync_directory(parent)
                return

    def _unlink(self, path: Path) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._filesystem.unlink(path)

    def _now_us(self) -> int:
        return int(self._time() * 1_000_000)

    def _say(self, phase: str) -> None:
        if self._phase is not None:
            self._phase(phase)


def count_inputs(record: Record) -> int:
    """How many files the record's readers have to be told of."""
    return sum(len(entry.inputs) for entry in record.entries)


def _changed(record: Record, created: float, ids: Collection[int], **changes: Any) -> Record:
    """The next record, with ``changes`` to the entries of ``ids``."""
    entries = (dataclasses.replace(entry, **changes) if entry.id in ids else entry for entry in record.entries)
    return record.next(created, entries=tuple(entries))
