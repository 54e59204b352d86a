"""What tests share: one real broker for a session, topics of their own on it, and how properties are tried."""

from __future__ import annotations

import compileall
import contextlib
import os
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import for_code
from hypothesis import settings

from connectors.kafka.broker import Broker

# No deadline for an example: on a busy machine any of them may be slow, which is no fault of the code.
settings.register_profile("headrace", deadline=None)
settings.load_profile("headrace")

ROOT = Path(__file__).parents[1]


def pytest_configure(config: pytest.Config) -> None:
    """Compile the program once: tests start it by the hundred, also where Python is told to keep no bytecode."""
    if not hasattr(config, "workerinput"):
        for package in ("engine", "connectors", "functions", "benchmarks"):
            compileall.compile_dir(ROOT / package, quiet=2)


@dataclass(frozen=True)
class ExternalBroker:
    """A cluster that somebody else runs, named by HEADRACE_BOOTSTRAP."""

    bootstrap: str


@pytest.fixture(scope="session")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker | ExternalBroker]:
    """The session's broker: ``.bootstrap`` is its address. Tests leave it running and its settings alone."""
    given = os.environ.get("HEADRACE_BOOTSTRAP")
    if given:
        yield ExternalBroker(given)
        return
    with Broker(tmp_path_factory.mktemp("broker"), port=0, brief=True) as embedded:
        yield embedded


TopicFactory = Callable[..., Awaitable[str]]


@pytest.fixture
async def topic(broker: Broker | ExternalBroker) -> AsyncIterator[TopicFactory]:
    """``await topic(partitions=4, name="clicks", config={...})`` makes a topic and gives its unique name.

    The topics are deleted when the test ends, unless it has done so itself.
    """
    made: list[str] = []
    async with contextlib.AsyncExitStack() as stack:
        admin = AIOKafkaAdminClient(bootstrap_servers=broker.bootstrap)
        await admin.start()
        stack.push_async_callback(admin.close)

        async def make(partitions: int = 1, name: str = "test", config: dict[str, str] | None = None) -> str:
            unique = f"{name}-{uuid.uuid4().hex[:12]}"
            response = await admin.create_topics(
                [NewTopic(unique, num_partitions=partitions, replication_factor=1, topic_configs=config or {})]
            )
            for _, code, *message in response.topic_errors:
                if code:
                    raise for_code(code)(*message)
            made.append(unique)
            return unique

        yield make
        if made:
            await admin.delete_topics(made)  # errors are codes in its answer; a topic already gone is one
