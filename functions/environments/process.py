"""One process of an environment, seen from the engine: its start, its output, its memory, its end.

A process runs in a session and group of its own, so that a terminal's signals do not reach it and all that it
forks ends with it. Processes are started by one thread that lives as long as the engine: the kernel's signal at a
parent's death follows the thread that started the child. Each group is told to the `warden`, which ends it when the
engine can no longer do so. Not here: what is said to the process (`python`) and how many there are (`pool`).
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import functools
import logging
import math
import os
import queue
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from functions.environments.contract import LogSink
from functions.environments.warden import VARIABLE, end_marked

log = logging.getLogger("headrace.functions")

_OUTPUT_READ_BYTES = 64 * 1024
#: What a pipe can hold by default: so much may have been printed before an answer came.
_PIPE_BYTES = 64 * 1024
#: What is still read of the output of a process that has ended, while others may write on.
_LAST_OUTPUT_BYTES_MAX = 1024 * 1024
#: A killed process is gone within milliseconds, unless the kernel is stuck in its name.
_END_SECONDS_MAX = 5.0
#: Between two looks at descendants, which take a hundredth of the time where they are not few.
_LOOK_SECONDS_MIN = 0.05
_LOOK_SECONDS_MAX = 1.0
_PROCESSES_MAX = 1024  #: looked at for one environment's memory (AWS allows it as many)


class Warden:
    """The engine's side of the program `warden`. Started with the first process, and anew should it have died.

    Called from the spawner's thread and from event loops.
    """

    def __init__(self, mark: str) -> None:
        self._mark = mark
        self._groups: set[int] = set()
        self._program: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    def watch(self, group: int) -> None:
        """From now on ``group`` ends with the engine. Raises OSError where there can be no warden."""
        with self._lock:
            self._groups.add(group)
            try:
                self._tell(b"+%d\n" % group)
            except OSError:
                self._groups.discard(group)
                raise

    def forget(self, group: int) -> None:
        """``group`` has been killed and is about to be collected: its number may become another's."""
        with self._lock:
            self._groups.discard(group)
            if self._program is not None and self._program.stdin is not None:
                with contextlib.suppress(OSError):  # it has died: the next `watch` starts another
                    os.write(self._program.stdin.fileno(), b"-%d\n" % group)

    @property
    def pid(self) -> int | None:
        return None if self._program is None else self._program.pid

    def close(self) -> None:
        """End it, and all that it watches."""
        with self._lock:
            self._stop()
            self._groups.clear()

    def _tell(self, line: bytes) -> None:
        if self._program is not None:
            assert self._program.stdin is not None
            try:
                os.write(self._program.stdin.fileno(), line)
                return
            except OSError:  # it has died, or is stuck
                self._program.kill()
                self._stop()
        command = [
            sys.executable,
            "-I",
            "-S",
            str(Path(__file__).with_name("warden.py")),
            str(os.getpid()),
            self._mark,
        ]
        self._program = subprocess.Popen(  # noqa: S603  # our own program
            command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, bufsize=0, start_new_session=True, cwd="/"
        )
        assert self._program.stdin is not None
        os.write(self._program.stdin.fileno(), b"".join(b"+%d\n" % group for group in self._groups))
        os.set_blocking(self._program.stdin.fileno(), False)

    def _stop(self) -> None:
        program, self._program = self._program, None
        if program is not None:
            assert program.stdin is not None
            program.stdin.close()
            try:
                program.wait(_END_SECONDS_MAX)
            except subprocess.TimeoutExpired:
                program.kill()
                program.wait()


