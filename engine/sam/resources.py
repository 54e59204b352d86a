"""What a template's resources are to headrace: what names they have, and what becomes of those it does not run.

Nothing is created. Streams and tables stand for topics, so a name that CloudFormation would make up is their
logical id; other resources have values only where the template names them. Attributes follow CloudFormation's
resource reference, "Return values".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

FUNCTIONS = ("AWS::Serverless::Function", "AWS::Lambda::Function")
MAPPING = "AWS::Lambda::EventSourceMapping"


@dataclass(frozen=True, slots=True)
class Named:
    """A type whose resources have names. ``arn`` and the attributes are formats over ``{head}`` and ``{name}``.

    ``head`` is ``arn:PARTITION:SERVICE:REGION:ACCOUNT`` (without region and account for S3). ``ref`` is what Ref
    gives; None: a value that only AWS knows.
    """

    service: str
    name_property: str
    ref: Literal["name", "arn"] | None
    arn: str
    stands_for_logical_id: bool = False
    stream_arn: str | None = None


_TABLE = Named(
    "dynamodb",
    "TableName",
    "name",
    "{head}:table/{name}",
    True,
    "{head}:table/{name}/stream/1970-01-01T00:00:00.000",
)
_CLUSTER = Named(
    "kafka", "ClusterName", "arn", "{head}:cluster/{name}/00000000-0000-0000-0000-000000000000-1", True
)
_FUNCTION = Named("lambda", "FunctionName", "name", "{head}:function:{name}", True)

NAMED = {
    "AWS::Kinesis::Stream": Named("kinesis", "Name", "name", "{head}:stream/{name}", True),
    "AWS::DynamoDB::Table": _TABLE,
    "AWS::DynamoDB::GlobalTable": _TABLE,
    "AWS::Serverless::SimpleTable": _TABLE,
    "AWS::MSK::Cluster": _CLUSTER,
    "AWS::MSK::ServerlessCluster": _CLUSTER,
    "AWS::Serverless::Function": _FUNCTION,
    "AWS::Lambda::Function": _FUNCTION,
    "AWS::SQS::Queue": Named("sqs", "QueueName", None, "{head}:{name}"),
    "AWS::SNS::Topic": Named("sns", "TopicName", "arn", "{head}:{name}"),
    "AWS::S3::Bucket": Named("s3", "BucketName", "name", "{head}:{name}"),
}

#: Resources that would have functions called, or code run, by something else than a stream.
_RUNS = {
    "AWS::Serverless::Api": "no HTTP API is served",
    "AWS::Serverless::HttpApi": "no HTTP API is served",
    "AWS::Serverless::WebSocketApi": "no HTTP API is served",
    "AWS::Serverless::GraphQLApi": "no GraphQL API is served",
    "AWS::Serverless::StateMachine": "state machines are not run",
    "AWS::Serverless::Application": "nested applications are not read",
    "AWS::CloudFormation::Stack": "nested stacks are not read",
    "AWS::CloudFormation::CustomResource": "custom resources are not called",
    "AWS::CloudFormation::Macro": "macros are not run",
    "AWS::StepFunctions::StateMachine": "state machines are not run",
    "AWS::Lambda::EventInvokeConfig": "functions are not called asynchronously",
    "AWS::Lambda::Url": "no function URL is served",
    "AWS::Events::Rule": "functions are not called by EventBridge",
    "AWS::Scheduler::Schedule": "functions are not called by a schedule",
    "AWS::Pipes::Pipe": "pipes are not run",
    "AWS::SNS::Subscription": "functions are not called by SNS",
    "AWS::Logs::SubscriptionFilter": "functions are not called by CloudWatch Logs",
    "AWS::IoT::TopicRule": "functions are not called by IoT",
    "AWS::ApiGateway::RestApi": "no HTTP API is served",
    "AWS::ApiGatewayV2::Api": "no HTTP API is served",
    "AWS::KinesisFirehose::DeliveryStream": 'delivery streams are not run; a pipeline of kind = "firehose" is one',
}


def runs_otherwise(kind: str) -> str | None:
    """Why a resource of this type cannot be honoured; None for those that nothing is lost without."""
    if kind.startswith("Custom::"):
        return "custom resources are not called"
    return _RUNS.get(kind)
