"""Encodings: what is chosen from the first rows, and that every reader gets back what was written."""

import io
from datetime import UTC, datetime, timedelta
from pathlib import Path

import duckdb
import polars
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from connectors.parquet.encodings import SAMPLE_ROWS_MIN, choose, writer

ROWS = 3_000
START = datetime(2026, 1, 1, tzinfo=UTC)


def table(rows: int = ROWS) -> pa.Table:
    scattered = [(at * 2_654_435_761) % 2**31 for at in range(rows)]
    return pa.table(
        {
            "id": pa.array(range(rows), pa.int64()),
            "small": pa.array([at % 7 for at in range(rows)], pa.int32()),
            "unsigned": pa.array([2**64 - 1 - at for at in range(rows)], pa.uint64()),
            "narrow": pa.array([at % 128 for at in range(rows)], pa.int8()),
            "hash": pa.array([-(2**62) + each * 2**30 for each in scattered], pa.int64()),
            "at": pa.array([START + timedelta(milliseconds=at) for at in range(rows)], pa.timestamp("ms", "UTC")),
            "name": pa.array([f"user-{each}" for each in scattered]),
            "page": pa.array([f"/p/{at % 20}" for at in range(rows)]),
            "maybe": pa.array([None if at % 3 else at for at in range(rows)], pa.int64()),
            "ratio": pa.array([each / 7 for each in scattered], pa.float64()),
            "tags": pa.array([[f"t{at}", None] for at in range(rows)], pa.list_(pa.string())),
        }
    )


def test_what_hardly_repeats_gets_no_dictionary() -> None:
    """Identifiers and clocks are written as differences, scattered texts as they are, the rest by a dictionary."""
    made = table()
    dictionary, differences = choose(made.schema, made)
    assert sorted(differences) == ["at", "hash", "id", "unsigned"]
    assert sorted(dictionary) == ["maybe", "narrow", "page", "small", "tags.list.element"]


def test_few_rows_tell_nothing() -> None:
    """A file whose first rows are few gets dictionaries throughout, as by default."""
    made = table(SAMPLE_ROWS_MIN - 1)
    dictionary, differences = choose(made.schema, made)
    assert not differences
    assert len(dictionary) == len(made.schema)


@pytest.mark.parametrize("rows", [0, 1, ROWS])
def test_every_reader_gets_back_what_was_written(tmp_path: Path, rows: int) -> None:
    """Also rows unlike the first, which the encodings were chosen from."""
    first, unlike = table(), table().slice(0, rows).take(pa.array(range(rows)[::-1], pa.int64()))
    path = tmp_path / "a.parquet"
    with writer(path, first.schema, first, "zstd") as made:
        made.write_table(first)
        made.write_table(unlike)
    wanted = pa.concat_tables([first, unlike])
    assert pq.read_table(path).equals(wanted)
    assert polars.read_parquet(path).height == wanted.num_rows
    flat = wanted.drop_columns(["at"])
    found = duckdb.sql(f'SELECT * EXCLUDE ("at") FROM "{path}"').to_arrow_table()
    assert found.cast(flat.schema).equals(flat)
    assert [row["id"] for row in polars.read_parquet(path).to_dicts()] == wanted.column("id").to_pylist()


def test_files_become_smaller() -> None:
    """What the choice is for: less to encode, and no dictionary that is thrown away."""
    made, chosen, default = table(), io.BytesIO(), io.BytesIO()
    with writer(chosen, made.schema, made, "zstd") as file:
        file.write_table(made)
    pq.write_table(made, default, compression="zstd")
    assert chosen.tell() < 0.8 * default.tell()