class Spawner:
    """Starts processes, one at a time, from a thread of its own. There is one for each engine: `spawner`."""

    def __init__(self) -> None:
        self._mark = uuid.uuid4().hex
        self._started = 0
        self.warden = Warden(self._mark)
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def close(self) -> None:
        """End the thread, and with it every process that it has started."""
        if self._thread is not None:
            self._jobs.put(None)
            self._thread.join()
            self._thread = None
        self.warden.close()

    async def start(
        self,
        command: Sequence[str],
        *,
        root: Path,
        variables: Mapping[str, str],
        log: LogSink,
        inherited: Sequence[int] = (),
    ) -> Process:
        """A started process. ``inherited`` are file descriptors that become its own; they are closed here.

        Raises OSError when it cannot be started. One whose start is cancelled does not stay.
        """
        loop = asyncio.get_running_loop()
        started: asyncio.Future[subprocess.Popen[bytes]] = loop.create_future()
        self._started += 1
        mark = f"{self._mark}-{self._started}."
        ours = -1
        try:
            ours, theirs = os.pipe()
        except OSError:
            for descriptor in inherited:
                os.close(descriptor)
            raise
        os.set_blocking(ours, False)

        def spawn() -> None:
            try:
                child = subprocess.Popen(  # noqa: S603  # the user's own
                    list(command),
                    stdin=subprocess.DEVNULL,
                    stdout=theirs,
                    stderr=theirs,
                    pass_fds=inherited,
                    cwd=root,
                    env={**variables, VARIABLE: mark},
                    start_new_session=True,
                )
                try:
                    self.warden.watch(child.pid)
                except BaseException:
                    _end(child)
                    raise
            except Exception as error:
                failed = error
                deliver = functools.partial(_fail, started, failed)
                child_or_none = None
            else:
                deliver = functools.partial(_succeed, started, child, self._discard)
                child_or_none = child
            finally:
                for descriptor in (theirs, *inherited):
                    os.close(descriptor)
            try:
                loop.call_soon_threadsafe(deliver)
            except RuntimeError:  # the loop is closed: nobody wants it any more
                if child_or_none is not None:
                    self.warden.forget(child_or_none.pid)
                    _end(child_or_none)

        self._put(spawn)
        try:
            child = await started
        except BaseException:
            os.close(ours)
            raise
        return Process(child, ours, log, self.warden, mark)

    def _put(self, job: Callable[[], None]) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="headrace-spawner", daemon=True)
            self._thread.start()
        self._jobs.put(job)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()

    def _discard(self, child: subprocess.Popen[bytes]) -> None:
        def end() -> None:
            self.warden.forget(child.pid)
            _end(child)

        self._put(end)


def _succeed(
    started: asyncio.Future[subprocess.Popen[bytes]],
    child: subprocess.Popen[bytes],
    discard: Callable[[subprocess.Popen[bytes]], None],
) -> None:
    if started.done():  # cancelled meanwhile
        discard(child)
    else:
        started.set_result(child)


def _fail(started: asyncio.Future[subprocess.Popen[bytes]], error: Exception) -> None:
    if not started.done():
        started.set_exception(error)


def _end(child: subprocess.Popen[bytes]) -> None:
    """Kill and collect a process that nobody has heard of. Takes milliseconds."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


@functools.cache
def spawner() -> Spawner:
    """The engine's spawner. Its warden ends with the engine."""
    made = Spawner()
    atexit.register(made.close)
    return made


