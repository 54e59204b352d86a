"""Plain CloudFormation's AWS::Lambda::EventSourceMapping as the SAM event that would make it.

Properties that have the same name stay as they are; the others are moved. Not here: reading them
(`engine.sam.events`).
"""

from __future__ import annotations

from collections.abc import Mapping

from engine.sam.intrinsics import Malformed, Resolver, Unresolved, text_of
from engine.sam.resources import FUNCTIONS

#: By the service in the ARN of the source.
_KINDS = {"kinesis": "Kinesis", "dynamodb": "DynamoDB", "kafka": "MSK"}

#: By the type of the resource that the source is, where its ARN is not known.
_TYPES = {
    "AWS::Kinesis::Stream": "Kinesis",
    "AWS::DynamoDB::Table": "DynamoDB",
    "AWS::DynamoDB::GlobalTable": "DynamoDB",
    "AWS::MSK::Cluster": "MSK",
    "AWS::MSK::ServerlessCluster": "MSK",
}


def as_event(
    mapping: Mapping[str, object], resources: Mapping[str, object], resolver: Resolver
) -> dict[str, object]:
    """A SAM event, ``{"Type": ..., "Properties": ...}``. Raises Malformed and Unresolved."""
    properties = {name: value for name, value in mapping.items() if name not in ("FunctionName", "EventSourceArn")}
    for name in ("SelfManagedKafkaEventSourceConfig", "AmazonManagedKafkaEventSourceConfig"):
        inner = resolver.chosen(properties.pop(name, {}))
        if isinstance(inner, dict):
            properties |= inner
    source = resolver.chosen(properties.pop("SelfManagedEventSource", None))
    if source is not None:
        endpoints = resolver.chosen(source.get("Endpoints")) if isinstance(source, dict) else None
        if not isinstance(endpoints, dict) or "KafkaBootstrapServers" not in endpoints:
            raise Malformed("SelfManagedEventSource needs Endpoints.KafkaBootstrapServers")
        properties["KafkaBootstrapServers"] = endpoints["KafkaBootstrapServers"]
        return {"Type": "SelfManagedKafka", "Properties": properties}
    if "EventSourceArn" not in mapping:
        raise Malformed("EventSourceArn or SelfManagedEventSource is missing")
    properties["Stream"] = mapping["EventSourceArn"]
    return {
        "Type": _kind(mapping["EventSourceArn"], "Topics" in mapping, resources, resolver),
        "Properties": properties,
    }


def _kind(source: object, has_topics: bool, resources: Mapping[str, object], resolver: Resolver) -> str:
    for name in resolver.references(source):
        resource = resources.get(name)
        if isinstance(resource, dict) and (kind := str(resource.get("Type"))).startswith("AWS::"):
            return _TYPES.get(kind, kind.split("::")[1])
    try:
        service = text_of(resolver.resolve(source)).split(":")[2:3]
    except Unresolved:
        # An import may be anything, but only Kafka has topics.
        if has_topics:
            return "MSK"
        raise
    return _KINDS.get(service[0], service[0].upper()) if service else "Kinesis"


def function_of(mapping: Mapping[str, object], resources: Mapping[str, object], resolver: Resolver) -> str:
    """The logical id of the mapping's function. Raises Malformed and Unresolved."""
    given = mapping.get("FunctionName")
    functions = [
        name for name, each in resources.items() if isinstance(each, dict) and each.get("Type") in FUNCTIONS
    ]
    for name in resolver.references(given):
        if name in functions:
            return name
    text = text_of(resolver.resolve(given))
    # A name, an ARN, and either with a version or an alias behind it.
    parts = text.split(":")
    for name in functions:
        if resolver.name(name) in (text, *(parts[6:7] if text.startswith("arn:") else parts[:1])):
            return name
    raise Unresolved("its function is not in this template")
