"""Failed records to a Kafka topic: an `engine.protocols.Destination`.

One message for each record: its key as it was, the record's document as JSON, and the identity in headers as well,
so that a second copy is known without decoding anything. Its timestamp is that of the delivery: the record's
own might be past the topic's retention already.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import orjson
from aiokafka import AIOKafkaProducer, errors

from connectors.kafka import writing
from connectors.kafka.settings import KafkaSettings
from connectors.kafka.topics import message_bytes_max, target_topic
from engine.batch import Stream
from engine.delivery import Document
from engine.delivery import document as plain_document
from engine.errors import DestinationUnavailable, ExternalError, UserError
from engine.protocols import Clock, FailedRecord

#: The longest wait for the acknowledgement of one delivery.
DELIVER_SECONDS_MAX = 30.0

BATCH_BYTES = 256 * 1024
LINGER_MS = 5

#: No byte of a record takes more in its message: a control character of a Kinesis key takes 7 as an escape in an
#: event that is itself a JSON string, and 1 as the message's key; the two bytes of a header without name or value
#: take up to 18. (A value takes 4/3, a header's value 5.) The rest is for the reason, names and numbers.
DOCUMENT_GROWTH = 9
DOCUMENT_BYTES = 64 * 1024


class KafkaDestination:
    """``topic`` is made with one partition when it is missing, large enough for whatever the source's records are.

    As they are in the log, that is: a record that only fits there because it is compressed may be refused.
    ``stream_of`` is asked for the source's stream once that has been opened. ``document`` makes the documents;
    left out, they are those of `engine.delivery`.
    """

    def __init__(
        self,
        settings: KafkaSettings,
        topic: str,
        *,
        pipeline: str,
        stream_of: Callable[[], Stream],
        clock: Clock,
        document: Document | None = None,
        deliver_seconds_max: float = DELIVER_SECONDS_MAX,
    ) -> None:
        self._settings = settings
        self._topic = topic
        self._pipeline = pipeline
        self._stream_of = stream_of
        self._document = document or (lambda record, stream: plain_document(pipeline, stream, record))
        self._clock = clock
        self._deliver_seconds_max = deliver_seconds_max
        self._checked = False
        self._producer: AIOKafkaProducer | None = None
        self._one_at_a_time = asyncio.Lock()

    async def open(self) -> None:
        """Idempotent. Raises UserError when the topic is the pipeline's own source."""
        async with self._one_at_a_time:
            await self._opened()

    async def close(self) -> None:
        async with self._one_at_a_time:
            await self._close()

    async def deliver(self, records: Sequence[FailedRecord]) -> None:
        async with self._one_at_a_time:
            producer = await self._opened()
            try:
                async with asyncio.timeout(self._deliver_seconds_max):
                    await self._send(producer, records)
            except (errors.KafkaError, OSError, TimeoutError) as error:
                # The producer would go on trying, and the next call send the same records once more.
                await self._close()
                raise self._refused(error) from None
            except BaseException:
                await self._close()
                raise

    async def _send(self, producer: AIOKafkaProducer, records: Sequence[FailedRecord]) -> None:
        stream = self._stream_of()
        sent = []
        for record in records:
            value = orjson.dumps(self._document(record, stream))
            headers = self._headers(stream, record)
            sent.append(await producer.send(self._topic, value, key=record.key, headers=headers))
        # All are awaited even if one fails: an exception that nobody asks for would be logged.
        for outcome in await asyncio.gather(*sent, return_exceptions=True):
            if isinstance(outcome, BaseException):
                raise outcome

    def _headers(self, stream: Stream, record: FailedRecord) -> list[tuple[str, bytes]]:
        """The identity, and why it failed."""
        identity = {
            "pipeline": self._pipeline,
            "cluster_id": stream.cluster_id,
            "topic": stream.topic,
            "topic_id": stream.topic_id,
            "partition": record.partition,
            "offset": record.offset,
            "error_type": record.error_type,
        }
        return [(f"headrace.{name}", str(value).encode()) for name, value in identity.items()]

    async def _opened(self) -> AIOKafkaProducer:
        try:
            if not self._checked:
                await self._check()
                self._checked = True
            if self._producer is None:
                self._producer = await writing.start(self._settings, batch_bytes=BATCH_BYTES, linger_ms=LINGER_MS)
        except ExternalError as error:
            raise DestinationUnavailable(
                f"on-failure topic {self._topic!r}: {error.message}", hint=error.hint
            ) from error
        return self._producer

    async def _check(self) -> None:
        source = self._stream_of()
        if self._topic == source.topic:
            raise UserError(
                f"pipeline {self._pipeline}: on_failure is the source topic {self._topic!r} itself",
                hint="failed records would be read again, and fail again: name another topic",
            )
        source_bytes = await message_bytes_max(self._settings, source.topic)
        bytes_max = min(source_bytes * DOCUMENT_GROWTH + DOCUMENT_BYTES, writing.REQUEST_BYTES_MAX)
        await target_topic(
            self._settings, self._clock, self._topic, partitions=1, config={"max.message.bytes": str(bytes_max)}
        )

    async def _close(self) -> None:
        producer, self._producer = self._producer, None
        if producer is not None:
            await writing.close(producer)  # deliver has waited for what counts

    def _refused(self, error: BaseException) -> DestinationUnavailable:
        where = f"on-failure topic {self._topic!r} on {self._settings.bootstrap}"
        if isinstance(error, errors.MessageSizeTooLargeError):
            return DestinationUnavailable(
                f"{where} takes no record that large: {error}", hint="raise the topic's max.message.bytes"
            )
        if isinstance(error, errors.UnknownTopicOrPartitionError):
            self._checked = False  # it was deleted: the next delivery makes it again
        if isinstance(error, TimeoutError):
            return DestinationUnavailable(f"{where}: no acknowledgement within {self._deliver_seconds_max:g} s")
        return DestinationUnavailable(f"{where}: {type(error).__name__}: {error}")
