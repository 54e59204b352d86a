"""`headrace run` as a process that can be killed, paused, and asked where it was."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType

#: Kills the process itself when a phase is reached for the n-th time: `headrace run` but for that hook.
SUICIDAL = """
import asyncio, os, signal, sys
from pathlib import Path
from engine import config_file, logs
from engine.compose.pipelines import build_runtime
from engine.compose.shared import phase_log

wanted, left = sys.argv[2], [int(sys.argv[3])]
note = phase_log(os.environ["HEADRACE_PHASE_LOG"])

def phase(name):
    note(name)
    if name == wanted:
        left[0] -= 1
        if left[0] == 0:
            note("killed:" + name)
            os.kill(os.getpid(), signal.SIGKILL)

logs.configure()
runtime = build_runtime(config_file.load(Path(sys.argv[1])), phase=phase)
asyncio.run(runtime.run(asyncio.Event()))
"""


class EngineProcess:
    """One member. Its phases go to ``phase_log``, its log lines to ``log``."""

    def __init__(
        self,
        config: Path,
        *,
        phase_log: Path,
        log: Path,
        dies_at: tuple[str, int] | None = None,
        caught_up: bool = False,
    ) -> None:
        self._phase_log = phase_log
        self._log = log
        self._size_before = phase_log.stat().st_size if phase_log.exists() else 0
        if dies_at is None:
            command = [
                sys.executable,
                "-c",
                "import typer; from engine.cli.run import run; typer.run(run)",
                str(config),
            ]
            command += ["--until-caught-up"] if caught_up else []
        else:
            command = [sys.executable, "-c", SUICIDAL, str(config), dies_at[0], str(dies_at[1])]
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                command,
                env={**os.environ, "HEADRACE_PHASE_LOG": str(phase_log)},
                stdout=output,
                stderr=output,
            )

    def __enter__(self) -> EngineProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait(30)

    @property
    def pid(self) -> int:
        return self._process.pid

    def phases(self) -> list[str]:
        """What this process did, in order."""
        with self._phase_log.open() as file:
            file.seek(self._size_before)
            lines = [line.split() for line in file.read().splitlines()]
        return [line[2] for line in lines if len(line) == 3 and line[1] == str(self.pid)]

    def wait_for(self, phase: str, seconds_max: float = 60.0) -> None:
        """Return when the process has reached ``phase``."""
        deadline = time.monotonic() + seconds_max
        while time.monotonic() < deadline:
            if self._phase_log.exists() and phase in self.phases():
                return
            if self._process.poll() is not None:
                break
            time.sleep(0.01)
        raise AssertionError(f"phase {phase!r} was not reached; {self.said()}")

    def wait_for_next(self, phase: str, seconds_max: float = 60.0) -> None:
        """Return when the process has reached ``phase`` once more than now."""
        before = self.phases().count(phase)
        deadline = time.monotonic() + seconds_max
        while self.phases().count(phase) <= before:
            assert time.monotonic() < deadline, f"phase {phase!r} did not come again; {self.said()}"
            time.sleep(0.01)

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def kill(self) -> None:
        """SIGKILL, which reaches a stopped process too."""
        self._process.kill()
        self._process.wait(30)

    def wait(self, seconds_max: float) -> int:
        """The exit code. Raises AssertionError, with the log's end, when it does not come."""
        try:
            return self._process.wait(seconds_max)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"no end within {seconds_max} s; {self.said()}") from None

    def said(self) -> str:
        return "the log ends with:\n" + "\n".join(self._log.read_text().splitlines()[-25:])
