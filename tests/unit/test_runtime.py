"""What runs beside the pipelines of a process ends nothing but itself."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

import engine.runtime
from engine.runtime import Runtime


class Quiet:
    """A pipeline that runs until it is stopped."""

    name = "p"
    error = None

    def __init__(self) -> None:
        self.ended = False

    async def run(self, stopping: asyncio.Event) -> None:
        await stopping.wait()
        self.ended = True


class Faulty:
    """Work beside it that has a bug."""

    async def run(self) -> None:
        raise RuntimeError("a bug")


@pytest.mark.parametrize("fault", ["beside", "status"])
async def test_a_fault_beside_the_pipelines_ends_none(
    fault: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Joining files, metering and what is shown may fail; pipelines go on to their own end, which drains them."""
    monkeypatch.setattr(engine.runtime, "STATUS_SECONDS", 0.001)
    pipeline: Any = Quiet()  # it has no status to tell
    runtime = Runtime([pipeline], beside=[Faulty()] if fault == "beside" else [])
    stopping = asyncio.Event()
    running = asyncio.create_task(runtime.run(stopping))
    await asyncio.sleep(0.05)
    assert not running.done()
    stopping.set()
    async with asyncio.timeout(5):
        assert await running == 0
    assert pipeline.ended
    assert ("beside the pipelines" if fault == "beside" else "cannot be shown") in caplog.text
