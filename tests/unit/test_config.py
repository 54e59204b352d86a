"""The configuration: every kind of fault, all of them at once, with the nearest valid name and no secret."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest

from engine.compose.pipelines import build_runtime
from engine.config import Config, PipelineConfig
from engine.config_file import load, parse, resolved
from engine.errors import ConfigError, Domain

SOURCE = """
[pipelines.p.source]
topic = "clicks"
"""
SINK = """
[pipelines.p.sink]
type = "parquet"
path = "out"
"""
DUCKDB = """
[pipelines.p.sink]
type = "duckdb"
path = "out.duckdb"
table = "events"
"""


def faults(text: str) -> list[str]:
    """What is wrong with a document; it has to be something."""
    with pytest.raises(ConfigError) as raised:
        parse(tomllib.loads(text))
    return raised.value.faults


def test_every_fault_of_every_section_is_reported_at_once() -> None:
    """Faults of different tables, kinds and pipelines come in one error, each on a line, with their number."""
    text = f"""
        [kafka]
        sesion_timeout_ms = 5000
        [engine]
        drain_seconds_max = 0
        {SOURCE}
        batch_sise = 10
        starting_position = "LATSET"
        {SINK}
        file_bytes_max = -1
        [pipelines.other]
        [pipelines.third]
        source.topic = "a b"
        sink.type = "duckdbb"
    """
    with pytest.raises(ConfigError) as raised:
        parse(tomllib.loads(text), source="headrace.toml")
    assert raised.value.faults == [
        "engine.drain_seconds_max = 0: input should be greater than 0",
        "kafka.sesion_timeout_ms: unknown key; did you mean session_timeout_ms?",
        "pipelines.other.source: is missing",
        "pipelines.p.sink.file_bytes_max = -1: input should be greater than or equal to 1",
        "pipelines.p.source.batch_sise: unknown key; did you mean batch_size?",
        "pipelines.p.source.starting_position = 'LATSET': valid are 'TRIM_HORIZON', 'LATEST' or 'AT_TIMESTAMP'; "
        "did you mean LATEST?",
        "pipelines.third.sink.type = 'duckdbb': valid are 'parquet', 'duckdb', 'ducklake', 'kafka', 'none'; "
        "did you mean duckdb?",
        "pipelines.third.source.topic = 'a b': string should match pattern '^[A-Za-z0-9._-]+$'",
    ]
    lines = str(raised.value).splitlines()
    assert lines[0] == "headrace.toml: 8 faults"
    assert lines[1:] == [f"  {fault}" for fault in raised.value.faults]
    assert raised.value.domain == Domain.USER


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "pipelines: is missing"),
        ("[pipelines]", "pipelines: dictionary should have at least 1 item after validation, not 0"),
        ("pipelines = 3", "pipelines = 3: input should be a valid dictionary"),
        ("[pipeline.p]" + SOURCE + SINK, "pipeline: unknown key; did you mean pipelines?"),
        (SOURCE + SINK + "[p]", "p: unknown key; valid are engine, kafka, pipelines"),
        (SOURCE, "pipelines.p: a pipeline needs a function, a sink, or both"),
        (SOURCE + "batch_size = 0" + SINK, "batch_size = 0: input should be greater than or equal to 1"),
        (
            SOURCE + 'batch_size = "many"' + SINK,
            "pipelines.p.source.batch_size = 'many': input should be a valid integer",
        ),
        (
            SOURCE + "batch_size = 1.5" + SINK,
            "pipelines.p.source.batch_size = 1.5: input should be a valid integer",
        ),
        (
            SOURCE + "retry_backoff_seconds = nan" + SINK,
            "retry_backoff_seconds = nan: input should be a finite number",
        ),
        (
            SOURCE + "retry_backoff_seconds = inf" + SINK,
            "retry_backoff_seconds = inf: input should be a finite number",
        ),
        (
            SOURCE + 'starting_position = "AT_TIMESTAMP"' + SINK,
            'pipelines.p.source: starting_position = "AT_TIMESTAMP" and starting_position_timestamp go together',
        ),
        (
            SOURCE + "starting_position_timestamp = 2026-01-01T00:00:00Z" + SINK,
            'pipelines.p.source: starting_position = "AT_TIMESTAMP" and starting_position_timestamp go together',
        ),
        (
            SOURCE + 'destination_config.on_failure = "s3://bucket"' + SINK,
            "pipelines.p.source.destination_config.on_failure = 's3://bucket': "
            'valid are "kafka://TOPIC", "file:PATH" and a path that ends in .jsonl',
        ),
        (SOURCE + 'destination_config.on_failure = "kafka://"' + SINK, 'valid are "kafka://TOPIC"'),
        (SOURCE + 'destination_config.on_sucess = "x"' + SINK, "on_sucess: unknown key; valid are on_failure"),
        (
            SOURCE + "[pipelines.p.sink]\npath = 'out'",
            "pipelines.p.sink.type: is missing; valid are 'parquet', 'duckdb', 'ducklake', 'kafka', 'none'",
        ),
        (SOURCE + "[pipelines.p]\nsink = 3", "pipelines.p.sink = 3: "),
        (
            SOURCE + DUCKDB + 'mode = "upsert"',
            'pipelines.p.sink: mode = "upsert" and key = ["COLUMN", ...] go together',
        ),
        (
            SOURCE + DUCKDB + 'key = ["id"]',
            'pipelines.p.sink: mode = "upsert" and key = ["COLUMN", ...] go together',
        ),
        (
            SOURCE + DUCKDB + "partition_by = []",
            "pipelines.p.sink.partition_by: unknown key; valid are aggregates, commit_bytes_max, ",
        ),
        (SOURCE + SINK + "pathh = 1", "pipelines.p.sink.pathh: unknown key; did you mean path?"),
        (
            SOURCE + SINK + "[pipelines.p.schema]\nformat = 'yaml'",
            "pipelines.p.schema.format = 'yaml': valid are 'json', 'avro', 'protobuf', 'text' or 'raw'",
        ),
        (SOURCE + SINK + "[pipelines.p.schema]\nformat = 'JSON'", "did you mean json?"),
        (
            SOURCE + SINK + "[pipelines.p.schema]\nformat = 'text'\ncolumns = {a = 'INT'}",
            'pipelines.p.schema: columns go with format = "json", "avro" and "protobuf", not with "text"',
        ),
        (
            SOURCE + SINK + "[pipelines.p.schema]\ncolumns = {}",
            "pipelines.p.schema: columns is empty; leave it out",
        ),
        (
            SOURCE + SINK + "[pipelines.p.schema]\ncolumns = {a = 1}",
            "pipelines.p.schema.columns.a = 1: input should be a valid string",
        ),
        (SOURCE + SINK + "[pipelines.p.function]\nkind = 'kinesys'\nhandler = 'a.b'", "did you mean kinesis?"),
        (SOURCE + SINK + "[pipelines.p.function]\nhandler = 'a.b'", "pipelines.p.function.kind: is missing"),
        (
            SOURCE + SINK + "[pipelines.p.function]\nkind = 'sql'\nhandler = 'a.b'",
            'kind = "sql" takes query and no handler',
        ),
        (
            SOURCE + SINK + "[pipelines.p.function]\nkind = 'rows'\nquery = 'x'",
            'kind = "rows" takes handler and no query',
        ),
        (
            SOURCE + SINK + "[pipelines.p.function]\nkind = 'rows'\nhandler = 'a.b'\ntimeout = 901",
            "timeout = 901: input should be less than or equal to 900",
        ),
        (
            '[pipelines."a b"]\nsource.topic = "t"\nsink = {type = "parquet", path = "o"}',
            "pipelines: pipeline name 'a b': letters, digits, dot, dash and underscore, at most 100 of them",
        ),
        (
            "[kafka]\nsession_timeout_ms = 1000\nheartbeat_interval_ms = 600" + SOURCE + SINK,
            "kafka: heartbeat_interval_ms may be at most half of session_timeout_ms",
        ),
        (
            "[kafka]\nsecurity_protocol = 'TLS'" + SOURCE + SINK,
            "kafka.security_protocol = 'TLS': valid are 'PLAINTEXT', 'SSL'",
        ),
    ],
)
def test_each_fault_names_its_key_its_value_and_what_is_valid(text: str, fault: str) -> None:
    """One fault of each kind, alone: exactly that one is reported."""
    [found] = faults(text)
    assert fault in found


@pytest.mark.parametrize("name", ["parquet", "duckdb", "none", "sink", "source", "kafka"])
def test_a_pipeline_named_like_a_setting_is_named_in_its_faults(name: str) -> None:
    """The key of a fault is whole, whatever the pipeline is called."""
    text = (SOURCE + "batch_sise = 1\n" + SINK + "pathh = 1").replace("pipelines.p.", f"pipelines.{name}.")
    assert faults(text) == [
        f"pipelines.{name}.sink.pathh: unknown key; did you mean path?",
        f"pipelines.{name}.source.batch_sise: unknown key; did you mean batch_size?",
    ]


def test_what_two_pipelines_must_not_share() -> None:
    """One consumer group, one directory and one table belong to one pipeline; all clashes are named."""
    text = "".join(
        f'[pipelines.{name}]\nsource.topic = "t"\nsink = {sink}\nconsumer_group_id = "g"\n'
        for name, sink in (
            ("a", '{type = "parquet", path = "out"}'),
            ("b", '{type = "parquet", path = "./out"}'),
            ("c", '{type = "duckdb", path = "db", table = "t"}'),
            ("d", '{type = "duckdb", path = "db", table = "main.T"}'),
        )
    )
    [fault] = faults(text)
    for clash in (
        "pipelines a and b both use consumer group g",
        "pipelines a and b both use Parquet directory out",
        "pipelines a and c both use consumer group g",
        "pipelines c and d both use table t of db",
    ):
        assert clash in fault


@pytest.mark.parametrize(
    "kafka",
    [
        'sasl_password = "open sesame"\nsesion_timeout_ms = 1',
        'sasl_pasword = "open sesame"',
        'sasl_password = ["open sesame"]',
        'sasl_password = {value = "open sesame"}',
        'sasl_password = "open sesame"\nsession_timeout_ms = 1000\nheartbeat_interval_ms = 900',
    ],
)
def test_no_fault_shows_a_secret(kafka: str) -> None:
    """A password is in no message, whatever is wrong with it or beside it."""
    found = faults(f"[kafka]\n{kafka}\n{SOURCE}{SINK}")
    assert found
    assert "sesame" not in "\n".join(found)


def test_the_resolved_configuration_shows_no_secret() -> None:
    """Neither the document for people nor the model's own text has the password."""
    config = parse(tomllib.loads(f'[kafka]\nsasl_password = "open sesame"\n{SOURCE}{SINK}'))
    shown: Any = resolved(config)
    assert shown["kafka"]["sasl_password"] == "**********"
    assert "sesame" not in str(shown) + repr(config) + str(config)
    assert config.kafka.sasl_password is not None
    assert config.kafka.sasl_password.get_secret_value() == "open sesame"


