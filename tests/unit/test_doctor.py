"""`headrace doctor` without a broker: its frame, the machine, sinks that are files, and what a run serves."""

from __future__ import annotations

import asyncio
import contextlib
import http.server
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import duckdb
import orjson
import pytest

from engine import config_file, logs
from engine.cli.doctor import _document, _text
from engine.compose import doctor
from engine.compose.checks import machine, serving, sinks
from engine.compose.checks.finding import Case, Finding, Level, fail, ok, warn
from engine.config import Config
from engine.errors import ConfigError, Domain, SinkMismatch
from engine.web import runfile
from engine.web.runfile import RunFile

PARQUET = {"type": "parquet", "path": "rows"}
DUCKDB = {"type": "duckdb", "path": "rows.duckdb", "table": "events"}


def configuration(directory: Path, *sink: dict[str, object], **tables: Any) -> Config:
    """A pipeline for each sink, named p0, p1, ..."""
    pipelines = {f"p{at}": {"source": {"topic": "t"}, "sink": each} for at, each in enumerate(sink)}
    function = {"kind": "kinesis", "handler": "a.b", "environment": {"KEY": "hunter22"}}
    pipelines = pipelines or {"f": {"source": {"topic": "t"}, "function": function}}
    return config_file.parse({"pipelines": pipelines, **tables}, directory=directory)


def case(directory: Path, *sink: dict[str, object], **tables: Any) -> Case:
    config = configuration(directory, *sink, **tables)
    return Case(directory / "headrace.toml", config, pipelines=dict(config.pipelines))


def levels(findings: Sequence[Finding]) -> list[Level]:
    return [finding.level for finding in findings]


async def every(load: Any, checks: Sequence[tuple[str, Any]] = (), seconds_max: float = 5.0) -> list[Finding]:
    found = doctor.examine(Path("headrace.toml"), load, seconds_max=seconds_max, alone=(), configured=checks)
    return [finding async for finding in found]


# The frame


async def test_a_check_that_crashes_or_hangs_is_a_failed_one_and_the_others_go_on(tmp_path: Path) -> None:
    """Whatever way it does, coroutine or not; each within its bound, and nobody waits for a thread that hangs."""
    never = threading.Event()

    def crashes(_case: Case) -> list[Finding]:
        raise ZeroDivisionError("of all things")

    async def crashes_too(_case: Case) -> list[Finding]:
        raise KeyError("x")

    def hangs(_case: Case) -> list[Finding]:
        never.wait(20)
        return []

    async def hangs_too(_case: Case) -> list[Finding]:
        await asyncio.sleep(20)
        return []

    def refuses(_case: Case) -> list[Finding]:
        raise SinkMismatch("another's", hint="take yours")

    async def works(_case: Case) -> list[Finding]:
        return [ok("fine"), warn("so so", "look")]

    checks = [
        ("a", crashes),
        ("b", crashes_too),
        ("c", hangs),
        ("d", hangs_too),
        ("e", refuses),
        ("f", works),
    ]
    started = time.monotonic()
    found = await every(lambda: configuration(tmp_path, PARQUET), checks, seconds_max=0.1)
    assert time.monotonic() - started < 5
    never.set()
    assert [(each.check, each.level.value) for each in found] == [
        ("configuration", "ok"),
        ("a", "fail"),
        ("b", "fail"),
        ("c", "fail"),
        ("d", "fail"),
        ("e", "fail"),
        ("f", "ok"),
        ("f", "warn"),
    ]
    assert "ZeroDivisionError: of all things" in found[1].message
    assert "no answer within 0.1 s" in found[3].message
    assert (found[5].message, found[5].hint, found[5].domain) == ("another's", "take yours", Domain.USER)
    assert doctor.exit_code(found) == 3
    assert doctor.exit_code(found[5:]) == 2
    assert doctor.exit_code(found[6:]) == 0


