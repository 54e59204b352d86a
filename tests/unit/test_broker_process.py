"""The supervisor: what it runs ends with the parent, however that ends, and otherwise is left alone.

Small Python programs stand for Java: the supervisor does not know the difference.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from connectors.kafka.broker import record
from connectors.kafka.broker.process import Supervised, tail
from engine.errors import ExternalError

PYTHON = [sys.executable, "-I", "-S", "-c"]
SLEEPS = "import time; time.sleep(60)"
STUBBORN = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"
)

PARENT = """
import sys, threading, time
from pathlib import Path
from connectors.kafka.broker.process import Supervised

def start():
    program = Supervised(sys.argv[2:], console=Path(sys.argv[1]))
    print(program.pid, program._supervisor.pid, flush=True)
    sys.program = program

thread = threading.Thread(target=start)  # ends at once: what it started must not end with it
thread.start()
thread.join()
time.sleep(60)
"""


def _gone_within(pid: int, started: str, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while record.start_time(pid) == started:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def _parent(console: Path, program: str) -> tuple[subprocess.Popen[str], int, int]:
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(console), *PYTHON, program], stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    with parent.stdout as output:
        pid, supervisor = map(int, output.readline().split())
    return parent, pid, supervisor


def _wait_for(console: Path, text: str) -> None:
    deadline = time.monotonic() + 10
    while text not in console.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.slow
@pytest.mark.parametrize("program", [SLEEPS, STUBBORN], ids=["polite", "ignores SIGTERM"])
def test_the_program_is_gone_two_seconds_after_its_parent_was_killed(tmp_path: Path, program: str) -> None:
    """SIGKILL of the parent ends program and supervisor in time, though a thread that has ended started them."""
    console = tmp_path / "console"
    parent, pid, supervisor = _parent(console, program)
    if program is STUBBORN:
        _wait_for(console, "up")
    started = record.start_time(pid), record.start_time(supervisor)
    assert all(started)
    parent.kill()
    killed = time.monotonic()
    assert _gone_within(pid, started[0], 2)
    assert _gone_within(supervisor, started[1], 2 - (time.monotonic() - killed))
    parent.wait()


@pytest.mark.skipif(sys.platform != "linux", reason="prctl's PR_SET_PDEATHSIG is Linux's alone")
def test_the_program_is_gone_when_its_supervisor_was_killed(tmp_path: Path) -> None:
    """SIGKILL of the supervisor, which then can do nothing, still ends the program."""
    parent, pid, supervisor = _parent(tmp_path / "console", SLEEPS)
    started = record.start_time(pid)
    os.kill(supervisor, signal.SIGKILL)
    assert _gone_within(pid, started, 2)
    parent.kill()
    parent.wait()


def test_a_program_outlives_the_thread_that_started_it(tmp_path: Path) -> None:
    """The end of the starting thread alone ends nothing."""
    made: list[Supervised] = []
    command = [*PYTHON, SLEEPS]
    thread = threading.Thread(target=lambda: made.append(Supervised(command, console=tmp_path / "console")))
    thread.start()
    thread.join()
    program = made[0]
    with pytest.raises(subprocess.TimeoutExpired):
        program._supervisor.wait(0.5)
    assert record.start_time(program.pid)
    program.release()
    assert not record.start_time(program.pid)


def test_exit_codes_come_through(tmp_path: Path) -> None:
    """The program's own code, and 128 and the signal for one that was killed."""
    console = tmp_path / "console"
    assert Supervised([*PYTHON, "raise SystemExit(7)"], console=console).wait(10) == 7
    killed = Supervised([*PYTHON, SLEEPS], console=console)
    os.kill(killed.pid, signal.SIGKILL)
    assert killed.wait(10) == 128 + signal.SIGKILL


def test_a_program_in_the_background_is_nobodys_child(tmp_path: Path) -> None:
    """It keeps running after its supervisor has ended, and holds what it was given to keep."""
    lock = record.take_lock(tmp_path)
    program = Supervised([*PYTHON, SLEEPS], console=tmp_path / "console", background=True, keep=[lock])
    os.close(lock)
    try:
        assert program.exit_code is None
        assert record.start_time(program.pid)
        assert record.is_alive(tmp_path)
    finally:
        os.kill(program.pid, signal.SIGKILL)
    deadline = time.monotonic() + 5
    while record.is_alive(tmp_path):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_program_that_cannot_be_run_says_so(tmp_path: Path) -> None:
    """A missing program ends with the shell's code for it and a line in the console file."""
    console = tmp_path / "console"
    assert Supervised([str(tmp_path / "no-java")], console=console).wait(10) == 127
    assert "no-java: No such file" in console.read_text()


def test_java_options_of_the_environment_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Options meant for somebody else's Java do not reach the broker."""
    monkeypatch.setenv("JAVA_TOOL_OPTIONS", "-Xmx1m")
    console = tmp_path / "console"
    program = Supervised([*PYTHON, "import os; print('JAVA_TOOL_OPTIONS' in os.environ)"], console=console)
    assert program.wait(10) == 0
    assert console.read_text() == "False\n"


def test_a_missing_supervisor_is_an_error_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When nothing comes up to start the program, that is said, with the place of its output."""
    monkeypatch.setattr("connectors.kafka.broker.process.SUPERVISOR", tmp_path / "missing.py")
    with pytest.raises(ExternalError, match="could not be started; see"):
        Supervised([*PYTHON, SLEEPS], console=tmp_path / "console")


def test_tail_gives_the_last_lines_of_this_run(tmp_path: Path) -> None:
    """Lines before the start are left out, unless the file has been rolled meanwhile."""
    path = tmp_path / "log"
    assert tail(path) == []
    path.write_text("old\n")
    start = path.stat().st_size
    with path.open("a") as file:
        file.writelines(f"line {number}\n" for number in range(20))
    assert tail(path, start=start, lines_max=3) == ["line 17", "line 18", "line 19"]
    assert tail(path, start=start, lines_max=50)[0] == "line 0"
    path.write_text("new\n")
    assert tail(path, start=start + 1000) == ["new"]
