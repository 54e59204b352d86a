"""aiokafka's producer as headrace uses it: idempotent, acknowledged by all replicas, closed within a bound.

An idempotent producer of aiokafka (0.14) sends a batch again until the broker takes it, however long that
is, and its ``stop`` waits for that; `close` does not.
"""

from __future__ import annotations

import asyncio
import contextlib

from aiokafka import AIOKafkaProducer, errors

from connectors.kafka.settings import KafkaSettings
from engine.errors import BrokerUnavailable

#: What a request may hold; brokers close a connection at 100 MB (``socket.request.max.bytes``).
REQUEST_BYTES_MAX = 96 * 1024 * 1024

#: For each step of closing.
CLOSE_SECONDS_MAX = 1.0

#: How long a broker may take to answer a request before it is sent again.
ANSWER_SECONDS_MAX = 30.0


async def start(settings: KafkaSettings, *, batch_bytes: int, linger_ms: int = 0) -> AIOKafkaProducer:
    """A producer that is connected and has its id. Raises BrokerUnavailable."""
    producer = AIOKafkaProducer(
        **settings.client_arguments(),
        acks="all",
        enable_idempotence=True,
        compression_type="lz4",
        max_batch_size=batch_bytes,
        max_request_size=REQUEST_BYTES_MAX,
        linger_ms=linger_ms,
        request_timeout_ms=int(min(ANSWER_SECONDS_MAX, max(1.0, settings.broker_wait_seconds_max)) * 1000),
    )
    try:
        async with asyncio.timeout(settings.broker_wait_seconds_max):
            await producer.start()
    except (errors.KafkaError, OSError, TimeoutError) as error:
        await close(producer)
        raise BrokerUnavailable(f"{settings.bootstrap}: {str(error) or 'no answer in time'}") from None
    except BaseException:
        await close(producer)
        raise
    return producer


async def close(producer: AIOKafkaProducer) -> None:
    """Close, and give up what no broker has acknowledged: callers have waited for what counts. Never raises."""
    sender = producer._sender.sender_task
    if sender is not None and not sender.done():
        # The sender puts batches under way back into its queue before it ends, so it has to end before they fail.
        sender.cancel()
        await asyncio.wait([sender], timeout=CLOSE_SECONDS_MAX)
        if not sender.done():  # it waits for an answer
            await _close_client(producer)
            sender.cancel()
            await asyncio.wait([sender], timeout=CLOSE_SECONDS_MAX)
    _fail_all(producer)
    with contextlib.suppress(errors.KafkaError, OSError, TimeoutError):
        async with asyncio.timeout(CLOSE_SECONDS_MAX):
            await producer.stop()
            return
    await _close_client(producer)


async def _close_client(producer: AIOKafkaProducer) -> None:
    with contextlib.suppress(errors.KafkaError, OSError, TimeoutError):
        async with asyncio.timeout(CLOSE_SECONDS_MAX):
            await producer.client.close()


def _fail_all(producer: AIOKafkaProducer) -> None:
    """End what is left, or ``stop`` would wait for it; asking for the exceptions keeps them out of the log."""
    accumulator = producer._message_accumulator
    batches = [batch for queue in accumulator._batches.values() for batch in queue]
    batches += accumulator._pending_batches
    accumulator.fail_all(errors.KafkaConnectionError("given up"))
    for batch in batches:
        for future in (batch.future, batch._drain_waiter, *(future for future, _ in batch._msg_futures)):
            if future.done() and not future.cancelled():
                future.exception()