async def test_without_a_configuration_the_other_checks_are_skipped() -> None:
    """Its faults are a finding, all of them, and the exit code is the user's."""

    def load() -> Config:
        raise ConfigError("headrace.toml", ["one", "two"])

    found = await every(load, [("broker", lambda _case: [ok("?")])])
    assert levels(found) == [Level.FAIL, Level.SKIPPED]
    assert "one\n  two" in found[0].message
    assert doctor.exit_code(found) == 2


def test_every_check_has_its_own_name_and_says_what_it_is() -> None:
    """Names are what scripts look for."""
    names = [name for name, _ in (*doctor.ALONE, *doctor.CONFIGURED)]
    assert len({*names}) == len(names)
    assert all(check.__doc__ for _, check in (*doctor.ALONE, *doctor.CONFIGURED))
    assert max(map(len, names)) <= 17  # the column


def test_the_manual_has_every_check() -> None:
    """In its table, by its name."""
    text = (Path(__file__).parents[2] / "docs/operating.md").read_text()
    rows = [line.split("|")[1] for line in text.splitlines() if line.startswith("| ")]
    told = {name.strip() for row in rows for name in row.split(",")}
    assert {name for name, _ in (*doctor.ALONE, *doctor.CONFIGURED)} | {"configuration"} <= told


def test_a_finding_is_shown_whole_and_harmless(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its hint below it; without secrets, and without what a terminal would obey."""
    monkeypatch.setattr(logs, "_hidden", ("hunter22",))
    finding = fail("no \x1b[2J\x07hunter22\nat all", "mend hunter22", "clicks")
    finding = Finding(finding.level, finding.message, finding.hint, finding.pipeline, check="topics")
    shown = _text(finding, colour=False)
    assert shown.splitlines() == [
        "fail    topics            clicks: no ·[2J·**********",
        f"{'':26}at all",
        f"{'':26}mend **********",
    ]
    assert "hunter22" not in _document([finding], 2)
    assert "\x1b[1;31mfail" in _text(finding, colour=True)


# The machine


async def test_this_machine_can_run_it(tmp_path: Path) -> None:
    """The tests run here, so nothing that they need fails; the clock may be anything."""
    for name, check in doctor.ALONE:
        found = await doctor.checked(name, check, case(tmp_path, PARQUET), 20.0)
        assert Level.FAIL not in levels(found), found


@pytest.mark.parametrize(
    ("requirement", "said"),
    [
        ("orjson>=3.11", None),
        ("no-such-package-here>=1", "no-such-package-here is not installed"),
        ("orjson>=99.1", "orjson is .*, and >=99.1 is needed"),
        ("orjson==0.1", "orjson is .*, and ==0.1 is needed"),
        ("orjson>=1,<2", "orjson is .*, and <2 is needed"),
        ("no-such-package-here; extra == 'dev'", None),
        ("pydantic[email]>=2", None),
    ],
)
def test_a_package_is_held_against_what_is_required(requirement: str, said: str | None) -> None:
    """Of the development's extras nothing is asked."""
    found = machine._fault(requirement)
    if said is None:
        assert found is None
    else:
        assert found is not None
        assert re.fullmatch(said, found)


def test_versions_are_compared_by_their_numbers() -> None:
    """Not as text, and not by how many there are."""
    assert machine._holds("1.10.0", ">=", "1.9")
    assert machine._holds("1.5.0", "==", "1.5")
    assert machine._holds("2.0rc1", ">=", "2.0")
    assert not machine._holds("1.9.9", ">=", "1.10")
    assert not machine._holds("1.9", "<", "1.9.0")


def test_all_that_is_required_is_understood() -> None:
    """A condition that is not would be passed over in silence."""
    for requirement in metadata.requires("headrace") or []:
        found = machine._REQUIREMENT.match(requirement)
        assert found is not None
        assert all(machine._CONDITION.match(part) for part in found[2].split(",") if part)


def test_code_that_can_be_kept_nowhere_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A place that is named and is none counts, whatever lies beside the modules."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "file" / "below"))
    assert levels(machine.compiled(Case(tmp_path))) == [Level.WARN]
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "made" / "later"))
    assert levels(machine.compiled(Case(tmp_path))) == [Level.OK]
    assert not (tmp_path / "made").exists()


