"""The pool of environments, as real processes: as many as reserved, kept while needed, none left at the end.

What handlers do in one is in test_environments.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import psutil
import pytest

from engine.errors import FunctionError, Throttled
from functions.environments.python import PythonEnvironment, PythonStarter
from tests.clock import ManualClock
from tests.integration.environment_world import (
    SECONDS_MAX,
    Sink,
    World,
    call,
    descriptors,
    gone,
    tidy_world,
    until,
    warden_up,
)

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module", autouse=True)
def warden() -> Iterator[None]:
    """Up before anything is counted."""
    with warden_up():
        yield


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    """Handlers and pools, of which nothing is left when the test ends."""
    async with tidy_world(tmp_path) as made:
        yield made


async def test_no_more_environments_than_reserved(world: World) -> None:
    """Callers wait in order for one of them, and each runs one invocation at a time."""
    pool = world.pool(size=2)
    answers = await asyncio.gather(*(call(pool, request_id=f"id-{i}") for i in range(20)))
    pids = {answer["pid"] for answer in answers if isinstance(answer, dict)}
    assert len(pids) == 2
    assert (pool.idle, pool.running) == (2, 0)
    assert sorted(each.request_id for each in world.reports) == sorted(f"id-{i}" for i in range(20))


async def test_idle_environments_are_retired(world: World) -> None:
    """After the configured time, and not before; the one used last is used next."""
    clock = ManualClock()
    pool = world.pool(size=2, idle=100.0, clock=clock)
    await asyncio.gather(call(pool), call(pool))
    first, second = pool.pids
    await clock.advance(60)
    assert await call(pool) == {"pid": second, "calls": 2}
    await clock.advance(60)
    await until(lambda: gone(first))
    assert pool.pids == [second]
    async with asyncio.timeout(SECONDS_MAX):
        while not gone(second):  # whoever retires may still be busy with the first one's end
            await clock.advance(60)
            await asyncio.sleep(0.01)
    assert pool.idle == 0


async def test_an_environment_started_early_is_a_cold_start_too(world: World) -> None:
    """Its first invocation reports and bills the init phase; the next ones have none."""
    pool = world.pool()
    await pool.warm()
    await call(pool)
    await call(pool)
    first, second = world.reports
    assert first.init_ms is not None
    assert first.billed_ms >= first.init_ms + first.duration_ms
    assert second.init_ms is None


async def test_changed_code_runs_in_new_environments(world: World) -> None:
    """What is under way ends on the old code; the old environment goes when it has."""
    pool = world.pool(size=2)
    go = world.root / "go"
    old = asyncio.create_task(call(pool, f"wait {go}"))
    await until(lambda: pool.running == 1 and len(pool.pids) == 1)
    [old_pid] = pool.pids
    world.write("def act(event, context): return 'new'")
    await pool.replace(world.spec(version=1))
    assert await call(pool) == "new"
    go.touch()
    assert await old == {"pid": old_pid, "calls": 1}
    await until(lambda: gone(old_pid))
    assert await call(pool) == "new"


async def test_a_cancelled_invocation_ends_its_environment(world: World) -> None:
    """Nobody knows what it is doing; the next one has another."""
    pool = world.pool()
    task = asyncio.create_task(call(pool, "block"))
    await until(lambda: pool.running == 1 and len(pool.pids) == 1)
    [pid] = pool.pids
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert gone(pid)
    assert isinstance(await call(pool), dict)


async def test_a_cancelled_start_leaves_nothing(world: World) -> None:
    """At whichever moment it is cancelled; what is left is looked for when the test ends."""
    pool = world.pool()
    for turns in (1, 2, 3, 10, 100):
        task = asyncio.create_task(call(pool))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert pool.running == 0


async def test_closing_fails_what_is_under_way(world: World) -> None:
    """The running invocation and the waiting one end, and new ones are refused."""
    pool = world.pool()
    tasks = [asyncio.create_task(call(pool, "block")) for _ in range(2)]
    await until(lambda: pool.running == 1 and len(pool.pids) == 1)
    await pool.close()
    first, second = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(first, FunctionError)
    assert isinstance(second, Throttled)
    with pytest.raises(Throttled):
        await call(pool)


async def test_no_room_for_a_process_is_no_fault_of_the_function(world: World) -> None:
    """Too many open files: Throttled, without a report; it works again when there is room."""
    import resource

    pool = world.pool()
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, descriptors())) + 3, limits[1]))
    taken: list[int] = []
    try:
        with contextlib.suppress(OSError):
            while True:
                taken.append(os.open("/dev/null", os.O_RDONLY))
        with pytest.raises(Throttled, match="open files"):
            await call(pool)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        for descriptor in taken:
            os.close(descriptor)
    assert (world.reports, world.throttled) == ([], ["clicks"])
    assert isinstance(await call(pool), dict)


async def test_nothing_outlives_the_engine(world: World, tmp_path: Path) -> None:
    """Two seconds after the engine's SIGKILL neither environments nor what they have forked are left."""
    program = f"""
        import asyncio, sys
        sys.path.insert(0, {str(ROOT)!r})
        from pathlib import Path
        from tests.integration.environment_world import World, call
        async def main():
            pool = World(Path({str(tmp_path)!r})).pool(size=3)
            answer, _ = await asyncio.gather(call(pool, "fork_and_stay"), call(pool))
            asyncio.create_task(call(pool, "spin"))
            while pool.running < 1 or len(pool.pids) < 2: await asyncio.sleep(0.01)
            print(answer["child"], *pool.pids, flush=True)
            await asyncio.sleep(3600)
        asyncio.run(main())
    """
    engine = subprocess.Popen(  # noqa: ASYNC220  # milliseconds
        [sys.executable, "-c", textwrap.dedent(program)], stdout=subprocess.PIPE, text=True
    )
    with engine:
        assert engine.stdout is not None
        line = await asyncio.to_thread(engine.stdout.readline)
        pids = {
            *map(int, line.split()),
            *(each.pid for each in psutil.Process(engine.pid).children(recursive=True)),
        }
        assert len(pids) >= 4  # two environments, a fork, the warden
        engine.send_signal(signal.SIGKILL)
        await until(lambda: all(map(gone, pids)), 2.0)


async def test_an_environment_ends_when_its_socket_does(world: World) -> None:
    """The engine's end alone is enough, should kernel and warden fail."""
    environment = await PythonStarter().start(world.spec(), Sink())
    assert isinstance(environment, PythonEnvironment)
    environment._socket.shutdown(socket.SHUT_RDWR)
    await until(lambda: gone(environment.pid))
    assert not environment.is_alive
    await environment.kill()
