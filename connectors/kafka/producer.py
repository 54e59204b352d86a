"""Events of files into a topic, fast and in order: what ``headrace produce`` does on the wire.

A thread reads, picks partitions and fills record batches; one task for each partition sends them, one at a time,
each acknowledged by all replicas before the next. So a partition has the events in the order of the files,
whatever is retried, and at any moment it is known how many are safe.

Keyed events go where Kafka's own default partitioner sends them (murmur2 of the key); events without a key go
round the partitions in runs. Not here: reading files (`connectors.event_files`).
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from aiokafka import AIOKafkaProducer, errors
from aiokafka.producer.message_accumulator import BatchBuilder

from connectors.event_files import Events
from connectors.kafka import writing
from connectors.kafka.partitioning import Partitioner
from connectors.kafka.settings import KafkaSettings
from connectors.kafka.topics import TargetTopic
from engine.errors import BrokerUnavailable, ExternalError, HeadraceError, InternalError, UserError

BATCH_BYTES_MAX = 512 * 1024
BATCH_BYTES_MIN = 16 * 1024

#: Bytes of batches that are being filled, and of those that wait or are under way.
FILLING_BYTES_MAX = 32 * 1024 * 1024
QUEUED_BYTES_MAX = 16 * 1024 * 1024

#: Events without a key change the partition after so many.
RUN_EVENTS = 100

#: With a rate, events go out at least so often.
RATE_SECONDS = 0.05

#: How often it is looked whether the reader has ended.
LOOK_SECONDS = 0.05


@dataclass(slots=True)
class Produced:
    """What has been acknowledged; ``bytes`` are those of keys and values. ``error``: why it ended early."""

    partitions: dict[int, int]
    bytes: int = 0
    seconds: float = 0.0
    interrupted: bool = False
    error: HeadraceError | None = None

    @property
    def events(self) -> int:
        return sum(self.partitions.values())


@dataclass(slots=True)
class _Filling:
    """A record batch under construction. ``first`` says where its first event is from."""

    partition: int
    builder: BatchBuilder
    events: int = 0
    bytes: int = 0
    first: Callable[[], str] = field(default=lambda: "")


class Producer:
    """Sends events to one topic, once: `run` and be done.

    ``rate_events`` is events a second, or None for as fast as it goes. `stop` may be called at any time, from
    the loop's thread: what was accepted by then is flushed.
    """

    def __init__(self, settings: KafkaSettings, topic: TargetTopic, *, rate_events: float | None = None) -> None:
        self._settings = settings
        self._topic = topic
        self._count = topic.stream.partitions
        share = max(BATCH_BYTES_MIN, FILLING_BYTES_MAX // self._count)
        self._batch_bytes = min(BATCH_BYTES_MAX, share, topic.message_bytes_max)
        # More than one for each partition: a task holds one while the next is filled.
        self._slots = threading.Semaphore(max(2 * self._count, QUEUED_BYTES_MAX // self._batch_bytes))
        self._rate = None if rate_events is None else _Rate(rate_events)
        self._stopping = threading.Event()
        self._queues: list[asyncio.Queue[_Filling | None]] = [asyncio.Queue() for _ in range(self._count)]
        self._ended = asyncio.Event()
        self._quiet = False  # the reader waits for a pipe, with nothing in its hands
        self._reader_error: BaseException | None = None
        self.produced = Produced(dict.fromkeys(range(self._count), 0))

    def stop(self) -> None:
        """Read no more; `run` returns once everything accepted is acknowledged."""
        self.produced.interrupted = True
        self._stopping.set()

    async def run(self, events: Iterable[Events | None]) -> Produced:
        """Send them all. Never raises what goes wrong with files or broker: that is ``Produced.error``."""
        started = time.monotonic()
        try:
            producer = await writing.start(self._settings, batch_bytes=self._batch_bytes)
        except HeadraceError as error:
            self.produced.error = error
            return self.produced
        try:
            await self._run(producer, iter(events))
        finally:
            self._stopping.set()
            await writing.close(producer)  # whatever counts has been acknowledged
            self.produced.seconds = time.monotonic() - started
        self._settle()
        return self.produced

    async def _run(self, producer: AIOKafkaProducer, events: Iterator[Events | None]) -> None:
        loop = asyncio.get_running_loop()

        def hand_over(filling: _Filling) -> None:
            loop.call_soon_threadsafe(self._queues[filling.partition].put_nowait, filling)

        def read() -> None:
            filler = _Filler(self._count, producer.create_batch, self._slots, hand_over)
            try:
                self._fill(filler, events)
            except BaseException as error:
                self._reader_error = error
            finally:
                with contextlib.suppress(RuntimeError):  # the loop has not waited for a quiet pipe
                    filler.flush()
                    loop.call_soon_threadsafe(self._ended.set)

        # A daemon: one that waits for a terminal or a pipe must not keep the process.
        reader = threading.Thread(target=read, name="headrace-produce", daemon=True)
        reader.start()
        async with asyncio.TaskGroup() as tasks:
            for partition, queue in enumerate(self._queues):
                tasks.create_task(self._deliver(producer, partition, queue))
            await self._reader_done()
            for queue in self._queues:
                queue.put_nowait(None)

    async def _reader_done(self) -> None:
        while not self._ended.is_set():
            if self._stopping.is_set() and self._quiet:
                return  # it may wait for ever, and has handed over everything before that
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_SECONDS):
                    await self._ended.wait()

    def _fill(self, filler: _Filler, source: Iterator[Events | None]) -> None:
        """In the reader's thread: every event into a batch, at the rate."""
        for events in source:
            self._quiet = False
            if self._stopping.is_set():
                return
            if events is None:
                filler.flush()
                self._quiet = True
                continue
            total = len(events.values)
            if self._rate is None:
                filler.add(events, 0, total)
                continue
            at = 0
            while at < total:
                count, seconds = self._rate.take(total - at)
                filler.add(events, at, at + count)
                at += count
                if seconds:
                    filler.flush()
                    if self._stopping.wait(seconds):
                        return

    async def _deliver(
        self, producer: AIOKafkaProducer, partition: int, queue: asyncio.Queue[_Filling | None]
    ) -> None:
        """One partition's batches, in order. After the first error they are let go, to free the reader."""
        while (filling := await queue.get()) is not None:
            try:
                if self.produced.error is None:
                    await self._send(producer, filling)
            except HeadraceError as error:
                self.produced.error = self.produced.error or error
                self._stopping.set()
            finally:
                self._slots.release()

    async def _send(self, producer: AIOKafkaProducer, filling: _Filling) -> None:
        topic, seconds_max = self._topic.stream.topic, self._settings.broker_wait_seconds_max
        try:
            async with asyncio.timeout(seconds_max):
                await (await producer.send_batch(filling.builder, topic, partition=filling.partition))
        except TimeoutError:
            raise BrokerUnavailable(
                f"{self._settings.bootstrap} acknowledged nothing for {seconds_max:g} s",
                hint="events that were under way may still arrive",
            ) from None
        except errors.MessageSizeTooLargeError:
            raise UserError(
                f"{filling.first()}: the record has {filling.bytes:,} bytes, and topic {topic!r} takes "
                f"{self._topic.message_bytes_max:,} (compressed)",
                hint="raise the topic's max.message.bytes",
            ) from None
        except errors.KafkaError as error:
            what = f"{filling.events} events from {filling.first()} on were refused by topic {topic!r}"
            if isinstance(error, errors.InvalidTimestampError):
                raise UserError(f"{what}: their timestamps are too far from the broker's clock") from None
            raise ExternalError(f"{what}: {type(error).__name__}: {error}") from None
        self.produced.partitions[filling.partition] += filling.events
        self.produced.bytes += filling.bytes

    def _settle(self) -> None:
        if self.produced.error is not None or self._reader_error is None:
            return
        if isinstance(self._reader_error, HeadraceError):
            self.produced.error = self._reader_error
        elif isinstance(self._reader_error, OSError):
            self.produced.error = UserError(f"the files cannot be read on: {self._reader_error}")
        else:
            self.produced.error = InternalError(f"reading failed: {self._reader_error!r}")
            self.produced.error.__cause__ = self._reader_error