class Process:
    """A running process and its group. Belongs to the event loop that it was started on."""

    def __init__(
        self, child: subprocess.Popen[bytes], output: int, log: LogSink, warden: Warden, mark: str
    ) -> None:
        self._child = child
        self._mark = mark
        self._output = output
        self._log = log
        self._warden = warden
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(output, self.read_output)
        #: The exit code, or minus the signal that ended it; set when it is collected, and its strays are gone.
        self.ended: asyncio.Future[int] = self._loop.create_future()
        self._descendants_bytes = 0
        self._descendants_due = -math.inf
        self._memory_file = -1
        with contextlib.suppress(OSError):
            self._memory_file = os.open(f"/proc/{child.pid}/statm", os.O_RDONLY)
        self._end_watch = -1
        if hasattr(os, "pidfd_open"):
            self._end_watch = os.pidfd_open(child.pid)
            self._loop.add_reader(self._end_watch, self._collect)
        else:
            threading.Thread(target=self._wait_for_end, daemon=True).start()

    @property
    def pid(self) -> int:
        return self._child.pid

    @property
    def is_alive(self) -> bool:
        return not self.ended.done()

    def read_output(self) -> None:
        """Hand on what the process has printed, as much as its pipe holds."""
        taken = 0
        while self._output >= 0 and taken < _PIPE_BYTES:
            try:
                data = os.read(self._output, _OUTPUT_READ_BYTES)
            except BlockingIOError:
                return
            if not data:
                self._close_output()
                return
            taken += len(data)
            self._log.write(data)

    def _close_output(self) -> None:
        if self._output >= 0:
            self._loop.remove_reader(self._output)
            os.close(self._output)
            self._output = -1

    def _wait_for_end(self) -> None:
        with contextlib.suppress(ChildProcessError):
            os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._collect)

    def _collect(self) -> None:
        """The process has ended: end its group while its number is still its own, then let go of it."""
        if self._end_watch >= 0:
            self._loop.remove_reader(self._end_watch)
            os.close(self._end_watch)
        if self._memory_file >= 0:
            os.close(self._memory_file)
            self._memory_file = -1
        self._kill_group()
        self._warden.forget(self.pid)
        status = self._child.wait()  # it has ended, so this is at once
        for _ in range(_LAST_OUTPUT_BYTES_MAX // _PIPE_BYTES):
            self.read_output()
        self._close_output()
        # What has left the group and lost its parents is still known by its mark; looking takes milliseconds.
        threading.Thread(target=self._end_strays, args=(status,), name="headrace-strays", daemon=True).start()

    def _end_strays(self, status: int) -> None:
        end_marked(self._mark)
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._set_ended, status)

    def _set_ended(self, status: int) -> None:
        if not self.ended.done():
            self.ended.set_result(status)

    def _kill_group(self) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)

    def end(self) -> None:
        """Kill the process, its group, and descendants that have left the group. Returns at once; see ``ended``."""
        if not self.is_alive:
            return
        strays = _descendants(self.pid)[1:]
        self._kill_group()
        for pid in strays:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)

    async def kill(self) -> None:
        """`end`, and wait until the process is collected. Idempotent; never raises."""
        self.end()
        await asyncio.wait((self.ended,), timeout=_END_SECONDS_MAX)
        if self.is_alive:
            log.error("process %d has been killed and does not end", self.pid)

    def memory_bytes(self) -> int:
        """Resident bytes of the process and its descendants; 0 where the system does not tell (no /proc).

        Descendants are looked for now and then: this is called after every invocation, and the process's own file
        costs two microseconds, while a handler may have forked hundreds.
        """
        if self._memory_file < 0:
            return 0
        now = time.monotonic()
        if now >= self._descendants_due:
            self._descendants_bytes = sum(map(_resident_bytes, _descendants(self.pid)[1:]))
            took = time.monotonic() - now
            self._descendants_due = now + min(max(_LOOK_SECONDS_MIN, 100 * took), _LOOK_SECONDS_MAX)
        return _resident(self._memory_file) + self._descendants_bytes


_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


def _resident(statm: int) -> int:
    """Bytes, as an open ``statm`` tells; 0 for a process that has ended."""
    try:
        return int(os.pread(statm, 128, 0).split()[1]) * _PAGE_BYTES
    except (OSError, IndexError, ValueError):
        return 0


def _resident_bytes(pid: int) -> int:
    try:
        statm = os.open(f"/proc/{pid}/statm", os.O_RDONLY)
    except OSError:
        return 0
    try:
        return _resident(statm)
    finally:
        os.close(statm)


def _descendants(pid: int) -> list[int]:
    """A process, its children and theirs, as far as they still have a parent among them."""
    found = [pid]
    for each in found:
        with contextlib.suppress(OSError, ValueError):  # ended meanwhile
            for thread in os.listdir(f"/proc/{each}/task"):  # noqa: PTH208  # three times as quick
                children = Path(f"/proc/{each}/task/{thread}/children").read_bytes()
                found += map(int, children.split())
        if len(found) > _PROCESSES_MAX:
            break
    return found
