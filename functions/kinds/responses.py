"""What a Lambda handler's answer means: for the batch, for the sink, and for a tumbling window.

Not here: the answers of Firehose transformation functions (`transforms`), and what follows from a failure (the
engine). Answers are read as Lambda's event source mappings do (developer guide, "Reporting batch item failures" and
"Tumbling windows"; the success and failure forms are those recorded on AWS). Beyond AWS, an object's "rows" are
rows for the sink.

Which identifiers name a record:

- kinesis, dynamodb: its sequence number, as it is in the event;
- kafka: ``{"partition": "<topic>-<partition>", "offset": 100}``, or the text "<topic>-<partition>-100".
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence

from engine.batch import Batch
from engine.errors import HandlerError
from engine.protocols import Result, Window
from functions.environments.contract import EventKind
from functions.kinds import changes, texts
from functions.kinds.kinesis import offset_of
from functions.kinds.rows import check_rows, shown
from functions.kinds.transforms import read_transformed

log = logging.getLogger("headrace.functions")

#: Functions that have been told once.
_TOLD: set[str] = set()

Rows = Sequence[Mapping[str, object]]


class ItemFailures(HandlerError):
    """The whole batch failed because of what the answer says in batchItemFailures."""

    @property
    def error_type(self) -> str:
        return "BatchItemFailures"


def read_response(
    label: str,
    kind: EventKind,
    batch: Batch,
    response: object,
    *,
    reports_item_failures: bool,
    takes_rows: bool = True,
    window: Window | None = None,
) -> Result:
    """The result that an answer stands for. ``response`` is parsed JSON, ``label`` names the function.

    ``reports_item_failures``: the function is configured to report failed records. Then the lowest one that it
    names is the result's ``failed_from``, and rows of it and of what follows are left out. Raises ItemFailures
    where the answer fails the whole batch, and HandlerError for rows or a state that cannot be used. Without
    ``takes_rows`` a member "rows" is one that nobody asks for.
    """
    if kind == "firehose":
        result = read_transformed(label, batch, response)
        return result if takes_rows else Result(faults=result.faults, dropped=result.dropped)
    members = response if isinstance(response, dict) else {}
    state = None if window is None else _state(label, response)
    failed_from: int | None = None
    if reports_item_failures:
        failed_from = _lowest_failure(label, kind, batch, response)
    elif members.get("batchItemFailures") and label not in _TOLD:
        _TOLD.add(label)
        log.warning(
            "%s returned batchItemFailures, which is ignored: the whole batch counts as handled; "
            'function_response_types = ["ReportBatchItemFailures"] makes it count',
            label,
        )
    if not takes_rows:
        return Result(failed_from=failed_from, state=state)
    rows = _rows(label, kind, batch, members.get("rows"))
    if rows is not None and failed_from is not None:
        rows = _rows_before(label, rows, failed_from)
    return Result(rows=rows, failed_from=failed_from, state=state)


def _state(label: str, response: object) -> bytes:
    """The new state as JSON text. Without one the invocation has failed, as on AWS."""
    state = response.get("state") if isinstance(response, dict) else None
    if not isinstance(state, dict):
        given = shown(response) if not isinstance(response, dict) else f"{shown(state)} as state"
        raise HandlerError(
            f"{label} gave {given}; in a tumbling window it has to give an object with an object state",
            hint='return {"state": state}, in the final invocation too',
        )
    try:
        return texts.dumps(state)
    except (TypeError, ValueError, RecursionError) as error:
        raise HandlerError(f"{label} gave a state that JSON cannot carry: {error}") from error


def _lowest_failure(label: str, kind: EventKind, batch: Batch, response: object) -> int | None:
    """The lowest offset that the answer reports; None for complete success. Raises ItemFailures."""
    if response is None or response in ("", []):
        return None
    if not isinstance(response, dict):
        raise ItemFailures(
            f"{label} gave {shown(response)}; it has to give an object with batchItemFailures, or null"
        )
    items = response.get("batchItemFailures")
    if items is None:
        return None
    if not isinstance(items, list):
        raise ItemFailures(f"{label} gave {shown(items)} as batchItemFailures; it has to be a list")
    if not items:
        return None
    find = _finder(kind, batch)
    found = []
    for item in items:
        if not isinstance(item, dict) or "itemIdentifier" not in item:
            raise ItemFailures(f"{label} gave {shown(item)} in batchItemFailures; it has no itemIdentifier")
        offset = find(item["itemIdentifier"])
        if offset is None:
            raise ItemFailures(
                f"{label} reported {shown(item['itemIdentifier'])}, which names no record of its batch",
                hint=_IDENTIFIERS[kind],
            )
        found.append(offset)
    return min(found)


_IDENTIFIERS: dict[EventKind, str] = {
    "kinesis": "itemIdentifier is the record's kinesis.sequenceNumber",
    "dynamodb": "itemIdentifier is the record's dynamodb.SequenceNumber",
    "kafka": 'itemIdentifier is {"partition": "<topic>-<partition>", "offset": <number>}',
}


def _finder(kind: EventKind, batch: Batch) -> Callable[[object], int | None]:
    """What finds the offset of a record of ``batch`` by its identifier."""
    if kind == "dynamodb":
        by_number = changes.sequence_numbers(batch)
        return lambda identifier: by_number.get(identifier) if isinstance(identifier, str) else None
    given = set(batch.records.column("offset").to_pylist())
    read = _kafka_offset if kind == "kafka" else _kinesis_offset
    name = f"{batch.topic}-{batch.partition}"

    def find(identifier: object) -> int | None:
        offset = read(identifier, name)
        return offset if offset in given else None

    return find


def _kinesis_offset(identifier: object, name: str) -> int | None:
    del name
    try:
        return offset_of(identifier) if isinstance(identifier, str) else None
    except ValueError:
        return None


def _kafka_offset(identifier: object, name: str) -> int | None:
    if isinstance(identifier, dict):
        offset = identifier.get("offset")
        fits = identifier.get("partition") == name and isinstance(offset, int) and not isinstance(offset, bool)
        return offset if fits else None
    if isinstance(identifier, str) and identifier.startswith(f"{name}-"):
        digits = identifier.removeprefix(f"{name}-")
        return int(digits) if digits.isascii() and digits.isdigit() and len(digits) < 20 else None
    return None


def _rows(label: str, kind: EventKind, batch: Batch, given: object) -> Rows | None:
    """The rows of an answer; ``_sequence_number`` in them has become ``_offset``."""
    if given is None:
        return None
    if not isinstance(given, list):
        raise HandlerError(
            f'{label} gave {shown(given)} under "rows"', hint='"rows" has to be a list of objects, or be left out'
        )
    rows = check_rows(f'{label}, "rows"', given)
    if not any("_sequence_number" in row for row in rows):
        return rows
    find = _finder(kind if kind == "dynamodb" else "kinesis", batch)
    return [_by_offset(label, index, row, find) for index, row in enumerate(rows)]


def _by_offset(
    label: str, index: int, row: Mapping[str, object], find: Callable[[object], int | None]
) -> Mapping[str, object]:
    if "_sequence_number" not in row:
        return row
    where = f'{label}, "rows": row {index}'
    offset = find(row["_sequence_number"])
    if offset is None:
        given = shown(row["_sequence_number"])
        raise HandlerError(f"{where} has the _sequence_number {given}, which is of no record of its batch")
    if row.get("_offset", offset) != offset:
        raise HandlerError(f"{where} has the _offset {shown(row['_offset'])} and the _sequence_number of {offset}")
    return {**{name: value for name, value in row.items() if name != "_sequence_number"}, "_offset": offset}


def _rows_before(label: str, rows: Rows, failed_from: int) -> Rows:
    """Rows of records that are handled. Those of the others come again with them."""
    kept = []
    for index, row in enumerate(rows):
        offset = row.get("_offset")
        if not isinstance(offset, int) or isinstance(offset, bool):
            raise HandlerError(
                f'{label}, "rows": row {index} does not name its record, while batchItemFailures names some',
                hint="beside batchItemFailures each row has its record's _sequence_number, or its _offset",
            )
        if offset < failed_from:
            kept.append(row)
    return kept
