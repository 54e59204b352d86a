"""Whole templates as configuration: every property that is honoured, and what the command line says to them.

What is refused, ignored or wrong is in test_sam_refusals.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from engine import config_file
from engine.config import Config
from engine.sam import Template, load
from engine.sam.globals import merged
from tests.unit.sam_stack import (
    CLUSTER_ARN,
    STREAM_ARN,
    TABLE_ARN,
    Stack,
    event,
    function,
    template,
    with_event,
)

SAMPLE = Path(__file__).parents[1] / "samples" / "sam" / "orders"

#: The sample's pipelines in the words of headrace.toml, folders relative to the sample.
EXPECTED: dict[str, Any] = json.loads((SAMPLE / "headrace.json").read_text())


def plain(value: object) -> Any:
    """A configuration's part as plain data, environment variables shown, what is left at its default left out."""
    dumped = value.model_dump(mode="json", by_alias=True, exclude_defaults=True)  # type: ignore[attr-defined]
    return json.loads(json.dumps(dumped))


@pytest.fixture
def stack(tmp_path: Path) -> Stack:
    return Stack(tmp_path)


# A whole template


def test_a_template_of_four_functions_is_exactly_this_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    """Globals, parameters, mappings, conditions, four kinds of streams, and a compiled program."""
    monkeypatch.setenv("AWS_REGION", "eu-west-1")
    read = load(
        SAMPLE / "template.yaml",
        topics={"replay-stream-arn": "replays"},
        on_failure={"FailedOrders": "kafka://failed-orders"},
    )
    assert read.config == config_file.parse(EXPECTED, directory=SAMPLE)
    assert read.unsupported == []
    assert [line.split(":")[0] for line in read.ignored] == [
        "Globals.Function.Tracing",
        "Globals.Function.Tags",
        "OrdersFunction.Policies",
        "OrdersFunction.ReservedConcurrentExecutions",
        "ClicksFunction.Events.Own.SourceAccessConfigurations",
    ]


def test_parameters_change_what_conditions_and_mappings_give() -> None:
    """The same template for another stage."""
    read = load(
        SAMPLE / "template.yaml",
        parameters={"Stage": "prod", "BatchSize": "50", "Brokers": "c:9092"},
        topics={"OrderStream": "orders", "OrdersFunction-Replays": "replays"},
        on_failure={"OrdersFunction-Orders": "kafka://failed"},
    )
    orders = read.config.pipelines["OrdersFunction-Orders"]
    assert (orders.source.topic, orders.source.batch_size, orders.source.maximum_retry_attempts) == (
        "orders",
        50,
        10,
    )
    assert read.config.pipelines["OrdersFunction-Replays"].enabled
    payments = read.config.pipelines["PaymentsFunction-Payments"].function
    assert payments is not None
    assert payments.memory_size == 1024
    assert read.config.kafka.bootstrap == "c:9092"
    assert read.unsupported == []


def test_what_cannot_be_mapped_is_left_out_and_named() -> None:
    """Without the two maps: both are unsupported, with the option that would help; the rest is there."""
    read = load(SAMPLE / "template.yaml")
    assert len(read.unsupported) == 2
    assert read.unsupported[0].startswith("OrdersFunction.Events.Orders.DestinationConfig.OnFailure.Destination: ")
    assert "--on-failure FailedOrders=" in read.unsupported[0]
    assert read.unsupported[1].startswith("OrdersFunction.Events.Replays.Stream: ImportValue replay-stream-arn")
    assert "--topic OrdersFunction-Replays=TOPIC" in read.unsupported[1]
    assert "OrdersFunction-Replays" not in read.config.pipelines
    assert read.config.pipelines["OrdersFunction-Orders"].source.destination_config.on_failure is None


# Each property


def the_pipeline(read: Template) -> Any:
    assert read.unsupported == []
    assert list(read.config.pipelines) == ["F-E"]
    return plain(read.config.pipelines["F-E"])


PATTERN = '{"data": {"a": ["b"]}}'

