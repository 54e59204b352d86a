"""Fetches of one topic's partitions as bytes, decoded into Batches in a thread.

One request is under way to each broker, over all of its partitions that have room; the next one leaves as soon as
the last answer is here, while that is decoded. A partition that holds too much is left out until some of it is
taken. Requests have a connection of their own, so that no other waits behind a long poll.

Not here: the group, assignment and commits (`source`), and what the bytes mean (`record_batches`). Brokers that go
away, leaders that change, throttling and replicas nearby are handled as aiokafka's fetcher does, and in its spirit:
what may pass is tried again, the rest is an error of the one partition.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from aiokafka import TopicPartition, errors
from aiokafka.client import AIOKafkaClient
from aiokafka.protocol.fetch import FetchRequest

from connectors.kafka.complaints import Complaints
from connectors.kafka.fetched import Fetched
from connectors.kafka.record_batches import RecordBatches, warm
from connectors.kafka.settings import KafkaSettings
from engine.batch import Batch
from engine.errors import BrokerUnavailable, CorruptRecords, ExternalError, InternalError, ShardLost
from engine.protocols import Clock, OffsetOutOfRange

log = logging.getLogger("headrace.kafka")

#: How long a broker may keep a request of which no partition has anything.
POLL_SECONDS_MAX = 0.1

#: The same while a partition of that broker is left out: it has to get its turn soon after it has room again.
POLL_SECONDS_SHORT = 0.02

#: What one answer may be. It is copied on the event loop, so this bounds how long that is blocked.
RESPONSE_BYTES_MAX = 4 * 1024 * 1024

#: The least and the most that one partition gets of what all of them may hold.
SHARE_BYTES_MIN = 256 * 1024
SHARE_BYTES_MAX = 16 * 1024 * 1024

#: How much of its share a partition asks for at once; what comes is compressed, and is decoded beside it.
FETCH_SHARE = 1 / 4

#: Waits after a failure: the first, and the longest.
RETRY_SECONDS = 0.1
RETRY_SECONDS_MAX = 1.0

#: How often a plan is looked over even if nothing happened.
PLAN_SECONDS_MAX = 1.0

#: Threads that decode. One does 2 to 8 million records a second. With two, batches of 16 kB cost half as much again
#: for hardly any gain in time, since each gives up the interpreter lock several times and waits for it again.
DECODERS = 1

#: The connections of aiokafka's client that fetches use; its own are 0 and 1.
FETCHES = 2

#: With these the leader is elsewhere, or will be: ask who it is, and try again.
MOVED = (
    errors.NotLeaderForPartitionError,
    errors.UnknownTopicOrPartitionError,
    errors.LeaderNotAvailableError,
    errors.ReplicaNotAvailableError,
)


@dataclass(frozen=True, slots=True)
class FetcherStatistics:
    """Since the fetcher was opened; ``held_bytes`` is now. ``node_requests`` are the requests to each broker."""

    requests: int
    response_bytes: int
    failures: int
    throttled_seconds: float
    held_bytes: int
    node_requests: Mapping[int, int]


class _Node:
    """A broker as far as fetching goes."""

    def __init__(self) -> None:
        self.is_busy = False
        self.not_before = 0.0
        self.retry_seconds = RETRY_SECONDS


class Fetcher:
    """`open` first, then `seek` and `take` for each partition, `close` last.

    ``fetch_bytes_max`` bounds what one fetch of one partition brings (a single larger batch comes all the same),
    ``held_bytes_max`` what all partitions hold, as far as their number allows. ``rack`` is where this process is,
    for reading from replicas nearby.
    """

    def __init__(
        self,
        settings: KafkaSettings,
        *,
        topic: str,
        clock: Clock,
        read_committed: bool = True,
        fetch_bytes_max: int = 1_048_576,
        held_bytes_max: int = 67_108_864,
        rack: str = "",
        client: type[AIOKafkaClient] = AIOKafkaClient,
    ) -> None:
        self._settings = settings
        self._client_type = client
        self._topic = topic
        self._clock = clock
        self._read_committed = read_committed
        self._fetch_bytes_max = fetch_bytes_max
        self._held_bytes_max = held_bytes_max
        self._rack = rack
        self._client: AIOKafkaClient | None = None
        self._executor: ThreadPoolExecutor | None = None
        self._running: asyncio.Task[None] | None = None
        self._tasks: asyncio.TaskGroup | None = None
        self._changed = asyncio.Event()
        self._failure: BaseException | None = None
        #: In the order in which they are asked for: what brought something goes to the end.
        self._partitions: dict[int, Fetched] = {}
        self._nodes: dict[int, _Node] = {}
        self._complaints = Complaints(log, clock)
        self._node_requests: Counter[int] = Counter()
        self._response_bytes = self._failures = 0
        self._throttled_seconds = 0.0
        #: How often a broker said that it does not know the topic; one that was deleted and made anew begins so.
        self.unknown_topic_errors = 0

    @property
    def statistics(self) -> FetcherStatistics:
        held = sum(each.nbytes for each in self._partitions.values())
        return FetcherStatistics(
            requests=self._node_requests.total(),
            response_bytes=self._response_bytes,
            failures=self._failures,
            throttled_seconds=self._throttled_seconds,
            held_bytes=held,
            node_requests=dict(self._node_requests),
        )

    async def open(self) -> None:
        """Connect. Raises BrokerUnavailable, UserError for certificates that cannot be read."""
        # Reads files, so not on the event loop.
        client = self._client_type(**await asyncio.to_thread(self._settings.client_arguments))
        try:
            await client.bootstrap()
            await client.set_topics([self._topic])
        except (errors.KafkaError, OSError) as error:
            await client.close()
            raise BrokerUnavailable(f"{self._settings.bootstrap}: {error}") from None
        except BaseException:
            await client.close()
            raise
        await asyncio.to_thread(warm)
        self._client = client
        self._executor = ThreadPoolExecutor(DECODERS, thread_name_prefix=f"decode-{self._topic}")
        self._running = asyncio.create_task(self._run(), name=f"fetch {self._topic}")

    async def close(self) -> None:
        """Let go of everything; whoever waits in `take` is told that the shard is lost. Idempotent."""
        for partition in list(self._partitions):
            self.drop(partition)
        running, self._running = self._running, None
        if running is not None:
            running.cancel()
            await asyncio.wait([running])
        client, self._client = self._client, None
        if client is not None:
            await client.close()
        executor, self._executor = self._executor, None
        if executor is not None:
            await asyncio.to_thread(executor.shutdown)

    def seek(self, partition: int, offset: int) -> None:
        """Fetch the partition from ``offset`` on; what was fetched before is forgotten."""
        self.drop(partition)
        self._partitions[partition] = Fetched(partition, offset)
        self._changed.set()

    def drop(self, partition: int) -> None:
        """Fetch the partition no more."""
        fetched = self._partitions.pop(partition, None)
        if fetched is not None:
            fetched.wake()

    async def take(self, partition: int, *, records_max: int, seconds_max: float) -> Batch | None:
        """The partition's next Batch, or None when none came in time.

        Raises OffsetOutOfRange, CorruptRecords, ExternalError (not authorized), and ShardLost when the partition
        was dropped or never sought. After an error the same offsets are fetched anew.
        """
        fetched = self._partitions.get(partition)
        deadline = self._clock.monotonic() + seconds_max
        while True:
            if self._failure is not None:
                raise InternalError(f"fetching {self._topic} ended: {self._failure!r}") from self._failure
            if fetched is None or self._partitions.get(partition) is not fetched:
                raise ShardLost(f"{self._topic}-{partition} was revoked, or its owner has yet to seek")
            had_room = self._has_room(fetched)
            try:
                batch = fetched.take(records_max)
            except Exception:
                # Whatever is still under way for this one is no longer wanted.
                self._partitions[partition] = again = Fetched(partition, fetched.taken)
                again.retry_at = fetched.retry_at
                self._changed.set()
                raise
            if batch is not None:
                self._decode_on(fetched)
                if not had_room and self._has_room(fetched):
                    self._changed.set()
                return batch
            left = deadline - self._clock.monotonic()
            if left <= 0:
                await asyncio.sleep(0)  # who asks again and again leaves the loop its turns
                return None
            if not await fetched.arrival(left):
                return None

    # -- what to ask for -----------------------------------------------------------------------------------------

    @property
    def _share_bytes(self) -> int:
        share = self._held_bytes_max // max(1, len(self._partitions))
        return min(SHARE_BYTES_MAX, max(SHARE_BYTES_MIN, share))

    def _has_room(self, fetched: Fetched) -> bool:
        return fetched.nbytes < self._share_bytes // 2

    async def _run(self) -> None:
        """Until it is cancelled: send what there is to send, and wait for something to change."""
        try:
            async with asyncio.TaskGroup() as self._tasks:
                while True:
                    self._changed.clear()
                    seconds = self._send_all(self._tasks)
                    try:
                        async with asyncio.timeout(seconds):
                            await self._changed.wait()
                    except TimeoutError:
                        pass
        except Exception as error:
            log.exception("fetching %s ended", self._topic)
            self._failure = error
            for fetched in self._partitions.values():
                fetched.wake()

    def _send_all(self, tasks: asyncio.TaskGroup) -> float:
        """Start a request to each broker that has none; the seconds after which to look again."""
        now = self._clock.monotonic()
        again = now + PLAN_SECONDS_MAX
        wanted: dict[int, list[Fetched]] = {}
        left_out: set[int] = set()
        without_leader: list[Fetched] = []
        for fetched in self._partitions.values():
            if not fetched.is_whole:
                continue
            if fetched.retry_at > now:
                again = min(again, fetched.retry_at)
                continue
            node = self._node_of(fetched, now)
            if node is None:
                fetched.retry_at = now + RETRY_SECONDS
                again = min(again, fetched.retry_at)
                without_leader.append(fetched)
            elif self._has_room(fetched):
                wanted.setdefault(node, []).append(fetched)
            else:
                left_out.add(node)
        if without_leader:
            assert self._client is not None
            self._client.force_metadata_update()
            names = self._names(without_leader)
            self._complaints.warn(
                "no leader", "%s: no broker leads it now; asking the cluster until one does", names
            )
        for number, partitions in wanted.items():
            node_state = self._nodes.setdefault(number, _Node())
            if node_state.is_busy:
                continue
            if node_state.not_before > now:
                again = min(again, node_state.not_before)
                continue
            node_state.is_busy = True
            seconds = POLL_SECONDS_SHORT if number in left_out else POLL_SECONDS_MAX
            tasks.create_task(self._fetch(number, partitions, seconds))
        return max(0.0, again - now)

    def _node_of(self, fetched: Fetched, now: float) -> int | None:
        """The broker to fetch from: a replica that was named, while it is believed and known, else the leader."""
        assert self._client is not None
        if fetched.replica is not None:
            if now < fetched.replica_until and self._client.cluster.broker_metadata(fetched.replica) is not None:
                return fetched.replica
            fetched.replica = None
        leader = self._client.cluster.leader_for_partition(TopicPartition(self._topic, fetched.partition))
        return None if leader is None or leader < 0 else int(leader)

    async def _fetch(self, number: int, partitions: list[Fetched], seconds: float) -> None:
        assert self._client is not None
        node = self._nodes[number]
        asked = {fetched.partition: (fetched, fetched.position) for fetched in partitions}
        bytes_max = min(self._fetch_bytes_max, int(self._share_bytes * FETCH_SHARE))
        request = FetchRequest(
            int(seconds * 1000),
            1,
            max(RESPONSE_BYTES_MAX, bytes_max),
            int(self._read_committed),
            [(self._topic, [(each.partition, each.position, bytes_max) for each in partitions])],
            rack_id=self._rack,
        )
        self._node_requests[number] += 1
        try:
            response = await self._client.send(number, request, group=FETCHES)
        except (errors.KafkaError, OSError, TimeoutError) as error:
            self._failed(number, partitions, error)
        else:
            node.retry_seconds = RETRY_SECONDS
            if self._complaints.settle(("no answer", number)):
                log.info("%s answers again", self._broker(number))
            self._received(number, asked, response)
        finally:
            node.is_busy = False
            self._changed.set()

    def _failed(self, number: int, partitions: list[Fetched], error: BaseException) -> None:
        """No answer. The client looks for the leaders anew by itself when a connection broke."""
        self._failures += 1
        self._complaints.warn(
            ("no answer", number),
            "no answer from %s about %s: %s: %s; looking for the leaders anew, and trying again",
            self._broker(number),
            self._names(partitions),
            type(error).__name__,
            error,
        )
        node = self._nodes[number]
        node.not_before = self._clock.monotonic() + node.retry_seconds
        node.retry_seconds = min(2 * node.retry_seconds, RETRY_SECONDS_MAX)
        for fetched in partitions:
            if fetched.replica == number:
                fetched.replica = None

    # -- what came -----------------------------------------------------------------------------------------------

    def _received(self, number: int, asked: Mapping[int, tuple[Fetched, int]], response: Any) -> None:
        if response.API_VERSION >= 1 and response.throttle_time_ms > 0:
            # Since version 8 brokers answer at once and leave the waiting to the client.
            seconds = response.throttle_time_ms / 1000
            self._throttled_seconds += seconds
            self._nodes[number].not_before = self._clock.monotonic() + seconds
        for topic, partitions in response.topics:
            for partition, code, _high_watermark, *rest in partitions:
                fetched, position = asked.get(partition, (None, 0)) if topic == self._topic else (None, 0)
                if (
                    fetched is None
                    or self._partitions.get(partition) is not fetched
                    or fetched.position != position
                ):
                    continue  # sought elsewhere or revoked since
                error = errors.for_code(code)
                if error is errors.NoError:
                    self._keep(fetched, response.API_VERSION, rest)
                else:
                    self._refused(number, fetched, error)

    def _keep(self, fetched: Fetched, version: int, rest: list[Any]) -> None:
        """Take what a partition's part of an answer brought: ``rest`` is what follows the high watermark."""
        aborted = None
        if version >= 11:
            aborted = rest[2]
            if self._rack and rest[3] >= 0:
                fetched.replica = rest[3]
                fetched.replica_until = self._clock.monotonic() + self._settings.metadata_age_ms_max / 1000
        elif version >= 4:
            aborted = rest[-2]
        data = rest[-1]
        if not data:
            return
        self._response_bytes += len(data)
        response = RecordBatches(
            data,
            topic=self._topic,
            partition=fetched.partition,
            position=fetched.position,
            aborted=aborted,
            read_committed=self._read_committed,
        )
        fetched.responses.append(response)
        fetched.position = response.end
        self._partitions[fetched.partition] = self._partitions.pop(fetched.partition)
        self._decode_on(fetched)

    def _refused(self, number: int, fetched: Fetched, error: type[errors.KafkaError]) -> None:
        """A partition's error. Any of them ends the belief in a replica; the leader then has the last word."""
        was_replica, fetched.replica = fetched.replica == number, None
        where, broker = self._names([fetched]), self._broker(number)
        fetched.retry_at = self._clock.monotonic() + RETRY_SECONDS
        assert self._client is not None
        if error in MOVED:
            what = "fetching from the leader instead" if was_replica else "asking the cluster who leads it now"
            self._complaints.warn((error, number), "%s: %s says %s; %s", where, broker, error.__name__, what)
            self.unknown_topic_errors += error is errors.UnknownTopicOrPartitionError
            self._client.force_metadata_update()
        elif error is errors.OffsetOutOfRangeError:
            if not was_replica:  # which may lag behind
                fetched.fail(OffsetOutOfRange(fetched.partition, fetched.position))
        elif error is errors.TopicAuthorizationFailedError:
            fetched.fail(ExternalError(f"topic {self._topic!r}: not authorized to read it"))
        elif error is errors.CorruptRecordException:
            reason = "the broker says that its log is damaged"
            fetched.fail(CorruptRecords(self._topic, fetched.partition, fetched.position, reason))
        else:
            self._complaints.warn((error, number), "%s: %s says %s; trying again", where, broker, error.__name__)

    def _broker(self, number: int) -> str:
        """The broker as warnings name it."""
        assert self._client is not None
        known = self._client.cluster.broker_metadata(number)
        return f"broker {number}" if known is None else f"broker {number} ({known.host}:{known.port})"

    def _names(self, partitions: Iterable[Fetched]) -> str:
        """Partitions as warnings name them: ``clicks-0,2,5``."""
        return f"{self._topic}-{','.join(str(number) for number in sorted(each.partition for each in partitions))}"

    # -- decoding ------------------------------------------------------------------------------------------------

    def _decode_on(self, fetched: Fetched) -> None:
        """Have what was fetched decoded if nobody does yet and there is room for it."""
        if fetched.is_decoding:
            return
        while self._should_decode(fetched) and fetched.responses[0].is_quick:
            # Handing it to a thread and back takes longer than doing it.
            self._put(fetched, _read(fetched.responses[0], self._share_bytes // 2))
        if not self._should_decode(fetched):
            return
        assert self._tasks is not None
        fetched.is_decoding = True
        self._tasks.create_task(self._decode(fetched))

    def _should_decode(self, fetched: Fetched) -> bool:
        is_current = self._partitions.get(fetched.partition) is fetched
        while fetched.responses and not fetched.responses[0].has_more:
            fetched.responses.popleft()
        return is_current and bool(fetched.responses) and fetched.decoded_bytes < self._share_bytes // 2

    async def _decode(self, fetched: Fetched) -> None:
        loop = asyncio.get_running_loop()
        try:
            while self._should_decode(fetched):
                response = fetched.responses[0]
                found = await loop.run_in_executor(self._executor, _read, response, self._share_bytes // 2)
                self._put(fetched, found)
        finally:
            fetched.is_decoding = False
            fetched.wake()
            self._changed.set()

    @staticmethod
    def _put(fetched: Fetched, found: Batch | CorruptRecords) -> None:
        if isinstance(found, Batch):
            fetched.put(found)
        else:
            fetched.responses.clear()
            fetched.fail(found)


def _read(response: RecordBatches, bytes_max: int) -> Batch | CorruptRecords:
    try:
        return response.read(bytes_max)
    except CorruptRecords as error:
        return error
