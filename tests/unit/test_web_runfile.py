"""The file that tells of a run: found by the configuration, gone with its process, nobody else's."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.errors import ExternalError
from engine.web import runfile
from engine.web.runfile import RunDatabase, RunFile


@pytest.fixture(autouse=True)
def runtime_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "runtime"
    path.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(path))
    return path / "headrace"


@pytest.fixture
def other() -> Iterator[subprocess.Popen[bytes]]:
    """Another process that lives until the test ends it."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    yield process
    process.kill()
    process.communicate()


def run(config: Path, pid: int | None = None, started_at: float = 1.0) -> RunFile:
    databases = (RunDatabase("/data/w.duckdb", "quack:localhost:1", "secret-1"),)
    return RunFile(pid or os.getpid(), "http://127.0.0.1:1", str(config), started_at, "secret-2", databases)


def test_a_run_is_found_by_its_configuration(tmp_path: Path, runtime_directory: Path) -> None:
    """Whatever way its path is written; the file is its user's alone, and a repr has no token."""
    config = tmp_path / "headrace.toml"
    path = runfile.write(run(config))
    found = runfile.find(tmp_path / "x" / ".." / "headrace.toml")
    assert found is not None
    assert found.databases == run(config).databases
    assert (found.url, found.token, found.pid) == ("http://127.0.0.1:1", "secret-2", os.getpid())
    assert "secret" not in repr(found)
    assert path.stat().st_mode & 0o777 == 0o600
    assert runtime_directory.stat().st_mode & 0o777 == 0o700
    assert runfile.find(tmp_path / "other.toml") is None


def test_a_dead_run_is_removed(tmp_path: Path, other: subprocess.Popen[bytes]) -> None:
    """When it is met; the others are listed, the latest first."""
    runfile.write(run(tmp_path / "a.toml", other.pid))
    runfile.write(run(tmp_path / "b.toml", started_at=0.5))
    runfile.write(run(tmp_path / "c.toml", started_at=2.0))
    assert [Path(each.config).name for each in runfile.all()] == ["c.toml", "a.toml", "b.toml"]
    other.kill()
    other.wait()
    assert [Path(each.config).name for each in runfile.all()] == ["c.toml", "b.toml"]
    assert len(list(runfile.directory().iterdir())) == 2


def test_a_pid_that_came_again_is_another_process(tmp_path: Path) -> None:
    """It is told by when it began."""
    path = runfile.write(run(tmp_path / "a.toml"))
    found = runfile.find(tmp_path / "a.toml")
    assert found is not None
    assert found.process
    path.write_bytes(path.read_bytes().replace(f'"{found.process}"'.encode(), b'"1"'))
    assert runfile.find(tmp_path / "a.toml") is None
    assert not path.exists()


def test_a_run_takes_back_its_own_file_only(tmp_path: Path, other: subprocess.Popen[bytes]) -> None:
    """A standby of the same configuration comes and goes, and the first one is found throughout."""
    config = tmp_path / "a.toml"
    runfile.write(run(config, other.pid))
    runfile.remove(run(config))
    assert runfile.find(config) is not None
    runfile.write(run(config, started_at=2.0))
    assert [each.pid for each in runfile.of(config)] == [other.pid, os.getpid()]
    assert getattr(runfile.find(config), "pid", 0) == other.pid
    runfile.remove(run(config))
    runfile.remove(run(config))
    assert getattr(runfile.find(config), "pid", 0) == other.pid
    other.kill()
    other.wait()
    assert runfile.find(config) is None


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b"null", b'{"pid": "x"}', b"\xff" * 100, b"9" * 10])
def test_what_is_no_such_file_is_passed_by(tmp_path: Path, content: bytes) -> None:
    """It is neither believed nor removed."""
    path = runfile.write(run(tmp_path / "a.toml"))
    path.write_bytes(content)
    assert runfile.find(tmp_path / "a.toml") is None
    assert runfile.all() == []
    assert path.exists()


def test_files_that_others_may_read_or_links_are_not_believed(tmp_path: Path) -> None:
    """Whoever made them."""
    path = runfile.write(run(tmp_path / "a.toml"))
    path.chmod(0o644)
    assert runfile.find(tmp_path / "a.toml") is None
    path.chmod(0o600)
    kept = path.rename(tmp_path / "kept.json")
    path.symlink_to(kept)
    assert runfile.find(tmp_path / "a.toml") is None


def test_a_directory_of_others_is_refused(tmp_path: Path, runtime_directory: Path) -> None:
    """It is named; to look for runs there finds none."""
    runtime_directory.mkdir(mode=0o755)
    runtime_directory.chmod(0o755)
    with pytest.raises(ExternalError, match="of this user alone"):
        runfile.write(run(tmp_path / "a.toml"))
    assert runfile.find(tmp_path / "a.toml") is None
    assert runfile.all() == []


def test_without_a_runtime_directory_the_temporary_one_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the user's number, so that users do not meet."""
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    monkeypatch.setattr(runfile.tempfile, "gettempdir", lambda: str(tmp_path))
    assert runfile.directory() == tmp_path / f"headrace-{os.getuid()}"
