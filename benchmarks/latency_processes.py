"""The processes of a latency measurement: the producer, and the consumers that note when they saw each event.

`benchmarks.latency` starts them, as ``python -m benchmarks.latency_processes`` with a job in the environment, or as
`headrace run` with a handler of this module. An event's ``sent`` is when the schedule says that it goes; consumers
append pairs of 64-bit numbers, seen and sent in nanoseconds since the epoch, to one file that they share.

Not here: which runs there are, and what their times mean.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import sys
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

PARTITIONS = 4
DROPPED_SECONDS = 2.0
TICK_SECONDS = 0.001
WATCH_SECONDS = 0.002
BATCH_BYTES = 1 << 20
DISTINCT = 10_000

#: Where a process finds its job: {"role", "bootstrap", "topic", "events", "file", ...}.
JOB = "BENCHMARK_LATENCY"

Times = npt.NDArray[np.int64]
PAIR_BYTES = 16


# -- what the handler notes ----------------------------------------------------------------------------------------


class Recorder:
    """Appends when events were seen to ``file``, a batch at a time; several processes may do so at once."""

    def __init__(self, file: Path) -> None:
        self._file = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def note(self, now: int, sent: Times) -> None:
        os.write(self._file, np.column_stack((np.full(len(sent), now, np.int64), sent)).tobytes())

    def close(self) -> None:
        os.close(self._file)


def count(file: Path) -> int:
    """Events in a file so far; 0 where there is none."""
    return file.stat().st_size // PAIR_BYTES if file.exists() else 0


def load(file: Path) -> tuple[Times, Times]:
    """Two columns, seen and sent."""
    seen, sent = np.fromfile(file, np.int64).reshape(-1, 2).T
    return seen, sent


def spread(seen: Sequence[tuple[int, Times]]) -> tuple[Times, Times]:
    """Two columns, seen and sent, of events that were seen a batch at a time."""
    lengths = [len(sent) for _, sent in seen]
    return np.repeat(np.array([now for now, _ in seen], np.int64), lengths), np.concatenate(
        [sent for _, sent in seen]
    )


def save(file: Path, seen: Times, sent: Times) -> None:
    """Both columns in a file that appears whole."""
    partial = file.with_suffix(".partial")
    partial.write_bytes(np.column_stack((seen, sent)).tobytes())
    partial.rename(file)


_recorder: Recorder | None = None


def _recording() -> Recorder:
    global _recorder
    if _recorder is None:
        _recorder = Recorder(Path(json.loads(os.environ[JOB])["file"]))
    return _recorder


def on_arrow(batch: Any, context: object) -> None:
    now = time.time_ns()
    _recording().note(now, batch.column("sent").to_numpy())


def on_rows(rows: Sequence[Mapping[str, Any]], context: object) -> None:
    now = time.time_ns()
    _recording().note(now, np.array([row["sent"] for row in rows], np.int64))


def on_kinesis(event: Mapping[str, Any], context: object) -> None:
    now = time.time_ns()
    sent = [orjson.loads(base64.b64decode(record["kinesis"]["data"]))["sent"] for record in event["Records"]]
    _recording().note(now, np.array(sent, np.int64))


def percentiles(values: npt.NDArray[np.float64]) -> dict[str, float]:
    """In the unit of ``values``, which is milliseconds."""
    if not len(values):
        return {}
    p50, p99, p999 = np.percentile(values, [50, 99, 99.9])
    names = ("p50_ms", "p99_ms", "p999_ms", "max_ms")
    return dict(zip(names, (round(float(value), 3) for value in (p50, p99, p999, values.max())), strict=True))


# -- the producer --------------------------------------------------------------------------------------------------


def templates() -> list[bytes]:
    """Click events, cut off where the time of sending is put in."""
    from benchmarks import events

    chunk = next(events.chunks(DISTINCT))
    return [value[:-1] + b',"sent":' for value in chunk.values.to_pylist()]


class Lane:
    """One partition's batch under construction.

    It leaves when its first event is ``linger`` old and the one before is acknowledged, which is what aiokafka's
    ``send`` does too, at several times the processor time per event.
    """

    def __init__(self, producer: Any, topic: str, partition: int, linger_ms: float, acks_ms: list[float]) -> None:
        self._producer, self._topic, self._partition = producer, topic, partition
        self._linger_seconds = linger_ms / 1000
        self._acks_ms = acks_ms
        self._builder: Any = None
        self._opened = 0.0
        self._full: deque[tuple[Any, float]] = deque()
        self.flying: asyncio.Task[None] | None = None

    def append(self, key: bytes, value: bytes) -> None:
        while self._builder is None or self._builder.append(timestamp=None, key=key, value=value) is None:
            if self._builder is not None:
                self._full.append((self._builder, self._opened))
            self._builder, self._opened = self._producer.create_batch(), time.perf_counter()

    def flush(self, *, whole: bool = False) -> None:
        if self.flying is not None:
            return
        if self._full:
            self.flying = asyncio.ensure_future(self._fly(*self._full.popleft()))
            return
        if self._builder is None:
            return
        # Half a tick early rather than half a tick late.
        if whole or time.perf_counter() - self._opened >= self._linger_seconds - TICK_SECONDS / 2:
            builder, self._builder = self._builder, None
            self.flying = asyncio.ensure_future(self._fly(builder, self._opened))

    async def _fly(self, builder: Any, opened: float) -> None:
        builder.close()
        await (await self._producer.send_batch(builder, self._topic, partition=self._partition))
        self._acks_ms.append((time.perf_counter() - opened) * 1000)
        self.flying = None
        self.flush()

    async def drain(self) -> None:
        while self._full or self._builder is not None or self.flying is not None:
            self.flush(whole=True)
            if self.flying is not None:
                await self.flying


async def produce(job: Mapping[str, Any]) -> dict[str, Any]:
    """``rate`` events a second for ``seconds``, in bursts of one a millisecond; what the producer itself took."""
    from aiokafka import AIOKafkaProducer

    rate, events = job["rate"], job["events"]
    parts = templates()
    keys = [b"%d" % number for number in range(DISTINCT)]
    producer = AIOKafkaProducer(
        bootstrap_servers=job["bootstrap"], acks=1, compression_type="lz4", max_batch_size=BATCH_BYTES, linger_ms=0
    )
    await producer.start()
    acks_ms: list[float] = []
    late_ms: list[float] = []
    lanes = [Lane(producer, job["topic"], number, job["linger_ms"], acks_ms) for number in range(PARTITIONS)]
    per_tick = max(1, int(rate * TICK_SECONDS))
    tick_ns = round(per_tick / rate * 1e9)
    loop = asyncio.get_running_loop()
    turn = asyncio.Event()
    begin_ns, cpu = time.time_ns() + 50_000_000, time.process_time()

    def pace() -> None:
        # The loop's own timers are a millisecond late; a thread that sleeps is not.
        for number in range(events // per_tick):
            wait = (begin_ns + number * tick_ns - time.time_ns()) / 1e9
            if wait > 0:
                time.sleep(wait)
            loop.call_soon_threadsafe(turn.set)

    threading.Thread(target=pace, daemon=True).start()
    sent = 0
    while sent < events:
        await turn.wait()
        turn.clear()
        while sent < events and (due_ns := begin_ns + sent // per_tick * tick_ns) <= (now := time.time_ns()):
            late_ms.append((now - due_ns) / 1e6)
            tail = b"%d}" % due_ns
            for number in range(sent, sent + per_tick):
                lanes[number % PARTITIONS].append(keys[number % DISTINCT], parts[number % DISTINCT] + tail)
            sent += per_tick
        for lane in lanes:
            lane.flush()
    for lane in lanes:
        await lane.drain()
    cpu = time.process_time() - cpu
    await producer.stop()
    dropped = int(DROPPED_SECONDS * rate / per_tick)
    acks_ms = acks_ms[int(len(acks_ms) * DROPPED_SECONDS / job["seconds"]) :]
    return {
        **{f"late_{name}": value for name, value in percentiles(np.array(late_ms[dropped:])).items()},
        **{f"ack_{name}": value for name, value in percentiles(np.array(acks_ms)).items()},
        "producer_cpu_seconds": round(cpu, 3),
    }


# -- consumers that are not `headrace run` -------------------------------------------------------------------------


def handle(records: Sequence[Mapping[str, Any]]) -> None:
    """What the hand-written loop calls with decoded events, as `on_rows` is called by headrace."""
    on_rows(records, None)


async def loop(job: Mapping[str, Any]) -> None:
    """The hand-written loop: whatever is there, decoded record by record, handed to a function."""
    from aiokafka import AIOKafkaConsumer

    consumer = AIOKafkaConsumer(
        job["topic"],
        bootstrap_servers=job["bootstrap"],
        group_id=uuid.uuid4().hex,
        auto_offset_reset="earliest",
    )
    await consumer.start()
    while len(consumer.assignment()) < PARTITIONS:  # noqa: ASYNC110 - aiokafka says so nowhere else
        await asyncio.sleep(0.05)
    print("ready", file=sys.stderr, flush=True)
    seen = 0
    while seen < job["events"]:
        for records in (await consumer.getmany(timeout_ms=1000)).values():
            handle([orjson.loads(record.value) for record in records])
            seen += len(records)
    await consumer.stop()


async def in_process(job: Mapping[str, Any]) -> None:
    """headrace in this process, its commits watched: a DuckDB file belongs to one process, so no other can look.

    The hook hears when a transaction is committed, the statistics say up to which offset; both together are the
    time at which a range of offsets became visible.
    """
    import duckdb

    from engine import config_file
    from engine.compose.pipelines import build_runtime

    committed: list[int] = []

    def phase(name: str) -> None:
        if name == "committed":
            committed.append(time.time_ns())

    config = config_file.load(Path(job["config"]))
    runtime = build_runtime(config, bootstrap=job["bootstrap"], phase=phase)
    stopping = asyncio.Event()
    moves: dict[int, list[tuple[int, int]]] = {partition: [(0, 0)] for partition in range(PARTITIONS)}

    async def watch() -> None:
        is_ready = False
        while sum(seen[-1][1] for seen in moves.values()) < job["events"]:
            await asyncio.sleep(WATCH_SECONDS)
            shards = runtime.pipelines[0].statistics()
            if not is_ready and len(shards) == PARTITIONS and all(shard.position is not None for shard in shards):
                is_ready = True
                print("ready", file=sys.stderr, flush=True)
            for shard in shards:
                if shard.position is not None and shard.position > moves[shard.partition][-1][1]:
                    moves[shard.partition].append((committed[-1], shard.position))
        stopping.set()

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(watch())
        code = await tasks.create_task(runtime.run(stopping))
    if code:
        raise SystemExit(code)
    seen: list[Times] = []
    sent: list[Times] = []
    with duckdb.connect(str(Path(job["config"]).parent / "out.duckdb"), read_only=True) as connection:
        for partition, steps in moves.items():
            found = connection.execute(
                'SELECT "_offset", sent FROM events WHERE "_partition" = ? ORDER BY 1', [partition]
            ).fetchnumpy()
            ends = np.array([end for _, end in steps])
            at = np.searchsorted(ends, np.asarray(found["_offset"]), side="right")
            seen.append(np.array([when for when, _ in steps], np.int64)[at])
            sent.append(np.asarray(found["sent"], np.int64))
    save(Path(job["file"]), np.concatenate(seen), np.concatenate(sent))


ROLES: Mapping[str, Callable[[Mapping[str, Any]], Any]] = {"produce": produce, "loop": loop, "duckdb": in_process}


def main() -> None:
    """Be the process that the job asks for."""
    import uvloop

    job = json.loads(os.environ[JOB])
    result = uvloop.run(ROLES[job["role"]](job))
    if result is not None:
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
