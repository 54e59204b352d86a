"""A stream event of a function as the `source` table of a pipeline: Kinesis, DynamoDB, MSK and SelfManagedKafka.

Properties, ranges and defaults are those of SAM's event types and of the API's CreateEventSourceMapping. A mapping
of plain CloudFormation (AWS::Lambda::EventSourceMapping) is read as the SAM event that makes it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from engine.sam.intrinsics import ACCOUNT, NO_VALUE, Malformed, Unresolved
from engine.sam.properties import (
    Properties,
    boolean,
    items,
    moment,
    text_of,
    texts,
    whole,
)

#: SAM's event types, and the kind of handler that their events are for.
KINDS = {"Kinesis": "kinesis", "DynamoDB": "dynamodb", "MSK": "kafka", "SelfManagedKafka": "kafka"}
KAFKA = ("MSK", "SelfManagedKafka")

_ARN = re.compile(r"arn:[^:]+:(kinesis|dynamodb|kafka):[^:]*:[^:]*:(?:stream|table|cluster)/([^/:]+)(?:[/:].*)?")
_TOPIC = re.compile(r"[A-Za-z0-9._-]{1,249}")

#: Properties that are one setting of `source`, for all types and for those of Kinesis and DynamoDB alone.
SETTINGS: dict[str, tuple[str, Callable[[object], object]]] = {
    "BatchSize": ("batch_size", whole),
    "BisectBatchOnFunctionError": ("bisect_batch_on_function_error", boolean),
    "FunctionResponseTypes": ("function_response_types", texts),
    "MaximumBatchingWindowInSeconds": ("maximum_batching_window_in_seconds", whole),
    "MaximumRecordAgeInSeconds": ("maximum_record_age_in_seconds", whole),
    "MaximumRetryAttempts": ("maximum_retry_attempts", whole),
    "StartingPosition": ("starting_position", text_of),
    "StartingPositionTimestamp": ("starting_position_timestamp", moment),
}
STREAM_SETTINGS: dict[str, tuple[str, Callable[[object], object]]] = {
    "ParallelizationFactor": ("parallelization_factor", whole),
    "TumblingWindowInSeconds": ("tumbling_window_in_seconds", whole),
}

_COMMON = (*SETTINGS, "DestinationConfig", "Enabled", "FilterCriteria")
_HONOURED = {
    "Kinesis": (*_COMMON, *STREAM_SETTINGS, "Stream"),
    "DynamoDB": (*_COMMON, *STREAM_SETTINGS, "Stream"),
    "MSK": (*_COMMON, "Stream", "Topics", "ConsumerGroupId", "SourceAccessConfigurations"),
    "SelfManagedKafka": (
        *(*_COMMON, "Topics", "ConsumerGroupId", "KafkaBootstrapServers", "SourceAccessConfigurations"),
    ),
}
IGNORED = {
    "LoggingConfig": "logs go where headrace's go",
    "MetricsConfig": "no metrics are sent to CloudWatch",
    "ProvisionedPollerConfig": "the members of the consumer group are the pollers",
    "Tags": "is for AWS's accounts",
}
UNSUPPORTED = {
    "KmsKeyArn": "nothing is encrypted with KMS",
    "SchemaRegistryConfig": "records reach event kinds as they are in the topic",
}

#: Entries of SourceAccessConfigurations that say where a poller runs, not who it is.
_NETWORK = ("VPC_SUBNET", "VPC_SECURITY_GROUP")


@dataclass
class Choices:
    """What the command line says of streams and destinations, and which of it has been of use."""

    topics: dict[str, str]
    on_failure: dict[str, str]
    used: set[tuple[str, str]] = field(default_factory=set)
    seen_streams: list[str] = field(default_factory=list)
    seen_destinations: list[str] = field(default_factory=list)

    def topic(self, names: list[str]) -> str | None:
        self.seen_streams += names
        return self._first("--topic", self.topics, names)

    def destination(self, names: list[str]) -> str | None:
        self.seen_destinations += names
        return self._first("--on-failure", self.on_failure, names)

    def _first(self, option: str, choices: dict[str, str], names: list[str]) -> str | None:
        for name in names:
            if name in choices:
                self.used.add((option, name))
                return choices[name]
        return None


@dataclass(frozen=True, slots=True)
class Event:
    """One stream event. ``source`` and ``function`` are settings of the pipeline's tables of those names."""

    kind: str
    source: dict[str, object]
    function: dict[str, object]
    enabled: bool
    consumer_group_id: str | None
    bootstrap: str | None


