"""The sink suite over a topic of a real broker."""

from __future__ import annotations

import asyncio
import concurrent.futures
import uuid

import orjson
import pytest

from connectors.kafka.broker import Broker
from connectors.kafka.settings import KafkaSettings
from connectors.kafka.sink import KafkaSink
from engine.clock import SystemClock
from tests.conformance.sink_suite import SinkStorage, SinkSuite
from tests.conformance.state_suite import StateSuite
from tests.conftest import ExternalBroker
from tests.integration.kafka_output import committed


class KafkaStorage:
    def __init__(self, bootstrap: str, *, takes_rows: bool = True) -> None:
        self._settings = KafkaSettings(bootstrap)
        self._topic = f"out-{uuid.uuid4().hex[:12]}"
        self._takes_rows = takes_rows

    def sink(self, *, pipeline: str = "p", on_recreated_topic: str = "stop") -> KafkaSink:
        return KafkaSink(
            self._settings,
            pipeline=pipeline,
            topic=self._topic if self._takes_rows else None,
            clock=SystemClock(),
            group=f"group-of-{self._topic}",
            # Else another pipeline would have a state of its own, and nothing to be refused by.
            state_topic=f"{self._topic}-state",
            on_recreated_topic=on_recreated_topic,  # type: ignore[arg-type]
        )

    def rows(self) -> list[tuple[int, int, str]]:
        # The suite asks while its own event loop waits for the answer.
        with concurrent.futures.ThreadPoolExecutor(1) as executor:
            found = executor.submit(lambda: asyncio.run(committed(self._settings.bootstrap, self._topic))).result()
        rows = [orjson.loads(message.value) for message in found]
        return [(row["_partition"], row["_offset"], row["text"]) for row in rows]


class TestKafkaSink(SinkSuite):
    @pytest.fixture
    def storage(self, broker: Broker | ExternalBroker) -> SinkStorage:
        return KafkaStorage(broker.bootstrap)


class TestKafkaState(StateSuite):
    @pytest.fixture
    def storage(self, broker: Broker | ExternalBroker) -> SinkStorage:
        return KafkaStorage(broker.bootstrap)


class TestKafkaStateAlone(StateSuite):
    """The sink of pipelines that write nothing and have a state."""

    takes_rows = False

    @pytest.fixture
    def storage(self, broker: Broker | ExternalBroker) -> SinkStorage:
        return KafkaStorage(broker.bootstrap, takes_rows=False)
