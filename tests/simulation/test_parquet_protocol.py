"""The Parquet commit protocol under any interleaving of two owners, with deaths and lost writes at any step.

And the same protocol broken on purpose in one place, which the simulation has to notice.
"""

from __future__ import annotations

import dataclasses
import itertools
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from connectors.parquet.log import Chain, ShardLog, read_chain
from connectors.parquet.manifest import Checkpoint, Manifest
from engine.protocols import Counts
from tests.forms import examples
from tests.simulation.disk import DiskFileSystem
from tests.simulation.world import LAYOUT, Step, Variant, Violation, World, random_schedule

EXAMPLES_MAX = 600

#: Schedules of the protocol itself that are neither generated nor listed in `TELLING`.
SCHEDULES = examples(100, 300)

bursts = st.sampled_from([1, 2, 3, 5, 10, 20, 45, 90, 180])
steps = st.one_of(
    st.tuples(st.just("run"), st.integers(0, 1), bursts),
    st.tuples(st.just("run"), st.integers(0, 1), bursts),
    st.tuples(st.just("run"), st.integers(0, 1), bursts),
    st.tuples(st.sampled_from(["to link", "past link"]), st.integers(0, 1), st.just(0)),
    st.tuples(st.sampled_from(["kill", "crash", "retain"]), st.integers(0, 1), st.just(0)),
)


@pytest.mark.slow
@settings(
    max_examples=examples(150, 3_000), deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)
@given(schedule=st.lists(steps, min_size=2, max_size=14), seed=st.integers(0, 2**32))
def test_any_interleaving_keeps_ranges_contiguous_and_disjoint(schedule: list[Step], seed: int) -> None:
    """No schedule of two owners, deaths and crashes makes a reader or the last recovery see a wrong row."""
    World(seed, Variant()).run(schedule)


@pytest.mark.slow
def test_the_schedules_that_catch_the_variants_pass_with_the_protocol() -> None:
    """The seeds that the variants below are tried on find nothing in the protocol itself."""
    for seed in {*range(SCHEDULES), *TELLING.values()}:
        World(seed, Variant()).run(random_schedule(seed))


@pytest.mark.slow
def test_a_user_who_removes_a_directory_stops_nobody() -> None:
    """Whenever a public directory is removed, owners go on and everything published later stays visible."""
    for seed in range(SCHEDULES):
        rng = random.Random(seed)
        schedule: list[Step] = []
        for step in random_schedule(seed):
            schedule += [step, ("run", rng.randrange(2), rng.randint(1, 12)), ("retain", 0, 0)]
        World(seed, Variant()).run(schedule)


class RenameOver(DiskFileSystem):
    """Manifests replace what has their name."""

    def link(self, source: Path, target: Path) -> None:
        self.gate("link")
        self.disk.add(target, self.disk.file(source), replace=True)


class NoDirectorySync(DiskFileSystem):
    """Names are never flushed."""

    def sync_directory(self, path: Path) -> None:
        self.gate("sync_directory")


class RenameBeforeLink(ShardLog):
    """Files become public before their manifest is in the log."""

    def _link(self, manifest: Manifest) -> bool:
        self._publish(manifest)
        return super()._link(manifest)


def state_file(chain: Chain) -> str | None:
    return None if chain.state is None else chain.state.staged


class DeleteBeforeTakeover(ShardLog):
    """What no manifest names is dropped while its owner may still commit it."""

    def _take_over(self) -> Chain:
        chain = read_chain(self.filesystem, self.layout.log)
        named = {file.staged for manifest in chain.manifests for file in manifest.all_files} | {state_file(chain)}
        for name in self.filesystem.names(self.layout.staging):
            if name not in named:
                self._unlink(self.layout.staging / name)
        return super()._take_over()


class NoCheckpointReread(ShardLog):
    """A manifest that was linked under a name freed by a checkpoint counts."""

    def _superseded(self, seq: int) -> bool:
        return False


class DropWhateverIsStaged(ShardLog):
    """Recovery drops files of owners that came after it."""

    def _drop_staged(self, chain: Chain) -> None:
        for name in self.filesystem.names(self.layout.staging):
            if name != state_file(chain):
                self._unlink(self.layout.staging / name)


class CheckpointBeforeRename(ShardLog):
    """A checkpoint is written while files below it have no public name."""

    def _publish(self, manifest: Manifest, *, recovery: bool = False) -> None:
        seq, position = self.seq, self.position
        self.seq, self.position = manifest.seq, manifest.end
        self._checkpoint_if_due()
        self.seq, self.position = seq, position
        super()._publish(manifest, recovery=recovery)


class _SkipsOneSync(DiskFileSystem):
    skip = False

    def sync_directory(self, path: Path) -> None:
        skip, self.skip = self.skip and path == LAYOUT.log, False
        if skip:
            self.gate("sync_directory")
        else:
            super().sync_directory(path)


