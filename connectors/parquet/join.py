"""Several Parquet files into one, row for row, a row group at a time.

Not here: which files, and what becomes of the result (`connectors.parquet.compaction`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from connectors.parquet.encodings import writer
from connectors.parquet.files import StagedFile

#: Rows that are decoded at a time, at most; fewer where they are large.
BATCH_ROWS_MAX = 65_536

#: Of an input, to be read at a time.
BUFFER_BYTES = 1_048_576


class Unjoinable(Exception):
    """``path`` is no Parquet file, or does not belong to those before it; the message says why."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path} {reason}")
        self.path = path


@dataclass(frozen=True, slots=True)
class ParquetJoiner:
    """Joins Parquet files of one schema. Holds about three times ``row_group_bytes_max`` at a time."""

    row_group_bytes_max: int = 8_388_608
    compression: str = "zstd"

    def __call__(self, inputs: Sequence[Path], output: StagedFile, stopping: Callable[[], None]) -> int:
        """Write the rows of ``inputs``, in their order, to ``output``, which is left open; how many there are.

        ``stopping`` is called now and then and may raise. Raises FileNotFoundError for an input that is gone,
        and Unjoinable.
        """
        schema = _schema(inputs[0])
        out: pq.ParquetWriter | None = None
        rows = 0
        try:
            for table in self._row_groups(inputs, schema):
                stopping()
                if out is None:
                    out = writer(output, schema, table, self.compression)
                out.write_table(table, row_group_size=max(1, table.num_rows))
                rows += table.num_rows
            if out is None:
                out = writer(output, schema, schema.empty_table(), self.compression)
            out.close()
            if (written := pq.read_metadata(output.path).num_rows) != rows:
                raise Unjoinable(output.path, f"has {written} rows where {rows} were written")
        except BaseException:
            if out is not None:
                out.is_open = False  # else it writes a footer when it is collected
            raise
        return rows

    def _row_groups(self, inputs: Sequence[Path], schema: pa.Schema) -> Iterator[pa.Table]:
        waiting: list[pa.RecordBatch] = []
        waiting_bytes = 0
        for path in inputs:
            for batch in self._batches(path, schema):
                waiting.append(batch)
                waiting_bytes += batch.nbytes
                if waiting_bytes >= self.row_group_bytes_max:
                    yield pa.Table.from_batches(waiting, schema)
                    waiting, waiting_bytes = [], 0
        if waiting:
            yield pa.Table.from_batches(waiting, schema)

    def _batches(self, path: Path, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
        try:
            yield from self._checked_batches(path, schema)
        except pa.ArrowInvalid as error:
            raise Unjoinable(path, f"cannot be read: {error}") from error

    def _checked_batches(self, path: Path, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
        rows = 0
        with pq.ParquetFile(path, pre_buffer=False, buffer_size=BUFFER_BYTES) as file:
            if not file.schema_arrow.equals(schema, check_metadata=False):
                raise Unjoinable(path, "has another schema than the files before it")
            for number in range(file.num_row_groups):
                group = file.metadata.row_group(number)
                row_bytes = max(1, group.total_byte_size // max(1, group.num_rows))
                size = min(BATCH_ROWS_MAX, max(1, self.row_group_bytes_max // (4 * row_bytes)))
                for batch in file.iter_batches(size, row_groups=[number], use_threads=False):
                    rows += batch.num_rows
                    yield pa.RecordBatch.from_arrays(batch.columns, schema=schema)
            if rows != file.metadata.num_rows:
                raise Unjoinable(path, f"has {rows} rows and says {file.metadata.num_rows}")


def _schema(path: Path) -> pa.Schema:
    try:
        return pq.read_schema(path).remove_metadata()
    except pa.ArrowInvalid as error:
        raise Unjoinable(path, f"cannot be read: {error}") from error
