"""The documents of failed records: what an on-failure destination is given, and the way back.

Each document has the shape that AWS gives its own (Lambda developer guide, "Retaining records of failed
invocations"; Firehose developer guide, "Handle failure in data transformation") and one member more, ``headrace``:
the record's identity, its cause, and those of its bytes that the rest does not carry as they were. So any
document can be sent again, and a second copy of it is known by the identity.

===========================  ======================================================  =========================
kind                         shape                                                   ``payload``
===========================  ======================================================  =========================
kinesis                      of the S3 destination, ``KinesisBatchInfo``             the event, as a JSON string
dynamodb                     of the S3 destination, ``DDBStreamBatchInfo``           the event, as a JSON string
firehose                     of Firehose's error output                              none: ``rawData``
kafka and all others, file   of the S3 destination, ``KafkaBatchInfo.recordsInfo``   the event, as a JSON string
the same, Kafka topic        of the topic destination, ``KafkaBatchInfo.recordInfo`` the event, as an object
===========================  ======================================================  =========================

Not here: where documents go (`connectors.file_destination`, `connectors.kafka.destination`), and the form in which
sinks keep failed records until they are delivered (`engine.delivery`).
"""

from __future__ import annotations

import base64
import binascii
import datetime as dt
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from engine import delivery
from engine.batch import Stream
from engine.protocols import FailedRecord
from functions.kinds import dynamodb, kafka, kinesis

#: Error types that AWS knows as conditions of their own.
RECORD_AGE_EXCEEDED = "RecordAgeExceeded"
PAYLOAD_SIZE_EXCEEDED = "MaximumPayloadSizeExceeded"

#: The condition of all others, by destination: AWS's documentation has another word for Kafka topics.
EXHAUSTED = "RetryAttemptsExhausted"
EXHAUSTED_TO_TOPIC = "RetriesExhausted"

#: The condition of records that never reached the function; AWS's word where a registry's schema does not fit.
UNREADABLE = "DESERIALIZATION_ERROR"

#: Error types of records that a function gave back without raising anything.
NOT_RAISED = frozenset({"BatchItemFailures", "RecordFault", "RowRefused", "ProcessingFailed"})

#: Firehose's words for what went wrong; whatever is not here was raised by the function.
FIREHOSE_CODES = {
    "ProcessingFailed": "Lambda.ProcessingFailedStatus",
    "Sandbox.Timedout": "Lambda.FunctionTimedOut",
    "RecordFault": "Lambda.ProcessingFailedStatus",
}
FIREHOSE_RAISED = "Lambda.FunctionError"

#: Identity, cause and bytes of a record under ``headrace``; raised when a reader of this one would be misled.
VERSION = 1


@dataclass(frozen=True, slots=True, order=True)
class Identity:
    """What makes a failed record the same one, however often it was delivered."""

    pipeline: str
    cluster_id: str
    topic: str
    topic_id: str
    partition: int
    offset: int

    def __str__(self) -> str:
        return f"{self.topic}-{self.partition}@{self.offset}"


@dataclass(frozen=True, slots=True)
class Failure:
    """A document, read: ``reported_at`` is milliseconds since the epoch, None where the document does not say."""

    identity: Identity
    record: FailedRecord
    condition: str | None
    reported_at: int | None