def test_a_long_value_is_cut_in_its_fault() -> None:
    """A fault stays one readable line."""
    [fault] = faults(SOURCE.replace("clicks", "x" * 10_000) + SINK)
    assert len(fault) < 300
    assert "…" in fault


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (None, "there is no such file"),
        (b"\xff", "cannot be read: "),
        (b"[kafka", "is not valid TOML: "),
        (b"a = 1\na = 2", "is not valid TOML: "),
    ],
)
def test_a_file_that_cannot_be_read(tmp_path: Path, content: bytes | None, fault: str) -> None:
    """Missing, not UTF-8 and not TOML are faults of the file, by its name."""
    path = tmp_path / "headrace.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError) as raised:
        load(path)
    assert str(raised.value).startswith(f"{path}: 1 fault\n  {fault}")
    with pytest.raises(ConfigError, match="cannot be read"):
        load(tmp_path)


def test_paths_are_relative_to_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sinks, on-failure files and certificates are found beside the file, from whatever directory, for good."""
    text = f'[kafka]\nssl_ca_file = "ca.pem"\n{SOURCE}destination_config.on_failure = "failed.jsonl"\n{SINK}'
    (tmp_path / "headrace.toml").write_text(text)
    monkeypatch.chdir(tmp_path.parent)
    config = load(Path(tmp_path.name) / "headrace.toml")
    pipeline = config.pipelines["p"]
    assert path_of(pipeline) == tmp_path / "out"
    assert pipeline.source.destination_config.on_failure == f"file:{tmp_path / 'failed.jsonl'}"
    assert config.kafka.ssl_ca_file == tmp_path / "ca.pem"


def path_of(pipeline: PipelineConfig) -> Path:
    path = getattr(pipeline.sink, "path", None)
    assert isinstance(path, Path)
    return path


def test_defaults_are_filled_in_by_kind() -> None:
    """Event kinds have AWS's batch size, the others a larger one; what is written stays."""
    function = "[pipelines.p.function]\nkind = 'kinesis'\nhandler = 'a.b'"
    for text, size in (
        (SOURCE + SINK, 10_000),
        (SOURCE + SINK + function, 100),
        (SOURCE + "batch_size = 7" + SINK, 7),
    ):
        config: Config = parse(tomllib.loads(text))
        assert config.pipelines["p"].source.batch_size == size
        assert config.pipelines["p"].consumer_group_id == "headrace-p"


