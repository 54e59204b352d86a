"""One command measured as a process tree: wall time, processor seconds of all of it, memory, and what it wrote.

`run` starts this file as a small program of its own, the *meter*. The meter is a sub-reaper
(``PR_SET_CHILD_SUBREAPER``): a process of the tree whose parent has ended becomes the meter's child, so that

- the processor seconds, RUSAGE_CHILDREN of the meter, are those of every process that the command started,
  start-up included (but for one whose own parent ignores it, which the kernel does not count);
- nothing of the command is left when `run` returns: the meter waits for orphans, and kills the tree at the timeout.

Memory is sampled every 50 ms: the resident size of a lone process; where there are several, the sum of their
proportional sizes (PSS, pages that they share counted once), which costs the kernel more and is read every 250 ms.
Peaks shorter than that are missed. Not here: what is run, and whether its result is right.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

SAMPLE_SECONDS = 0.05
PSS_SAMPLE_SECONDS = 0.25
#: What orphans get to end by themselves once the command has, before they are killed.
ORPHAN_SECONDS_MAX = 10.0
METER_SECONDS = 60.0
TAIL_CHARACTERS = 4_000

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_FLUSHES = "fsync,fdatasync,sync_file_range,syncfs"


@dataclass(frozen=True, slots=True)
class Measured:
    """``code`` is the command's exit code, negative for a signal; None after a timeout. ``rss_bytes_max`` is of the
    whole tree. ``out`` and ``err`` are what it wrote."""

    code: int | None
    wall_seconds: float
    cpu_seconds: float
    rss_bytes_max: int
    processes_max: int
    out: str
    err: str

    @property
    def tail(self) -> str:
        """The end of what it wrote to standard error, for a message."""
        return self.err[-TAIL_CHARACTERS:]


def run(command: Sequence[str], environment: Mapping[str, str], directory: Path, seconds_max: float) -> Measured:
    """Run ``command`` in ``directory`` to its end, and measure it.

    ``environment`` goes over this process's own, of which variables named PYTHON... are left out.
    """
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    with tempfile.TemporaryDirectory(prefix="meter-") as name:
        place = Path(name)
        job = {"command": list(command), "directory": str(directory), "seconds_max": seconds_max, "place": name}
        meter = subprocess.Popen(
            [sys.executable, "-I", "-S", __file__, json.dumps(job)],
            env={**inherited, **environment},
            start_new_session=True,  # Ctrl-C is this process's to pass on
        )
        try:
            meter.wait(seconds_max + ORPHAN_SECONDS_MAX + METER_SECONDS)
        except BaseException:
            meter.terminate()  # it takes the tree with it
            meter.wait()
            raise
        if meter.returncode:
            raise RuntimeError(f"the meter of {command[0]} ended with {meter.returncode}")
        figures = json.loads((place / "figures.json").read_text())
        out, err = ((place / name).read_text(errors="replace") for name in ("out", "err"))
        return Measured(**figures, out=out, err=err)


def flushes(
    command: Sequence[str], environment: Mapping[str, str], directory: Path, seconds_max: float
) -> int | None:
    """How many times a run of ``command`` asked for data to be flushed to the disk; None without strace.

    A run of its own: tracing slows it down.
    """
    strace = shutil.which("strace")
    if strace is None:
        return None
    with tempfile.TemporaryDirectory(prefix="strace-") as name:
        table = Path(name) / "table"
        traced = [strace, "-f", "-c", "-e", f"trace={_FLUSHES}", "-o", str(table), "--", *command]
        measured = run(traced, environment, directory, seconds_max)
        if measured.code != 0:
            return None
        return flush_calls(table.read_text())


def flush_calls(table: str) -> int:
    """The calls in a table of ``strace -c``; 0 where it is empty."""
    names = _FLUSHES.replace(",", "|")
    pattern = rf"^\s*[\d.]+\s+[\d.]+\s+\d+\s+(\d+)(?:\s+\d+)?\s+(?:{names})\s*$"
    return sum(int(found) for found in re.findall(pattern, table, re.MULTILINE))


def size(directory: Path) -> tuple[int, int]:
    """Bytes and number of the visible files beneath ``directory``; hidden ones (``.x``, ``_x``) are bookkeeping."""
    found = [
        path
        for path in directory.rglob("*")
        if path.is_file() and not any(part[0] in "._" for part in path.relative_to(directory).parts)
    ]
    return sum(path.stat().st_size for path in found), len(found)


# The meter: standard library only, started without site-packages.


def _meter(job: Mapping[str, object]) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")
    signal.signal(signal.SIGTERM, _stop)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    place = Path(str(job["place"]))
    sampler = _Sampler()
    command = job["command"]
    assert isinstance(command, list)
    with (place / "out").open("wb") as out, (place / "err").open("wb") as err:
        started = time.monotonic()
        process = subprocess.Popen(
            command,
            cwd=str(job["directory"]),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            start_new_session=True,
        )
        threading.Thread(target=sampler.run, daemon=True).start()
        code: int | None
        try:
            code = process.wait(float(str(job["seconds_max"])))
        except subprocess.TimeoutExpired:
            code = None
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            _kill_tree()
            process.wait()
        wall = time.monotonic() - started
    _reap(time.monotonic() + ORPHAN_SECONDS_MAX)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    figures = {
        "code": code,
        "wall_seconds": wall,
        "cpu_seconds": used.ru_utime + used.ru_stime,
        "rss_bytes_max": sampler.bytes_max or used.ru_maxrss * 1024,
        "processes_max": sampler.processes_max,
    }
    (place / "figures.json").write_text(json.dumps(figures))


def _stop(_number: int, _frame: object) -> None:
    """SIGTERM, or the end of the process that measures: the tree goes first."""
    _kill_tree()
    os._exit(1)


def _reap(deadline: float) -> None:
    """Wait for every process of the tree; those that outlive the deadline are killed."""
    while True:
        try:
            pid, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            if time.monotonic() > deadline:
                _kill_tree()
            time.sleep(SAMPLE_SECONDS)


def _kill_tree() -> None:
    for pid in _tree():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _tree() -> list[int]:
    """The processes below this one, by the kernel's lists of children."""
    found: list[int] = []
    waiting = [os.getpid()]
    while waiting:
        pid = waiting.pop()
        with contextlib.suppress(OSError):
            for task in Path(f"/proc/{pid}/task").iterdir():
                children = (task / "children").read_text().split()
                waiting += map(int, children)
                found += map(int, children)
    return found


class _Sampler:
    """The largest memory of the tree so far, in a thread."""

    def __init__(self) -> None:
        self.bytes_max = 0
        self.processes_max = 0

    def run(self) -> None:
        while True:
            tree = _tree()
            self.processes_max = max(self.processes_max, len(tree))
            several = len(tree) > 1
            self.bytes_max = max(self.bytes_max, sum(map(_pss if several else _rss, tree)))
            time.sleep(PSS_SAMPLE_SECONDS if several else SAMPLE_SECONDS)


def _rss(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE_BYTES
    except (OSError, IndexError):
        return 0


def _pss(pid: int) -> int:
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0


if __name__ == "__main__":
    _meter(json.loads(sys.argv[1]))
