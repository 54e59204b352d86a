"""The manifest log of one shard: who owns it, where it stands, and the commit itself.

A log is a directory of files ``<seq>.json``, linked under a name that is never replaced. The next name is
what owners race for: it goes to one of them, and the other has lost the shard.

*Takeover.* A new owner reads the log, makes what it read durable, and links an empty manifest at the next
seq. Only from then on is the last owner fenced, so only then are the renames that it left finished and the
files that it staged in vain dropped.

*Commit.* Files are flushed, then the names in the staging directory, then the manifest under a temporary
name; it is linked, the log directory is flushed, and the commit is made. Files get their public names last.

*Retention.* Users remove public files and directories whenever they like. What had its public name by then is
theirs to remove; a file that had not yet is committed and still staged, and its directory is made anew for it.
Compaction removes public files too, of which it has first made sure that no staged name is left to come back.

*State.* A shard's state is an entry of the manifest that moves it. A large one is a staged file that stays staged
for as long as it is the last (`connectors.parquet.state`); its successor's owner removes it, or else recovery does.

*Checkpoint.* Every so many manifests a checkpoint says what the log amounts to, and what lies below it is
deleted, so reading a log costs the same however long it has run. Deleting frees names that a paused owner
may still be about to link; therefore whoever has linked looks at the checkpoints again, and one at or beyond
its seq means that it lost long ago. A checkpoint has its seq in its name: a paused owner that wakes up and
writes an old one replaces nothing.

Not here: what the files hold (`connectors.parquet.writer`). All of it blocks; callers use threads.
"""

from __future__ import annotations

import contextlib
import logging
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from connectors.parquet.files import Directories, StagedFile, replace_durably, write_whole
from connectors.parquet.filesystem import FileSystem
from connectors.parquet.layout import ShardLayout, parse_public
from connectors.parquet.manifest import (
    Checkpoint,
    FileEntry,
    Kind,
    Manifest,
    StateEntry,
    load_checkpoint,
    load_manifest,
)
from connectors.parquet.state import load_state, stage_state
from engine.errors import InternalError, ShardLost, SinkUnavailable
from engine.protocols import Counts

logger = logging.getLogger("headrace.parquet")

CHECKPOINT_EVERY = 32
READS_MAX = 100
TAKEOVERS_MAX = 100
RENAMES_MAX = 100

_MANIFEST = ".json"
_CHECKPOINT = ".checkpoint.json"


@dataclass(frozen=True, slots=True)
class Chain:
    """A log as read: a checkpoint and the manifests after it."""

    checkpoint: Checkpoint
    manifests: tuple[Manifest, ...]

    @property
    def seq(self) -> int:
        return self.manifests[-1].seq if self.manifests else self.checkpoint.seq

    @property
    def position(self) -> int | None:
        return self.manifests[-1].end if self.manifests else self.checkpoint.position

    @property
    def state(self) -> StateEntry | None:
        """The last state that was given; None if there never was one."""
        given = (manifest.state for manifest in reversed(self.manifests) if manifest.state is not None)
        return next(given, self.checkpoint.state)


def read_chain(filesystem: FileSystem, directory: Path) -> Chain:
    """The log in ``directory``, read without owning it; empty if there is none.

    An owner may checkpoint and delete meanwhile. It deletes only after its checkpoint is there, so a walk
    between two looks at the same checkpoint saw everything.
    """
    for _ in range(READS_MAX):
        try:
            seq = newest_checkpoint(filesystem.names(directory))
            path = directory / checkpoint_name(seq)
            checkpoint = load_checkpoint(filesystem.read(path), path) if seq else Checkpoint()
        except FileNotFoundError:
            if filesystem.size(directory) is None:
                return Chain(Checkpoint(), ())
            continue
        if checkpoint.seq != seq:
            raise InternalError(f"{path} says seq {checkpoint.seq}")
        manifests = _walk(filesystem, directory, checkpoint)
        if newest_checkpoint(filesystem.names(directory)) == seq:
            return Chain(checkpoint, manifests)
    raise SinkUnavailable(f"{directory}: the log changed during each of {READS_MAX} attempts to read it")


def _walk(filesystem: FileSystem, directory: Path, checkpoint: Checkpoint) -> tuple[Manifest, ...]:
    manifests: list[Manifest] = []
    position = checkpoint.position
    while True:
        seq = checkpoint.seq + len(manifests) + 1
        path = directory / manifest_name(seq)
        try:
            data = filesystem.read(path)
        except FileNotFoundError:
            return tuple(manifests)
        manifest = load_manifest(data, path)
        manifest.check(seq, position)
        position = manifest.end
        manifests.append(manifest)