class _Filler:
    """Puts events into record batches, one open batch for each partition. In the reader's thread."""

    def __init__(
        self,
        partitions: int,
        create: Callable[[], BatchBuilder],
        slots: threading.Semaphore,
        hand_over: Callable[[_Filling], None],
    ) -> None:
        self._partitions = partitions
        self._create = create
        self._slots = slots
        self._hand_over = hand_over
        self._open: list[_Filling | None] = [None] * partitions
        self._partitioner = Partitioner(partitions)
        self._unkeyed = 0  # events without a key so far

    def add(self, events: Events, start: int, end: int) -> None:
        """The events of ``[start, end)``: first picked apart by partition, then put into batches many at a time.

        Each partition's events keep their order, whether they have keys or not.
        """
        keys = events.keys
        if keys is None:
            self._add_unkeyed(events, range(start, end))
            return
        picked: list[list[int]] = [[] for _ in range(self._partitions)]
        partition_of = self._partitioner.partition
        for index in range(start, end):
            key = keys[index]
            if key is None:
                picked[self._unkeyed // RUN_EVENTS % self._partitions].append(index)
                self._unkeyed += 1
            else:
                picked[partition_of(key)].append(index)
        for partition, indexes in enumerate(picked):
            if indexes:
                self._append(partition, events, indexes)

    def flush(self) -> None:
        for partition, filling in enumerate(self._open):
            if filling is not None:
                self._close(partition, filling)

    def _add_unkeyed(self, events: Events, indexes: range) -> None:
        """Events of which none has a key, a run at a time."""
        at = 0
        while at < len(indexes):
            run, used = divmod(self._unkeyed, RUN_EVENTS)
            part = indexes[at : at + RUN_EVENTS - used]
            self._append(run % self._partitions, events, part)
            self._unkeyed += len(part)
            at += len(part)

    def _append(self, partition: int, events: Events, indexes: Sequence[int]) -> None:
        values, keys, timestamps = events.values, events.keys, events.timestamps
        filling = self._open[partition] or self._start(partition, events, indexes[0])
        append = filling.builder.append
        for index in indexes:
            value = values[index]
            key = None if keys is None else keys[index]
            timestamp = None if timestamps is None else timestamps[index]
            if append(timestamp=timestamp, key=key, value=value) is None:
                self._close(partition, filling)
                filling = self._start(partition, events, index)
                append = filling.builder.append
                taken = append(timestamp=timestamp, key=key, value=value)
                assert taken is not None, "an empty batch takes any record"
            filling.events += 1
            filling.bytes += len(value) if key is None else len(value) + len(key)

    def _start(self, partition: int, events: Events, index: int) -> _Filling:
        filling = _Filling(partition, self._create(), first=lambda: events.where(index))
        self._open[partition] = filling
        return filling

    def _close(self, partition: int, filling: _Filling) -> None:
        self._open[partition] = None
        filling.builder.close()
        self._slots.acquire()
        self._hand_over(filling)


class _Rate:
    """A token bucket of `RATE_SECONDS`' worth of events, or of one event where that is less than one."""

    def __init__(self, events_per_second: float) -> None:
        assert events_per_second > 0
        self._per_second = events_per_second
        self._size = max(1.0, events_per_second * RATE_SECONDS)
        self._tokens = self._size
        self._at = time.monotonic()

    def take(self, wanted: int) -> tuple[int, float]:
        """How many may go now, and the seconds to wait before asking again."""
        now = time.monotonic()
        # Time that was slept too long is made up for, so that the mean holds.
        self._tokens = min(2 * self._size, self._tokens + (now - self._at) * self._per_second)
        self._at = now
        count = min(wanted, int(self._tokens))
        self._tokens -= count
        if count == wanted:
            return count, 0.0
        missing = min(float(wanted - count), self._size) - self._tokens
        return count, max(0.0, missing / self._per_second)