def test_what_only_shows_when_pipelines_are_built_is_reported_together() -> None:
    """Handlers, queries and column types of all pipelines: one error, each fault with its pipeline."""
    parts = {
        "handler": "function = {kind = 'rows', handler = 'no_such_module.f'}",
        "query": "function = {kind = 'sql', query = 'SELEC 1'}",
        "type": "schema.columns = {id = 'BIGNIT'}",
        "reserved": "schema.columns = {_offset = 'BIGINT'}",
        "key": "function = {kind = 'rows', handler = 'functions.samples.handlers.f', columns = {a = 'INTT'}}",
    }
    text = "".join(
        f"[pipelines.{name}]\nsource.topic = 't'\nsink = {{type = 'parquet', path = '{name}'}}\n{part}\n"
        for name, part in parts.items()
    )
    config = parse(tomllib.loads(text))
    with pytest.raises(ConfigError) as raised:
        build_runtime(config, bootstrap="127.0.0.1:1")
    assert [fault.partition(":")[0] for fault in raised.value.faults] == [f"pipelines.{name}" for name in parts]
    said = str(raised.value)
    for word in ("no_such_module", "SELEC", "BIGNIT", "_offset"):
        assert word in said


def test_no_pipeline_at_all_is_a_fault() -> None:
    """A file in which everything is switched off does nothing, and says so."""
    config = parse(tomllib.loads(f"[pipelines.p]\nenabled = false\n{SOURCE}{SINK}"))
    with pytest.raises(ConfigError, match="every pipeline has enabled = false"):
        build_runtime(config, bootstrap="127.0.0.1:1")