@dataclass(frozen=True, slots=True)
class Documents:
    """Makes the documents of one pipeline for one destination; call it with a record and its stream.

    ``role``, ``source`` (of Kafka events) and ``stream_arn`` (of others; None: of the topic's name) are those
    of the pipeline's events. ``to_topic``: the destination is a Kafka topic. ``now`` gives seconds since the epoch.
    """

    pipeline: str
    kind: str
    function_arn: str
    source: kafka.KafkaSource = field(default_factory=kafka.KafkaSource)
    stream_arn: str | None = None
    role: str = "headrace"
    to_topic: bool = False
    now: Callable[[], float] = time.time

    def __call__(self, record: FailedRecord, stream: Stream) -> dict[str, object]:
        """The document, ready for JSON."""
        match self.kind:
            case "kinesis":
                return self._of_kinesis(record, stream)
            case "dynamodb":
                return self._of_dynamodb(record, stream)
            case "firehose":
                return self._of_firehose(record, stream)
            case _:
                return self._of_kafka(record, stream)

    def _of_kinesis(self, record: FailedRecord, stream: Stream) -> dict[str, object]:
        origin = kinesis.KinesisStream(stream.topic, kinesis.region(), self.role, self.stream_arn)
        event = kinesis.build_event(kinesis.envelope(origin), *_columns(record))
        own: dict[str, object] = {}
        if record.value is None:
            own["value"] = None
        if not _is_text(record.key):
            own["key"] = _text(record.key)
        if record.headers:
            own["headers"] = _headers(record)
        payload = orjson.dumps(event).decode()
        return {
            **self._contexts(record, EXHAUSTED),
            "KinesisBatchInfo": _batch_info(record, origin.arn),
            "payload": payload,
            "headrace": self._own(record, stream, own),
        }

    def _of_dynamodb(self, record: FailedRecord, stream: Stream) -> dict[str, object]:
        origin = dynamodb.DynamoStream(stream.topic, kinesis.region(), self.stream_arn)
        try:
            event = dynamodb.build_event(dynamodb.envelope(origin), *_columns(record))
            # Not orjson: numbers may be of any length.
            payload = json.dumps(event, allow_nan=False, separators=(",", ":"))
        except (ValueError, RecursionError):
            payload = '{"Records":[]}'  # no event can hold it, which is why it failed
        # The event says what the value says, but not in the same bytes.
        own: dict[str, object] = {"key": _text(record.key), "value": _text(record.value)}
        if record.headers:
            own["headers"] = _headers(record)
        return {
            **self._contexts(record, EXHAUSTED),
            "DDBStreamBatchInfo": _batch_info(record, origin.arn),
            "payload": payload,
            "headrace": self._own(record, stream, own),
        }

    def _of_kafka(self, record: FailedRecord, stream: Stream) -> dict[str, object]:
        envelope = kafka.envelope(self.source, stream.topic, log_append_time=False)
        event = kafka.build_event(envelope, *_columns(record))
        payload = orjson.dumps(event)
        offset, time_text = str(record.offset), _iso(record.timestamp)
        info: dict[str, object] = {
            "batchSize": 1,
            "eventSourceArn": self.source.arn,
            "bootstrapServers": self.source.bootstrap_servers,
            "payloadSize": len(payload),
        }
        if self.to_topic:
            info["recordInfo"] = {"offset": offset, "timestamp": time_text}
        else:
            info["recordsInfo"] = {
                f"{stream.topic}-{record.partition}": {
                    "firstRecordOffset": offset,
                    "lastRecordOffset": offset,
                    "firstRecordTimestamp": time_text,
                    "lastRecordTimestamp": time_text,
                }
            }
        # In the event a header without a value looks like one with an empty value.
        nulls = [index for index, (_, value) in enumerate(record.headers) if value is None]
        return {
            **self._contexts(record, EXHAUSTED_TO_TOPIC if self.to_topic else EXHAUSTED),
            "KafkaBatchInfo": info,
            "payload": event if self.to_topic else payload.decode(),
            "headrace": self._own(record, stream, {"null_headers": nulls} if nulls else {}),
        }

    def _of_firehose(self, record: FailedRecord, stream: Stream) -> dict[str, object]:
        code = record.error_type
        if not code.startswith("Lambda."):
            code = FIREHOSE_CODES.get(code, FIREHOSE_RAISED if record.attempts else code)
        own: dict[str, object] = {"key": _text(record.key), "request_id": record.request_id}
        if record.value is None:
            own["value"] = None
        if record.headers:
            own["headers"] = _headers(record)
        return {
            "attemptsMade": record.attempts,
            "arrivalTimestamp": record.timestamp,
            "errorCode": code,
            "errorMessage": record.reason,
            "attemptEndingTimestamp": int(self.now() * 1000),
            "rawData": _text(record.value) or "",
            "lambdaArn": self.function_arn,
            "headrace": self._own(record, stream, own),
        }

    def _contexts(self, record: FailedRecord, exhausted: str) -> dict[str, object]:
        """What all of Lambda's own documents begin with, as recorded on AWS."""
        condition = condition_of(record, exhausted)
        found: dict[str, object] = {
            "requestContext": {
                "requestId": record.request_id,
                "functionArn": self.function_arn,
                "condition": condition,
                "approximateInvokeCount": record.attempts,
            }
        }
        if condition in (PAYLOAD_SIZE_EXCEEDED, UNREADABLE):
            found["responseContext"] = None
        elif condition != RECORD_AGE_EXCEEDED:
            found["responseContext"] = {
                "statusCode": 200,
                "executedVersion": "$LATEST",
                "functionError": None if record.error_type in NOT_RAISED else "Unhandled",
            }
        return {**found, "version": "1.0", "timestamp": _iso(int(self.now() * 1000))}

    def _own(self, record: FailedRecord, stream: Stream, rest: Mapping[str, object]) -> dict[str, object]:
        return {
            "version": VERSION,
            "pipeline": self.pipeline,
            "cluster_id": stream.cluster_id,
            "topic": stream.topic,
            "topic_id": stream.topic_id,
            "partition": record.partition,
            "offset": record.offset,
            "timestamp": record.timestamp,
            "error_type": record.error_type,
            "reason": record.reason,
            "attempts": record.attempts,
            **rest,
        }


def condition_of(record: FailedRecord, exhausted: str = EXHAUSTED) -> str:
    """AWS's condition for what befell a record."""
    if record.error_type in (RECORD_AGE_EXCEEDED, PAYLOAD_SIZE_EXCEEDED):
        return record.error_type
    return exhausted if record.attempts else UNREADABLE


