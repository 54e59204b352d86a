"""The record that a commit is: which offsets, which files, which counts, which state. And its JSON.

Not here: where manifests lie and in what order they are written (`connectors.parquet.log`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import orjson

from engine.errors import InternalError
from engine.protocols import Counts

#: What carries a shard's state has a format of its own: a version that does not know states must not go on without.
FORMAT = 1
FORMAT_WITH_STATE = 2

Kind = Literal["takeover", "start", "commit"]


@dataclass(frozen=True, slots=True)
class FileEntry:
    """A file of a commit: its name in the shard's staging directory, and its public path below the root."""

    staged: str
    public: str
    rows: int
    bytes: int


@dataclass(frozen=True, slots=True)
class StateEntry:
    """The state that a commit gives its shard: its length and checksum, and its bytes or where they are.

    Either ``inline`` has the bytes in base64, or ``staged`` is the file's name in the shard's staging directory.
    Without bytes the shard has no state any more.
    """

    bytes: int
    sha256: str
    inline: str | None = None
    staged: str | None = None


@dataclass(frozen=True, slots=True)
class Manifest:
    """One entry of a shard's log.

    ``takeover`` has no files and an empty range; ``start`` is the first position of a shard; ``commit``
    accounts for the offsets ``[start, end)``. ``start`` and ``end`` are None only in takeovers before the
    first position. ``created`` is seconds since the epoch. Without ``state`` the one before stays.
    """

    seq: int
    owner: str
    kind: Kind
    topic: str
    topic_id: str
    partition: int
    start: int | None
    end: int | None
    created: float
    files: tuple[FileEntry, ...] = ()
    failures: FileEntry | None = None
    counts: Counts = field(default_factory=Counts)
    rows_out: int = 0
    schema: str | None = None
    state: StateEntry | None = None

    def check(self, seq: int, position: int | None) -> None:
        """Raise InternalError unless this entry may follow a log that ends at ``seq - 1`` and ``position``.

        Called on write and again on read-back.
        """
        faults = []
        if self.seq != seq:
            faults.append(f"it says seq {self.seq}")
        if self.kind == "takeover":
            if self.start != position or self.end != position:
                faults.append(f"a takeover at position {position} has the range [{self.start}, {self.end})")
            if self.files or self.failures or self.counts.total or self.rows_out or self.state:
                faults.append("a takeover has content")
        elif self.start is None or self.end is None or self.start > self.end:
            faults.append(f"the range [{self.start}, {self.end}) is none")
        else:
            if position is not None and self.start != position:
                faults.append(f"it starts at {self.start}, the one before ends at {position}")
            if self.counts.total != self.end - self.start:
                faults.append(f"{self.counts} does not account for [{self.start}, {self.end})")
        if sum(file.rows for file in self.files) != self.rows_out:
            faults.append(f"its files do not have {self.rows_out} rows")
        if (self.failures.rows if self.failures else 0) != self.counts.failed:
            faults.append(f"its failures file does not have {self.counts.failed} records")
        if self.state is not None and (self.state.inline is None) == (self.state.staged is None):
            faults.append("its state is not in one place")
        if faults:
            raise InternalError(
                f"manifest {seq} of {self.topic}-{self.partition} is broken: {'; '.join(faults)}",
                hint="Keep the directory as it is and report this: committing further could lose or repeat rows.",
            )

    @property
    def all_files(self) -> tuple[FileEntry, ...]:
        """Everything that has to be renamed: data files, then the failures file."""
        return self.files if self.failures is None else (*self.files, self.failures)

    def dump(self) -> bytes:
        fields = dataclasses.asdict(self)
        if self.state is None:
            del fields["state"]
        return orjson.dumps({"format": _format(self.state), **fields}, option=orjson.OPT_INDENT_2)


def load_manifest(data: bytes, path: Path) -> Manifest:
    """The manifest in ``data``; InternalError naming ``path`` if it is none."""
    fields = load_json(data, path)
    try:
        fields.pop("format")
        fields["files"] = tuple(FileEntry(**file) for file in fields["files"])
        fields["failures"] = FileEntry(**fields["failures"]) if fields["failures"] else None
        fields["counts"] = Counts(**fields["counts"])
        fields["state"] = _state(fields)
        return Manifest(**fields)
    except (KeyError, TypeError) as error:
        raise InternalError(f"{path} is no manifest: {error}") from error


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What a log amounts to up to and with ``seq``: all that is below it is published, durably."""

    seq: int = 0
    position: int | None = None
    state: StateEntry | None = None

    def dump(self) -> bytes:
        fields: dict[str, Any] = {"format": _format(self.state), "seq": self.seq, "position": self.position}
        if self.state is not None:
            fields["state"] = dataclasses.asdict(self.state)
        return orjson.dumps(fields)


def load_checkpoint(data: bytes, path: Path) -> Checkpoint:
    """The checkpoint in ``data``; InternalError naming ``path`` if it is none."""
    fields = load_json(data, path)
    try:
        return Checkpoint(seq=fields["seq"], position=fields["position"], state=_state(fields))
    except (KeyError, TypeError) as error:
        raise InternalError(f"{path} is no checkpoint: {error}") from error


def _format(state: StateEntry | None) -> int:
    return FORMAT if state is None else FORMAT_WITH_STATE


def _state(fields: Mapping[str, Any]) -> StateEntry | None:
    entry = fields.get("state")
    return None if entry is None else StateEntry(**entry)


def load_json(data: bytes, path: Path) -> dict[str, Any]:
    """The JSON object in ``data``, of a format that is written here; InternalError naming ``path`` if none."""
    try:
        value = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise InternalError(f"{path} is torn or was edited: {error}") from error
    if not isinstance(value, dict) or value.get("format") not in (FORMAT, FORMAT_WITH_STATE):
        raise InternalError(
            f"{path} is of a format that this version does not know; it knows {FORMAT} and {FORMAT_WITH_STATE}",
            hint="Run the version that wrote it, or a later one.",
        )
    return value
