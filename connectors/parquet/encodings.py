"""How a file's columns are encoded, chosen from its first rows.

Parquet writers try a dictionary for every column and give it up when it has grown too large: for columns whose
values hardly repeat (identifiers, clocks, offsets) that is half of the time that a file takes. Such whole numbers
are written as differences (DELTA_BINARY_PACKED), such texts as they are.
Not here: compression, which every page goes through all the same.
"""

from __future__ import annotations

import io

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

#: Rows that are looked at, and the least that tell anything.
SAMPLE_ROWS_MAX = 10_000
SAMPLE_ROWS_MIN = 1_000

#: A column with more distinct values than this share of its rows gets no dictionary.
DISTINCT_SHARE_MAX = 0.75

#: Uncompressed bytes of a page: what stays in the processor's caches while it is encoded.
PAGE_BYTES = 256 * 1024

#: Rows that are encoded in one call.
BATCH_ROWS = 8_192


def writer(file: object, schema: pa.Schema, rows: pa.Table, compression: str) -> pq.ParquetWriter:
    """A writer of ``file`` with encodings that suit ``rows``, which are its first."""
    dictionary, differences = choose(schema, rows)
    return pq.ParquetWriter(
        file,
        schema,
        compression=compression,
        use_dictionary=dictionary,
        column_encoding=dict.fromkeys(differences, "DELTA_BINARY_PACKED") or None,
        data_page_size=PAGE_BYTES,
        write_batch_size=BATCH_ROWS,
    )


def choose(schema: pa.Schema, rows: pa.Table) -> tuple[list[str], list[str]]:
    """The columns that get a dictionary (as Parquet's leaf paths), and those written as differences."""
    sample = rows.slice(0, SAMPLE_ROWS_MAX)
    is_enough = sample.num_rows >= SAMPLE_ROWS_MIN
    unlike = {field.name for field in schema if is_enough and _hardly_repeats(sample.column(field.name))}
    differences = [name for name in unlike if _is_whole(schema.field(name).type)]
    return [path for path in _leaves(schema) if path not in unlike], differences


def _hardly_repeats(column: pa.ChunkedArray) -> bool:
    if not (_is_whole(column.type) or pa.types.is_floating(column.type) or _is_text(column.type)):
        return False
    return bool(pc.count_distinct(column).as_py() > DISTINCT_SHARE_MAX * len(column))


def _is_whole(kind: pa.DataType) -> bool:
    """Whether Parquet keeps the type as a 32-bit or 64-bit whole number."""
    return bool(pa.types.is_integer(kind) or pa.types.is_timestamp(kind) or pa.types.is_date32(kind))


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_binary(kind))


def _leaves(schema: pa.Schema) -> list[str]:
    """The paths of Parquet's columns; a nested field has several, or one below it."""
    if not any(pa.types.is_nested(field.type) for field in schema):
        return list(schema.names)
    empty = io.BytesIO()
    pq.ParquetWriter(empty, schema).close()
    columns = pq.ParquetFile(empty).schema
    return [columns.column(at).path for at in range(len(columns))]
