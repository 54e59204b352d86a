"""What ``headrace produce`` does: files into a topic, by the connectors. The command line formats the answer."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from connectors.event_files import EventFile, Events, Format, open_files
from connectors.kafka.producer import Produced, Producer
from connectors.kafka.topics import target_topic
from engine.clock import SystemClock
from engine.compose.kafka import kafka_settings
from engine.config import KafkaConfig
from engine.errors import UserError

__all__ = ["PARTITIONS_DEFAULT", "Format", "Plan", "Produced", "produce"]

PARTITIONS_DEFAULT = 4
PARTITIONS_MAX = 10_000

TELL_SECONDS = 0.1

#: Hears the part that is done (0 to 1, or None) and the events acknowledged so far.
Tell = Callable[[float | None, int], None]


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be produced. ``partitions`` is None where any number will do.

    ``kafka`` says how to reach the cluster, but for what ``bootstrap`` and ``broker_wait_seconds_max`` say.
    """

    bootstrap: str
    topic: str
    files: Sequence[str]
    value_format: Format = "auto"
    key: str | None = None
    timestamp: str | None = None
    rate_events: float | None = None
    partitions: int | None = None
    broker_wait_seconds_max: float | None = None
    kafka: KafkaConfig = field(default_factory=KafkaConfig)


async def produce(plan: Plan, tell: Tell = lambda _part, _events: None) -> Produced:
    """Produce, until the files end, SIGINT or SIGTERM; a second signal raises KeyboardInterrupt at once.

    Raises UserError and ExternalError for what shows before anything is sent; later errors are in the result,
    with what was acknowledged before them.
    """
    if plan.partitions is not None and not 1 <= plan.partitions <= PARTITIONS_MAX:
        raise UserError(f"--partitions is {plan.partitions}; valid are 1 to {PARTITIONS_MAX}")
    if plan.rate_events is not None and not 0 < plan.rate_events < float("inf"):
        raise UserError(f"--rate is {plan.rate_events}; valid is a number of events per second above 0")
    files = await asyncio.to_thread(
        open_files, plan.files, plan.value_format, key=plan.key, timestamp=plan.timestamp
    )
    settings = kafka_settings(plan.kafka, plan.bootstrap)
    if plan.broker_wait_seconds_max is not None:
        settings = dataclasses.replace(settings, broker_wait_seconds_max=plan.broker_wait_seconds_max)
    topic = await target_topic(
        settings, SystemClock(), plan.topic, partitions=plan.partitions or PARTITIONS_DEFAULT
    )
    count = topic.stream.partitions
    if plan.partitions not in (None, count):
        raise UserError(
            f"topic {plan.topic!r} exists with {count} partitions, not {plan.partitions}",
            hint="leave --partitions out to produce to it as it is, or name another topic",
        )
    producer = Producer(settings, topic, rate_events=plan.rate_events)
    with _signals(producer.stop):
        telling = asyncio.ensure_future(_tell(tell, files, producer))
        try:
            return await producer.run(_events(files))
        finally:
            telling.cancel()


def _events(files: Sequence[EventFile]) -> Iterator[Events | None]:
    for file in files:
        yield from file.events()


async def _tell(tell: Tell, files: Sequence[EventFile], producer: Producer) -> None:
    sizes = [file.bytes_total for file in files]
    total = None if None in sizes else sum(size for size in sizes if size is not None)
    while True:
        await asyncio.sleep(TELL_SECONDS)
        read = sum(file.bytes_read for file in files)
        tell(min(1.0, read / total) if total else None, producer.produced.events)


@contextlib.contextmanager
def _signals(stop: Callable[[], None]) -> Iterator[None]:
    loop = asyncio.get_running_loop()
    task = asyncio.current_task()
    assert task is not None
    asked = False

    def signalled() -> None:
        nonlocal asked
        if asked:
            task.cancel()
        asked = True
        stop()

    numbers = (signal.SIGINT, signal.SIGTERM)
    previous = {number: signal.getsignal(number) for number in numbers}
    for number in numbers:
        loop.add_signal_handler(number, signalled)
    try:
        yield
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)
            signal.signal(number, previous[number])
