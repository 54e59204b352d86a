"""What compaction has joined: numbered records, each the whole of what readers and compactors have to know.

A record is a file ``<seq>.ndjson``, linked under a name that is never replaced: of two compactors that link the
same seq one has lost. The highest seq counts, so a compactor that was paused and wakes up replaces nothing.
Readers ask it too, the view with DuckDB, hence one JSON object a line: a head, and a line for each file that is
an output or an input of a compaction which has not gone by.

A reader takes the time when it began, ``now``, then lists the public files and reads the newest record, in any
order. It leaves out

- an output whose id is beyond the head's ``visible``: it was published and nothing else is known of it;
- an output that is not active, or is active from after ``now`` on;
- an input of an output that is active from ``now`` or before on.

That is one of inputs and output, and what it takes is in its listing: an output is active only from after its name
was durable, so a reader that began later lists it; inputs stay long after that for readers that began before.
Where inputs have begun to go, a reader that began before their output was active is told so (`Retired`).

Not here: who makes a compaction and when (`connectors.parquet.compaction`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import orjson

from connectors.parquet.files import Directories, create_once, write_whole
from connectors.parquet.filesystem import FileSystem
from connectors.parquet.layout import HIDDEN, compaction_home, parse_public
from engine.errors import ExternalError, InternalError, SinkUnavailable

FORMAT = 1
READS_MAX = 100
SUFFIX = ".ndjson"

#: ``committed``: the output may have its public name. ``active``: it stands for its inputs from ``us`` on.
#: ``retired``: its inputs may be gone. ``aborted``: the output must go, its inputs stay.
State = Literal["committed", "active", "retired", "aborted"]


class Retired(ExternalError):
    """The reader began too long ago: files that it should read are removed by now. Another try reads others."""

    retry = True


class CompactionLost(Exception):
    """Another compactor has linked the next record: what was prepared for it is of no use."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One compaction: paths below the root, with ``/``. ``us`` is microseconds since the epoch.

    ``us`` is when an active output began to count, else when the state was entered; ``removed_us`` when the files
    that a retired or aborted one removes were gone for good, 0 before.
    """

    id: int
    state: State
    us: int
    output: str
    staged: str
    rows: int
    bytes: int
    inputs: tuple[str, ...]
    removed_us: int = 0


@dataclass(frozen=True, slots=True)
class Record:
    """Everything that is known of compactions. ``visible`` is the highest id that became active, ``last_id`` that
    was ever given; ``created`` seconds since the epoch."""

    seq: int
    visible: int = 0
    last_id: int = 0
    created: float = 0.0
    entries: tuple[Entry, ...] = ()

    def next(self, created: float, **changes: Any) -> Record:
        return dataclasses.replace(self, seq=self.seq + 1, created=created, **changes)

    @property
    def files(self) -> frozenset[str]:
        """Every path that is part of a compaction."""
        return frozenset(path for entry in self.entries for path in (entry.output, *entry.inputs))

    def hidden(self, now_us: int) -> frozenset[str]:
        """The paths that a reader that began at ``now_us`` leaves out. Raises Retired."""
        return frozenset(self._hidden(now_us))

    def _hidden(self, now_us: int) -> Iterator[str]:
        for entry in self.entries:
            counts = entry.state in ("active", "retired") and entry.us <= now_us
            if counts:
                yield from entry.inputs
            elif entry.state == "retired":
                raise Retired(f"{entry.inputs[0]} and others were joined, and are gone since this reader began")
            else:
                yield entry.output

    def sees(self, path: str, hidden: frozenset[str]) -> bool:
        """Whether a reader keeps the file at ``path``, given what is `hidden`."""
        if path in hidden:
            return False
        name = parse_public(path.rpartition("/")[2])
        return name is None or name.compaction <= self.visible

    def dump(self) -> bytes:
        """Lines of one shape, as DuckDB reads them; a head first."""
        head = {
            "seq": self.seq, "kind": "head", "id": self.visible, "us": 0, "state": "", "file": "",
            "format": FORMAT, "last_id": self.last_id, "created": self.created,
        }  # fmt: skip
        lines: list[dict[str, Any]] = [head]
        for entry in self.entries:
            line = {"seq": self.seq, "kind": "output", "id": entry.id, "us": entry.us, "state": entry.state}
            own = {"staged": entry.staged, "rows": entry.rows, "bytes": entry.bytes, "removed_us": entry.removed_us}
            lines.append({**line, "file": entry.output, **own})
            lines += ({**line, "kind": "input", "file": path} for path in entry.inputs)
        return b"".join(orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE) for line in lines)


def load_record(data: bytes, path: Path) -> Record:
    """The record in ``data``; InternalError naming ``path`` if it is none."""
    try:
        head, *lines = [orjson.loads(line) for line in data.splitlines()]
        if head["kind"] != "head" or head["format"] != FORMAT:
            raise InternalError(
                f"{path} is of a format that this version does not know; it knows {FORMAT}",
                hint="Run the version that wrote it, or a later one.",
            )
        inputs: dict[int, list[str]] = {}
        for line in lines:
            if line["kind"] == "input":
                inputs.setdefault(line["id"], []).append(line["file"])
        entries = tuple(
            Entry(
                line["id"], line["state"], line["us"], line["file"], line["staged"], line["rows"], line["bytes"],
                tuple(inputs[line["id"]]), line["removed_us"],
            )
            for line in lines
            if line["kind"] == "output"
        )  # fmt: skip
        return Record(head["seq"], head["id"], head["last_id"], head["created"], entries)
    except (KeyError, TypeError, ValueError) as error:
        raise InternalError(f"{path} is no record of compactions: {error}") from error


def record_name(seq: int) -> str:
    return f"{seq:020d}{SUFFIX}"


def record_seqs(names: Sequence[str]) -> list[int]:
    """The seqs that there are records of, in order."""
    return sorted(int(name.removesuffix(SUFFIX)) for name in names if name.endswith(SUFFIX))


def newest_record(filesystem: FileSystem, root: Path) -> Record | None:
    """What holds now; None for a directory that has never had a record. Blocks."""
    home = compaction_home(root)
    for _ in range(READS_MAX):
        try:
            seqs = record_seqs(filesystem.names(home))
        except FileNotFoundError:
            return None
        if not seqs:
            return None
        path = home / record_name(seqs[-1])
        with contextlib.suppress(FileNotFoundError):  # superseded and removed since
            return load_record(filesystem.read(path), path)
    raise SinkUnavailable(f"{home}: the records changed during each of {READS_MAX} attempts to read them")


class RecordLog:
    """The records of one sink, for a process that writes them."""

    def __init__(self, filesystem: FileSystem, root: Path, directories: Directories) -> None:
        self.home = compaction_home(root)
        self.staging = self.home / "staging"
        self.owner = uuid.uuid4().hex
        self._filesystem = filesystem
        self._root = root
        self._directories = directories

    def prepare(self) -> None:
        """Make the first, empty record unless there is one: readers of the view need one."""
        self._directories.ensure(self.staging)
        if not record_seqs(self._filesystem.names(self.home)):
            directory = self._root / HIDDEN / "temporary"
            self._directories.ensure(directory)
            temporary = directory / f"{self.owner}.record"
            create_once(self._filesystem, temporary, self.home / record_name(1), Record(1).dump())

    def read(self) -> Record:
        """The newest record, durable."""
        record = newest_record(self._filesystem, self._root)
        if record is None:
            raise InternalError(f"{self.home} has no record of compactions")
        self._filesystem.sync_directory(self.home)  # who linked it may have died before doing that
        return record

    def link(self, record: Record) -> None:
        """Have ``record`` follow the one that it was made from, durably. Raises CompactionLost."""
        data = record.dump()
        temporary = self.staging / f"{record.seq:020d}-{self.owner}-record"
        target = self.home / record_name(record.seq)
        try:
            write_whole(self._filesystem, temporary, data)
            try:
                self._filesystem.link(temporary, target)
            except FileExistsError:
                # A network file system may have repeated a request that had succeeded: then it is our own.
                if self._filesystem.read(target) != data:
                    raise CompactionLost from None
            self._filesystem.unlink(temporary)
        except FileNotFoundError as error:  # a later compactor has cleared up
            raise CompactionLost from error
        self._filesystem.sync_directory(self.home)
        if record_seqs(self._filesystem.names(self.home))[-1] != record.seq:
            raise CompactionLost  # its seq was one that had been removed

    def forget(self, record: Record, before: float, *, count_min: int) -> None:
        """Remove records superseded before that time, seconds since the epoch, once there are so many of them.

        ``record`` is durable and stays.
        """
        seqs = [seq for seq in record_seqs(self._filesystem.names(self.home)) if seq <= record.seq]
        if len(seqs) <= count_min:
            return
        for seq, after in itertools.pairwise(seqs):
            with contextlib.suppress(FileNotFoundError):
                path = self.home / record_name(after)
                if load_record(self._filesystem.read(path), path).created > before:
                    return
                self._filesystem.unlink(self.home / record_name(seq))
