"""Two compactors, the sink's owner, readers and a user, stepped one file operation at a time; all of them may die.

Compactors and owner are threads, of which one at a time holds the baton; a reader begins, lists directory by
directory and reads the newest record at steps that the schedule picks. The clock is the world's and goes on by one
second a step. `World.check_reader` is what a reader of the view may see, `World.finish` what must hold in the end.
"""

from __future__ import annotations

import contextlib
import dataclasses
import random
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from connectors.parquet.compaction import Compaction
from connectors.parquet.files import Directories, StagedFile
from connectors.parquet.filesystem import FileSystem
from connectors.parquet.joined import CompactionLost, Record, Retired, newest_record
from connectors.parquet.layout import ShardLayout
from connectors.parquet.log import ShardLog
from connectors.parquet.manifest import FileEntry
from connectors.parquet.plan import Rules, groups, scan
from engine.errors import HeadraceError, ShardLost
from engine.protocols import Counts
from tests.simulation.disk import Disk, DiskFileSystem
from tests.simulation.world import Killed, Violation

ROOT = Path("/sink")
LAYOUT = ShardLayout(ROOT, "clicks", "id", 0)
DIRECTORIES = ("", "half=2")

#: Seconds, of which each file operation takes one.
RETIRED_SECONDS = 120.0
AHEAD_SECONDS = 3.0
RECORD_SECONDS = 40.0
READER_SECONDS_MAX = 100.0

COMPACTORS = (0, 1)
OWNER = 2

#: What to do, which process, how often: "run" makes that many operations, "to link" all before the next link, "past
#: link" that one too; "kill" ends a process, "crash" the machine; "retain" is the user who removes the Hive
#: directory, "remove" the one who removes a file; "wait" lets time go by.
Step = tuple[str, int, int]

Rows = frozenset[int]


class TextJoiner:
    """Joins files of text."""

    def __init__(self, filesystem: FileSystem) -> None:
        self._filesystem = filesystem

    def __call__(self, inputs: Sequence[Path], output: StagedFile, stopping: Callable[[], None]) -> int:
        texts = [self._filesystem.read(path) for path in inputs]
        for text in texts:
            stopping()
            output.write(text)
        return sum(len(rows_of(text)) for text in texts)


class SimulatedCompaction(Compaction):
    """The production protocol over this world's joiner."""

    def __init__(self, filesystem: FileSystem, time: Callable[[], float], retired_seconds_min: float) -> None:
        super().__init__(
            filesystem, ROOT, TextJoiner(filesystem), time=time, retired_seconds_min=retired_seconds_min,
            ahead_seconds=AHEAD_SECONDS, record_seconds_min=RECORD_SECONDS, records_min=1,
        )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Variant:
    """What runs: the production code, unless a test breaks it."""

    compaction: type[SimulatedCompaction] = SimulatedCompaction
    filesystem: type[DiskFileSystem] = DiskFileSystem
    sees: Callable[[Record, str, frozenset[str]], bool] = Record.sees
    retired_seconds: float = RETIRED_SECONDS


def rows_of(text: bytes) -> list[int]:
    """The rows of a file, in their order; a torn one is a violation."""
    if text and not text.endswith(b";"):
        raise Violation(f"a torn file: {text!r}")
    return [int(number) for number in text.split(b";")[:-1]]


class Process:
    """A thread that runs ``body`` again and again, one file operation at each `step`."""

    def __init__(self, body: Callable[[Callable[[str], None]], None]) -> None:
        self.error: BaseException | None = None
        self.next_operation = ""
        self._body = body
        self._go, self._back = threading.Semaphore(0), threading.Semaphore(0)
        self._killed = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def step(self) -> None:
        self._go.release()
        self._back.acquire()
        if self.error is not None:
            raise Violation(f"a process failed: {self.error!r}") from self.error

    def kill(self) -> None:
        self._killed = True
        self._go.release()
        self._thread.join()

    def _gate(self, operation: str) -> None:
        if not self._killed:
            self.next_operation = operation
            self._back.release()
            self._go.acquire()
        if self._killed:
            raise Killed

    def _run(self) -> None:
        try:
            self._go.acquire()
            while not self._killed:
                self._body(self._gate)
        except Killed:
            pass
        except BaseException as error:
            self.error = error
            self._back.release()


@dataclasses.dataclass
class Reader:
    """One query of the view: what it must see and may see, and what it has listed and read so far."""

    began: float
    must: Rows
    listed: dict[str, bytes] = dataclasses.field(default_factory=dict)
    left: list[str] = dataclasses.field(default_factory=list)
    record: Record | None = None


