"""Ends the process groups of all environments when the engine is gone, however it went.

A program of its own, one for each engine, started by file name with ``python -I -S``: it imports next to nothing,
so that it is up in milliseconds and small. Not here: the end of one environment while the engine lives (`process`).

    warden.py ENGINE MARK

``ENGINE`` is the engine's process id. Standard input is a pipe whose writing end only the engine holds; on it
come lines, ``+123`` for a process group that now exists and ``-123`` for one that is about to be collected. When
the pipe ends, or the parent is no longer the engine (a forked child of it may hold the pipe open), every group that
is left is killed, and then every process whose variable `VARIABLE` begins with ``MARK``, in whatever session it is.
The kernel's own signal to the death of a parent does not reach what a handler has forked; this does.
"""

import contextlib
import os
import select
import signal
import sys

POLL_SECONDS = 0.2
LINES_BYTES_MAX = 65_536


#: The variable that marks all processes of an environment; what a handler starts inherits it.
VARIABLE = "HEADRACE_ENVIRONMENT"

#: A process that is forked while the others are being killed is found in the next round.
ROUNDS_MAX = 5


def main(engine: int, mark: str) -> int:
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
    end_marked(mark)
    return 0


def end_marked(mark: str) -> None:
    """Kill every process whose mark begins so; one that was started with other variables is not found."""
    wanted = f"\0{VARIABLE}={mark}".encode()
    for _ in range(ROUNDS_MAX):
        found = [int(name) for name in _names("/proc") if name.isdigit() and _is_marked(name, wanted)]
        if not found:
            return
        for pid in found:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)


def _names(directory: str) -> list[str]:
    try:
        return os.listdir(directory)  # noqa: PTH208  # this program is small because it imports little
    except OSError:
        return []


def _is_marked(pid: str, wanted: bytes) -> bool:
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:  # noqa: PTH123
            return wanted in b"\0" + file.read()
    except OSError:  # ended meanwhile, or another user's
        return False


def _note(groups: set[int], line: bytes) -> None:
    sign, digits = line[:1], line[1:]
    if not digits.isdigit() or int(digits) <= 1:
        return
    if sign == b"+":
        groups.add(int(digits))
    elif sign == b"-":
        groups.discard(int(digits))


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2]))
