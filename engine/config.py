"""The configuration, as frozen models: what `headrace.toml` may hold, with ranges and defaults.

Settings that AWS has keep AWS's name in snake case, with AWS's ranges and defaults where they make
sense on Kafka (AWS Lambda API, CreateEventSourceMapping). Reading the file and naming its faults is in
`engine.config_file`; no connector is known here.
"""

from __future__ import annotations

import datetime as dt
import re
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, SecretStr, field_validator, model_validator

from engine.config_model import FilePath, Model, Names, Time
from engine.config_serving import QueryConfig, TracingConfig, WebConfig
from engine.config_sinks import (
    DuckDBSinkConfig,
    DuckLakeSinkConfig,
    KafkaSinkConfig,
    NoSinkConfig,
    ParquetSinkConfig,
    SinkConfig,
)

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")

#: What fits, encoded as base64, into the 6 MB (of 1024 KB) that an invocation's payload may have on AWS.
RECORD_BYTES_MAX = 4_718_592

#: AWS closes a batch at 6 MB of payload; "MB" counts 1024 KB there.
PAYLOAD_BYTES_MAX = 6 * 1024 * 1024

Kind = Literal["kinesis", "kafka", "dynamodb", "firehose", "rows", "arrow", "sql"]

#: Kinds that are called with AWS's event, in execution environments.
EVENT_KINDS: frozenset[str] = frozenset({"kinesis", "kafka", "dynamodb", "firehose"})

#: Kinds of AWS's event source mappings.
MAPPED_KINDS: frozenset[str] = frozenset({"kinesis", "kafka", "dynamodb"})

#: AWS takes 5 filters of a mapping, and 10 on request; each of so many characters.
FILTERS_MAX = 10
PATTERN_CHARACTERS_MAX = 4096

#: What AWS demands of the names of environment variables, and of all of them together.
VARIABLE = re.compile(r"[A-Za-z][A-Za-z0-9_]+")
VARIABLES_BYTES_MAX = 4096

#: What AWS sets itself, and lets nobody set (developer guide, "Defined runtime environment variables").
RESERVED_VARIABLES: frozenset[str] = frozenset(
    {
        "_HANDLER",
        "_X_AMZN_TRACE_ID",
        "AWS_DEFAULT_REGION",
        "AWS_REGION",
        "AWS_EXECUTION_ENV",
        "AWS_LAMBDA_FUNCTION_NAME",
        "AWS_LAMBDA_FUNCTION_MEMORY_SIZE",
        "AWS_LAMBDA_FUNCTION_VERSION",
        "AWS_LAMBDA_INITIALIZATION_TYPE",
        "AWS_LAMBDA_LOG_GROUP_NAME",
        "AWS_LAMBDA_LOG_STREAM_NAME",
        "AWS_ACCESS_KEY",
        "AWS_ACCESS_KEY_ID",
        "AWS_SECRET_ACCESS_KEY",
        "AWS_SESSION_TOKEN",
        "AWS_LAMBDA_RUNTIME_API",
        "LAMBDA_TASK_ROOT",
        "LAMBDA_RUNTIME_DIR",
    }
)

#: Formats of `SchemaConfig` whose schemas a registry has.
REGISTERED_FORMATS: frozenset[str] = frozenset({"avro", "protobuf"})


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
    function_log_path: FilePath | None = Field(
        None, description="a directory for what functions print, a file for each log stream; else the engine's log"
    )
    function_log_bytes_max: int = Field(
        67_108_864, ge=65_536, description="of one function's files; the oldest go first"
    )
    metering_path: FilePath | None = Field(
        None, description="a file of what invocations cost, for `headrace report`"
    )


class DestinationConfig(Model):
    on_failure: str | None = Field(None, description='"kafka://TOPIC", or a file: "file:PATH" or "PATH.jsonl"')
    replay: bool = Field(
        False, description="also run the function on the topic NAME.retry, where `headrace dlq replay` sends to"
    )

    @model_validator(mode="before")
    @classmethod
    def _no_mapping_has_on_success(cls, value: object) -> object:
        if isinstance(value, dict) and "on_success" in value:
            raise ValueError("event source mappings have no on_success, here as on AWS: give the pipeline a sink")
        return value

    @model_validator(mode="after")
    def _replays_what_failed(self) -> Self:
        if self.replay and self.on_failure is None:
            raise ValueError("replay goes with on_failure: it sends again what is there")
        return self

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