SOURCE = [
    ("Kinesis", "BatchSize", 7, "batch_size", 7),
    ("Kinesis", "BatchSize", "7", "batch_size", 7),
    ("Kinesis", "MaximumBatchingWindowInSeconds", 5, "maximum_batching_window_in_seconds", 5),
    ("Kinesis", "MaximumBatchingWindowInSeconds", None, "maximum_batching_window_in_seconds", 0),
    ("DynamoDB", "MaximumBatchingWindowInSeconds", None, "maximum_batching_window_in_seconds", 0),
    ("MSK", "MaximumBatchingWindowInSeconds", 2, "maximum_batching_window_in_seconds", 2),
    ("MSK", "MaximumBatchingWindowInSeconds", None, "maximum_batching_window_in_seconds", 0.5),
    ("Kinesis", "ParallelizationFactor", 4, "parallelization_factor", 4),
    ("DynamoDB", "ParallelizationFactor", 10, "parallelization_factor", 10),
    ("Kinesis", "BisectBatchOnFunctionError", True, "bisect_batch_on_function_error", True),
    ("MSK", "BisectBatchOnFunctionError", "true", "bisect_batch_on_function_error", True),
    ("Kinesis", "MaximumRetryAttempts", 3, "maximum_retry_attempts", 3),
    ("Kinesis", "MaximumRetryAttempts", -1, "maximum_retry_attempts", None),
    ("SelfManagedKafka", "MaximumRecordAgeInSeconds", 90, "maximum_record_age_in_seconds", 90),
    (
        *("Kinesis", "FunctionResponseTypes", ["ReportBatchItemFailures"]),
        *("function_response_types", ["ReportBatchItemFailures"]),
    ),
    ("DynamoDB", "TumblingWindowInSeconds", 30, "tumbling_window_in_seconds", 30),
    (
        *("Kinesis", "FilterCriteria", {"Filters": [{"Pattern": PATTERN}]}),
        *("filter_criteria", {"filters": [{"pattern": PATTERN}]}),
    ),
    ("Kinesis", "StartingPosition", "TRIM_HORIZON", "starting_position", None),
    ("DynamoDB", "StartingPosition", "LATEST", "starting_position", "LATEST"),
    (
        *("Kinesis", "DestinationConfig", {"OnFailure": {"Destination": "kafka://failed"}}),
        *("destination_config", {"on_failure": "kafka://failed"}),
    ),
    ("Kinesis", "DestinationConfig", {"OnFailure": {"Destination": ""}}, "destination_config", None),
]


@pytest.mark.parametrize(("kind", "name", "value", "key", "expected"), SOURCE)
def test_a_property_of_an_event(
    stack: Stack, kind: str, name: str, value: object, key: str, expected: object
) -> None:
    """Numbers may be text, as parameters are; what is left out has AWS's default."""
    read = stack.load(with_event(kind, **{name: value}))
    assert the_pipeline(read)["source"].get(key) == expected


FUNCTION: list[tuple[str, object, str, object]] = [
    ("Timeout", 17, "timeout", 17),
    ("Timeout", None, "timeout", 3),
    ("MemorySize", "512", "memory_size", 512),
    ("MemorySize", None, "memory_size", None),
    ("ReservedConcurrentExecutions", 2, "reserved_concurrency", 2),
    ("FunctionName", "my-function", "name", "my-function"),
    ("FunctionName", None, "name", "F"),
    ("Handler", "deep/er/app.fn", "handler", "deep.er.app.fn"),
    ("Handler", "deep.app.fn", "handler", "deep.app.fn"),
    ("Runtime", "python3.9", "runtime", None),
    ("PackageType", "Zip", "runtime", None),
]


@pytest.mark.parametrize(("name", "value", "key", "expected"), FUNCTION)
def test_a_property_of_a_function(stack: Stack, name: str, value: object, key: str, expected: object) -> None:
    """AWS's defaults where they differ from headrace's."""
    read = stack.load(template({"F": function(**{name: value})}))
    assert the_pipeline(read)["function"].get(key) == expected


def variables(config: Config, pipeline: str = "F-E") -> dict[str, str]:
    function = config.pipelines[pipeline].function
    assert function is not None
    return {name: value.get_secret_value() for name, value in function.environment.items()}


def test_environment_variables_are_text(stack: Stack) -> None:
    """As CloudFormation passes them on; those of Globals and of the function are one mapping."""
    own = {"Variables": {"NUMBER": 5, "FLAG": True, "SHARED": "own", "REF": {"Ref": "AWS::Region"}}}
    common = {"Function": {"Environment": {"Variables": {"SHARED": "common", "COMMON": "x"}}}}
    read = stack.load(template({"F": function(Environment=own)}, Globals=common))
    expected = {"SHARED": "own", "COMMON": "x", "NUMBER": "5", "FLAG": "true", "REF": "us-east-1"}
    assert variables(read.config) == expected
    assert "common" not in str(config_file.resolved(read.config)), "what is shown has no values"