def manifest_name(seq: int) -> str:
    return f"{seq:020d}{_MANIFEST}"


def checkpoint_name(seq: int) -> str:
    return f"{seq:020d}{_CHECKPOINT}"


def newest_checkpoint(names: Sequence[str]) -> int:
    """The highest seq that a checkpoint is named for, 0 if there is none."""
    return max((int(name.partition(".")[0]) for name in names if name.endswith(_CHECKPOINT)), default=0)


class ShardLog:
    """One owner's hold on a shard's log. Call `acquire` first; after any exception only `lost` and a new object.

    ``phase`` hears the name of each step, so that a test can tell where a kill hit.
    """

    def __init__(
        self,
        filesystem: FileSystem,
        layout: ShardLayout,
        directories: Directories,
        *,
        time: Callable[[], float],
        phase: Callable[[str], None] | None = None,
        checkpoint_every: int = CHECKPOINT_EVERY,
    ) -> None:
        self.filesystem = filesystem
        self.layout = layout
        self.owner = uuid.uuid4().hex
        self.seq = 0
        self.position: int | None = None
        self.state = b""
        self._state: StateEntry | None = None
        self._directories = directories
        self._time = time
        self._phase = phase
        self._checkpoint_every = checkpoint_every
        self._checkpoint_seq = 0
        self._takeover_seq = 0
        self._staged = 0

    def acquire(self) -> None:
        """Take the shard over: fence the last owner, then finish what it committed and drop what it did not."""
        for directory in (self.layout.log, self.layout.staging, self.layout.failures):
            self._directories.ensure(directory)
        chain = self._take_over()
        self.say("recovering")
        with self._noticing_loss():
            self._recover(chain)
            self._checkpoint_if_due()
        self.say("recovered")

    def stage(self, what: str) -> StagedFile:
        """A new file in the staging directory. ``what`` ends its name and must not end in ``.parquet``."""
        assert not what.endswith(".parquet")
        self._staged += 1
        return StagedFile(self.filesystem, self.temporary(f"{self._staged}.{what}"))

    def commit(
        self,
        start: int,
        end: int,
        counts: Counts,
        *,
        files: Sequence[FileEntry] = (),
        failures: FileEntry | None = None,
        rows_out: int = 0,
        schema: str | None = None,
        state: bytes | None = None,
    ) -> None:
        """Move the position from ``start`` to ``end`` with ``files``, finished staged files, and ``state``.

        Returns when all is durable and public. Raises ShardLost when another owner has taken the shard;
        then nothing of this is or becomes visible.
        """
        kind: Kind = "start" if self.position is None and start == end and not files else "commit"
        with self._noticing_loss():
            entry = None if state is None else stage_state(state, self.stage)
            manifest = self._manifest(
                self.seq + 1, kind, start, end, files=tuple(files), failures=failures, counts=counts,
                rows_out=rows_out, schema=schema, state=entry,
            )  # fmt: skip
            self._commit(manifest)
            if state is not None:
                before, self._state, self.state = self._state, entry, state
                self._drop_state(before)
            self._checkpoint_if_due()

    def _commit(self, manifest: Manifest) -> None:
        self._make_public_directories([manifest])
        self.filesystem.sync_directory(self.layout.staging)
        self.say("staged")
        if not self._link(manifest):
            raise self.lost_error()
        self.say("linked")
        self.filesystem.sync_directory(self.layout.log)
        if self._superseded(manifest.seq):
            raise self.lost_error()
        self._publish(manifest)
        self._sync_public([manifest])
        self.say("renamed")
        self.seq, self.position = manifest.seq, manifest.end

    def lost(self) -> bool:
        """Whether another owner has taken the shard since. A commit of one's own that has not returned is none."""
        names = self.filesystem.names(self.layout.log)
        if newest_checkpoint(names) > self.seq:
            return True
        later = [name for name in names if name.endswith(_MANIFEST) and int(name.partition(".")[0]) > self.seq]
        return any(self._is_foreign(self.layout.log / name) for name in later)

    def _is_foreign(self, path: Path) -> bool:
        try:
            return load_manifest(self.filesystem.read(path), path).owner != self.owner
        except FileNotFoundError:  # below a checkpoint that is not this owner's
            return True

    def lost_error(self) -> ShardLost:
        return ShardLost(
            f"{self.layout.topic}-{self.layout.partition}: another owner took the shard after manifest {self.seq}"
        )

    def temporary(self, what: str) -> Path:
        """A path in the staging directory that is this owner's, and cleared away by the next one."""
        return self.layout.staging / f"{self._takeover_seq:020d}-{self.owner}-{what}"

    def say(self, phase: str) -> None:
        if self._phase is not None:
            self._phase(phase)

    @contextlib.contextmanager
    def _noticing_loss(self) -> Iterator[None]:
        """A staged file that is gone was cleared away by a later owner: a lost shard, no fault of the disk."""
        try:
            yield
        except FileNotFoundError as error:
            if self.lost():
                raise self.lost_error() from error
            raise

    def _take_over(self) -> Chain:
        for _ in range(TAKEOVERS_MAX):
            chain = read_chain(self.filesystem, self.layout.log)
            # What was read may not be durable yet, and must not vanish below a takeover that is.
            self.filesystem.sync_directory(self.layout.log)
            self._takeover_seq, self.position = chain.seq + 1, chain.position
            manifest = self._manifest(self._takeover_seq, "takeover", chain.position, chain.position)
            try:
                linked = self._link(manifest)
            except FileNotFoundError:  # a later owner dropped the temporary file
                continue
            if not linked:
                continue
            self.filesystem.sync_directory(self.layout.log)
            if not self._superseded(manifest.seq):
                self.seq = manifest.seq
                self._checkpoint_seq = chain.checkpoint.seq
                return chain
        raise SinkUnavailable(
            f"{self.layout.log}: others took the shard over {TAKEOVERS_MAX} times meanwhile",
            hint="Look for more processes of this pipeline than are wanted.",
        )

    def _recover(self, chain: Chain) -> None:
        self._state, self.state = chain.state, self._load_state(chain.state)
        for manifest in chain.manifests:
            self._publish(manifest, recovery=True)
        self._sync_public(chain.manifests)
        self._drop_staged(chain)

    def _drop_staged(self, chain: Chain) -> None:
        """Remove what owners before this takeover staged: what they committed is published by now.

        Not the file of the shard's state, which is public nowhere. Not what carries a later takeover's seq: this
        owner may have lost the shard since.
        """
        committed = {file.staged: file.public for manifest in chain.manifests for file in manifest.all_files}
        for name in self.filesystem.names(self.layout.staging):
            if int(name.partition("-")[0]) >= self._takeover_seq or (chain.state and name == chain.state.staged):
                continue
            # A rename between two names of one file leaves both; under its only name it is never removed.
            if name in committed and self.filesystem.size(self.layout.root / committed[name]) is None:
                raise InternalError(
                    f"{self.layout.staging / name} is committed and was not published as {committed[name]}",
                    hint="Keep the directory as it is and start again: the file is published then.",
                )
            self._unlink(self.layout.staging / name)

    def _load_state(self, entry: StateEntry | None) -> bytes:
        try:
            return load_state(self.filesystem, self.layout.staging, entry)
        except FileNotFoundError as error:  # a later owner's commit has replaced it, or somebody removed it
            if self.lost():
                raise self.lost_error() from error
            raise InternalError(
                f"{error.filename} holds the state of {self.layout.topic}-{self.layout.partition} and is not there",
                hint="Restore it: without its state the shard's windows would be wrong.",
            ) from error

    def _drop_state(self, entry: StateEntry | None) -> None:
        """Remove the file of a state that a durable commit of this owner has replaced."""
        if entry is not None and entry.staged is not None:
            self._unlink(self.layout.staging / entry.staged)

    def _publish(self, manifest: Manifest, *, recovery: bool = False) -> None:
        """Give files their public names; who of two owners does it does not matter."""
        for index, file in enumerate(manifest.all_files):
            staged, public = self.layout.staging / file.staged, self.layout.root / file.public
            size = self.filesystem.size(staged)
            if size is not None and size != file.bytes:
                raise InternalError(f"{staged} has {size} bytes where its manifest says {file.bytes}")
            if not self._rename(staged, public):
                self._missing(public, recovery=recovery)
            if index == 0 and not recovery:
                self.say("half-renamed")

    def _rename(self, staged: Path, public: Path) -> bool:
        """Publish a file, in a directory made anew if need be; False if it has neither of its names."""
        for _ in range(RENAMES_MAX):
            try:
                self.filesystem.rename(staged, public)
                return True
            except FileNotFoundError:
                if self.filesystem.size(staged) is None:
                    return self.filesystem.size(public) is not None
            logger.info("%s was removed; it is made anew for what is committed", public.parent)
            with contextlib.suppress(FileNotFoundError):  # removed again: the next rename notices
                self._directories.renew(public.parent)
        raise SinkUnavailable(
            f"{public.parent} was removed during each of {RENAMES_MAX} attempts to publish into it",
            hint="Start again once it stays: what is committed is published then.",
        )

    def _missing(self, public: Path, *, recovery: bool) -> None:
        if recovery and public.parent == self.layout.failures:
            logger.debug("%s was delivered, and went then", public)
        elif recovery and self._was_joined(public):
            logger.debug("%s was joined with others", public)
        elif recovery:  # removed by its user since, who may do that
            logger.warning("%s was committed and is not there any more", public)
        elif self.lost():
            raise self.lost_error()
        else:
            raise InternalError(f"{public} was removed while it was committed")

    def _was_joined(self, public: Path) -> bool:
        """Whether a file that compaction has made covers what ``public`` had."""
        name = parse_public(public.name)
        if name is None:
            return False
        with contextlib.suppress(FileNotFoundError):
            there = [parse_public(text) for text in self.filesystem.names(public.parent)]
            return any(other is not None and other.compaction and other.covers(name) for other in there)
        return False

    def _superseded(self, seq: int) -> bool:
        return newest_checkpoint(self.filesystem.names(self.layout.log)) >= seq

    def _link(self, manifest: Manifest) -> bool:
        """Put a manifest into the log; False if its seq has gone to somebody else."""
        data = manifest.dump()
        temporary = self.temporary(f"{manifest.seq}.manifest")
        target = self.layout.log / manifest_name(manifest.seq)
        write_whole(self.filesystem, temporary, data)
        try:
            self.filesystem.link(temporary, target)
            return True
        except FileExistsError:
            # A network file system may have repeated a request that had succeeded: then it is our own.
            with contextlib.suppress(FileNotFoundError):
                return self.filesystem.read(target) == data
            return False
        finally:
            self._unlink(temporary)

    def _checkpoint_if_due(self) -> None:
        if self.seq - self._checkpoint_seq < self._checkpoint_every:
            return
        temporary = self.temporary(f"{self.seq}.checkpoint")
        target = self.layout.log / checkpoint_name(self.seq)
        state = self._state if self.state else None
        replace_durably(self.filesystem, temporary, target, Checkpoint(self.seq, self.position, state).dump())
        self._checkpoint_seq = self.seq
        for name in self.filesystem.names(self.layout.log):
            seq = int(name.partition(".")[0])
            if seq < self.seq or (seq == self.seq and name == manifest_name(seq)):
                self._unlink(self.layout.log / name)
        self.say("checkpointed")

    def _manifest(
        self,
        seq: int,
        kind: Kind,
        start: int | None,
        end: int | None,
        *,
        files: tuple[FileEntry, ...] = (),
        failures: FileEntry | None = None,
        counts: Counts | None = None,
        rows_out: int = 0,
        schema: str | None = None,
        state: StateEntry | None = None,
    ) -> Manifest:
        layout = self.layout
        manifest = Manifest(
            seq, self.owner, kind, layout.topic, layout.topic_id, layout.partition, start, end,
            self._time(), files, failures, counts or Counts(), rows_out, schema, state,
        )  # fmt: skip
        manifest.check(seq, self.position)
        return manifest

    def _make_public_directories(self, manifests: Sequence[Manifest]) -> None:
        for directory in self._public_directories(manifests):
            self._directories.ensure(directory)

    def _sync_public(self, manifests: Sequence[Manifest]) -> None:
        """Flush the names of published files.

        And of their directories: one may have been removed, and made anew by a process that has not flushed it.
        One that is gone was removed with the files that had been published into it: nothing is left to flush.
        """
        layout = self.layout
        directories = set(self._public_directories(manifests))
        for directory in directories - {layout.failures}:
            directories.update(parent for parent in directory.parents if parent.is_relative_to(layout.root))
        for directory in sorted(directories):
            try:
                self.filesystem.sync_directory(directory)
            except FileNotFoundError:
                if directory in (layout.root, layout.failures):
                    raise
                logger.info("%s was removed after files had been published there", directory)

    def _public_directories(self, manifests: Sequence[Manifest]) -> list[Path]:
        files = (file for manifest in manifests for file in manifest.all_files)
        return sorted({(self.layout.root / file.public).parent for file in files})

    def _unlink(self, path: Path) -> None:
        with contextlib.suppress(FileNotFoundError):
            self.filesystem.unlink(path)
