"""`FilterCriteria`: the filters of one mapping, and which records of a batch they keep.

A record is kept if one filter matches it. A pattern's keys are those of the source's record: the payload under
``data`` (kinesis, firehose) or ``value`` (kafka, rows, arrow, sql), for dynamodb the whole payload; and what is
known of the record beside it (`engine.filters.metadata`). What happens when payload and pattern are not of one
kind differs between sources (AWS: "Filtering event data", tables of Kinesis, DynamoDB and Kafka):

- Kinesis, DynamoDB, Firehose: a payload that is no JSON fails every pattern that asks something of it; a pattern of
  plain strings for it is refused.
- Kafka: rules for JSON are asked of JSON and rules for plain strings of plain strings; rules that do not fit the
  payload are passed over, and so are all where it is no UTF-8. Keys are treated like values.

JSON is an object or an array here; a payload that is a JSON string or number counts as plain. Not here:
configuration, and what becomes of records that are not kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from engine.batch import Batch
from engine.errors import UserError
from engine.filters import metadata
from engine.filters.evaluate import branch_matches, leaves
from engine.filters.json_text import container
from engine.filters.metadata import Columns, Constant, Origin
from engine.filters.pattern import Branch, InvalidPattern, Pattern, too_many
from engine.filters.payload import Document, Payload, payload_of

if TYPE_CHECKING:
    from engine.filters.columnar import Columnar

Kind = Literal["kinesis", "firehose", "dynamodb", "kafka", "rows", "arrow", "sql"]

#: AWS raises its default quota of 5 to as many.
FILTERS_MAX = 10

_KAFKA_LIKE = ("kafka", "rows", "arrow", "sql")

#: The verdicts of the compiled scanner (`engine.filters.codes`, which need not be loaded to be named).
_NO, _YES, _ASK = 0, 1, 2


@dataclass(frozen=True)
class _Asked:
    """A branch, taken apart by where the answers come from."""

    payload: Payload
    key: Payload
    rest: Mapping[str, Branch]  #: by the first name of the path


class FilterCriteria:
    """Filters that were checked and compiled once. Any number of threads may use one."""

    def __init__(self, patterns: Sequence[Pattern], kind: Kind, origin: Origin) -> None:
        self.patterns = tuple(patterns)
        self.kind = kind
        self._origin = origin
        self._lenient = kind in _KAFKA_LIKE
        self._branches = [self._apart(pattern, branch) for pattern in patterns for branch in pattern.branches]
        self._groups: list[tuple[str, Branch] | Payload] = []  # what is asked apart from payloads, each once
        self._members = [self._group(asked) for asked in self._branches]

    @classmethod
    def of(
        cls,
        patterns: Sequence[str],
        *,
        kind: str,
        event_source_arn: str | None = None,
        region: str | None = None,
    ) -> FilterCriteria:
        """Check and compile patterns (JSON texts). Raises `InvalidPattern`, with AWS's words.

        ``event_source_arn`` and ``region`` are the function's, as far as they are set.
        """
        if kind not in get_args(Kind):
            raise UserError(f"kind {kind!r} has no filters; kinds are {', '.join(get_args(Kind))}")
        if len(patterns) > FILTERS_MAX:
            too_many(len(patterns), FILTERS_MAX)
        return cls([Pattern.of(text) for text in patterns], kind, Origin(event_source_arn, region))  # type: ignore[arg-type]

    def select(self, batch: Batch) -> NDArray[np.bool_]:
        """For each record of the batch whether it is kept."""
        rows = len(batch)
        if not self.patterns or not rows:
            return np.ones(rows, np.bool_)
        groups = np.ones((max(1, len(self._groups)), rows), np.uint8)
        for number, group in enumerate(self._groups):
            groups[number] = self._holds(group, batch)
        verdicts = np.zeros(rows, np.uint8)
        asking = False
        for asked, members in zip(self._branches, self._members, strict=True):
            if asked.payload.empty:
                verdicts |= groups[members].all(axis=0).astype(np.uint8)
            else:
                asking = True
        if asking and self._columnar.judge(batch.records.column("value"), groups, verdicts):
            for row in np.flatnonzero(verdicts == _ASK).tolist():
                verdicts[row] = self._record(batch, row, groups)
        kept: NDArray[np.bool_] = verdicts == _YES
        return kept

    def select_by_reference(self, batch: Batch) -> NDArray[np.bool_]:
        """As `select`, record by record: what that has to agree with."""
        groups = np.ones((max(1, len(self._groups)), len(batch)), np.uint8)
        for number, group in enumerate(self._groups):
            groups[number] = self._holds(group, batch)
        kept = [not self.patterns or self._record(batch, row, groups) for row in range(len(batch))]
        return np.array(kept, np.bool_)

    def warm(self) -> None:
        """Load the compiled scanner, or compile it: seconds, the first time on a machine."""
        if any(not asked.payload.empty for asked in self._branches):
            import pyarrow as pa

            verdicts = np.zeros(1, np.uint8)
            groups = np.ones((max(1, len(self._groups)), 1), np.uint8)
            self._columnar.judge(pa.array([b"{}"], pa.binary()), groups, verdicts)

    @cached_property
    def _columnar(self) -> Columnar:
        # Machine code is loaded only where filters are in use.
        from engine.filters.columnar import Columnar, Conditions

        ask = metadata.DYNAMODB_FILLED if self.kind == "dynamodb" else frozenset[str]()
        conditions = [
            Conditions(asked.payload.json, asked.payload.plain, members, ask)
            for asked, members in zip(self._branches, self._members, strict=True)
            if not asked.payload.empty
        ]
        return Columnar(conditions, lenient=self._lenient)

    def _record(self, batch: Batch, row: int, groups: NDArray[np.uint8]) -> bool:
        """Whether one record is kept, by the reference."""
        payload: bytes | None = batch.records.column("value")[row].as_py()
        document: Document | None = None
        if not self._lenient:
            document = container(payload)
            if self.kind == "dynamodb":
                document = self._stream_record(document, batch, row, payload)
        for asked, members in zip(self._branches, self._members, strict=True):
            if not groups[members, row].all():
                continue
            if asked.payload.empty:
                return True
            if self._lenient:
                if asked.payload.matches_leniently(payload):
                    return True
            elif asked.payload.matches_strictly(document):
                return True
        return False

    def _stream_record(
        self, document: Document | None, batch: Batch, row: int, payload: bytes | None
    ) -> Document | None:
        """What the function's event will hold of a DynamoDB stream record; None for what is no object."""
        if payload is None or not isinstance(document, Mapping):
            return None
        offset, timestamp = (batch.records.column(name)[row].as_py() for name in ("offset", "timestamp"))
        return metadata.dynamodb_record(document, batch, offset, timestamp, payload, self._origin)

    def _apart(self, pattern: Pattern, branch: Branch) -> _Asked:
        if self.kind == "dynamodb":
            if "dynamodb" in branch:
                raise InvalidPattern("A rule on dynamodb has to be an object.", pattern.text)
            return _Asked(Payload(branch, None), Payload({}, None), {})
        name = "value" if self._lenient else "data"
        if not self._lenient and name in branch:
            raise InvalidPattern(
                f"A rule on {name} has to be an object: payloads of {self.kind} are JSON.", pattern.text
            )
        rest: dict[str, Branch] = {}
        for path, rules in branch.items():
            first = path.partition(".")[0]
            if first != name and not (self._lenient and first == "key"):
                rest.setdefault(first, {})[path] = rules
        key = payload_of(branch, "key") if self._lenient else Payload({}, None)
        return _Asked(payload_of(branch, name), key, rest)

    def _group(self, asked: _Asked) -> list[int]:
        """The numbers of the groups that a branch needs; the same question has one number."""
        needed: list[tuple[str, Branch] | Payload] = list(asked.rest.items())
        if not asked.key.empty:
            needed.append(asked.key)
        members = []
        for group in needed:
            if group not in self._groups:
                self._groups.append(group)
            members.append(self._groups.index(group))
        return members

    def _holds(self, group: tuple[str, Branch] | Payload, batch: Batch) -> Any:
        """Whether a group holds for each record, or for all."""
        if isinstance(group, Payload):
            return _each(metadata.keys(batch), group.matches_leniently)
        name, branch = group
        columns: Columns = {"kinesis": metadata.KINESIS, "firehose": metadata.FIREHOSE}.get(
            self.kind, metadata.KAFKA
        )
        if name not in columns:
            return branch_matches(branch, {})
        column = columns[name](batch, self._origin)
        if isinstance(column, Constant):
            return branch_matches(branch, leaves({name: column.value}, branch))
        return _each(column, lambda value: branch_matches(branch, leaves({name: value}, branch)))


def _each(column: Sequence[Any], holds: Any) -> NDArray[np.uint8]:
    """An answer for each value; values that come again are asked about once."""
    answers: dict[Any, bool] = {}
    found = np.zeros(len(column), np.uint8)
    for row, value in enumerate(column):
        if isinstance(value, dict | list):
            found[row] = holds(value)
            continue
        answer = answers.get(value)
        if answer is None:
            answer = answers[value] = holds(value)
        found[row] = answer
    return found
