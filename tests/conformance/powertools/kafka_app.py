"""Functions on Kafka records, as users of Powertools write them. The first record's key names one."""

from __future__ import annotations

import base64
import json
from typing import Any

from aws_lambda_powertools.utilities.batch import BatchProcessor, EventType, process_partial_response
from aws_lambda_powertools.utilities.data_classes import KafkaEvent, event_source
from aws_lambda_powertools.utilities.data_classes.kafka_event import KafkaEventRecord
from aws_lambda_powertools.utilities.kafka import ConsumerRecords, SchemaConfig, kafka_consumer
from aws_lambda_powertools.utilities.parser import BaseModel, envelopes, event_parser
from aws_lambda_powertools.utilities.parser.models import KafkaMskEventModel, KafkaSelfManagedEventModel
from aws_lambda_powertools.utilities.typing import LambdaContext
from common import act_of, everything
from google.protobuf.timestamp_pb2 import Timestamp


class Click(BaseModel):
    id: int
    bad: bool = False


def answer(seen: Any) -> dict[str, Any]:
    return {"rows": [{"seen": json.dumps(seen)}]}


@event_source(data_class=KafkaEvent)
def data_classes(event: KafkaEvent, context: LambdaContext) -> dict[str, Any]:
    """Reads every property of the event; the next record is its first."""
    assert event.record.offset == next(event.records).offset
    return answer(everything(event))


@event_source(data_class=KafkaEvent)
def tombstones(event: KafkaEvent, context: LambdaContext) -> dict[str, Any]:
    """The offsets of records that have no value."""
    return answer([record.offset for record in event.records if record.value is None])


@event_parser(model=KafkaSelfManagedEventModel)
def parsed(event: KafkaSelfManagedEventModel, context: LambdaContext) -> dict[str, Any]:
    return answer(everything(event))


@event_parser(model=KafkaMskEventModel)
def msk(event: KafkaMskEventModel, context: LambdaContext) -> dict[str, Any]:
    return answer(everything(event))


@event_parser(model=Click, envelope=envelopes.KafkaEnvelope)
def enveloped(event: list[Click], context: LambdaContext) -> dict[str, Any]:
    return answer(everything(event))


@kafka_consumer(schema_config=SchemaConfig(value_schema_type="JSON", value_output_serializer=Click))
def consumer(event: ConsumerRecords, context: LambdaContext) -> dict[str, Any]:
    return answer(
        [
            {**everything(record), "id": record.value.id, "type": type(record.value).__name__}
            for record in event.records
        ]
    )


@kafka_consumer(
    schema_config=SchemaConfig(value_schema_type="PROTOBUF", value_schema=Timestamp, key_schema_type="JSON")
)
def protobuf(event: ConsumerRecords, context: LambdaContext) -> dict[str, Any]:
    return answer([[record.key, record.value] for record in event.records])


def each(record: KafkaEventRecord) -> int:
    if record.json_value.get("bad"):
        raise ValueError("a bad click")
    return int(record.json_value["id"])


processor = BatchProcessor(event_type=EventType.Kafka)


def batch(event: dict[str, Any], context: LambdaContext) -> Any:
    return process_partial_response(event, each, processor, context)


ACTS = {
    "data": data_classes,
    "tombstones": tombstones,
    "parsed": parsed,
    "msk": msk,
    "enveloped": enveloped,
    "consumer": consumer,
    '"protobuf"': protobuf,
    "batch": batch,
    "k": batch,
}


def handler(event: dict[str, Any], context: LambdaContext) -> Any:
    [records] = event["records"].values()
    key = records[0]["key"]
    return ACTS["data" if key is None else act_of(base64.b64decode(key).decode())](event, context)