@pytest.mark.parametrize(
    ("common", "own", "expected"),
    [
        (1, 2, 2),
        ({"a": 1, "b": {"c": 1}}, {"b": {"d": 2}}, {"a": 1, "b": {"c": 1, "d": 2}}),
        ([1, 2], [3], [1, 2, 3]),
        ({"l": [1]}, {"l": [2]}, {"l": [1, 2]}),
        ({"a": 1}, "text", "text"),
        ({"Ref": "A"}, {"a": 1}, {"a": 1}),
        ({"a": 1}, {"Fn::If": ["C", {}, {}]}, {"Fn::If": ["C", {}, {}]}),
    ],
)
def test_globals_are_merged(common: object, own: object, expected: object) -> None:
    """Mappings by key, lists with the global items first, anything else is the function's own."""
    assert merged(common, own) == expected


def test_globals_are_for_serverless_functions_alone(stack: Stack) -> None:
    """Plain functions of CloudFormation have only what they say themselves."""
    plain_function = {
        "Type": "AWS::Lambda::Function",
        "Properties": {"Runtime": "python3.12", "Handler": "app.handler", "Code": "src"},
    }
    mapping = {
        "Type": "AWS::Lambda::EventSourceMapping",
        "Properties": {
            "FunctionName": {"Ref": "P"},
            "EventSourceArn": STREAM_ARN,
            "StartingPosition": "LATEST",
        },
    }
    read = stack.load(
        template({"F": function(), "P": plain_function, "M": mapping}, Globals={"Function": {"Timeout": 99}})
    )
    timeouts = {name: pipeline.function.timeout for name, pipeline in read.config.pipelines.items()}  # type: ignore[union-attr]
    assert timeouts == {"F-E": 99, "P-M": 3}


# Mappings of plain CloudFormation


MAPPED: list[tuple[dict[str, object], dict[str, object]]] = [
    (
        {"EventSourceArn": {"Fn::GetAtt": ["S", "Arn"]}, "StartingPosition": "LATEST", "BatchSize": 5},
        {"topic": "S", "kind": "kinesis", "event_source_arn": "arn:aws:kinesis:us-east-1:000000000000:stream/S"},
    ),
    (
        {"EventSourceArn": TABLE_ARN, "StartingPosition": "LATEST"},
        {"topic": "pay", "kind": "dynamodb", "event_source_arn": TABLE_ARN},
    ),
    (
        {
            "EventSourceArn": CLUSTER_ARN,
            "StartingPosition": "LATEST",
            "Topics": ["t"],
            "AmazonManagedKafkaEventSourceConfig": {"ConsumerGroupId": "g"},
        },
        {"topic": "t", "kind": "kafka", "event_source_arn": CLUSTER_ARN, "group": "g"},
    ),
    (
        {
            "SelfManagedEventSource": {"Endpoints": {"KafkaBootstrapServers": ["k:9092"]}},
            "Topics": ["t"],
            "SelfManagedKafkaEventSourceConfig": {"ConsumerGroupId": "g"},
        },
        {"topic": "t", "kind": "kafka", "event_source_arn": None, "group": "g", "bootstrap": "k:9092"},
    ),
]


@pytest.mark.parametrize(("properties", "expected"), MAPPED)
@pytest.mark.parametrize(
    "name",
    [{"Ref": "P"}, {"Fn::GetAtt": ["P", "Arn"]}, "plain", "plain:live", "arn:aws:lambda:x:1:function:plain:live"],
)
def test_a_plain_mapping_is_the_event_that_makes_it(
    stack: Stack, properties: dict[str, object], expected: dict[str, object], name: object
) -> None:
    """AWS::Lambda::EventSourceMapping, whichever way it names its function."""
    resources: dict[str, object] = {
        "S": {"Type": "AWS::Kinesis::Stream"},
        "P": {
            "Type": "AWS::Lambda::Function",
            "Properties": {
                "FunctionName": "plain",
                "Runtime": "python3.12",
                "Handler": "app.handler",
                "Code": "src",
            },
        },
        "M": {"Type": "AWS::Lambda::EventSourceMapping", "Properties": {"FunctionName": name, **properties}},
    }
    read = stack.load({"Resources": resources})
    assert read.unsupported == []
    pipeline = read.config.pipelines["P-M"]
    assert pipeline.function is not None
    assert (pipeline.source.topic, pipeline.function.kind) == (expected["topic"], expected["kind"])
    assert pipeline.function.event_source_arn == expected["event_source_arn"]
    assert pipeline.consumer_group_id == expected.get("group", "headrace-P-M")
    assert read.config.kafka.bootstrap == expected.get("bootstrap")


# The command line's maps


