"""Two owners of one shard, stepped one file operation at a time; processes and the machine die under them.

The owners are threads, of which one at a time holds the baton. `World.check` is what a reader may see at any
moment, `World.finish` what must hold in the end. The log that runs is the production one, or a variant of it.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import random
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from connectors.parquet.files import Directories
from connectors.parquet.layout import ShardLayout
from connectors.parquet.log import ShardLog, manifest_name, newest_checkpoint
from connectors.parquet.manifest import FileEntry, StateEntry, load_manifest
from connectors.parquet.state import INLINE_BYTES_MAX
from engine.errors import HeadraceError, ShardLost
from engine.protocols import Counts
from tests.simulation.disk import Disk, DiskFileSystem, File

ROOT = Path("/sink")
LAYOUT = ShardLayout(ROOT, "clicks", "id", 0)

OPERATIONS_MAX = 300

#: One step of a schedule: what to do, which of the two owners, how many operations.
#: "run" makes that many operations, "to link" all before the next link, "past link" that one too; "kill" ends
#: the process, "crash" the machine; "retain" is the user who removes a public directory with what is in it.
Step = tuple[str, int, int]


class Violation(AssertionError):
    """The protocol did what it must never do."""


class Killed(BaseException):
    """Unwinds the thread of an owner whose process has died."""


@dataclasses.dataclass(frozen=True)
class Variant:
    """What the owners run: the production code, unless a test breaks it."""

    log: type[ShardLog] = ShardLog
    filesystem: type[DiskFileSystem] = DiskFileSystem


class Owner:
    """A process that takes the shard, commits, loses it, and takes it again."""

    def __init__(self, world: World, number: int) -> None:
        self.world = world
        self.error: BaseException | None = None
        self.next_operation = ""
        self._rng = random.Random(number)
        self._number, self._states = number, 0
        self._go, self._back = threading.Semaphore(0), threading.Semaphore(0)
        self._killed = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def step(self) -> None:
        self._go.release()
        self._back.acquire()
        if self.error is not None:
            raise Violation(f"an owner failed: {self.error!r}") from self.error

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
                try:
                    self._own(self.world.new_log(self._gate))
                except ShardLost:
                    continue
        except Killed:
            pass
        except BaseException as error:
            self.error = error
            self._back.release()

    def _own(self, log: ShardLog) -> None:
        log.acquire()
        self.world.check_state(log)
        for _ in range(self._rng.randint(1, 6)):
            start = 0 if log.position is None else log.position
            end = start + self._rng.randint(1, 4)
            self.world.acknowledge(commit_range(log, start, end, self._new_state(end)))
            self.world.check_state(log)

    def _new_state(self, end: int) -> bytes | None:
        """None, none any more, one for the manifest, or one for a file, each different from all others."""
        self._states += 1
        name = b"%d %d %d " % (end, self._number, self._states)
        return self._rng.choice([None, b"", name, name * INLINE_BYTES_MAX])


def commit_range(log: ShardLog, start: int, end: int, state: bytes | None = None) -> dict[str, bytes]:
    """Commit the offsets ``[start, end)`` in two files, with ``state``; what the files are called and hold."""
    middle = (start + end) // 2
    stem = LAYOUT.public_stem(start, end, log.seq + 1)
    entries, contents = [], {}
    for public, low, high in ((f"{stem}.parquet", start, middle), (f"half=2/{stem}.parquet", middle, end)):
        content = f"{log.owner} {low} {high} whole".encode()
        file = log.stage("rows")
        file.write(content[:7])
        file.write(content[7:])
        file.finish()
        entries.append(FileEntry(file.path.name, public, high - low, file.bytes))
        contents[public] = content
    log.commit(start, end, Counts(handled=end - start), files=entries, rows_out=end - start, state=state)
    return contents


class World:
    def __init__(self, seed: int, variant: Variant) -> None:
        self.rng = random.Random(seed)
        self.variant = variant
        self.disk = Disk(ROOT)
        self.disk.linked = self._linked
        self.manifests: dict[str, str] = {}  # public name -> owner, of every manifest that won its seq
        self.acknowledged: dict[str, bytes] = {}
        self.states: dict[int, bytes] = {}  # by seq: the state that a manifest that won it gives
        self.removed: dict[str, bytes] = {}  # public names that the user has seen and removed
        self._births = 0
        self._published = False
        self.owners = [self._born(), self._born()]

    def new_log(self, gate: Callable[[str], None] = lambda operation: None) -> ShardLog:
        filesystem = self.variant.filesystem(self.disk, gate)
        directories = Directories(filesystem, ROOT)
        return self.variant.log(filesystem, LAYOUT, directories, time=lambda: 0.0, checkpoint_every=3)

    def acknowledge(self, contents: dict[str, bytes]) -> None:
        self.acknowledged.update(contents)

    def check_state(self, log: ShardLog) -> None:
        """An owner has the last state that was given up to its own manifest, and no other than its position has."""
        if log.state and int(log.state.split()[0]) > (log.position or 0):
            raise Violation(f"the state is of {log.state[:30]!r}, the position is {log.position}")
        given = [state for seq, state in sorted(self.states.items()) if seq <= log.seq]
        expected = given[-1] if given else b""
        if log.state != expected:
            raise Violation(f"after manifest {log.seq} the state is {log.state[:30]!r}, not {expected[:30]!r}")

    def run(self, schedule: Sequence[Step]) -> None:
        try:
            for action, number, count in schedule:
                if action == "run":
                    for _ in range(count):
                        self._step(number)
                elif action.endswith("link"):
                    for _ in range(OPERATIONS_MAX):
                        if self.owners[number].next_operation == "link":
                            break
                        self._step(number)
                    if action == "past link":
                        self._step(number)
                elif action == "kill":
                    self.owners[number].kill()
                    self.owners[number] = self._born()
                elif action == "retain":
                    self.retain()
                else:
                    self.crash()
            self.finish()
        finally:
            for owner in self.owners:
                owner.kill()

    def _step(self, number: int) -> None:
        self.owners[number].step()
        if self._published:
            self._published = False
            self.check()

    def crash(self) -> None:
        for owner in self.owners:
            owner.kill()
        self.disk.crash(self.rng)
        self._forget_states()
        self.owners = [self._born(), self._born()]
        self.check()

    def retain(self) -> None:
        """Remove a Hive directory, as a user does who keeps only so many days."""
        with contextlib.suppress(FileNotFoundError):
            files = self.disk.files(ROOT / "half=2")
            self.disk.remove_tree(ROOT / "half=2")
            self.removed.update({str(path.relative_to(ROOT)): data for path, data in files.items()})

    def check(self) -> None:
        """What a reader sees: whole files of committed manifests, no offset twice."""
        seen: set[int] = set()
        for public, data in self._public().items():
            words = data.decode().split()
            if words[-1:] != ["whole"]:
                raise Violation(f"{public} is torn: {data!r}")
            if self.manifests.get(public) != words[0]:
                raise Violation(f"{public} is of {words[0]}, whose manifest does not have it")
            offsets = set(range(int(words[1]), int(words[2])))
            if seen & offsets:
                raise Violation(f"offsets {sorted(seen & offsets)} are there twice")
            seen |= offsets

    def finish(self) -> None:
        """After a last crash and recovery all that was acknowledged and not removed is there, without holes."""
        self.crash()
        try:
            self.new_log().acquire()
            log = self.new_log()  # it also reads what the first one made of the log
            log.acquire()
            self.check_state(log)
            self._check_staged(log)
        except HeadraceError as error:
            raise Violation(f"the last recovery failed: {error}") from error
        self.check()
        public = {**self.removed, **self._public()}
        for name, content in self.acknowledged.items():
            if public.get(name) != content:
                raise Violation(f"{name} was acknowledged and is {public.get(name)!r}")
        seen = {offset for data in public.values() for offset in range(*map(int, data.split()[1:3]))}
        if seen != set(range(log.position or 0)):
            raise Violation(f"the position is {log.position}, the offsets are {sorted(seen)}")

    def _forget_states(self) -> None:
        """Manifests that were not durable are gone, and their seqs go to others."""
        with contextlib.suppress(FileNotFoundError):
            names = self.disk.directory(LAYOUT.log).entries
            last = max((int(name.partition(".")[0]) for name in names), default=0)
            self.states = {seq: state for seq, state in self.states.items() if seq <= last}
            return
        self.states.clear()

    def _check_staged(self, log: ShardLog) -> None:
        """After a recovery nothing is staged but a state that is too large for its manifest."""
        contents = [bytes(file.data) for file in self._staged()]
        if contents != ([log.state] if len(log.state) > INLINE_BYTES_MAX else []):
            raise Violation(f"staged are {[content[:30] for content in contents]}, the state is {log.state[:30]!r}")

    def _staged(self) -> list[File]:
        entries = self.disk.directory(LAYOUT.staging).entries.values()
        return [node for node in entries if isinstance(node, File)]

    def _state_in(self, entry: StateEntry) -> bytes:
        if entry.staged is None:
            return base64.b64decode(entry.inline or "")
        return bytes(self.disk.file(LAYOUT.staging / entry.staged).data)

    def _public(self) -> dict[str, bytes]:
        files = self.disk.files(ROOT)
        return {str(path.relative_to(ROOT)): data for path, data in files.items() if path.suffix == ".parquet"}

    def _born(self) -> Owner:
        self._births += 1
        return Owner(self, self._births)

    def _linked(self, path: Path, file: File) -> None:
        """A manifest that came into the log, unless it came below a checkpoint, where it is worth nothing."""
        self._published = self._published or path.suffix == ".parquet"
        if path.parent != LAYOUT.log or "checkpoint" in path.name:
            return
        manifest = load_manifest(bytes(file.data), path)
        assert path.name == manifest_name(manifest.seq)
        if manifest.seq > newest_checkpoint(list(self.disk.directory(path.parent).entries)):
            for entry in manifest.files:
                self.manifests[entry.public] = manifest.owner
            self.states.pop(manifest.seq, None)
            if manifest.state is not None:
                self.states[manifest.seq] = self._state_in(manifest.state)


def random_schedule(seed: int) -> list[Step]:
    """A schedule with long and short turns, some deaths, and few losses of power."""
    rng = random.Random(seed)
    return [
        (
            rng.choices(["run", "to link", "past link", "kill", "crash"], [6, 2, 5, 1, 2])[0],
            rng.randrange(2),
            rng.choice([1, 2, 5, 10, 20, 45, 90, 180]),
        )
        for _ in range(rng.randint(3, 14))
    ]
