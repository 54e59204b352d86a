"""What the records of a state topic mean, in whatever order and however often compaction has gone over them."""

from __future__ import annotations

import base64
import dataclasses

import orjson
import pyarrow as pa
import pytest

from connectors.kafka.sink import state_topic_of
from connectors.kafka.sink.state import AdoptedState, Binding, ShardState, _Record, check_binding
from engine.batch import Stream
from engine.delivery import document
from engine.errors import InternalError, RecreatedTopic, SinkMismatch
from tests.conformance.sink_suite import failed_record

STREAM = Stream("cluster", "clicks", "t1", 4)


def record(offset: int, key: list[object], value: object) -> _Record:
    return _Record.of(offset, key, None if value is None else orjson.dumps(value))


def position(offset: int, start: int, end: int, topic_id: str = "t1") -> _Record:
    return record(offset, ["position", topic_id, 0], {"start": start, "position": end})


def failure(offset: int, at: int, *, delivered: bool = False) -> _Record:
    entry = None if delivered else document("p", STREAM, failed_record(at))
    return record(offset, ["failure", "t1", 0, at], entry)


def state_record(offset: int, state: bytes | None, topic_id: str = "t1") -> _Record:
    return _Record.of(offset, ["state", topic_id, 0], state)


def binding(offset: int, **other: object) -> _Record:
    entry = Binding.of("p", STREAM, "out")
    fields = {name: getattr(entry, name) for name in Binding.__dataclass_fields__} | other
    return record(offset, ["binding", str(offset)], fields)


def test_the_last_position_counts_and_gaps_of_compaction_do_not() -> None:
    """Positions of each topic id are apart; commits between two that are left were compacted away."""
    state = ShardState()
    for each in (position(0, 0, 5), position(4, 20, 30), position(5, 0, 2, "t2")):
        state.fold(each)
    assert state.positions == {"t1": 30, "t2": 2}


@pytest.mark.parametrize("again", [(29, 40), (0, 5), (35, 34)])
def test_a_commit_that_overlaps_is_a_broken_invariant(again: tuple[int, int]) -> None:
    """A position that goes back, or a range that was committed already, is never taken."""
    state = ShardState()
    state.fold(position(0, 0, 30))
    with pytest.raises(InternalError, match="after one that ends at 30"):
        state.fold(position(1, *again))


def test_failures_are_pending_until_their_tombstone() -> None:
    """A tombstone takes its failure away, also one whose failure was compacted, and its memory."""
    state = ShardState()
    for each in (failure(0, 3), failure(1, 4), failure(2, 3, delivered=True), failure(3, 9, delivered=True)):
        state.fold(each)
    assert list(state.failures["t1"]) == [4]
    assert state.failures["t1"][4].record == failed_record(4)
    state.fold(failure(4, 4, delivered=True))
    assert state.held_bytes == 0


def test_a_failure_of_an_earlier_version_has_no_request() -> None:
    """Its document lacks the member."""
    state = ShardState()
    entry = document("p", STREAM, failed_record(3))
    assert entry.pop("request_id") == "request-3"
    state.fold(record(0, ["failure", "t1", 0, 3], entry))
    kept = state.failures["t1"][3].record
    assert kept == dataclasses.replace(failed_record(3), request_id=None)


def test_the_last_state_counts_and_none_is_without_a_value() -> None:
    """Of each topic id; its bytes are taken as they are, JSON or not."""
    state = ShardState()
    for each in (state_record(0, b"1"), state_record(1, b"\xff{"), state_record(2, b"x", "t2"), position(3, 0, 5)):
        state.fold(each)
    assert (state.states, state.positions) == ({"t1": b"\xff{", "t2": b"x"}, {"t1": 5})
    state.fold(state_record(4, None))
    assert state.states == {"t1": b"", "t2": b"x"}


def test_the_first_schema_in_the_log_counts() -> None:
    """Two members that adopt at once write two records; compaction removes neither, for each has its own key."""
    state = AdoptedState()
    schemas = [pa.schema([("a", pa.int64())]), pa.schema([("b", pa.string())])]
    for offset, schema in enumerate(schemas):
        text = base64.b64encode(schema.serialize().to_pybytes()).decode()
        state.fold(record(offset, ["schema", "rows", str(offset)], {"schema": text}))
    assert state.schemas == {"rows": schemas[0]}


def test_the_first_binding_is_the_owner() -> None:
    """A later candidate of somebody else changes nothing, and is refused with what differs."""
    state = AdoptedState()
    state.fold(binding(0))
    state.fold(binding(1, pipeline="other", topic_id="t9"))
    assert state.topic_ids == ["t1"]
    with pytest.raises(SinkMismatch, match="pipeline 'other'"):
        check_binding(state, Binding.of("other", STREAM, "out"), "s", restart=True)
    with pytest.raises(SinkMismatch, match="output topic 'elsewhere'"):
        check_binding(state, Binding.of("p", STREAM, "elsewhere"), "s", restart=True)


def test_a_sink_without_rows_is_not_one_with_rows() -> None:
    """A pipeline that stops or begins to write rows is told that its state belongs to the other form."""
    state = AdoptedState()
    state.fold(binding(0, output=""))
    assert check_binding(state, Binding.of("p", STREAM, ""), "s", restart=False) == state.bindings[0]
    with pytest.raises(SinkMismatch, match=r"no output topic; this is .* output topic 'out'"):
        check_binding(state, Binding.of("p", STREAM, "out"), "s", restart=False)


def test_a_topic_made_anew_is_bound_once() -> None:
    """With leave a new topic id becomes the last; an earlier one never comes back, and its count stays."""
    state = AdoptedState()
    state.fold(binding(0))
    anew = Binding.of("p", Stream("cluster", "clicks", "t2", 6), "out")
    with pytest.raises(RecreatedTopic):
        check_binding(state, anew, "s", restart=False)
    assert check_binding(state, anew, "s", restart=True) is None
    state.fold(binding(1, topic_id="t2", partitions=6))
    state.fold(binding(2, topic_id="t2", partitions=9))
    known = check_binding(state, anew, "s", restart=True)
    assert known is not None
    assert known.partitions == 6
    with pytest.raises(RecreatedTopic):
        check_binding(state, Binding.of("p", STREAM, "out"), "s", restart=True)


def test_a_later_version_is_refused() -> None:
    """Records that this version cannot understand stop it before it writes."""
    state = AdoptedState()
    state.fold(binding(0))
    state.fold(binding(1, version=2))
    with pytest.raises(SinkMismatch, match="later version"):
        check_binding(state, Binding.of("p", STREAM, "out"), "s", restart=False)


def test_records_of_kinds_that_are_not_known_are_passed_over() -> None:
    """An older headrace reads on where a newer one of the same version has added something."""
    shard, adopted = ShardState(), AdoptedState()
    for state in (shard, adopted):
        state.fold(record(0, ["new", 1], {"x": 1}))
    assert (shard.positions, adopted.bindings) == ({}, [])
    assert state_topic_of("clicks") == "headrace-clicks-state"
