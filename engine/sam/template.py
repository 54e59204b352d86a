"""A whole template: its functions, each with its stream events, as the pipelines of a `Config`.

One pipeline for each event, named FUNCTION-EVENT, without a sink: what a handler returns goes nowhere, as on AWS.
Not here: what properties mean (`functions`, `events`) and what values are (`intrinsics`).
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from engine import config_file
from engine.config import Config
from engine.errors import ConfigError
from engine.sam import document, events, functions, mappings
from engine.sam.events import Choices
from engine.sam.findings import Findings
from engine.sam.functions import Function
from engine.sam.globals import merged
from engine.sam.intrinsics import NO_VALUE, Malformed, Resolver, Unresolved, mapping_of
from engine.sam.properties import COMMON, Properties
from engine.sam.resources import FUNCTIONS, MAPPING, NAMED, runs_otherwise

TRANSFORM = "AWS::Serverless-2016-10-31"

#: Names that only templates have; of another file the content decides.
SUFFIXES = (".yaml", ".yml", ".json", ".template")

_SECTIONS = (
    *("AWSTemplateFormatVersion", "Conditions", "Description", "Globals", "Mappings", "Metadata", "Outputs"),
    *("Parameters", "Resources", "Rules", "Transform"),
)


@dataclass(frozen=True, slots=True)
class Template:
    """A template as configuration. A line of ``unsupported`` or ``ignored`` is "RESOURCE.PROPERTY: why".

    What ``unsupported`` names is left out of ``config``, with the whole function where it cannot do without.
    """

    config: Config
    unsupported: list[str]
    ignored: list[str]


def is_template(path: Path) -> bool:
    """Whether a file is a SAM or CloudFormation template and no headrace.toml."""
    if path.suffix.lower() == ".toml":
        return False
    if path.suffix.lower() in SUFFIXES:
        return True
    try:
        return document.is_template_text(document.read_text(path))
    except ConfigError:
        return False


def load(
    path: Path,
    *,
    parameters: Mapping[str, str] | None = None,
    topics: Mapping[str, str] | None = None,
    on_failure: Mapping[str, str] | None = None,
    bootstrap: str | None = None,
    settings: Path | None = None,
) -> Template:
    """Read a template.

    ``parameters`` give values to its Parameters (and to AWS::Region, AWS::StackName, ...). ``topics`` map a
    stream (its logical id, name, ARN, export, or FUNCTION-EVENT) to a topic, ``on_failure`` a destination (the
    same) to "kafka://TOPIC" or "file:PATH", relative to the working directory. ``bootstrap`` outranks the
    template's KafkaBootstrapServers. ``settings`` is a TOML file whose tables kafka, registry and engine hold.

    Raises ConfigError with every fault that the template has, and with what is unsupported beside them.
    """
    text = document.read_text(path)
    template = document.parse(text, source=str(path))
    findings = Findings()
    base = _tables(settings) if settings is not None else {}
    here = Path.cwd()
    choices = Choices(
        dict(topics or {}), {name: events.absolute(target, here) for name, target in (on_failure or {}).items()}
    )
    pipelines: dict[str, object] = {}
    servers: dict[str, str] = {}
    try:
        reader = _Reader(path, template, parameters or {}, choices, findings)
        pipelines, servers = reader.read()
    except (Malformed, Unresolved) as error:
        findings.fault("the template", str(error))
    _unused(choices, findings)
    kafka = _bootstrap(servers, bootstrap, base, findings)
    if not pipelines and not findings.faults:
        findings.fault("Resources", "there is no function with a stream event that headrace could run")
    if findings.faults:
        raise ConfigError(str(path), _all(findings, []))
    try:
        config = config_file.parse(
            {**kafka, "pipelines": pipelines}, source=str(path), directory=path.absolute().parent
        )
    except ConfigError as error:
        raise ConfigError(
            str(path), _all(findings, list(dict.fromkeys(map(_in_its_words, error.faults))))
        ) from None
    return Template(
        config.model_copy(update=base),
        findings.all_unsupported,
        findings.all_ignored,
    )


def _all(findings: Findings, more: list[str]) -> list[str]:
    return [*findings.faults, *more, *(f"unsupported: {each}" for each in findings.all_unsupported)]


class _Reader:
    """One reading of one template."""

    def __init__(
        self,
        path: Path,
        template: Mapping[str, object],
        parameters: Mapping[str, str],
        choices: Choices,
        findings: Findings,
    ) -> None:
        self._directory = path.absolute().parent
        self._template = template
        self._choices = choices
        self._findings = findings
        self._resolver = Resolver(template, parameters, region=os.environ.get("AWS_REGION", "us-east-1"))
        self._resources: dict[str, object] = {}
        self._pipelines: dict[str, object] = {}
        self._servers: dict[str, str] = {}
        for fault in self._resolver.parameter_faults():
            findings.fault(*fault.split(": ", 1))

    def read(self) -> tuple[dict[str, object], dict[str, str]]:
        """The pipelines, and the bootstrap servers that some of them name, by pipeline."""
        self._sections()
        for name, resource in mapping_of(self._template.get("Resources"), "Resources").items():
            if not isinstance(resource, dict) or not isinstance(resource.get("Type"), str):
                self._findings.fault(name, "has to be a mapping with a Type")
            elif self._exists(name, resource):
                self._resources[name] = resource
        common = self._common()
        mapped = self._mapped()
        for name, resource in self._resources.items():
            assert isinstance(resource, dict)
            kind = resource["Type"]
            if kind in FUNCTIONS:
                self._function(name, kind, resource, common, mapped.get(name, {}))
            elif kind != MAPPING:
                self._other(name, kind)
        return self._pipelines, self._servers

    def _sections(self) -> None:
        if not {"AWSTemplateFormatVersion", "Transform", "Resources"} & self._template.keys():
            raise Malformed("has neither AWSTemplateFormatVersion nor Transform nor Resources: it is none")
        for name in self._template:
            if name not in _SECTIONS:
                self._findings.unsupported(name, "headrace knows no such section")
        given = self._template.get("Transform", [])
        for transform in given if isinstance(given, list) else [given]:
            if transform != TRANSFORM:
                label = transform if isinstance(transform, str) else "a macro"
                self._findings.unsupported("Transform", f"{label} is not carried out; only {TRANSFORM} is")

    def _exists(self, name: str, resource: Mapping[str, object]) -> bool:
        if "Condition" not in resource:
            return True
        try:
            return self._resolver.condition(str(resource["Condition"]))
        except Malformed as error:
            self._findings.fault(f"{name}.Condition", str(error))
        except Unresolved as error:
            self._findings.unsupported(f"{name}.Condition", str(error))
        return False

    def _common(self) -> Mapping[str, object]:
        sections = mapping_of(self._template.get("Globals"), "Globals")
        for name in sections:
            if name != "Function":
                self._findings.ignored(f"Globals.{name}", "is for resources that headrace does not make")
        return mapping_of(sections.get("Function"), COMMON)

    def _mapped(self) -> dict[str, dict[str, object]]:
        """The events that plain mappings make, by function and by the mapping's name."""
        found: dict[str, dict[str, object]] = {}
        for name, resource in self._resources.items():
            assert isinstance(resource, dict)
            if resource["Type"] != MAPPING:
                continue
            try:
                properties = mapping_of(self._resolver.chosen(resource.get("Properties")), name)
                function = mappings.function_of(properties, self._resources, self._resolver)
                event = mappings.as_event(properties, self._resources, self._resolver)
            except Malformed as error:
                self._findings.fault(name, str(error))
            except Unresolved as error:
                self._findings.unsupported(name, str(error))
            else:
                found.setdefault(function, {})[name] = event
        return found

    def _function(
        self,
        name: str,
        kind: str,
        resource: Mapping[str, object],
        common: Mapping[str, object],
        mapped: Mapping[str, object],
    ) -> None:
        own = self._resolver.chosen(resource.get("Properties"))
        if own is None or own is NO_VALUE:
            own = {}
        common = common if kind == "AWS::Serverless::Function" and isinstance(own, dict) else {}
        inherited = [key for key in common if key not in own]  # type: ignore[operator]
        properties = Properties(merged(common, own), name, self._resolver, self._findings, common=inherited)
        events_ = properties.below("Events")
        streams: dict[str, Properties] = {}
        kinds: dict[str, str] = {}
        for event, at, value in [
            *((each, f"{name}.Events.{each}", events_.raw(each)) for each in events_.names),
            *((each, each, value) for each, value in mapped.items()),
        ]:
            type_ = self._event_type(at, value)
            if type_ is not None:
                assert isinstance(value, dict)
                kinds[event] = type_
                streams[event] = Properties(value.get("Properties", {}), at, self._resolver, self._findings)
        function = functions.read(name, kind, properties, self._directory, is_used=bool(streams))
        if not streams and not events_.names:
            self._findings.ignored(name, f"no event of this template calls this {kind}")
        for event, stream in streams.items():
            self._event(function, event, kinds[event], stream, alone=len(streams) == 1)

    def _event_type(self, at: str, value: object) -> str | None:
        kind = value.get("Type") if isinstance(value, dict) else None
        if not isinstance(kind, str):
            self._findings.fault(at, "has to be a mapping with a Type")
        elif kind not in events.KINDS:
            self._findings.unsupported(
                at, f"functions are not called by {kind}; valid are {', '.join(events.KINDS)}"
            )
        else:
            return kind
        return None

    def _event(self, function: Function, event: str, kind: str, properties: Properties, *, alone: bool) -> None:
        name = f"{function.logical_id}-{event}"
        read = events.read(kind, name, properties, self._choices)
        if read is None or not function.can_run:
            return
        if not alone and "reserved_concurrency" in function.settings:
            self._findings.ignored(
                function.properties.place("ReservedConcurrentExecutions"),
                "holds for each event of the function by itself",
            )
        pipeline: dict[str, object] = {
            "source": read.source,
            "function": {**function.settings, **read.function},
            "sink": {"type": "none"},
            "compatibility": "aws",
            "enabled": read.enabled,
        }
        if read.consumer_group_id is not None:
            pipeline["consumer_group_id"] = read.consumer_group_id
        self._pipelines[name] = pipeline
        if read.bootstrap is not None and read.enabled:
            self._servers[properties.place("KafkaBootstrapServers")] = read.bootstrap

    def _other(self, name: str, kind: str) -> None:
        why = runs_otherwise(kind)
        if why is not None:
            self._findings.unsupported(name, f"{kind}: {why}")
        elif kind not in NAMED:
            self._findings.ignored(name, f"{kind} is not made; headrace calls no AWS service")


