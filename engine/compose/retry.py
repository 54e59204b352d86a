"""The retry pipeline: the companion of a pipeline that handles its failed records when they are sent again.

Its name, its topic and what it reads there; the same function, and a sink for its rows beside the pipeline's:

========  ===========================================================================================
Parquet   the directory ``retry`` in the pipeline's, so that ``**/*.parquet`` finds the rows of both
DuckDB    the table ``TABLE_retry`` of the same file: a table belongs to one pipeline, for its positions
Kafka     the same topic; positions are in the companion's own state topic
none      none
========  ===========================================================================================

Not here: sending records again (`engine.compose.dlq`).
"""

from __future__ import annotations

from collections.abc import Mapping

from connectors.kafka import writing
from connectors.kafka.replay import RECORD_BYTES, RECORD_GROWTH, RETRY_TOPIC
from connectors.kafka.settings import KafkaSettings
from connectors.kafka.topics import TargetTopic, message_bytes_max, target_topic
from engine.batch import Stream
from engine.config import PipelineConfig, group_id
from engine.config_sinks import DuckDBSinkConfig, ParquetSinkConfig, SinkConfig
from engine.errors import ConfigError
from engine.protocols import Clock

SUFFIX = ".retry"

#: The directory of a companion in its pipeline's Parquet sink, and what it adds to a table's name.
PARQUET_DIRECTORY = "retry"
TABLE_SUFFIX = "_retry"


def retry_name(name: str) -> str:
    """The companion's name, which is that of its topic too."""
    return f"{name}{SUFFIX}"


def companion(name: str, config: PipelineConfig) -> tuple[str, PipelineConfig]:
    """The name and the configuration of a pipeline's companion.

    It reads its topic from the start, committed records only, and takes a record however old it is. What
    fails again goes to the same destination. A companion has no companion.
    """
    destination = config.source.destination_config.model_copy(update={"replay": False})
    source = config.source.model_copy(
        update={
            "topic": retry_name(name),
            "starting_position": "TRIM_HORIZON",
            "starting_position_timestamp": None,
            "isolation_level": "read_committed",
            "maximum_record_age_in_seconds": -1,
            "destination_config": destination,
        }
    )
    update = {
        "source": source,
        "sink": _sink(config.sink),
        "consumer_group_id": f"{group_id(name, config)}{SUFFIX}",
    }
    return retry_name(name), config.model_copy(update=update)


def companions(pipelines: Mapping[str, PipelineConfig]) -> dict[str, PipelineConfig]:
    """The companions of those pipelines that are to have one.

    Raises ConfigError where another pipeline has the name, the topic or the sink of a companion.
    """
    found: dict[str, PipelineConfig] = {}
    faults: list[str] = []
    for name, pipeline in pipelines.items():
        if not pipeline.enabled or not pipeline.source.destination_config.replay:
            continue
        own, config = companion(name, pipeline)
        found[own] = config
        place = f"pipelines.{name}.source.destination_config.replay"
        for other, taken in pipelines.items():
            if other == own:
                faults.append(f"{place}: the pipeline {other} has the name of its companion")
            if taken.source.topic == own:
                faults.append(f"{place}: the pipeline {other} reads {own}, which is for the companion alone")
            if _place(taken.sink) is not None and _place(taken.sink) == _place(config.sink):
                faults.append(
                    f"{place}: the pipeline {other} writes to {_place(taken.sink)}, as the companion does"
                )
    if faults:
        raise ConfigError("the configuration", faults)
    return found


async def ensure_retry_topic(settings: KafkaSettings, clock: Clock, name: str, source: Stream) -> TargetTopic:
    """The retry topic of pipeline ``name``, made if it is missing: as many partitions as the ``source`` has.

    It keeps its records for ever, for what was sent again once is known by them. Raises BrokerUnavailable,
    and ExternalError where the cluster refuses.
    """
    source_bytes = await message_bytes_max(settings, source.topic)
    bytes_max = min(source_bytes * RECORD_GROWTH + RECORD_BYTES, writing.REQUEST_BYTES_MAX)
    wanted = {**RETRY_TOPIC, "max.message.bytes": str(bytes_max)}
    return await target_topic(settings, clock, retry_name(name), partitions=source.partitions, config=wanted)


def _sink(sink: SinkConfig) -> SinkConfig:
    match sink:
        case ParquetSinkConfig():
            return sink.model_copy(update={"path": sink.path / PARQUET_DIRECTORY})
        case DuckDBSinkConfig():
            return sink.model_copy(update={"table": f"{sink.table}{TABLE_SUFFIX}"})
        case _:
            return sink


def _place(sink: SinkConfig) -> str | None:
    """What a sink has for itself."""
    match sink:
        case ParquetSinkConfig():
            return f"Parquet directory {sink.path}"
        case DuckDBSinkConfig():
            return f"table {sink.table.lower().removeprefix('main.')} of {sink.path}"
        case _:
            return None
