"""The live files of a Parquet sink: what readers outside of the view should read, by the view's own rule.

For those who cannot read a DuckDB view, pandas and polars say. It owns nothing and changes nothing, and may be
called while the engine writes and compacts. Not here: the rule itself (`connectors.parquet.joined`).
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from connectors.parquet.filesystem import OsFileSystem, reaching
from connectors.parquet.joined import READS_MAX, Retired, newest_record
from connectors.parquet.layout import PUBLIC


def live_files(root: Path) -> list[Path]:
    """The public files below ``root`` whose rows are all rows, each once; sorted. Blocks.

    Read them soon: files that compaction has joined are removed after ``retired_seconds_min``. A directory that
    is no sink gives all files that end in ``.parquet`` and lie in no hidden directory. Raises SinkUnavailable.
    """
    filesystem = OsFileSystem()
    for attempt in range(READS_MAX):
        now_us = int(time.time() * 1_000_000)
        with reaching(root):
            found = public_files(root)
            record = newest_record(filesystem, root)
        if record is None:
            return [root / path for path in found]
        try:
            hidden = record.hidden(now_us)
        except Retired:
            if attempt + 1 == READS_MAX:
                raise
            continue
        return [root / path for path in found if record.sees(path, hidden)]
    raise AssertionError("unreachable")


def public_files(root: Path) -> list[str]:
    """The files below ``root`` that plain globs find, as paths below it with ``/``, sorted."""
    found = []
    for directory, directories, names in os.walk(root):
        directories[:] = [name for name in directories if not name.startswith(".")]
        below = Path(directory).relative_to(root).as_posix()
        prefix = "" if below == "." else f"{below}/"
        found += [prefix + name for name in names if name.endswith(PUBLIC) and not name.startswith(".")]
    return sorted(found)
