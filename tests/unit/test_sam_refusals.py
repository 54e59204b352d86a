"""What templates ask for that is not honoured, does no harm, or is wrong: each is named.

Last, that no template at all makes the reader do anything else.
"""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.errors import ConfigError
from tests.unit.sam_stack import (
    STREAM_ARN,
    Stack,
    event,
    function,
    template,
    with_event,
)


@pytest.fixture
def stack(tmp_path: Path) -> Stack:
    return Stack(tmp_path)


# What is not honoured


UNSUPPORTED: list[tuple[dict[str, object], str]] = [
    *(
        (
            template({"F": function(), "G": function({"E": {"Type": kind}})}),
            f"G.Events.E: functions are not called by {kind}",
        )
        for kind in (
            *("Api", "HttpApi", "S3", "SNS", "SQS", "Schedule", "ScheduleV2", "EventBridgeRule", "CloudWatchEvent"),
            *("CloudWatchLogs", "IoTRule", "AlexaSkill", "Cognito", "DocumentDB", "MQ"),
        )
    ),
    *(
        (template({"F": function(**{name: {"a": 1}})}), f"F.{name}: ")
        for name in (
            *("Layers", "KmsKeyArn", "EventInvokeConfig", "DeadLetterQueue", "FileSystemConfigs"),
            *("FunctionUrlConfig", "TenancyConfig", "DurableConfig", "Brand New"),
        )
    ),
    (template({"F": function(), "G": function(ImageUri="x", CodeUri=None)}), "G.ImageUri: container images"),
    (template({"F": function(), "G": function(PackageType="Image")}), "G.PackageType: container images"),
    (template({"F": function(), "G": function(InlineCode="x", CodeUri=None)}), "G.InlineCode: code has to be"),
    (template({"F": function(), "G": function(CodeUri="s3://bucket/key")}), "G.CodeUri: s3:// is not fetched"),
    (
        template({"F": function(), "G": function(CodeUri={"Bucket": "b", "Key": "k"})}),
        "G.CodeUri: code has to be a local directory, not Bucket, Key",
    ),
    (template({"F": function(), "G": function(CodeUri="src/app.py")}), "G.CodeUri: src/app.py is a file"),
    (template({"F": function(), "G": function(Runtime="nodejs22.x")}), "G.Runtime: nodejs22.x is not run"),
    (
        template(
            {
                "F": function(CodeUri="src", Environment={"Variables": {"A1": {"Ref": "R"}}}),
                "R": {"Type": "AWS::IAM::Role"},
            }
        ),
        "F.Environment.Variables.A1: Ref R (AWS::IAM::Role) has no value",
    ),
    (
        template({"F": function(Environment={"Variables": {"DB": "{{resolve:ssm:x}}"}})}),
        "F.Environment.Variables.DB: a dynamic",
    ),
    (
        template({"F": function({"E": event(), "G": event(Stream={"Fn::ImportValue": "x"})})}),
        "F.Events.G.Stream: ImportValue x",
    ),
    (with_event("MSK", Stream={"Fn::ImportValue": "x"}), "F.Events.E.Stream: ImportValue x"),
    (
        with_event("MSK", ParallelizationFactor=2),
        "F.Events.E.ParallelizationFactor: headrace knows no such property of MSK",
    ),
    (with_event("MSK", SchemaRegistryConfig={}), "F.Events.E.SchemaRegistryConfig: records reach"),
    (with_event("Kinesis", KmsKeyArn="x"), "F.Events.E.KmsKeyArn: nothing is encrypted"),
    (with_event("Kinesis", New=1), "F.Events.E.New: headrace knows no such property of Kinesis events"),
    (
        with_event("MSK", SourceAccessConfigurations=[{"Type": "SASL_SCRAM_512_AUTH", "URI": "arn:hush"}]),
        "F.Events.E.SourceAccessConfigurations: SASL_SCRAM_512_AUTH: its secret is in AWS",
    ),
    (
        with_event(DestinationConfig={"OnFailure": {"Destination": "arn:aws:sqs:x:1:q"}}),
        "F.Events.E.DestinationConfig.OnFailure.Destination: arn:aws:sqs:x:1:q is not there; --on-failure",
    ),
    (
        with_event(DestinationConfig={"OnSuccess": {"Destination": "x"}}),
        "F.Events.E.DestinationConfig.OnSuccess: AWS takes none",
    ),
    (template({"F": function(), "A": {"Type": "AWS::Serverless::Api"}}), "A: AWS::Serverless::Api: no HTTP API"),
    (
        template({"F": function(), "A": {"Type": "AWS::KinesisFirehose::DeliveryStream"}}),
        "A: AWS::KinesisFirehose::DeliveryStream: delivery streams are not run",
    ),
    (template({"F": function(), "A": {"Type": "Custom::Thing"}}), "A: Custom::Thing: custom resources"),
    (
        template(
            {
                "F": function(),
                "M": {
                    "Type": "AWS::Lambda::EventSourceMapping",
                    "Properties": {"FunctionName": "elsewhere", "EventSourceArn": STREAM_ARN},
                },
            }
        ),
        "M: its function is not in this template",
    ),
    (
        template(
            {
                "F": function(),
                "M": {
                    "Type": "AWS::Lambda::EventSourceMapping",
                    "Properties": {"FunctionName": {"Ref": "F"}, "EventSourceArn": "arn:aws:sqs:x:1:q"},
                },
            }
        ),
        "M: functions are not called by SQS",
    ),
    (
        template(Transform=["AWS::Serverless-2016-10-31", "AWS::LanguageExtensions"]),
        "Transform: AWS::LanguageExtensions",
    ),
    (template(Nonsense={}), "Nonsense: headrace knows no such section"),
]