def test_limits_are_held_against_what_is_configured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Open files of partitioned sinks, memory of the engine, and of its environments."""
    many = {**PARQUET, "partition_by": ["a"], "hive_partitions_open_max": 10_000}
    monkeypatch.setattr(machine.resource, "getrlimit", lambda _which: (1024, 4096))
    assert levels(machine.open_files(case(tmp_path, PARQUET))) == [Level.OK]
    (found,) = machine.open_files(case(tmp_path, many))
    assert (found.level, "1,024 open files allowed, up to 10,128 needed" in found.message) == (Level.WARN, True)
    monkeypatch.setattr(machine, "_memory_limit", lambda: (600 << 20, "the container"))
    assert levels(machine.memory(case(tmp_path, PARQUET))) == [Level.OK]
    assert levels(machine.memory(case(tmp_path))) == [Level.WARN]  # 8 environments of 128 MB
    large = {"memory_bytes_max": 1 << 30}
    assert levels(machine.memory(case(tmp_path, PARQUET, engine=large))) == [Level.FAIL]


# Sinks that are files


def test_places_that_cannot_be_written_are_named(tmp_path: Path) -> None:
    """A file for a directory, a directory for a file, below a file; what is missing is made later, not now."""
    (tmp_path / "rows").write_text("")
    (tmp_path / "rows.duckdb").mkdir()
    below = {**PARQUET, "path": "rows/below"}
    new = {**PARQUET, "path": "not/made"}
    found = sinks.directories(case(tmp_path, PARQUET, DUCKDB, below, new))
    assert levels(found) == [Level.FAIL, Level.FAIL, Level.FAIL, Level.OK]
    assert not (tmp_path / "not").exists()


def test_a_link_to_another_file_system_is_named(tmp_path: Path) -> None:
    """Files come to their public names by renaming, which needs one file system."""
    root = tmp_path / "rows"
    (root / "day=1").mkdir(parents=True)
    assert levels(sinks.one_file_system(case(tmp_path, PARQUET))) == [Level.OK]
    (root / "day=2").symlink_to("/proc/self")
    (found,) = sinks.one_file_system(case(tmp_path, PARQUET))
    assert found.level is Level.FAIL
    assert "day=2" in found.message


def test_little_room_is_a_warning_and_none_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By what is free, and by what memory may have to be written."""
    given = case(tmp_path, PARQUET, DUCKDB)
    for free, level in ((1 << 40, Level.OK), (1 << 30, Level.WARN), (1 << 20, Level.FAIL)):
        usage = type("Usage", (), {"free": free, "total": 1 << 41})
        monkeypatch.setattr(sinks.shutil, "disk_usage", lambda _path, usage=usage: usage)
        assert levels(sinks.disk(given)) == [level]  # both are on one file system


HOLD = "import duckdb, sys; connection = duckdb.connect(sys.argv[1]); print('held', flush=True); sys.stdin.read()"


def test_who_holds_a_duckdb_file_is_told(tmp_path: Path) -> None:
    """A failure, unless it is the engine that runs for this configuration; a file that is none is another."""
    path = tmp_path / "rows.duckdb"
    given = case(tmp_path, DUCKDB)
    assert "is made at the start" in sinks.held(given)[0].message
    assert not path.exists()
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        (found,) = sinks.held(given)
        assert (found.level, f"is held by process {holder.pid}" in found.message) == (Level.FAIL, True)
        given.running = RunFile(holder.pid, None, str(given.file), 0.0)
        assert levels(sinks.held(given)) == [Level.OK]
    finally:
        holder.communicate("")
    assert levels(sinks.held(given)) == [Level.OK]
    path.write_bytes(b"no database")
    (found,) = sinks.held(given)
    assert (found.level, found.domain) == (Level.FAIL, Domain.EXTERNAL)


