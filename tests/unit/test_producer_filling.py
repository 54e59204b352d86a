"""How `headrace produce` fills record batches: with keys, without, or both, partitions keep the order."""

from __future__ import annotations

import threading

from aiokafka.producer.message_accumulator import BatchBuilder
from aiokafka.record.memory_records import MemoryRecords
from hypothesis import example, given
from hypothesis import strategies as st

from connectors.event_files import Events
from connectors.kafka.partitioning import Partitioner
from connectors.kafka.producer import RUN_EVENTS, _Filler, _Filling

CHUNKS = st.lists(
    st.one_of(
        st.lists(st.one_of(st.none(), st.sampled_from([b"a", b"b", b"c", b"d"])), max_size=60),
        st.integers(1, 2 * RUN_EVENTS),  # so many events of a chunk without keys at all
    ),
    max_size=6,
)


@given(chunks=CHUNKS, partitions=st.integers(1, 4), batch_bytes=st.sampled_from([1, 200, 100_000]))
@example(chunks=[[b"a", None] * 5], partitions=1, batch_bytes=100_000)
@example(chunks=[[None] * (3 * RUN_EVENTS)], partitions=2, batch_bytes=100_000)
def test_each_partition_has_its_events_in_the_order_of_the_file(
    chunks: list[list[bytes | None] | int], partitions: int, batch_bytes: int
) -> None:
    """Every event once, each partition's in order; keys go to their partition, the others round in runs."""
    found: dict[int, list[int]] = {partition: [] for partition in range(partitions)}

    def hand_over(filling: _Filling) -> None:
        records = MemoryRecords(bytes(filling.builder._build()))
        while (batch := records.next_batch()) is not None:
            found[filling.partition].extend(int(record.value) for record in batch)

    slots = threading.Semaphore(1_000_000)
    filler = _Filler(partitions, lambda: BatchBuilder(batch_bytes, 0), slots, hand_over)
    keys: list[bytes | None] = []
    for chunk in chunks:
        some = [None] * chunk if isinstance(chunk, int) else chunk
        numbers = range(len(keys), len(keys) + len(some))
        values = [b"%d" % number for number in numbers]
        events = Events("file", "line", numbers, values, None if isinstance(chunk, int) else some)
        half = len(some) // 2
        filler.add(events, 0, half)
        filler.add(events, half, len(some))
        keys.extend(some)
    filler.flush()

    assert sorted(number for numbers in found.values() for number in numbers) == list(range(len(keys)))
    for numbers in found.values():
        assert numbers == sorted(numbers)
    place = {number: partition for partition, numbers in found.items() for number in numbers}
    partition_of = Partitioner(partitions).partition
    assert all(place[number] == partition_of(key) for number, key in enumerate(keys) if key is not None)
    unkeyed = [place[number] for number, key in enumerate(keys) if key is None]
    assert unkeyed == [count // RUN_EVENTS % partitions for count in range(len(unkeyed))]
