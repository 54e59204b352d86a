"""Starts that are refused before any Java runs: one clear line each."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from connectors.kafka.broker import Broker, record
from connectors.kafka.broker.disk import FREE_MEGABYTES_MIN
from connectors.kafka.broker.settings import HOST
from engine.errors import ExternalError, HeadraceError, UserError


def _refusal(broker: Broker) -> HeadraceError:
    with pytest.raises(HeadraceError) as raised:
        broker.start()
    assert "\n" not in raised.value.message
    assert broker.pid is None
    assert not record.is_alive(broker.data)
    return raised.value


@pytest.mark.parametrize("port", [-1, 65_536])
def test_a_port_out_of_range_is_the_callers_fault(tmp_path: Path, port: int) -> None:
    """The value and what is valid are named."""
    with pytest.raises(UserError, match=f"port is {port}; valid are 1 to 65535"):
        Broker(tmp_path, port=port)


def test_a_heap_too_small_is_the_callers_fault(tmp_path: Path) -> None:
    """The value and the least one are named."""
    with pytest.raises(UserError, match="heap is 16 MB; Kafka needs 192 MB"):
        Broker(tmp_path, heap_megabytes=16)


@pytest.mark.parametrize("nodes", [0, 2, 4])
def test_a_number_of_nodes_that_makes_no_cluster(tmp_path: Path, nodes: int) -> None:
    """The value and what is valid are named."""
    with pytest.raises(UserError, match=f"nodes is {nodes}; valid are 1 and 3"):
        Broker(tmp_path, nodes=nodes)


def test_the_last_of_three_ports_is_one(tmp_path: Path) -> None:
    """Three nodes take three ports in a row, all of which there have to be."""
    with pytest.raises(UserError, match="port is 65534; valid are 1 to 65533"):
        Broker(tmp_path, nodes=3, port=65_534)


@pytest.mark.parametrize(("made", "nodes"), [("kafka", 3), ("node-2", 1)])
def test_a_directory_of_another_number_of_nodes(tmp_path: Path, made: str, nodes: int) -> None:
    """Both numbers and the way out are named, and nothing is changed."""
    (tmp_path / made).mkdir()
    refused = _refusal(Broker(tmp_path, nodes=nodes, port=0))
    one, three = ("1 node", "3 nodes") if nodes == 3 else ("3 nodes", "1 node")
    assert refused.message == f"{tmp_path} was made with {one}, and cannot be used with {three}"
    assert "--nodes" in (refused.hint or "")
    assert isinstance(refused, UserError)
    assert sorted(each.name for each in tmp_path.iterdir()) == sorted([made, "lock"])


def test_the_second_nodes_port_is_looked_at_too(tmp_path: Path) -> None:
    """Whoever listens on a later port is found before any Java runs."""
    with socket.create_server((HOST, 0)) as listener:
        port = listener.getsockname()[1]
        refused = _refusal(Broker(tmp_path, nodes=3, port=port - 1))
    assert f"port {port} on 127.0.0.1 is taken" in refused.message


def test_a_taken_port_is_found_before_java_starts(tmp_path: Path) -> None:
    """The port is named, and no Java was started: there is no configuration for one yet."""
    with socket.create_server((HOST, 0)) as listener:
        port = listener.getsockname()[1]
        refused = _refusal(Broker(tmp_path, port=port))
    assert refused.message == f"port {port} on 127.0.0.1 is taken by another program"
    assert isinstance(refused, ExternalError)
    assert not (tmp_path / "server.properties").exists()


def test_a_disk_without_room_is_found_before_java_starts(tmp_path: Path) -> None:
    """What is left and what is needed are named."""
    asked: list[Path] = []

    def free(directory: Path) -> int:
        asked.append(directory)
        return 3 * 1024**2

    refused = _refusal(Broker(tmp_path, port=0, free=free))
    assert asked == [tmp_path]
    assert refused.message == (
        f"the disk that holds {tmp_path} is full: the broker needs {FREE_MEGABYTES_MIN} MB, 3 MB are left"
    )


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_disk_that_fills_up_while_writing_is_one_line(tmp_path: Path, jars_at_hand: Path) -> None:
    """A real ENOSPC, from a settings file that lies on a full device."""
    (tmp_path / "server.properties").symlink_to("/dev/full")
    refused = _refusal(Broker(tmp_path, port=0, jars_directory=jars_at_hand))
    assert f"the disk that holds {tmp_path} is full" in refused.message


@pytest.fixture
def jars_at_hand(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A list of no jars: what is tested comes before they are used."""
    from connectors.kafka.broker import jars

    monkeypatch.setattr(jars, "pins", lambda: jars.Pins("4.1.2", ()))
    return tmp_path_factory.mktemp("jars")


def test_a_directory_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    """A data directory below a file is named, with the system's reason."""
    (tmp_path / "file").write_text("in the way")
    refused = _refusal(Broker(tmp_path / "file" / "data", port=0))
    assert str(tmp_path / "file") in refused.message
    assert "cannot be written" in refused.message


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_directory_without_permission_is_one_line(tmp_path: Path) -> None:
    """A directory of somebody else is named."""
    tmp_path.chmod(0o500)
    refused = _refusal(Broker(tmp_path, port=0))
    assert f"{tmp_path}/lock cannot be written: Permission denied" in refused.message
