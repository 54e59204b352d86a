"""Ports on loopback, and one question to a broker: what is your cluster, and who is in it?

The question is a Kafka Metadata request, encoded and decoded by aiokafka's protocol classes but sent over a plain
blocking socket: readiness is asked before any client exists, from threads as well as from coroutines.
"""

from __future__ import annotations

import random
import socket
import struct
from dataclasses import dataclass
from io import BytesIO

from aiokafka.protocol.metadata import MetadataRequest_v2

from connectors.kafka.broker.settings import HOST
from engine.errors import BrokerUnavailable

CLIENT_ID = "headrace-probe"
RESPONSE_BYTES_MAX = 16 * 1024 * 1024
FREE_PORTS = range(20_000, 32_000)
"""Below the range that Linux and macOS take outgoing connections' ports from, so that none of those is in the way
between the choice of a port and the broker's use of it."""
FREE_PORT_TRIES_MAX = 100


@dataclass(frozen=True, slots=True)
class Answer:
    """What a broker says of its cluster: its id, and the node ids of the brokers that take part now."""

    cluster_id: str | None
    nodes: frozenset[int]


def cluster_id(port: int, *, timeout_seconds: float = 1.0) -> str | None:
    """The cluster id of the broker at 127.0.0.1:``port``, or None if nobody answers as a broker there."""
    found = ask(port, timeout_seconds=timeout_seconds)
    return None if found is None else found.cluster_id


def ask(port: int, *, timeout_seconds: float = 1.0) -> Answer | None:
    """What the broker at 127.0.0.1:``port`` says, or None if nobody answers as a broker there."""
    try:
        with socket.create_connection((HOST, port), timeout=timeout_seconds) as connection:
            # On loopback a connection to a free port can, rarely, meet itself.
            if connection.getsockname() == connection.getpeername():
                return None
            connection.settimeout(timeout_seconds)
            connection.sendall(_request())
            (size,) = struct.unpack(">i", _exactly(connection, 4))
            if not 4 < size <= RESPONSE_BYTES_MAX:
                return None
            answer = BytesIO(_exactly(connection, size))
    except (OSError, EOFError):
        return None
    answer.read(4)  # the correlation id; one request is one connection
    try:
        response = MetadataRequest_v2.RESPONSE_TYPE.decode(answer)
    except (ValueError, struct.error, UnicodeDecodeError):
        return None
    # Before the controller has a leader a broker answers, but knows of no broker, itself included.
    nodes = frozenset(broker[0] for broker in response.brokers)
    return Answer(response.cluster_id, nodes) if nodes else None


def _request() -> bytes:
    request = MetadataRequest_v2([])
    header = request.build_request_header(correlation_id=1, client_id=CLIENT_ID)
    body = header.encode() + request.encode()
    return struct.pack(">i", len(body)) + bytes(body)


def _exactly(connection: socket.socket, size: int) -> bytes:
    parts = bytearray()
    while len(parts) < size:
        part = connection.recv(min(65_536, size - len(parts)))
        if not part:
            raise EOFError
        parts += part
    return bytes(parts)


def is_free(port: int) -> bool:
    """Whether a server could listen on 127.0.0.1:``port`` now."""
    with socket.socket() as candidate:
        # As Java does: ports of connections that have just ended do not count.
        candidate.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            candidate.bind((HOST, port))
            candidate.listen(1)
        except OSError:
            return False
        return True


def free_ports(count: int) -> list[int]:
    """That many different ports that nobody listens on."""
    chosen: set[int] = set()
    for _ in range(FREE_PORT_TRIES_MAX * count):
        if len(chosen) == count:
            break
        port = random.choice(FREE_PORTS)  # noqa: S311 - chance only, so that two starts at once try different ones
        if is_free(port):
            chosen.add(port)
    else:
        raise BrokerUnavailable(f"no free port found on {HOST} in {FREE_PORTS.start} to {FREE_PORTS.stop - 1}")
    return list(chosen)