@pytest.mark.parametrize("name", ["S", "named", "arn:aws:kinesis:us-east-1:000000000000:stream/named", "F-E"])
def test_a_stream_is_mapped_by_any_of_its_names(stack: Stack, name: str) -> None:
    """Logical id, name, ARN, or that of the pipeline."""
    resources = {
        "F": function({"E": event(Stream={"Fn::GetAtt": ["S", "Arn"]})}),
        "S": {"Type": "AWS::Kinesis::Stream", "Properties": {"Name": "named"}},
    }
    assert stack.load(template(resources)).config.pipelines["F-E"].source.topic == "named"
    read = stack.load(template(resources), topics={name: "other.topic"})
    assert read.config.pipelines["F-E"].source.topic == "other.topic"
    function_ = read.config.pipelines["F-E"].function
    assert function_ is not None
    assert function_.event_source_arn == "arn:aws:kinesis:us-east-1:000000000000:stream/named"


def test_an_enhanced_fan_out_consumer_is_its_stream(stack: Stack) -> None:
    """The consumer's ARN has the stream's name in it."""
    read = stack.load(with_event(Stream=f"{STREAM_ARN}/consumer/app:1"))
    assert read.config.pipelines["F-E"].source.topic == "clicks"


@pytest.mark.parametrize("name", ["Q", "dead", "F-E"])
@pytest.mark.parametrize("target", ["kafka://failed", "file:failed.jsonl", "failed.jsonl"])
def test_a_destination_is_mapped_by_any_of_its_names(
    stack: Stack, monkeypatch: pytest.MonkeyPatch, name: str, target: str
) -> None:
    """A file is relative to the directory in which the command was given."""
    monkeypatch.chdir(stack.directory / "src")
    resources = {
        "F": function(
            {
                "E": event(
                    DestinationConfig={"OnFailure": {"Type": "SQS", "Destination": {"Fn::GetAtt": ["Q", "Arn"]}}}
                )
            }
        ),
        "Q": {"Type": "AWS::SQS::Queue", "Properties": {"QueueName": "dead"}},
    }
    read = stack.load(template(resources), on_failure={name: target})
    assert read.unsupported == []
    expected = target if target.startswith("kafka") else f"file:{stack.directory / 'src' / 'failed.jsonl'}"
    assert read.config.pipelines["F-E"].source.destination_config.on_failure == expected


def test_names_that_nothing_has_are_faults(stack: Stack) -> None:
    """A misspelt map would otherwise be none; what there is is said."""
    faults = stack.faults(template(), topics={"X": "t"}, on_failure={"Y": "kafka://t"}, parameters={"Z": "1"})
    assert faults == [
        "--parameter Z: the template has no such parameter; there are none",
        f"--topic X: the template has nothing of that name; there are F-E, {STREAM_ARN}, clicks",
        "--on-failure Y: the template has nothing of that name; there are F-E",
    ]
    faults = stack.faults(template(), topics={"F-E": "a", "clicks": "b"})
    assert faults == ["--topic clicks: another name of the same thing has been given as well"]
    assert stack.faults(template(), on_failure={"F-E": "elsewhere"})[0].startswith("F.Events.E.destination_config")


# Which cluster


def two_clusters() -> dict[str, object]:
    events = {"A": event("SelfManagedKafka"), "B": event("SelfManagedKafka", KafkaBootstrapServers=["c:9092"])}
    return template({"F": function(events)})


def test_one_run_reads_one_cluster(stack: Stack, tmp_path: Path) -> None:
    """The template's servers, unless the command line names others."""
    read = stack.load(two_clusters())
    assert read.config.kafka.bootstrap == "a:9092,b:9092"
    assert read.unsupported == [
        "F.Events.B.KafkaBootstrapServers: one run reads one cluster, here a:9092,b:9092; "
        "--bootstrap names it for all"
    ]
    read = stack.load(two_clusters(), bootstrap="d:9092")
    assert (read.unsupported, read.config.kafka.bootstrap) == ([], None)
    assert len(read.ignored) == 2


def test_settings_come_from_a_file_of_their_own(stack: Stack) -> None:
    """[kafka], [registry] and [engine] of a TOML file, with or without pipelines; its paths are relative to it."""
    (stack.directory / "etc").mkdir()
    file = stack.directory / "etc" / "cluster.toml"
    file.write_text(
        '[kafka]\nbootstrap = "k:9093"\nsecurity_protocol = "SASL_SSL"\nssl_ca_file = "ca.pem"\n'
        "[engine]\ndrain_seconds_max = 5\n"
    )
    read = stack.load(two_clusters(), settings=file)
    assert read.config.kafka.bootstrap == "k:9093"
    assert read.config.kafka.ssl_ca_file == stack.directory / "etc" / "ca.pem"
    assert read.config.engine.drain_seconds_max == 5
    assert read.unsupported == []
    file.write_text("[kafka]\nbootstrp = 1\n")
    assert "did you mean bootstrap?" in stack.faults(template(), settings=file)[0]
