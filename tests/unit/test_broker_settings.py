"""What Kafka is told: loopback only, and text that Java reads back as it was meant."""

from __future__ import annotations

import re
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from connectors.kafka.broker import settings


def _java_reads(text: str) -> dict[str, str]:
    """An independent reading of `java.util.Properties.load`, for lines without continuation."""
    found = {}
    for line in text.split("\n"):
        stripped = line.lstrip(" \t\f")
        if not stripped or stripped[0] in "#!":
            continue
        match = re.match(r"((?:\\.|[^\\=: \t\f])*)[ \t\f]*[=:]?[ \t\f]*(.*)$", stripped, re.DOTALL)
        assert match is not None
        found[_unescaped(match[1])] = _unescaped(match[2])
    return found


def _unescaped(text: str) -> str:
    letters = {"n": "\n", "r": "\r", "t": "\t", "f": "\f"}
    units = bytearray()
    at = 0
    while at < len(text):
        character = text[at]
        at += 1
        if character == "\\":
            character = text[at]
            at += 1
            if character == "u":
                units += int(text[at : at + 4], 16).to_bytes(2, "big")
                at += 4
                continue
            character = letters.get(character, character)
        units += character.encode("utf-16-be")
    return units.decode("utf-16-be")


@given(st.dictionaries(st.text(min_size=1), st.text(), max_size=5))
def test_properties_text_is_read_back_as_it_was(properties: dict[str, str]) -> None:
    """Any key and value, blanks, hashes, backslashes and far characters included, survives the file."""
    text = settings.properties_text(properties)
    text.encode("ascii")
    assert _java_reads(text) == properties


def test_every_listener_is_on_loopback() -> None:
    """No listener, advertised or not, is reachable from another machine."""
    made = settings.server_properties(
        log_dir=Path("/data"), port=9092, controller_ports={1: 9093}, listeners={"TLS": ("SSL", 9094)}
    )
    assert made["listeners"] == "PLAINTEXT://127.0.0.1:9092,TLS://127.0.0.1:9094,CONTROLLER://127.0.0.1:9093"
    assert made["advertised.listeners"] == "PLAINTEXT://127.0.0.1:9092,TLS://127.0.0.1:9094"
    assert made["listener.security.protocol.map"] == "PLAINTEXT:PLAINTEXT,TLS:SSL,CONTROLLER:PLAINTEXT"
    assert made["controller.quorum.voters"] == "1@127.0.0.1:9093"


def test_a_cluster_survives_any_one_node() -> None:
    """Everything has three replicas, two of which must take a record; readers are led to their rack."""
    ports = {1: 9001, 2: 9002, 3: 9003}
    made = [
        settings.server_properties(log_dir=Path("/data"), node=node, port=node, controller_ports=ports)
        for node in ports
    ]
    assert [each["broker.rack"] for each in made] == ["rack-1", "rack-2", "rack-3"]
    assert [each["node.id"] for each in made] == ["1", "2", "3"]
    assert {each["controller.quorum.voters"] for each in made} == {
        "1@127.0.0.1:9001,2@127.0.0.1:9002,3@127.0.0.1:9003"
    }
    assert made[1]["listeners"] == "PLAINTEXT://127.0.0.1:2,CONTROLLER://127.0.0.1:9002"
    replicas = {key: value for key, value in made[0].items() if key.endswith("replication.factor")}
    assert len(replicas) == 4
    assert set(replicas.values()) == {"3"}
    in_sync = {key: value for key, value in made[0].items() if key.endswith(("min.isr", "insync.replicas"))}
    assert len(in_sync) == 3
    assert set(in_sync.values()) == {"2"}
    assert made[0]["replica.selector.class"].endswith(".RackAwareReplicaSelector")


def test_a_single_node_is_no_cluster() -> None:
    """One node has neither rack nor replicas that wait for others."""
    made = settings.server_properties(log_dir=Path("/data"), port=1, controller_ports={1: 2})
    assert "broker.rack" not in made
    assert made["offsets.topic.replication.factor"] == "1"


def test_extra_properties_go_over_all_others() -> None:
    """A caller's property wins, even over the tuning."""
    made = settings.server_properties(
        log_dir=Path("/data"), port=1, controller_ports={1: 2}, extra={"log.retention.ms": "5", "own": "x"}
    )
    assert (made["log.retention.ms"], made["own"]) == ("5", "x")


def test_the_log_cannot_fill_the_disk() -> None:
    """Kafka's own log rolls at a size and keeps a few files."""
    made = settings.logging_properties(Path("/data/kafka.log"))
    assert made["appender.file.type"] == "RollingFile"
    assert made["appender.file.policies.size.size"] == "10MB"
    assert made["appender.file.strategy.max"] == "3"
