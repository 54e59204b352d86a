"""DuckDB's extensions out of their wheels: nothing is ever downloaded.

Not here: what they are loaded for.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import duckdb

from engine.errors import ExternalError


def load(connection: duckdb.DuckDBPyConnection, *names: str) -> None:
    """Load extensions, in that order. Raises ExternalError for one that is not installed or does not fit DuckDB."""
    for name in names:
        path = extension_path(name)
        try:
            connection.execute("LOAD '" + str(path).replace("'", "''") + "'")
        except duckdb.Error as error:
            raise ExternalError(f"DuckDB's extension {name} cannot be loaded from {path}: {error}") from error


def extension_path(name: str) -> Path:
    """Where the wheel ``duckdb-extension-NAME`` has put its file."""
    found = importlib.util.find_spec(f"duckdb_extension_{name}")
    for place in (found.submodule_search_locations or ()) if found is not None else ():
        path = Path(place) / "extensions" / f"v{duckdb.__version__}" / f"{name}.duckdb_extension"
        if path.is_file():
            return path
    raise ExternalError(
        f"DuckDB's extension {name} is not installed for DuckDB {duckdb.__version__}",
        hint=f"pip install duckdb-extension-{name}=={duckdb.__version__}",
    )
