"""The state of a Parquet shard: small ones inside of the manifest, large ones in a file that the manifest names.

A log is read whole by each new owner, so a megabyte in each of its manifests would make every takeover slow. The
file is staged as files of rows are and stays where it is: nobody but the shard's owners reads it. It goes once a
commit that gives another state is durable.

Not here: when an entry counts, and which files recovery drops (`connectors.parquet.log`).
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable
from pathlib import Path

from connectors.parquet.files import StagedFile
from connectors.parquet.filesystem import FileSystem
from connectors.parquet.manifest import StateEntry
from engine.errors import InternalError
from engine.protocols import STATE_BYTES_MAX

#: What is put into the manifest itself: a file of its own would cost more than reading this again.
INLINE_BYTES_MAX = 4096


def stage_state(state: bytes, stage: Callable[[str], StagedFile]) -> StateEntry:
    """The entry for ``state``, whose file, if it takes one, is flushed; the name of the file is not yet durable."""
    assert len(state) <= STATE_BYTES_MAX
    checksum = hashlib.sha256(state).hexdigest()
    if len(state) <= INLINE_BYTES_MAX:
        return StateEntry(len(state), checksum, inline=base64.b64encode(state).decode("ascii"))
    file = stage("state")
    try:
        file.write(state)
        file.finish()
    except BaseException:
        file.abandon()
        raise
    return StateEntry(len(state), checksum, staged=file.path.name)


def load_state(filesystem: FileSystem, staging: Path, entry: StateEntry | None) -> bytes:
    """The bytes of an entry, checked. Raises FileNotFoundError, and InternalError for bytes that are others."""
    if entry is None:
        return b""
    where = "its manifest" if entry.staged is None else str(staging / entry.staged)
    try:
        data = (
            base64.b64decode(entry.inline or "", validate=True)
            if entry.staged is None
            else filesystem.read(staging / entry.staged)
        )
    except ValueError:
        data = b""
    if len(data) != entry.bytes or hashlib.sha256(data).hexdigest() != entry.sha256:
        raise InternalError(
            f"{staging.parent}: the state of the shard in {where} is damaged: it has {len(data)} bytes, and should "
            f"have {entry.bytes} with the checksum {entry.sha256[:16]}",
            hint="Restore the directory: without its state the shard's windows would be wrong.",
        )
    return data
