"""``headrace.duckdb`` beside the files: a view of the live rows, for any DuckDB, while the engine writes.

The file holds two views and no rows: ``data``, and one that is called as the pipeline. It is made under another
name and renamed into place, so that no reader ever sees half of it, and nobody here holds it open; it is made anew
only when its definition changes: the columns, the pipeline, or where the directory lies.

The view finds its files by one pattern, ``**/*.parque[tz]``: a pattern that finds nothing is an error to DuckDB,
so there is always a hidden file without rows, which no reader's ``*.parquet`` finds. It lies in Hive directories of
its own, since DuckDB wants the same ones of all files. What compaction has replaced is left out by the newest
record of compactions; `connectors.parquet.joined` says why that is right, in whatever order files and record are
read. DuckDB looks the pattern up anew for each statement, prepared ones included. It opens every file that it has
found, also those whose rows are left out: a query that is under way at the moment when joined files are removed may
end with "No such file". It never ends with a wrong answer.

pyarrow and pandas, given a directory, read every file in it that is not hidden, whatever its name. They look at a
Parquet file's end, DuckDB at its beginning: at the end of ``headrace.duckdb`` there is a Parquet file without rows.
Not here: when it is made (`connectors.parquet.sink`).
"""

from __future__ import annotations

import hashlib
import io
import tempfile
import uuid
from collections.abc import Sequence
from pathlib import Path

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from connectors.parquet.files import Directories, replace_durably
from connectors.parquet.filesystem import FileSystem
from connectors.parquet.joined import SUFFIX
from connectors.parquet.layout import HIDDEN, compaction_home, encode
from connectors.parquet.partitions import NULL, Key, file_schema

NAME = "headrace.duckdb"

#: The view of every sink, whatever its pipeline is called.
VIEW = "data"

#: Of the DuckDB file; it holds nothing but two definitions.
BLOCK_BYTES = 16_384

_FORMAT = 1

_HIVE_TYPES = (
    (pa.types.is_date32, "DATE"),
    (pa.types.is_boolean, "BOOLEAN"),
    (pa.types.is_uint64, "UBIGINT"),
    (pa.types.is_integer, "BIGINT"),
)


def publish_view(
    filesystem: FileSystem,
    directories: Directories,
    root: Path,
    pipeline: str,
    schema: pa.Schema,
    keys: Sequence[Key],
) -> bool:
    """Make the view of a sink whose rows have ``schema``, unless it is there as it should be; whether it was made.

    The sink's first record of compactions has to be there. Raises OSError, duckdb.Error, and ValueError for a
    directory that DuckDB cannot name.
    """
    root = root.resolve()
    if "\\" in str(root):
        raise ValueError(f"DuckDB does not find files below {root}, whose name has a backslash")
    statements = _statements(root, pipeline, schema, keys)
    definition = hashlib.sha256("\0".join([str(_FORMAT), *statements]).encode("utf-8", "surrogatepass")).hexdigest()
    note = root / HIDDEN / "view.json"
    if filesystem.size(root / NAME) is not None and _noted(filesystem, note) == definition:
        return False
    _write_none(filesystem, directories, root, schema, keys)
    temporary = root / HIDDEN / "temporary" / f"{uuid.uuid4().hex}.view"
    replace_durably(filesystem, temporary, root / NAME, _database(statements) + _no_rows(schema, keys))
    data = orjson.dumps({"format": _FORMAT, "definition": definition})
    replace_durably(filesystem, temporary.with_suffix(".json"), note, data)
    return True


