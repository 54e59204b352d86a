"""The settings of a Kafka sink: what goes with what, and what is refused."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from engine.compose.pipelines import build_runtime
from engine.config import Config
from engine.config_sinks import KafkaSinkConfig


def config(**sink: object) -> Config:
    pipeline = {"source": {"topic": "clicks"}, "sink": {"type": "kafka", **sink}}
    return Config.model_validate({"pipelines": {"p": pipeline}})


def test_a_topic_is_all_that_is_needed() -> None:
    """The defaults make a pipeline that can be built."""
    made = config(topic="out")
    sink = made.pipelines["p"].sink
    assert isinstance(sink, KafkaSinkConfig)
    assert (sink.key, sink.value, sink.compression, sink.commit_interval_max_seconds) == (None, None, "lz4", 0.2)
    build_runtime(made, bootstrap="127.0.0.1:1")


@pytest.mark.parametrize(
    ("settings", "fault"),
    [
        ({"topic": "clicks"}, "sink.topic = 'clicks' is the source itself"),
        ({"topic": "out", "value": "v", "omit": ["a"]}, "omit goes with rows as JSON objects"),
        ({"topic": "out", "compression": "lzma"}, "compression"),
        ({"topic": "a b"}, "topic"),
        ({}, "topic"),
    ],
)
def test_what_cannot_be_is_refused(settings: dict[str, object], fault: str) -> None:
    """Each fault is found before anything is connected."""
    with pytest.raises(ValidationError, match=fault):
        config(**settings)


def test_pipelines_may_share_an_output_topic() -> None:
    """Unlike a table or a directory: each has a state of its own."""
    pipelines = {
        name: {"source": {"topic": name}, "sink": {"type": "kafka", "topic": "out"}} for name in ("a", "b")
    }
    assert len(Config.model_validate({"pipelines": pipelines}).pipelines) == 2
