"""The page about every setting, made from the models: `python -m engine.config_page > docs/configuration.md`."""

from __future__ import annotations

import sys
import typing
from collections.abc import Iterator

import annotated_types
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from engine import config, config_serving, config_sinks

TABLES: tuple[tuple[str, type[BaseModel], str], ...] = (
    ("kafka", config.KafkaConfig, "The cluster."),
    ("registry", config.RegistryConfig, "A Confluent-compatible schema registry, for Avro and Protobuf values."),
    ("engine", config.EngineConfig, "Bounds of the whole process."),
    ("web", config_serving.WebConfig, "The page of a run, its metrics and its health."),
    ("query", config_serving.QueryConfig, "SQL over the results of a run, while it writes."),
    ("tracing", config_serving.TracingConfig, "OpenTelemetry traces; off by default."),
    ("pipelines.NAME", config.PipelineConfig, "One pipeline: a topic, a function, a sink."),
    ("pipelines.NAME.source", config.SourceConfig, "What an event source mapping can be told."),
    (
        "[pipelines.NAME.source.filter_criteria.filters]",
        config.FilterConfig,
        "At most 10 of them. A record that matches none is let go before batches are made.",
    ),
    ("pipelines.NAME.source.destination_config", config.DestinationConfig, "Where records go that fail for good."),
    ("pipelines.NAME.schema", config.SchemaConfig, "How values are read, for kinds called with columns."),
    ("pipelines.NAME.function", config.FunctionConfig, "The handler; without one the records are the rows."),
    ("pipelines.NAME.sink", config_sinks.ParquetSinkConfig, 'With `type = "parquet"`.'),
    ("pipelines.NAME.sink", config_sinks.DuckDBSinkConfig, 'With `type = "duckdb"`.'),
    ("pipelines.NAME.sink", config_sinks.DuckLakeSinkConfig, 'With `type = "ducklake"`.'),
    ("pipelines.NAME.sink", config_sinks.KafkaSinkConfig, 'With `type = "kafka"`.'),
    ("pipelines.NAME.sink", config_sinks.NoSinkConfig, 'With `type = "none"`, or no sink: at least once.'),
)

HEAD = """# Configuration

Every setting of `headrace.toml`, its default and its range. `headrace check FILE` reports all faults of a file at
once and shows it with every default filled in. Unknown keys are refused. Settings that AWS Lambda has keep its name
in snake case.
This page is made from the models by `python -m engine.config_page`.
"""


def page() -> str:
    return "\n".join([HEAD, *(line for table in TABLES for line in _table(*table))])


def _table(name: str, model: type[BaseModel], about: str) -> Iterator[str]:
    yield f"## [{name}]"
    yield ""
    yield about
    yield ""
    rows = [_row(field.alias or key, field) for key, field in model.model_fields.items() if not _is_table(field)]
    yield "| key | default | valid | |"
    yield "|---|---|---|---|"
    yield from rows
    yield ""


def _is_table(field: FieldInfo) -> bool:
    """Whether a field is a table of its own, told of elsewhere on the page."""
    parts = typing.get_args(field.annotation) or (field.annotation,)
    return any(isinstance(part, type) and issubclass(part, BaseModel) for part in parts)


def _is_text(field: FieldInfo) -> bool:
    return str in (field.annotation, *typing.get_args(field.annotation))


def _row(key: str, field: FieldInfo) -> str:
    default = "required" if field.default is PydanticUndefined else _shown(field.default)
    about = (field.description or "").replace("|", "\\|")
    return f"| `{key}` | {default} | {_valid(field)} | {about} |"


def _shown(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, tuple):
        return f"`{list(value)}`"
    if isinstance(value, dict):
        return f"`{value}`"
    return f'`"{value}"`' if isinstance(value, str) else f"`{value:,}`".replace(",", "_")


def _valid(field: FieldInfo) -> str:
    if typing.get_origin(field.annotation) is typing.Literal:
        return ", ".join(f"`{value}`" for value in typing.get_args(field.annotation))
    bounds = []
    for rule in field.metadata:
        match rule:
            case annotated_types.Ge(ge=low):
                bounds.append(f"from {low:,}")
            case annotated_types.Gt(gt=low):
                bounds.append(f"above {low:,}")
            case annotated_types.Le(le=high):
                bounds.append(f"to {high:,}")
            case annotated_types.MaxLen(max_length=longest):
                bounds.append(f"up to {longest} {'characters' if _is_text(field) else 'entries'}")
    return " ".join(bounds)


if __name__ == "__main__":
    sys.stdout.write(page())
