"""Who runs on a data directory: what is believed of a record, and what is not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from connectors.kafka.broker import record
from connectors.kafka.broker.record import BrokerRunning, Record
from engine.errors import ExternalError


def _record(pid: int, started: str | None = None) -> Record:
    return Record(pid, record.start_time(pid) if started is None else started, "127.0.0.1:9092", "4.1.2", True)


@pytest.fixture
def sleeper() -> object:
    """A process that waits until it is killed."""
    with subprocess.Popen([sys.executable, "-I", "-S", "-c", "import time; time.sleep(60)"]) as process:
        yield process
        process.kill()


def test_a_directory_has_one_owner(tmp_path: Path) -> None:
    """A second start is refused and told about the first."""
    first = record.take_lock(tmp_path)
    record.write(tmp_path, _record(4711, "then"))
    assert record.is_alive(tmp_path)
    with pytest.raises(BrokerRunning, match=r"in use by the broker at 127\.0\.0\.1:9092, process 4711"):
        record.take_lock(tmp_path)
    os.close(first)
    assert not record.is_alive(tmp_path)
    os.close(record.take_lock(tmp_path))


def test_asking_makes_no_directory(tmp_path: Path) -> None:
    """A directory that does not exist has no broker, and still does not exist afterwards."""
    assert not record.is_alive(tmp_path / "none")
    assert record.stop([tmp_path / "none"]) == []
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"pid": 1}', "null"])
def test_a_broken_record_is_none(tmp_path: Path, text: str) -> None:
    """Half a record, or another program's file, is as good as no record."""
    (tmp_path / record.RECORD).write_text(text)
    assert record.read(tmp_path) is None


def test_a_process_is_told_from_a_later_one(sleeper: subprocess.Popen[bytes]) -> None:
    """Start times differ between processes, stay the same for one, and end with it even before it is collected."""
    started = record.start_time(sleeper.pid)
    assert started == record.start_time(sleeper.pid) != ""
    sleeper.kill()
    os.waitid(os.P_PID, sleeper.pid, os.WEXITED | os.WNOWAIT)  # ended, not collected
    assert record.start_time(sleeper.pid) == ""
    sleeper.wait()
    assert record.start_time(sleeper.pid) == ""


def test_a_stale_record_ends_nobody(tmp_path: Path, sleeper: subprocess.Popen[bytes]) -> None:
    """With the lock free nothing runs here: the recorded id now is somebody else's process, which lives on."""
    record.write(tmp_path, _record(sleeper.pid))
    assert record.stop([tmp_path]) == []
    assert record.read(tmp_path) is None
    assert sleeper.poll() is None


def test_a_record_of_another_process_ends_nobody(tmp_path: Path, sleeper: subprocess.Popen[bytes]) -> None:
    """With the lock held but another start time in the record, nothing is signalled and the reason is said."""
    lock = record.take_lock(tmp_path)
    record.write(tmp_path, _record(sleeper.pid, "another time"))
    with pytest.raises(ExternalError, match="nothing was ended"):
        record.stop([tmp_path])
    os.close(lock)
    assert sleeper.poll() is None


def test_a_later_record_is_not_removed(tmp_path: Path) -> None:
    """Who cleans up after one broker leaves the record of the next alone."""
    record.write(tmp_path, _record(2, "x"))
    record.remove(tmp_path, 1)
    assert record.read(tmp_path) == _record(2, "x")
    record.remove(tmp_path, 2)
    assert record.read(tmp_path) is None
