"""The DuckDB sink: rows and positions in one file, moved by one transaction.

`Database` owns a file for the whole process; `DuckDBSink` is one pipeline's table in it. Inside this
package ``import duckdb`` is the library: the folder that holds ``connectors`` is on the path, never
``connectors`` itself.
"""

from connectors.duckdb.database import Database, Statistics
from connectors.duckdb.sink import DuckDBShard, DuckDBSink

__all__ = ["Database", "DuckDBShard", "DuckDBSink", "Statistics"]