class TakeoverOverUnsyncedLog(ShardLog):
    """A takeover is linked above manifests that are not durable."""

    def _take_over(self) -> Chain:
        assert isinstance(self.filesystem, _SkipsOneSync)
        self.filesystem.skip = True
        return super()._take_over()


class NoFileSync(DiskFileSystem):
    """File contents are never flushed."""

    def create(self, path: Path):  # type: ignore[no-untyped-def]
        file = super().create(path)
        file.sync = lambda: self.gate("sync")  # type: ignore[method-assign]
        return file


class StateFileRemovedBeforeItsSuccessor(ShardLog):
    """The file of a state goes before the commit that replaces it."""

    def _commit(self, manifest: Manifest) -> None:
        if manifest.state is not None:
            self._drop_state(self._state)
        super()._commit(manifest)


class StateFileRemovedBeforeTheLogIsFlushed(ShardLog):
    """The file of a state goes as soon as the next manifest is linked, which a loss of power may take back."""

    def _link(self, manifest: Manifest) -> bool:
        linked = super()._link(manifest)
        if linked and manifest.state is not None:
            self._drop_state(self._state)
            self.filesystem.sync_directory(self.layout.staging)
        return linked


class StateFileRemovedByTheFenced(ShardLog):
    """An owner removes the file of a state although its own commit turns out to be worth nothing."""

    def _superseded(self, seq: int) -> bool:
        superseded = super()._superseded(seq)
        if superseded and self.seq == seq - 1:
            for name in self.filesystem.names(self.layout.staging):
                if name.endswith(".state"):
                    self._unlink(self.layout.staging / name)
        return superseded


class StateFileDroppedByRecovery(ShardLog):
    """Recovery takes the file of the shard's state for one that was staged in vain."""

    def _drop_staged(self, chain: Chain) -> None:
        super()._drop_staged(dataclasses.replace(chain, checkpoint=Checkpoint(chain.seq), manifests=()))


class CheckpointWithoutState(ShardLog):
    """The state is forgotten with the manifests below a checkpoint."""

    def _checkpoint_if_due(self) -> None:
        state, self.state = self.state, b""
        super()._checkpoint_if_due()
        self.state = state


class StateBesideTheCommit(ShardLog):
    """The state has a manifest of its own, before that of the position."""

    def commit(self, start: int, end: int, counts: Counts, **rest: Any) -> None:
        state = rest.pop("state", None)
        if state is not None:
            super().commit(start, start, Counts(), state=state)
        super().commit(start, end, counts, **rest)


class NoStateFileSync(DiskFileSystem):
    """The bytes of a state file are never flushed."""

    def create(self, path: Path):  # type: ignore[no-untyped-def]
        file = super().create(path)
        if path.name.endswith(".state"):
            file.sync = lambda: self.gate("sync")  # type: ignore[method-assign]
        return file


VARIANTS = {
    "link replaced by rename-over": Variant(filesystem=RenameOver),
    "rename before link": Variant(RenameBeforeLink),
    "no directory fsync": Variant(filesystem=NoDirectorySync),
    "delete staged before takeover": Variant(DeleteBeforeTakeover),
    "no checkpoint re-read": Variant(NoCheckpointReread),
    "recovery drops newer owners' files": Variant(DropWhateverIsStaged),
    "checkpoint before rename": Variant(CheckpointBeforeRename),
    "takeover above an unsynced log": Variant(TakeoverOverUnsyncedLog, _SkipsOneSync),
    "no file fsync": Variant(filesystem=NoFileSync),
    "state file removed before its successor": Variant(StateFileRemovedBeforeItsSuccessor),
    "state file removed before the log is flushed": Variant(StateFileRemovedBeforeTheLogIsFlushed),
    "state file removed by the fenced": Variant(StateFileRemovedByTheFenced),
    "state beside the commit": Variant(StateBesideTheCommit),
    "state file dropped by recovery": Variant(StateFileDroppedByRecovery),
    "checkpoint without state": Variant(CheckpointWithoutState),
    "no state file fsync": Variant(filesystem=NoStateFileSync),
}


#: Of variants that few schedules tell from the protocol, one that does; it is tried first.
TELLING = {
    "delete staged before takeover": 256,
    "recovery drops newer owners' files": 23,
    "takeover above an unsynced log": 161,
    "state file removed before the log is flushed": 376,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", VARIANTS)
def test_a_protocol_broken_in_one_place_is_caught(name: str) -> None:
    """Each variant of the protocol that leaves out one rule violates an invariant within some hundred schedules."""
    for seed in itertools.chain([TELLING.get(name, 0)], range(EXAMPLES_MAX)):
        try:
            World(seed, VARIANTS[name]).run(random_schedule(seed))
        except Violation as violation:
            print(f"{name}: schedule {seed}: {violation}")
            return
    pytest.fail(f"{EXAMPLES_MAX} schedules did not notice: {name}")
