"""The loop that a good Python engineer would write by hand: aiokafka, uvloop, orjson, pyarrow.

`python -m benchmarks.systems.aiokafka_loop [VARIANT]` with a job in its environment. What makes it fast, each step
measured against its alternatives: large fetches and no check of checksums; no Python object per record where Arrow
can do the work (``etl`` joins the values and has Arrow's JSON reader make the columns); files are written in a
thread while the next records are fetched; one commit of the offsets each 100,000 records.

It delivers at least once: a crash between the files and the commit of the offsets writes rows again. Nothing is
flushed to the disk, no bad record is survived, and there is no back-pressure but its own pace: that is what such a
loop is like. With two processes each has half of the partitions.

``pylist`` is the other usual way to write ``etl``: `orjson.loads` of each record and `pyarrow.Table.from_pylist`.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

import uvloop
from aiokafka import AIOKafkaConsumer, TopicPartition

from benchmarks.systems import aiokafka_work as works
from benchmarks.systems import job as jobs
from benchmarks.systems.aiokafka_work import Windows, Work
from benchmarks.systems.job import Job

COMMIT_EVENTS = 100_000
FETCH_EVENTS = 10_000


def work_of(variant: str, job: Job, tag: str) -> Work:
    """The work of a workload."""
    kinds: dict[str, type[Work]] = {
        "etl": works.Etl,
        "etl-pylist": works.EtlPylist,
        "filter": works.Filter,
        "window": works.Window,
        "handler": works.Handler,
    }
    if variant not in kinds:
        from benchmarks.systems import aiokafka_real as real  # imports DuckDB, which the others do without

        kinds = {"logs": real.Logs, "changes": real.Changes}
    return kinds[variant](job, tag)


@dataclass(frozen=True, slots=True)
class Done:
    """What one process did; times are of the monotonic clock, which processes share. ``cpu`` is in between."""

    events: int
    first: float
    last: float
    cpu: float
    windows: Windows


async def consume(job: Job, work: Work, numbers: Sequence[int]) -> Done:
    """Take the partitions ``numbers`` from beginning to end."""
    consumer = AIOKafkaConsumer(
        bootstrap_servers=job.bootstrap,
        group_id=job.group,
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        max_partition_fetch_bytes=8 << 20,
        fetch_max_bytes=64 << 20,
        check_crcs=False,
    )
    await consumer.start()
    partitions = [TopicPartition(job.topic, number) for number in numbers]
    consumer.assign(partitions)
    ends = await consumer.end_offsets(partitions)
    total = sum(ends.values())
    await work.start()
    at: dict[TopicPartition, int] = {}
    taken = settled = 0
    first = cpu = 0.0
    settling: asyncio.Task[None] | None = None

    async def settle(offsets: dict[TopicPartition, int]) -> None:
        await work.settle()
        await consumer.commit(offsets)

    while taken < total:
        found = await consumer.getmany(timeout_ms=1_000, max_records=FETCH_EVENTS)
        if found and not taken:
            first, cpu = time.monotonic(), time.process_time()
        for partition, records in found.items():
            await work.take(partition, records)
            at[partition] = records[-1].offset + 1
            taken += len(records)
        if taken - settled >= COMMIT_EVENTS:
            if settling is not None:
                await settling
            settling = asyncio.create_task(settle(dict(at)))
            settled = taken
    if settling is not None:
        await settling
    await settle(at)
    await work.finish()
    done = Done(taken, first, time.monotonic(), time.process_time() - cpu, getattr(work, "windows", {}))
    await consumer.stop()
    return done


def process(job: Job, variant: str, number: int) -> Done:
    """One of the job's processes."""
    work = work_of(variant, job, f"part-{number}")
    mine = [partition for partition in range(job.partitions) if partition % job.processes == number]
    return uvloop.run(consume(job, work, mine))


def main() -> None:
    job = jobs.read()
    variant = f"{job.workload}-pylist" if "pylist" in sys.argv[1:] else job.workload
    if job.processes == 1:
        parts = [process(job, variant, 0)]
    else:
        with multiprocessing.get_context("fork").Pool(job.processes) as pool:
            parts = pool.starmap(process, [(job, variant, number) for number in range(job.processes)])
    last = max(part.last for part in parts)
    if job.workload == "window" and job.processes > 1:
        for path in job.directory.iterdir():
            path.unlink()
        works.write_windows(job, works.merged([part.windows for part in parts]), "merged")
        last = time.monotonic()
    seconds = last - min(part.first for part in parts)
    jobs.answer(sum(part.events for part in parts), seconds, cpu_seconds=sum(part.cpu for part in parts))


if __name__ == "__main__":
    main()
