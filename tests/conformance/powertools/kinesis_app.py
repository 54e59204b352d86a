"""Functions on Kinesis records, as users of Powertools write them. The first record's partition key names one."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from aws_lambda_powertools import Logger, Metrics
from aws_lambda_powertools.metrics import MetricUnit
from aws_lambda_powertools.utilities.batch import (
    AsyncBatchProcessor,
    BatchProcessor,
    EventType,
    async_process_partial_response,
    process_partial_response,
)
from aws_lambda_powertools.utilities.data_classes import KinesisStreamEvent, event_source
from aws_lambda_powertools.utilities.data_classes.kinesis_stream_event import KinesisStreamRecord
from aws_lambda_powertools.utilities.parser import BaseModel, envelopes, event_parser
from aws_lambda_powertools.utilities.parser.models import KinesisDataStreamModel, KinesisDataStreamRecord
from aws_lambda_powertools.utilities.parser.models.kinesis import KinesisDataStreamRecordPayload
from aws_lambda_powertools.utilities.parser.types import Json
from aws_lambda_powertools.utilities.typing import LambdaContext
from common import act_of, everything
from persistence import SqlitePersistence

from aws_lambda_powertools.utilities.idempotency import (  # isort: skip  # after its stand-in for boto3
    IdempotencyConfig,
    idempotent,
    idempotent_function,
)

logger = Logger(service="clicks")
metrics = Metrics(namespace="Clicks", service="clicks")

kept = SqlitePersistence(os.environ["KEPT"])
config = IdempotencyConfig()


class Click(BaseModel):
    id: int
    bad: bool = False


class ClickPayload(KinesisDataStreamRecordPayload):
    data: Json[Click]  # type: ignore[assignment]


class ClickRecord(KinesisDataStreamRecord):
    kinesis: ClickPayload


@event_source(data_class=KinesisStreamEvent)
def data_classes(event: KinesisStreamEvent, context: LambdaContext) -> dict[str, Any]:
    """Reads every property of the event, and each form of the data."""
    seen = everything(event)
    for record, found in zip(event.records, seen["records"], strict=True):
        payload = record.kinesis
        found["text"], found["json"] = payload.data_as_text(), payload.data_as_json()
    return {"state": {"calls": event.state.get("calls", 0) + 1}, "rows": [{"seen": json.dumps(seen)}]}


@event_parser(model=KinesisDataStreamModel)
def parsed(event: KinesisDataStreamModel, context: LambdaContext) -> dict[str, Any]:
    return {"rows": [{"seen": json.dumps(everything(event))}]}


@event_parser(model=Click, envelope=envelopes.KinesisDataStreamEnvelope)
def enveloped(event: list[Click], context: LambdaContext) -> dict[str, Any]:
    return {"rows": [{"seen": json.dumps(everything(event))}]}


@logger.inject_lambda_context(log_event=False, clear_state=True)
@metrics.log_metrics(capture_cold_start_metric=True)
def logged(event: dict[str, Any], context: LambdaContext) -> dict[str, Any]:
    metrics.add_metric("Clicks", MetricUnit.Count, len(event["Records"]))
    logger.append_keys(shard=event["Records"][0]["eventID"].partition(":")[0])
    logger.info("got %d", len(event["Records"]))
    return {"rows": [{"seen": str(context.get_remaining_time_in_millis())}]}


def each(record: KinesisStreamRecord) -> int:
    click = Click(**record.kinesis.data_as_json())
    if click.bad:
        raise ValueError("a bad click")
    return click.id


async def later(record: KinesisStreamRecord) -> int:
    return each(record)


def modelled(record: ClickRecord) -> int:
    if record.kinesis.data.bad:
        raise ValueError("a bad click")
    return record.kinesis.data.id


processor = BatchProcessor(event_type=EventType.KinesisDataStreams)
patient = BatchProcessor(event_type=EventType.KinesisDataStreams, raise_on_entire_batch_failure=False)
asynchronous = AsyncBatchProcessor(event_type=EventType.KinesisDataStreams)
of_models = BatchProcessor(event_type=EventType.KinesisDataStreams, model=ClickRecord)


def batch(event: dict[str, Any], context: LambdaContext) -> Any:
    return process_partial_response(event, each, processor, context)


def lenient(event: dict[str, Any], context: LambdaContext) -> Any:
    return process_partial_response(event, each, patient, context)


def asyncbatch(event: dict[str, Any], context: LambdaContext) -> Any:
    return async_process_partial_response(event, later, asynchronous, context)


def models(event: dict[str, Any], context: LambdaContext) -> Any:
    return process_partial_response(event, modelled, of_models, context)


def piped(event: dict[str, Any], context: LambdaContext) -> dict[str, Any]:
    """A row for each record that was processed, those behind a failed one included: they will come again."""
    response = process_partial_response(event, each, patient, context)
    done = [KinesisStreamRecord(record).kinesis for record in patient.success_messages]
    rows = [{"id": made.data_as_json()["id"], "_sequence_number": made.sequence_number} for made in done]
    return {**response, "rows": rows}


@idempotent_function(data_keyword_argument="click", config=config, persistence_store=kept)
def effect(click: dict[str, Any]) -> dict[str, Any]:
    with Path(os.environ["EFFECTS"]).open("a") as file:
        file.write(f"{click['id']}\n")
    return {"done": click["id"]}


def once(record: KinesisStreamRecord) -> dict[str, Any]:
    click = record.kinesis.data_as_json()
    if click.get("bad"):
        raise ValueError("a bad click")
    return effect(click={"id": click["id"]})


def idempotently(event: dict[str, Any], context: LambdaContext) -> Any:
    config.register_lambda_context(context)
    return process_partial_response(event, once, patient, context)


@idempotent(config=IdempotencyConfig(event_key_jmespath="Records[].eventID"), persistence_store=kept)
def whole(event: dict[str, Any], context: LambdaContext) -> dict[str, Any]:
    """The whole batch is one thing: the second delivery of it gives the first one's answer."""
    with Path(os.environ["EFFECTS"]).open("a") as file:
        file.write("whole\n")
    return {"rows": [{"seen": context.aws_request_id}]}


ACTS = {
    "data": data_classes,
    "parsed": parsed,
    "enveloped": enveloped,
    "logged": logged,
    "batch": batch,
    "lenient": lenient,
    "async": asyncbatch,
    "models": models,
    "idempotent": idempotently,
    "whole": whole,
    "k": piped,
}


def handler(event: dict[str, Any], context: LambdaContext) -> Any:
    records = event["Records"]
    return ACTS[act_of(records[0]["kinesis"]["partitionKey"]) if records else "data"](event, context)
