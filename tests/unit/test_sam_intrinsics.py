"""CloudFormation's intrinsic functions, each with what it gives, refuses, and cannot know."""

from __future__ import annotations

from typing import Any

import pytest

from engine.sam.document import parse
from engine.sam.intrinsics import CHARACTERS_MAX, NO_VALUE, Malformed, Resolver, Unresolved

TEMPLATE = """
Parameters:
  Stage: {Type: String, Default: dev, AllowedValues: [dev, prod]}
  Count: {Type: Number, Default: 3}
  Names: {Type: CommaDelimitedList, Default: "a, b,c"}
  Needed: {Type: String}
  Stored: {Type: "AWS::SSM::Parameter::Value<String>", Default: /path}
  Secret: {Type: String, NoEcho: true, Default: hush}
Mappings:
  Sizes: {dev: {Memory: 128, Zones: [x, y]}, prod: {Memory: 1024}}
Conditions:
  IsProd: !Equals [!Ref Stage, prod]
  IsDev: !Not [!Condition IsProd]
  Three: !Equals [3, !Ref Count]
  Both: !And [!Condition IsDev, !Condition Three]
  Either: !Or [!Condition IsProd, !Condition Three]
  Neither: !Or [!Condition IsProd, !Equals [a, b]]
  Circle: !Not [!Condition Circle]
  NoCondition: !And [text, text]
Resources:
  Stream: {Type: AWS::Kinesis::Stream, Properties: {Name: !Sub "${Stage}-stream"}}
  Unnamed: {Type: AWS::Kinesis::Stream}
  Table: {Type: AWS::DynamoDB::Table, Properties: {TableName: pay}}
  Simple: {Type: AWS::Serverless::SimpleTable}
  Cluster: {Type: AWS::MSK::Cluster, Properties: {ClusterName: main}}
  Queue: {Type: AWS::SQS::Queue, Properties: {QueueName: failed}}
  UnnamedQueue: {Type: AWS::SQS::Queue}
  Topic: {Type: AWS::SNS::Topic, Properties: {TopicName: alerts}}
  Bucket: {Type: AWS::S3::Bucket, Properties: {BucketName: big}}
  Function: {Type: AWS::Serverless::Function, Properties: {FunctionName: f}}
  Role: {Type: AWS::IAM::Role}
  Loop: {Type: AWS::Kinesis::Stream, Properties: {Name: !Ref Loop}}
"""


def resolver(**given: str) -> Resolver:
    return Resolver(parse(TEMPLATE, source="t"), given, region="eu-west-1")


def value(expression: str, **given: str) -> Any:
    document = parse(f"value: {expression}", source="t")
    return resolver(**given).resolve(document["value"])


ARN = "arn:aws:{}:eu-west-1:000000000000:{}"

