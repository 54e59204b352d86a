"""Rows and positions in a directory of Parquet files, exactly once."""

from connectors.parquet.filesystem import FileSystem, OsFileSystem
from connectors.parquet.sink import ParquetSink
from connectors.parquet.writer import ParquetShardWriter

__all__ = ["FileSystem", "OsFileSystem", "ParquetShardWriter", "ParquetSink"]
