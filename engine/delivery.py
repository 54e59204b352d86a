"""Bringing failed records from a sink, where they are committed, to the on-failure destination.

At least once: a record counts as delivered only after the destination has it, and the mark that says so
may be lost by a crash. Each delivery carries the record's identity, by which a second copy is known.
"""

from __future__ import annotations

import base64
import logging
from collections.abc import Callable, Mapping

from engine.batch import Stream
from engine.errors import DestinationUnavailable, ExternalError
from engine.protocols import Clock, Destination, FailedRecord, ShardWriter

log = logging.getLogger("headrace.delivery")

#: Makes what a destination is given for a failed record of a stream, ready for JSON.
Document = Callable[[FailedRecord, Stream], Mapping[str, object]]

#: How many failed records are brought in one go.
RECORDS_MAX = 500

#: The pause after a destination refused.
RETRY_SECONDS = 2.0


def document(pipeline: str, stream: Stream, record: FailedRecord) -> dict[str, object]:
    """A failed record as sinks keep it, ready for JSON; bytes are base64.

    Its identity is ``pipeline, cluster_id, topic_id, partition, offset``. What a destination is given has another
    shape (`functions.failures`), but is read in this one too.
    """

    def text(data: bytes | None) -> str | None:
        return None if data is None else base64.b64encode(data).decode()

    return {
        "version": "1.0",
        "pipeline": pipeline,
        "cluster_id": stream.cluster_id,
        "topic": stream.topic,
        "topic_id": stream.topic_id,
        "partition": record.partition,
        "offset": record.offset,
        "timestamp": record.timestamp,
        "error_type": record.error_type,
        "reason": record.reason,
        "attempts": record.attempts,
        "request_id": record.request_id,
        "key": text(record.key),
        "value": text(record.value),
        "headers": [{"key": name, "value": text(value)} for name, value in record.headers],
    }


def from_document(entry: Mapping[str, object]) -> FailedRecord:
    """The inverse of `document`, but for the identity's pipeline and stream."""

    def data(text: object) -> bytes | None:
        return None if text is None else base64.b64decode(str(text))

    headers = entry["headers"]
    assert isinstance(headers, list)
    request_id = entry.get("request_id")  # records of earlier versions have none
    return FailedRecord(
        partition=int(str(entry["partition"])),
        offset=int(str(entry["offset"])),
        timestamp=int(str(entry["timestamp"])),
        key=data(entry["key"]),
        value=data(entry["value"]),
        headers=tuple((header["key"], data(header["value"])) for header in headers),
        reason=str(entry["reason"]),
        error_type=str(entry["error_type"]),
        attempts=int(str(entry["attempts"])),
        request_id=None if request_id is None else str(request_id),
    )


class Delivery:
    """One shard's way to the destination.

    ``refused_seconds_max``: after so long without a delivery `run` raises what the destination said; None
    tries for ever, for nothing is lost meanwhile.
    """

    def __init__(
        self,
        name: str,
        writer: ShardWriter,
        destination: Destination | None,
        clock: Clock,
        *,
        refused_seconds_max: float | None = None,
    ) -> None:
        self._name = name
        self._writer = writer
        self._destination = destination
        self._clock = clock
        self._refused_seconds_max = refused_seconds_max
        self._refused_since: float | None = None
        self._not_before = float("-inf")
        # A commit may add failures while earlier ones are on their way: counting tells whether it was seen.
        self._asked, self._answered = 1, 0

    @property
    def pending(self) -> bool:
        """There may be committed failures that are not delivered."""
        return self._answered < self._asked

    @property
    def is_due(self) -> bool:
        return self.pending and self._clock.monotonic() >= self._not_before

    def ask(self) -> None:
        """Say that a commit has made failures durable."""
        self._asked += 1

    async def run(self) -> None:
        """Deliver what is committed and not delivered. A refusal is logged, and tried again later."""
        if not self.is_due:
            return
        while True:
            asked = self._asked
            mark, records = await self._writer.failures(RECORDS_MAX)
            if not records:
                self._answered = asked
                return
            if self._destination is None:
                log.warning(
                    "%s: %d failed records wait in the sink for an on-failure destination", self._name, len(records)
                )
                self._answered = asked
                return
            try:
                await self._destination.deliver(records)
            except DestinationUnavailable as error:
                self._refused(error)
                return
            self._refused_since = None
            await self._writer.delivered(mark)

    def _refused(self, error: DestinationUnavailable) -> None:
        now = self._clock.monotonic()
        self._refused_since = now if self._refused_since is None else self._refused_since
        if self._refused_seconds_max is not None and now - self._refused_since > self._refused_seconds_max:
            # Not to be tried again: whoever set the bound wants to hear of it.
            raise ExternalError(
                f"{self._name}: failed records wait in the sink: {error.message}", hint=error.hint
            ) from error
        log.warning("%s: failed records wait in the sink: %s", self._name, error)
        self._not_before = now + RETRY_SECONDS
