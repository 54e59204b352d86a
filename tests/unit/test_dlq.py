"""Failed records without a broker: companions, selections, and how records are shown."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from connectors.kafka.reading import Message
from connectors.kafka.replay import (
    IDENTITY_HEADERS,
    TRANSACTION_BYTES_MAX,
    TRANSACTION_RECORDS_MAX,
    Again,
    Seen,
    identity_of,
    transactions,
    without_identity,
)
from engine.cli.dlq import _lines
from engine.compose.dlq import Entry, Listing, Selection
from engine.compose.retry import companion, companions
from engine.config import PipelineConfig
from engine.errors import ConfigError
from engine.protocols import FailedRecord
from functions.failures import Failure, Identity

SHARD = ("p", "c", "t", "i", 0)


def configured(sink: dict[str, Any] | None = None, **source: Any) -> PipelineConfig:
    destination = {"on_failure": "kafka://failed", "replay": True}
    return PipelineConfig.model_validate(
        {
            "source": {"topic": "clicks", "destination_config": destination, **source},
            "function": {"kind": "rows", "handler": "a.b"},
            "sink": sink or {"type": "none"},
        }
    )


def test_a_companion_is_the_pipeline_on_its_own_topic() -> None:
    """The same function and settings, from the first record on, however old; and no companion of its own."""
    pipeline = configured(
        starting_position="LATEST",
        isolation_level="read_uncommitted",
        maximum_record_age_in_seconds=60,
        maximum_retry_attempts=7,
    )
    name, retry = companion("clicks", pipeline)
    assert name == retry.source.topic == "clicks.retry"
    assert retry.function == pipeline.function
    assert retry.source.starting_position == "TRIM_HORIZON"
    assert retry.source.isolation_level == "read_committed"
    assert retry.source.maximum_record_age_in_seconds == -1
    assert retry.source.maximum_retry_attempts == 7
    assert retry.source.destination_config.on_failure == "kafka://failed"
    assert not retry.source.destination_config.replay
    assert retry.consumer_group_id == "headrace-clicks.retry"


@pytest.mark.parametrize(
    ("sink", "key", "value"),
    [
        ({"type": "parquet", "path": "rows"}, "path", Path("rows/retry")),
        ({"type": "duckdb", "path": "a.duckdb", "table": "main.events"}, "table", "main.events_retry"),
        ({"type": "kafka", "topic": "output"}, "topic", "output"),
    ],
)
def test_a_companion_writes_beside_its_pipeline(sink: dict[str, Any], key: str, value: object) -> None:
    """A directory in the directory, a table beside the table, the same topic."""
    assert getattr(companion("clicks", configured(sink))[1].sink, key) == value


def test_only_pipelines_that_replay_have_companions() -> None:
    """And those that are not left out."""
    plain = configured(destination_config={"on_failure": "kafka://failed"})
    off = configured().model_copy(update={"enabled": False})
    assert list(companions({"a": configured(), "b": plain, "c": off})) == ["a.retry"]


@pytest.mark.parametrize(
    ("other", "named", "said"),
    [
        (configured(), "a.retry", "has the name of its companion"),
        (configured(topic="a.retry"), "b", "for the companion alone"),
        (configured({"type": "duckdb", "path": "x.duckdb", "table": "E_retry"}), "b", "writes to table e_retry"),
    ],
)
def test_what_is_a_companions_is_no_other_pipelines(other: PipelineConfig, named: str, said: str) -> None:
    """Name, topic and place are refused by name."""
    first = configured({"type": "duckdb", "path": "x.duckdb", "table": "e"})
    with pytest.raises(ConfigError, match=said):
        companions({"a": first, named: other.model_copy(update={"enabled": False})})


def failure(*, at: int = 1, reported_at: int | None = 1_700_000_000_000, **changes: Any) -> Failure:
    record = {
        "timestamp": 5,
        "key": b"k",
        "value": b"v",
        "headers": (),
        "reason": "KeyError: 'x'",
        "error_type": "KeyError",
        "attempts": 2,
        **changes,
    }
    identity = Identity("p", "c", "t", "i", 3, at)
    return Failure(identity, FailedRecord(partition=3, offset=at, **record), "RetryAttemptsExhausted", reported_at)


@pytest.mark.parametrize(
    ("selection", "takes"),
    [
        (Selection(), True),
        (Selection(error_type="KeyError", partition=3, offset=1, since_ms=1_700_000_000_000), True),
        (Selection(error_type="ValueError"), False),
        (Selection(partition=2), False),
        (Selection(partition=3, offset=2), False),
        (Selection(since_ms=1_700_000_000_001), False),
    ],
)
def test_a_selection_takes_what_fits_all_of_it(selection: Selection, takes: bool) -> None:
    """Every condition that is given."""
    assert selection.takes(failure()) is takes
    assert not Selection(since_ms=1).takes(failure(reported_at=None))


def test_what_came_with_records_does_not_reach_the_terminal_raw() -> None:
    """Control characters of reasons, types, headers and values are shown, not sent."""
    nasty = failure(
        reason="a\x1b[2Jb",
        error_type="E\x07",
        key=b"\xff\x00",
        value="x\u202ey".encode(),
        headers=(("h\x1b", b"\x1b[1m"), ("n", None)),
    )
    listing = Listing("p", "file:f", [Entry(nasty, waits=True)], waiting=1, copies=2, unreadable=1)
    listing.error_types["E\x07"] = 1
    text = "\n".join(_lines(listing, full=True))
    assert text.replace("\n", "").isprintable()
    for shown in ("t-3@1", "2 attempts", "in sink", "'a\\x1b[2Jb'", "n = null", "delivered: 1", "left out: 2"):
        assert shown in text


def again(offset: int = 1, *, value: bytes | None = b"v") -> Again:
    return Again(SHARD, offset, 5, b"k", value, ())


def test_a_transaction_is_bounded() -> None:
    """By records and by bytes; a record larger than the bound goes alone."""
    records = [again(at) for at in range(2 * TRANSACTION_RECORDS_MAX + 1)]
    runs = list(transactions(records))
    assert [record for run in runs for record in run] == records
    assert [len(run) for run in runs] == [TRANSACTION_RECORDS_MAX, TRANSACTION_RECORDS_MAX, 1]
    large = again(value=b"x" * (TRANSACTION_BYTES_MAX + 1))
    assert [len(run) for run in transactions([again(), large, again()])] == [1, 1, 1]
    assert list(transactions([])) == []


@pytest.mark.parametrize("own", [(), (("h", b"1"),), (("headrace.offset", b"9"), ("x", None))])
def test_a_replays_headers_are_the_last_ones(own: tuple[tuple[str, bytes | None], ...]) -> None:
    """Whatever headers a record has of its own, also such with these names, they come back."""
    added = tuple(zip(IDENTITY_HEADERS, (b"p", b"c", b"t", b"i", b"0", b"7"), strict=True))
    message = Message(0, 1, 5, None, None, own + added)
    assert identity_of(message) == (SHARD, 7)
    assert without_identity(message.headers) == own
    assert without_identity(own) == own
    assert identity_of(Message(0, 1, 5, None, None, own)) is None
    torn = (*added[:-1], ("headrace.offset", b"seven"))
    assert identity_of(Message(0, 1, 5, None, None, torn)) is None


@given(offsets=st.lists(st.integers(0, 20)))
def test_seen_is_a_set(offsets: list[int]) -> None:
    """In whatever order offsets come, each is new once."""
    seen, model = Seen(), set[int]()
    for offset in offsets:
        assert seen.add(SHARD, offset) == (offset not in model)
        model.add(offset)
    assert [(SHARD, at) in seen for at in range(22)] == [at in model for at in range(22)]
    assert ((*SHARD[:4], 1), 5) not in seen
    assert len(seen) == len(model)
