"""Reading `headrace.toml`: every fault at once, each with its key, the value, and what is valid.

What a configuration may hold is said in `engine.config`.
"""

from __future__ import annotations

import difflib
import tomllib
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, SecretStr, ValidationError
from pydantic_core import ErrorDetails

from engine.config import Config, PipelineConfig, batch_size, batching_window, group_id
from engine.config_sinks import SINK_TYPES
from engine.errors import ConfigError

T = TypeVar("T", bound=BaseModel)

#: A fault quotes at most this much of the value it is about.
EXCERPT_CHARACTERS_MAX = 80

#: Keys whose values no fault shows.
SECRETS = (("kafka", "sasl_password"), ("registry", "password"))

#: Where pydantic puts the tag of the sink's union, behind pipelines.NAME.sink; it is no part of the key.
SINK_TYPE_AT = 3


def load(path: Path) -> Config:
    """The configuration in a TOML file; relative paths in it are relative to the file's directory.

    Raises ConfigError, with every fault that the file has.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(str(path), ["there is no such file"]) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(str(path), [f"cannot be read: {error}"]) from None
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(str(path), [f"is not valid TOML: {error}"]) from None
    # Absolute: a handler may change the working directory.
    return parse(document, source=str(path), directory=path.absolute().parent)


def parse(
    document: Mapping[str, object], *, source: str = "configuration", directory: Path | None = None
) -> Config:
    """The configuration in a parsed document. Raises ConfigError, with every fault."""
    try:
        config = Config.model_validate(document)
    except ValidationError as error:
        details = error.errors(include_url=False)
        raise ConfigError(source, sorted({_fault(detail) for detail in details})) from None
    return _resolved(config, directory or Path())


def _fault(detail: ErrorDetails) -> str:
    path = detail["loc"]
    is_variable = path[:1] == ("pipelines",) and path[2:4] == ("function", "environment")
    if path in SECRETS or (is_variable and len(path) > 4):
        return f"{'.'.join(map(str, path))}: must be text"  # never the value
    if is_variable and not isinstance(detail["input"], dict):
        return f"{'.'.join(map(str, path))}: must be a table of names and text"
    location = list(detail["loc"])
    sink_type: int | str | None = None
    if location[:1] == ["pipelines"] and location[2:3] == ["sink"] and len(location) > SINK_TYPE_AT:
        sink_type = location.pop(SINK_TYPE_AT)
    key = ".".join(str(part) for part in location)
    match detail["type"]:
        case "extra_forbidden":
            return f"{key}: unknown key{_nearest(location, _valid_keys(location, sink_type))}"
        case "missing":
            return f"{key}: is missing"
        case "union_tag_not_found":
            return f"{key}.type: is missing; valid are {', '.join(map(repr, SINK_TYPES))}"
        case "union_tag_invalid":
            tag, expected = detail["ctx"]["tag"], detail["ctx"]["expected_tags"]
            valid = [name.strip(" '") for name in expected.split(",")]
            return f"{key}.type = {tag!r}: valid are {expected}{_guess(tag, valid)}"
        case "literal_error":
            expected = detail["ctx"]["expected"]
            valid = [name.strip(" '") for name in expected.replace(" or ", ",").split(",")]
            return f"{key} = {_excerpt(detail['input'])}: valid are {expected}{_guess(detail['input'], valid)}"
        case "value_error":
            message = detail["msg"].removeprefix("Value error, ")
            if isinstance(detail["input"], str | int | float):
                return f"{key} = {_excerpt(detail['input'])}: {message}"
            return f"{key}: {message}" if key else message
        case _:
            message = detail["msg"][0].lower() + detail["msg"][1:]
            if isinstance(detail["input"], dict | list):
                return f"{key}: {message}"
            return f"{key} = {_excerpt(detail['input'])}: {message}"


def _excerpt(value: object) -> str:
    text = repr(value)
    return text if len(text) <= EXCERPT_CHARACTERS_MAX else text[:EXCERPT_CHARACTERS_MAX] + "…"


def _guess(name: object, valid: list[str]) -> str:
    near = difflib.get_close_matches(str(name), valid, n=1, cutoff=0.6)
    near = near or [item for item in valid if item.lower() == str(name).lower()]
    return f"; did you mean {near[0]}?" if near else ""


def _nearest(location: list[int | str], valid: list[str]) -> str:
    return _guess(location[-1], valid) or (f"; valid are {', '.join(valid)}" if valid else "")


def _valid_keys(location: list[int | str], sink_type: int | str | None) -> list[str]:
    """The keys that the table at ``location`` (without its last part) may have; of sinks, those of one type."""
    models: list[type[BaseModel]] = [Config]
    # A pipeline may be called like a setting.
    parts = [location[0], *location[2:-1]] if location[:1] == ["pipelines"] else location[:-1]
    for part in parts:
        models = [found for model in models for found in _models_below(model, str(part))] or models
    if sink_type is not None:
        models = [model for model in models if sink_type in typing.get_args(model.model_fields["type"].annotation)]
    return sorted({field.alias or name for model in models for name, field in model.model_fields.items()})


def _models_below(model: type[BaseModel], key: str) -> list[type[BaseModel]]:
    for name, field in model.model_fields.items():
        if key == (field.alias or name):
            return _models_in(field.annotation)
    return []


def _models_in(annotation: object) -> list[type[BaseModel]]:
    origin = typing.get_origin(annotation)
    if origin is typing.Annotated:
        return _models_in(typing.get_args(annotation)[0])
    if origin in (typing.Union, types.UnionType, dict, tuple):
        return [model for part in typing.get_args(annotation) for model in _models_in(part)]
    return [annotation] if isinstance(annotation, type) and issubclass(annotation, BaseModel) else []


def _resolved(config: Config, directory: Path) -> Config:
    """Defaults that depend on other settings filled in, and paths made relative to ``directory``."""
    pipelines = {}
    for name, pipeline in config.pipelines.items():
        sink, source = pipeline.sink, pipeline.source.model_copy(update=_source_defaults(pipeline))
        if hasattr(sink, "path"):
            sink = sink.model_copy(update={"path": directory / sink.path})
        target = source.destination_config.on_failure
        if target is not None and target.startswith("file:"):
            moved = {"on_failure": f"file:{directory / target.removeprefix('file:')}"}
            source = source.model_copy(
                update={"destination_config": source.destination_config.model_copy(update=moved)}
            )
        function = pipeline.function
        if function is not None:
            root = directory if function.root is None else directory / function.root
            function = function.model_copy(update={"root": root})
        pipelines[name] = pipeline.model_copy(
            update={
                "sink": sink,
                "source": source,
                "function": function,
                "consumer_group_id": group_id(name, pipeline),
            }
        )
    kafka = _moved(config.kafka, directory, "ssl_ca_file", "ssl_cert_file", "ssl_key_file")
    registry = _moved(config.registry, directory, "ca_file")
    engine = _moved(config.engine, directory, "function_log_path", "metering_path")
    return config.model_copy(
        update={"kafka": kafka, "registry": registry, "engine": engine, "pipelines": pipelines}
    )


def _source_defaults(pipeline: PipelineConfig) -> dict[str, object]:
    return {
        "batch_size": batch_size(pipeline),
        "maximum_batching_window_in_seconds": batching_window(pipeline),
    }


def _moved(model: T, directory: Path, *names: str) -> T:
    """``model`` with the paths of those names relative to ``directory``."""
    paths = {name: directory / path for name in names if (path := getattr(model, name)) is not None}
    return model.model_copy(update=paths)


def resolved(config: Config) -> dict[str, object]:
    """The configuration with every default filled in, for people; secrets are shown as asterisks."""

    def plain(value: object) -> object:
        if isinstance(value, SecretStr):
            return "**********"
        if isinstance(value, BaseModel):
            return {
                field.alias or name: plain(getattr(value, name)) for name, field in type(value).model_fields.items()
            }
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        if isinstance(value, tuple | list):
            return [plain(item) for item in value]
        return value if isinstance(value, bool | int | float) or value is None else str(value)

    document = plain(config)
    assert isinstance(document, dict)
    return document