def from_document(entry: object) -> Failure:
    """The failed record that any of these documents, or one of before them, holds. Raises ValueError."""
    try:
        if not isinstance(entry, dict):
            raise ValueError("it is no object")
        if "headrace" in entry:
            return _read(entry, entry["headrace"])
        return _read_plain(entry)
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise ValueError(f"it is not the document of a failed record: {type(error).__name__}: {error}") from None


def _read(entry: Mapping[str, Any], own: Mapping[str, Any]) -> Failure:
    if int(own["version"]) > VERSION:
        raise ValueError("it was written by a later version of headrace")
    key, value, headers = _carried(entry)
    context = entry.get("requestContext")
    if "key" in own:
        key = _bytes(own["key"])
    if "value" in own:
        value = _bytes(own["value"])
    if "headers" in own:
        headers = tuple((str(name), _bytes(data)) for name, data in own["headers"])
    nulls = set(own.get("null_headers", ()))
    record = FailedRecord(
        partition=int(own["partition"]),
        offset=int(own["offset"]),
        timestamp=int(own["timestamp"]),
        key=key,
        value=value,
        headers=tuple((name, None if at in nulls else data) for at, (name, data) in enumerate(headers)),
        reason=str(own["reason"]),
        error_type=str(own["error_type"]),
        attempts=int(own["attempts"]),
        request_id=own["request_id"] if context is None else context["requestId"],
    )
    if context is None:
        return Failure(_identity(own), record, str(entry["errorCode"]), int(entry["attemptEndingTimestamp"]))
    return Failure(_identity(own), record, str(context["condition"]), _milliseconds(entry["timestamp"]))


def _read_plain(entry: Mapping[str, Any]) -> Failure:
    """The form of before AWS's, in which sinks still keep failed records."""
    return Failure(_identity(entry), delivery.from_document(entry), None, None)


def _identity(own: Mapping[str, Any]) -> Identity:
    return Identity(
        str(own["pipeline"]),
        str(own["cluster_id"]),
        str(own["topic"]),
        str(own["topic_id"]),
        int(own["partition"]),
        int(own["offset"]),
    )


def _carried(entry: Mapping[str, Any]) -> tuple[bytes | None, bytes | None, tuple[tuple[str, bytes | None], ...]]:
    """Key, value and headers as far as the shape of AWS carries them."""
    if "rawData" in entry:
        return None, _bytes(entry["rawData"]), ()
    payload = entry["payload"]
    event = orjson.loads(payload) if isinstance(payload, str) else payload
    if "KinesisBatchInfo" in entry:
        [record] = event["Records"]
        return record["kinesis"]["partitionKey"].encode(), _bytes(record["kinesis"]["data"]), ()
    if "DDBStreamBatchInfo" in entry:
        return None, None, ()
    [[record]] = event["records"].values()
    headers = tuple(
        (name, bytes(each & 0xFF for each in value))
        for header in record["headers"]
        for name, value in header.items()
    )
    return _bytes(record["key"]), _bytes(record["value"]), headers


def _columns(
    record: FailedRecord,
) -> tuple[int, list[int], list[int], list[bytes | None], list[bytes | None], list[kinesis.Headers | None]]:
    """One record as the builders of events take many."""
    headers: kinesis.Headers = [{"key": name, "value": value} for name, value in record.headers]
    return record.partition, [record.offset], [record.timestamp], [record.key], [record.value], [headers]


def _batch_info(record: FailedRecord, arn: str) -> dict[str, object]:
    sequence, arrival = kinesis.sequence_number(record.offset), _iso(record.timestamp)
    return {
        "shardId": kinesis.shard_id(record.partition),
        "startSequenceNumber": sequence,
        "endSequenceNumber": sequence,
        "approximateArrivalOfFirstRecord": arrival,
        "approximateArrivalOfLastRecord": arrival,
        "batchSize": 1,
        "streamArn": arn,
    }


def _headers(record: FailedRecord) -> list[tuple[str, str | None]]:
    return [(name, _text(value)) for name, value in record.headers]


def _text(data: bytes | None) -> str | None:
    return None if data is None else binascii.b2a_base64(data, newline=False).decode("ascii")


def _bytes(text: str | None) -> bytes | None:
    return None if text is None else base64.b64decode(text, validate=True)


def _is_text(key: bytes | None) -> bool:
    """Whether a Kinesis event's partition key gives this key back."""
    if key is None:
        return False
    try:
        key.decode()
    except UnicodeDecodeError:
        return False
    return True


_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)


def _iso(milliseconds: int) -> str | None:
    """ISO 8601 in UTC with milliseconds, as AWS has it; None beyond the calendar."""
    try:
        moment = _EPOCH + dt.timedelta(milliseconds=milliseconds)
    except OverflowError:
        return None
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{moment.microsecond // 1000:03d}Z"


def _milliseconds(text: str | None) -> int | None:
    if text is None:
        return None
    return (dt.datetime.fromisoformat(text) - _EPOCH) // dt.timedelta(milliseconds=1)
