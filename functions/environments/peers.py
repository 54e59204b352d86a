"""Which process is at the other end of a loopback connection, as Linux tells it.

The Runtime API knows no token: whoever finds the port could take events and answer for the function. So the socket
at the other end is looked up (by netlink's sock_diag in some 15 microseconds, else in /proc/net/tcp in
milliseconds) and then searched for among the open files of the environment's processes. Not here: what is served.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

_SOCK_DIAG_BY_FAMILY = 20
_NLM_F_REQUEST = 1
_ANSWER_BYTES_MAX = 8192
_MESSAGE = struct.Struct("=IHHII")  # nlmsghdr: bytes, type, flags, sequence, port
_REQUEST = struct.Struct("=BBBBI")  # inet_diag_req_v2: family, protocol, extensions, padding, states
_PORTS = struct.Struct("!HH")
_COUNTERS = struct.Struct("=IIIII")  # expires, receive queue, send queue, uid, inode
_PORTS_AT = _MESSAGE.size + 4
_COUNTERS_AT = _PORTS_AT + 48  # behind the socket's identity: ports, addresses, interface, cookie

Address = tuple[str, int]


class UnknownPeer(Exception):
    """The kernel does not say who is there: no netlink and no /proc."""


def peer_inode(peer: Address, own: Address) -> int:
    """The inode of the socket whose connection goes from ``peer`` to ``own``; 0 when it is gone or of another user.

    Raises UnknownPeer where the kernel does not tell.
    """
    found = _by_netlink(peer, own)
    if found is None:
        found = _by_table(peer, own)
    uid, inode = found
    return inode if uid == os.geteuid() else 0


def _by_netlink(peer: Address, own: Address) -> tuple[int, int] | None:
    """``(uid, inode)``; ``(-1, 0)`` for none such; None where sock_diag cannot be had."""
    addresses = socket.inet_aton(peer[0]) + bytes(12) + socket.inet_aton(own[0]) + bytes(12)
    identity = _PORTS.pack(peer[1], own[1]) + addresses + struct.pack("=III", 0, 0xFFFFFFFF, 0xFFFFFFFF)
    body = _REQUEST.pack(socket.AF_INET, socket.IPPROTO_TCP, 0, 0, 0xFFFFFFFF) + identity
    head = _MESSAGE.pack(_MESSAGE.size + len(body), _SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST, 1, 0)
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, 4) as netlink:
            netlink.send(head + body)
            answer = netlink.recv(_ANSWER_BYTES_MAX)  # the kernel answers within send
    except (OSError, AttributeError):
        return None
    if len(answer) < _COUNTERS_AT + _COUNTERS.size:
        return None
    if _MESSAGE.unpack_from(answer)[1] != _SOCK_DIAG_BY_FAMILY:
        return None  # an error: no such socket, or no such module
    if _PORTS.unpack_from(answer, _PORTS_AT) != (peer[1], own[1]):
        return -1, 0  # a listener on the same port
    *_, uid, inode = _COUNTERS.unpack_from(answer, _COUNTERS_AT)
    return uid, inode


def _by_table(peer: Address, own: Address) -> tuple[int, int]:
    wanted = [_as_in_table(peer), _as_in_table(own)]
    try:
        with Path("/proc/net/tcp").open(encoding="ascii") as lines:
            next(lines)
            for line in lines:
                fields = line.split()
                if fields[1:3] == wanted:
                    return int(fields[7]), int(fields[9])
    except (OSError, ValueError, IndexError, StopIteration) as error:
        raise UnknownPeer(str(error)) from error
    return -1, 0


def _as_in_table(address: Address) -> str:
    (number,) = struct.unpack("=I", socket.inet_aton(address[0]))
    return f"{number:08X}:{address[1]:04X}"


def holds(pid: int, inode: int) -> bool:
    """Whether process ``pid`` has the socket ``inode`` open."""
    wanted = f"socket:[{inode}]"
    with contextlib.suppress(OSError):  # the process ended, or does not let itself be read
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):  # closed meanwhile
                if str(entry.readlink()) == wanted:
                    return True
    return False


def session_holds(session: int, inode: int) -> bool:
    """Whether any process of ``session`` has the socket open. Reads all of /proc: for a thread."""
    return any(holds(pid, inode) for pid in processes_of(session))


def processes_of(session: int) -> Iterator[int]:
    """The processes of a session, its leader among them."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):  # ended meanwhile
                if os.getsid(int(entry.name)) == session:
                    yield int(entry.name)