def view_sql(root: Path, schema: pa.Schema, keys: Sequence[Key]) -> str:
    """The view's query, over the sink whose rows have ``schema``, in ``root``, an absolute path."""
    names = {name.lower() for name in schema.names}
    path = next(name for number in range(len(names) + 1) if (name := f"_path_{number}") not in names)
    columns = [*schema.names, *(key.name for key in keys if key.date)]
    hive = ", ".join(f"{_text(key.name)}: {_hive_type(schema, key)}" for key in keys)
    partitions = f"hive_partitioning = true, hive_types = {{{hive}}}" if keys else "hive_partitioning = false"
    records = _text(f"{_pattern(compaction_home(root))}/*{SUFFIX}")
    files = _text(f"{_pattern(root)}/**/*.parque[tz]")
    shape = "{seq: 'BIGINT', kind: 'VARCHAR', id: 'BIGINT', us: 'BIGINT', state: 'VARCHAR', file: 'VARCHAR'}"
    retired = "files were joined, and are removed, since this transaction began; begin another one"
    # What is put in comes from the sink, quoted.
    return f"""
WITH records AS MATERIALIZED (
    SELECT * FROM read_json({records}, format = 'newline_delimited', columns = {shape})
), newest AS (
    SELECT *, epoch_us(now()) >= us AS is_past FROM records WHERE seq = (SELECT max(seq) FROM records)
), hidden AS (
    SELECT {_text(str(root) + "/")} || file AS file FROM newest
    WHERE kind <> 'head' AND CASE
        WHEN state = 'retired' AND NOT is_past THEN error({_text(retired)})
        WHEN kind = 'input' THEN is_past AND state IN ('active', 'retired')
        ELSE NOT is_past OR state NOT IN ('active', 'retired')
    END
)
SELECT {", ".join(map(_name, columns))}
FROM read_parquet({files}, filename = {_text(path)}, {partitions}) AS files
ANTI JOIN hidden ON files.{path} = hidden.file
WHERE coalesce(try_cast(regexp_extract(files.{path}, '~c([0-9]+)[.]parquet$', 1) AS BIGINT), 0)
    <= (SELECT max(id) FROM newest WHERE kind = 'head')"""  # noqa: S608


def _statements(root: Path, pipeline: str, schema: pa.Schema, keys: Sequence[Key]) -> list[str]:
    query = view_sql(root, schema, keys)
    names = [VIEW] if pipeline.lower() == VIEW else [VIEW, pipeline]
    return [f"CREATE VIEW published.main.{_name(name)} AS {query}" for name in names]


def _noted(filesystem: FileSystem, note: Path) -> str | None:
    """The definition of the view that is there, None where that is not known."""
    try:
        found = orjson.loads(filesystem.read(note))
        return str(found["definition"])
    except (FileNotFoundError, KeyError, TypeError, ValueError):
        return None


def _write_none(
    filesystem: FileSystem, directories: Directories, root: Path, schema: pa.Schema, keys: Sequence[Key]
) -> None:
    """The file without rows; one that is there is replaced."""
    home = root / HIDDEN / "view"
    for key in keys:
        home /= f"{encode(key.name)}={NULL}"
    directories.ensure(home)
    temporary = root / HIDDEN / "temporary" / f"{uuid.uuid4().hex}.none"
    replace_durably(filesystem, temporary, home / "none.parquez", _no_rows(schema, keys))


def _no_rows(schema: pa.Schema, keys: Sequence[Key]) -> bytes:
    """A Parquet file without rows."""
    data = io.BytesIO()
    pq.write_table(file_schema(schema, keys).empty_table(), data)
    return data.getvalue()


def _database(statements: Sequence[str]) -> bytes:
    """A DuckDB file."""
    # Once in a sink's life, so that engines without a view to make do not load DuckDB, which takes 30 MB.
    import duckdb

    # Not in the sink: DuckDB takes some marks in a path for the end of a name when it writes.
    with tempfile.TemporaryDirectory(prefix="headrace-view-") as directory:
        path = Path(directory) / NAME
        with duckdb.connect(config={"threads": 1, "memory_limit": "64MB"}) as connection:
            connection.execute(f"ATTACH {_text(str(path))} AS published (BLOCK_SIZE {BLOCK_BYTES})")
            for statement in statements:
                connection.execute(statement)
            connection.execute("DETACH published")
        return path.read_bytes()


def _hive_type(schema: pa.Schema, key: Key) -> str:
    kind = pa.date32() if key.date else schema.field(key.column).type
    return next((name for check, name in _HIVE_TYPES if check(kind)), "VARCHAR")


def _pattern(path: Path) -> str:
    """A path as a pattern that finds it alone."""
    return "".join(f"[{char}]" if char in "[*?" else char for char in str(path))


def _text(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"


def _name(value: str) -> str:
    return '"' + value.replace('"', '""') + '"'
