"""Handlers that misbehave in every way, pools of environments for them, and what is left of both.

Shared by test_environments and test_environment_pool. No test is here.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import textwrap
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import psutil

from engine.batch import Batch, from_rows
from engine.clock import SystemClock
from functions.environments.contract import FunctionSpec, LogSink, Report, Request
from functions.environments.pool import EnvironmentPool
from functions.environments.process import spawner
from functions.environments.python import PythonStarter
from functions.kinds import kinesis

ENVELOPE = kinesis.envelope(kinesis.KinesisStream("clicks", "us-east-1"))
SECONDS_MAX = 20.0

APP = """
    import asyncio, base64, ctypes, datetime, decimal, json, logging, os, signal, subprocess, sys, threading
    import time, uuid

    calls = 0
    kept = []

    def act(event, context):
        # What to do is the value of the first record; it is a member of this module.
        global calls
        calls += 1
        data = base64.b64decode(event["Records"][0]["kinesis"]["data"]).decode()
        name, _, argument = data.partition(" ")
        return globals()[name](argument) if name != "context" else shown(context)

    def shown(context):
        return {
            "id": context.aws_request_id, "arn": context.invoked_function_arn, "memory": context.memory_limit_in_mb,
            "left": context.get_remaining_time_in_millis(), "group": context.log_group_name,
            "name": context.function_name, "version": context.function_version,
        }

    def ok(_): return {"pid": os.getpid(), "calls": calls}
    def segfault(_): ctypes.string_at(0)
    def leave(code): os._exit(int(code))
    def system_exit(code): sys.exit(int(code))
    def kill_self(_): os.kill(os.getpid(), signal.SIGKILL)
    def block(_): time.sleep(3600)
    def spin(_):
        while True: pass
    def deaf(_):
        for number in range(1, 32):
            try: signal.signal(number, signal.SIG_IGN)
            except (OSError, ValueError): pass
        return ok(_)
    def raises(text): raise KeyError(text)
    def ill(_):
        class Ill(Exception):
            def __str__(self): raise ValueError("no text")
        raise Ill
    def recursion(_): return recursion(_)
    def unserialisable(_): return {"a": {1, 2}}
    def large(size): return "x" * int(size)
    def leak(_):
        while True:
            kept.append(bytearray(4_000_000)); time.sleep(0.002)
    def leak_and_return(_):
        kept.append(bytearray(300_000_000))
    def fork_and_stay(_):
        if (child := os.fork()) == 0:
            time.sleep(3600)
        return {"child": child}
    def fork_and_return(_):
        os.fork()
        return ok(_)
    def stray(_):
        return {"child": subprocess.Popen(["sleep", "3600"], start_new_session=True).pid}
    def flood(size):
        block = b"x" * 65_535 + b"\\n"
        for _ in range(int(size) // len(block)): os.write(1, block)
    def close_stdout(_): sys.stdout.close(); os.close(1); os.close(2)
    def close_all(_): os.closerange(3, 256); time.sleep(3600)
    def garbage(_):
        for number in range(3, 64):
            try: os.write(number, b"garbage " * 100)
            except OSError: pass
        time.sleep(3600)
    def chdir(_): os.chdir("/")
    def prints(text):
        print(text)
        print("error " + text, file=sys.stderr)
        os.write(1, b"raw\\n")
        sys.stdout.write("open")
    def logs(text): logging.getLogger().warning(text)
    def environ(_): return dict(os.environ)
    def cwd(_): return os.getcwd()
    def background(_):
        threading.Thread(target=time.sleep, args=(3600,), daemon=True).start()
        return ok(_)
    def typed(_):
        zone = datetime.timezone(datetime.timedelta(hours=2))
        return {"batchItemFailures": [], "rows": [{
            "at": datetime.datetime(2026, 1, 2, 3, 4, 5, 6, zone), "day": datetime.date(2026, 1, 2),
            "time": datetime.time(1, 2, 3), "took": datetime.timedelta(days=-1, microseconds=1),
            "raw": b"\\x00\\xff", "id": uuid.UUID(int=1), "price": decimal.Decimal("1.10"), "text": "\\u00e9",
            "none": None, "nan": float("inf"), "list": [b"a"],
        }]}
    def tagged(_): return {"rows": [{"\\x00headrace": ["date", "2026-01-01"]}]}
    def outside(_): return {"at": datetime.date(2026, 1, 2), "rows": []}
    def loose(_): return {"price": decimal.Decimal("1.5"), "nan": float("nan"), "text": "\\u00e9"}
    def bare(_): return b"bytes"
    def half(_): return "\\ud800"
    def wait(path):
        while not os.path.exists(path): time.sleep(0.01)
        return ok(path)

    async def later(event, context):
        kept.append(asyncio.get_running_loop())
        await asyncio.sleep(0.01)
        if event["Records"][0]["kinesis"]["partitionKey"] == "bad": raise OSError("async")
        return {"loops": len(set(map(id, kept)))}
"""


class Sink:
    """A log stream that keeps everything."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.output = b""

    def write(self, data: bytes) -> None:
        self.output += data
        self.lines.append(data.decode(errors="replace"))

    def platform(self, line: str) -> None:
        self.lines.append(line)


class World:
    """A folder with handlers, and pools of environments for them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.sinks: list[Sink] = []
        self.reports: list[Report] = []
        self.throttled: list[str] = []
        self.pools: list[EnvironmentPool] = []
        self.write(APP)

    def write(self, text: str, name: str = "app.py") -> None:
        (self.root / name).write_text(textwrap.dedent(text))

    def sink(self) -> Sink:
        self.sinks.append(Sink())
        return self.sinks[-1]

    def spec(self, **changes: object) -> FunctionSpec:
        given = {"handler": "app.act", "timeout_seconds": SECONDS_MAX, "memory_size_mb": 128, **changes}
        return FunctionSpec(name="clicks", command=(), root=self.root, region="eu-west-1", **given)  # type: ignore[arg-type]

    def pool(
        self,
        *,
        size: int = 1,
        idle: float = 300.0,
        clock: object = None,
        logs: Callable[[], LogSink] | None = None,
        init: float = 10.0,
        **changes: object,
    ) -> EnvironmentPool:
        pool = EnvironmentPool(
            self.spec(**changes),
            PythonStarter(),
            reserved_concurrency=size,
            idle_seconds_max=idle,
            clock=clock or SystemClock(),  # type: ignore[arg-type]
            logs=logs or self.sink,
            on_report=self.reports.append,
            on_throttle=self.throttled.append,
            memory_sample_seconds=0.02,
            init_seconds_max=init,
        )
        self.pools.append(pool)
        return pool


def batch(*values: str, key: str = "k") -> Batch:
    rows = [(i, 1_700_000_000_000, key.encode(), value.encode(), ()) for i, value in enumerate(values)]
    return from_rows("clicks", 0, rows, start=0, end=len(rows))


def request(value: str = "ok", *, request_id: str = "id-1", key: str = "k") -> Request:
    return Request(request_id, 0, "kinesis", batch(value, key=key), ENVELOPE)


async def call(pool: EnvironmentPool, value: str = "ok", **members: str) -> object:
    return json.loads((await pool.invoke(request(value, **members))).payload)


def descriptors() -> set[str]:
    return {entry.name for entry in Path("/proc/self/fd").iterdir()}


def processes() -> set[int]:
    """This process's descendants that are not over."""
    found = set()
    for each in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if each.status() != psutil.STATUS_ZOMBIE:
                found.add(each.pid)
    return found


async def until(condition: Callable[[], bool], seconds_max: float = SECONDS_MAX) -> None:
    deadline = time.monotonic() + seconds_max
    while not condition():
        assert time.monotonic() < deadline, "it did not come about in time"
        await asyncio.sleep(0.005)


def shared_memory() -> set[Path]:
    return set(Path("/dev/shm").iterdir())


def gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@contextlib.contextmanager
def warden_up() -> Iterator[None]:
    """The spawner's thread and its warden are there before anything is counted, and end with this."""

    async def first() -> None:
        process = await spawner().start(["/bin/true"], root=Path("/"), variables={}, log=Sink())
        await process.ended

    asyncio.run(first())
    yield
    spawner().close()


@contextlib.asynccontextmanager
async def tidy_world(root: Path) -> AsyncIterator[World]:
    """Handlers and pools. Afterwards nothing is left of them: no process, descriptor or shared memory."""
    before = descriptors(), processes(), shared_memory()
    made = World(root)
    yield made
    for pool in made.pools:
        await pool.close()
        assert (pool.running, pool.idle, pool.pids) == (0, 0, [])
    await until(lambda: (descriptors(), processes(), shared_memory()) == before, 5.0)