def _unused(choices: Choices, findings: Findings) -> None:
    """A name on the command line that nothing has is a misspelling."""
    for option, given, seen in (
        ("--topic", choices.topics, choices.seen_streams),
        ("--on-failure", choices.on_failure, choices.seen_destinations),
    ):
        for name in given:
            if (option, name) not in choices.used:
                valid = ", ".join(dict.fromkeys(seen)) or "none"
                if name in seen:
                    findings.fault(f"{option} {name}", "another name of the same thing has been given as well")
                else:
                    findings.fault(f"{option} {name}", f"the template has nothing of that name; there are {valid}")


def _bootstrap(
    servers: Mapping[str, str], bootstrap: str | None, base: Mapping[str, object], findings: Findings
) -> dict[str, object]:
    """The `kafka` table: the template's servers, unless the caller knows better. One run reads one cluster."""
    chosen = bootstrap or ("the [kafka] table" if base else None)
    for at, value in servers.items():
        if chosen is not None and chosen != value:
            if bootstrap or base:
                findings.ignored(at, "the command line says which cluster it is")
            else:
                findings.unsupported(at, f"one run reads one cluster, here {chosen}; --bootstrap names it for all")
        chosen = chosen or value
    return {"kafka": {"bootstrap": chosen}} if chosen is not None and not bootstrap and not base else {}


