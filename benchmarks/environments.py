"""What execution environments cost: records a second, what an empty invocation takes, and how long one starts.

    python -m benchmarks.environments [--bootstrap HOST:PORT] [--quick] [--json FILE]

- *throughput*: one caller, a pool, one environment, no Kafka. The same 1,000 click events as a Kinesis event, again
  and again; records for each CPU second of the environment (utime and stime in /proc), and what a record takes
  on the way, in building the event, in the handler and in writing the answer.
- *invocation*: an empty handler and one record, from the call to its reply, as Python and as awslambdaric over the
  Runtime API; and *start*: from nothing to an environment that has initialised.
- *pipeline*: from the broker through `headrace run`'s own parts to the handler of the workload ``handler``, without
  a sink. CPU time of engine and environments, from when a tenth of the records are handled to the last.

Every answer is checked. Not here: what other systems take for the same handler (`benchmarks.systems`).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import statistics
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import pyarrow as pa
import uvloop

from benchmarks import events, topics
from benchmarks.latency import bootstrap_of
from benchmarks.systems import ROOT, headrace
from benchmarks.systems.job import Job
from engine import config_file
from engine.batch import RECORDS, Batch
from engine.clock import SystemClock
from functions.environments import pool as pools
from functions.environments.contract import FunctionSpec, Reply, Report, Request, Starter, Times
from functions.environments.provided import ProvidedStarter
from functions.environments.python import PythonStarter
from functions.kinds import kinesis

RECORDS_EACH = 1_000
SECONDS, EVENTS, STARTS, REPETITIONS = 3.0, 1_000_000, 10, 3
QUICK_SECONDS, QUICK_EVENTS, QUICK_STARTS = 0.5, 200_000, 3
WARM_CALLS = 20
TICK_SECONDS = 1 / os.sysconf("SC_CLK_TCK")
#: Of the records of a pipeline, before anything counts.
WARM_SHARE = 0.1
MEMORY_MB = 512
TIMEOUT_SECONDS = 60.0
_OWN = "benchmarks.environment_handlers"

#: By what their handler does with the data of each record.
HANDLERS = {
    "base64": f"{_OWN}.lengths",
    "base64, orjson": "benchmarks.systems.handler.total",
    "base64, json": f"{_OWN}.documents",
}
RUNTIMES = {"python": (), "awslambdaric": ("python", "-m", "awslambdaric", f"{_OWN}.empty")}

#: Of an invocation; the first is outside of the environment.
STEPS = ("transfer", "build", "handler", "encode")

Entry = dict[str, Any]


class Wrong(Exception):
    """An invocation whose answer is not the one that is known."""


def batch_of(count: int) -> Batch:
    """The first click events, as the engine would have them."""
    chunk = next(events.chunks(count))
    first_ms = events.FIRST_TS_MS
    columns = [
        pa.array(range(count), pa.int64()),
        pa.array(range(first_ms, first_ms + count), pa.int64()),
        chunk.keys,
        chunk.values,
        pa.nulls(count, RECORDS.field("headers").type),
    ]
    return Batch("clicks", 0, 0, count, pa.RecordBatch.from_arrays(columns, schema=RECORDS))


def cpu_seconds(pids: Iterable[int]) -> float:
    """User and system time of processes that run; the kernel counts in ticks."""
    total = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        total += int(fields[11]) + int(fields[12])
    return total * TICK_SECONDS


class _Nowhere:
    """A log of nothing."""

    def write(self, data: bytes) -> None:
        pass

    def platform(self, line: str) -> None:
        pass


def _unheard(report: Report) -> None:
    del report


@contextlib.asynccontextmanager
async def pool_of(handler: str, command: Sequence[str] = ()) -> Any:
    """A pool for one function, and nothing of it afterwards."""
    spec = FunctionSpec(
        name="bench",
        handler=handler,
        command=tuple(command),
        root=ROOT,
        timeout_seconds=TIMEOUT_SECONDS,
        memory_size_mb=MEMORY_MB,
        region="us-east-1",
    )
    starter: Starter = ProvidedStarter() if command else PythonStarter()
    pool = pools.EnvironmentPool(
        spec,
        starter,
        reserved_concurrency=1,
        idle_seconds_max=TIMEOUT_SECONDS,
        clock=SystemClock(),
        logs=_Nowhere,
        on_report=_unheard,
    )
    try:
        yield pool
    finally:
        await pool.close()


class Caller:
    """Invokes a function with one batch, again and again, and checks the answers."""

    def __init__(self, pool: pools.EnvironmentPool, batch: Batch, answer: object) -> None:
        self._pool = pool
        self._batch = batch
        self._envelope = kinesis.envelope(kinesis.KinesisStream(batch.topic, "us-east-1"))
        self._answer = json.dumps(answer).encode()
        self._count = 0

    async def call(self) -> tuple[float, Reply]:
        """Seconds from call to reply, and the reply."""
        self._count += 1
        request = Request(f"bench-{self._count}", 0, "kinesis", self._batch, self._envelope)
        began = time.perf_counter()
        reply = await self._pool.invoke(request)
        took = time.perf_counter() - began
        if reply.payload != self._answer:
            raise Wrong(f"an answer is {reply.payload[:80]!r} instead of {self._answer!r}")
        return took, reply

    async def many(self, seconds: float) -> list[tuple[float, Reply]]:
        """Calls for so long, at least one."""
        end = time.perf_counter() + seconds
        made = [await self.call()]
        while time.perf_counter() < end:
            made.append(await self.call())
        return made


async def throughput(name: str, seconds: float, records: int = RECORDS_EACH) -> Entry:
    """Records through one environment; microseconds for a record are medians of wall time."""
    batch = batch_of(records)
    lengths = sum(len(value) for value in batch.records.column("value").to_pylist())
    answer = lengths if name == "base64" else sum(range(records))
    async with pool_of(HANDLERS[name]) as pool:
        caller = Caller(pool, batch, answer)
        for _ in range(WARM_CALLS):
            await caller.call()
        inside, engine, began = cpu_seconds(pool.pids), time.process_time(), time.perf_counter()
        made = await caller.many(seconds)
        took = time.perf_counter() - began
        engine, inside = time.process_time() - engine, cpu_seconds(pool.pids) - inside
    count = len(made) * records
    return {
        "measure": "throughput",
        "handler": name,
        "records_each": records,
        "invocations": len(made),
        "records_per_second": round(count / took),
        "records_per_environment_cpu_second": round(count / max(inside, TICK_SECONDS)),
        "engine_us": round(engine / count * 1e6, 3),
        **split([reply.times for _, reply in made], records),
    }


def split(times: Iterable[Times | None], records: int) -> dict[str, float]:
    """Microseconds of a record on the way and in the three steps inside; medians of invocations."""
    known = [each for each in times if each is not None]
    return {
        f"{name}_us": round(statistics.median(getattr(each, f"{name}_ms") for each in known) * 1e3 / records, 3)
        for name in STEPS
    }


async def invocation(runtime: str, seconds: float) -> Entry:
    """An empty handler and one record; microseconds from call to reply."""
    async with pool_of(f"{_OWN}.empty", RUNTIMES[runtime]) as pool:
        caller = Caller(pool, batch_of(1), None)
        for _ in range(WARM_CALLS):
            await caller.call()
        took = sorted(took * 1e6 for took, _ in await caller.many(seconds))
    return {
        "measure": "invocation",
        "runtime": runtime,
        "invocations": len(took),
        "p50_us": round(statistics.median(took), 1),
        "p99_us": round(took[int(len(took) * 0.99)], 1),
    }


async def start(runtime: str, times: int) -> Entry:
    """From nothing to an environment that has initialised, in milliseconds."""
    took: list[float] = []
    for _ in range(times):
        async with pool_of(f"{_OWN}.empty", RUNTIMES[runtime]) as pool:
            began = time.perf_counter()
            await pool.warm()
            took.append((time.perf_counter() - began) * 1e3)
    return {
        "measure": "start",
        "runtime": runtime,
        "starts": times,
        "p50_ms": round(statistics.median(took), 1),
        "max_ms": round(max(took), 1),
    }


# -- the whole way -------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Watch:
    """What happens between the moment at which a part of the records are handled and that of the last."""

    events: int
    handled: int = 0
    times: list[Times] = field(default_factory=list)
    invocations: int = 0
    pids: set[int] = field(default_factory=set)
    _from: tuple[int, float, float, dict[int, float]] | None = None
    figures: Entry | None = None

    def note(self, records: int, reply: Reply, pids: Sequence[int]) -> None:
        """An invocation is over."""
        self.handled += records
        self.invocations += 1
        self.pids.update(pids)
        if self._from is None:
            if self.handled >= self.events * WARM_SHARE:
                inside = {pid: cpu_seconds([pid]) for pid in pids}
                self._from = self.handled, time.perf_counter(), time.process_time(), inside
            return
        if reply.times is not None:
            self.times.append(reply.times)
        if self.handled >= self.events and self.figures is None:
            self.figures = self._figures(pids)

    def _figures(self, pids: Sequence[int]) -> Entry:
        """CPU microseconds of a record; those of the environments are divided as their wall time is."""
        assert self._from is not None
        before, began, engine, known = self._from
        count = self.handled - before
        took, engine = time.perf_counter() - began, time.process_time() - engine
        inside = cpu_seconds(pids) - sum(known.values())
        parts = {name: sum(getattr(each, f"{name}_ms") for each in self.times) for name in STEPS[1:]}
        whole = sum(parts.values()) or 1.0
        return {
            "records_per_second": round(count / took),
            "records_per_cpu_second": round(count / (engine + inside)),
            "records_per_environment_cpu_second": round(count / max(inside, TICK_SECONDS)),
            "engine_cpu_us": round(engine / count * 1e6, 3),
            "environments_cpu_us": round(inside / count * 1e6, 3),
            **{f"{name}_cpu_us": round(inside * part / whole / count * 1e6, 3) for name, part in parts.items()},
        }


def watched(watch: Watch) -> type[pools.EnvironmentPool]:
    """A pool that tells of its invocations."""

    class Watched(pools.EnvironmentPool):
        async def invoke(self, request: Request) -> Reply:
            reply = await super().invoke(request)
            watch.note(len(request.batch), reply, self.pids)
            return reply

    return Watched


def pipeline(bootstrap: str, topic: str, count: int, concurrency: int, scratch: Path) -> Entry:
    """One run from the broker to the handler. Raises `Wrong`."""
    output = scratch / uuid.uuid4().hex
    output.mkdir()
    job = Job("handler", bootstrap, topic, count, topics.PARTITIONS, str(output), str(scratch), output.name)
    tables = headrace.configuration(job)
    tables["pipelines"][job.group]["function"]["reserved_concurrency"] = concurrency
    file = output / "headrace.toml"
    file.write_text(headrace.toml(tables))
    from engine.compose.pipelines import build_runtime

    watch = Watch(count)
    with (
        mock.patch.object(pools, "EnvironmentPool", watched(watch)),
        mock.patch.dict(os.environ, job.environment()),
    ):
        runtime = build_runtime(config_file.load(file), bootstrap=bootstrap, until_caught_up=True)
        code = uvloop.run(runtime.run(asyncio.Event()))
    counted = [json.loads(path.read_text()) for path in output.glob("*.json")]
    found = sum(each["events"] for each in counted), sum(each["sum"] for each in counted)
    if code or found != (wanted := (count, sum(range(count)))) or watch.figures is None:
        raise Wrong(f"exit code {code}; events and their sum are {found} instead of {wanted}")
    return {
        "measure": "pipeline",
        "reserved_concurrency": concurrency,
        "environments": len(watch.pids),
        "events": count,
        "invocations": watch.invocations,
        **watch.figures,
    }


def pipelines(
    bootstrap: str, count: int, concurrencies: Sequence[int], repetitions: int, transfer_us: float
) -> Iterator[Entry]:
    """Runs in turns; of each number of environments the medians. What the engine takes beside transfer is fetching.

    ``transfer_us`` is what it takes for a record through a pool alone.
    """
    topic = f"bench-environments-{uuid.uuid4().hex[:8]}"
    topics.fill(bootstrap, topic, count)
    made: dict[int, list[Entry]] = {each: [] for each in concurrencies}
    try:
        with tempfile.TemporaryDirectory(prefix="bench-environments-") as name:
            for _ in range(repetitions):
                for each in concurrencies:
                    made[each].append(pipeline(bootstrap, topic, count, each, Path(name)))
    finally:
        topics.delete(bootstrap, topic)
    for runs in made.values():
        entry: Entry = {
            key: value if isinstance(value, str) else statistics.median(run[key] for run in runs)
            for key, value in runs[0].items()
        }
        fetch_us = round(max(0.0, entry["engine_cpu_us"] - transfer_us), 3)
        yield {**entry, "fetch_cpu_us": fetch_us, "transfer_cpu_us": transfer_us, "repetitions": repetitions}


# -- all of them ---------------------------------------------------------------------------------------------------


def alone(seconds: float, starts: int) -> Iterator[Entry]:
    """What needs no broker."""
    for name in HANDLERS:
        yield uvloop.run(throughput(name, seconds))
    for runtime in RUNTIMES:
        yield uvloop.run(invocation(runtime, seconds))
    for runtime in RUNTIMES:
        yield uvloop.run(start(runtime, starts))


def line(entry: Entry) -> str:
    """An entry for people."""
    match entry["measure"]:
        case "throughput":
            per_cpu = entry["records_per_environment_cpu_second"]
            parts = ", ".join(
                f"{name} {entry[f'{name}_us']:.2f}" for name in ("transfer", "build", "handler", "encode")
            )
            return (
                f"pool      {entry['handler']:<16}{entry['records_per_second']:>10,}/s {per_cpu:>10,}/CPU s of the "
                f"environment; us of a record: {parts}; CPU of the engine {entry['engine_us']:.2f}"
            )
        case "invocation":
            return f"empty     {entry['runtime']:<16}p50 {entry['p50_us']:,.0f} us, p99 {entry['p99_us']:,.0f} us"
        case "start":
            return f"start     {entry['runtime']:<16}p50 {entry['p50_ms']:,.0f} ms, max {entry['max_ms']:,.0f} ms"
    parts = ", ".join(f"{name} {entry[f'{name}_cpu_us']:.2f}" for name in ("fetch", "transfer", "build", "handler"))
    return (
        f"pipeline  up to {entry['reserved_concurrency']:<10g}{entry['records_per_second']:>10,.0f}/s "
        f"{entry['records_per_cpu_second']:>10,.0f}/CPU s, {entry['environments']:g} environments; "
        f"CPU us of a record: {parts}"
    )


def run(
    bootstrap: str | None,
    *,
    seconds: float = SECONDS,
    starts: int = STARTS,
    count: int = EVENTS,
    concurrencies: Sequence[int] = (8, 2),
    repetitions: int = REPETITIONS,
    say: Callable[[str], None] = print,
) -> list[Entry]:
    """All measures; without a broker, those that need none."""
    found = []
    for entry in alone(seconds, starts):
        found.append(entry)
        say(line(entry))
    if bootstrap is not None:
        transfer_us = statistics.median(each["engine_us"] for each in found if each["measure"] == "throughput")
        for entry in pipelines(bootstrap, count, concurrencies, repetitions, transfer_us):
            found.append(entry)
            say(line(entry))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bootstrap", help="host:port; an embedded broker when left out")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of a measure without a broker")
    parser.add_argument("--events", type=int, default=EVENTS, help="of the topic (%(default)s)")
    parser.add_argument("--concurrency", type=int, nargs="+", default=[8, 2], help="environments at most, by turns")
    parser.add_argument("--repetitions", type=int, default=REPETITIONS, help="of the way from the broker")
    parser.add_argument("--alone", action="store_true", help="only what needs no broker")
    parser.add_argument("--quick", action="store_true", help="less of each, once")
    parser.add_argument("--json", type=Path, help="write the results here")
    options = parser.parse_args()
    starts = STARTS
    if options.quick:
        options.seconds, options.events, options.repetitions = QUICK_SECONDS, QUICK_EVENTS, 1
        starts = QUICK_STARTS
    from engine.cli.start import prepare

    prepare()  # heaps and collector as the command has them
    with contextlib.nullcontext(None) if options.alone else bootstrap_of(options.bootstrap) as bootstrap:
        found = run(
            bootstrap,
            seconds=options.seconds,
            starts=starts,
            count=options.events,
            concurrencies=options.concurrency,
            repetitions=options.repetitions,
        )
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
