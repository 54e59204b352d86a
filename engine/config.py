"""The configuration, as frozen models: what `headrace.toml` may hold, with ranges and defaults.

Settings that AWS has keep AWS's name in snake case, with AWS's ranges and defaults where they make
sense on Kafka (AWS Lambda API, CreateEventSourceMapping). Reading the file and naming its faults is in
`engine.config_file`; no connector is known here.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, SecretStr, field_validator, model_validator

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")

#: What fits, encoded as base64, into the 6 MB (of 1024 KB) that an invocation's payload may have on AWS.
RECORD_BYTES_MAX = 4_718_592

#: AWS closes a batch at 6 MB of payload; "MB" counts 1024 KB there.
PAYLOAD_BYTES_MAX = 6 * 1024 * 1024

Kind = Literal["kinesis", "kafka", "rows", "arrow", "sql"]
EVENT_KINDS: frozenset[str] = frozenset({"kinesis", "kafka"})

#: Formats of `SchemaConfig` whose schemas a registry has.
REGISTERED_FORMATS: frozenset[str] = frozenset({"avro", "protobuf"})


#: TOML has text where these are meant, and lists where tuples are.
FilePath = Annotated[Path, Field(strict=False)]
Names = Annotated[tuple[str, ...], Field(strict=False)]
Time = Annotated[AwareDatetime, Field(strict=False)]


class Model(BaseModel):
    # Strict: a number is no text and true is no number, though pydantic would take them.
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, strict=True)


class KafkaConfig(Model):
    """The cluster. ``bootstrap`` may be left to --bootstrap or HEADRACE_BOOTSTRAP."""

    bootstrap: str | None = Field(None, description="host:port[,host:port...]")
    client_id: str = Field("headrace", description="how the broker names this client in its logs")
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = Field(
        "PLAINTEXT", description="Kafka's security.protocol"
    )
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = Field(
        "PLAIN", description="Kafka's sasl.mechanism"
    )
    sasl_username: str | None = Field(None, description="goes with SASL_PLAINTEXT and SASL_SSL")
    sasl_password: SecretStr | None = Field(
        None, description="better in the variable HEADRACE_SASL_PASSWORD; never shown"
    )
    ssl_ca_file: FilePath | None = Field(None, description="PEM; the system's authorities when left out")
    ssl_cert_file: FilePath | None = Field(None, description="PEM; this client's certificate")
    ssl_key_file: FilePath | None = Field(None, description="PEM; the key of that certificate")
    client_rack: str = Field("", description="Kafka's client.rack: fetch from a replica nearby")
    broker_wait_seconds_max: float = Field(60.0, ge=0, description="how long a broker that is away is waited for")
    session_timeout_ms: int = Field(
        10_000, ge=1_000, le=300_000, description="a member that is silent for so long loses its shards"
    )
    heartbeat_interval_ms: int = Field(3_000, ge=100, description="at most half of session_timeout_ms")
    metadata_age_ms_max: int = Field(30_000, ge=100, description="how soon a new partition is seen")

    @model_validator(mode="after")
    def _heartbeats_fit(self) -> Self:
        if self.heartbeat_interval_ms * 2 > self.session_timeout_ms:
            raise ValueError("heartbeat_interval_ms may be at most half of session_timeout_ms")
        return self


class RegistryConfig(Model):
    """A Confluent-compatible schema registry, for Avro and Protobuf values."""

    url: str | None = Field(None, description="http(s)://HOST[:PORT][/PATH]; needed for avro and protobuf")
    username: str | None = Field(None, min_length=1, description="of HTTP basic authentication; or an API key")
    password: SecretStr | None = Field(
        None, description="better in the variable HEADRACE_REGISTRY_PASSWORD; never shown"
    )
    ca_file: FilePath | None = Field(None, description="PEM; the system's authorities when left out")
    timeout_seconds: float = Field(10.0, gt=0, le=300, description="for one request, answered whole")
    allow_plaintext_credentials: bool = Field(
        False, description="send them over http to another machine all the same"
    )


class EngineConfig(Model):
    """Bounds of the whole process."""

    drain_seconds_max: float = Field(
        30.0, gt=0, le=600, description="for finishing and committing when shards are revoked, or at SIGTERM"
    )
    memory_bytes_max: int | None = Field(
        None,
        ge=33_554_432,
        description="records in flight and DuckDB; 128 MiB, and as much again for each DuckDB file or query",
    )
    shard_bytes_max: int = Field(33_554_432, ge=1_048_576, description="records in flight of one shard")
    handler_threads_max: int = Field(8, ge=1, le=256, description="for decoding, and for each pipeline's handler")


class DestinationConfig(Model):
    on_failure: str | None = Field(None, description='"kafka://TOPIC", or a file: "file:PATH" or "PATH.jsonl"')

    @field_validator("on_failure")
    @classmethod
    def _known(cls, value: str | None) -> str | None:
        if value is None:
            return None
        if value.startswith("kafka://") and len(value) > len("kafka://"):
            return value
        if value.startswith("file:") and len(value) > len("file:"):
            return value
        if "://" not in value and value.endswith((".jsonl", ".ndjson")):
            return f"file:{value}"
        raise ValueError('valid are "kafka://TOPIC", "file:PATH" and a path that ends in .jsonl')


class SourceConfig(Model):
    """What an event source mapping can be told."""

    topic: str = Field(
        min_length=1, max_length=249, pattern=r"^[A-Za-z0-9._-]+$", description="a pipeline reads exactly one"
    )
    starting_position: Literal["TRIM_HORIZON", "LATEST", "AT_TIMESTAMP"] = Field(
        "TRIM_HORIZON", description="of the very first start; afterwards the sink knows the position"
    )
    starting_position_timestamp: Time | None = Field(None, description="goes with AT_TIMESTAMP")
    batch_size: int | None = Field(
        None,
        ge=1,
        le=1_000_000,
        description="records of one invocation; 100 for kinesis and kafka, 25,000 for sql, else 10,000",
    )
    maximum_batching_window_in_seconds: float = Field(
        0.5, ge=0, le=300, description="how long a partial batch waits for more"
    )
    maximum_retry_attempts: int = Field(
        -1,
        ge=-1,
        le=10_000,
        description="after the first attempt; -1: for ever; with kind kafka and on_failure, 10",
    )
    retry_backoff_seconds: float = Field(0.1, gt=0, description="first wait; doubles with each attempt")
    retry_backoff_seconds_max: float = Field(30.0, gt=0, description="the longest wait")
    destination_config: DestinationConfig = DestinationConfig()
    on_exhausted: Literal["stop", "drop"] = Field(
        "stop", description="without on_failure: stop the shard before a record that fails for good, or drop it"
    )
    on_lost_offsets: Literal["stop", "earliest"] = Field(
        "stop", description="when the log starts beyond the position"
    )
    on_recreated_topic: Literal["stop", "restart"] = Field(
        "stop", description="when the topic was deleted and made anew"
    )
    record_bytes_max: int = Field(
        RECORD_BYTES_MAX,
        ge=1,
        le=1_000_000_000,
        description="a larger value fails; 4.5 MiB is what fits a 6 MB event",
    )
    isolation_level: Literal["read_committed", "read_uncommitted"] = Field(
        "read_committed", description="Kafka's isolation.level"
    )
    fetch_bytes_max: int = Field(1_048_576, ge=1_024, description="of one shard, in one fetch")

    @model_validator(mode="after")
    def _timestamp_goes_with_its_position(self) -> Self:
        if (self.starting_position == "AT_TIMESTAMP") != (self.starting_position_timestamp is not None):
            raise ValueError('starting_position = "AT_TIMESTAMP" and starting_position_timestamp go together')
        return self


class SchemaConfig(Model):
    """How record values are read, for the kinds that are called with columns."""

    format: Literal["json", "avro", "protobuf", "text", "raw"] = Field(
        "json",
        description="JSON objects; Avro or Protobuf behind a registry's prefix; lines of text (column line); "
        "bytes (key, value, headers)",
    )
    prefix: bool = Field(
        False, description="json: each value stands behind a registry's 5 bytes (its JSON Schema serializer's)"
    )
    columns: dict[str, str] | None = Field(None, description="name = SQL type; inferred when left out")
    rest: bool = Field(True, description="keep unknown members in the JSON column _rest")
    trace: bool = Field(True, description="_partition, _offset and _timestamp in every row")
    record: bool = Field(False, description="the record's own bytes as well: columns _key, _value and _headers")
    on_null_value: Literal["fail", "drop"] = Field(
        "fail", description="what a record without a value (a tombstone) is"
    )

    @model_validator(mode="after")
    def _settings_go_with_the_format(self) -> Self:
        if self.columns is not None and self.format in ("text", "raw"):
            raise ValueError(f'columns go with format = "json", "avro" and "protobuf", not with "{self.format}"')
        if self.prefix and self.format != "json":
            raise ValueError(f'prefix goes with format = "json", not with "{self.format}"')
        if self.columns is not None and not self.columns:
            raise ValueError("columns is empty; leave it out to have the columns inferred")
        return self


class FunctionConfig(Model):
    """The handler. Without one, a pipeline writes its decoded records as they are."""

    kind: Kind = Field(description="what the handler is called with")
    handler: str | None = Field(None, description="module.function")
    query: str | None = Field(None, description="kind sql: a DuckDB query over `batch`")
    name: str | None = Field(None, description="of the function, in its context; the pipeline's when left out")
    columns: dict[str, str] | None = Field(None, description="of the rows it returns; else of its first rows")
    timeout: float = Field(30.0, gt=0, le=900, description="seconds that one invocation may take")
    memory_size: int = Field(128, ge=128, le=10_240, description="MB, told to the handler; not enforced in process")

    @model_validator(mode="after")
    def _what_the_kind_needs(self) -> Self:
        if self.kind == "sql" and (self.query is None or self.handler is not None):
            raise ValueError('kind = "sql" takes query and no handler')
        if self.kind != "sql" and (self.handler is None or self.query is not None):
            raise ValueError(f'kind = "{self.kind}" takes handler and no query')
        return self


class ParquetSinkConfig(Model):
    type: Literal["parquet"]
    path: FilePath = Field(description="a directory, relative to the configuration file")
    file_bytes_max: int = Field(134_217_728, ge=1, description="a shard's files of this size are committed")
    file_age_max_seconds: float = Field(
        5.0, gt=0, le=86_400, description="freshness: how long rows wait at most before they are committed"
    )
    row_group_bytes_max: int = Field(8_388_608, ge=65_536, description="rows of a shard that wait in memory")
    partition_by: Names = Field((), description='Hive directories: columns, or "date(COLUMN)"')
    hive_partitions_open_max: int = Field(64, ge=1, le=10_000, description="in one write; records beyond it fail")


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
        -1.0, ge=-1, description="for a file that another process has; -1: for ever, as a standby"
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


SINK_TYPES = ("parquet", "duckdb", "kafka", "none")
SinkConfig = Annotated[
    ParquetSinkConfig | DuckDBSinkConfig | KafkaSinkConfig | NoSinkConfig, Field(discriminator="type")
]


class PipelineConfig(Model):
    source: SourceConfig
    schema_: SchemaConfig = Field(SchemaConfig(), alias="schema")
    function: FunctionConfig | None = None
    sink: SinkConfig = NoSinkConfig(type="none")
    consumer_group_id: str | None = Field(
        None, min_length=1, max_length=200, description="headrace-NAME when left out; its own for each pipeline"
    )
    enabled: bool = Field(True, description="false: leave the pipeline out")

    @model_validator(mode="after")
    def _has_an_effect(self) -> Self:
        if self.function is None and isinstance(self.sink, NoSinkConfig):
            raise ValueError("a pipeline needs a function, a sink, or both")
        return self

    @model_validator(mode="after")
    def _does_not_read_what_it_writes(self) -> Self:
        if isinstance(self.sink, KafkaSinkConfig) and self.sink.topic == self.source.topic:
            raise ValueError(f"sink.topic = {self.sink.topic!r} is the source itself: its rows would be read again")
        return self


class Config(Model):
    kafka: KafkaConfig = KafkaConfig()
    registry: RegistryConfig = RegistryConfig()
    engine: EngineConfig = EngineConfig()
    pipelines: dict[str, PipelineConfig] = Field(min_length=1)

    @field_validator("pipelines")
    @classmethod
    def _names(cls, value: dict[str, PipelineConfig]) -> dict[str, PipelineConfig]:
        for name in value:
            if not NAME.fullmatch(name):
                raise ValueError(
                    f"pipeline name {name!r}: letters, digits, dot, dash and underscore, at most 100 of them"
                )
        return value

    @model_validator(mode="after")
    def _schemas_come_from_somewhere(self) -> Self:
        for name, pipeline in self.pipelines.items():
            if pipeline.schema_.format in REGISTERED_FORMATS and self.registry.url is None:
                raise ValueError(f'pipelines.{name}.schema.format = "{pipeline.schema_.format}" needs registry.url')
        return self

    @model_validator(mode="after")
    def _nothing_is_shared_that_must_not_be(self) -> Self:
        """Two pipelines must not write one table or directory, nor be one consumer group."""
        owners: dict[str, str] = {}
        faults = []
        for name, pipeline in self.pipelines.items():
            claims = [f"consumer group {group_id(name, pipeline)}"]
            if isinstance(pipeline.sink, ParquetSinkConfig):
                claims.append(f"Parquet directory {pipeline.sink.path}")
            if isinstance(pipeline.sink, DuckDBSinkConfig):
                table = pipeline.sink.table.lower().removeprefix("main.")  # as DuckDB compares names
                claims.append(f"table {table} of {pipeline.sink.path}")
            for claim in claims:
                other = owners.setdefault(claim, name)
                if other != name:
                    faults.append(f"pipelines {other} and {name} both use {claim}")
        if faults:
            raise ValueError("; ".join(faults))
        return self


def batch_size(pipeline: PipelineConfig) -> int:
    """AWS's default where AWS's events are made; columns want more, and a query costs a millisecond."""
    if pipeline.source.batch_size is not None:
        return pipeline.source.batch_size
    kind = None if pipeline.function is None else pipeline.function.kind
    if kind in EVENT_KINDS:
        return 100
    return 25_000 if kind == "sql" else 10_000


def group_id(name: str, pipeline: PipelineConfig) -> str:
    """The consumer group of a pipeline; its own unless told otherwise."""
    return pipeline.consumer_group_id or f"headrace-{name}"
