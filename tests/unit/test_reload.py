"""What `--reload` watches, whom it reloads, and what it says; over real files and the real watcher."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from engine.config import Config
from engine.errors import FunctionError
from engine.reload import Reloadable, Reloader, Watched, watched

SECONDS_MAX = 20.0


class Handler:
    """Counts its reloads; ``error`` is what they raise."""

    def __init__(self, error: Exception | None = None) -> None:
        self.reloads = 0
        self.error = error

    async def reload(self) -> None:
        self.reloads += 1
        if self.error is not None:
            raise self.error


@dataclass
class Pipeline:
    name: str
    handler: object


@asynccontextmanager
async def running(*functions: Watched) -> AsyncIterator[None]:
    task = asyncio.create_task(Reloader(functions).run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert task.cancelled() or task.exception() is None


async def until(done: Callable[[], bool], again: Callable[[], object]) -> None:
    """Poll until ``done``; ``again`` is done over now and then, for the watch may not have begun at first."""
    deadline = time.monotonic() + SECONDS_MAX
    while not done():
        assert time.monotonic() < deadline
        again()
        for _ in range(10):
            await asyncio.sleep(0.03)
            if done():
                return


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("app.py", True),
        ("deep/er/module.py", True),
        ("native.so", True),
        ("index.mjs", True),
        ("server", True),  # named as a program
        ("other", False),
        ("data.json", False),
        ("failed.jsonl", False),
        ("rows/part.parquet", False),
        ("headrace.toml", False),
        ("__pycache__/app.cpython-311.pyc", False),
        ("__pycache__/app.py", False),
        (".venv/lib/site-packages/x.py", False),
        ("lib/site-packages/x.py", False),
        (".git/hooks/x.py", False),
        ("node_modules/x/index.js", False),
        (".app.py.swp", False),
        (".#app.py", False),
        ("../other/app.py", False),
    ],
)
def test_which_files_are_a_functions_code(path: str, expected: bool) -> None:
    """Code below its root; not data, caches, installed packages or what editors leave."""
    root = Path("/somewhere/.hidden/src")  # what stands above the root does not matter
    function = Watched("F-E", root, Handler(), frozenset({root / "server"}))
    resolved = Path("/somewhere/.hidden/other/app.py") if path.startswith("..") else root / path
    assert function.concerns(resolved) is expected


async def test_a_change_reloads_the_functions_it_is_code_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Both over that directory, not the one beside it; the log names function and file."""
    caplog.set_level(logging.INFO, "headrace.reload")
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    first, second, other = Handler(), Handler(), Handler()
    file = tmp_path / "one" / "app.py"
    async with running(
        Watched("A-E", tmp_path / "one", first),
        Watched("B-E", tmp_path / "one", second),
        Watched("C-E", tmp_path / "two", other),
    ):
        await until(lambda: bool(first.reloads and second.reloads), lambda: file.write_text("x = 1\n"))
    assert other.reloads == 0
    assert "A-E: app.py changed; new invocations run the new code" in caplog.text
    assert "C-E" not in caplog.text


async def test_files_that_are_no_code_reload_nothing(tmp_path: Path) -> None:
    """A sink's file changes all the time; a change of code made after it is the first that is seen."""
    handler = Handler()
    seen: list[int] = []

    def change() -> None:
        (tmp_path / "rows.jsonl").write_text("{}\n")
        seen.append(handler.reloads)
        if len(seen) > 2:
            (tmp_path / "app.py").write_text("x = 1\n")

    async with running(Watched("A-E", tmp_path, handler)):
        await until(lambda: handler.reloads > 0, change)
    assert seen[:3] == [0, 0, 0]


async def test_code_that_does_not_start_is_said_and_the_next_change_is_tried(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The watch outlives a fault of the function and a bug of a handler."""
    fault = FunctionError("Syntax error in module 'app'", "Runtime.UserCodeSyntaxError")
    for error in (fault, ZeroDivisionError("a bug")):
        handler = Handler(error)
        reloader = Reloader([Watched("A-E", tmp_path, handler)])
        await reloader.reload([tmp_path / "app.py", tmp_path / "b.py", tmp_path / "notes.txt"])
        assert handler.reloads == 1
        handler.error = None
        await reloader.reload([tmp_path / "app.py"])
        assert handler.reloads == 2
    expected = (
        "A-E: app.py and 1 more changed but does not start; the old code goes on: Syntax error in module 'app'"
    )
    assert expected in caplog.text
    assert "a bug" in caplog.text


async def test_functions_are_reloaded_at_the_same_time(tmp_path: Path) -> None:
    """One that takes long to start holds up no other."""
    met = asyncio.Barrier(2)

    class Meeting:
        async def reload(self) -> None:
            async with asyncio.timeout(SECONDS_MAX):
                await met.wait()

    reloader = Reloader([Watched("A-E", tmp_path, Meeting()), Watched("B-E", tmp_path, Meeting())])
    await reloader.reload([tmp_path / "app.py"])
    assert met.n_waiting == 0


async def test_a_root_that_cannot_be_watched_ends_the_watch_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It is said; nothing is raised into the run."""
    await Reloader([Watched("A-E", tmp_path / "gone", Handler())]).run()
    assert "--reload ends, changes are no longer seen" in caplog.text
    await Reloader([]).run()
    assert "no pipeline has a function that can be reloaded" in caplog.text


def test_what_can_be_reloaded(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Handlers that have `reload`, with roots and programs; the others are named, but for pipelines without one."""
    source = {"topic": "t"}
    config = Config.model_validate(
        {
            "pipelines": {
                "plain": {"source": source, "sink": {"type": "parquet", "path": "rows"}},
                "rows": {"source": source, "function": {"kind": "rows", "handler": "a.b"}},
                "here": {"source": source, "function": {"kind": "kinesis", "handler": "a.b"}},
                "there": {
                    "source": source,
                    "function": {
                        "kind": "kinesis",
                        "runtime": "provided",
                        "command": ["./run.bin", "--fast"],
                        "root": str(tmp_path / "src"),
                    },
                },
            }
        }
    )
    handler = Handler()
    assert isinstance(handler, Reloadable)
    pipelines = [Pipeline(name, object() if name in ("plain", "rows") else handler) for name in config.pipelines]
    here, there = watched(pipelines, config, tmp_path)
    assert (here.name, here.root, here.programs) == ("here", tmp_path.resolve(), frozenset())
    assert (there.name, there.root) == ("there", (tmp_path / "src").resolve())
    assert there.concerns((tmp_path / "src").resolve() / "run.bin")
    assert [record.getMessage() for record in caplog.records] == [
        "rows: kind rows runs in this process; --reload does not reach it"
    ]
