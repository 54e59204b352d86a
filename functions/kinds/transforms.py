"""What a Firehose transformation function's answer means: a row, nothing, or a failure for each record.

Not here: the event (`firehose`), and where rows go. Every record's id has to come back exactly once, with `Ok`,
`Dropped` or `ProcessingFailed`; else that record has failed (Firehose developer guide, "Data transformation with
Lambda"). What headrace makes of the data of an `Ok` record is told in docs/firehose.md.
"""

from __future__ import annotations

import binascii
import json
import logging
from collections.abc import Mapping

from engine.batch import Batch
from engine.errors import HandlerError
from engine.output import TRACE_NAMES
from engine.protocols import Fault, Result
from functions.kinds import texts
from functions.kinds.kinesis import sequence_number
from functions.kinds.rows import shown

log = logging.getLogger("headrace.functions")

#: The column of data that is no JSON object.
DATA_COLUMN = "data"

#: Functions that have been told once.
_TOLD: set[str] = set()


def read_transformed(label: str, batch: Batch, response: object) -> Result:
    """Rows (each with ``_offset``), faults and the count of dropped records. ``response`` is parsed JSON.

    Raises HandlerError for an answer without a list of records: then the invocation has failed.
    """
    items = response.get("records") if isinstance(response, dict) else None
    if not isinstance(items, list):
        raise HandlerError(
            f"{label} gave {shown(response)}; it has to give an object with a list of records",
            hint='return {"records": [{"recordId": ..., "result": "Ok", "data": ...}, ...]}',
        )
    given = _by_record_id(items)
    rows: list[Mapping[str, object]] = []
    faults: list[Fault] = []
    dropped = 0
    for offset in batch.records.column("offset").to_pylist():
        answers = given.pop(sequence_number(offset), [])
        try:
            row = _row(answers)
        except ValueError as error:
            faults.append(Fault(offset, str(error)))
            continue
        if row is None:
            dropped += 1
        else:
            rows.append({**row, "_offset": offset})
    if given and label not in _TOLD:
        _TOLD.add(label)
        log.warning("%s answered with %s, the recordId of no record of its batch", label, shown(min(given)))
    return Result(rows=rows, faults=faults, dropped=dropped)


def _by_record_id(items: list[object]) -> dict[str, list[Mapping[str, object]]]:
    """The answers by recordId; what has none names no record, so that its record is missing."""
    given: dict[str, list[Mapping[str, object]]] = {}
    for item in items:
        if isinstance(item, dict) and isinstance(item.get("recordId"), str):
            given.setdefault(item["recordId"], []).append(item)
    return given


def _row(answers: list[Mapping[str, object]]) -> dict[str, object] | None:
    """A record's row, or None for one that is dropped. Raises ValueError with why it has failed."""
    if len(answers) != 1:
        times = f"has its recordId {len(answers)} times" if answers else "lacks its recordId"
        raise ValueError(f"the function's answer {times}; each has to come back exactly once")
    [answer] = answers
    match answer.get("result"):
        case "Ok":
            return {**columns_of(_decoded(answer.get("data"))), **_partition_keys(answer.get("metadata"))}
        case "Dropped":
            return None
        case "ProcessingFailed":
            raise ValueError("the function answered ProcessingFailed")
        case other:
            raise ValueError(f"the function answered {shown(other)}, which is not Ok, Dropped or ProcessingFailed")


def _decoded(data: object) -> bytes:
    if not isinstance(data, str):
        raise ValueError(f"the function answered Ok with {shown(data)} as data, which has to be text in base64")
    try:
        return binascii.a2b_base64(data.encode("ascii"), strict_mode=True) if data else b""
    except ValueError as error:  # binascii.Error and UnicodeEncodeError are ValueErrors
        raise ValueError(f"the function answered Ok with data that is not base64: {error}") from None


def columns_of(data: bytes) -> dict[str, object]:
    """The columns of transformed data: a JSON object's members, else the text as ``data``, without its line end.

    Raises ValueError for several JSON objects, for what begins as one and is not, and for what is no UTF-8.
    """
    try:
        text = data.decode()
    except UnicodeDecodeError:
        raise ValueError("the function answered Ok with data that is not UTF-8 text") from None
    if not text.lstrip().startswith("{"):
        return {DATA_COLUMN: text.removesuffix("\n").removesuffix("\r")}
    try:
        found = texts.loads(data)
    except ValueError as error:
        raise ValueError(_no_single_object(text.lstrip(), error)) from None
    assert isinstance(found, dict)
    return found


def _no_single_object(text: str, error: ValueError) -> str:
    """Why a text that begins as a JSON object cannot be parsed as one."""
    begins_with_one = f"the function answered Ok with data that begins as a JSON object, but is none: {error}"
    try:
        _, end = json.JSONDecoder().raw_decode(text)
    except (ValueError, RecursionError):
        return begins_with_one
    if text[end:].lstrip().startswith("{"):
        return "the function answered Ok with several JSON objects in one record; one record becomes one row"
    return begins_with_one


def _partition_keys(metadata: object) -> dict[str, str]:
    """The columns of dynamic partitioning, as text; they go before members of the same name."""
    keys = metadata.get("partitionKeys") if isinstance(metadata, dict) else metadata
    if keys is None:
        return {}
    if not isinstance(keys, dict):
        raise ValueError(f"the function answered with {shown(keys)} as metadata.partitionKeys, not with an object")
    return {name: _key_text(name, value) for name, value in keys.items()}


def _key_text(name: str, value: object) -> str:
    if not name or name in TRACE_NAMES:
        raise ValueError(f"the function answered with the partition key name {name!r}, which cannot be a column's")
    if isinstance(value, bool) or not isinstance(value, str | int | float) or value == "":
        raise ValueError(f"the function answered with {shown(value)} as partition key {name!r}, not with text")
    return value if isinstance(value, str) else str(value)