@pytest.mark.parametrize(("document", "said"), UNSUPPORTED, ids=[said for _, said in UNSUPPORTED])
def test_what_cannot_be_honoured_is_named(stack: Stack, document: dict[str, object], said: str) -> None:
    """By resource and property, with why; what can run without it is still there."""
    read = stack.load(document)
    assert len(read.unsupported) == 1, read.unsupported
    assert read.unsupported[0].startswith(said)
    assert "F-E" in read.config.pipelines
    assert not any(name.startswith("G") for name in read.config.pipelines)
    assert "hush" not in read.unsupported[0]


IGNORED: list[tuple[dict[str, object], str]] = [
    *(
        (template({"F": function(**{name: {"a": {"Ref": "Nowhere"}}})}), f"F.{name}: ")
        for name in (
            *("Policies", "Role", "Tags", "Description", "Tracing", "Architectures", "VpcConfig", "SnapStart"),
            *("AutoPublishAlias", "DeploymentPreference", "EphemeralStorage", "LoggingConfig"),
            *("ProvisionedConcurrencyConfig", "PermissionsBoundary", "RuntimeManagementConfig"),
        )
    ),
    (template(Globals={"Function": {"Tracing": "Active"}}), "Globals.Function.Tracing: "),
    (template(Globals={"Api": {"Cors": "x"}}), "Globals.Api: "),
    (template({"F": function(), "R": {"Type": "AWS::IAM::Role"}}), "R: AWS::IAM::Role is not made"),
    (template({"F": function(), "L": function({})}), "L: no event of this template calls this"),
    (with_event(MetricsConfig={}), "F.Events.E.MetricsConfig: "),
    (with_event("MSK", ProvisionedPollerConfig={}), "F.Events.E.ProvisionedPollerConfig: "),
    (
        with_event("MSK", SourceAccessConfigurations=[{"Type": "VPC_SUBNET", "URI": "x"}]),
        "F.Events.E.SourceAccessConfigurations: VPC_SUBNET",
    ),
    (with_event(MaximumRetryAttempts=2), "F.Events.E.DestinationConfig: is not there"),
]


@pytest.mark.parametrize(("document", "said"), IGNORED, ids=[said for _, said in IGNORED])
def test_what_does_no_harm_is_ignored_by_name(stack: Stack, document: dict[str, object], said: str) -> None:
    """It is not even evaluated, so references in it need no value."""
    read = stack.load(document)
    assert read.unsupported == []
    assert len(read.ignored) == 1, read.ignored
    assert read.ignored[0].startswith(said)


def test_streams_tables_and_queues_of_the_template_are_nothing_to_speak_of(stack: Stack) -> None:
    """They stand for topics or are mapped; a resource whose condition is false is not there."""
    resources = {
        "F": function(),
        "S": {"Type": "AWS::Kinesis::Stream"},
        "T": {"Type": "AWS::DynamoDB::Table"},
        "Q": {"Type": "AWS::SQS::Queue"},
        "A": {"Type": "AWS::Serverless::Api", "Condition": "Never"},
        "G": {**function(), "Condition": "Never"},
    }
    read = stack.load(template(resources, Conditions={"Never": {"Fn::Equals": ["a", "b"]}}))
    assert (read.unsupported, read.ignored) == ([], [])
    assert list(read.config.pipelines) == ["F-E"]


# What is wrong


