"""What tests of templates share: a directory with a function's code, and templates as data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from engine.errors import ConfigError
from engine.sam import Template, load


class Stack:
    """A template in a directory, with a function's code in ``src``."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        (directory / "src").mkdir()
        (directory / "src" / "app.py").write_text("def handler(event, context): pass\n")

    def load(self, document: object, **arguments: Any) -> Template:
        path = self.directory / "template.json"
        path.write_text(json.dumps(document))
        return load(path, **arguments)

    def faults(self, document: object, **arguments: Any) -> list[str]:
        with pytest.raises(ConfigError) as raised:
            self.load(document, **arguments)
        return raised.value.faults


STREAM_ARN = "arn:aws:kinesis:eu-west-1:123456789012:stream/clicks"
CLUSTER_ARN = "arn:aws:kafka:eu-west-1:123456789012:cluster/main/abc-1"
TABLE_ARN = "arn:aws:dynamodb:eu-west-1:123456789012:table/pay/stream/2020-01-01T00:00:00.000"

EVENTS: dict[str, dict[str, object]] = {
    "Kinesis": {"Stream": STREAM_ARN, "StartingPosition": "LATEST"},
    "DynamoDB": {"Stream": TABLE_ARN, "StartingPosition": "LATEST"},
    "MSK": {"Stream": CLUSTER_ARN, "StartingPosition": "LATEST", "Topics": ["clicks"]},
    "SelfManagedKafka": {"Topics": ["clicks"], "KafkaBootstrapServers": ["a:9092", "b:9092"]},
}


def event(kind: str = "Kinesis", **properties: object) -> dict[str, object]:
    made = {name: value for name, value in {**EVENTS[kind], **properties}.items() if value is not None}
    return {"Type": kind, "Properties": made}


def function(events: dict[str, object] | None = None, **properties: object) -> dict[str, object]:
    """A function with one Kinesis event; a property that is None is left out."""
    given: dict[str, object] = {"Runtime": "python3.12", "Handler": "app.handler", "CodeUri": "src", **properties}
    given["Events"] = {"E": event()} if events is None else events
    kept = {name: value for name, value in given.items() if value is not None}
    return {"Type": "AWS::Serverless::Function", "Properties": kept}


def template(resources: dict[str, object] | None = None, **sections: object) -> dict[str, object]:
    return {
        "Transform": "AWS::Serverless-2016-10-31",
        "Resources": {"F": function()} if resources is None else resources,
        **sections,
    }


def with_event(kind: str = "Kinesis", **properties: object) -> dict[str, object]:
    return template({"F": function({"E": event(kind, **properties)})})