def test_a_log_that_a_crash_left_is_told(tmp_path: Path) -> None:
    """DuckDB takes it in at the next start, not now."""
    path = tmp_path / "rows.duckdb"
    program = "import duckdb, os, sys; c = duckdb.connect(sys.argv[1]); c.execute('CREATE TABLE t AS SELECT 1')"
    program += "; c.execute('PRAGMA disable_checkpoint_on_shutdown'); c.execute('CREATE TABLE u AS SELECT 1')"
    subprocess.run([sys.executable, "-c", f"{program}; os._exit(0)", str(path)], check=True)
    log = tmp_path / "rows.duckdb.wal"
    size = log.stat().st_size
    (found,) = sinks.held(case(tmp_path, DUCKDB))
    assert (found.level, f"{size:,} bytes of its log" in found.message) == (Level.OK, True)
    assert log.stat().st_size == size


def test_what_a_killed_process_left_is_told(tmp_path: Path) -> None:
    """Staged and temporary files, which are nobody's business while an engine runs."""
    home = tmp_path / "rows" / ".headrace"
    given = case(tmp_path, PARQUET)
    assert "no Parquet sink is there yet" in sinks.leftovers(given)[0].message
    staging = home / "topic-x" / "0" / "staging"
    staging.mkdir(parents=True)
    (home / "temporary").mkdir()
    assert "nothing is left" in sinks.leftovers(given)[0].message
    (staging / "7-owner-1").write_bytes(b"x" * 10)
    (home / "temporary" / "y").write_bytes(b"")
    assert "1 staged files (10 bytes) and 1 temporary ones" in sinks.leftovers(given)[0].message
    given.running = RunFile(os.getpid(), None, "c", 0.0)
    assert "of the engine that runs" in sinks.leftovers(given)[0].message


# What a run serves


@contextlib.contextmanager
def answering(status: int, body: bytes) -> Iterator[str]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_arguments: object) -> None:
            return

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_the_health_of_a_run_is_its_own_word(tmp_path: Path) -> None:
    """Green, red with its reasons, its page off, or not answering."""
    given = case(tmp_path, PARQUET)
    assert levels(serving.running(given)) == [Level.OK]
    given.running = RunFile(os.getpid(), None, "c", 0.0)
    assert levels(serving.running(given)) == [Level.WARN]
    with answering(200, b"{}") as url:
        given.running = RunFile(os.getpid(), url, "c", 0.0)
        assert levels(serving.running(given)) == [Level.OK]
    (found,) = serving.running(given)
    assert (found.level, "does not answer" in found.message) == (Level.FAIL, True)
    with answering(503, b'{"ok": false, "reasons": [{"message": "p0[3] stands still"}]}') as url:
        given.running = RunFile(os.getpid(), url, "c", 0.0)
        (found,) = serving.running(given)
        assert (found.level, "p0[3] stands still" in found.message) == (Level.FAIL, True)


def test_reasons_of_a_run_are_told_by_pipeline_with_their_hints(tmp_path: Path) -> None:
    """Partitions that stand still alike are counted; an error's own hint goes before the general one."""
    stalled = {"kind": "shard_stalled", "pipeline": "p0", "hint": "look there"}
    reasons = [
        {
            "kind": "pipeline_ended",
            "pipeline": "p1",
            "message": "p1 ended: boom\n  mend it",
            "hint": "mend what it names",
        },
        *({**stalled, "message": f"p0[{partition}] stands still"} for partition in range(50)),
    ]
    given = case(tmp_path, PARQUET)
    with answering(503, orjson.dumps({"ok": False, "reasons": reasons})) as url:
        given.running = RunFile(os.getpid(), url, "c", 0.0)
        ended, still = serving.running(given)
    assert (ended.pipeline, ended.hint) == ("p1", "mend it")
    assert ended.message.endswith("is not well: p1 ended: boom")
    assert (still.pipeline, still.hint) == ("p0", "look there")
    assert still.message.endswith("p0[0] stands still (and 49 more partitions alike)")