GIVES: list[tuple[str, object]] = [
    ("plain", "plain"),
    ("[1, {a: !Ref Stage}]", [1, {"a": "dev"}]),
    ("!Ref Stage", "dev"),
    ("{Ref: Stage}", "dev"),
    ("!Ref Count", "3"),
    ("!Ref Names", ["a", "b", "c"]),
    ("!Ref AWS::Region", "eu-west-1"),
    ("!Ref AWS::AccountId", "000000000000"),
    ("!Ref AWS::Partition", "aws"),
    ("!Ref AWS::StackName", "headrace"),
    ("!Ref AWS::URLSuffix", "amazonaws.com"),
    ("!Ref AWS::NotificationARNs", []),
    ("!Ref AWS::NoValue", NO_VALUE),
    ("[a, !Ref AWS::NoValue]", ["a"]),
    ("{a: 1, b: !Ref AWS::NoValue}", {"a": 1}),
    ("!Ref Stream", "dev-stream"),
    ("!Ref Unnamed", "Unnamed"),
    ("!Ref Table", "pay"),
    ("!Ref Simple", "Simple"),
    ("!Ref Cluster", ARN.format("kafka", "cluster/main/00000000-0000-0000-0000-000000000000-1")),
    ("!Ref Topic", ARN.format("sns", "alerts")),
    ("!Ref Bucket", "big"),
    ("!Ref Function", "f"),
    ("!GetAtt Stream.Arn", ARN.format("kinesis", "stream/dev-stream")),
    ("{'Fn::GetAtt': Stream.Arn}", ARN.format("kinesis", "stream/dev-stream")),
    ("{'Fn::GetAtt': [Unnamed, Arn]}", ARN.format("kinesis", "stream/Unnamed")),
    ("!GetAtt Table.Arn", ARN.format("dynamodb", "table/pay")),
    ("!GetAtt Table.StreamArn", ARN.format("dynamodb", "table/pay/stream/1970-01-01T00:00:00.000")),
    ("!GetAtt Queue.Arn", ARN.format("sqs", "failed")),
    ("!GetAtt Queue.QueueName", "failed"),
    ("!GetAtt Topic.TopicArn", ARN.format("sns", "alerts")),
    ("!GetAtt Bucket.Arn", "arn:aws:s3:::big"),
    ("!GetAtt Function.Arn", ARN.format("lambda", "function:f")),
    ('!Sub "${Stage}-${Count}"', "dev-3"),
    ('!Sub "${Stream}/${Stream.Arn}"', "dev-stream/" + ARN.format("kinesis", "stream/dev-stream")),
    ('!Sub "${!Literal} ${AWS::Region}"', "${Literal} eu-west-1"),
    ('!Sub ["${A}${Stage}", {A: !Ref Count}]', "3dev"),
    ('!Join ["-", [a, !Ref Stage, 1]]', "a-dev-1"),
    ('!Join ["", !Ref Names]', "abc"),
    ('!Join [",", !Split ["|", "a|b"]]', "a,b"),
    ("!Join ['', [true, 1.5]]", "true1.5"),
    ("!Select [1, !Ref Names]", "b"),
    ("!Select ['0', [x, y]]", "x"),
    ("!Split ['/', 'a/b/c']", ["a", "b", "c"]),
    ("!If [IsProd, 1, 2]", 2),
    ("!If [IsDev, !Ref AWS::NoValue, 2]", NO_VALUE),
    ("!If [IsDev, fine, !Ref Nowhere]", "fine"),  # the branch not taken is not looked at
    ("{'Fn::If': [Both, a, b]}", "a"),
    ("!If [Either, a, b]", "a"),
    ("!If [Neither, a, b]", "b"),
    ("!Equals [a, a]", True),
    ("!Equals [true, 'true']", True),
    ("!Equals [!Ref Names, [a, b, c]]", True),
    ("!FindInMap [Sizes, !Ref Stage, Memory]", 128),
    ("!FindInMap [Sizes, dev, Zones]", ["x", "y"]),
]


@pytest.mark.parametrize(("expression", "expected"), GIVES, ids=[expression for expression, _ in GIVES])
def test_what_a_function_gives(expression: str, expected: object) -> None:
    """Short and long forms, over parameters, mappings, conditions and resources."""
    assert value(expression) == expected


MALFORMED = [
    ("!Ref Nowhere", "there is no such parameter or resource"),
    ("!Ref Needed", "has no Default; give it with --parameter Needed=VALUE"),
    ("!GetAtt Nowhere.Arn", "there is no resource 'Nowhere'"),
    ("!GetAtt Stream", "GetAtt takes RESOURCE.ATTRIBUTE"),
    ("!Ref [a]", "a text is needed here"),
    ('!Sub "${Nowhere}"', "there is no such parameter or resource"),
    ('!Sub "${Names}"', "${Names} is no text"),
    ("!Sub [a]", "Sub takes a text"),
    ("!Join [a]", "Join takes [DELIMITER, LIST]"),
    ("!Join ['-', text]", "Join takes a list"),
    ("!Join ['-', [[a]]]", "a text is needed here"),
    ("!Select [3, !Ref Names]", "there is no item 3 in a list of 3"),
    ("!Select [-1, [a]]", "there is no item -1"),
    ("!Split ['', a]", "Split needs a delimiter"),
    ("!If [Nothing, a, b]", "there is no condition 'Nothing'"),
    ("!If [IsProd, a]", "If takes [CONDITION, VALUE, VALUE]"),
    ("!If [Circle, a, b]", "condition Circle depends on itself"),
    ("!If [NoCondition, a, b]", "has to be conditions"),
    ("!Not [!Condition IsProd, !Condition IsProd]", "Not takes one condition"),
    ("!And [!Condition IsProd]", "And takes 2 to 10 conditions"),
    ("!Equals [a]", "Equals takes two values"),
    ("!FindInMap [Sizes, test, Memory]", "FindInMap [Sizes, test, Memory]: there is no test"),
    ("!FindInMap [Sizes, !Ref Secret, Memory]", "FindInMap [Sizes, Ref Secret, Memory]: there is no Ref Secret"),
    ("!FindInMap [Sizes, dev]", "FindInMap takes [MAP, KEY, KEY]"),
    ("!Ref Loop", "resource Loop depends on itself"),
]


@pytest.mark.parametrize(("expression", "said"), MALFORMED, ids=[expression for expression, _ in MALFORMED])
def test_what_no_stack_could_make_sense_of(expression: str, said: str) -> None:
    """The template's own faults, in words that name what is wrong."""
    with pytest.raises(Malformed) as raised:
        value(expression)
    assert said in str(raised.value)