class FilterConfig(Model):
    pattern: str = Field(
        min_length=1, max_length=PATTERN_CHARACTERS_MAX, description="JSON text of an event pattern"
    )


class FilterCriteriaConfig(Model):
    """A record that matches none of the filters is let go before batches are made."""

    filters: Annotated[tuple[FilterConfig, ...], Field(strict=False)] = Field(
        (), max_length=FILTERS_MAX, description="one match is enough"
    )


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
    maximum_batching_window_in_seconds: float | None = Field(
        None,
        ge=0,
        le=300,
        description="how long a partial batch waits for more; 0.5, or half of what the sink waits if that is less; "
        'for AWS\'s kinds 0.5, and 0 with compatibility = "aws" but for kafka',
    )
    maximum_retry_attempts: int = Field(
        -1,
        ge=-1,
        le=10_000,
        description="after the first attempt; -1: for ever; with kind kafka and on_failure, 10",
    )
    maximum_record_age_in_seconds: int = Field(
        -1, ge=-1, le=604_800, description="older records are reported unhandled; -1: however old; else from 60"
    )
    bisect_batch_on_function_error: bool = Field(
        False, description="halve a batch that fails, down to one record; a split is no retry"
    )
    function_response_types: Annotated[tuple[Literal["ReportBatchItemFailures"], ...], Field(strict=False)] = Field(
        (), max_length=1, description='["ReportBatchItemFailures"]: believe a response\'s batchItemFailures'
    )
    parallelization_factor: int = Field(
        1, ge=1, le=10, description="invocations of one shard at a time; order holds for each key"
    )
    lane_bytes_max: int = Field(
        16_777_216, ge=1_048_576, description="with several lanes: what waits behind the slowest one, of a shard"
    )
    tumbling_window_in_seconds: int = Field(
        0, ge=0, le=900, description="hand a state from invocation to invocation of a window; 0: no windows"
    )
    tumbling_window_wait_in_seconds: float = Field(
        120.0, ge=0, le=3_600, description="without records, until a window that is over is closed"
    )
    filter_criteria: FilterCriteriaConfig = FilterCriteriaConfig()
    failed_share_max: float = Field(
        1.0, gt=0, le=1, description="stop a shard when more of its last records failed; 1: never"
    )
    failed_share_records: int = Field(
        1_000, ge=1, le=1_000_000, description="how many records that share is taken of"
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

    @field_validator("maximum_record_age_in_seconds")
    @classmethod
    def _age(cls, value: int) -> int:
        if 0 <= value < 60:
            raise ValueError("valid are -1 and 60 to 604800, as on AWS")
        return value

    @model_validator(mode="after")
    def _a_window_is_one_chain(self) -> Self:
        if self.tumbling_window_in_seconds and self.parallelization_factor > 1:
            raise ValueError("tumbling_window_in_seconds goes with parallelization_factor = 1")
        return self

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
    name: str | None = Field(
        None,
        pattern=r"^[A-Za-z0-9._-]{1,64}$",
        description="of the function, in its context; the pipeline's when left out",
    )
    columns: dict[str, str] | None = Field(None, description="of the rows it returns; else of its first rows")
    timeout: float = Field(30.0, gt=0, le=900, description="seconds that one invocation may take")
    root: FilePath | None = Field(
        None, description="the directory that the handler is imported from; the configuration's when left out"
    )
    runtime: Literal["python", "provided"] = Field(
        "python", description="provided: any program that speaks the Lambda Runtime API"
    )
    command: Names = Field((), description="provided: the program and its arguments")
    memory_size: int = Field(
        128, ge=128, le=10_240, description="MB that an environment of an event kind may take; else only told"
    )
    environment: dict[str, SecretStr] = Field(
        {}, description="variables of the function's environments; never shown"
    )
    reserved_concurrency: int = Field(
        8, ge=1, le=1_000, description="environments of an event kind at most; started on demand"
    )
    idle_seconds_max: float = Field(
        300.0, gt=0, le=86_400, description="an idle environment is ended after so long"
    )
    event_source: Literal["SelfManagedKafka", "aws:SelfManagedKafka", "aws:kafka"] = Field(
        "SelfManagedKafka", description="kind kafka: what events say; aws:kafka is Amazon MSK"
    )
    event_source_arn: str | None = Field(None, description="what events say; needed for aws:kafka")

    @field_validator("environment")
    @classmethod
    def _variables(cls, value: dict[str, SecretStr]) -> dict[str, SecretStr]:
        for name in value:
            if not VARIABLE.fullmatch(name):
                raise ValueError(f"{name!r}: letters, digits and underscore, two at least, a letter first")
        size = sum(len(name.encode()) + len(text.get_secret_value().encode()) for name, text in value.items())
        if size > VARIABLES_BYTES_MAX:
            raise ValueError(f"{size:,} bytes of names and values; at most {VARIABLES_BYTES_MAX:,}, as on AWS")
        return value

    @model_validator(mode="after")
    def _what_the_kind_needs(self) -> Self:
        if self.kind == "sql" and (self.query is None or self.handler is not None):
            raise ValueError('kind = "sql" takes query and no handler')
        if self.kind != "sql" and self.query is not None:
            raise ValueError(f'kind = "{self.kind}" takes handler and no query')
        if self.runtime == "provided" and (self.kind not in EVENT_KINDS or not self.command):
            raise ValueError('runtime = "provided" takes command = [...] and an event kind, such as kinesis')
        if self.runtime == "python" and self.kind != "sql" and (self.handler is None or self.command):
            raise ValueError(f'kind = "{self.kind}" takes handler (and command only with runtime = "provided")')
        if (self.event_source == "aws:kafka") != (self.kind == "kafka" and self.event_source_arn is not None):
            raise ValueError('event_source = "aws:kafka" and event_source_arn go together, with kind = "kafka"')
        return self


class PipelineConfig(Model):
    source: SourceConfig
    schema_: SchemaConfig = Field(SchemaConfig(), alias="schema")
    function: FunctionConfig | None = None
    sink: SinkConfig = NoSinkConfig(type="none")
    consumer_group_id: str | None = Field(
        None, min_length=1, max_length=200, description="headrace-NAME when left out; its own for each pipeline"
    )
    enabled: bool = Field(True, description="false: leave the pipeline out")
    compatibility: Literal["headrace", "aws"] = Field(
        "headrace", description="aws: refuse what an event source mapping on AWS would refuse"
    )

    @property
    def has_group_position(self) -> bool:
        """The group offset is the position: there is no sink, and no window whose state would need one."""
        return isinstance(self.sink, NoSinkConfig) and not self.source.tumbling_window_in_seconds

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

    @model_validator(mode="after")
    def _settings_go_with_the_kind(self) -> Self:
        kind = None if self.function is None else self.function.kind
        source = self.source
        if kind not in EVENT_KINDS:
            if source.parallelization_factor > 1:
                raise ValueError("parallelization_factor goes with the kinds kinesis, kafka and dynamodb")
            if source.bisect_batch_on_function_error and kind is None:
                raise ValueError("bisect_batch_on_function_error goes with a function")
        if kind not in MAPPED_KINDS:
            for name in ("function_response_types", "tumbling_window_in_seconds"):
                if getattr(source, name):
                    raise ValueError(f"{name} goes with the kinds kinesis, kafka and dynamodb")
        return self

    @model_validator(mode="after")
    def _is_what_aws_takes(self) -> Self:
        if self.compatibility == "aws" and (faults := refused_by_aws(self)):
            raise ValueError('compatibility = "aws": ' + "; ".join(faults))
        return self


class Config(Model):
    kafka: KafkaConfig = KafkaConfig()
    registry: RegistryConfig = RegistryConfig()
    engine: EngineConfig = EngineConfig()
    web: WebConfig = WebConfig()
    query: QueryConfig = QueryConfig()
    tracing: TracingConfig = TracingConfig()
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
            if isinstance(pipeline.sink, DuckDBSinkConfig | DuckLakeSinkConfig):
                table = pipeline.sink.table.lower().removeprefix("main.")  # as DuckDB compares names
                claims.append(f"table {table} of {pipeline.sink.path}")
            for claim in claims:
                other = owners.setdefault(claim, name)
                if other != name:
                    faults.append(f"pipelines {other} and {name} both use {claim}")
        faults += self._copies_that_differ() + self._files_of_two_sorts()
        if faults:
            raise ValueError("; ".join(faults))
        return self

    def _files_of_two_sorts(self) -> list[str]:
        """A DuckDB file that is a table's and a lake's too, and a lake with two directories of data."""
        wanted: dict[Path, tuple[str, object]] = {}
        faults = []
        for name, pipeline in self.pipelines.items():
            sink = pipeline.sink
            if isinstance(sink, DuckDBSinkConfig | DuckLakeSinkConfig):
                settings = (sink.type, sink.data_path if isinstance(sink, DuckLakeSinkConfig) else None)
                other, known = wanted.setdefault(sink.path, (name, settings))
                if known != settings:
                    faults.append(f"pipelines {other} and {name} use {sink.path} as two different things")
        return faults

    def _copies_that_differ(self) -> list[str]:
        """Pipelines of one DuckDB file that publish it, each in another way."""
        wanted: dict[Path, tuple[str, object]] = {}
        faults = []
        for name, pipeline in self.pipelines.items():
            sink = pipeline.sink
            if not isinstance(sink, DuckDBSinkConfig) or sink.publish is None:
                continue
            settings = (sink.snapshot_path, sink.snapshot_interval_seconds)
            other, known = wanted.setdefault(sink.path, (name, settings))
            if known != settings:
                faults.append(f"pipelines {other} and {name} publish {sink.path} in two ways")
        return faults


def refused_by_aws(pipeline: PipelineConfig) -> list[str]:
    """What AWS's API would say to these settings (CreateEventSourceMapping, CreateFunction)."""
    source, function = pipeline.source, pipeline.function
    if function is None or function.kind not in MAPPED_KINDS:
        return ["function.kind has to be kinesis, kafka or dynamodb"]
    faults = []
    if batch_size(pipeline) > 10_000:
        faults.append("source.batch_size is at most 10000")
    window = batching_window(pipeline)
    if window != int(window) and not (function.kind == "kafka" and window == 0.5):
        faults.append("source.maximum_batching_window_in_seconds is in whole seconds")
    if function.kind == "kafka":
        if source.parallelization_factor > 1:
            faults.append("source.parallelization_factor is not for Kafka")
        if source.tumbling_window_in_seconds:
            faults.append("source.tumbling_window_in_seconds is not for Kafka")
    if function.kind == "dynamodb" and source.starting_position == "AT_TIMESTAMP":
        faults.append("source.starting_position AT_TIMESTAMP is not for DynamoDB")
    if len(source.filter_criteria.filters) > FILTERS_MAX // 2:
        faults.append("source.filter_criteria has at most 5 filters, and more on request")
    timestamp = source.starting_position_timestamp
    if timestamp is not None and timestamp > dt.datetime.now(dt.UTC):
        faults.append("source.starting_position_timestamp is not in the future")
    if "." in (function.name or ""):
        faults.append("function.name has no dot")
    if reserved := sorted(RESERVED_VARIABLES & function.environment.keys()):
        faults.append(f"function.environment has names that are AWS's own: {', '.join(reserved)}")
    if function.timeout != int(function.timeout):
        faults.append("function.timeout is in whole seconds")
    if function.kind == "kafka" and function.timeout > 840:
        faults.append("function.timeout is at most 840 behind a Kafka mapping")
    return faults


def batch_size(pipeline: PipelineConfig) -> int:
    """AWS's default where AWS's events are made; columns want more, and a query costs a millisecond."""
    if pipeline.source.batch_size is not None:
        return pipeline.source.batch_size
    kind = None if pipeline.function is None else pipeline.function.kind
    if kind in EVENT_KINDS:
        return 100
    return 25_000 if kind == "sql" else 10_000


def batching_window(pipeline: PipelineConfig) -> float:
    """Seconds; AWS's default where its terms are asked for."""
    given = pipeline.source.maximum_batching_window_in_seconds
    if given is not None:
        return given
    kind = None if pipeline.function is None else pipeline.function.kind
    if pipeline.compatibility == "aws" and kind != "kafka":
        return 0.0
    if kind in EVENT_KINDS:
        return 0.5
    # Who wants rows committed sooner does not want them to wait for a batch for longer than that.
    sink = pipeline.sink
    wait = getattr(sink, "file_age_max_seconds", getattr(sink, "commit_interval_max_seconds", 1.0))
    return min(0.5, wait / 2)


def group_id(name: str, pipeline: PipelineConfig) -> str:
    """The consumer group of a pipeline; its own unless told otherwise."""
    return pipeline.consumer_group_id or f"headrace-{name}"
