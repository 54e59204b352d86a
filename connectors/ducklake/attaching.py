"""A lake as a catalogue of a DuckDB connection: the extension, ATTACH, and what its refusals mean.

Not here: who holds a lake and for how long (`database`), and headrace's tables in it (`catalog`).
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import duckdb

from connectors.analysis.extensions import load
from engine.errors import HeadraceError, SinkMismatch, SinkUnavailable

#: The lake's name in SQL, and that of the DuckDB file behind it: names of the connection, not of the lake.
LAKE = "lake"
METADATA = f"__ducklake_metadata_{LAKE}"

_HOLDER = re.compile(r"Conflicting lock is held in (.*?) ?\(PID (\d+)\)")


class Held(Exception):
    """Another process holds the catalogue; the text says which, as far as DuckDB told."""


def attach(
    path: Path, *, settings: Mapping[str, str | bool | int | float | list[str]] | None = None, options: str
) -> duckdb.DuckDBPyConnection:
    """A connection of an instance of its own, whose current catalogue is the lake at ``path``.

    ``options`` are those of ATTACH. Raises `Held`, SinkMismatch for a lake or a file that is something else,
    SinkUnavailable, and ExternalError without the extension.
    """
    connection = instance(path, settings or {})
    try:
        use(connection, path, options)
    except BaseException:
        connection.close()
        raise
    return connection


def instance(path: Path, settings: Mapping[str, str | bool | int | float | list[str]]) -> duckdb.DuckDBPyConnection:
    """A connection of an instance that can attach lakes, for the one at ``path``. Raises ExternalError."""
    connection = duckdb.connect(
        config={
            **settings,
            "autoinstall_known_extensions": False,
            "autoload_known_extensions": False,
            "temp_directory": f"{path}.tmp",
        }
    )
    try:
        load(connection, "ducklake")
        # DuckLake would put a transaction that met another one on top of it as long as their rows do not clash. Two
        # owners that insert the same position for the first time do not: whoever meets another one has to fail.
        connection.execute("SET GLOBAL ducklake_max_retry_count = 0")
        # After a COMMIT that fails on a full disk, DuckDB 1.5.5 would make wrong marks durable on close.
        connection.execute("PRAGMA disable_checkpoint_on_shutdown")
    except BaseException:
        connection.close()
        raise
    return connection


def use(connection: duckdb.DuckDBPyConnection, path: Path, options: str) -> None:
    """Attach the lake at ``path`` and make it the current catalogue. Raises as `attach`."""
    try:
        connection.execute(f"ATTACH {literal(f'ducklake:{path}')} AS {LAKE} ({options})")
        connection.execute(f"USE {LAKE}")
    except duckdb.Error as error:
        raise _meaning(path, error) from error


def leave(connection: duckdb.DuckDBPyConnection) -> None:
    """Let go of the lake, but not of the instance.

    To close the instance is not enough: after a COMMIT that met another one, DuckLake holds the file for as long as
    the process lives, and a standby waits as long.
    """
    connection.execute("USE memory")
    connection.execute(f"DETACH {LAKE}")


def confine(connection: duckdb.DuckDBPyConnection, places: Sequence[Path], spill_bytes_max: int) -> None:
    """Let the instance reach ``places`` and nothing else; as `connectors.duckdb.database.confine`.

    Settings are not locked: which rows go into the catalogue is one, and no question of an analyst can change any.
    """
    listed = ", ".join(literal(f"{place}{os.sep}") for place in places)
    for setting in (
        f"max_temp_directory_size = '{spill_bytes_max}B'",
        "TimeZone = 'UTC'",
        "python_enable_replacements = false",
        f"allowed_directories = [{listed}]",
        "enable_external_access = false",
    ):
        connection.execute(f"SET GLOBAL {setting}")


def literal(text: str) -> str:
    """``text`` as an SQL string."""
    return "'" + text.replace("'", "''") + "'"


def _meaning(path: Path, error: duckdb.Error) -> HeadraceError | Held:
    text = " ".join(str(error).split())
    if "Could not set lock" in text:
        found = _HOLDER.search(text)
        program = f" ({found[1]})" if found and found[1] else ""
        return Held(f"process {found[2]}{program}" if found else "another process")
    if "file handle conflict" in text:
        return SinkUnavailable(
            f"DuckLake catalogue {path} is open in this process already",
            hint="One process has a catalogue open once; pipelines that write to it share it.",
        )
    if "DATA_PATH parameter" in text:
        return SinkMismatch(
            f"DuckLake catalogue {path} has its files elsewhere: {text.removeprefix('Error ')}",
            hint="Give the sink that data_path, or another catalogue.",
        )
    if "explicitly disabled" in text:
        return SinkMismatch(
            f"DuckDB file {path} is no DuckLake catalogue",
            hint="Give the sink another path, or move that file away.",
        )
    if "version mismatch" in text:
        return SinkMismatch(
            f"DuckLake catalogue {path} is of another version: {text}",
            hint="Use the DuckDB that made it, or migrate it.",
        )
    return SinkUnavailable(f"DuckLake catalogue {path}: {text}", hint="See that it can be read and written.")