UNRESOLVED = [
    ("!ImportValue shared", "ImportValue shared is an output of another stack", ("shared",)),
    ('!ImportValue {"Fn::Sub": "${Stage}-arn"}', "ImportValue dev-arn", ("dev-arn",)),
    ("!Ref Queue", "Ref Queue (AWS::SQS::Queue) has no value outside of AWS", ("Queue",)),
    ("!Ref Role", "Ref Role (AWS::IAM::Role)", ("Role",)),
    ("!GetAtt Role.Arn", "GetAtt Role.Arn (AWS::IAM::Role)", ("Role",)),
    ("!GetAtt Stream.Nothing", "GetAtt Stream.Nothing", ("Stream",)),
    ("!GetAtt UnnamedQueue.Arn", "has no QueueName; AWS would make one up", ("UnnamedQueue",)),
    ("!Ref Stored", "--parameter Stored=VALUE gives it", ("Stored",)),
    ("'{{resolve:secretsmanager:db:SecretString:password}}'", "a dynamic reference", ()),
    ("!Sub '{{resolve:ssm:${Stage}}}'", "a dynamic reference", ()),
    ("!GetAZs ''", "Fn::GetAZs is not carried out", ()),
    ("!Transform {Name: x}", "Fn::Transform is not carried out", ()),
]


@pytest.mark.parametrize(("expression", "said", "names"), UNRESOLVED, ids=[each[0] for each in UNRESOLVED])
def test_what_only_a_deployed_stack_knows(expression: str, said: str, names: tuple[str, ...]) -> None:
    """It is told apart from faults, with the names that the user may map."""
    with pytest.raises(Unresolved) as raised:
        value(expression)
    assert said in str(raised.value)
    assert raised.value.names == names


def test_parameters_of_the_command_line_outrank_defaults() -> None:
    """Those of Systems Manager too, and pseudo parameters."""
    assert value("!Ref Stage", Stage="prod") == "prod"
    assert value("!If [IsProd, 1, 2]", Stage="prod") == 1
    assert value("!Ref Needed", Needed="") == ""
    assert value("!Ref Stored", Stored="value") == "value"
    assert value("!Ref Names", Names="x") == ["x"]
    given = {"AWS::Region": "us-west-2", "AWS::AccountId": "123456789012", "AWS::StackName": "prod"}
    read = value('!Sub "${AWS::StackName} ${Stream.Arn}"', **given)
    assert read == "prod arn:aws:kinesis:us-west-2:123456789012:stream/dev-stream"


def test_parameters_that_are_wrong_are_named_without_their_values() -> None:
    """A misspelt name with the nearest one, a value that is not allowed with those that are."""
    faults = resolver(Stge="hush", Stage="hush", Secret="hush").parameter_faults()
    assert faults == [
        "--parameter Stge: the template has no such parameter; did you mean Stage?",
        "--parameter Stage: is none of its AllowedValues (dev, prod)",
    ]
    assert "hush" not in str(faults)


def test_a_text_cannot_multiply_itself() -> None:
    """Nested Sub doubles at each level; it is refused before it is built."""
    nested: object = "x" * 1000
    for _ in range(18):
        nested = {"Fn::Sub": ["${A}${A}", {"A": nested}]}
    with pytest.raises(Malformed, match=f"more than {CHARACTERS_MAX:,} characters"):
        resolver().resolve(nested)


def test_only_the_branch_that_is_taken_is_opened() -> None:
    """`chosen` carries out If at the top and leaves the rest as it stands."""
    made = resolver()
    branch = {"a": {"Ref": "Nowhere"}}
    assert made.chosen({"Fn::If": ["IsDev", {"Fn::If": ["IsProd", 1, branch]}, 2]}) == branch
    assert made.chosen({"Fn::If": ["IsDev", {"Ref": "AWS::NoValue"}, 2]}) is NO_VALUE


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("!Ref Stream", ["Stream"]),
        ("!GetAtt Stream.Arn", ["Stream"]),
        ("{'Fn::GetAtt': Stream.Arn}", ["Stream"]),
        ('!Sub "${Stream.Arn}"', ["Stream"]),
        ('!Sub "${AWS::Region}${!x}${Table}"', ["AWS::Region", "Table"]),
        ("!ImportValue shared", ["shared"]),
        ("!ImportValue {'Fn::Sub': '${Stage}-arn'}", ["dev-arn"]),
        ("!Join ['', [a]]", []),
        ("plain", []),
    ],
)
def test_what_a_value_refers_to(expression: str, expected: list[str]) -> None:
    """The names by which the user may map it."""
    document = parse(f"value: {expression}", source="t")
    assert resolver().references(document["value"]) == expected
