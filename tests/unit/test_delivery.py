"""Bringing failed records to their destination: at least once, in order, without holding the shard up."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from connectors.memory import MemoryDestination, MemoryShardWriter, MemorySink, MemoryStore
from engine.batch import Stream
from engine.clock import SystemClock
from engine.delivery import RECORDS_MAX, RETRY_SECONDS, Delivery, document, from_document
from engine.errors import ExternalError
from engine.protocols import Counts, FailedRecord, Outcome
from tests.clock import ManualClock

STREAM = Stream("cluster-1", "clicks", "id-1", 4)


def failure(offset: int) -> FailedRecord:
    return FailedRecord(0, offset, 5, b"k", b"v", (), "no good", "ValueError", 3)


async def writer_with(count: int) -> MemoryShardWriter:
    """A shard of which so many records failed, committed."""
    sink = MemorySink(MemoryStore(), pipeline="p", clock=SystemClock())
    await sink.open(STREAM)
    writer = await sink.acquire(0)
    await writer.write(Outcome(0, count, None, Counts(failed=count), [failure(at) for at in range(count)]))
    await writer.commit()
    return writer


def delivered(destination: MemoryDestination) -> list[int]:
    return [record.offset for record in destination.records]


async def test_everything_pending_is_delivered_in_order() -> None:
    """In as many goes as it takes; then there is nothing pending."""
    destination = MemoryDestination()
    writer = await writer_with(RECORDS_MAX + 3)
    delivery = Delivery("p", writer, destination, ManualClock())
    assert delivery.pending
    await delivery.run()
    assert delivered(destination) == list(range(RECORDS_MAX + 3))
    assert not delivery.pending
    assert (await writer.failures(10))[1] == []


async def test_nothing_is_asked_while_nothing_is_pending() -> None:
    """A shard without failures costs the sink no question."""
    writer = await writer_with(0)
    destination = MemoryDestination()
    delivery = Delivery("p", writer, destination, ManualClock())
    await delivery.run()
    await writer.write(Outcome(0, 1, None, Counts(failed=1), [failure(0)]))
    await writer.commit()
    await delivery.run()
    assert destination.records == []
    delivery.ask()
    await delivery.run()
    assert delivered(destination) == [0]


async def test_without_a_destination_they_wait_in_the_sink(caplog: pytest.LogCaptureFixture) -> None:
    """The log says so once; nothing is marked, so that a later run with a destination delivers them."""
    writer = await writer_with(2)
    delivery = Delivery("p", writer, None, ManualClock())
    await delivery.run()
    await delivery.run()
    assert caplog.text.count("2 failed records wait in the sink") == 1
    assert not delivery.pending
    destination = MemoryDestination()
    await Delivery("p", writer, destination, ManualClock()).run()
    assert delivered(destination) == [0, 1]


async def test_a_refusal_is_tried_again_after_a_pause() -> None:
    """Not before: a destination that is down is not asked with every batch."""
    clock, destination = ManualClock(), MemoryDestination()
    delivery = Delivery("p", await writer_with(1), destination, clock)
    destination.refusing = True
    for _ in range(3):
        await delivery.run()
    assert destination.refusals == 1
    assert delivery.pending
    await clock.advance(RETRY_SECONDS)
    await delivery.run()
    assert destination.refusals == 2
    destination.refusing = False
    await clock.advance(RETRY_SECONDS)
    await delivery.run()
    assert delivered(destination) == [0]


async def test_a_bound_on_refusals_ends_in_an_error_that_is_final() -> None:
    """After so long the destination's word is raised, as something that is not to be tried again."""
    clock, destination = ManualClock(), MemoryDestination()
    delivery = Delivery("p", await writer_with(1), destination, clock, refused_seconds_max=5.0)
    destination.refusing = True
    await delivery.run()
    await clock.advance(4.0)
    await delivery.run()
    await clock.advance(4.0)
    with pytest.raises(ExternalError, match="refuses 1 records") as caught:
        await delivery.run()
    assert not caught.value.retry


async def test_a_delivery_in_between_begins_the_bound_anew() -> None:
    """The bound is on refusals in a row."""
    clock, destination = ManualClock(), MemoryDestination()
    writer = await writer_with(1)
    delivery = Delivery("p", writer, destination, clock, refused_seconds_max=5.0)
    destination.refusing = True
    await delivery.run()
    destination.refusing = False
    await clock.advance(4.0)
    await delivery.run()
    await writer.write(Outcome(1, 2, None, Counts(failed=1), [failure(1)]))
    await writer.commit()
    delivery.ask()
    destination.refusing = True
    await clock.advance(4.0)
    await delivery.run()
    assert destination.refusals == 2


BYTES = st.none() | st.binary(max_size=20)


@given(
    partition=st.integers(0, 2**31 - 1),
    offset=st.integers(0, 2**63 - 1),
    timestamp=st.integers(-1, 2**60),
    key=BYTES,
    value=BYTES,
    headers=st.lists(st.tuples(st.text(max_size=5), BYTES), max_size=3),
    reason=st.text(max_size=20),
    attempts=st.integers(0, 10),
)
def test_a_document_is_the_record(
    partition: int,
    offset: int,
    timestamp: int,
    key: bytes | None,
    value: bytes | None,
    headers: list[tuple[str, bytes | None]],
    reason: str,
    attempts: int,
) -> None:
    """What is delivered can be read back whole, beside the identity by which a second copy is known."""
    record = FailedRecord(partition, offset, timestamp, key, value, tuple(headers), reason, "E", attempts)
    given_document = document("p", STREAM, record)
    assert from_document(given_document) == record
    identity = [given_document[name] for name in ("pipeline", "cluster_id", "topic_id", "partition", "offset")]
    assert identity == ["p", "cluster-1", "id-1", partition, offset]
