"""AWS's DynamoDB event, built from records whose values are DynamoDB stream records.

Not here: calling the handler (`events`), what it answers (`responses`), and the sizes of what is built
(`payload`). Needs the standard library alone: `build_event` runs in the function's own process.

A value is a JSON object as a DynamoDB stream has it, or at least a change: ``eventName`` (INSERT, MODIFY or
REMOVE) and ``dynamodb`` with ``Keys``. What it says is passed on as it is; members that are missing
are filled in (Lambda developer guide, "Using AWS Lambda with Amazon DynamoDB"; key order as recorded):

- ``dynamodb.SequenceNumber`` is the offset, as in a Kinesis event; ``eventID`` is shard and sequence number;
- ``dynamodb.ApproximateCreationDateTime`` is the record's timestamp in whole seconds, ``dynamodb.SizeBytes`` the
  bytes of the value;
- ``dynamodb.StreamViewType`` follows from the images that are there;
- ``eventVersion`` is "1.1", as recorded on AWS.

`change` finds out whether a value can stand in an event; what it refuses must not reach `build_event`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from functions.kinds.kinesis import ACCOUNT, Headers, sequence_number, shard_id

EVENT_NAMES = ("INSERT", "MODIFY", "REMOVE")

#: A document's attributes nest 32 levels deep (DynamoDB's limit), each two levels of JSON; and what is around it.
DEPTH_MAX = 100

#: A longer number is looked at twice: Python reads none of more than 4,300 digits. DynamoDB's own have 38.
DIGITS_MAX = 1000


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")


#: Made once: a decoder costs as much as reading a record.
_DECODER = json.JSONDecoder(parse_constant=_no_constant)


@dataclass(frozen=True, slots=True)
class DynamoStream:
    """What all records of one table's stream share. ``given_arn`` replaces the stream's ARN."""

    topic: str
    region: str
    given_arn: str | None = None

    @property
    def arn(self) -> str:
        made = f"arn:aws:dynamodb:{self.region}:{ACCOUNT}:table/{self.topic}/stream/1970-01-01T00:00:00.000"
        return self.given_arn or made


def envelope(stream: DynamoStream) -> dict[str, object]:
    """What `build_event` has to know beside the records; JSON can carry it."""
    return {"eventSourceARN": stream.arn, "awsRegion": stream.region}


def build_event(
    envelope: Mapping[str, object],
    partition: int,
    offsets: Iterable[int],
    timestamps: Iterable[int],
    keys: Iterable[bytes | None],
    values: Iterable[bytes | None],
    headers: Iterable[Headers | None],
) -> dict[str, object]:
    """The event of records of one partition; ``timestamps`` are milliseconds. Values are what `change` takes."""
    del keys, headers  # as on AWS, the event has them in the values
    shard = shard_id(partition)
    return {
        "Records": [
            stream_record(envelope, shard, offset, timestamp, value)
            for offset, timestamp, value in zip(offsets, timestamps, values, strict=True)
        ]
    }


def stream_record(
    envelope: Mapping[str, object], shard: str, offset: int, timestamp: int, value: bytes | None
) -> dict[str, object]:
    """One record of an event. Raises ValueError for a value that is no change."""
    given = change(value)
    assert value is not None
    image = given["dynamodb"]
    sequence = image.get("SequenceNumber", "") or sequence_number(offset)
    whole = "NewImage" in image or "OldImage" in image
    inner = {
        "ApproximateCreationDateTime": timestamp // 1000,
        **image,
        "SequenceNumber": sequence,
    }
    inner.setdefault("SizeBytes", len(value))
    inner.setdefault("StreamViewType", "NEW_AND_OLD_IMAGES" if whole else "KEYS_ONLY")
    outer = {
        "eventID": f"{shard}:{sequence}",
        "eventName": None,
        "eventVersion": "1.1",
        "eventSource": "aws:dynamodb",
        "awsRegion": envelope["awsRegion"],
        "dynamodb": None,
        "eventSourceARN": envelope["eventSourceARN"],
        **given,
    }
    outer["dynamodb"] = inner
    return outer


def change(value: bytes | None) -> dict[str, dict[str, object]]:
    """The JSON object of a value. Raises ValueError with a sentence for one that no event can hold."""
    if value is None:
        raise ValueError("it has no value; kind dynamodb takes DynamoDB stream records as JSON")
    try:
        given = _DECODER.decode(value.decode())
    except UnicodeDecodeError:
        raise ValueError("the value is not UTF-8; kind dynamodb takes DynamoDB stream records as JSON") from None
    except RecursionError:
        raise ValueError(f"the value nests deeper than {DEPTH_MAX} levels") from None
    except ValueError as error:
        raise ValueError(f"the value is not JSON: {error}") from None
    check_change(given)
    return given  # type: ignore[no-any-return]  # check_change has looked


def check_change(given: object) -> None:
    """Raises ValueError unless a parsed value is a stream record or a change."""
    if not isinstance(given, dict):
        raise ValueError(f"the value is a JSON {_kind(given)}, not a DynamoDB stream record")
    if given.get("eventName") not in EVENT_NAMES:
        raise ValueError(f"eventName is {_short(given.get('eventName'))}, not INSERT, MODIFY or REMOVE")
    image = given.get("dynamodb")
    if not isinstance(image, dict) or not isinstance(image.get("Keys"), dict):
        raise ValueError("the value has no object dynamodb with an object Keys")
    for name in ("NewImage", "OldImage"):
        if not isinstance(image.get(name, {}), dict):
            raise ValueError(f"dynamodb.{name} is {_short(image[name])}, not an object")
    if not isinstance(image.get("SequenceNumber", ""), str):
        raise ValueError(f"dynamodb.SequenceNumber is {_short(image['SequenceNumber'])}, not text")


def check_carried(given: object) -> None:
    """Raises ValueError for what JSON may say but not every process can take: depth, numbers, half characters."""
    if depth_of(given) > DEPTH_MAX:
        raise ValueError(f"the value nests deeper than {DEPTH_MAX} levels")
    try:
        json.dumps(given, allow_nan=False, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise ValueError("the value holds half of a surrogate pair, which is no text") from None
    except ValueError:
        raise ValueError("the value holds a number beyond all floats") from None


def depth_of(given: object) -> int:
    """How many objects and arrays lie inside each other, at most."""
    depth, level = 0, [given]
    while level := [
        inner
        for each in level
        if isinstance(each, dict | list)
        for inner in (each.values() if isinstance(each, dict) else each)
    ]:
        depth += 1
    return depth


def _kind(given: object) -> str:
    names = {list: "array", str: "string", bool: "boolean", type(None): "null"}
    return names.get(type(given), "number")


def _short(given: object) -> str:
    text = json.dumps(given)
    return text if len(text) <= 60 else text[:57] + "..."
