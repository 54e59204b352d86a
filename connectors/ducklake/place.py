"""The directory of a lake's data files: made so that it lasts, and claimed for one catalogue.

What no snapshot names is removed from it (`database`), so two lakes in one directory would take each other's files.
"""

from __future__ import annotations

import os
import uuid
from pathlib import Path

from engine.errors import SinkMismatch

#: Holds the path of the catalogue that the directory was made for.
CLAIM = ".headrace-lake"


def make(folder: Path) -> None:
    """``folder`` and those above it, made where they are missing, so that they outlive a loss of power."""
    missing = []
    above = folder
    while not above.exists():
        missing.append(above)
        above = above.parent
    folder.mkdir(parents=True, exist_ok=True)
    for made in missing:
        flush(made.parent)


def claim(folder: Path, catalogue: Path) -> None:
    """Take ``folder`` for a catalogue that is to be made. Raises SinkMismatch where it has files already."""
    owner = _owner(folder)
    if owner != str(catalogue):
        named = f", of the lake {owner}" if owner is not None and Path(owner).exists() else ""
        if named or any(not path.is_dir() for path in folder.rglob("*") if path.name != CLAIM):
            raise SinkMismatch(
                f"{folder} has files already{named}: it cannot hold those of the new lake {catalogue}",
                hint="Give the sink a data_path of its own, or the catalogue that belongs to these files.",
            )
        draft = folder / f"{CLAIM}.{uuid.uuid4().hex}"
        draft.write_text(str(catalogue))
        flush(draft)
        draft.replace(folder / CLAIM)
        flush(folder)


def is_claimed(folder: Path, catalogue: Path) -> bool:
    """Whether `claim` has taken ``folder`` for this catalogue; never where others made the lake."""
    return _owner(folder) == str(catalogue)


def flush(path: Path) -> None:
    """Make a file, or the names in a directory, durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _owner(folder: Path) -> str | None:
    try:
        return (folder / CLAIM).read_text()
    except FileNotFoundError:
        return None
