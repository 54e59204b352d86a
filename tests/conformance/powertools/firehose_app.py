"""A Firehose transformation function, as users of Powertools write it."""

from __future__ import annotations

from typing import Any

from aws_lambda_powertools.utilities.data_classes import (
    KinesisFirehoseDataTransformationRecordMetadata,
    KinesisFirehoseDataTransformationResponse,
    KinesisFirehoseEvent,
    event_source,
)
from aws_lambda_powertools.utilities.parser import BaseModel, envelopes, parse
from aws_lambda_powertools.utilities.parser.models import KinesisFirehoseModel
from aws_lambda_powertools.utilities.serialization import base64_from_json, base64_from_str
from aws_lambda_powertools.utilities.typing import LambdaContext
from common import everything


class Asked(BaseModel):
    do: str


@event_source(data_class=KinesisFirehoseEvent)
def handler(event: KinesisFirehoseEvent, context: LambdaContext) -> dict[str, Any]:
    """Gives back what it saw; drops, fails and garbles what asks for it."""
    seen = everything(event)
    model = parse(event.raw_event, KinesisFirehoseModel)
    asked = parse(event.raw_event, Asked, envelopes.KinesisFirehoseEnvelope)
    response = KinesisFirehoseDataTransformationResponse()
    for index, (record, found) in enumerate(zip(event.records, seen.pop("records"), strict=True)):
        match record.data_as_json["do"]:
            case "drop":
                made = record.build_data_transformation_response(result="Dropped")
            case "fail":
                made = record.build_data_transformation_response(result="ProcessingFailed", data=record.data)
            case "text":
                made = record.build_data_transformation_response(data=base64_from_str("a line\n"))
            case _:
                found |= {
                    "event": seen,
                    "model": everything(model.records[index]),
                    "envelope": everything(asked[index]),
                }
                keys = KinesisFirehoseDataTransformationRecordMetadata(partition_keys={"day": "monday"})
                made = record.build_data_transformation_response(data=base64_from_json(found), metadata=keys)
        response.add_record(made)
    return response.asdict()