def read(kind: str, pipeline: str, properties: Properties, choices: Choices) -> Event | None:
    """Read one event of a type of `KINDS`; None with a note where it has no topic."""
    properties.account_for(_HONOURED[kind], IGNORED, UNSUPPORTED, f"{kind} events")
    source: dict[str, object] = {}
    if kind not in KAFKA:
        # AWS waits half a second on Kafka, as headrace does, and not at all on streams.
        source["maximum_batching_window_in_seconds"] = 0
    settings = SETTINGS if kind in KAFKA else SETTINGS | STREAM_SETTINGS
    for name, (key, convert) in settings.items():
        value = properties.take(name, convert)
        if value is not None:
            source[key] = value
    if "StartingPosition" not in properties.names and kind != "SelfManagedKafka":
        properties.findings.fault(
            f"{properties.at}.StartingPosition", "is missing; valid are TRIM_HORIZON, LATEST and AT_TIMESTAMP"
        )
    filters = _filters(properties)
    if filters:
        source["filter_criteria"] = {"filters": filters}
    function: dict[str, object] = {"kind": KINDS[kind]}
    topic = _stream(kind, pipeline, properties, choices, function)
    destination = _destination(pipeline, properties, choices)
    if destination is not None:
        source["destination_config"] = {"on_failure": destination}
    elif _gives_up(source) and "DestinationConfig" not in properties.names:
        properties.findings.ignored(
            f"{properties.at}.DestinationConfig",
            "is not there: where AWS would drop a record that failed for good, its shard stops before it; "
            f"--on-failure {pipeline}=file:PATH keeps such records and goes on",
        )
    _access(properties)
    enabled = properties.take("Enabled", boolean)
    servers = properties.take("KafkaBootstrapServers", texts) if kind == "SelfManagedKafka" else None
    group = properties.take("ConsumerGroupId", text_of) if kind in KAFKA else None
    if topic is None:
        return None
    return Event(
        kind=kind,
        source={"topic": topic, **source},
        function=function,
        enabled=enabled is not False,
        consumer_group_id=group,
        bootstrap=",".join(servers) if servers else None,
    )


def _gives_up(source: dict[str, object]) -> bool:
    return source.get("maximum_retry_attempts", -1) != -1 or source.get("maximum_record_age_in_seconds", -1) != -1


def _filters(properties: Properties) -> list[dict[str, str]]:
    criteria = properties.below("FilterCriteria")
    criteria.account_for(("Filters",), {}, {}, "FilterCriteria")
    found = []
    for index, item in enumerate(criteria.take("Filters", items) or []):
        at = f"{criteria.at}.Filters[{index}]"
        pattern = item.get("Pattern") if isinstance(item, dict) else None
        if not isinstance(pattern, str):
            properties.findings.fault(at, "has to be a mapping with Pattern, JSON as text")
            continue
        found.append({"pattern": pattern})
    return found