def _tables(path: Path) -> dict[str, object]:
    """The tables of a TOML file that are not pipelines, as fields of `Config`."""
    try:
        given = tomllib.loads(document.read_text(path))
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(str(path), [f"is not valid TOML: {error}"]) from None
    # A configuration has to have a pipeline; what pipelines this one has does not matter here.
    placeholder = {"unused": {"source": {"topic": "unused"}, "sink": {"type": "parquet", "path": "unused"}}}
    config = config_file.parse(
        {**given, "pipelines": placeholder}, source=str(path), directory=path.absolute().parent
    )
    return {"kafka": config.kafka, "registry": config.registry, "engine": config.engine}


_WORDS = {key: name for name, (key, _) in (events.SETTINGS | events.STREAM_SETTINGS).items()} | {
    "filter_criteria": "FilterCriteria"
}
_FUNCTION_WORDS = {key: name for name, key in functions.SETTINGS.items()} | {
    "name": "FunctionName",
    "environment": "Environment.Variables",
    "handler": "Handler",
}
_KEY = re.compile(r"pipelines\.([A-Za-z0-9]+)-([A-Za-z0-9]+)(?:\.(source|function)(?:\.([a-z_]+))?)?")


def _in_its_words(fault: str) -> str:
    """A configuration's fault, with the template's name for what it is about."""
    found = _KEY.match(fault)
    if found is None:
        return fault
    function, event, table, key = found.groups()
    if table == "function" and key is not None:
        place = f"{function}.{_FUNCTION_WORDS.get(key, key)}"
    else:
        place = f"{function}.Events.{event}" + (f".{_WORDS.get(key, key)}" if key is not None else "")
    return place + fault[found.end() :]
