"""Who is at the other end of a connection, asked of this machine's kernel."""

from __future__ import annotations

import os
import socket

import pytest

from functions.environments import peers


@pytest.mark.parametrize("way", ["_by_netlink", "_by_table"])
def test_the_other_end_of_a_connection_is_found(way: str) -> None:
    """Both ways of asking the kernel give user and inode of the peer's socket, and nothing once it is gone."""
    find = getattr(peers, way)
    with socket.create_server(("127.0.0.1", 0)) as server:
        with socket.create_connection(server.getsockname()) as ours:
            accepted, _ = server.accept()
            inode = os.fstat(ours.fileno()).st_ino
            assert find(ours.getsockname(), server.getsockname()) == (os.geteuid(), inode)
            assert peers.peer_inode(ours.getsockname(), server.getsockname()) == inode
            assert peers.holds(os.getpid(), inode)
            assert peers.session_holds(os.getsid(0), inode)
            assert not peers.holds(os.getppid(), inode)
            assert not peers.session_holds(-1, inode)
            peer = ours.getsockname()
        accepted.close()
        assert peers.peer_inode(peer, server.getsockname()) == 0


def test_where_netlink_is_missing_the_table_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some containers have no sock_diag."""
    monkeypatch.setattr(peers, "_by_netlink", lambda peer, own: None)
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as ours:
        assert peers.peer_inode(ours.getsockname(), server.getsockname()) == os.fstat(ours.fileno()).st_ino
