"""Functions on DynamoDB stream records, as users of Powertools write them. The key `act` of the first names one."""

from __future__ import annotations

import json
from typing import Any

from aws_lambda_powertools.utilities.batch import (
    AsyncBatchProcessor,
    BatchProcessor,
    EventType,
    async_process_partial_response,
    process_partial_response,
)
from aws_lambda_powertools.utilities.data_classes import DynamoDBStreamEvent, event_source
from aws_lambda_powertools.utilities.data_classes.dynamo_db_stream_event import DynamoDBRecord
from aws_lambda_powertools.utilities.parser import BaseModel, envelopes, event_parser
from aws_lambda_powertools.utilities.parser.models import DynamoDBStreamModel
from aws_lambda_powertools.utilities.typing import LambdaContext
from common import everything


class Order(BaseModel):
    act: str
    id: int


def answer(seen: Any) -> dict[str, Any]:
    return {"state": {}, "rows": [{"seen": json.dumps(seen)}]}


@event_source(data_class=DynamoDBStreamEvent)
def data_classes(event: DynamoDBStreamEvent, context: LambdaContext) -> dict[str, Any]:
    return answer(everything(event))


@event_parser(model=DynamoDBStreamModel)
def parsed(event: DynamoDBStreamModel, context: LambdaContext) -> dict[str, Any]:
    return answer(everything(event))


@event_parser(model=Order, envelope=envelopes.DynamoDBStreamEnvelope)
def enveloped(event: list[dict[str, Order]], context: LambdaContext) -> dict[str, Any]:
    return answer(everything(event))


def each(record: DynamoDBRecord) -> int:
    assert record.dynamodb is not None
    if record.dynamodb.new_image["id"] < 0:
        raise ValueError("a bad order")
    return int(record.dynamodb.new_image["id"])


async def later(record: DynamoDBRecord) -> int:
    return each(record)


processor = BatchProcessor(event_type=EventType.DynamoDBStreams)
asynchronous = AsyncBatchProcessor(event_type=EventType.DynamoDBStreams)


def batch(event: dict[str, Any], context: LambdaContext) -> Any:
    return process_partial_response(event, each, processor, context)


def asyncbatch(event: dict[str, Any], context: LambdaContext) -> Any:
    return async_process_partial_response(event, later, asynchronous, context)


ACTS = {
    "data": data_classes,
    "parsed": parsed,
    "enveloped": enveloped,
    "batch": batch,
    "async": asyncbatch,
}


def handler(event: dict[str, Any], context: LambdaContext) -> Any:
    return ACTS[event["Records"][0]["dynamodb"]["Keys"]["act"]["S"]](event, context)
