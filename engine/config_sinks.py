"""The sinks' settings, as frozen models. Not here: the sinks, which are connectors."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from engine.config_model import FilePath, Model, Names


class ParquetSinkConfig(Model):
    type: Literal["parquet"]
    path: FilePath = Field(description="a directory, relative to the configuration file")
    file_bytes_max: int = Field(134_217_728, ge=1, description="a shard's files of this size are committed")
    file_age_max_seconds: float = Field(
        1.0, gt=0, le=86_400, description="freshness: how long rows wait at most before they are committed"
    )
    row_group_bytes_max: int = Field(8_388_608, ge=65_536, description="rows of a shard that wait in memory")
    partition_by: Names = Field((), description='Hive directories: columns, or "date(COLUMN)"')
    hive_partitions_open_max: int = Field(64, ge=1, le=10_000, description="in one write; records beyond it fail")
    compact: bool = Field(False, description="join small files, beside the run (`headrace compact` does it once)")
    file_bytes_target: int = Field(
        134_217_728, ge=65_536, description="compaction: the size that files are joined to"
    )
    compact_files_min: int = Field(
        8, ge=2, le=1_000, description="compaction: small files of a directory to begin at"
    )
    compact_interval_seconds: float = Field(60.0, gt=0, le=86_400, description="compaction: how often it looks")
    retired_seconds_min: float = Field(
        60.0, ge=0, le=86_400, description="compaction: how long files that were joined stay, for queries under way"
    )


class DuckDBSinkConfig(Model):
    type: Literal["duckdb"]
    path: FilePath = Field(description="a file, relative to the configuration file; made when missing")
    table: str = Field(min_length=1, max_length=200, description="NAME or SCHEMA.NAME; made when missing")
    mode: Literal["append", "upsert", "aggregate"] = Field(
        "append", description="add rows, merge changes by key, or merge partial aggregates by key"
    )
    key: Names = Field((), description="upsert, aggregate: the columns that name a row")
    aggregates: dict[str, str] | None = Field(
        None,
        description='aggregate: `{ COLUMN = "sum" }` for every column that is not of the key; valid are sum, count,'
        " min, max, bool_and, bool_or",
    )
    order_by: str = Field("_offset", description="upsert: the last change of a key by this column stays")
    delete_column: str = Field("_deleted", description="upsert: a row where this is true deletes its key")
    commit_interval_max_seconds: float = Field(
        1.0, gt=0, le=3_600, description="freshness: how long rows wait at most before they are committed"
    )
    commit_bytes_max: int = Field(67_108_864, ge=1, description="rows of a shard that wait in memory")
    lock_wait_seconds_max: float = Field(
        -1.0,
        ge=-1,
        description="for a file another process has; -1: for ever, as a standby (30 with --until-caught-up)",
    )
    publish: Literal["snapshot"] | None = Field(
        None, description="also keep a read-only copy of the file, for tools that open files"
    )
    snapshot_path: FilePath | None = Field(None, description="snapshot: the copy; PATH.snapshot when left out")
    snapshot_interval_seconds: float = Field(
        30.0, gt=0, le=86_400, description="snapshot: from the end of one copy to the start of the next"
    )

    @model_validator(mode="after")
    def _mode_has_what_it_needs(self) -> Self:
        if self.mode == "aggregate" and not self.key:
            raise ValueError('mode = "aggregate" and key = ["COLUMN", ...] go together')
        if self.mode != "aggregate" and (self.mode == "upsert") != bool(self.key):
            raise ValueError('mode = "upsert" and key = ["COLUMN", ...] go together')
        if (self.mode == "aggregate") != bool(self.aggregates):
            raise ValueError('mode = "aggregate" and aggregates = { COLUMN = "sum", ... } go together')
        return self


class DuckLakeSinkConfig(Model):
    type: Literal["ducklake"]
    path: FilePath = Field(description="the catalogue, a DuckDB file; made when missing")
    data_path: FilePath | None = Field(
        None, description="the directory of the data files; PATH.files when left out"
    )
    table: str = Field(min_length=1, max_length=200, description="NAME or SCHEMA.NAME; made when missing")
    commit_interval_max_seconds: float = Field(
        5.0, gt=0, le=3_600, description="freshness: how long rows wait at most; each commit is a snapshot"
    )
    commit_bytes_max: int = Field(67_108_864, ge=1, description="rows of a shard that wait in memory")
    lock_wait_seconds_max: float = Field(
        -1.0,
        ge=-1,
        description="for a catalogue another process has; -1: for ever, as a standby (30 with --until-caught-up)",
    )


class KafkaSinkConfig(Model):
    type: Literal["kafka"]
    topic: str = Field(
        min_length=1, max_length=249, pattern=r"^[A-Za-z0-9._-]+$", description="made when missing; not the source"
    )
    key: str | None = Field(None, description="the column that is the message's key; without one rows are spread")
    value: str | None = Field(None, description="the column that is the message; else the row as a JSON object")
    omit: Names = Field((), description="columns that the JSON object leaves out")
    partitions: int | None = Field(
        None, ge=1, le=10_000, description="of a topic that has to be made; as many as the source when left out"
    )
    compression: Literal["none", "gzip", "snappy", "lz4", "zstd"] = Field("lz4", description="of the messages")
    commit_interval_max_seconds: float = Field(
        0.2, gt=0, le=3_600, description="freshness: how long rows wait at most before they are committed"
    )
    commit_bytes_max: int = Field(16_777_216, ge=1, description="rows of a shard that wait in memory")

    @model_validator(mode="after")
    def _omits_from_json(self) -> Self:
        if self.omit and self.value is not None:
            raise ValueError("omit goes with rows as JSON objects, not with value")
        return self


class NoSinkConfig(Model):
    """The handler has its own effects: at least once, and the group offset is the checkpoint."""

    type: Literal["none"]


SINK_TYPES = ("parquet", "duckdb", "ducklake", "kafka", "none")
SinkConfig = Annotated[
    ParquetSinkConfig | DuckDBSinkConfig | DuckLakeSinkConfig | KafkaSinkConfig | NoSinkConfig,
    Field(discriminator="type"),
]


def sink_target(sink: SinkConfig) -> str | None:
    """Where rows go, for those who look: a path, a path and its table, or a topic."""
    match sink:
        case ParquetSinkConfig():
            return str(sink.path)
        case DuckDBSinkConfig() | DuckLakeSinkConfig():
            return f"{sink.path}: {sink.table}"
        case KafkaSinkConfig():
            return sink.topic
        case NoSinkConfig():
            return None
