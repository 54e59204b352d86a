"""compose.yaml and the Dockerfile against what they must agree with. Static checks: no container is started."""

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from connectors.kafka.broker.settings import HEAP_MEGABYTES_DEFAULT, PORT_DEFAULT, TUNING
from engine.config_file import parse

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]
    return loaded


def test_kafka_runs_with_the_embedded_brokers_settings(services: dict[str, Any]) -> None:
    """Every tuned setting of the embedded broker is set for the container, to the same value, and no other is."""
    environment = services["kafka"]["environment"]
    named = {"KAFKA_" + key.upper().replace(".", "_"): value for key, value in TUNING.items()}
    wiring = {name for name in environment if re.search("LISTENER|PROCESS_ROLES|NODE_ID|QUORUM|HEAP", name)}
    assert {key: value for key, value in environment.items() if key not in wiring} == named
    assert f"-Xmx{HEAP_MEGABYTES_DEFAULT}m" in environment["KAFKA_HEAP_OPTS"]


def test_kafka_is_the_same_version(services: dict[str, Any]) -> None:
    """The image's tag is the version whose jars are pinned."""
    pinned = json.loads((ROOT / "connectors/kafka/broker/jars.json").read_text())["kafka"]
    assert {services[name]["image"] for name in ("kafka", "topics")} == {f"apache/kafka:{pinned}"}


def test_kafka_is_reached_on_the_default_port_of_this_machine_only(services: dict[str, Any]) -> None:
    """The published port is the embedded broker's default, bound to loopback."""
    assert services["kafka"]["ports"] == [f"127.0.0.1:{PORT_DEFAULT}:{PORT_DEFAULT}"]


def test_topics_are_those_of_the_demo(services: dict[str, Any]) -> None:
    """The topics made for the container are those that the demo's pipelines read."""
    demo = parse(tomllib.loads((ROOT / "engine/demo/headrace.toml").read_text()))
    script = services["topics"]["command"][0]
    made = re.search(r"for topic in ([^;]+);", script)
    assert made is not None
    assert set(made[1].split()) == {pipeline.source.topic for pipeline in demo.pipelines.values()}


def test_dockerfile_installs_from_the_lock_with_hashes() -> None:
    """The image installs the locked versions, checked by hash, and copies every package of the distribution."""
    text = (ROOT / "Dockerfile").read_text()
    assert "--require-hashes -r requirements.lock" in text
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]["find"][
        "include"
    ]
    for package in packages:
        name = package.rstrip("*")
        assert f"COPY {name} {name}\n" in text
