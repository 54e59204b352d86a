"""An owner that is paused past its session, loses its shards, and wakes up commits nothing of what it had."""

from __future__ import annotations

import signal
import time

import pytest

from tests.crash.events import PARTITIONS, Reader, check_rows, parquet_rows
from tests.crash.test_exactness import PARQUET, World, own_broker, world

__all__ = ["own_broker", "world"]  # fixtures

pytestmark = [pytest.mark.crash, pytest.mark.broker, pytest.mark.timeout(300)]


@pytest.mark.parametrize("world", [pytest.param(PARQUET, id="parquet")], indirect=True)
def test_a_paused_owner_commits_nothing_when_it_wakes(world: World) -> None:
    """Stopped while it holds uncommitted rows; what it does after waking begins with taking shards over anew."""
    rows = world.directory / "rows"
    with Reader(rows) as reader:
        sleeper = world.engine()
        sleeper.wait_for("renamed")
        sleeper.wait_for_next("staging")
        sleeper.signal(signal.SIGSTOP)
        before = len(sleeper.phases())
        heir = world.engine()
        heir.wait_for("renamed")
        # Only of a shard that has been taken over is the sleeper a zombie.
        deadline = time.monotonic() + 30
        while heir.phases().count("recovered") < PARTITIONS:
            assert time.monotonic() < deadline, f"the heir has not taken every shard over; {heir.said()}"
            time.sleep(0.02)
        heir.wait_for_next("renamed")
        sleeper.signal(signal.SIGCONT)
        deadline = time.monotonic() + 30
        while "recovered" not in sleeper.phases()[before:]:
            assert time.monotonic() < deadline, f"the sleeper never got a shard again; {sleeper.said()}"
            time.sleep(0.05)
        woken = sleeper.phases()[before:]
        assert "linked" not in woken[: woken.index("recovering")], "a zombie committed"
        heir.kill()
        sleeper.kill()
        world.catch_up()
    assert reader.faults == []
    check_rows(parquet_rows(rows), world.producing.sent)