class World:
    def __init__(self, seed: int, variant: Variant) -> None:
        self.rng = random.Random(seed)
        self.variant = variant
        self.disk = Disk(ROOT)
        self.now = 1000.0
        self.must: set[int] = set()  # rows that were acknowledged, and that no user has removed
        self.removed: set[int] = set()  # rows of files that users have removed; another file may still have them
        self.readers: list[Reader] = []
        self.seen = 0  # readers that came to an end
        self.joined = 0
        self.log_of(lambda operation: None).prepare()
        self.processes = [self._born(number) for number in range(3)]

    def log_of(self, gate: Callable[[str], None]):  # type: ignore[no-untyped-def]
        return self.compaction(gate).log

    def compaction(self, gate: Callable[[str], None]) -> SimulatedCompaction:
        filesystem = self.variant.filesystem(self.disk, gate)
        return self.variant.compaction(filesystem, lambda: self.now, self.variant.retired_seconds)

    def run(self, schedule: Sequence[Step]) -> None:
        try:
            for action, number, count in schedule:
                self._act(action, number, count)
            self.finish()
        except HeadraceError as error:
            raise Violation(f"a reader or a recovery failed: {error}") from error
        finally:
            for process in self.processes:
                process.kill()

    def _act(self, action: str, number: int, count: int) -> None:
        if action == "run":
            for _ in range(count):
                self._step(number)
        elif action.endswith("link"):
            for _ in range(200):
                if self.processes[number].next_operation == "link":
                    break
                self._step(number)
            if action == "past link":
                self._step(number)
        elif action == "kill":
            self.processes[number].kill()
            self.processes[number] = self._born(number)
        elif action == "crash":
            self.crash()
        elif action == "retain":
            self._remove_tree()
        elif action == "remove":
            self._remove_file()
        elif action == "wait":
            self.now += count
            self._look()

    def _step(self, number: int) -> None:
        self.processes[number].step()
        self.now += 1.0
        if self.rng.random() < 0.1:
            left = [*DIRECTORIES, "record"]
            self.rng.shuffle(left)
            self.readers.append(Reader(self.now, frozenset(self.must), left=left))
        if self.rng.random() < 0.3:
            self._look()

    def _look(self) -> None:
        for reader in list(self.readers):
            if self.now - reader.began > READER_SECONDS_MAX:
                self.readers.remove(reader)
                continue
            what = reader.left.pop()
            if what == "record":
                reader.record = newest_record(DiskFileSystem(self.disk), ROOT)
            else:
                reader.listed.update(self._public(what))
            if not reader.left:
                self.readers.remove(reader)
                self.check_reader(reader)

    def check_reader(self, reader: Reader) -> None:
        """Each row once, of those that were there when the reader began and that nobody has removed since."""
        if reader.record is None:
            raise Violation("the view has no record of compactions to read")
        try:
            hidden = reader.record.hidden(int(reader.began * 1_000_000))
        except Retired as error:
            raise Violation(f"a reader of {self.now - reader.began} s was sent away") from error
        kept = {
            path: data for path, data in reader.listed.items() if self.variant.sees(reader.record, path, hidden)
        }
        found = [row for data in kept.values() for row in rows_of(data)]
        if len(found) != len(set(found)):
            twice = sorted({row for row in found if found.count(row) > 1})
            raise Violation(f"rows {twice} are seen twice, in {sorted(kept)}")
        missing = reader.must & self.must - set(found)
        if missing:
            raise Violation(
                f"rows {sorted(missing)} are not seen, in {sorted(kept)}; listed {sorted(reader.listed)}"
            )
        there = {path for directory in DIRECTORIES for path in self._public(directory)}
        for path in kept.keys() - there:
            if set(rows_of(kept[path])) & self.must:
                raise Violation(f"{path} was removed under a reader of {self.now - reader.began} s")
        self.seen += 1

    def crash(self) -> None:
        for process in self.processes:
            process.kill()
        self.disk.crash(self.rng)
        self.readers.clear()
        self.processes = [self._born(number) for number in range(3)]

    def finish(self) -> None:
        """After a last crash and recovery nothing is left of any compaction, and each row is in one file."""
        self.crash()
        self._recover()
        for _ in range(8):
            compaction = self.compaction(lambda operation: None)
            record = compaction.advance()
            self._view_now()
            self.now += self.variant.retired_seconds + AHEAD_SECONDS + RECORD_SECONDS + 1
        if record.entries:
            raise Violation(f"compactions do not come to an end: {record}")
        if names := self.disk.directory(compaction.log.staging).entries:
            raise Violation(f"staged files are left: {sorted(names)}")
        found = [row for path in DIRECTORIES for data in self._public(path).values() for row in rows_of(data)]
        if len(found) != len(set(found)) or self.must - set(found):
            raise Violation(f"in the end there are the rows {sorted(found)}, and should be {sorted(self.must)}")

    def _recover(self) -> None:
        """The sink's next owner publishes what it finds committed, and nothing that was joined."""
        self._view_now()
        with contextlib.suppress(ShardLost):
            self._new_log(lambda operation: None).acquire()
        self._view_now()

    def _view_now(self) -> None:
        reader = Reader(self.now, frozenset(self.must))
        for directory in DIRECTORIES:
            reader.listed.update(self._public(directory))
        reader.record = newest_record(DiskFileSystem(self.disk), ROOT)
        self.check_reader(reader)

    def _public(self, directory: str) -> dict[str, bytes]:
        try:
            files = self.disk.files(ROOT / directory) if directory else self._top()
        except FileNotFoundError:
            return {}
        return {p.relative_to(ROOT).as_posix(): data for p, data in files.items() if p.suffix == ".parquet"}

    def _top(self) -> dict[Path, bytes]:
        entries = self.disk.directory(ROOT).entries
        return {ROOT / name: bytes(node.data) for name, node in entries.items() if hasattr(node, "data")}

    def _remove_tree(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            for data in self._public("half=2").values():
                self._removed_rows(data)
            self.disk.remove_tree(ROOT / "half=2")

    def _remove_file(self) -> None:
        files = {path: data for directory in DIRECTORIES for path, data in self._public(directory).items()}
        if files:
            path = self.rng.choice(sorted(files))
            self._removed_rows(files[path])
            self.disk.remove(ROOT / path)

    def _removed_rows(self, data: bytes) -> None:
        self.removed |= set(rows_of(data))
        self.must -= self.removed

    def _born(self, number: int) -> Process:
        return Process(self._own if number == OWNER else self._compact)

    def _compact(self, gate: Callable[[str], None]) -> None:
        compaction = self.compaction(gate)
        filesystem = self.variant.filesystem(self.disk, gate)
        with contextlib.suppress(CompactionLost):
            record = compaction.advance()
            files = groups(scan(filesystem, ROOT), Rules(60, 3), record.files)
            if files:
                self.joined += 1
            compaction.join(record, files[:2])

    def _new_log(self, gate: Callable[[str], None]) -> ShardLog:
        filesystem = DiskFileSystem(self.disk, gate)
        return ShardLog(filesystem, LAYOUT, Directories(filesystem, ROOT), time=lambda: 0.0, checkpoint_every=4)

    def _own(self, gate: Callable[[str], None]) -> None:
        log = self._new_log(gate)
        with contextlib.suppress(ShardLost):
            log.acquire()
            for _ in range(6):
                self._commit(log)

    def _commit(self, log: ShardLog) -> None:
        start = log.position or 0
        stem = LAYOUT.public_stem(start, start + 2, log.seq + 1)
        entries = []
        for row, public in ((start, f"{stem}.parquet"), (start + 1, f"half=2/{stem}.parquet")):
            file = log.stage("rows")
            file.write(b"%d;" % row)
            file.finish()
            entries.append(FileEntry(file.path.name, public, 1, file.bytes))
        log.commit(start, start + 2, Counts(handled=2), files=entries, rows_out=2)
        self.must |= self._still_there(entries, start)

    def _still_there(self, entries: Sequence[FileEntry], start: int) -> set[int]:
        """The rows that no user removed between their publication and the end of their commit."""
        there = {row for path in DIRECTORIES for data in self._public(path).values() for row in rows_of(data)}
        return ({start, start + 1} & there) - self.removed


def random_schedule(seed: int) -> list[Step]:
    """Long and short turns of all, some deaths, few losses of power, and users now and then."""
    rng = random.Random(seed)
    steps: list[Step] = [("run", OWNER, rng.choice([150, 300, 450]))]
    for _ in range(rng.randint(4, 16)):
        action = rng.choices(
            ["run", "to link", "past link", "kill", "crash", "retain", "remove", "wait"], [10, 3, 6, 1, 2, 1, 1, 4]
        )[0]
        steps.append((action, rng.choice([0, 0, 1, 1, OWNER]), rng.choice([1, 2, 5, 10, 20, 45, 90, 180])))
    return steps