FAULTS: list[tuple[dict[str, object], str]] = [
    (with_event(BatchSize="many"), "F.Events.E.BatchSize: has to be a whole number"),
    (with_event(BatchSize=True), "F.Events.E.BatchSize: has to be a whole number"),
    (with_event(BatchSize=0), "F.Events.E.BatchSize = 0: "),
    (with_event(BatchSize=20_000), 'F.Events.E: compatibility = "aws": source.batch_size is at most 10000'),
    (with_event(MaximumRecordAgeInSeconds=30), "F.Events.E.MaximumRecordAgeInSeconds = 30: valid are -1 and 60"),
    (with_event(ParallelizationFactor=11), "F.Events.E.ParallelizationFactor = 11: "),
    (with_event(StartingPosition="NEWEST"), "F.Events.E.StartingPosition = 'NEWEST': valid are"),
    (with_event(StartingPosition=None), "F.Events.E.StartingPosition: is missing"),
    (with_event(StartingPosition="AT_TIMESTAMP"), "F.Events.E"),
    (
        with_event(StartingPosition="AT_TIMESTAMP", StartingPositionTimestamp=1e30),
        "F.Events.E.StartingPositionTimestamp: has to be seconds",
    ),
    (
        with_event(BisectBatchOnFunctionError="yes"),
        "F.Events.E.BisectBatchOnFunctionError: has to be true or false",
    ),
    (with_event(FunctionResponseTypes="x"), "F.Events.E.FunctionResponseTypes: has to be a list"),
    (with_event(FilterCriteria={"Filters": [{"Patern": "x"}]}), "F.Events.E.FilterCriteria.Filters[0]: has to be"),
    (with_event(Stream=None), "F.Events.E.Stream: is missing"),
    (with_event(Stream="clicks"), "F.Events.E.Stream: 'clicks' is not the ARN"),
    (with_event(Stream={"Ref": "Nowhere"}), "F.Events.E.Stream: Ref Nowhere: there is no such"),
    (with_event("MSK", Topics=None), "F.Events.E.Topics: has to be a list of exactly one"),
    (with_event("MSK", Topics=["a", "b"]), "F.Events.E.Topics: has to be a list of exactly one"),
    (with_event("MSK", Topics=["a b"]), "F.Events.E.Topics: 'a b' cannot be a topic's name"),
    (
        with_event(DestinationConfig={"OnFailure": {"Destination": {"Ref": "No"}}}),
        "F.Events.E.DestinationConfig.OnFailure.Destination: Ref No",
    ),
    (template({"F": function(Timeout=0)}), "F.Timeout = 0: "),
    (template({"F": function(Timeout=901)}), "F.Timeout = 901: "),
    (template({"F": function(MemorySize=64)}), "F.MemorySize = 64: "),
    (template({"F": function(ReservedConcurrentExecutions=0)}), "F.ReservedConcurrentExecutions = 0: "),
    (template({"F": function(FunctionName="a b")}), "F.FunctionName = 'a b': "),
    (template({"F": function(Environment={"Variables": {"1A": "hush"}})}), "F.Environment.Variables: "),
    (
        template({"F": function(Environment={"Variables": {"AA": ["hush"]}})}),
        "F.Environment.Variables.AA: a text is needed",
    ),
    (template({"F": function(Runtime=None)}), "F.Runtime: is missing"),
    (template({"F": function(Handler=None)}), "F.Handler: is missing"),
    (template({"F": function(CodeUri="nowhere")}), "F.CodeUri: there is no directory nowhere"),
    (
        template({"F": function(Runtime="provided.al2023")}),
        "F.Runtime: provided.al2023 needs a program named bootstrap",
    ),
    (template({"F": function({"E": {"Properties": {}}})}), "F.Events.E: has to be a mapping with a Type"),
    (template({"F": {"Properties": {}}}), "F: has to be a mapping with a Type"),
    (template({"F": {**function(), "Condition": "No"}}), "F.Condition: there is no condition 'No'"),
    (template({}), "Resources: there is no function with a stream event"),
    (template({"F": function({})}), "Resources: there is no function with a stream event"),
    (template(Resources=[]), "the template: Resources has to be a mapping"),
    (template(Parameters=[]), "the template: Parameters has to be a mapping"),
    (template(Globals={"Function": 1}), "the template: Globals.Function has to be a mapping"),
    ({"a": 1}, "the template: has neither AWSTemplateFormatVersion nor Transform nor Resources"),
    (
        template(
            {
                "F": function(),
                "M": {"Type": "AWS::Lambda::EventSourceMapping", "Properties": {"FunctionName": {"Ref": "F"}}},
            }
        ),
        "M: EventSourceArn or SelfManagedEventSource is missing",
    ),
]


