"""Runs one command, and ends it when the process that asked for it is gone.

A program of its own, started by file name with ``python -I -S``: it imports the standard library alone, so that it
is up in a few milliseconds and holds next to no memory. It is told what to watch and what to run:

    supervisor.py LIFELINE COMMAND...

``LIFELINE`` is the number of a file descriptor, the reading end of a pipe whose writing end only the parent holds.
End of file there means that the parent has ended, however it did. With ``-`` nothing is watched: the supervisor
starts the command and ends, and the command outlives both.

Three things are watched, because each alone has a hole. The pipe misses a parent whose forked child still holds
the writing end; the parent's process id misses nothing, but has to be asked for again and again; and if the
supervisor itself is killed, only the kernel can end the command (``PR_SET_PDEATHSIG``, Linux). That signal follows
the *thread* that started the command, which here is the only one there is.

The first line on standard output is the command's process id. The exit code is the command's own, or 128 and the
signal that ended it.
"""

import contextlib
import ctypes
import os
import select
import signal
import sys

POLL_SECONDS = 0.2
TERM_SECONDS_MAX = 1.0
"""How long the command may take to end in order. With the polls around it, all is over within two seconds."""

PR_SET_PDEATHSIG = 1


def main(arguments: list[str]) -> int:
    """Run the command to its end, or to the parent's."""
    lifeline = None if arguments[0] == "-" else int(arguments[0])
    parent = os.getppid()
    child = _start(arguments[1:], lifeline)
    os.write(1, f"{child}\n".encode())
    os.dup2(2, 1)  # lets go of the pipe: its reader sees the end
    if lifeline is None:
        return 0
    # From here a polite end goes on to the command; the supervisor ends after it.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: _signal(child, signal.SIGTERM))
    status = _wait_for_end(child, lifeline, parent)
    return 128 + os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


def _start(command: list[str], lifeline: int | None) -> int:
    supervisor = os.getpid()
    child = os.fork()
    if child:
        return child
    os.dup2(2, 1)
    if lifeline is not None:
        os.close(lifeline)
    if lifeline is not None and sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != supervisor:  # it died between the fork and the request
            os._exit(1)
    try:
        os.execv(command[0], command)  # noqa: S606 - no shell is the point
    except OSError as error:
        os.write(2, f"{command[0]}: {error.strerror}\n".encode())
        os._exit(127)


def _wait_for_end(child: int, lifeline: int, parent: int) -> int:
    poller = select.poll()
    poller.register(lifeline, select.POLLIN | select.POLLHUP)
    orphan_polls = 0
    while True:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return status
        if orphan_polls == 0:
            closed = poller.poll(POLL_SECONDS * 1000)
            if not closed and os.getppid() == parent:
                continue
            _signal(child, signal.SIGTERM)
        else:
            select.select([], [], [], POLL_SECONDS)
        orphan_polls += 1
        if orphan_polls * POLL_SECONDS > TERM_SECONDS_MAX:
            _signal(child, signal.SIGKILL)


def _signal(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
