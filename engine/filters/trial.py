"""`Trial`: patterns tried on single events as they stand in files: plain, or as records of a Lambda event.

Not here: batches of a source (`engine.filters.criteria`), and reading files (`engine.cli.filter`).
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Any

from engine.filters.evaluate import branch_matches, leaves, matches
from engine.filters.json_text import container
from engine.filters.metadata import as_number
from engine.filters.pattern import Branch, InvalidPattern, Pattern
from engine.filters.payload import payload_of

Record = Mapping[str, Any]


class Trial:
    """Tells whether an event matches one of the patterns."""

    def __init__(self, patterns: Sequence[Pattern]) -> None:
        self._patterns = patterns

    def matches(self, event: Record) -> bool:
        """Whether the event, or one of the records of a Lambda event, matches.

        Values are those of `engine.filters.json_text.parse`. Raises ValueError for a record whose data are not
        in base64, and `InvalidPattern` for a pattern that its source would refuse.
        """
        return any(map(self._record, _records(event)))

    def _record(self, record: Record) -> bool:
        if _is_kinesis(record):
            inner = record["kinesis"]
            around = {name: each for name, each in record.items() if name != "kinesis"}
            return self._strictly({**around, **inner}, inner["data"])
        if _is_kafka(record):
            return self._leniently(record)
        if _is_firehose(record):
            return self._strictly(record, record["data"])
        inner = record.get("dynamodb")
        if isinstance(inner, Mapping) and "ApproximateCreationDateTime" in inner:
            created = as_number(inner["ApproximateCreationDateTime"])
            record = {**record, "dynamodb": {**inner, "ApproximateCreationDateTime": created}}
        return any(matches(pattern, record) for pattern in self._patterns)

    def _strictly(self, record: Record, data: str) -> bool:
        """A record of Kinesis or Firehose, with its data under ``data``."""
        document = container(_decoded(data, "data"))
        for pattern in self._patterns:
            for branch in pattern.branches:
                if "data" in branch:
                    raise InvalidPattern("A rule on data has to be an object for such records.", pattern.text)
                payload = payload_of(branch, "data")
                if _rest_matches(branch, record, "data") and payload.matches_strictly(document):
                    return True
        return False

    def _leniently(self, record: Record) -> bool:
        payloads = {name: _decoded(record.get(name), name) for name in ("value", "key")}
        for branch in chain.from_iterable(pattern.branches for pattern in self._patterns):
            if _rest_matches(branch, record, *payloads) and all(
                payload_of(branch, name).matches_leniently(payload) for name, payload in payloads.items()
            ):
                return True
        return False


def _rest_matches(branch: Branch, record: Record, *payloads: str) -> bool:
    """Whether what a branch asks of a record apart from its payloads holds."""
    rest = {path: rules for path, rules in branch.items() if path.partition(".")[0] not in payloads}
    return branch_matches(rest, leaves(record, rest))


def _records(event: Record) -> Iterable[Record]:
    """The records of a Lambda event; the event itself where it is none."""
    found = event.get("Records", event.get("records"))
    if isinstance(found, Mapping) and found and all(isinstance(each, list) for each in found.values()):
        found = list(chain.from_iterable(found.values()))
        known = _is_kafka
    else:
        known = _is_record
    if isinstance(found, list) and found and all(isinstance(each, Mapping) and known(each) for each in found):
        return found
    return [event]


def _is_kinesis(record: Record) -> bool:
    inner = record.get("kinesis")
    return isinstance(inner, Mapping) and isinstance(inner.get("data"), str)


def _is_kafka(record: Record) -> bool:
    return all(name in record for name in ("topic", "partition", "offset")) and isinstance(
        record.get("value"), str | None
    )


def _is_firehose(record: Record) -> bool:
    return isinstance(record.get("recordId"), str) and isinstance(record.get("data"), str)


def _is_record(record: Record) -> bool:
    return "eventSource" in record or _is_kinesis(record) or _is_firehose(record) or _is_kafka(record)


def _decoded(text: str | None, name: str) -> bytes | None:
    if text is None:
        return None
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError, TypeError):
        raise ValueError(f"its {name} is not base64") from None