@pytest.mark.parametrize(("document", "said"), FAULTS, ids=[said for _, said in FAULTS])
def test_a_fault_is_named_in_the_templates_words(stack: Stack, document: dict[str, object], said: str) -> None:
    """Resource and property first, then the value and what is valid; no variable's value."""
    faults = [fault for fault in stack.faults(document) if not fault.startswith("unsupported: ")]
    assert len([fault for fault in faults if fault.startswith(said)]) == 1, faults
    assert "hush" not in str(faults)


def test_everything_is_said_at_once(stack: Stack) -> None:
    """Faults of several resources, with what is unsupported beside them."""
    faults = stack.faults(
        template(
            {
                "F": function({"E": event(BatchSize="x", Stream="y")}, Timeout="z", Layers=["l"]),
                "G": function(CodeUri="nowhere"),
                "A": {"Type": "AWS::Serverless::Api"},
            }
        ),
        topics={"Sream": "t"},
    )
    beginnings = [fault.split(": ")[0] for fault in faults]
    assert beginnings == [
        "F.Timeout",
        "F.Events.E.BatchSize",
        "F.Events.E.Stream",
        "G.CodeUri",
        "--topic Sream",
        "unsupported",
        "unsupported",
    ]


def test_a_bootstrap_that_may_not_be_executed(stack: Stack) -> None:
    """The file is there, and its mode is the fault."""
    (stack.directory / "src" / "bootstrap").write_text("#!/bin/sh\n")
    document = template({"F": function(Runtime="provided.al2")})
    assert "chmod +x" in stack.faults(document)[0]
    (stack.directory / "src" / "bootstrap").chmod(0o755)
    made = stack.load(document).config.pipelines["F-E"].function
    assert made is not None
    assert (made.runtime, made.command) == ("provided", ("./bootstrap",))


# Whatever it is given


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 100_000) | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    *("Ref", "Condition", "Fn::Sub", "Fn::GetAtt", "Fn::Join", "Fn::Select", "Fn::Split", "Fn::If"),
                    *(
                        "Fn::FindInMap",
                        "Fn::ImportValue",
                        "Fn::Equals",
                        "Type",
                        "Properties",
                        "Variables",
                        "Filters",
                    ),
                    *("OnFailure", "Destination", "Name", "x"),
                ]
            ),
            inner,
            max_size=3,
        )
    ),
    max_leaves=12,
)
places = st.sampled_from(
    [
        *(
            ("F", name)
            for name in ("Runtime", "Handler", "CodeUri", "Environment", "Timeout", "Events", "PackageType")
        ),
        *(("E", name) for name in ("Stream", "BatchSize", "FilterCriteria", "DestinationConfig", "Enabled")),
        *(("E", name) for name in ("StartingPositionTimestamp", "FunctionResponseTypes", "StartingPosition")),
        *(("M", name) for name in ("Topics", "SourceAccessConfigurations", "Stream", "ConsumerGroupId")),
        *(("K", name) for name in ("Topics", "KafkaBootstrapServers")),
        *(("P", name) for name in ("EventSourceArn", "FunctionName", "SelfManagedEventSource", "Topics")),
        *(("T", name) for name in ("Parameters", "Globals", "Conditions", "Mappings", "Transform", "Resources")),
        *(("S", name) for name in ("Name",)),
    ]
)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(places, json_values), min_size=1, max_size=3))
def test_whatever_a_template_holds_it_is_read_or_refused(
    tmp_path: Path, changes: list[tuple[tuple[str, str], object]]
) -> None:
    """Any value in any place: a configuration, or a ConfigError that says why; never anything else."""
    shutil.rmtree(tmp_path / "src", ignore_errors=True)
    stack = Stack(tmp_path)
    kinesis: Any = event(Stream={"Fn::GetAtt": ["S", "Arn"]})
    msk: Any = event("MSK")
    own: Any = event("SelfManagedKafka")
    main: Any = function({"E": kinesis, "M": msk, "K": own})
    mapping: Any = {"Type": "AWS::Lambda::EventSourceMapping", "Properties": {"EventSourceArn": STREAM_ARN}}
    stream: Any = {"Type": "AWS::Kinesis::Stream", "Properties": {}}
    whole: Any = template({"F": main, "P": mapping, "S": stream})
    targets = {
        "F": main["Properties"],
        "E": kinesis["Properties"],
        "M": msk["Properties"],
        "K": own["Properties"],
        "P": mapping["Properties"],
        "S": stream["Properties"],
        "T": whole,
    }
    for (target, name), value in changes:
        targets[target][name] = value
    with contextlib.suppress(ConfigError):
        assert stack.load(whole).config.pipelines
