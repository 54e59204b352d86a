"""What was fetched of one partition and has not been taken: responses, Batches made of them, an error.

Not here: fetching and decoding themselves (`fetcher`).
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass

from connectors.kafka.record_batches import RecordBatches
from engine.batch import Batch, join

#: Pieces are put together up to this size: a handler that waits for no window then gets what there is, in one call.
JOIN_BYTES_MAX = 256 * 1024


@dataclass(slots=True)
class _Piece:
    """A Batch and the bytes that it is counted with."""

    batch: Batch
    nbytes: int


class Fetched:
    """One partition from one seek to the next: a seek or a revocation leaves it to those who still hold it."""

    def __init__(self, partition: int, offset: int) -> None:
        self.partition = partition
        #: What the next fetch asks for, and where the next Batch taken will start.
        self.position = offset
        self.taken = offset
        self.responses: deque[RecordBatches] = deque()
        self.error: Exception | None = None
        self.is_decoding = False
        #: No fetch before this time of the monotonic clock.
        self.retry_at = 0.0
        #: A replica that the leader named, and until when to believe it.
        self.replica: int | None = None
        self.replica_until = 0.0
        #: Bytes of the Batches.
        self.decoded_bytes = 0
        self._pieces: deque[_Piece] = deque()
        self._arrived = asyncio.Event()

    @property
    def nbytes(self) -> int:
        """Bytes held: responses as they came, and Batches."""
        return self.decoded_bytes + sum(response.bytes_left for response in self.responses)

    @property
    def is_whole(self) -> bool:
        """Whether there is use in fetching on: nothing that is held, or came instead, is an error."""
        return self.error is None and not any(response.has_fault for response in self.responses)

    def put(self, batch: Batch) -> None:
        nbytes = batch.nbytes
        self._pieces.append(_Piece(batch, nbytes))
        self.decoded_bytes += nbytes
        self._arrived.set()

    def fail(self, error: Exception) -> None:
        """Give ``error`` to whoever takes next, behind the Batches that are already there."""
        self.error = error
        self._arrived.set()

    def wake(self) -> None:
        self._arrived.set()

    def take(self, records_max: int) -> Batch | None:
        """The next Batch, of up to ``records_max`` records, if there is one. Raises the error behind the last."""
        if not self._pieces:
            if self.error is not None and not self.responses and not self.is_decoding:
                raise self.error
            return None
        taken: list[Batch] = []
        records = nbytes = 0
        while self._pieces and records < records_max and nbytes < JOIN_BYTES_MAX:
            piece = self._pieces[0]
            batch = piece.batch.head(records_max - records)
            if taken and nbytes + piece.nbytes > JOIN_BYTES_MAX:
                break
            taken.append(batch)
            records += len(batch)
            nbytes += piece.nbytes
            self.decoded_bytes -= piece.nbytes
            if len(batch) < len(piece.batch):
                rest = piece.batch.tail(len(batch))
                piece.batch, piece.nbytes = rest, rest.nbytes
                self.decoded_bytes += piece.nbytes
            else:
                self._pieces.popleft()
        self.taken = taken[-1].end
        return join(taken)

    async def arrival(self, seconds_max: float) -> bool:
        """Wait for something to arrive; False when the time is over."""
        self._arrived.clear()
        try:
            async with asyncio.timeout(seconds_max):
                await self._arrived.wait()
        except TimeoutError:
            return False
        return True
