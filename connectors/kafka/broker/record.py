"""Who runs on a data directory: a lock that the living hold, and a record of what they are.

The lock answers "is it alive", and cannot be stale: the kernel drops it with the last process that holds it,
which is the broker's Java or its supervisor. The record (``broker.json``) answers "which process, at which
address", and is believed only as far as the lock and the process's start time bear it out, since process ids come
round again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from engine.errors import BrokerUnavailable, ExternalError

LOCK = "lock"
RECORD = "broker.json"
POLL_SECONDS = 0.02
LOCK_SECONDS_MAX = 0.5
"""How long a start waits for the lock: those who merely ask hold it for a moment."""

STOP_SECONDS_MAX = 15.0
KILL_SECONDS_MAX = 5.0


@dataclass(frozen=True, slots=True)
class Record:
    """A broker started on a data directory. ``started`` tells its process from a later one of the same id."""

    pid: int
    started: str
    bootstrap: str
    kafka: str
    background: bool


class BrokerRunning(ExternalError):
    """The data directory belongs to a broker that lives; ``records`` is what is known of it, by node."""

    def __init__(self, data: Path, records: Sequence[Record] = ()) -> None:
        self.records = tuple(records)
        who = "another broker"
        if len(self.records) == 1:
            who = f"the broker at {self.records[0].bootstrap}, process {self.records[0].pid}"
        elif self.records:
            who = f"the brokers at {self.bootstrap}"
        super().__init__(
            f"{data} is in use by {who}",
            hint="use that one, end it with `headrace broker stop`, or choose another directory with --data",
        )

    @property
    def bootstrap(self) -> str:
        return ",".join(record.bootstrap for record in self.records)

    @property
    def background(self) -> bool:
        """Whether what runs is known to outlive the command that started it."""
        return bool(self.records) and all(record.background for record in self.records)


def take_lock(data: Path) -> int:
    """The descriptor of the lock, held until the last copy of it is closed. Raises `BrokerRunning`."""
    descriptor = os.open(data / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    deadline = time.monotonic() + LOCK_SECONDS_MAX
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                os.close(descriptor)
                known = read(data)
                raise BrokerRunning(data, [known] if known else []) from None
            time.sleep(POLL_SECONDS)
        except BaseException:
            os.close(descriptor)
            raise
        else:
            return descriptor


def is_alive(data: Path) -> bool:
    """Whether a broker, or the start of one, holds the data directory now."""
    try:
        descriptor = os.open(data / LOCK, os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def read(data: Path) -> Record | None:
    """The record, or None where there is none that can be read."""
    try:
        return Record(**json.loads((data / RECORD).read_bytes()))
    except (OSError, ValueError, TypeError):
        return None


def write(data: Path, record: Record) -> None:
    temporary = data / f"{RECORD}.new"
    temporary.write_text(json.dumps(dataclasses.asdict(record)), "utf-8")
    temporary.replace(data / RECORD)


def remove(data: Path, pid: int | None = None) -> None:
    """Forget the broker; with ``pid`` only if it still is that one."""
    record = read(data)
    if pid is None or (record is not None and record.pid == pid):
        (data / RECORD).unlink(missing_ok=True)


def start_time(pid: int) -> str:
    """When a process started, in the system's own form: equal for the same process, else different; "" for none."""
    try:
        # proc(5), counted behind the command's closing parenthesis, as the command may itself hold blanks.
        fields = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace").rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        if Path("/proc/self/stat").exists():
            return ""
        asked = ["ps", "-o", "lstart=", "-p", str(pid)]
        return subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip()  # noqa: S603
    state, threads, started = fields[0], int(fields[17]), fields[19]
    # Ended, and waiting for a parent that may never collect it: as good as gone once its last thread is.
    return "" if state == "Z" and threads <= 1 else started


def end(records: Iterable[Record], number: signal.Signals, *, seconds_max: float) -> list[Record]:
    """Signal the recorded processes, if they still are those, and wait; gives those that did not end in time."""
    left = [record for record in records if start_time(record.pid) == record.started]
    deadline = time.monotonic() + seconds_max
    for record in left:
        with contextlib.suppress(ProcessLookupError):
            os.kill(record.pid, number)
    while left := [record for record in left if start_time(record.pid) == record.started]:
        if time.monotonic() > deadline:
            break
        time.sleep(POLL_SECONDS)
    return left


def end_in_order(records: Iterable[Record]) -> list[Record]:
    """SIGTERM to all at once, and SIGKILL when that takes longer than `STOP_SECONDS_MAX`; those that live on."""
    left = end(records, signal.SIGTERM, seconds_max=STOP_SECONDS_MAX)
    return end(left, signal.SIGKILL, seconds_max=KILL_SECONDS_MAX)


def stop(directories: Iterable[Path]) -> list[Record]:
    """End the brokers of some directories, all at once: SIGTERM, and SIGKILL when that takes too long.

    Gives the records of those that ran; a stale record is removed either way. Raises
    `engine.errors.ExternalError`, before anything is ended, when the process that holds a directory is not the
    recorded one, and `engine.errors.BrokerUnavailable` when one outlives even SIGKILL.
    """
    running: dict[Path, Record] = {}
    for data in directories:
        record = read(data)
        if not is_alive(data):
            remove(data)
        elif record is not None and start_time(record.pid) == record.started:
            running[data] = record
        elif _free_within(data, LOCK_SECONDS_MAX):  # it was just ending
            remove(data)
        else:
            raise ExternalError(
                f"{data} is held by a process that {RECORD} there does not name, so nothing was ended",
                hint="if a broker is just starting, wait for it and try again",
            )
    end_in_order(running.values())
    for data, record in running.items():
        if not _free_within(data, KILL_SECONDS_MAX):
            raise BrokerUnavailable(f"process {record.pid} does not end, and still holds {data}")
        remove(data, record.pid)
    return list(running.values())


def _free_within(data: Path, seconds_max: float) -> bool:
    deadline = time.monotonic() + seconds_max
    while is_alive(data):
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_SECONDS)
    return True
