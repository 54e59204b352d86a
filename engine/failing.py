"""What becomes of records that fail: the policy, the cause of each, and the record as it is reported.

Not here: trying again (`engine.attempts`) and bringing reports to a destination (`engine.delivery`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from engine.batch import Batch
from engine.errors import FunctionError, HandlerError, HeadraceError
from engine.protocols import FailedRecord, Outcome

#: A failed record carries at most this much of what the handler said.
REASON_CHARACTERS_MAX = 2_000

#: `FailedRecord.error_type` of what AWS has a condition for.
AGE_EXCEEDED = "RecordAgeExceeded"
PAYLOAD_EXCEEDED = "MaximumPayloadSizeExceeded"
ITEM_FAILURES = "BatchItemFailures"


@dataclass(frozen=True, slots=True)
class Policy:
    """What to do with what fails.

    ``retries_max`` does not count the first attempt; -1 retries for ever (as on AWS). ``reports``: there is
    an on-failure destination. ``drops``: without one, let failed records go, as AWS does, instead of stopping.
    ``record_bytes_max`` bounds a record's value, ``payload_bytes_max`` what it adds to an invocation's payload.
    ``age_seconds_max``: older records are not handled (again); -1: however old. ``bisects``: a batch that fails
    is halved instead of being tried again as it is, down to one record.
    """

    retries_max: int
    backoff_seconds: float
    backoff_seconds_max: float
    record_bytes_max: int
    payload_bytes_max: int
    reports: bool
    drops: bool
    age_seconds_max: int = -1
    bisects: bool = False

    @property
    def stops(self) -> bool:
        """A record that fails for good stops its shard."""
        return not self.reports and not self.drops


@dataclass(frozen=True, slots=True)
class Cause:
    """Why a record failed; ``attempts`` counts the invocations that it was part of."""

    reason: str
    error_type: str = "RecordFault"
    attempts: int = 0
    request_id: str | None = None


def causes_of(outcome: Outcome) -> dict[int, Cause]:
    """The causes in an outcome, by offset."""
    return {old.offset: Cause(old.reason, old.error_type, old.attempts, old.request_id) for old in outcome.failures}


def failed_records(batch: Batch, causes: Mapping[int, Cause]) -> list[FailedRecord]:
    """The faulty records of a batch, whole, in the order of their offsets."""
    rows = batch.records.filter(pc.is_in(batch.records.column("offset"), pa.array(list(causes), pa.int64())))
    assert rows.num_rows == len(causes), "a fault names an offset that is not in the batch"
    return [
        FailedRecord(
            partition=batch.partition,
            offset=row["offset"],
            timestamp=row["timestamp"],
            key=row["key"],
            value=row["value"],
            headers=tuple((header["key"], header["value"]) for header in row["headers"] or ()),
            reason=_text((cause := causes[row["offset"]]).reason[:REASON_CHARACTERS_MAX]),
            error_type=_text(cause.error_type),
            attempts=cause.attempts,
            request_id=cause.request_id,
        )
        for row in rows.to_pylist()
    ]


def _text(said: str) -> str:
    """What a handler said, as any sink can keep it: half a surrogate pair, which is no text, is written out."""
    return said.encode("utf-8", "backslashreplace").decode()


def describe(error: BaseException) -> str:
    """An error in one line: its class, unless it is one of ours, and its text."""
    if isinstance(error, FunctionError):
        return f"{error.error_type}: {(error.message.strip().splitlines() or [''])[0]}"
    if isinstance(error, HeadraceError):
        return error.message
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__


def error_type(error: BaseException) -> str:
    """What AWS calls the fault, or the class of the error."""
    return error.error_type if isinstance(error, HandlerError) else type(error).__name__
