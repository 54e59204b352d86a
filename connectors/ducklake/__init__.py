"""The DuckLake sink: rows, positions and failed records in one lake, moved by one of its transactions.

`LakeDatabase` owns a lake's catalogue for the whole process; `DuckLakeSink` is one pipeline's table in it. Threads,
the wait for the file, group commit and the shards are those of `connectors.duckdb`.
"""

from connectors.ducklake.database import LakeDatabase
from connectors.ducklake.sink import DuckLakeSink

__all__ = ["DuckLakeSink", "LakeDatabase"]
