"""Ends the process groups of all environments when the engine is gone, however it went.

A program of its own, one for each engine, started by file name with ``python -I -S``: it imports next to nothing,
so that it is up in milliseconds and small. Not here: the end of one environment while the engine lives (`process`).

    warden.py ENGINE

``ENGINE`` is the engine's process id. Standard input is a pipe whose writing end only the engine holds; on it come
lines, ``+123`` for a process group that now exists and ``-123`` for one that is about to be collected. When the
pipe ends, or the parent is no longer the engine (a forked child of it may hold the pipe open), every group that is
left is killed. The kernel's own signal at the death of a parent does not reach what a handler has forked.
"""

import contextlib
import os
import select
import signal
import sys

POLL_SECONDS = 0.2
LINES_BYTES_MAX = 65_536


def main(engine: int) -> int:
    """Watch until the engine is gone."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # it ends with the engine, not before
    groups: set[int] = set()
    rest = b""
    poller = select.poll()
    poller.register(0, select.POLLIN | select.POLLHUP)
    while True:
        if poller.poll(POLL_SECONDS * 1000):
            data = os.read(0, LINES_BYTES_MAX)
            if not data:
                break
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                _note(groups, line)
        elif os.getppid() != engine:
            break
    for group in groups:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(group, signal.SIGKILL)
    return 0


def _note(groups: set[int], line: bytes) -> None:
    sign, digits = line[:1], line[1:]
    if not digits.isdigit() or int(digits) <= 1:
        return
    if sign == b"+":
        groups.add(int(digits))
    elif sign == b"-":
        groups.discard(int(digits))


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
