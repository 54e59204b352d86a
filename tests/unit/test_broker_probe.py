"""Ports, and telling a broker from anything else that listens."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from connectors.kafka.broker import probe
from connectors.kafka.broker.settings import HOST


@contextmanager
def _server(answer: bytes) -> Iterator[int]:
    """A server that takes one connection, reads a little, answers and closes."""
    with socket.create_server((HOST, 0)) as listener:
        listener.settimeout(5)

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(1024)
                connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        yield listener.getsockname()[1]
        thread.join()


def _metadata(brokers: int, cluster: bytes) -> bytes:
    """A Metadata response of version 2, written out by hand from Kafka's protocol page."""
    one = struct.pack(">ih", 1, 9) + b"127.0.0.1" + struct.pack(">ih", 9092, -1)
    body = struct.pack(">ii", 1, brokers) + one * brokers
    body += struct.pack(">h", len(cluster)) + cluster + struct.pack(">ii", 1, 0)
    return struct.pack(">i", len(body)) + body


def test_a_broker_gives_its_cluster_id() -> None:
    """The id is read from a real response's bytes."""
    with _server(_metadata(1, b"the-cluster")) as port:
        assert probe.cluster_id(port) == "the-cluster"


def test_a_broker_says_who_takes_part() -> None:
    """The node ids are read from a real response's bytes."""
    with _server(_metadata(1, b"c")) as port:
        assert probe.ask(port) == probe.Answer("c", frozenset({1}))


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        struct.pack(">i", 20) + b"half",
        struct.pack(">i", -5),
        struct.pack(">i", 8) + b"\xff" * 8,
        _metadata(0, b"without-a-leader"),
    ],
    ids=["closes", "http", "half", "negative", "rubbish", "no brokers yet"],
)
def test_what_is_no_ready_broker_gives_none(answer: bytes) -> None:
    """Another program, a broken answer, or a broker without a controller is not ready, and no error."""
    with _server(answer) as port:
        assert probe.cluster_id(port) is None


def test_nobody_gives_none() -> None:
    """A port without a listener is not ready."""
    (port,) = probe.free_ports(1)
    assert probe.cluster_id(port) is None


def test_a_port_is_free_until_somebody_listens() -> None:
    """A listener on the same address, or on all addresses, takes the port."""
    for address in (HOST, ""):
        with socket.create_server((address, 0)) as listener:
            port = listener.getsockname()[1]
            assert not probe.is_free(port)
        assert probe.is_free(port)


def test_free_ports_are_different_and_free() -> None:
    """As many as asked for, none twice."""
    ports = probe.free_ports(20)
    assert len(set(ports)) == 20
    assert all(probe.is_free(port) and port in probe.FREE_PORTS for port in ports)