def _stream(
    kind: str, pipeline: str, properties: Properties, choices: Choices, function: dict[str, object]
) -> str | None:
    """The topic that stands for the stream; puts what events say of the stream into ``function``."""
    name, arn = None, None
    names = [pipeline]
    if kind != "SelfManagedKafka":
        name, arn, why = _stream_arn(properties, names)
        if arn is not None:
            function["event_source_arn"] = arn
    if kind in KAFKA:
        if kind == "MSK":
            function["event_source"] = "aws:kafka"
            if arn is None:
                if why is not None:
                    properties.note("Stream", why)
                function["event_source_arn"] = f"arn:aws:kafka:us-east-1:{ACCOUNT}:cluster/unknown/unknown"
        found = properties.take("Topics", texts)
        if found is None or len(found) != 1:
            if properties.raw("Topics") is NO_VALUE or found is not None:
                properties.findings.fault(f"{properties.at}.Topics", "has to be a list of exactly one topic")
            found = []
        name = found[0] if found else None
        names = [pipeline, *found]
    topic = choices.topic(names) or name
    if topic is None:
        if kind not in KAFKA and why is not None:
            if isinstance(why, Unresolved):
                why = Unresolved(f"{why}; --topic {pipeline}=TOPIC says which topic it is")
            properties.note("Stream", why)
        return None
    if not _TOPIC.fullmatch(topic):
        properties.findings.fault(
            f"{properties.at}.{'Topics' if kind in KAFKA else 'Stream'}",
            f"{topic!r} cannot be a topic's name (letters, digits, dot, underscore, dash); "
            f"--topic {pipeline}=TOPIC gives another",
        )
        return None
    return topic


def _stream_arn(
    properties: Properties, names: list[str]
) -> tuple[str | None, str | None, Malformed | Unresolved | None]:
    """The stream's name and ARN, or why there are none; ``names`` gets all that the user may call it by."""
    raw = properties.raw("Stream")
    if raw is NO_VALUE:
        return None, None, Malformed("is missing; valid is the ARN of a stream")
    names += properties.resolver.references(raw)
    try:
        arn = text_of(properties.resolver.resolve(raw))
    except (Malformed, Unresolved) as error:
        return None, None, error
    names.append(arn)
    found = _ARN.fullmatch(arn)
    if found is None:
        return None, None, Malformed(f"{arn!r} is not the ARN of a stream, table or cluster")
    names.append(found[2])
    return found[2], arn, None


def _destination(pipeline: str, properties: Properties, choices: Choices) -> str | None:
    config = properties.below("DestinationConfig")
    config.account_for(("OnFailure",), {}, {"OnSuccess": "AWS takes none for streams either"}, "DestinationConfig")
    on_failure = config.below("OnFailure")
    on_failure.account_for(("Destination", "Type"), {}, {}, "OnFailure")
    raw = on_failure.raw("Destination")
    names = [pipeline]
    why: Malformed | Unresolved | None = None
    if raw is not NO_VALUE:
        names += properties.resolver.references(raw)
        try:
            target = text_of(properties.resolver.resolve(raw))
        except (Malformed, Unresolved) as error:
            why = error
        else:
            if target.startswith("kafka://"):
                names = [pipeline, target]
            elif target:
                names += [target, re.split("[:/]", target)[-1]]
                why = Unresolved(f"{target} is not there")
            if target.startswith("kafka://") or not target:
                return choices.destination(names) or target or None
    chosen = choices.destination(names)
    if chosen is None and why is not None:
        if isinstance(why, Unresolved):
            why = Unresolved(f"{why}; --on-failure {(names[1:] or names)[0]}=kafka://TOPIC or =file:PATH maps it")
        on_failure.note("Destination", why)
    return chosen


def absolute(target: str, directory: Path) -> str:
    """A destination of the command line, files relative to the directory that it was given in."""
    if target.startswith("file:"):
        return f"file:{directory / target.removeprefix('file:')}"
    if "://" not in target and target.endswith((".jsonl", ".ndjson")):
        return f"file:{directory / target}"
    return target


def _access(properties: Properties) -> None:
    """Credentials are in AWS's secrets; which kinds there are is said, never what they are."""
    entries = properties.raw("SourceAccessConfigurations")
    if entries is NO_VALUE:
        return
    at = f"{properties.at}.SourceAccessConfigurations"
    if not isinstance(entries, list):
        properties.findings.unsupported(at, "its secrets are in AWS")
        return
    for entry in entries:
        kind = entry.get("Type") if isinstance(entry, dict) else None
        if kind in _NETWORK:
            properties.findings.ignored(at, f"{kind}: headrace uses this machine's network")
        else:
            label = kind if isinstance(kind, str) else "an entry"
            properties.findings.unsupported(
                at, f"{label}: its secret is in AWS; --config FILE.toml gives the cluster's credentials in [kafka]"
            )
