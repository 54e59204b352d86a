"""Where nodes lie, who holds a directory, and which number of nodes it was made with."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from connectors.kafka.broker import layout, record
from connectors.kafka.broker.record import BrokerRunning, Record
from engine.errors import UserError


def test_one_node_is_the_directory_itself(tmp_path: Path) -> None:
    """Directories made before there were clusters stay what they are."""
    assert layout.directories(tmp_path, 1) == {1: tmp_path}
    assert layout.existing(tmp_path) == {1: tmp_path}
    (tmp_path / "kafka").mkdir()
    assert layout.nodes_made(tmp_path) == 1
    layout.check(tmp_path, 1)


def test_each_of_three_nodes_has_a_directory(tmp_path: Path) -> None:
    """As soon as one of them is there, the directory is a cluster's."""
    assert layout.nodes_made(tmp_path) is None
    with layout.locked(tmp_path, 3) as locks:
        assert sorted(locks) == [1, 2, 3]
        assert layout.is_alive(tmp_path)
    assert layout.existing(tmp_path) == {node: tmp_path / f"node-{node}" for node in (1, 2, 3)}
    assert not layout.is_alive(tmp_path)
    with pytest.raises(UserError, match="was made with 3 nodes, and cannot be used with 1 node"):
        layout.check(tmp_path, 1)


def test_a_node_that_lives_holds_the_directory(tmp_path: Path) -> None:
    """After the start its own lock alone is left, and a second start is told of all that live."""
    with layout.locked(tmp_path, 3) as locks:
        kept = os.dup(locks[2])
    record.write(tmp_path / "node-2", Record(4711, "then", "127.0.0.1:9093", "4.1.2", True))
    record.write(tmp_path / "node-3", Record(4712, "then", "127.0.0.1:9094", "4.1.2", True))
    assert layout.is_alive(tmp_path)
    assert list(layout.records(tmp_path)) == [2]
    with (
        pytest.raises(BrokerRunning, match=r"in use by the broker at 127\.0\.0\.1:9093, process 4711") as raised,
        layout.locked(tmp_path, 3),
    ):
        pass
    assert raised.value.background
    os.close(kept)
    assert not layout.is_alive(tmp_path)
    with layout.locked(tmp_path, 3):
        pass


def test_all_stale_records_go_at_once(tmp_path: Path) -> None:
    """Stopping a cluster that is gone ends nobody, and leaves no record behind."""
    with layout.locked(tmp_path, 3):
        pass
    for node, directory in layout.existing(tmp_path).items():
        record.write(directory, Record(node, "x", "", "", False))
    assert layout.stop(tmp_path) == []
    assert layout.records(tmp_path) == {}
    assert all(record.read(each) is None for each in layout.existing(tmp_path).values())
