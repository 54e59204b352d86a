"""The frames between engine and environment: every batch arrives as it was, and nothing else is believed."""

from __future__ import annotations

import json
import random
import socket
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.batch import Batch, from_rows
from functions.environments import wire
from functions.environments.contract import Request

texts = st.binary(max_size=40) | st.none()
pairs = st.lists(st.tuples(st.text(st.characters(exclude_categories=["Cs"]), max_size=8), texts), max_size=3)
records = st.lists(
    st.tuples(st.integers(-(2**62), 2**62), texts, texts, pairs | st.just([])),
    max_size=40,
)


def sent(batch: Batch, **members: object) -> tuple[dict[str, object], bytes]:
    """What arrives at the other end of a real socket pair."""
    request = Request("id", 7, "kinesis", batch, members.get("envelope", {}), members.get("extra", {}))  # type: ignore[arg-type]
    frame = wire.request_frame(request)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        sender = threading.Thread(target=lambda: ours.sendall(b"".join(frame)))
        sender.start()
        received = wire.receive(theirs)
        sender.join()
        ours.close()
        assert wire.receive(theirs) is None
    assert received is not None
    return received


def batch_of(rows: list[tuple[int, bytes | None, bytes | None, list[tuple[str, bytes | None]]]]) -> Batch:
    numbered = [(3 * i, *row) for i, row in enumerate(rows)]
    return from_rows("clicks", 4, numbered, start=0, end=3 * len(rows))


@given(records, st.integers(0, 12), st.integers(0, 12))
def test_a_batch_arrives_as_it_was(rows: list, skipped: int, cut: int) -> None:  # type: ignore[type-arg]
    """Whole or sliced, with null keys and values, with and without headers."""
    batch = batch_of(rows).tail(skipped)
    batch = batch.head(max(0, len(batch) - cut))
    header, body = sent(batch)
    offsets, timestamps, keys, values, headers = wire.columns(header, body)
    names = ("offset", "timestamp", "key", "value")
    expected = [batch.records.column(name).to_pylist() for name in names]
    assert [list(offsets), list(timestamps), list(keys), list(values)] == expected
    assert [each or [] for each in headers] == batch.records.column("headers").to_pylist()
    assert (header["partition"], header["count"], header["deadline"]) == (4, len(batch), 7)


def test_slices_of_slices_with_nulls_arrive() -> None:
    """Each start and end of a batch whose nulls lie at every bit of a byte."""
    rows = [(i, None if i % 3 else b"k", b"v" * (i % 5) or None, [("h", None)] * (i % 2)) for i in range(40)]
    whole = batch_of(rows)
    for start in range(0, 40, 3):
        for count in range(1, 41 - start, 5):
            part = whole.tail(start).head(count)
            _, _, keys, values, headers = wire.columns(*sent(part))
            assert list(keys) == [row[1] for row in rows[start : start + count]]
            assert list(values) == [row[2] for row in rows[start : start + count]]
            assert [len(each or []) for each in headers] == [len(row[3]) for row in rows[start : start + count]]


def test_members_of_the_event_arrive() -> None:
    """Envelope and further members, with whole numbers of any size."""
    given_members = {"state": {"sum": 2**70, "text": "é\ud800", "list": [None, 1.5]}}
    header, _ = sent(batch_of([]), envelope={"a": "b"}, extra=given_members)
    assert (header["envelope"], header["extra"]) == ({"a": "b"}, given_members)


def test_a_request_that_is_too_large_is_refused() -> None:
    """Before anything of it is sent."""
    rows = [(0, None, b"x" * (wire.REQUEST_BODY_BYTES_MAX // 4), []) for _ in range(5)]
    with pytest.raises(ValueError, match="more than an environment takes"):
        wire.request_frame(Request("id", 0, "kinesis", batch_of(rows), {}))


@given(st.integers(0, 2**32 - 1), st.data())
def test_a_damaged_request_is_refused_or_read(seed: int, data: st.DataObject) -> None:
    """A body that was cut, or shapes that were changed, give no memory that is not the body's."""
    rows = [(i, b"key", None if i == 2 else b"value", [("h", b"x")]) for i in range(8)]
    header, body = sent(batch_of(rows))
    shapes = json.loads(json.dumps(header["columns"]))
    shape = data.draw(st.sampled_from(shapes))
    shape[data.draw(st.integers(0, 3))] += data.draw(st.integers(1, 2**33))
    for damaged, content in (({**header, "columns": shapes}, body), (header, body[: seed % len(body)])):
        try:
            columns = wire.columns(damaged, content)
        except (wire.ProtocolError, ValueError, IndexError):
            continue
        assert all(len(each) == 8 for each in columns)


@given(st.binary(max_size=300), st.integers(1, 50))
def test_replies_are_put_together(payload: bytes, step: int) -> None:
    """Whatever portions they come in."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        wire.send(ours, {"id": "x"}, payload)
        data = theirs.recv(4096)
    replies = wire.Replies(300)
    found = [replies.take(data[i : i + step]) for i in range(0, len(data), step)]
    assert found[:-1] == [None] * (len(found) - 1)
    assert found[-1] == ({"id": "x"}, payload)


@pytest.mark.parametrize(
    "data",
    [
        wire.PREFIX.pack(wire.REPLY_HEADER_BYTES_MAX + 1, 0),
        wire.PREFIX.pack(2, 101),
        wire.PREFIX.pack(2, 0) + b"{}{}",
        wire.PREFIX.pack(2, 0) + b"{x",
        wire.PREFIX.pack(2, 0) + b"[]",
        wire.PREFIX.pack(2, 0) + b"\xff\xfe",
    ],
)
def test_a_reply_that_is_none_is_refused(data: bytes) -> None:
    """Too large, more than one, no JSON, no object."""
    with pytest.raises(wire.ProtocolError):
        wire.Replies(100).take(data)


@given(st.binary(max_size=200))
def test_bytes_are_a_reply_or_refused(data: bytes) -> None:
    """Nothing but `ProtocolError` comes of bytes that a handler wrote to the socket."""
    replies = wire.Replies(100)
    numbers = random.Random(len(data))
    try:
        while data:
            count = numbers.randint(1, len(data))
            replies.take(data[:count])
            data = data[count:]
    except wire.ProtocolError:
        pass


@pytest.mark.parametrize("text", ['["when", "x"]', '["date", "x"]', '["bytes", "?"]', '["timedelta", "x"]'])
def test_an_unknown_tag_is_refused(text: str) -> None:
    """A value that `child` would not have written is an error."""
    with pytest.raises(ValueError, match=r"."):
        wire.revived(f'{{"rows": [{{{wire.TAG_TEXT}: {text}}}]}}'.encode())