KINESIS = '[pipelines.p.function]\nkind = "kinesis"\nhandler = "app.handler"\n'
KAFKA = KINESIS.replace("kinesis", "kafka")


@pytest.mark.parametrize(
    ("source", "function", "fault"),
    [
        ("maximum_record_age_in_seconds = 30", KINESIS, "valid are -1 and 60 to 604800, as on AWS"),
        ("parallelization_factor = 11", KINESIS, "parallelization_factor = 11"),
        (
            "parallelization_factor = 2\ntumbling_window_in_seconds = 60",
            KINESIS,
            "tumbling_window_in_seconds goes with parallelization_factor = 1",
        ),
        ("parallelization_factor = 2", KINESIS.replace("kinesis", "rows"), "goes with the kinds kinesis, kafka"),
        ("tumbling_window_in_seconds = 60", KINESIS.replace("kinesis", "arrow"), "goes with the kinds kinesis"),
        ('function_response_types = ["Other"]', KINESIS, "function_response_types"),
        ('function_response_types = ["ReportBatchItemFailures"]', KINESIS.replace("kinesis", "rows"), "goes with"),
        ('destination_config.on_success = "file:x"', KINESIS, "event source mappings have no on_success"),
        ("destination_config.replay = true", KINESIS, "replay goes with on_failure"),
        ("failed_share_max = 0", KINESIS, "failed_share_max = 0"),
        (
            "filter_criteria.filters = [" + ", ".join(["{pattern = '{}'}"] * 11) + "]",
            KINESIS,
            "filter_criteria.filters",
        ),
        (f"filter_criteria.filters = [{{pattern = '{'x' * 4097}'}}]", KINESIS, "at most 4096 characters"),
        ("", KINESIS + 'runtime = "provided"', 'runtime = "provided" takes command'),
        ("", KINESIS + 'command = ["./x"]', "command only with runtime"),
        ("", KINESIS + 'environment = {1X = "y"}', "letters, digits and underscore"),
        ("", KINESIS + f'environment = {{XX = "{"y" * 4096}"}}', "bytes of names and values; at most 4,096"),
        ("", KINESIS + "memory_size = 64", "memory_size = 64"),
        ("", KINESIS + "reserved_concurrency = 0", "reserved_concurrency = 0"),
        ("", KAFKA + 'event_source = "aws:kafka"', 'event_source = "aws:kafka" and event_source_arn go together'),
    ],
)
def test_what_a_mapping_cannot_be_told(source: str, function: str, fault: str) -> None:
    """Ranges are AWS's where AWS has them; what goes together is said."""
    assert fault in "\n".join(faults(f"{SOURCE}{source}\n{function}"))