def test_a_standby_of_the_same_file_is_told_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine that began first is the one that runs; each has a word of its own."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    given = case(tmp_path, PARQUET)
    runfile.write(RunFile(os.getppid(), None, str(given.file), 2.0))
    with answering(200, b"{}") as url:
        runfile.write(RunFile(os.getpid(), url, str(given.file), 1.0))
        given.running = runfile.find(given.file)
        assert levels(serving.running(given)) == [Level.OK, Level.WARN]


def test_ports_that_are_taken_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page takes another one then; a port for queries is a fault. An engine that runs has its own."""
    monkeypatch.delenv("HEADRACE_WEB_TOKEN", raising=False)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        given = case(tmp_path, DUCKDB, web={"port": port}, query={"port": port})
        assert levels(serving.page(given)) == [Level.WARN]
        (found,) = serving.query(given)
        assert (found.level, f"{port}: address already in use" in found.message) == (Level.FAIL, True)
        given.running = RunFile(os.getpid(), "http://x", "c", 0.0)
        assert levels([*serving.page(given), *serving.query(given)]) == [Level.OK, Level.OK]
    given.running = None
    assert levels([*serving.page(given), *serving.query(given)]) == [Level.OK, Level.OK]
    open_to_all = case(tmp_path, PARQUET, web={"host": "0.0.0.0", "port": 0})
    assert Level.FAIL in levels(serving.page(open_to_all))


def test_a_collector_that_is_away_is_a_warning(tmp_path: Path) -> None:
    """Traces are no reason to stop."""
    assert levels(serving.tracing(case(tmp_path, PARQUET))) == [Level.OK]
    with socket.create_server(("127.0.0.1", 0)) as collector:
        endpoint = f"http://127.0.0.1:{collector.getsockname()[1]}/v1/traces"
        given = case(tmp_path, PARQUET, tracing={"enabled": True, "endpoint": endpoint})
        assert levels(serving.tracing(given)) == [Level.OK]
    assert levels(serving.tracing(given)) == [Level.WARN]


def test_the_registry_is_asked_where_a_pipeline_needs_it(tmp_path: Path) -> None:
    """One that answers, even that it has no such schema, is well."""
    assert levels(serving.registry(case(tmp_path, PARQUET))) == [Level.OK]
    with answering(404, b'{"error_code": 40403, "message": "Schema not found"}') as url:
        given = case(tmp_path, PARQUET, registry={"url": url})
        assert levels(serving.registry(given)) == [Level.SKIPPED]
        pipelines = {"a": {"source": {"topic": "t"}, "schema": {"format": "avro"}, "sink": PARQUET}}
        config = config_file.parse({"registry": {"url": url}, "pipelines": pipelines}, directory=tmp_path)
        given = Case(tmp_path, config, pipelines=dict(config.pipelines))
        assert levels(serving.registry(given)) == [Level.OK]
    assert levels(serving.registry(given)) == [Level.FAIL]


def test_reading_a_database_leaves_it_as_it_was(tmp_path: Path) -> None:
    """Bytes and times of the file, opened by every check of files."""
    path = tmp_path / "rows.duckdb"
    with duckdb.connect(path) as connection:
        connection.execute("CREATE TABLE t AS SELECT 1")
    before = (path.read_bytes(), path.stat().st_mtime_ns, sorted(tmp_path.iterdir()))
    given = case(tmp_path, DUCKDB)
    for check in (sinks.directories, sinks.one_file_system, sinks.disk, sinks.held, sinks.leftovers):
        assert levels(check(given)) == [Level.OK]
    assert (path.read_bytes(), path.stat().st_mtime_ns, sorted(tmp_path.iterdir())) == before