@pytest.mark.parametrize(
    ("source", "function", "fault"),
    [
        ("batch_size = 20_000", KINESIS, "batch_size is at most 10000"),
        ("maximum_batching_window_in_seconds = 0.2", KINESIS, "in whole seconds"),
        ("parallelization_factor = 2", KAFKA, "parallelization_factor is not for Kafka"),
        ("tumbling_window_in_seconds = 60", KAFKA, "tumbling_window_in_seconds is not for Kafka"),
        ("", KAFKA + "timeout = 900", "at most 840 behind a Kafka mapping"),
        ("", KINESIS.replace("kinesis", "rows"), "has to be kinesis, kafka or dynamodb"),
        ("", KINESIS + 'name = "a.b"', "function.name has no dot"),
        ("", KINESIS + 'environment = {AWS_REGION = "x", MINE = "y"}', "AWS's own: AWS_REGION"),
        (
            'starting_position = "AT_TIMESTAMP"\nstarting_position_timestamp = 9999-01-01T00:00:00Z',
            KINESIS,
            "not in the future",
        ),
        (
            'starting_position = "AT_TIMESTAMP"\nstarting_position_timestamp = 2026-01-01T00:00:00Z',
            KINESIS.replace("kinesis", "dynamodb"),
            "AT_TIMESTAMP is not for DynamoDB",
        ),
    ],
)
def test_compatibility_refuses_what_aws_would(source: str, function: str, fault: str) -> None:
    """With compatibility = "aws" only; else it is taken."""
    window = "" if "batching_window" in source else "maximum_batching_window_in_seconds = 0\n"
    text = f"{SOURCE}{window}{source}\n{function}"
    parse(tomllib.loads(text))
    aws = text.replace("[pipelines.p.", '[pipelines.p]\ncompatibility = "aws"\n[pipelines.p.', 1)
    assert fault in "\n".join(faults(aws))


def test_a_functions_variables_are_shown_nowhere() -> None:
    """They are where people keep keys; neither the resolved document nor the model's text has them."""
    config = parse(tomllib.loads(SOURCE + KINESIS + 'environment = {API_KEY = "open sesame"}'))
    assert "sesame" not in str(resolved(config)) + repr(config) + str(config)
    function = config.pipelines["p"].function
    assert function is not None
    assert function.environment["API_KEY"].get_secret_value() == "open sesame"


def test_no_fault_shows_a_functions_variable() -> None:
    """Neither a value of another type nor a whole that is no table."""
    for given in ("{ SS = 77777 }", '"SS=77777"', "{ SS = [77777] }"):
        found = faults(SOURCE + KINESIS + f"environment = {given}")
        assert found
        assert "77777" not in str(found)


@pytest.mark.parametrize(
    ("kind", "compatibility", "seconds"),
    [("kinesis", "headrace", 0.5), ("kinesis", "aws", 0.0), ("dynamodb", "aws", 0.0), ("kafka", "aws", 0.5)],
)
def test_the_batching_window_is_aws_s_where_its_terms_are_asked_for(
    kind: str, compatibility: str, seconds: float
) -> None:
    """Left out, it is half a second, or AWS's default for the kind; `check` shows which."""
    text = f'[pipelines.p]\ncompatibility = "{compatibility}"\n' + SOURCE + KINESIS.replace("kinesis", kind)
    config = parse(tomllib.loads(text))
    assert config.pipelines["p"].source.maximum_batching_window_in_seconds == seconds
